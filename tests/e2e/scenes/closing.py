"""Connections that somebody wants to end: the client, the backend, or both."""

from __future__ import annotations

from tests.bench.mesh import difference
from tests.e2e.world import FAST, World, slow, until


def client_says_close(world: World) -> None:
    """200 connections of one request each: each client sees `connection: close` and the end; the backend's stays."""
    world.warm()
    before, stats = world.counters(), world.stats()
    for number in range(200):
        wire = world.dial()
        value = ("close", "Close", "CLOSE")[number % 3]
        answer = world.get(wire, f"/length/{number}", headers=[("Connection", value)])
        assert answer.status == 200
        assert answer.headers.get("connection", "").lower() == "close", f"request {number}: {answer.headers}"
        assert wire.at_end(), "the connection goes on after its last answer"
        wire.close()
    counted = difference(before, world.counters())
    assert counted[FAST] >= 190, f"of 200 requests: {dict(counted)}"
    made = world.stats()["accepted"] - stats["accepted"]
    assert made <= 20, f"{made} connections to the backend for 200 requests: they are not used again"


def client_says_close_by_envoy(world: World) -> None:
    """The same by Envoy, and with a body in the request."""
    world.warm()
    for number in range(30):
        wire = world.dial()
        body = b"x" * (number * 100)
        answer = world.get(wire, slow(f"/length/{number}"), method="POST", headers=[("Connection", "close")], body=body)
        assert answer.by_envoy
        assert answer.headers.get("connection") == "close", answer.headers
        assert wire.at_end()
        wire.close()


def client_says_keep_alive(world: World) -> None:
    """What HTTP/1.1 means anyway."""
    wire = world.dial()
    world.warm(wire)
    for _ in range(20):
        answer = world.get(wire, "/length/9", headers=[("Connection", "keep-alive")])
        assert not answer.closes, answer.headers


def backend_says_close(world: World) -> None:
    """The backend's last answer on a connection: whole, then a new connection to it without an error."""
    world.warm()
    for number in range(40):
        wire = world.dial()
        answer = world.get(wire, f"/last/{number * 300}")
        assert answer.status == 200
        assert len(answer.body) == number * 300
        if answer.closes:
            assert wire.at_end()
        else:
            assert world.get(wire, "/length/5").status == 200
        wire.close()


def response_and_end_together(world: World) -> None:
    """Close-delimited answers of any size: the end comes after the last byte, never before, never late."""
    world.warm()
    for size in (0, 1, 1000, 100_000, 3_000_000) * 3:
        for kind in ("eof", "silent-eof"):
            wire = world.dial()
            answer = world.get(wire, f"/{kind}/{size}")
            assert len(answer.body) == size, f"{kind}: {len(answer.body)} bytes, not {size}: {answer.headers}"
            # Envoy makes chunks of such an answer, and its connection goes on.
            assert answer.by_envoy or answer.ended, answer.headers
            if answer.ended:
                assert wire.at_end()
            wire.close()
    until("no connection of the client left", lambda: not world.census().with_role("C"))
