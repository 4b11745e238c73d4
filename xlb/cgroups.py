"""The cgroup v2 directories of an instance: <mount>/xlb-<instance>/{keeper,envoy,workloads/<namespace>.<name>}.

Never the root cgroup: programs are attached to `Cgroups.top`, which is ours alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_ESCAPED: Final = re.compile(r"\\([0-7]{3})")  # proc_pid_mountinfo(5): space, tab, newline, backslash
_ATTEMPTS: Final = 5
_OURS: Final = 3  # xlb-<instance>, workloads, <namespace>.<name>


class CgroupError(Exception):
    """One line that says what to do."""


@dataclass(frozen=True, slots=True)
class Mount:
    """Where cgroup v2 is mounted, and how many levels its root lies below the hierarchy's."""

    path: Path
    level: int


def find_mount(mountinfo: str) -> Mount:
    """The cgroup v2 mount, from the text of /proc/self/mountinfo.  Raises CgroupError."""
    found: list[Mount] = []
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split()
        if len(fields) < 5 or after.split()[:1] != ["cgroup2"]:
            continue
        root, path = (_ESCAPED.sub(lambda m: chr(int(m[1], 8)), text) for text in fields[3:5])
        found.append(Mount(Path(path), len([part for part in root.split("/") if part])))
    if not found:
        raise CgroupError(
            "cgroup v2 is not mounted: mount it, for instance with "
            "`mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified`"
        )
    # Several mounts show the same hierarchy; the one nearest to its root sees most.
    return min(found, key=lambda mount: mount.level)


class Cgroups:
    """The directories of one instance."""

    def __init__(self, mount: Mount, instance: str) -> None:
        self._mount = mount
        self.top = mount.path / f"xlb-{instance}"
        self.keeper = self.top / "keeper"
        self.envoy = self.top / "envoy"
        self.workloads = self.top / "workloads"

    @property
    def workload_level(self) -> int:
        """The level of a workload's directory below the hierarchy's root, which has 0."""
        return self._mount.level + _OURS

    def make(self) -> None:
        """Make what is not there yet.  Raises CgroupError."""
        for folder in (self.top, self.keeper, self.envoy, self.workloads):
            self._make(folder)

    def make_workload(self, name: str) -> Path:
        """The directory of one workload; it may be there already.  Raises CgroupError."""
        folder = self.workloads / name
        self._make(folder)
        return folder

    @staticmethod
    def _make(folder: Path) -> None:
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise CgroupError(
                f"cannot make the cgroup {folder} ({error.strerror}): run as root, where cgroup v2 is writable"
            ) from None

    def remove(self) -> int:
        """Remove everything; processes that still run in it go to the cgroup above.  :returns: how many they were

        Raises CgroupError.
        """
        moved = 0
        for folder in (*_below(self.top), self.top):
            for attempt in range(_ATTEMPTS):
                moved += self._evacuate(folder)
                try:
                    folder.rmdir()
                except FileNotFoundError:
                    break
                except OSError as error:
                    # A process that was being moved has forked meanwhile.
                    if attempt + 1 == _ATTEMPTS:
                        raise CgroupError(f"cannot remove the cgroup {folder}: {error.strerror}") from None
                else:
                    break
        return moved

    def _evacuate(self, folder: Path) -> int:
        moved = 0
        for pid in processes(folder):
            # It may have ended meanwhile.
            with suppress(OSError):
                (self._mount.path / "cgroup.procs").write_text(f"{pid}\n")
                moved += 1
        return moved


def cgroup_id(folder: Path) -> int:
    """What bpf_get_current_ancestor_cgroup_id tells: on 64-bit kernels it is the directory's inode number."""
    return folder.stat().st_ino


def processes(folder: Path) -> list[int]:
    """The processes in a directory itself; none if it does not exist."""
    try:
        return [int(word) for word in (folder / "cgroup.procs").read_text().split()]
    except OSError:
        return []


def is_populated(folder: Path) -> bool:
    """Whether a process lives in a directory or below it."""
    try:
        events = (folder / "cgroup.events").read_text()
    except OSError:
        return False
    return "populated 1" in events.splitlines()


def remove_tree(folder: Path) -> bool:
    """Remove an empty directory with what a workload made below it; False if a process is in the way."""
    for inner in (*_below(folder), folder):
        try:
            inner.rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            return False
    return True


def _below(folder: Path) -> Iterator[Path]:
    """All directories below one, the deepest first."""
    for parent, folders, _ in os.walk(folder, topdown=False):
        for name in folders:
            yield Path(parent, name)
