"""Supervision of a process that outlives the agent: start or find it, watch it, start it again, end it.

It runs in a session of its own.  An agent that starts anew finds it by its pid file and takes it over, if it is what
would be started now; so an agent's restart touches no connection.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Final

import structlog

from xlb.process import Identity, Process, launch

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_BACKOFF_FIRST_S: Final = 0.2
_BACKOFF_LIMIT_S: Final = 15.0
_SETTLED_S: Final = 60.0  # one that ran for so long did not fail by its configuration
_TRIM_S: Final = 10.0
_LAST_WORDS: Final = 4096
_NO_PID_FILE: Final = Path("/dev/null")  # a successor leaves its own once it has the place


class SupervisorError(Exception):
    """The process cannot be started; one line that says what to do."""


class Phase(Enum):
    STOPPED = "stopped"
    RUNNING = "running"  # there is a process; whether it serves is another question
    WAITING = "waiting"  # it ended, and will be started again


@dataclass(frozen=True, slots=True)
class State:
    """`restarts` counts since this agent started; `error` is why the last one ended, in one line."""

    phase: Phase
    pid: int | None = None
    adopted: bool = False
    restarts: int = 0
    error: str = ""
    retry_in: float = 0.0


@dataclass(frozen=True, slots=True)
class Program:
    """What is to run.

    `settings` is written to `settings_path` before the start; one that runs by other settings is replaced.  `leaves`
    are files that it makes and that go when it is stopped.  `log_bytes` bounds the log; one older part of it is kept.
    `heir_words` on its command line make it take everything over from the one that runs; without them it cannot.
    """

    name: str
    argv: tuple[str, ...]
    pid_path: Path
    log_path: Path
    settings_path: Path
    settings: str
    cgroup: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict, hash=False)
    leaves: tuple[Path, ...] = ()
    log_bytes: int = 16 << 20
    heir_words: tuple[str, ...] = ()


class Supervisor:
    """Keeps one process running from `start` until `stop` or `release`."""

    def __init__(
        self,
        *,
        on_state: Callable[[State], None] | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._on_state = on_state
        self._jitter = jitter
        self._state = State(Phase.STOPPED)
        self._program: Program | None = None
        self._process: Process | None = None
        self._heir: Process | None = None  # started beside the process, to take its place
        self._succession = asyncio.Event()  # it has
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def state(self) -> State:
        return self._state

    @staticmethod
    def running(pid_path: Path) -> Process | None:
        """The process that a pid file names, if it still runs."""
        identity = Identity.read(pid_path)
        return None if identity is None else Process.find(identity)

    async def run(self, program: Program) -> None:
        """Take over the process that runs, or start one.

        One that is not what would be started now (settings, binary, namespace or cgroup differ) is ended first.

        :raises SupervisorError: if it cannot be started at all
        """
        if self._tasks:
            raise SupervisorError(f"this {program.name} is supervised already")
        self._program = program
        program.pid_path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        found = self.running(program.pid_path)
        if found is not None:
            reason = self._differs(found, program)
            if reason:
                _log.info("process_replaced", program=program.name, pid=found.pid, reason=reason)
                await found.end(grace=5.0)
                found.close()
                found = None
        if found is None:
            _write(program.settings_path, program.settings)
            self._spawn(program)
        else:
            self._process = found
            _log.info("process_adopted", program=program.name, pid=found.pid)
            self._set(State(Phase.RUNNING, found.pid, adopted=True))
        self._tasks = [
            asyncio.create_task(self._supervise(program)),
            asyncio.create_task(self._keep_log_short(program)),
        ]

    async def succeed(self, limit: float) -> int:
        """Start a successor beside the process that runs, and go on with it when that one has left its place.

        :param limit: seconds; it must end by itself well before, if it cannot take the place
        :returns: its pid
        :raises SupervisorError: the process that runs goes on; says why
        """
        program, process = self._program, self._process
        if program is None or process is None or not program.heir_words:
            raise SupervisorError("nothing runs that could hand over: see `xlb status`")
        if self._heir is not None and not self._heir.is_zombie():
            raise SupervisorError(f"a successor of the {program.name} is starting already: wait for it")
        log_end = _size(program.log_path)
        argv = launch(f"xlb-{program.name}", (*program.argv, *program.heir_words), _NO_PID_FILE, program.cgroup)
        try:
            heir = Process.start(argv, program.log_path, program.environment)
        except OSError as error:
            raise SupervisorError(f"cannot start the successor of the {program.name}: {error}") from None
        _log.info("heir_started", program=program.name, pid=heir.pid)
        self._heir = heir
        self._succession.clear()
        how = await self._race(heir, limit)
        if self._succession.is_set():
            return heir.pid
        self._heir = None
        heir.close()
        said = _last_words(program.log_path, log_end)
        raise SupervisorError(f"{how}: {said}" if said else how)

    async def _race(self, heir: Process, limit: float) -> str:
        """Wait until it has taken the place, or has ended: then how."""
        ended = asyncio.create_task(heir.wait())
        succeeded = asyncio.create_task(self._succession.wait())
        try:
            await asyncio.wait((ended, succeeded), timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                return ended.result()
        finally:
            ended.cancel()
            succeeded.cancel()
            await asyncio.gather(ended, succeeded, return_exceptions=True)
        if not self._succession.is_set():
            await heir.end(grace=0.5)
        return f"it did nothing for {limit:g} s"

    async def stop(self, grace: float = 5.0) -> None:
        """End the process and remove its files but the log.  Safe to call twice."""
        await self._leave()
        process, self._process = self._process, None
        heir, self._heir = self._heir, None
        for one in (heir, process):
            if one is not None:
                await one.end(grace)
                one.close()
        if self._program is not None:
            for path in (self._program.pid_path, self._program.settings_path, *self._program.leaves):
                path.unlink(missing_ok=True)
        self._set(State(Phase.STOPPED, restarts=self._state.restarts))

    async def release(self) -> None:
        """Stop supervising and leave the process running, for the next agent to take over."""
        await self._leave()
        process, self._process = self._process, None
        heir, self._heir = self._heir, None
        for one in (heir, process):
            if one is not None:
                one.close()
        self._set(State(Phase.STOPPED, restarts=self._state.restarts))

    def complaint(self) -> str:
        """Why it does not work: how it ended, or its last words in the log."""
        said = self._state.error
        if not said and self._program is not None:
            said = _last_words(self._program.log_path)
        return said or "it said nothing"

    async def _leave(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @staticmethod
    def _differs(found: Process, program: Program) -> str:
        """Why a running process is not the one that would be started; "" if it is."""
        try:
            current = program.settings_path.read_text()
        except OSError:
            current = ""
        if current != program.settings:
            return "its settings have changed"
        if found.command() not in (list(program.argv), [*program.argv, *program.heir_words]):
            return "its command line has changed"
        if not found.runs(Path(program.argv[0])):
            return "its binary has been replaced"
        if not found.shares_network():
            return "it is in another network namespace"
        if program.cgroup is not None and not found.is_in(program.cgroup):
            return "it is not in its cgroup"
        return ""

    def _spawn(self, program: Program) -> None:
        """:raises SupervisorError: if no process can be started"""
        # What the launcher writes is the only truth; a leftover would name a process that has ended.
        program.pid_path.unlink(missing_ok=True)
        argv = launch(f"xlb-{program.name}", program.argv, program.pid_path, program.cgroup)
        try:
            self._process = Process.start(argv, program.log_path, program.environment)
        except OSError as error:
            raise SupervisorError(f"cannot start the {program.name}: {error}") from None
        _log.info("process_started", program=program.name, pid=self._process.pid)
        self._set(replace(self._state, phase=Phase.RUNNING, pid=self._process.pid, adopted=False, retry_in=0.0))

    async def _supervise(self, program: Program) -> None:
        failures = 0
        while True:
            began = time.monotonic()
            process = self._process
            if process is not None:
                how = await process.wait()
                process.close()
                self._process = None
                if self._go_on_with_heir(program, how):
                    continue
                said = _last_words(program.log_path)
                error = f"{how}: {said}" if said else how
            else:
                error = self._state.error
            failures = 1 if time.monotonic() - began > _SETTLED_S else failures + 1
            pause = self._backoff(failures)
            _log.error("process_ended", program=program.name, reason=error, retry_in=round(pause, 1))
            state = State(Phase.WAITING, restarts=self._state.restarts + 1, error=error, retry_in=pause)
            self._set(state)
            await asyncio.sleep(pause)
            try:
                # A successor that another agent has started may have taken the place.
                if not self._adopt(program):
                    self._spawn(program)
            except SupervisorError as failed:
                self._set(replace(self._state, error=str(failed)))

    def _go_on_with_heir(self, program: Program, how: str) -> bool:
        """Whether there is one."""
        heir, self._heir = self._heir, None
        if heir is None:
            return False
        _log.info("process_succeeded", program=program.name, pid=heir.pid, predecessor=how)
        self._process = heir
        self._set(replace(self._state, phase=Phase.RUNNING, pid=heir.pid, adopted=False))
        self._succession.set()
        return True

    def _adopt(self, program: Program) -> bool:
        found = self.running(program.pid_path)
        if found is None:
            return False
        if self._differs(found, program):
            found.close()
            return False
        self._process = found
        _log.info("process_adopted", program=program.name, pid=found.pid)
        self._set(replace(self._state, phase=Phase.RUNNING, pid=found.pid, adopted=True, retry_in=0.0))
        return True

    def _backoff(self, failures: int) -> float:
        """Seconds: exponential, less a random part of up to a half."""
        full = min(_BACKOFF_FIRST_S * 2.0 ** min(failures - 1, 16), _BACKOFF_LIMIT_S)
        return full * (1 - self._jitter() / 2)

    @staticmethod
    async def _keep_log_short(program: Program) -> None:
        while True:
            with suppress(OSError):
                trim_log(program.log_path, program.log_bytes)
            await asyncio.sleep(_TRIM_S)

    def _set(self, state: State) -> None:
        if state != self._state:
            self._state = state
            if self._on_state is not None:
                self._on_state(state)


def trim_log(path: Path, limit: int) -> bool:
    """Move a log that has grown beyond `limit` bytes to PATH.1.

    The writer keeps its descriptor, so the file is copied and emptied; it is open for appending, so the writer goes on
    at its new beginning.  Lines written in between are lost.
    """
    try:
        if path.stat().st_size <= limit:
            return False
    except FileNotFoundError:
        return False
    shutil.copyfile(path, path.with_name(path.name + ".1"))
    os.truncate(path, 0)
    return True


def _write(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _last_words(log: Path, since: int = 0) -> str:
    """The last line of a log, shortened.

    :param since: what comes before this place is not meant, unless the log has become shorter
    """
    try:
        with log.open("rb") as file:
            size = log.stat().st_size
            file.seek(max(size - _LAST_WORDS, since if since <= size else 0, 0))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip()[:400] for line in reversed(lines) if line.strip()), "")
