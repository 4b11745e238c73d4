"""Requests that the kernel carries and requests that Envoy carries, in turn on one connection."""

from __future__ import annotations

import random
from typing import Final

from tests.bench.mesh import difference
from tests.e2e.wire import Answer, Wire, cut, payload, request
from tests.e2e.world import FAST, SLOW, World, check_answer, slow, until

_SIZES: Final = (0, 1, 100, 1500, 9000)


def mixed_connection(world: World) -> None:
    """300 requests on one connection, by chance fast or slow: each by the right one, whole, in order."""
    rng = random.Random(1)
    wire = world.dial()
    world.warm(wire)
    _warm_slow(world, wire)
    before, requests = world.counters(), world.stats()["requests"]
    sent = {FAST: 0, SLOW: 0}
    for _ in range(300):
        size, by = rng.choice(_SIZES), rng.choice((FAST, SLOW))
        sent[by] += 1
        path = f"/length/{size}"
        answer = world.get(wire, slow(path) if by == SLOW else path)
        _check(answer, size)
        assert answer.by_envoy == (by == SLOW), f"{by}: {answer.headers}"
    counted = difference(before, world.counters())
    assert counted == sent, f"counted {dict(counted)}, sent {sent}"
    assert world.stats()["requests"] - requests == 300, "the backend has not seen each request once"


def mixed_uploads(world: World) -> None:
    """The same with bodies of all sizes in the requests."""
    rng = random.Random(2)
    wire = world.dial()
    world.warm(wire)
    for _ in range(150):
        path = f"/length/{rng.choice(_SIZES)}"
        body = payload(rng.choice((0, 1, 1000, 20_000, 200_000)), str(rng.random()))
        by = rng.choice((FAST, SLOW))
        answer = world.get(wire, slow(path) if by == SLOW else path, method="POST", body=body)
        assert answer.status == 200


def mixed_connections_at_once(world: World) -> None:
    """Eight connections that take turns, with answers that take their time."""
    rng = random.Random(3)
    wires = [world.dial() for _ in range(8)]
    for _ in range(40):
        asked = []
        for wire in rng.sample(wires, 8):
            size, name = rng.choice(_SIZES), world.new_id()
            path = f"/length/{size}?delay={rng.choice((0, 0, 5, 20))}"
            wire.send(request(rng.choice((path, slow(path))), headers=[("x-id", name)]))
            asked.append((wire, size, name))
        for wire, size, name in asked:
            answer = wire.answer()
            check_answer(answer, name, "at once")
            _check(answer, size)


def pipelined(world: World) -> None:
    """20 requests in one send, fast and slow by chance: answered in order, each once."""
    _pipelines(world, [1] * 10, seed=4)


def pipelined_in_pieces(world: World) -> None:
    """The same, cut anywhere: within heads, with several requests in a piece."""
    _pipelines(world, [2, 3, 5, 10, 40, 100, 2, 7], seed=5)


def pipelined_behind(world: World) -> None:
    """The next request is sent while the one before is being answered, and while its body is being sent."""
    rng = random.Random(6)
    world.warm()
    for turn in range(12):
        wire = world.dial()
        first = f"/length/{rng.choice((0, 5000))}?delay=30"
        body = payload(300_000 if turn % 3 == 0 else 0)
        names = [world.new_id() for _ in range(3)]
        wire.send(request(first if turn % 2 else slow(first), method="POST", headers=[("x-id", names[0])], body=body))
        wire.send(request("/length/7", headers=[("x-id", names[1])]))
        wire.send(request(slow("/length/9"), headers=[("x-id", names[2])]))
        check_answer(wire.answer(), names[0], f"first of turn {turn}", body)
        for name, size in zip(names[1:], (7, 9), strict=True):
            answer = wire.answer()
            check_answer(answer, name, f"turn {turn}")
            _check(answer, size)
        _check(world.get(wire, "/length/3"), 3)
        wire.close()


def _pipelines(world: World, pieces: list[int], seed: int) -> None:
    rng = random.Random(seed)
    world.warm()
    before = world.stats()["requests"]
    for count in pieces:
        wire = world.dial()
        asked, data = [], b""
        for _ in range(20):
            size, name = rng.choice(_SIZES), world.new_id()
            path = f"/length/{size}"
            body = payload(rng.choice((0, 0, 400)), name)
            target = rng.choice((path, slow(path)))
            data += request(target, method="POST", headers=[("x-id", name)], body=body)
            asked.append((size, name, body))
        wire.send(*cut(data, count, rng))
        for size, name, body in asked:
            answer = wire.answer()
            check_answer(answer, name, f"{count} pieces", body)
            _check(answer, size)
        _check(world.get(wire, "/length/3"), 3)
        wire.close()
    seen = world.stats()["requests"] - before
    assert seen == 21 * len(pieces), f"the backend has seen {seen} requests of {21 * len(pieces)}"


def _warm_slow(world: World, wire: Wire) -> None:
    def carried() -> bool:
        before = world.counters()[SLOW]
        return world.get(wire, slow("/length/1")).by_envoy and world.counters()[SLOW] > before

    until("a slow request", carried)


def _check(answer: Answer, size: int) -> None:
    assert answer.status == 200
    assert answer.body == payload(size, answer.headers["x-id"]), f"another body of {len(answer.body)} bytes"
