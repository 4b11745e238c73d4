"""Runs a command and tells what it has left behind: `leaks.py COMMAND...`.

Looked for: processes, network namespaces, cgroups, BPF programs and maps, pins, run folders, Envoy's shared memory.
One line for each thing that was not there before; the exit code is the command's, or 1 if that was 0 and something was
left.  Left processes are ended.  Standard library only: it also runs before anything is installed.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

GRACE_SECONDS = 5.0
PR_SET_CHILD_SUBREAPER = 36  # include/uapi/linux/prctl.h


def _parents() -> dict[int, int]:
    """Parent of every process, zombies left out."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it ended while we looked
            if fields[0] != "Z":
                parents[int(entry.name)] = int(fields[1])
    return parents


def _descendants() -> list[int]:
    """Everything that the command started and that still runs: as a subreaper we inherit each orphan among them."""
    parents = _parents()
    family = {os.getpid()}
    while more := {process for process, parent in parents.items() if parent in family} - family:
        family |= more
    return sorted(family - {os.getpid()})


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _command_line(process: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:150]
    return ""


def _namespaces() -> Iterator[str]:
    folder = Path("/run/netns")
    if folder.is_dir():
        for entry in folder.iterdir():
            yield f"network namespace {entry.name}"


def _cgroups() -> Iterator[str]:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            for group in Path(where).glob("xlb*"):
                yield f"cgroup {group}"


def _programs() -> Iterator[str]:
    """Loaded programs and maps whose name begins with `xlb`; none are seen without root or bpftool."""
    for kind in ("prog", "map"):
        try:
            shown = subprocess.run(["bpftool", "-j", kind, "show"], capture_output=True, timeout=30, check=False)
        except FileNotFoundError:
            return
        if shown.returncode == 0 and shown.stdout.strip():
            for item in json.loads(shown.stdout):
                if str(item.get("name", "")).startswith("xlb"):
                    yield f"BPF {kind} {item['id']} {item['name']}"


def _files() -> Iterator[str]:
    for folder, name in (("/sys/fs/bpf", "xlb*"), ("/run/xlb", "*"), ("/dev/shm", "envoy_shared_memory_*")):
        with contextlib.suppress(PermissionError):  # without root we cannot have made it
            for entry in Path(folder).glob(name):
                yield f"path {entry}"


def _things() -> set[str]:
    return {line for source in (_namespaces, _cgroups, _programs, _files) for line in source()}


def main(command: list[str]) -> int:
    """See the module's docstring.  Returns the exit code."""
    if not command:
        print("usage: leaks.py COMMAND...", file=sys.stderr)
        return 2
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        print(f"leaks: no subreaper: {os.strerror(ctypes.get_errno())}", file=sys.stderr)
        return 1
    before = _things()
    result = subprocess.run(command, check=False).returncode

    deadline = time.monotonic() + GRACE_SECONDS
    while True:
        _reap()
        processes = _descendants()
        left = _things() - before
        if not (processes or left) or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    for process in processes:
        print(f"leaked: process {process}: {_command_line(process)}")
    for line in sorted(left):
        print(f"leaked: {line}")
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    if not (processes or left):
        print("leaks: none")
    return result or (1 if processes or left else 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
