"""`xlb replay` and `xlb replay switch` as processes of their own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from xds_server.replay_cli import control_path, replay_command

COMMAND = (sys.executable, "-c", "from xds_server.replay_cli import replay_command; replay_command()")
SERVING = re.compile(r"serving (\S+) \((.*)\) on (\S+); control socket (\S+)\n")


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], re.Match[str]]]:
    process = subprocess.Popen([*COMMAND, str(folder), *options], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        match = SERVING.fullmatch(process.stdout.readline())
        assert match is not None
        yield process, match
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def control() -> Iterator[Path]:
    # Not tmp_path: its name may be longer than a Unix socket's may be.
    with tempfile.TemporaryDirectory(prefix="xlb-") as folder:
        yield Path(folder) / "control.sock"


def run(*arguments: object) -> tuple[int, str]:
    done = subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_switches_and_stops(scenarios: Path, control: Path, number: int) -> None:
    first, second = scenarios / "bookinfo-all-v1", scenarios / "bookinfo-reviews-50-v3"
    with serving(first, "--listen", "127.0.0.1:0", "--control", str(control)) as (process, match):
        assert match[1] == "bookinfo-all-v1"
        assert "productpage-v1, reviews-v2" in match[2]
        assert match[3].startswith("127.0.0.1:")
        assert match[4] == str(control)
        code, output = run("switch", second, "--control", control)
        assert (code, output) == (0, "switched to bookinfo-reviews-50-v3: 0 clients, 0 still to answer\n")
        # A folder that cannot be served: one line, and the server goes on.
        code, output = run("switch", control.parent, "--control", control)
        assert code == 1
        assert output.startswith("Error: ")
        assert "holds no captured node" in output
        code, output = run(first, "--listen", match[3])
        assert code == 1
        assert f"cannot listen on {match[3]}" in output
        process.send_signal(number)
        assert process.wait(timeout=30) == 0
    assert not control.exists()


def test_usage_errors_and_failures_have_their_codes(scenarios: Path, control: Path) -> None:
    runner = CliRunner()

    def invoke(*arguments: object) -> tuple[int, str]:
        result = runner.invoke(replay_command, [str(a) for a in arguments])
        return result.exit_code, result.output

    assert invoke("/nowhere/at/all")[0] == 2
    assert invoke(scenarios, "--no-such-flag")[0] == 2
    assert invoke("switch")[0] == 2
    code, output = invoke(scenarios / "bookinfo-all-v1", "--listen", "nonsense")
    assert code == 2
    assert "HOST:PORT" in output
    code, output = invoke("switch", scenarios, "--control", control)
    assert code == 1
    assert f"no replay answers on {control}" in output
    code, output = invoke(control.parent, "--listen", "127.0.0.1:0")
    assert code == 1
    assert "holds no captured node" in output
    code, output = invoke("--help")
    assert code == 0
    assert "xlb replay switch SCENARIO" in output


def test_the_control_socket_is_named_by_the_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert control_path("127.0.0.1:15010") == Path("/run/xlb/replay-15010.sock")
    assert control_path("[::1]:15011") == Path("/run/xlb/replay-15011.sock")
    assert control_path("unix:///run/x.sock") == Path("/run/x.sock.control")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert control_path("127.0.0.1:15010") == Path("/run/user/1000/xlb/replay-15010.sock")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert control_path("127.0.0.1:15010") == Path("/tmp/xlb-1000/xlb/replay-15010.sock")


def test_the_command_line_stays_light() -> None:
    heavy = "('grpc', 'envoy', 'google.protobuf', 'asyncio')"
    code = f"import sys, xds_server.replay_cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
