"""Plays scenes in a process and network namespace of its own: `python -m tests.e2e.apart MODULE:FUNCTION...`.

The namespace is the process's, and whatever goes wrong in it, or hangs, ends with it.  A scene that takes a `World`
gets one with the captured bookinfo configuration, which it shares with the scenes before it, unless one of them failed.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import importlib
import inspect
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Any, Final

from tests.bench.lab import enter_network_namespace
from tests.e2e.world import World

LIMIT_S: Final = 60
"""Seconds after which a scene has failed where it is, and is cleaned up."""

_REPOSITORY: Final = Path(__file__).resolve().parents[2]
_CLEAN_UP_S: Final = 30
_PR_SET_PDEATHSIG: Final = 1


class SceneTimeout(Exception):
    """The scene hangs; raised in the main thread, so that the traceback says where."""


# -- for tests


def takes_world(scene: str) -> bool:
    """Whether a scene can share its world with others.  Raises AttributeError if there is no such scene."""
    return bool(inspect.signature(_function(scene)).parameters)


def run_apart(scene: str, *, limit_s: int = LIMIT_S) -> str:
    """Play `MODULE:FUNCTION` in a process of its own; what it printed.  Raises AssertionError when it fails.

    :param limit_s: seconds the scene itself may take
    """
    with Stage() as stage:
        return stage.play(scene, limit_s=limit_s)


class Stage:
    """A process that plays one scene after the other."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def play(self, scene: str, *, limit_s: int = LIMIT_S) -> str:
        """What the scene printed.  Raises AssertionError with that when it fails."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.e2e.apart", "--stage"],
                cwd=_REPOSITORY,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                preexec_fn=_die_with_parent,
                # Ctrl-C is for the tests, which then close the stage.
                start_new_session=True,
            )
        told = self._ask({"scene": scene, "limit_s": limit_s})
        if told is None:
            raise AssertionError(f"{scene}: the process in which it was played has ended with {self._end()}")
        assert told["ok"], f"{scene}:\n{told['output']}"
        return str(told["output"])

    def close(self) -> None:
        """End the shared world.  Raises AssertionError when something was left behind."""
        if self._process is None:
            return
        told = self._ask({"scene": ""})
        code = self._end()
        assert told is not None, f"the process of the scenes has ended with {code}"
        assert told["ok"], told["output"]

    def _ask(self, order: dict[str, Any]) -> dict[str, Any] | None:
        """None: it has ended."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()
        line = process.stdout.readline()
        return json.loads(line) if line else None

    def _end(self) -> int:
        process, self._process = self._process, None
        assert process is not None
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        try:
            code = process.wait(_CLEAN_UP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        if process.stdout is not None:
            process.stdout.close()
        return code


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _function(scene: str) -> Any:
    module, _, name = scene.partition(":")
    return getattr(importlib.import_module(module), name)


# -- the process


class _Player:
    """Plays scenes; keeps the world that they share."""

    def __init__(self) -> None:
        self._world: World | None = None

    def play(self, scene: str, limit_s: int) -> None:
        """Raises what the scene raises."""
        function = _function(scene)
        signal.alarm(limit_s)
        try:
            if not takes_world(scene):
                self.close()  # addresses are the same in all of them
                function()
                return
            if self._world is None:
                world = World()
                world.__enter__()
                self._world = world
            try:
                function(self._world)
                self._world.settle()
            except BaseException:
                signal.alarm(_CLEAN_UP_S)
                world, self._world = self._world, None
                world.__exit__(*sys.exc_info())
                raise
        finally:
            signal.alarm(0)

    def close(self) -> None:
        """Raises AssertionError when something is left."""
        world, self._world = self._world, None
        if world is not None:
            world.__exit__(None, None, None)


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(1)


def _too_long(_number: int, _frame: FrameType | None) -> None:
    faulthandler.dump_traceback(all_threads=True)
    raise SceneTimeout("the scene hangs here")


def _serve(player: _Player) -> int:
    """Orders on standard input, one JSON object a line; what scenes print goes into the answers."""
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        order = json.loads(line)
        with tempfile.TemporaryFile() as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            try:
                if order["scene"]:
                    player.play(order["scene"], order["limit_s"])
                else:
                    player.close()
                ok = True
            except Exception:
                traceback.print_exc()
                ok = False
            sys.stdout.flush()
            sys.stderr.flush()
            output.seek(0)
            told = {"ok": ok, "output": output.read().decode(errors="replace")}
        print(json.dumps(told), file=answers, flush=True)
    return 0


def main(arguments: list[str]) -> int:
    """See the module's docstring.  Returns the exit code."""
    signal.signal(signal.SIGTERM, _stop)  # so that everything started is ended
    signal.signal(signal.SIGALRM, _too_long)
    enter_network_namespace()
    player = _Player()
    try:
        if arguments == ["--stage"]:
            return _serve(player)
        for scene in arguments:
            begun = time.monotonic()
            player.play(scene, LIMIT_S)
            print(f"{scene}: passed in {time.monotonic() - begun:.1f} s", flush=True)
    finally:
        player.close()
    return 0


if __name__ == "__main__":
    result = main(sys.argv[1:])
    # A scene may leave threads behind that wait for ever: they must not keep the process.
    sys.stdout.flush()
    os._exit(result)
