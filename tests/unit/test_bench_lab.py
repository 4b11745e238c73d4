"""Nothing that a `Lab` started outlives it.  Each case runs in a process of its own: a lab adopts orphans."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PREAMBLE = """
import os, signal, subprocess, sys, time
from pathlib import Path
from tests.bench.lab import Lab, LabError, descendants
lab = Lab("lab-test")
"""


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PREAMBLE + program],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_orphans_and_the_directory_go_with_the_lab() -> None:
    done = run(
        """
with lab:
    # A daemon as the keeper is one: its parent ends, it stays.
    lab.run(["sh", "-c", "setsid sleep 300 >/dev/null 2>&1 </dev/null &"])
    lab.start("child", ["sleep", "300"])
    lab.wait("both", lambda: len(descendants(os.getpid())) == 2)
assert descendants(os.getpid()) == (), descendants(os.getpid())
assert not lab.directory.exists()
"""
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_what_died_is_named_with_its_last_words() -> None:
    done = run(
        """
with lab:
    lab.start("server", ["sh", "-c", "echo no such address >&2; exit 3"])
    try:
        lab.wait("the server", lambda: False)
    except LabError as error:
        print(error)
"""
    )
    assert done.stdout.strip() == "server ended with 3: no such address"


def test_an_exception_ends_the_processes_too() -> None:
    done = run(
        """
try:
    with lab:
        process = lab.start("child", ["sleep", "300"])
        raise KeyboardInterrupt
except KeyboardInterrupt:
    print(process.returncode)
"""
    )
    assert done.stdout.strip() == "-15"


def test_a_failing_command_says_its_last_line() -> None:
    done = run(
        """
with lab:
    try:
        lab.run(["sh", "-c", "echo first >&2; echo last >&2; exit 4"])
    except LabError as error:
        print(error)
"""
    )
    assert done.stdout.strip().endswith("failed with 4: last")


def test_a_conversation() -> None:
    done = run(
        """
from tests.bench.lab import converse
with lab:
    cat = lab.start("cat", ["cat"], talk=True)
    assert converse(cat, b"hello") == b"hello\\n"
    lab.stop(cat)
    try:
        converse(cat, b"hello")
    except (LabError, ValueError):
        print("gone")
"""
    )
    assert done.stdout.strip() == "gone"
