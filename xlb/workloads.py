"""Registered workloads: a cgroup each, its entry in xlb_workloads, and its end when nothing runs in it any more."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from xlb.bypass import Subject
from xlb.cgroups import Cgroups, cgroup_id, is_populated, processes, remove_tree
from xlb.identity import Identity, Wanted, folder_name
from xlb.kernel import Kernel
from xlb.state import WorkloadState
from xlb.switches import Switches
from xlb.view import View

_JOIN_S: Final = 30.0  # what registered and lives may take so long until it joins
_GRACE_S: Final = 1.0  # a process is not looked for sooner: it may be between registering and joining


@dataclass(slots=True, eq=False)
class Registered:
    """One workload.  `awaited`: processes that registered and have not been seen in the cgroup, with their time."""

    identity: Identity
    folder: Path
    cgroup: int
    number: int
    view: View
    since: float
    awaited: dict[int, float] = field(default_factory=dict)

    @property
    def processes(self) -> list[int]:
        return processes(self.folder)

    @property
    def subject(self) -> Subject:
        return Subject(self.number, str(self.identity), self.identity.redirection)

    def state(self) -> WorkloadState:
        identity = self.identity
        return WorkloadState(
            name=identity.name,
            namespace=identity.namespace,
            labels=dict(identity.labels),
            service_account=identity.service_account,
            ip=identity.ip,
            folder=self.folder.name,
            number=self.number,
            annotations=dict(identity.annotations),
        )


def identity_of(state: WorkloadState) -> Identity:
    return Identity(
        state.name,
        state.namespace,
        tuple(sorted(state.labels.items())),
        state.service_account,
        state.ip,
        tuple(sorted(state.annotations.items())),
    )


class Workloads:
    """All workloads of an instance."""

    def __init__(self, cgroups: Cgroups, kernel: Kernel, switches: Switches) -> None:
        self._cgroups = cgroups
        self._kernel = kernel
        self._switches = switches
        self._registered: list[Registered] = []
        self._last_number = 0

    def __iter__(self) -> Iterator[Registered]:
        return iter(tuple(self._registered))

    def find(self, wanted: Wanted) -> Registered | None:
        """The first one that fits."""
        return next((one for one in self._registered if wanted.fits(one.identity)), None)

    def of_view(self, view: View) -> list[Registered]:
        return [one for one in self._registered if one.view is view]

    def folder_for(self, identity: Identity) -> str:
        return folder_name(identity, (one.folder.name for one in self._registered))

    def add(self, identity: Identity, view: View, folder: str, number: int | None = None) -> Registered:
        """Make the cgroup and have the kernel know it.  Raises CgroupError or BpfError.

        :param number: that of an earlier agent, whose switches are in the kernel still
        """
        self._last_number = max(self._last_number + 1, number or 0)
        path = self._cgroups.make_workload(folder)
        made = Registered(identity, path, cgroup_id(path), number or self._last_number, view, time.monotonic())
        if number is None:
            # Before it is captured.
            self._switches.put([*self.subjects(), made.subject])
        self._kernel.add_workload(made.cgroup, view.index, made.number)
        self._registered.append(made)
        return made

    @staticmethod
    def expect(one: Registered, pid: int) -> None:
        """A process is about to join."""
        one.awaited[pid] = time.monotonic()

    def ended(self) -> list[Registered]:
        """Remove what nothing runs in any more.  :returns: what was removed  Raises BpfError."""
        gone = [one for one in self._registered if self._is_over(one)]
        removed = []
        for one in gone:
            # First the cgroup: one that a process has just joined cannot be removed.
            if remove_tree(one.folder):
                self._kernel.remove_workload(one.cgroup)
                self._registered.remove(one)
                removed.append(one)
        if removed:
            self.switch()
        return removed

    def subjects(self) -> list[Subject]:
        return [one.subject for one in self._registered]

    def switch(self) -> None:
        """Put the switches in force for the workloads that there are.  Raises BpfError."""
        self._switches.put(self.subjects())

    def forget_strangers(self) -> None:
        """Remove what the kernel knows of workloads that are not registered.  Raises BpfError."""
        known = {one.cgroup for one in self._registered}
        for cgroup in self._kernel.workloads():
            if cgroup not in known:
                self._kernel.remove_workload(cgroup)

    def _is_over(self, one: Registered) -> bool:
        if is_populated(one.folder):
            inside = one.processes
            one.awaited = {pid: when for pid, when in one.awaited.items() if pid not in inside and _waits(pid, when)}
            return False
        if time.monotonic() - one.since < _GRACE_S:
            return False
        one.awaited = {pid: when for pid, when in one.awaited.items() if _waits(pid, when)}
        return not one.awaited


def _waits(pid: int, since: float) -> bool:
    """Whether a process that has registered may still be about to join."""
    if time.monotonic() - since > _JOIN_S:
        return False
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[:1] not in (["Z"], ["X"])
