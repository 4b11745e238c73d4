"""Peers that do not read: what is queued on their behalf stays bounded, and they get all of it in the end."""

from __future__ import annotations

import re
import threading
import time
from typing import Final

from tests.bench.mesh import difference
from tests.e2e.wire import digest, payload, request
from tests.e2e.world import FAST, World, slow, until

_PATIENCE_S: Final = 2.0
_BOUND: Final = 16_000_000
"""Bytes: the limits of the kernel half, Envoy's buffers, and the TCP buffers of the sockets between."""


def slow_reader() -> None:
    """50 MB for a client that does not read for 2 s; meanwhile others are served at once."""
    _reads_late("/length/50000000")


def slow_reader_by_envoy() -> None:
    """The same by Envoy, and in chunks."""
    _reads_late(slow("/chunked/50000000?piece=200000"))


def slow_reader_of_a_stream() -> None:
    """The same where only the end of the connection ends the answer."""
    _reads_late("/eof/50000000")


def _reads_late(path: str) -> None:
    with World() as world:
        wire, other = world.dial(timeout=15.0), world.dial()
        world.warm(wire)
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
        assert peak < _BOUND, f"{peak:,} bytes are queued in the namespace"
        assert slowest < 0.5, f"another client waited {slowest:.3f} s"
        if not answer.closes:
            for _ in range(5):
                assert world.get(wire, "/length/100").status == 200
            before = world.counters()[FAST]
            world.get(wire, "/length/100")
            assert world.counters()[FAST] == before + 1, "the connection does not come back to the kernel"


def slow_backend() -> None:
    """20 MB to a backend that reads 10 MB a second, with length and in chunks; others are served at once."""
    with World() as world:
        for in_chunks in (False, True):
            wire, other = world.dial(timeout=15.0), world.dial()
            world.warm(wire)
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
            assert peak < _BOUND, f"{peak:,} bytes are queued in the namespace"
            assert slowest < 0.5, f"another client waited {slowest:.3f} s"
            for _ in range(5):
                assert world.get(wire, "/length/100").status == 200
            wire.close()
            other.close()


def many_slow_readers() -> None:
    """20 clients with 3 MB each that read late, all at once; half of them leave instead."""
    with World() as world:
        world.warm()
        wires = [world.dial(timeout=15.0) for _ in range(20)]
        for number, wire in enumerate(wires):
            wire.send(request(f"/length/{3_000_000 + number}", headers=[("x-id", str(number))]))
        until("all at the backend", lambda: world.stats()["requests"] >= 21)
        time.sleep(0.5)  # not a wait for something: the clients are late by this
        queued = _queued(world)
        print(f"{queued:,} bytes queued for 20 clients")
        assert queued < 20 * 4_000_000
        for number, wire in enumerate(wires):
            if number % 2:
                assert wire.answer().body == payload(3_000_000 + number, str(number))
            elif number % 4:
                wire.reset()
            else:
                wire.close()


def _queued(world: World) -> int:
    """Bytes in the receive and send queues of all TCP sockets of this namespace."""
    shown = world.lab.run(["ss", "-tmnH"])
    return sum(int(size) for size in re.findall(r"[(,](?:r|w|t|bl)(\d+)", shown))
