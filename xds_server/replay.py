"""An ADS server of captured folders (`xlb replay`): what istiod sent once, sent again, without istiod.

Each node gets the captured folder that fits it (`captures.Scenario.find`); which one is told in
`control_plane.identifier`.  `switch` pushes another scenario to every connected client, as a change of the Istio
configuration would.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog
from envoy.config.core.v3.base_pb2 import Node

from xds_server.captures import CaptureError, Scenario, load_scenario
from xds_server.grpc_options import claim_unix_path
from xds_server.node import ControlPlane, control_plane_identifier
from xds_server.resources import label_of
from xds_server.server import AdsService, StreamInfo
from xds_server.stream import ResourceSet

COMPONENT: Final = "xlb-replay"
_MAX_CONTROL_LINE: Final = 65_536

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class SwitchResult:
    """What clients made of a switch; `refused` holds one line per client's NACK, `silent` counts those not done."""

    scenario: str
    clients: int
    refused: tuple[str, ...] = ()
    silent: int = 0


class Replay:
    """Serves one scenario at a time.  Usable in-process: `start`, `switch`, `wait_acked`, `stop`."""

    def __init__(self, scenario: Path) -> None:
        """:raises CaptureError: if the folder cannot be served"""
        self._scenario = load_scenario(scenario)
        self._serials = itertools.count(1)
        self._serial = next(self._serials)
        self._service = AdsService(self._resources_for, ordered=False)

    async def start(self, listen: str = "127.0.0.1:0") -> str:
        """Listen on HOST:PORT (port 0: any) or unix:///PATH.

        :returns: the address clients use
        :raises OSError: if it cannot be listened on
        """
        if listen.startswith("unix://"):
            return await self._service.start(unix=Path(listen.removeprefix("unix://")))
        return await self._service.start(tcp=listen)

    async def stop(self) -> None:
        await self._service.stop()

    @property
    def scenario(self) -> Scenario:
        return self._scenario

    @property
    def version(self) -> str:
        """The `version_info` of what is being served."""
        return f"{self._serial}/{self._scenario.name}"

    @property
    def streams(self) -> list[StreamInfo]:
        return self._service.streams

    def switch(self, scenario: Path) -> None:
        """Serve another scenario from now on, to connected clients too.

        :raises CaptureError: if the folder cannot be served; the scenario before stays
        """
        self._scenario = load_scenario(scenario)
        self._serial = next(self._serials)
        self._service.publish()

    async def wait_acked(self, timeout: float, *, at_least: int = 1) -> SwitchResult:
        """Wait until every client has what is being served in force, or refused it, for at most `timeout` seconds."""
        with contextlib.suppress(TimeoutError):
            await self._service.settled(self._serial, timeout, at_least=at_least)
        streams = self.streams
        refused = tuple(f"{s.node_id}: {label_of(s.nack.type_url)}: {s.nack.message}" for s in streams if s.nack)
        silent = sum(not s.in_force and s.nack is None for s in streams)
        return SwitchResult(self._scenario.name, len(streams), refused, silent + max(at_least - len(streams), 0))

    def _resources_for(self, node: Node) -> ResourceSet:
        fit, captured = self._scenario.find(node)
        folder = "" if captured is None else captured.folder
        return ResourceSet(
            version=self.version,
            serial=self._serial,
            by_type={} if captured is None else {str(t): r for t, r in captured.resources.items()},
            identifier=control_plane_identifier(ControlPlane(COMPONENT, folder, fit.value)),
            fill_missing=True,
        )


class ReplayControl:
    """The control socket: one JSON object per line, {"switch": DIR, "wait": SECONDS}, answered by one line."""

    def __init__(self, replay: Replay, path: Path) -> None:
        self._replay = replay
        self._path = path
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """:raises OSError: if the socket cannot be made, or belongs to a living process"""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        claim_unix_path(self._path)
        self._server = await asyncio.start_unix_server(self._serve, self._path, limit=_MAX_CONTROL_LINE)
        os.chmod(self._path, 0o600)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                writer.write(json.dumps(await self._answer(line)).encode() + b"\n")
                await writer.drain()
        except (ConnectionError, ValueError):  # ValueError: a line beyond the limit
            _log.debug("replay_control_connection_lost")
        finally:
            writer.close()

    async def _answer(self, line: bytes) -> dict[str, object]:
        try:
            command = json.loads(line)
            folder, wait = Path(command["switch"]), float(command.get("wait", 0))
        except (ValueError, KeyError, TypeError, AttributeError):
            return {"ok": False, "error": 'a command is {"switch": DIR, "wait": SECONDS}'}
        try:
            self._replay.switch(folder)
        except CaptureError as error:
            return {"ok": False, "error": str(error)}
        _log.info("replay_switched", scenario=self._replay.scenario.name)
        result = await self._replay.wait_acked(wait, at_least=0)
        return {
            "ok": not result.refused,
            "scenario": result.scenario,
            "clients": result.clients,
            "refused": list(result.refused),
            "silent": result.silent,
        }
