"""Parts of the keeper that need no kernel programs: addresses, the loop, the control socket."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from xlb.keeper.control import Control, ControlError
from xlb.keeper.loop import Loop
from xlb.keeper.sockets import BLOCKED, Endpoint, Sockets, runs


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop(4096)
    yield made
    made.shut()


def turn(loop: Loop, seconds: float = 0.05) -> None:
    """Let it run for a moment."""
    loop.at(time.monotonic() + seconds, loop.stop)
    loop._stopping = False
    loop.run({})


def test_neighbours_are_closed_together() -> None:
    assert runs([]) == []
    assert runs([7]) == [(7, 8)]
    assert runs([9, 3, 4, 5, 8, 20]) == [(3, 6), (8, 10), (20, 21)]


def test_endpoints() -> None:
    four = Endpoint.parse("10.1.2.3", 80)
    assert four.address == b"\0" * 10 + b"\xff\xff\x0a\x01\x02\x03"
    assert (four.host, str(four), four.is_loopback) == ("10.1.2.3", "10.1.2.3:80", False)
    assert four.any == b"\0" * 10 + b"\xff\xff" + bytes(4)
    assert Endpoint.parse("127.9.9.9", 1).is_loopback
    six = Endpoint.parse("::1", 443)
    assert (six.is_ip4, six.is_loopback, str(six), six.any) == (False, True, "[::1]:443", bytes(16))
    assert not Endpoint.parse("fd00::1", 1).is_loopback


def test_names_and_cookies_of_sockets() -> None:
    sockets = Sockets()
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        accepted = sockets.accept(server.fileno())
        try:
            assert sockets.peer(accepted) == Endpoint.parse(*client.getsockname())
            assert sockets.local(accepted) == Endpoint.parse(*server.getsockname())
            assert sockets.cookie(accepted) not in (0, sockets.cookie(client.fileno()))
            assert sockets.netns(accepted) == sockets.netns(client.fileno()) != 0
            assert sockets.recv(accepted) == BLOCKED
            client.sendall(b"abc")
            assert sockets.peek(accepted) == 1
            assert sockets.recv(accepted) == 3
            assert bytes(sockets.buffer[:3]) == b"abc"
            client.close()
            assert sockets.recv(accepted) == 0
        finally:
            sockets.close_all([accepted])
    assert sockets.peer(server.fileno()) is None


class Recorder:
    """A watcher that reads, or fails."""

    def __init__(self, fails: bool = False) -> None:
        self.seen: list[int] = []
        self.abandoned: list[int] = []
        self.fails = fails

    def on_events(self, fd: int, events: int) -> None:
        self.seen.append(fd)
        os.read(fd, 100)
        if self.fails:
            raise ValueError("on purpose")

    def abandon(self, fd: int) -> None:
        self.abandoned.append(fd)


def test_timers_come_in_order(loop: Loop) -> None:
    order: list[str] = []
    now = time.monotonic()
    loop.at(now + 0.02, lambda: order.append("b"))
    loop.at(now + 0.01, lambda: order.append("a"))
    loop.at(now, lambda: order.append(str(1 // 0)))
    loop.at(now + 0.02, lambda: order.append("c"))
    turn(loop)
    assert order == ["a", "b", "c"]


def test_a_failure_ends_its_connection_only(loop: Loop, capfd: pytest.CaptureFixture[str]) -> None:
    good, bad = Recorder(), Recorder(fails=True)
    ends = [os.pipe(), os.pipe()]
    for (reader, writer), watcher in zip(ends, (bad, good), strict=True):
        loop.watch_object(reader, watcher)
        os.write(writer, b"x")
    turn(loop)
    assert good.seen == [ends[1][0]]
    assert bad.abandoned == [ends[0][0]]
    assert "ValueError: on purpose" in capfd.readouterr().err
    for reader, writer in ends:
        loop.close(reader)
        os.close(writer)


def test_a_closed_descriptor_is_not_given_out_in_the_same_round(loop: Loop) -> None:
    reader, writer = os.pipe()
    loop.watch_object(reader, Recorder())
    loop.close(reader)
    again = os.dup(writer)
    assert again != reader
    turn(loop)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(reader)
    for fd in (again, writer):
        os.close(fd)


def ask(loop: Loop, path: Path, *lines: bytes) -> list[Any]:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        for line in lines:
            client.sendall(line)
        turn(loop)
        client.settimeout(2)
        return [json.loads(line) for line in client.recv(65536).splitlines()]


def test_control(loop: Loop, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keeper.sock"
    control = Control(loop, Sockets(), path, {"status": lambda: {"pid": 7}, "fail": lambda: {"x": 1 // 0}})
    assert ask(loop, path, b'{"do": "sta', b'tus"}\n{"do": "status"}\n') == [{"ok": True, "pid": 7}] * 2
    assert ask(loop, path, b"no json\n")[0]["error"] == "not a JSON object on one line"
    assert ask(loop, path, b'{"do": "x"}\n')[0]["error"] == '"do" must be one of fail, status'
    assert ask(loop, path, b'{"do": "fail"}\n')[0]["ok"] is False
    assert "ZeroDivisionError" in capfd.readouterr().err
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ControlError, match="another keeper listens"):
        Control(loop, Sockets(), path, {})
    control.close()
    assert not path.exists()
    # A socket whose keeper was killed is no obstacle.
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    Control(loop, Sockets(), path, {}).close()
