"""A successor takes everything over, or the running keeper goes on: the protocol, and what moves bytes across it."""

from __future__ import annotations

import json
import os
import random
import select
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, cast

import pytest

from xlb.keeper import handover
from xlb.keeper.accepted import Accepted
from xlb.keeper.control import Control
from xlb.keeper.endings import Endings
from xlb.keeper.estate import Estate, Packed, pack, unpack
from xlb.keeper.framer import Framer, Phase
from xlb.keeper.handover import Claim, HandoverError, Offer
from xlb.keeper.inject import Injectors, Throttle, Tools
from xlb.keeper.kernel import Destination, Kernel, PoolTarget
from xlb.keeper.loop import Loop
from xlb.keeper.pools import Pools
from xlb.keeper.relay import Relay, Relays
from xlb.keeper.sockets import Endpoint, Sockets
from xlb.keeper.spill import Spill, SpillEnd, Upload, UploadEnd

_LIMIT: Final = 100_000  # bytes in a queue
_CLIENT: Final = 77
_BACKEND: Final = 88


def turn(loop: Loop, until: Callable[[], bool], seconds: float = 5.0) -> None:
    """Let it run until something is true."""
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline, "not in time"
        loop.at(time.monotonic() + 0.01, loop.stop)
        loop._stopping = False
        loop.run({})


# ---- the protocol


@pytest.fixture
def path() -> Iterator[Path]:
    # Not tmp_path: its name may be longer than a Unix socket's may be.
    with tempfile.TemporaryDirectory(prefix="xlb-") as folder:
        yield Path(folder) / handover.NAME


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop(4096)
    yield made
    made.shut()


def small(fds: tuple[int, ...], body: bytes = b"state") -> Packed:
    return Packed(b'{"some": "header"}', body, fds)


class Running:
    """A keeper that offers itself, in a thread."""

    def __init__(self, loop: Loop, path: Path, packed: Callable[[], Packed]) -> None:
        self.given = threading.Event()
        self.loop = loop
        self.offer = Offer(loop, path, packed, self._on_given)
        self._thread = threading.Thread(target=loop.run, args=({},), daemon=True)
        # So that the end is noticed when nothing happens.
        loop.at(time.monotonic(), self._tick)
        self._thread.start()

    def _tick(self) -> None:
        self.loop.at(time.monotonic() + 0.01, self._tick)

    def _on_given(self) -> None:
        self.given.set()
        self.loop.stop()

    def end(self) -> None:
        self.loop.stop()
        self._thread.join(5.0)
        assert not self._thread.is_alive()
        self.offer.close()


def test_everything_goes_over(loop: Loop, path: Path) -> None:
    ends = [os.pipe() for _ in range(300)]
    packed = small(tuple(reader for reader, _ in ends), random.Random(1).randbytes(500_000))
    running = Running(loop, path, lambda: packed)
    claim = Claim(path)
    taken = claim.take()
    assert (taken.header, taken.body) == (packed.header, packed.body)
    assert not running.given.is_set(), "not before it is confirmed"
    claim.confirm()
    assert running.given.wait(5.0)
    for number, (reader, writer) in enumerate(ends):
        os.write(writer, number.to_bytes(2, "little"))
        os.close(reader)
        assert os.read(taken.fds[number], 10) == number.to_bytes(2, "little"), "in order, and the same"
        assert not os.get_inheritable(taken.fds[number])
        os.close(taken.fds[number])
        os.close(writer)
    assert path.stat().st_mode & 0o777 == 0o600
    running.end()


@pytest.mark.parametrize("when", ["at once", "asked", "in the middle", "before ok"])
def test_a_successor_that_dies_changes_nothing(loop: Loop, path: Path, when: str) -> None:
    running = Running(loop, path, lambda: small((0, 1, 2), bytes(3_000_000)))
    for _ in range(3):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
            peer.settimeout(5.0)
            peer.connect(str(path))
            assert json.loads(peer.recv(1000))["format"] == 1
            if when != "at once":
                peer.send(b'{"take": 1}')
            for _ in range({"in the middle": 5, "before ok": 1000}.get(when, 0)):
                message, fds, _, _ = socket.recv_fds(peer, 1 << 17, 250)
                for fd in fds:
                    os.close(fd)
                if message == b"E":
                    break
    claim = Claim(path)
    for fd in claim.take().fds:
        os.close(fd)
    claim.confirm()
    assert running.given.wait(5.0)
    running.end()


def test_one_that_stays_silent_comes_too_late(
    loop: Loop, path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(handover, "LIMIT", 0.1)
    running = Running(loop, path, lambda: small(()))
    claim = Claim(path)
    claim.take()
    time.sleep(0.3)  # not a wait for something: it is late by this
    with pytest.raises(HandoverError, match="did not let go"):
        claim.confirm()
    assert not running.given.is_set()
    assert "the successor did not answer in time" in capfd.readouterr().err
    running.end()


def test_a_keeper_that_cannot_tell_goes_on(loop: Loop, path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> Packed:
        raise ValueError("on purpose")

    running = Running(loop, path, fail)
    with pytest.raises(HandoverError, match="broke off"):
        Claim(path).take()
    assert "handover: ValueError: on purpose" in capfd.readouterr().err
    assert not running.given.is_set()
    running.end()


def test_another_format_is_refused_by_both(loop: Loop, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running = Running(loop, path, lambda: small(()))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
        peer.settimeout(5.0)
        peer.connect(str(path))
        peer.recv(1000)
        peer.send(b'{"take": 2}')
        assert peer.recv(1000) == b"", "the running keeper"
    monkeypatch.setattr("xlb.keeper.estate.FORMAT", 2)
    with pytest.raises(HandoverError, match="in format 1, this one knows 2"):
        Claim(path)
    assert not running.given.is_set()
    running.end()


def test_no_keeper(path: Path) -> None:
    with pytest.raises(HandoverError, match=f"no keeper hands over at {path}: No such file"):
        Claim(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as left:
        left.bind(str(path))
    with pytest.raises(HandoverError, match="refused"):
        Claim(path)


def test_what_a_killed_keeper_left_is_no_obstacle(loop: Loop, path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as left:
        left.bind(str(path))
    Offer(loop, path, lambda: small(()), loop.stop).close()
    assert not path.exists()


def test_the_control_socket_is_inherited_with_who_is_connected(loop: Loop, path: Path) -> None:
    heir = Loop(4096)
    actions: dict[str, Callable[[], dict[str, Any]]] = {"status": lambda: {"pid": 7}}
    control = Control(loop, Sockets(), path, actions)
    with socket.socket(socket.AF_UNIX) as early, socket.socket(socket.AF_UNIX) as late:
        early.connect(str(path))
        early.sendall(b'{"do": ')
        turn(loop, lambda: control.save()[0].line == b'{"do": ' if control.save() else False)
        late.connect(str(path))  # not accepted yet
        (talk,) = control.save()
        second = Control(heir, Sockets(), path, actions, os.dup(control.fd))
        second.restore([replace(talk, fd=os.dup(talk.fd))])
        early.sendall(b'"status"}\n')
        late.sendall(b'{"do": "status"}\n')
        for client in (early, late):
            client.setblocking(False)
            turn(heir, lambda client=client: _readable(client))  # type: ignore[misc]
            assert json.loads(client.recv(1000)) == {"ok": True, "pid": 7}
    second.close()
    heir.shut()


def _readable(client: socket.socket) -> bool:
    with suppress(BlockingIOError):
        return bool(client.recv(1, socket.MSG_PEEK))
    return False


# ---- what moves bytes


class FakeKernel:
    """What relays, spills and uploads ask the kernel half; `queued` is the length of every queue."""

    def __init__(self) -> None:
        self.queued = 0
        self.ended: list[tuple[int, int]] = []
        self.conns: dict[int, Any] = {}
        self.codes = SimpleNamespace(
            role=SimpleNamespace(x=4, e=5, u=2),
            relayed=SimpleNamespace(once=1, ever=2),
            limits=SimpleNamespace(max_pools=1000, destinations=10),
            pool_flag=SimpleNamespace(remote=1),
        )

    def queue(self, cookie: int) -> tuple[int, bool]:
        return self.queued, False

    def target(self, injector: int, cookie: int, last: bool = False) -> bool:
        return True

    def own(self, fd: int, role: int) -> None:
        return

    def conn(self, cookie: int) -> Any:
        return self.conns.get(cookie)

    def pool_depth(self, number: int) -> int:
        return 512

    def pool_state(self, number: int) -> Any:
        return SimpleNamespace(flags=0, active=0)

    def half_closed(self) -> int:
        return 0

    def upload_end(self, client: int, taken: int) -> bool:
        self.ended.append((client, taken))
        return True

    def upload_done(self, client: int, backend: int) -> None:
        self.ended.append((client, backend))


@dataclass(slots=True)
class Half:
    """What a keeper needs to move bytes; without programs, what is injected arrives at the injector's sink."""

    fake: FakeKernel
    tools: Tools
    accepted: Accepted
    relays: Relays

    @classmethod
    def make(cls) -> Half:
        loop, sockets, fake = Loop(4096), Sockets(), FakeKernel()
        kernel = cast(Kernel, fake)
        tools = Tools(loop, sockets, kernel, Injectors(sockets, kernel), Throttle(loop, kernel))
        accepted = Accepted(loop, sockets, kernel)
        half = cls(fake, tools, accepted, Relays(tools, accepted))
        half.relays.limit = _LIMIT
        return half

    @property
    def loop(self) -> Loop:
        return self.tools.loop

    def leave(self, **records: Any) -> Estate:
        """What a successor gets of it, with descriptors of its own; this one then stands still for ever."""
        dummy = os.open("/dev/null", os.O_RDONLY)
        estate = Estate(
            pid=1,
            frozen=0.0,
            listener=Endpoint.parse("127.0.0.1", 1),
            port6=0,
            listeners=(),
            control=dummy,
            handover=dummy,
            free=(),
            generation=0,
            at_rest=0,
            totals={},
            accepted=self.accepted.save(),
            **records,
        )
        packed = pack(estate)
        there = unpack(replace(packed, fds=tuple(os.dup(fd) for fd in packed.fds)))
        os.close(dummy)
        for fd in packed.fds:
            with suppress(OSError):
                os.close(fd)
        self.loop.shut()
        return there


@pytest.fixture
def first() -> Half:
    return Half.make()


@pytest.fixture
def second() -> Half:
    return Half.make()


class Drain:
    """Collects what arrives."""

    def __init__(self, fd: int) -> None:
        self._fd = os.dup(fd)
        os.set_blocking(self._fd, False)
        self.data = bytearray()

    def more(self, size: int) -> bool:
        """Whether so many bytes have arrived in all."""
        with suppress(BlockingIOError):
            while piece := os.read(self._fd, 1 << 20):
                self.data += piece
        return len(self.data) >= size


def pair() -> tuple[int, socket.socket]:
    """A connection: the descriptor of one end, non-blocking, and the other end."""
    here, there = socket.socketpair()
    here.setblocking(False)
    there.setblocking(False)
    return here.detach(), there


def push(loop: Loop, end: socket.socket, data: bytes, most: float = 0.2) -> int:
    """Send until nothing more is taken for a moment.  :returns: bytes sent"""
    sent = 0
    quiet = time.monotonic() + most
    while sent < len(data) and time.monotonic() < quiet:
        with suppress(BlockingIOError):
            sent += end.send(data[sent : sent + 50_000])
            quiet = time.monotonic() + most
        turn(loop, lambda: True)
        loop.at(time.monotonic() + 0.005, loop.stop)
        loop._stopping = False
        loop.run({})
    return sent


def test_a_relay_goes_on_with_bytes_in_both_directions(first: Half, second: Half) -> None:
    rng = random.Random(2)
    request, answer = rng.randbytes(1_500_000), rng.randbytes(1_500_000)
    (a, client), (e, envoy) = pair(), pair()
    relay = Relay(first.tools, first.relays, a, e, _CLIENT, b"first", once=True)
    first.relays.open.add(relay)
    first.fake.conns[_CLIENT] = SimpleNamespace(relayed=1, owed=1)
    relay.begin()
    sent = push(first.loop, client, request)
    assert sent < len(request), "Envoy does not read, so it must stop"
    first.fake.queued = _LIMIT + 1
    told = push(first.loop, envoy, answer)
    assert told < len(answer), "the client does not read, so it must stop"
    (state,) = first.relays.save()
    assert state.blocked
    assert state.out
    assert state.once
    assert state.feed.waiting

    sink = Drain(state.feed.sink)
    there = first.leave(relays=(state,))
    second.fake.conns[_CLIENT] = SimpleNamespace(relayed=2, owed=1)
    second.fake.queued = _LIMIT + 1
    second.relays.restore(there.relays)
    assert second.accepted.count == 1
    turn(second.loop, lambda: True)
    sink.more(0)
    before = len(sink.data)
    assert not sink.more(before + 1), "nothing while the client does not read"
    second.fake.queued = 0
    to_envoy = Drain(envoy.fileno())
    while sent < len(request) or told < len(answer):
        sent += push(second.loop, client, request[sent:], 0.02)
        told += push(second.loop, envoy, answer[told:], 0.02)
        to_envoy.more(0)
        sink.more(0)
    turn(second.loop, lambda: to_envoy.more(5 + len(request)) and sink.more(len(answer)))
    assert to_envoy.data == b"first" + request
    assert sink.data == answer
    client.close()
    turn(second.loop, lambda: not second.relays.open)
    second.loop.shut()


def test_a_spill_goes_on_within_a_chunk(first: Half, second: Half) -> None:
    body = random.Random(3).randbytes(900_000)
    message = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n"
    u, backend = pair()
    ended: list[SpillEnd] = []
    start = SimpleNamespace(phase=0, flags=0, status=0, name=0, token=0, column=0, rest=0)
    framer = Framer.of_response(start, to_head=False)
    spill = Spill(first.tools, u, _CLIENT, framer, _LIMIT, lambda _, how: ended.append(how))
    spill.begin()
    sent = push(first.loop, backend, message[:300_000])
    assert sent == 300_000
    first.fake.queued = _LIMIT + 1
    sent += push(first.loop, backend, message[sent:])
    assert sent < len(message)
    state = spill.save(5, _BACKEND)
    assert state.feed.waiting
    assert state.frame.phase == Phase.CHUNK

    sink = Drain(state.feed.sink)
    u_there = os.dup(u)
    there = first.leave(spills=(state,))
    (left,) = there.spills
    assert (left.upstream, left.backend, left.client) == (5, _BACKEND, _CLIENT)
    Spill.restore(second.tools, left, u_there, lambda _, how: ended.append(how))
    while sent < len(message):
        sent += push(second.loop, backend, message[sent:], 0.02)
        sink.more(0)
    turn(second.loop, lambda: sink.more(len(message)) and bool(ended))
    assert sink.data == message
    assert ended == [SpillEnd.REUSABLE]
    second.loop.shut()


@pytest.mark.parametrize("behind", [b"", b"GET / HTTP/1.1\r\n\r\n"])
def test_an_upload_goes_on(first: Half, second: Half, behind: bytes) -> None:
    body = random.Random(4).randbytes(700_000)
    a, client = pair()
    ended: list[UploadEnd] = []
    state_of_kernel = SimpleNamespace(phase=3, flags=9, status=0, name=0, token=0, column=0, rest=len(body))
    framer = Framer.of_request(state_of_kernel)
    upload = Upload(first.tools, a, _CLIENT, _BACKEND, framer, _LIMIT, lambda _, how: ended.append(how))
    upload.begin()
    first.fake.queued = _LIMIT + 1
    message = body[:-100]
    sent = push(first.loop, client, message)
    first.fake.queued = 0
    sent += push(first.loop, client, message[sent:400_000])
    first.fake.queued = _LIMIT + 1
    state = upload.save()

    sink = Drain(state.feed.sink)
    there = first.leave(uploads=(state,))
    left = there.uploads[0]
    restored = Upload.restore(second.tools, left, lambda _, how: ended.append(how))
    while sent < len(message):
        sent += push(second.loop, client, message[sent:], 0.02)
        sink.more(0)
    turn(second.loop, lambda: sink.more(len(message)))
    client.send(body[-100:] + behind)
    turn(second.loop, lambda: sink.more(len(body)) and bool(ended))
    assert sink.data == body
    assert ended == [UploadEnd.COMPLETE]
    assert restored.rest == behind
    assert second.fake.ended == [(_CLIENT, len(body)), (_CLIENT, _BACKEND)]
    second.loop.shut()


def test_pools_go_over_with_those_that_were_given_up(first: Half, second: Half) -> None:
    def pools_of(half: Half) -> Pools:
        return Pools(half.loop, half.tools.sockets, half.tools.kernel, most=100)

    here, there = Endpoint.parse("127.0.0.1", 80), Destination(Endpoint.parse("10.0.0.1", 80), 3)
    left = pools_of(first)
    old = left.use(5, PoolTarget(here, 1))
    _join(left, old, first.loop, young=False)
    del left._pools[5]
    new = left.use(5, PoolTarget(here, 2))
    young = _join(left, new, first.loop, young=True)
    led = left.use(995, PoolTarget(here, 7), there)
    led.failed(100.0)
    spilled = _join(left, led, first.loop, young=False)
    pools, upstreams = left.save()
    assert [(pool.number, pool.given_up) for pool in pools] == [(5, False), (995, False), (5, True)]
    assert [one.pool for one in upstreams] == [2, 0, 1]

    estate = first.leave(pools=pools, upstreams=upstreams)
    right = pools_of(second)
    known = right.restore(estate.pools, estate.upstreams, {spilled})
    assert [pool.number for pool in right] == [5, 995]
    assert [len(pool.members) for pool in known] == [1, 1, 1]
    assert (known[0].young, known[0].target.generation, known[2].target.generation) == (1, 2, 1)
    assert known[1].destination == there
    assert not known[1].may_open(100.1)
    upstream = right.find(young)
    assert upstream is not None
    assert upstream.young
    watched = [fd for fd in range(4096) if second.loop.kinds[fd]]
    assert len(watched) == 2, "the spilled one is its spill's to watch"
    second.loop.shut()


def _join(pools: Pools, pool: Any, loop: Loop, *, young: bool) -> int:
    """A connection that `Pools.open` would have made; its cookie."""
    from xlb.keeper.pools import Upstream

    fd, _ = pair()
    upstream = Upstream(fd, 1000 + fd, pool, 1.0, young)
    pools._by_fd[fd] = pools._by_cookie[upstream.cookie] = upstream
    pool.members.add(fd)
    pool.young += young
    return upstream.cookie


def test_ten_thousand_are_watched_bit_by_bit(second: Half) -> None:
    (reader, writer), heard = os.pipe(), []
    fds = [os.dup(reader) for _ in range(1800)]
    second.accepted.restore(fds)
    assert second.accepted.count == 1800
    gone, taken = fds[700], fds[800]
    second.loop.unwatch(gone)  # it was not watched yet
    os.close(gone)
    second.loop.kinds[taken] = 3
    os.write(writer, b"x")
    crowd = SimpleNamespace(on_events=lambda fd, events: heard.append(fd))
    deadline = time.monotonic() + 5.0
    while len(set(heard)) < 1798:
        assert time.monotonic() < deadline
        second.loop.at(time.monotonic() + 0.01, second.loop.stop)
        second.loop._stopping = False
        second.loop.run({1: cast(Any, crowd)})
    assert set(heard) == set(fds) - {gone, taken}
    second.loop.kinds[taken] = 0
    for fd in {*fds, reader, writer} - {gone}:
        os.close(fd)
    second.loop.shut()


def test_a_number_is_not_heard_of_for_what_it_was_before(loop: Loop) -> None:
    """A closed descriptor of which another process has a duplicate goes on in an epoll that was not told."""
    for end in (loop.close, _close_as_dead(loop)):
        a, client = pair()
        heard: list[int] = []
        loop.watch(a, 1)
        elsewhere = os.dup(a)
        end(a)
        turn(loop, lambda a=a: not _is_open(a))  # type: ignore[misc]
        reader, writer = os.pipe()
        if reader != a:
            os.dup2(reader, a)
        loop.watch(a, 1)
        client.close()
        loop.at(time.monotonic() + 0.05, loop.stop)
        loop._stopping = False
        loop.run({1: cast(Any, SimpleNamespace(on_events=lambda fd, events, heard=heard: heard.append(events)))})
        assert not heard
        loop.unwatch(a)
        for fd in {a, reader, writer, elsewhere}:
            os.close(fd)


def _close_as_dead(loop: Loop) -> Callable[[int], None]:
    half = Half.make()
    half.loop.shut()
    accepted = Accepted(loop, half.tools.sockets, half.tools.kernel)
    loop.after = accepted.bury

    def end(fd: int) -> None:
        accepted.on_events(fd, select.EPOLLRDHUP)
        accepted.bury()

    return end


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_endings_go_over_without_those_that_somebody_ended(first: Half, second: Half) -> None:
    endings = Endings(first.tools, first.accepted)
    (kept, _), (dropped, _) = pair(), pair()
    endings.add(1, kept)
    endings.add(2, dropped)
    endings.add(3)
    first.accepted.count = 2
    endings.abandon(dropped)
    left = endings.save()
    assert [(one.client, one.a >= 0) for one in left] == [(1, True), (3, False)]
    estate = first.leave(endings=left)
    restored = Endings(second.tools, second.accepted)
    restored.restore(estate.endings, 3)
    assert second.accepted.count == 1
    assert second.loop.objects == {estate.endings[0].a: restored}
    second.loop.shut()
