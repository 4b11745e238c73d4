"""The parts of an instance that outlive its agent: made, or taken over from the one before, in order; and their end."""

from __future__ import annotations

import inspect
import os
import resource
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from bpf.loader import DataPath
from bpf.probes import probe
from xlb import addresses, state
from xlb.cgroups import Cgroups, find_mount
from xlb.config import AgentConfig
from xlb.envoy import EnvoySettings, EnvoySupervisor, find_binary
from xlb.keeper_process import KEEPER_PORT, KeeperSettings, KeeperSupervisor
from xlb.kernel import Kernel, Limits
from xlb.supervisor import Supervisor

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_KEEPER_S: Final = 10.0


class PartsError(Exception):
    """An instance cannot run here; one line that says what to do."""


@dataclass(frozen=True, slots=True)
class Paths:
    """The files of a run directory that are the agent's own."""

    run_dir: Path

    @property
    def admin(self) -> Path:
        return self.run_dir / "admin.sock"

    @property
    def ads(self) -> Path:
        return self.run_dir / "ads.sock"

    @property
    def state(self) -> Path:
        return self.run_dir / "state.json"

    @property
    def stamp(self) -> Path:
        return self.run_dir / "bpf.stamp"


class Ends:
    """What undoes each thing that was made; the last one first.  `forgetful`: not after a start that failed."""

    def __init__(self, *, forgetful: bool = False) -> None:
        self._forgetful = forgetful
        self._ends: list[tuple[str, Callable[[], object]]] = []

    def add(self, what: str, end: Callable[[], Awaitable[None] | None]) -> None:
        self._ends.append((what, end))

    async def after_failure(self) -> None:
        """Undo what was made, unless an earlier agent had made it."""
        if self._forgetful:
            self._ends.clear()
        await self.run()

    async def run(self) -> None:
        """Undo everything, whatever fails."""
        while self._ends:
            what, end = self._ends.pop()
            try:
                result = end()
                if inspect.isawaitable(result):
                    await result
            except Exception as error:  # the others have to end all the same
                _log.error("not_ended", what=what, reason=f"{type(error).__name__}: {error}")


@dataclass(frozen=True, slots=True)
class Parts:
    """`address` is where keeper and Envoy listen; `left` what the agent before saved, if it can be used."""

    address: str
    left: state.State | None
    cgroups: Cgroups
    data_path: DataPath
    kernel: Kernel
    envoy: EnvoySupervisor
    keeper: KeeperSupervisor


async def make_parts(settings: AgentConfig, paths: Paths, ends: Ends) -> Parts:
    """Make them; Envoy is yet to be started.

    Raises PartsError, CgroupError, LoadError, SupervisorError, AddressError or BpfError; then `ends` undoes what was
    made.
    """
    _check_kernel()
    _raise_descriptor_limit()
    binary = find_binary(settings.envoy.binary)
    left = _left_behind(paths.state)
    cgroups = Cgroups(find_mount(Path("/proc/self/mountinfo").read_text()), settings.instance)
    ends.add("cgroups", lambda: _remove(cgroups))
    cgroups.make()
    data_path = DataPath.load(settings.instance, cgroups.top, stamp=paths.stamp)
    ends.add("data path", data_path.remove)
    lives = keeper_lives(paths.run_dir)
    if left is not None and lives:
        address = left.address
    else:
        address = str(addresses.choose(settings.instance, KEEPER_PORT, settings.address))
    kernel = Kernel(data_path, address)
    ends.add("maps", kernel.close)
    kernel.configure(cgroups.workload_level, Limits(), keeper_lives=lives)
    envoy = EnvoySupervisor(
        EnvoySettings(
            binary=binary,
            run_dir=paths.run_dir,
            ads_path=paths.ads,
            node_id=f"xlb-{settings.instance}",
            concurrency=settings.envoy.concurrency,
            cgroup=cgroups.envoy,
            log_level=settings.envoy.log_level,
        )
    )
    ends.add("Envoy", envoy.stop)
    keeper = KeeperSupervisor(
        KeeperSettings(settings.instance, paths.run_dir, address, cgroups.keeper, settings.log.level)
    )
    # Ended before Envoy: without its listener nothing new is captured.
    ends.add("keeper", keeper.stop)
    await keeper.start(paths.stamp.read_text().strip())
    await keeper.wait_ready(_KEEPER_S)
    return Parts(address, left, cgroups, data_path, kernel, envoy, keeper)


def _check_kernel() -> None:
    if os.geteuid() != 0:
        raise PartsError("the agent needs root (it loads BPF programs): run it as root")
    missing = probe()
    if missing:
        features = "; ".join(f"{one.feature} (Linux {one.since}): {one.why}" for one in missing)
        raise PartsError(f"this kernel lacks what XLB needs: {features}")


def _raise_descriptor_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _left_behind(path: Path) -> state.State | None:
    try:
        return state.load(path)
    except state.StateError as error:
        _log.warning("state_ignored", reason=str(error), remedy="workloads have to be registered again")
        return None


def keeper_lives(run_dir: Path) -> bool:
    """Whether a keeper of an earlier agent runs."""
    found = Supervisor.running(run_dir / "keeper.pid")
    if found is None:
        return False
    found.close()
    return True


def _remove(cgroups: Cgroups) -> None:
    moved = cgroups.remove()
    if moved:
        _log.warning("processes_left_running", count=moved, where="in the cgroup above, without the mesh")
