"""Peers that do not read: what is queued on their behalf stays bounded, and they get all of it in the end."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from typing import Final

from demo.bookinfo.topology import PORT
from tests.bench.mesh import difference
from tests.e2e.wire import Wire, digest, payload, request
from tests.e2e.world import FAST, World, slow, until
from xlb.keeper_process import KEEPER_PORT

_PATIENCE_S: Final = 2.0
_BOUND: Final = 2_500_000
"""Bytes queued on behalf of one connection that the kernel carries."""

_ENVOY_BOUND: Final = 16_000_000
"""The same by Envoy, whose sockets have buffers of net.ipv4.tcp_rmem; for how much is read ahead is its own affair."""

_SOON_S: Final = 1.0  # others must not wait longer; the backend needs a part of it to make 50 MB


def slow_reader(world: World) -> None:
    """50 MB for a client that does not read for 2 s; meanwhile others are served at once."""
    _reads_late(world, "/length/50000000")


def slow_reader_by_envoy(world: World) -> None:
    """The same by Envoy, and in chunks."""
    _reads_late(world, slow("/chunked/50000000?piece=200000"), _ENVOY_BOUND)


def slow_reader_of_a_stream(world: World) -> None:
    """The same where only the end of the connection ends the answer."""
    _reads_late(world, "/eof/50000000")


def _reads_late(world: World, path: str, bound: int = _BOUND) -> None:
    wire, other = world.dial(timeout=15.0), world.dial()
    _fill_pool([wire, other])
    name = world.new_id()
    wire.send(request(path, headers=[("x-id", name)]))
    peak, slowest = 0, 0.0
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        start = time.monotonic()
        assert world.get(other, "/length/100").status == 200
        slowest = max(slowest, time.monotonic() - start)
        peak = max(peak, _queued(world))
        time.sleep(0.02)
    start = time.monotonic()
    answer = wire.answer()
    assert answer.body == payload(50_000_000, name), f"{len(answer.body)} bytes of another body"
    took = time.monotonic() - start
    print(f"{path}: at most {peak:,} bytes queued, others waited {slowest:.3f} s, read in {took:.2f} s")
    assert peak < bound, f"{peak:,} bytes are queued"
    assert slowest < _SOON_S, f"another client waited {slowest:.3f} s"
    if not answer.closes:
        for _ in range(5):
            assert world.get(wire, "/length/100").status == 200
        before = world.counters()[FAST]
        world.get(wire, "/length/100")
        assert world.counters()[FAST] == before + 1, "the connection does not come back to the kernel"


def slow_backend(world: World) -> None:
    """20 MB to a backend that reads 10 MB a second, with length and in chunks; others are served at once."""
    for in_chunks in (False, True):
        wire, other = world.dial(timeout=15.0), world.dial()
        _fill_pool([wire, other])
        body, name = payload(20_000_000), world.new_id()
        headers = [("x-id", name)]
        if in_chunks:
            headers.append(("Transfer-Encoding", "chunked"))
            pieces = (b"%x\r\n%s\r\n" % (100_000, body[at : at + 100_000]) for at in range(0, len(body), 100_000))
            data = [request("/length/3?rate=10", method="POST", headers=headers), *pieces, b"0\r\n\r\n"]
        else:
            data = [request("/length/3?rate=10", method="POST", headers=headers, body=body)]
        sender = threading.Thread(target=wire.send, args=data, daemon=True)
        before = world.counters()
        sender.start()
        peak, slowest = 0, 0.0
        while sender.is_alive():
            start = time.monotonic()
            assert world.get(other, "/length/100").status == 200
            slowest = max(slowest, time.monotonic() - start)
            peak = max(peak, _queued(world))
            time.sleep(0.02)
        answer = wire.answer()
        counted = difference(before, world.counters())
        print(f"chunks {in_chunks}: at most {peak:,} bytes queued, others waited {slowest:.3f} s, {dict(counted)}")
        assert answer.headers["x-id"] == name
        assert answer.headers["x-sha256"] == digest(body), "another body arrived"
        assert peak < _BOUND, f"{peak:,} bytes are queued"
        assert slowest < _SOON_S, f"another client waited {slowest:.3f} s"
        for _ in range(5):
            assert world.get(wire, "/length/100").status == 200
        wire.close()
        other.close()


def many_slow_readers(world: World) -> None:
    """20 clients with 10 MB each that read late, all at once; half of them leave instead."""
    wires = [world.dial(timeout=15.0) for _ in range(20)]
    _fill_pool(wires)
    requests, before = world.stats()["requests"], world.counters()
    for number, wire in enumerate(wires):
        wire.send(request(f"/length/{10_000_000 + number}", headers=[("x-id", str(number))]))
    until("all at the backend", lambda: world.stats()["requests"] >= requests + 20)
    time.sleep(0.5)  # not a wait for something: the clients are late by this
    queued, counted = _queued(world), difference(before, world.counters())
    print(f"{queued:,} bytes queued for 20 clients, {dict(counted)}")
    assert queued < 20 * _BOUND, f"{queued:,} bytes are queued for 20 clients"
    for number, wire in enumerate(wires):
        if number % 2:
            assert wire.answer().body == payload(10_000_000 + number, str(number))
        elif number % 4:
            wire.reset()
        else:
            wire.close()


def _fill_pool(wires: list[Wire]) -> None:
    """So that the pool has a connection for each: what goes by Envoy meanwhile has Envoy's buffers."""
    for _ in range(2):
        for wire in wires:
            wire.send(request("/length/1?delay=50"))
        for wire in wires:
            assert wire.answer().status == 200


def _queued(world: World) -> int:
    """Bytes in the queues of this namespace's TCP sockets, but for what backends and clients have not sent yet.

    Those are limited by net.ipv4.tcp_wmem and would be there without us.
    """
    total = 0
    for line in world.lab.run(["ss", "-tmnHO"]).splitlines():
        _, _, _, local, peer, *_ = line.split()
        # Those in TIME-WAIT have none.
        sizes = Counter({name: int(size) for name, size in re.findall(r"[(,]([a-z]+)(\d+)", line)})
        total += sizes["r"] + sizes["bl"]
        # A client is connected to the keeper, whatever it sees itself.
        if not local.endswith(f":{PORT}") and not peer.endswith(f":{KEEPER_PORT}"):
            total += sizes["w"]
    return total
