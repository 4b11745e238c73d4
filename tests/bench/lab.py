"""A place to measure in: an own network namespace and processes that never outlive the run.

Used by the benchmark and by the demonstration.  Everything here is the rim: processes, namespaces, /proc.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Final

_CLONE_NEWNET: Final = 0x40000000
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_CLOCK_TICKS: Final = os.sysconf("SC_CLK_TCK")
_STOP_GRACE_S: Final = 8.0

# One request per connection leaves tens of thousands of TIME_WAIT ports behind in a few seconds.
_SYSCTLS: Final = (
    ("net/ipv4/ip_local_port_range", "10000 65000"),
    ("net/ipv4/tcp_tw_reuse", "1"),
    ("net/core/somaxconn", "65535"),
)


class LabError(Exception):
    """Something needed did not start or is missing; the message is one line that says what to do."""


def enter_network_namespace() -> None:
    """Move this process into a new network namespace with only loopback, up.  Children inherit it.

    The namespace has no name: it ends with its last process.  Call it before threads are started.
    Raises LabError without the privilege.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) != 0:
        error = os.strerror(ctypes.get_errno())
        raise LabError(f"cannot make a network namespace ({error}): run this as root")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for name, value in _SYSCTLS:
        try:
            Path("/proc/sys", name).write_text(value)
        except OSError:
            # Only the load generators care; where /proc/sys is read-only they still run.
            continue


def adopt_orphans() -> None:
    """Become the parent of orphaned descendants: the keeper outlives its agent by design, but not this run."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def interrupt_once() -> None:
    """SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt, the first time: cleaning up is not interrupted again."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def interrupt(number: int, frame: object) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in numbers:
        signal.signal(number, interrupt)


def need(*programs: str) -> None:
    """Raises LabError naming the first program that is not installed."""
    for program in programs:
        if shutil.which(program) is None:
            raise LabError(f"{program} is not installed: run `make setup`, which installs it")


class Lab:
    """Processes with logs in a temporary directory; leaving the `with` block ends all descendants.

    `directory` is removed at the end; when something failed, `tail` shows a process's last words before that.
    """

    def __init__(self, prefix: str) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix=f"{prefix}-"))
        # Backends that drop their privileges (nginx) must still reach their own directories.
        self.directory.chmod(0o755)
        self._processes: list[tuple[str, subprocess.Popen[bytes]]] = []
        adopt_orphans()

    def __enter__(self) -> Lab:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self, name: str, argv: Sequence[str | Path], *, talk: bool = False) -> subprocess.Popen[bytes]:
        """Start a process in the background; its output goes to NAME.log, or with `talk` its stdio is piped."""
        with self.log(name).open("ab") as log:
            process = subprocess.Popen(
                [str(word) for word in argv],
                stdin=subprocess.PIPE if talk else subprocess.DEVNULL,
                stdout=subprocess.PIPE if talk else log,
                stderr=log,
                preexec_fn=_die_with_parent,
                # Ctrl-C is for this process, which then ends the others in order.
                start_new_session=True,
            )
        self._processes.append((name, process))
        return process

    def run(self, argv: Sequence[str | Path], timeout: float = 120.0) -> str:
        """Run a command to its end and return its standard output.  Raises LabError when it fails."""
        words = [str(word) for word in argv]
        try:
            done = subprocess.run(
                words,
                capture_output=True,
                text=True,
                timeout=timeout,
                preexec_fn=_die_with_parent,
                start_new_session=True,
            )
        except subprocess.TimeoutExpired as error:
            raise LabError(f"`{' '.join(words)}` did not end within {timeout:.0f} s") from error
        if done.returncode != 0:
            said = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
            raise LabError(f"`{' '.join(words)}` failed with {done.returncode}: {said}")
        return done.stdout

    def log(self, name: str) -> Path:
        return self.directory / f"{name}.log"

    def tail(self, name: str, lines: int = 5) -> str:
        try:
            return "\n".join(self.log(name).read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""

    def wait(self, what: str, ready: Callable[[], bool], seconds: float = 20.0) -> None:
        """Poll until `ready()`.  Raises LabError when it is not in time or a started process has died."""
        deadline = time.monotonic() + seconds
        while not ready():
            self.check_alive()
            if time.monotonic() > deadline:
                raise LabError(f"{what} was not ready within {seconds:.0f} s")
            time.sleep(0.02)

    def wait_listening(self, what: str, address: str, port: int) -> None:
        self.wait(f"{what} at {address}:{port}", lambda: listening(address, port))

    def check_alive(self) -> None:
        """Raises LabError when a process that should run has ended."""
        for name, process in self._processes:
            if process.poll() is not None:
                said = self.tail(name, 3) or "it said nothing"
                raise LabError(f"{name} ended with {process.returncode}: {said}")

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        """End one process of ours, asking first."""
        self._processes = [entry for entry in self._processes if entry[1] is not process]
        if process.stdin is not None:
            process.stdin.close()
        process.terminate()
        try:
            process.wait(_STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()

    def close(self) -> None:
        """End every descendant, last started first, then remove the directory.  May be called twice."""
        for _, process in reversed(tuple(self._processes)):
            self.stop(process)
        _end_descendants()
        shutil.rmtree(self.directory, ignore_errors=True)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _end_descendants() -> None:
    """What is left are orphans that came to us (see `adopt_orphans`): ask them, then kill."""
    deadline = time.monotonic() + _STOP_GRACE_S
    asked: set[int] = set()
    while children := descendants(os.getpid()):
        for pid in children:
            late = time.monotonic() > deadline
            if late or pid not in asked:
                _signal(pid, signal.SIGKILL if late else signal.SIGTERM)
                asked.add(pid)
        _reap(children)
        time.sleep(0.02)


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _reap(pids: Iterable[int]) -> None:
    for pid in pids:
        try:
            os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            continue  # a grandchild: its own parent reaps it


def descendants(pid: int) -> tuple[int, ...]:
    """All processes below `pid`, zombies that are not reaped included."""
    found: list[int] = []
    for task in _children(pid):
        found.append(task)
        found.extend(descendants(task))
    return tuple(found)


def _children(pid: int) -> tuple[int, ...]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found.extend(int(word) for word in task.read_text().split())
        except OSError:
            continue
    return tuple(found)


def listening(address: str, port: int) -> bool:
    """Whether somebody accepts TCP connections there (one is made and closed)."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((address, port)) == 0


def cpu_seconds(pid: int) -> float:
    """User and system time of all threads of a process so far.  Raises OSError when it is gone."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _CLOCK_TICKS


def resident_bytes(pid: int) -> int:
    """VmRSS.  Raises OSError when the process is gone."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def converse(process: subprocess.Popen[bytes], line: bytes) -> bytes:
    """Send one line to a process started with `talk` and read the one it answers.  Raises LabError at its end."""
    stdin, stdout = _pipe(process.stdin), _pipe(process.stdout)
    try:
        stdin.write(line + b"\n")
        stdin.flush()
    except OSError as error:
        raise LabError(f"process {process.pid} does not listen any more: {error}") from error
    answer = stdout.readline()
    if not answer:
        raise LabError(f"process {process.pid} ended in mid-conversation")
    return answer


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise ValueError("the process was not started with talk=True")
    return stream
