"""The node's Envoy: its supervision, and its admin interface."""

from __future__ import annotations

import asyncio
import http.client
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from xlb.envoy_command import EnvoyError, EnvoySettings, bootstrap, command, find_binary
from xlb.supervisor import Program, State, Supervisor
from xlb.unix_http import UnixConnection

__all__ = ["EnvoyError", "EnvoySettings", "EnvoySupervisor", "admin_request", "find_binary"]

_POLL_S: Final = 0.02


class EnvoySupervisor(Supervisor):
    """Keeps one Envoy running from `start` until `stop` or `release`."""

    def __init__(
        self,
        settings: EnvoySettings,
        *,
        on_state: Callable[[State], None] | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        super().__init__(on_state=on_state, jitter=jitter)
        self.settings = settings

    async def start(self) -> None:
        """Take over the Envoy that runs, or start one.

        :raises SupervisorError: if it cannot be started at all
        """
        settings = self.settings
        find_binary(settings.binary)
        await self.run(
            Program(
                name="envoy",
                argv=tuple(command(settings)),
                pid_path=settings.pid_path,
                log_path=settings.log_path,
                settings_path=settings.bootstrap_path,
                settings=bootstrap(settings),
                cgroup=settings.cgroup,
                leaves=(settings.admin_path,),
                log_bytes=settings.log_bytes,
            )
        )

    async def ready(self) -> bool:
        """Whether Envoy has its first configuration in force and serves."""
        try:
            status, _ = await self.admin("/ready", timeout=1.0)
        except (OSError, http.client.HTTPException):
            return False
        return status == 200

    async def wait_ready(self, timeout: float) -> None:
        """:raises EnvoyError: with Envoy's last words, when it is not ready in time"""
        deadline = time.monotonic() + timeout
        while not await self.ready():
            if time.monotonic() > deadline:
                raise EnvoyError(f"Envoy was not ready within {timeout:g} s: {self.complaint()}")
            await asyncio.sleep(_POLL_S)

    async def admin(self, path: str, method: str = "GET", timeout: float = 10.0) -> tuple[int, bytes]:
        """Ask Envoy's admin interface.  :raises OSError: or http.client.HTTPException, if it does not answer"""
        return await asyncio.to_thread(admin_request, self.settings.admin_path, path, method, timeout)


def admin_request(socket_path: Path, path: str, method: str = "GET", timeout: float = 10.0) -> tuple[int, bytes]:
    """One request to Envoy's admin interface.  :returns: status and body

    :raises OSError: or http.client.HTTPException, if it does not answer
    """
    connection = UnixConnection(socket_path, timeout)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()
