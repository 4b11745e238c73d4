"""The command line as users meet it: usage errors are 2, failures are 1, each with one line."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from xlb.cli import main


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def run_dir() -> Iterator[Path]:
    # Not tmp_path: its name may be longer than a Unix socket's may be.
    with tempfile.TemporaryDirectory(prefix="xlb-") as folder:
        yield Path(folder)


class Fake:
    """An admin socket that answers every request with the same document, and keeps what it was asked."""

    def __init__(self, run_dir: Path, document: object, status: int = 200) -> None:
        self.asked: list[str] = []
        self._body = json.dumps(document).encode()
        self._status = status
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(run_dir / "admin.sock"))
        self._socket.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                self.asked.append(_whole_request(connection))
                head = f"HTTP/1.1 {self._status} X\r\ncontent-length: {len(self._body)}\r\nconnection: close\r\n\r\n"
                connection.sendall(head.encode() + self._body)

    def close(self) -> None:
        self._socket.close()


def _whole_request(connection: socket.socket) -> str:
    with connection.makefile("rb") as lines:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += lines.readline()
        length = re.search(rb"(?i)content-length: *([0-9]+)", head)
        return (head + lines.read(int(length[1]) if length else 0)).decode()


@pytest.mark.parametrize(
    "arguments",
    [
        ("agent",),
        ("nothing",),
        ("exec", "--", "true"),
        ("exec", "--workload", "w"),
        ("exec", "--workload", "w", "--label", "x", "--", "true"),
        ("exec", "--workload", "a~b", "--", "true"),
        ("exec", "--workload", "w", "--ip", "nowhere", "--", "true"),
        ("exec", "--workload", "w", "--bogus", "--", "true"),
        ("status", "-o", "xml"),
        ("status", "more"),
        ("explain", "GET", "http://a/"),
        ("explain", "--from", "w", "GET"),
        ("explain", "--from", "w", "GET", "http://a/", "-H", "nothing"),
    ],
)
def test_usage(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Error: " in result.output


@pytest.mark.parametrize("command", ["status", "routes", "clusters", "endpoints", "workloads"])
def test_no_agent(command: str, run_dir: Path) -> None:
    result = run(command, "--run-dir", run_dir)
    assert result.exit_code == 1
    assert result.output.splitlines() == [
        f"Error: no agent answers at {run_dir}/admin.sock: start `xlb agent`, or name its run directory with --run-dir"
    ]


def test_no_agent_to_explain_or_run(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLB_RUN_DIR", str(run_dir))
    for arguments in (("explain", "--from", "w", "GET", "http://a/"), ("exec", "--workload", "w", "--", "true")):
        result = run(*arguments)
        assert result.exit_code == 1
        assert result.output.startswith(f"Error: no agent answers at {run_dir}/admin.sock")


def test_a_bad_configuration_file(tmp_path: Path) -> None:
    result = run("agent", "--config", tmp_path / "none.yaml")
    assert result.exit_code == 1
    assert result.output.splitlines() == [
        f"Error: {tmp_path}/none.yaml: cannot be read (No such file or directory): name a readable file with --config"
    ]


def test_what_the_agent_refuses(run_dir: Path) -> None:
    fake = Fake(run_dir, {"error": "no workload 'w' is registered"}, 404)
    result = run("explain", "--run-dir", run_dir, "--from", "w", "GET", "http://a/", "-H", "end-user:  jason ")
    fake.close()
    assert (result.exit_code, result.output) == (1, "Error: no workload 'w' is registered\n")
    assert "from=w&namespace=default&method=GET&url=http%3A%2F%2Fa%2F&header=end-user%3Ajason" in fake.asked[0]


def test_json_goes_through_as_it_is(run_dir: Path) -> None:
    fake = Fake(run_dir, {"workloads": [{"name": "w"}]})
    result = run("workloads", "--run-dir", run_dir, "-o", "json")
    fake.close()
    assert json.loads(result.output) == {"workloads": [{"name": "w"}]}


def test_a_command_that_does_not_exist(run_dir: Path) -> None:
    group = run_dir / "group"
    group.mkdir()
    (group / "cgroup.procs").touch()
    fake = Fake(run_dir, {"cgroup": str(group), "in_force": False, "source": "a:1", "error": "e", "remedy": "r"})
    result = run("exec", "--run-dir", run_dir, "--workload", "w", "--label", "a=b=c", "--", "/no/such/command")
    fake.close()
    assert result.exit_code == 127
    assert result.output.splitlines() == [
        "Warning: w runs without the mesh until its configuration has come (e; r)",
        "Error: /no/such/command: command not found",
    ]
    assert (group / "cgroup.procs").read_text() == "0\n"
    assert '"labels": {"a": "b=c"}' in fake.asked[0]


def test_help_names_every_command() -> None:
    output = run("--help").output
    for command in ("agent", "exec", "status", "routes", "clusters", "endpoints", "workloads", "explain", "replay"):
        assert f"  {command} " in output


def test_commands_do_not_load_what_only_the_agent_needs() -> None:
    code = "import sys, xlb.cli, xlb.client, xlb.run_workload, xlb.tables; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert loaded.isdisjoint({"grpc", "google", "aiohttp", "yaml", "structlog", "asyncio", "translator", "xds_server"})
