"""The keeper is replaced while its connections are in use: nothing is lost, whatever becomes of its successor."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from tests.e2e.wire import chunked, digest, payload, request
from tests.e2e.world import FAST, Traffic, World, check_answer, slow, until

_UPGRADES: Final = 5
_IDLE: Final = 1000
_LATE_BODY: Final = 20_000_000
_FDS: Final = 4096

# A successor that stops at the last moment before it says that it has everything.
_HANGS: Final = """
import sys, time
from xlb.keeper import handover
from xlb.keeper.__main__ import main
def hang(claim):
    print("has everything", flush=True)
    time.sleep(60)
handover.Claim.confirm = hang
sys.exit(main(sys.argv[1:]))
"""


def keeper_upgraded() -> None:
    """Five times, while connections of every kind are in use and a thousand are not."""
    _raise_limit()
    with World() as world:
        world.warm()
        idle = [world.dial(timeout=10.0) for _ in range(_IDLE)]
        for wire in idle[::2]:
            world.get(wire, "/length/1")
        late = _LateReader(world)
        busy = (_upload, _pipeline, _short, _short, _short, _last, _half_closed, _big_by_envoy, _control)
        with (
            Traffic(world, ["/length/100", slow("/length/50"), "/chunked/3000"], 4) as traffic,
            _Busy(world, busy) as others,
        ):
            traffic.flow()
            uploads = 0
            for turn in range(_UPGRADES):
                until("a keeper with something of each kind", lambda: _has_all(world), 10.0)
                before = world.pid("keeper")
                told = json.loads(_upgrade(world, "-o", "json"))
                print(f"upgrade {turn}: {told['took_over']}")
                assert (told["before"], told["pid"]) == (before, world.pid("keeper")), told
                assert told["took_over"]["open"]["A"] >= _IDLE, told
                assert told["took_over"]["relays"], "the pipelined connection is not relayed"
                assert told["took_over"]["spills"], "the late reader's answer is not spilled"
                uploads += told["took_over"]["uploads"]
                late.read(1_000_000)
                traffic.flow(100)
                others.flow()
        assert uploads, "no upload was taken over"
        assert not traffic.lost, traffic.lost
        assert not others.lost, others.lost
        assert all(word.startswith("200 ") for word in traffic.answers), traffic.answers
        late.finish()
        for wire in idle:
            assert world.get(wire, "/length/20").status == 200
        assert world.status()["keeper"]["restarts"] == 0, world.status()["keeper"]
        print(dict(traffic.answers), dict(others.done))


def upgraded_keeper_is_kept() -> None:
    """What was upgraded is taken over by the next agent, started again when it is killed, and ended at the end."""
    with World() as world:
        world.warm()
        _upgrade(world)
        keeper = world.pid("keeper")
        with Traffic(world, ["/length/100", slow("/length/50")], 2) as traffic:
            traffic.flow()
            world.mesh.kill_agent()
            world.mesh.start_agent()
            traffic.flow(100)
        assert not traffic.lost, traffic.lost
        assert world.pid("keeper") == keeper, "the next agent has replaced the keeper"
        world.kill("keeper")
        until("another keeper", lambda: _answers(world) not in (0, keeper), 10.0)
        world.warm()
        _upgrade(world)
        world.warm()


def successor_killed() -> None:
    """kill -9 of a successor that has everything but has not said so: the keeper goes on at once."""
    with World() as world:
        world.warm()
        held = [world.dial() for _ in range(20)]
        keeper = world.pid("keeper")
        with (
            Traffic(world, ["/length/100", slow("/length/50")], 4) as traffic,
            _Busy(world, (_pipeline, _short)) as others,
        ):
            for _ in range(3):
                traffic.flow()
                others.flow()
                successor = _start_hanging(world)
                successor.kill()
                successor.wait()
                start = time.monotonic()
                assert _ask(world, "status")["pid"] == keeper
                took = time.monotonic() - start
                assert took < 0.5, f"the keeper stood still for {took:.2f} s more"
        assert not traffic.lost, traffic.lost
        assert not others.lost, others.lost
        for wire in held:
            assert world.get(wire, "/length/10").status == 200
        assert world.pid("keeper") == keeper
        _upgrade(world)
        assert world.pid("keeper") != keeper
        world.warm()


def successor_hangs() -> None:
    """One that stays silent holds the keeper up for five seconds, and the kernel's requests not at all."""
    with World() as world:
        world.warm()
        keeper = world.pid("keeper")
        with Traffic(world, ["/length/100", slow("/length/50")], 2) as traffic:
            traffic.flow()
            successor = _start_hanging(world)
            os.kill(successor.pid, signal.SIGSTOP)
            start = time.monotonic()
            traffic.flow(500)
            assert time.monotonic() - start < 4.0, "requests wait for the keeper"
            until("the keeper", lambda: _answers(world) == keeper, 8.0)
            traffic.flow()
            os.kill(successor.pid, signal.SIGCONT)
            _upgrade(world)
            traffic.flow()
            successor.kill()
            successor.wait()
        assert not traffic.lost, traffic.lost
        assert world.pid("keeper") != keeper


def upgrade_that_fails() -> None:
    """The command says in one line why, with exit code 1, and the keeper goes on."""
    with World() as world:
        world.warm()
        keeper = world.pid("keeper")
        door, aside = (world.mesh.run_dir / name for name in ("keeper-handover.sock", "aside.sock"))
        door.rename(aside)
        done = subprocess.run(world.mesh.command("upgrade", "keeper"), capture_output=True, text=True, check=False)
        assert done.returncode == 1, done
        assert len(done.stderr.splitlines()) == 1, done
        assert str(door) in done.stderr, done
        assert f"process {keeper} goes on" in done.stderr, done
        assert world.pid("keeper") == keeper
        aside.rename(door)
        with Traffic(world, ["/length/100"], 2) as traffic:
            traffic.flow()
            commands = [
                subprocess.Popen(world.mesh.command("upgrade", "keeper"), stderr=subprocess.PIPE, text=True)
                for _ in range(2)
            ]
            said = [command.communicate()[1] for command in commands]
            codes = [command.returncode for command in commands]
            traffic.flow()
        assert not traffic.lost, traffic.lost
        assert 0 in codes, said
        assert all(code == 0 or "wait for it" in text for code, text in zip(codes, said, strict=True)), said
        assert world.pid("keeper") not in (0, keeper)


class _LateReader:
    """A client that reads a long answer in pieces, now and then."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._wire = world.dial(timeout=15.0)
        self._name = world.new_id()
        world.warm(self._wire)
        self._wire.send(request(f"/length/{_LATE_BODY}", headers=[("x-id", self._name)]))
        self._data = bytearray()

    def read(self, size: int) -> None:
        goal = len(self._data) + size
        while len(self._data) < goal:
            piece = self._wire.socket.recv(1 << 16)
            assert piece, f"the end after {len(self._data)} bytes"
            self._data += piece

    def finish(self) -> None:
        """All of it has come, and the connection is as good as before."""
        while b"\r\n\r\n" not in self._data:
            self.read(1)
        self.read(self._data.index(b"\r\n\r\n") + 4 + _LATE_BODY - len(self._data))
        assert self._data.partition(b"\r\n\r\n")[2] == payload(_LATE_BODY, self._name), "another body"
        before = self._world.counters()[FAST]
        for _ in range(5):
            assert self._world.get(self._wire, "/length/10").status == 200
        assert self._world.counters()[FAST] == before + 5, "the connection has not come back to the kernel"


class _Busy:
    """Does each of some things again and again, each in a thread, until the `with` block is left."""

    def __init__(self, world: World, jobs: tuple[Callable[[World, threading.Event], Callable[[], None]], ...]) -> None:
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(world, job), daemon=True) for job in jobs]
        self.done = {job.__name__: 0 for job in jobs}
        self.lost: list[str] = []

    def __enter__(self) -> _Busy:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(15.0)

    def _run(self, world: World, job: Callable[[World, threading.Event], Callable[[], None]]) -> None:
        try:
            once = job(world, self._stop)
            while not self._stop.is_set():
                once()
                self.done[job.__name__] += 1
        except Exception as problem:
            self.lost.append(f"{job.__name__} after {self.done[job.__name__]}: {problem!r:.300}")

    def flow(self) -> None:
        """Until each has been done once more, but for uploads, which take longer."""
        before = {name: count for name, count in self.done.items() if name != "_upload"}
        until("each of the others", lambda: self.lost or all(self.done[name] > n for name, n in before.items()), 10.0)


def _upload(world: World, stop: threading.Event) -> Callable[[], None]:
    """5 MB in chunks to a backend that reads 1 MB a second."""
    wire = world.dial(timeout=15.0)
    body = payload(5_000_000, "upload")
    data = chunked(body, [50_000])

    def once() -> None:
        name = world.new_id()
        head = request("/length/3?rate=1", method="POST", headers=[("x-id", name), ("Transfer-Encoding", "chunked")])
        wire.send(head, *(data[at : at + 40_000] for at in range(0, len(data), 40_000)))
        answer = wire.answer()
        assert answer.headers["x-id"] == name, answer
        assert answer.headers["x-sha256"] == digest(body), "another body arrived"

    return once


def _pipeline(world: World, stop: threading.Event) -> Callable[[], None]:
    """Six requests at once, so that the connection is relayed for ever."""
    wire = world.dial(timeout=10.0)
    paths = ("/length/10", slow("/length/3000"), "/length/200000", "/length/5?delay=30", "/chunked/5000", "/length/1")

    def once() -> None:
        names = [world.new_id() for _ in paths]
        wire.send(b"".join(request(path, headers=[("x-id", name)]) for path, name in zip(paths, names, strict=True)))
        for path, name in zip(paths, names, strict=True):
            check_answer(wire.answer(), name, path)

    return once


def _short(world: World, stop: threading.Event) -> Callable[[], None]:
    """A connection for each request."""

    def once() -> None:
        with world.dial(timeout=10.0) as wire:
            assert world.get(wire, "/length/100").status == 200
        stop.wait(0.005)

    return once


def _last(world: World, stop: threading.Event) -> Callable[[], None]:
    """Connections that the client says are to end with the answer."""

    def once() -> None:
        with world.dial(timeout=10.0) as wire:
            answer = world.get(wire, "/length/20000", headers=[("Connection", "close")])
            assert len(answer.body) == 20_000
            assert wire.at_end(), "more than the answer"
        stop.wait(0.005)

    return once


def _half_closed(world: World, stop: threading.Event) -> Callable[[], None]:
    """Clients that say nothing more after their request, and wait for the answer and the end."""

    def once() -> None:
        with world.dial(timeout=10.0) as wire:
            name = world.new_id()
            wire.send(request("/length/300?delay=20", headers=[("x-id", name)]))
            wire.socket.shutdown(socket.SHUT_WR)
            answer = wire.answer()
            check_answer(answer, name, "half closed")
            assert len(answer.body) == 300
            assert wire.at_end(), "more than the answer"

    return once


def _big_by_envoy(world: World, stop: threading.Event) -> Callable[[], None]:
    """Answers of Envoy that are longer than what a queue holds."""
    wire = world.dial(timeout=10.0)

    def once() -> None:
        name = world.new_id()
        wire.send(request(slow("/length/3000000"), headers=[("x-id", name)]))
        stop.wait(0.05)
        assert wire.answer().body == payload(3_000_000, name), "another body"

    return once


def _control(world: World, stop: threading.Event) -> Callable[[], None]:
    """Questions to the keeper on one connection, as the agent asks them."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(5.0)
    connection.connect(str(world.mesh.run_dir / "keeper.sock"))
    lines = connection.makefile("rb")

    def once() -> None:
        connection.sendall(b'{"do": "refresh"}\n')
        assert json.loads(lines.readline()) == {"ok": True}
        stop.wait(0.002)

    return once


def _has_all(world: World) -> bool:
    told = _ask(world, "status")
    return all(told[kind]["open"] for kind in ("relays", "spills", "uploads"))


def _ask(world: World, what: str) -> Mapping[str, Any]:
    """The keeper itself."""
    with socket.socket(socket.AF_UNIX) as control:
        control.settimeout(10.0)
        control.connect(str(world.mesh.run_dir / "keeper.sock"))
        control.sendall(json.dumps({"do": what}).encode() + b"\n")
        told: dict[str, Any] = json.loads(control.makefile("rb").readline())
    return told


def _answers(world: World) -> int:
    """The pid of the keeper that answers; 0: none does."""
    try:
        return int(_ask(world, "status")["pid"])
    except (FileNotFoundError, ConnectionRefusedError):
        return 0


def _upgrade(world: World, *words: str) -> str:
    return world.lab.run([*world.mesh.command("upgrade", "keeper"), *words], timeout=30.0)


def _start_hanging(world: World) -> subprocess.Popen[str]:
    """A successor that has everything and stays so."""
    address = world.status()["agent"]["address"]
    words = ("--instance", world.instance, "--run-dir", str(world.mesh.run_dir), "--address", address, "--port", "0")
    process = subprocess.Popen(
        [sys.executable, "-c", _HANGS, *words, "--take-over"], stdout=subprocess.PIPE, text=True, cwd="/"
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "has everything\n", process.wait()
    return process


def _raise_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, _FDS) if hard >= 0 else _FDS, hard))
