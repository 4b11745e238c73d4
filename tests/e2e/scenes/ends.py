"""Clients and backends that go away, in every way and at every moment."""

from __future__ import annotations

import json
import random
import socket
import time
from collections import Counter
from typing import Final

from tests.bench.mesh import difference
from tests.e2e.wire import Answer, Truncated, Wire, payload, request
from tests.e2e.world import FAST, Traffic, World, check_answer, slow, until

_AT_ONCE_S: Final = 0.5


def clients_that_leave(world: World) -> None:
    """200 clients that end by FIN, RST or half a close, before, within and after requests and answers."""
    rng = random.Random(12)
    world.warm()
    for number in range(200):
        _leave(world, rng, number)
    _still_good(world)
    world.settle()
    pooled = [backend for backend in world.census().with_role("B") if backend.pool == _pool_of_details(world)]
    until("connections of the backend that are in the pool", lambda: world.stats()["open"] <= len(pooled) + 1)


def _leave(world: World, rng: random.Random, number: int) -> None:
    wire = world.dial()
    moment = rng.choice(("connected", "head", "body", "chunk", "waiting", "response", "unread", "answered", "mixed"))
    path = {"waiting": "/length/100?delay=40", "response": "/length/3000?split=100&pause=2", "unread": "/length/900000"}
    target = path.get(moment, "/length/50")
    if rng.random() < 0.4:
        target = slow(target)
    match moment:
        case "head":
            wire.send(request(target)[: rng.randrange(1, 30)])
        case "body":
            wire.send(request(target, method="POST", headers=[("Content-Length", "5000")]), b"x" * rng.randrange(4999))
        case "chunk":
            head = request(target, method="POST", headers=[("Transfer-Encoding", "chunked")])
            wire.send(head, b"64\r\n" + b"x" * rng.randrange(100))
        case "waiting" | "response" | "unread":
            wire.send(request(target))
            if moment == "response":
                wire.exactly(rng.randrange(1, 200))
        case "answered":
            assert world.get(wire, target).status == 200
        case "mixed":
            assert world.get(wire, slow("/length/3")).status == 200
            wire.send(request("/length/3"))
    match rng.choice(("fin", "rst", "half")):
        case "fin":
            wire.close()
        case "rst":
            wire.reset()
        case "half":
            wire.socket.shutdown(socket.SHUT_WR)
            if moment in ("waiting", "response") and not target.startswith("/a/"):
                # Asked in full before: it is answered in full.
                _drain(wire, what=f"client {number}: {moment} {target}")
            wire.close()


def _drain(wire: Wire, what: str) -> None:
    try:
        while not wire.at_end():
            wire.exactly(len(wire.pending))
    except OSError as error:
        raise AssertionError(f"{what}: {error}") from error


def half_closed_client(world: World) -> None:
    """A client that shuts its sending side after the request is answered in full, then sees the end."""
    world.warm()
    for path in ("/length/10", "/length/10?delay=100", "/length/300000", "/chunked/5000", "/eof/5000"):
        for target in (path, slow(path)):
            wire = world.dial()
            name = world.new_id()
            wire.send(request(target, headers=[("x-id", name)]))
            wire.socket.shutdown(socket.SHUT_WR)
            answer = wire.answer()
            check_answer(answer, name, target)
            assert answer.body == payload(int(path.split("/")[2].partition("?")[0]), name)
            assert wire.at_end()
            wire.close()


def reads_late_after_half_close(world: World) -> None:
    """The answer waits for a client that has shut its sending side and does not read for a while."""
    world.warm()
    wire = world.dial()
    before = world.stats()["requests"]
    wire.send(request("/length/300000", headers=[("x-id", "late")]))
    wire.socket.shutdown(socket.SHUT_WR)
    until("the backend's answer", lambda: world.stats()["requests"] > before)
    time.sleep(0.7)  # not a wait for something: the client is late by this
    assert wire.answer().body == payload(300_000, "late")
    assert wire.at_end()


def backend_ends_before_the_first_byte(world: World) -> None:
    """503 as Envoy gives it, at once, and the client's connection goes on."""
    wire = world.dial()
    world.warm(wire)
    for query in ("", "?reset=1", "?delay=50"):
        truth = _envoy_answer(world, f"/none{query}")
        before = world.counters()
        start = time.monotonic()
        answer = wire.ask(f"/none{query}")
        took = time.monotonic() - start
        assert difference(before, world.counters()) == {FAST: 1}, "this was not the kernel's"
        _same(answer, truth, f"/none{query}")
        assert took < _AT_ONCE_S, f"the 503 took {took:.3f} s"
        assert world.get(wire, "/length/20").status == 200
        assert world.get(wire, slow("/length/20")).by_envoy


def backend_ends_before_a_head_answer(world: World) -> None:
    """The same to HEAD: no body."""
    wire = world.dial()
    world.warm(wire)
    answer = wire.ask("/none", method="HEAD")
    assert answer.status == 503
    assert answer.by_envoy
    assert world.get(wire, "/length/20").status == 200, "a body followed the answer to HEAD"


def backend_ends_within_the_upload(world: World) -> None:
    """A backend that is gone while the body is sent: an answer or the end, soon; and no request of others is hurt."""
    for size in (5_000, 3_000_000):
        for target in ("/early/413", "/none"):
            wire = world.dial()
            world.warm(wire)
            outcome: object
            try:
                outcome = wire.ask(target, method="POST", body=payload(size)).status
            except TimeoutError:
                raise AssertionError(f"{target}, {size} bytes: it hangs") from None
            except (OSError, Truncated) as error:
                outcome = type(error).__name__
            print(target, size, outcome)
            wire.close()
    with world.dial() as wire:
        assert world.get(wire, "/length/20").status == 200


def backend_ends_in_mid_response(world: World) -> None:
    """The client sees the truncation at once."""
    for path in (
        "/part/1000?sent=100",
        "/part/1000?sent=0",
        "/part/1000?sent=999",
        "/part/2000000?sent=1000000",
        "/part/1000?sent=100&reset=1",
        "/part-chunked",
    ):
        wire = world.dial()
        world.warm(wire)
        start = time.monotonic()
        try:
            answer: Answer | None = wire.ask(path)
        except (Truncated, ConnectionError):
            answer = None
        except TimeoutError:
            raise AssertionError(f"{path}: the client hangs") from None
        assert answer is None, f"{path}: a whole answer: {answer}"
        took = time.monotonic() - start
        assert took < _AT_ONCE_S, f"{path}: seen only after {took:.3f} s"
        wire.close()


def backend_sends_too_much(world: World) -> None:
    """Bytes behind an answer never reach the next request, of this client or of another."""
    world.warm()
    for size in (0, 50, 100_000):
        wire, other = world.dial(), world.dial()
        answer = world.get(wire, f"/extra/{size}")
        assert answer.body == payload(size, answer.headers["x-id"])
        for turn in range(5):
            for each in (wire, other):
                try:
                    assert world.get(each, f"/length/{turn}").status == 200
                except (Truncated, ConnectionError):
                    assert each is wire, "a client that had nothing to do with it lost its connection"
        for each in (wire, other):
            each.close()


def backend_sends_nonsense(world: World) -> None:
    """What is not HTTP/1.1 is not handed on: Envoy's answer or the end, no hang."""
    for path in ("/malformed", slow("/malformed")):
        wire = world.dial()
        world.warm(wire)
        try:
            answer: Answer | None = wire.ask(path)
        except (Truncated, ConnectionError):
            answer = None
        assert answer is None or answer.status == 502 or answer.status == 503, answer
        wire.close()


def backend_ends_while_idle(world: World) -> None:
    """A server that closes its idle connections, as after a keep-alive timeout: the next request does not notice."""
    wire = world.dial()
    for _ in range(20):
        world.warm(wire)
        with Wire(socket.create_connection(("127.1.2.1", 9080), 5.0)) as direct:
            assert direct.ask("/drop").status == 200
        answer = world.get(wire, "/length/30")
        assert answer.status == 200, answer


def backend_killed_under_load() -> None:
    """kill -9: 503s while it is away, no hang, no wrong answer; when it is back, all is well."""
    with World() as world:
        world.warm()
        with Traffic(world, ["/length/100", slow("/length/100")], 6) as traffic:
            traffic.flow(100)
            for _ in range(2):
                world.kill_backend("details-v1")
                traffic.flow(30)
                world.start_backend("details-v1")
                world.wait_backend("details-v1")
                traffic.flow(100)
        outcomes = Counter(word.partition(" ")[0] for word in traffic.answers.elements())
        print(dict(outcomes), traffic.lost)
        assert set(outcomes) <= {"200", "503"}, outcomes
        # An answer of which the backend had sent a part is lost, as it would be without us; small ones have no parts.
        assert len(traffic.lost) <= 2, traffic.lost
        world.warm()


def nothing_is_left() -> None:
    """When the backend is gone its pool is; when the agent has stopped, everything is (looked for at the end)."""
    with World() as world:
        world.warm()
        _still_good(world)
        pool = _pool_of_details(world)
        assert pool
        world.close_all()
        world.kill_backend("details-v1")
        until(
            "the end of its pool",
            lambda: not [entry for entry in world.census().connections.values() if entry.pool == pool],
        )
        world.settle()


def _still_good(world: World) -> None:
    wires = [world.dial() for _ in range(8)]
    for turn in range(64):
        path = f"/length/{turn * 10}"
        assert world.get(wires[turn % 8], slow(path) if turn % 5 == 0 else path).status == 200
    for wire in wires:
        wire.close()


def _pool_of_details(world: World) -> int:
    told = json.loads(world.lab.run([*world.mesh.command("endpoints"), "-o", "json"]))
    return int(next(one["pool"] for one in told["endpoints"] if one["address"] == "127.1.2.1" and one["pool"]))


def _envoy_answer(world: World, path: str) -> Answer:
    with world.dial() as wire:
        answer = wire.ask(slow(path))
    assert answer.by_envoy
    assert answer.status == 503, answer
    return answer


def _same(answer: Answer, truth: Answer, what: str) -> None:
    assert (answer.status, answer.body) == (truth.status, truth.body), f"{what}: {answer}, and Envoy: {truth}"
    names = {name for name in truth.headers if name not in ("date", "x-envoy-upstream-service-time")}
    assert {name: answer.headers.get(name) for name in names} == {name: truth.headers[name] for name in names}, (
        f"{what}: {answer.headers}, and Envoy: {truth.headers}"
    )
