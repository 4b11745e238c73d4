"""Runs a scene in a process and network namespace of its own: `python -m tests.e2e.apart MODULE:FUNCTION [SECONDS]`.

The namespace is the process's, and whatever goes wrong in it, or hangs, ends with it.
"""

from __future__ import annotations

import ctypes
import faulthandler
import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Final

from tests.bench.lab import enter_network_namespace

LIMIT_S: Final = 60
"""Seconds after which a scene has failed where it is, and is cleaned up."""

_REPOSITORY: Final = Path(__file__).resolve().parents[2]
_CLEAN_UP_S: Final = 30
_PR_SET_PDEATHSIG: Final = 1


class SceneTimeout(Exception):
    """The scene hangs; raised in the main thread, so that the traceback says where."""


def run_apart(scene: str, *, limit_s: int = LIMIT_S) -> str:
    """Play `MODULE:FUNCTION` and return what it printed.  Raises AssertionError with its output when it fails.

    :param limit_s: seconds the scene itself may take
    """
    command = [sys.executable, "-m", "tests.e2e.apart", scene, str(limit_s)]
    try:
        done = subprocess.run(
            command,
            cwd=_REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=limit_s + _CLEAN_UP_S,
            check=False,
            preexec_fn=_die_with_parent,
        )
    except subprocess.TimeoutExpired as error:
        output = (error.output or b"").decode(errors="replace")
        raise AssertionError(f"{scene} did not even clean up in time:\n{output}") from None
    output = done.stdout.decode(errors="replace")
    assert done.returncode == 0, f"{scene} ended with {done.returncode}:\n{output}"
    return output


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(1)


def _too_long(_number: int, _frame: FrameType | None) -> None:
    faulthandler.dump_traceback(all_threads=True)
    raise SceneTimeout("the scene hangs here")


def main(arguments: list[str]) -> int:
    """See the module's docstring; an optional second argument is the limit in seconds.  Returns the exit code."""
    scene, *limit = arguments
    module, _, name = scene.partition(":")
    signal.signal(signal.SIGTERM, _stop)  # so that everything started is ended
    signal.signal(signal.SIGALRM, _too_long)
    # A scene may leave threads behind that wait for ever: they must not keep the process.
    enter_network_namespace()
    signal.alarm(int(limit[0]) if limit else LIMIT_S)
    getattr(importlib.import_module(module), name)()
    signal.alarm(0)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
