"""A process that may outlive us, and that we may have found instead of started: known by pid and start time.

Signals and waiting go through a pidfd, so that a pid that has been given to another process is never mistaken.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

# Started by sh, so that between fork and exec nothing of Python runs (a preexec_fn may deadlock beside threads):
# joins the cgroup, raises the descriptor limit, and leaves /proc/PID/stat of itself, which names process and start
# time, where a later agent will look.  exec keeps both.
_LAUNCHER: Final = """\
[ -z "$2" ] || echo 0 >"$2/cgroup.procs" || { echo "cannot join the cgroup $2" >&2; exit 125; }
ulimit -n "$(ulimit -H -n)"
read -r stat <"/proc/$$/stat"
printf '%s\\n' "$stat" >"$1" || { echo "cannot write $1" >&2; exit 125; }
shift 2
exec "$@"
"""


def launch(name: str, argv: Sequence[str], pid_path: Path, cgroup: Path | None) -> list[str]:
    """The command line that becomes `argv`; status 125 is the launcher's own failure.

    :param pid_path: where the process's /proc/PID/stat is left, for `Identity.read`
    :param cgroup: a cgroup v2 directory that it joins first
    """
    return ["/bin/sh", "-c", _LAUNCHER, name, str(pid_path), "" if cgroup is None else str(cgroup), *argv]


@dataclass(frozen=True, slots=True)
class Identity:
    """`start_time` in clock ticks since boot: /proc/PID/stat, field 22 (proc(5))."""

    pid: int
    start_time: int

    @classmethod
    def parse(cls, stat: str) -> Identity | None:
        """From the text of /proc/PID/stat; None if it is not that."""
        head, separator, tail = stat.rpartition(")")
        fields = tail.split()
        pid = head.partition(" ")[0]
        # The first field after the name, which may hold anything, is the third.
        if not separator or len(fields) < 20 or not pid.isdecimal() or not fields[19].isdecimal():
            return None
        return cls(int(pid), int(fields[19]))

    @classmethod
    def read(cls, path: Path) -> Identity | None:
        """From a file with such a text; None if there is none."""
        try:
            return cls.parse(path.read_text())
        except (OSError, UnicodeDecodeError):
            return None


class Process:
    """A running process.  `close` ends the watching, not the process."""

    def __init__(self, identity: Identity, pidfd: int) -> None:
        self.identity = identity
        self._pidfd = pidfd

    @property
    def pid(self) -> int:
        return self.identity.pid

    @classmethod
    def start(cls, argv: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> Process:
        """Start in a session of its own, with output appended to `log` and next to nothing of our environment.

        :raises OSError: if it cannot be started
        """
        with log.open("ab") as output:
            child = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                env={"PATH": os.defpath, **(environment or {})},
                start_new_session=True,
            )
        with suppress(OSError):
            # An agent may have given itself a priority that is not for its children.
            os.setpriority(os.PRIO_PROCESS, child.pid, 0)
        # It is not reaped before `wait`, so the pid is its own here.
        pidfd = os.pidfd_open(child.pid)
        child.returncode = 0  # we watch it by the pidfd; Popen would complain that it outlives us
        identity = Identity.read(Path(f"/proc/{child.pid}/stat"))
        return cls(identity or Identity(child.pid, 0), pidfd)

    @classmethod
    def find(cls, identity: Identity) -> Process | None:
        """The process, if it still runs."""
        try:
            pidfd = os.pidfd_open(identity.pid)
        except OSError:
            return None
        # In this order: the pidfd is of the process that had the pid at that time, and of no later one.
        found = cls(identity, pidfd)
        if Identity.read(Path(f"/proc/{identity.pid}/stat")) != identity or found.is_zombie():
            found.close()
            return None
        return found

    def is_zombie(self) -> bool:
        try:
            return (self._proc / "stat").read_text().rpartition(")")[2].split()[0] in ("Z", "X")
        except OSError:
            return True

    @property
    def _proc(self) -> Path:
        return Path("/proc", str(self.pid))

    def command(self) -> list[str]:
        """Its command line; empty when it has ended."""
        try:
            return [os.fsdecode(word) for word in (self._proc / "cmdline").read_bytes().split(b"\0")[:-1]]
        except OSError:
            return []

    def runs(self, binary: Path) -> bool:
        """Whether it runs this very file, and not one that has been replaced since."""
        try:
            return (self._proc / "exe").samefile(binary)
        except OSError:
            return False

    def shares_network(self) -> bool:
        """Whether it is in our network namespace."""
        try:
            return (self._proc / "ns/net").samefile("/proc/self/ns/net")
        except OSError:
            return False

    def is_in(self, cgroup: Path) -> bool:
        try:
            return str(self.pid) in (cgroup / "cgroup.procs").read_text().split()
        except OSError:
            return False

    def send(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    async def wait(self) -> str:
        """Wait for its end.  :returns: how it ended, for people"""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        # A copy: cancelling one waiter must not take the descriptor from another.
        watched = os.dup(self._pidfd)
        try:
            loop.add_reader(watched, ended.set)
            await ended.wait()
        finally:
            loop.remove_reader(watched)
            os.close(watched)
        return self._reap()

    def _reap(self) -> str:
        try:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:
            pid, status = 0, 0
        if not pid:
            return "ended"  # another process's child: its status is not ours to know
        code = os.waitstatus_to_exitcode(status)
        return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"

    async def end(self, grace: float) -> None:
        """Ask it to end, and make it end after `grace` seconds."""
        self.send(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace):
                await self.wait()
        except TimeoutError:
            self.send(signal.SIGKILL)
            await self.wait()

    def close(self) -> None:
        os.close(self._pidfd)
