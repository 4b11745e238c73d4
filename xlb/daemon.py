"""`xlb agent`: the process around the agent: one for an instance, its log, its signals, its run directory."""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import Final

import structlog

from xlb.admin import Admin
from xlb.agent import Agent, AgentError
from xlb.config import AgentConfig, LogConfig, LogFormat
from xlb.parts import keeper_lives

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_M_ARENA_MAX: Final = -8  # mallopt(3)
_NICE: Final = -10
_LOCK_S: Final = 5.0
_FILES: Final = ("state.json", "bpf.stamp", "agent.lock", "admin.sock", "ads.sock")
_LOGS: Final = ("envoy.log", "envoy.log.1", "keeper.log", "keeper.log.1")
_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}


class End(Enum):
    """How the agent is to end."""

    EVERYTHING = "everything"
    LEAVE = "leave"  # keeper, Envoy and the kernel go on


def serve(settings: AgentConfig) -> None:
    """Run until a signal ends it.  Raises AgentError.

    SIGTERM and SIGINT end everything; SIGHUP and SIGUSR1 end the agent alone, for the next one to take over.
    """
    with suppress(AttributeError):  # another C library than glibc
        # Each of gRPC's threads would else get an arena of its own, which keeps what was once used.
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)
    with suppress(OSError):
        # A busy node must not wait for its configuration; the agent works for milliseconds at a time.
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)
    set_up_log(settings.log)
    run_dir = settings.run_dir
    try:
        run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise AgentError(f"cannot make run_dir {run_dir} ({error.strerror}): correct it in the configuration") from None
    with _alone(run_dir):
        try:
            end = asyncio.run(_serve(settings))
        except BaseException:
            # Logs stay: they may say why.
            if not keeper_lives(run_dir):
                _clear(run_dir, _FILES)
            raise
        if end is End.EVERYTHING:
            _clear(run_dir, (*_FILES, *_LOGS))


async def _serve(settings: AgentConfig) -> End:
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[End] = loop.create_future()

    def end(how: End) -> None:
        if not ended.done():
            ended.set_result(how)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end, End.EVERYTHING)
    for number in (signal.SIGHUP, signal.SIGUSR1):
        loop.add_signal_handler(number, end, End.LEAVE)
    starting = asyncio.create_task(Agent.start(settings))
    await asyncio.wait((starting, ended), return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await asyncio.wait((starting,))
        return await ended
    agent = starting.result()
    admin = Admin(agent)
    how = End.EVERYTHING
    try:
        try:
            await admin.start()
        except OSError as error:
            raise AgentError(f"cannot make the admin socket: {error}") from None
        _log.info("agent_ready", instance=settings.instance, run_dir=str(settings.run_dir))
        how = await ended
        _log.info("agent_ends", how=how.value)
    finally:
        await admin.stop()
        if how is End.LEAVE:
            await agent.leave()
        else:
            await agent.stop()
    return how


@contextmanager
def _alone(run_dir: Path) -> Iterator[None]:
    """Hold the run directory's lock.  Raises AgentError if another agent keeps it."""
    path = run_dir / "agent.lock"
    descriptor = _lock(path, time.monotonic() + _LOCK_S)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _lock(path: Path, deadline: float) -> int:
    """The locked file's descriptor.  Raises AgentError after the deadline."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # An agent that ended meanwhile has removed the file: then this is not the one that others will lock.
            with suppress(FileNotFoundError):
                if path.stat().st_ino == os.fstat(descriptor).st_ino:
                    return descriptor
        except OSError:
            # One that is on its way out lets go soon.
            if time.monotonic() > deadline:
                pid = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
                os.close(descriptor)
                raise AgentError(
                    f"another agent (process {pid or 'unknown'}) runs with run_dir {path.parent}: end it, or give this "
                    "one another instance and run_dir"
                ) from None
        os.close(descriptor)
        time.sleep(0.1)


def _clear(run_dir: Path, files: Iterable[str]) -> None:
    """Remove the files of an instance that has ended, and its directories if nothing else is in them."""
    for name in files:
        (run_dir / name).unlink(missing_ok=True)
    for folder in (run_dir, run_dir.parent):
        with suppress(OSError):
            folder.rmdir()


def set_up_log(settings: LogConfig) -> None:
    """Log to standard error: key=value for people, JSON for machines.  XLB_LOG=debug|info|... overrules the level."""
    level = _LEVELS.get(os.environ.get("XLB_LOG", settings.level), _LEVELS["info"])
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if settings.format is LogFormat.JSON
        else structlog.processors.LogfmtRenderer(key_order=("timestamp", "level", "event"), bool_as_flag=False)
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
