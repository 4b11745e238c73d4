"""The keeper: its supervision, and the JSON lines that it takes on its control socket."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from xlb.supervisor import Program, Supervisor, SupervisorError

KEEPER_PORT: Final = 15001
_POLL_S: Final = 0.02
_ANSWER_S: Final = 2.0
_SUCCESSION_S: Final = 20.0  # the successor itself gives up earlier
_LONGEST_ANSWER: Final = 1 << 24  # its status has a line for each pool


class KeeperError(SupervisorError):
    """The keeper does not work; one line that says what to do."""


@dataclass(frozen=True, slots=True)
class KeeperSettings:
    """`address` is where it listens for captured connections of this network namespace, at KEEPER_PORT."""

    instance: str
    run_dir: Path
    address: str
    cgroup: Path | None = None
    log_level: str = "info"

    @property
    def pid_path(self) -> Path:
        return self.run_dir / "keeper.pid"

    @property
    def control_path(self) -> Path:
        return self.run_dir / "keeper.sock"

    @property
    def log_path(self) -> Path:
        return self.run_dir / "keeper.log"


class KeeperSupervisor(Supervisor):
    """Keeps one keeper running from `start` until `stop` or `release`."""

    def __init__(self, settings: KeeperSettings) -> None:
        super().__init__()
        self.settings = settings

    async def start(self, layout: str) -> None:
        """Take over the keeper that runs, or start one.

        :param layout: names what its maps are; a keeper of other maps is replaced
        :raises SupervisorError: if it cannot be started at all
        """
        settings = self.settings
        words = ("--instance", settings.instance, "--run-dir", settings.run_dir, "--address", settings.address)
        argv = (sys.executable, "-m", "xlb.keeper", *map(str, words), "--port", str(KEEPER_PORT))
        await self.run(
            Program(
                name="keeper",
                argv=argv,
                pid_path=settings.pid_path,
                log_path=settings.log_path,
                settings_path=settings.run_dir / "keeper.json",
                settings=json.dumps({"layout": layout, "log_level": settings.log_level}),
                cgroup=settings.cgroup,
                environment={"XLB_LOG": settings.log_level, "MALLOC_ARENA_MAX": "2"},
                leaves=(settings.control_path, settings.run_dir / "keeper-handover.sock"),
                heir_words=("--take-over",),
            )
        )

    async def upgrade(self) -> Mapping[str, Any]:
        """Have a successor, which runs what is installed now, take over every connection.

        :returns: its status
        :raises KeeperError: if it did not; says why, and what runs now
        """
        before = self.state.pid
        try:
            pid = await self.succeed(_SUCCESSION_S)
        except SupervisorError as error:
            now = self.state.pid
            rest = f"process {now} goes on as before" if now and now == before else "and the one that ran has ended too"
            raise KeeperError(f"the keeper was not upgraded ({error}); {rest}") from None
        deadline = time.monotonic() + _ANSWER_S
        while True:
            try:
                told = await self.ask("status")
                if told.get("pid") == pid:
                    return told
                why = f"process {told.get('pid')} answers in its place"
            except (OSError, KeeperError) as error:
                why = str(error)
            if self.state.pid != pid or time.monotonic() > deadline:
                raise KeeperError(f"the keeper's successor, process {pid}, does not work: {self.state.error or why}")
            await asyncio.sleep(_POLL_S)

    async def wait_ready(self, timeout: float) -> None:
        """Wait until it answers.  Raises KeeperError with its last words, when it does not in time."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                await self.ask("status")
            except (OSError, KeeperError):
                if time.monotonic() > deadline:
                    raise KeeperError(f"the keeper did not answer within {timeout:g} s: {self.complaint()}") from None
                await asyncio.sleep(_POLL_S)
            else:
                return

    async def ask(self, what: str) -> Mapping[str, Any]:
        """Send {"do": what} and read the answer.

        :raises OSError: if it does not listen
        :raises KeeperError: if what it answers is nothing to read, or comes too late
        """
        try:
            async with asyncio.timeout(_ANSWER_S):
                return await self._ask(what)
        except TimeoutError:
            raise KeeperError(f"the keeper did not answer {what!r} within {_ANSWER_S:g} s") from None

    async def _ask(self, what: str) -> Mapping[str, Any]:
        reader, writer = await asyncio.open_unix_connection(self.settings.control_path, limit=_LONGEST_ANSWER)
        try:
            writer.write(json.dumps({"do": what}).encode() + b"\n")
            line = await reader.readline()
        finally:
            writer.close()
        try:
            told = json.loads(line)
        except ValueError:
            told = None
        if not isinstance(told, dict):
            raise KeeperError(f"the keeper answered {line[:80]!r} to {what!r}: see {self.settings.log_path}")
        return told
