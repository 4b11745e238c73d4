"""Every way in which a message can be framed and cut, in both directions, through the kernel and through Envoy."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tests.bench.mesh import difference
from tests.e2e.wire import Answer, Truncated, Wire, WireError, chunked, cut, payload, request
from tests.e2e.world import FAST, World, check_answer, slow

_BIG: Final = 5_000_000


@dataclass(frozen=True, slots=True)
class _Row:
    path: str
    status: int = 200
    size: int = 0
    method: str = "GET"
    closes: bool = False


def _rows() -> Iterator[_Row]:
    sizes = (0, 1, 1447, 65_536, 300_000)
    for size in sizes:
        yield _Row(f"/length/{size}", size=size)
        yield _Row(f"/chunked/{size}?piece=7000", size=size)
        yield _Row(f"/chunked/{size}?piece=70000&trailers=1&extensions=1", size=size)
        yield _Row(f"/length/{size}", method="HEAD")
        yield _Row(f"/chunked/{size}", method="HEAD")
        for kind in ("eof", "silent-eof", "last", "http10"):
            yield _Row(f"/{kind}/{size}", size=size, closes=True)
    for split in (1, 7):  # byte by byte, and in pieces that are never a line
        for path, size in (("/length/0", 0), ("/length/40", 40), ("/chunked/40?piece=9&trailers=1&extensions=1", 40)):
            query = f"{'&' if '?' in path else '?'}split={split}"
            yield _Row(path + query, size=size)
        yield _Row(f"/interim/20?split={split}", size=20)
        yield _Row(f"/status/204?split={split}", 204)
        yield _Row(f"/status/304?split={split}", 304)
        yield _Row(f"/length/20?split={split}", method="HEAD")
        yield _Row(f"/eof/20?split={split}", size=20, closes=True)
        yield _Row(f"/last/20?split={split}", size=20, closes=True)
    yield _Row("/chunked/3000?piece=1", size=3000)
    yield _Row("/chunked/300000?piece=9000&split=10007", size=300_000)
    yield _Row("/length/40?split=30&pause=2", size=40)
    yield _Row("/interim/20", size=20)
    yield _Row("/status/204", 204)
    yield _Row("/status/304", 304)
    yield _Row("/status/404", 404)
    yield _Row("/status/503", 503)
    yield _Row("/length/9", method="OPTIONS", size=9)
    yield _Row("/length/9", method="DELETE", size=9)
    yield _Row(f"/length/{_BIG}", size=_BIG)
    yield _Row(f"/chunked/{_BIG}?piece=100000", size=_BIG)
    yield _Row(f"/eof/{_BIG}", size=_BIG, closes=True)


def responses_by_the_kernel(world: World) -> None:
    """Each kind of response, cut as the backend likes."""
    world.warm()
    before = world.counters()
    count = _play_rows(world, by_envoy=False)
    counted = difference(before, world.counters())
    assert counted[FAST] >= count * 0.8, f"{count} requests: {dict(counted)}"


def responses_by_envoy(world: World) -> None:
    """The same by Envoy, which is a backend like others for the kernel."""
    _play_rows(world, by_envoy=True)


def _play_rows(world: World, *, by_envoy: bool) -> int:
    wire, count = world.dial(), 0
    for row in _rows():
        count += 1
        what = f"{row.method} {row.path}"
        try:
            answer = world.get(wire, slow(row.path) if by_envoy else row.path, method=row.method)
        except (WireError, OSError) as error:
            raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
        assert answer.status == row.status, f"{what}: {answer}"
        if row.status == 200:
            _check_body(answer, 0 if row.method == "HEAD" else row.size, what)
        assert not wire.pending, f"{what}: {wire.pending[:100]!r} behind the answer"
        if "trailers=1" in row.path and not answer.by_envoy:
            assert answer.trailers == {"x-trailer": "end", "x-more": "2"}, f"{what}: {answer.trailers}"
        if row.closes and not answer.by_envoy:
            assert answer.closes or row.path.startswith("/http10"), f"{what}: {answer.headers}"
            assert wire.at_end(), f"{what}: bytes behind the last answer"
            wire.close()
            wire = world.dial()
            world.warm(wire)  # the pool has one connection less
    return count


def requests_in_every_shape(world: World) -> None:
    """Bodies with length and in chunks, whole, in pieces, byte by byte; 0 bytes to 5 MB."""
    rng = random.Random(7)
    world.warm()
    for by_envoy in (False, True):
        wire = world.dial()
        for size in (0, 1, 50, 1500, 30_000, 400_000, _BIG):
            for in_chunks in (False, True):
                for pieces in (1, 2, 9):
                    _upload(world, wire, size, in_chunks, pieces, rng, by_envoy=by_envoy)
        assert world.get(wire, "/length/5").status == 200


def requests_byte_by_byte(world: World) -> None:
    """Every byte of head, body and chunks with a send of its own."""
    rng = random.Random(8)
    world.warm()
    for in_chunks in (False, True):
        for size in (0, 1, 60):
            for by_envoy in (False, True):
                wire = world.dial()
                _upload(world, wire, size, in_chunks, 1 << 30, rng, by_envoy=by_envoy)
                assert world.get(wire, "/length/5").status == 200
                wire.close()


def _upload(
    world: World, wire: Wire, size: int, in_chunks: bool, pieces: int, rng: random.Random, *, by_envoy: bool
) -> None:
    name = world.new_id()
    body = payload(size, name)
    path = slow("/length/5") if by_envoy else "/length/5"
    headers = [("x-id", name)]
    if in_chunks:
        step = max(size // 5, 1)
        data = request(path, method="POST", headers=[*headers, ("Transfer-Encoding", "chunked")])
        data += chunked(body, [step, 1, max(step // 7, 1)])
    else:
        data = request(path, method="POST", headers=headers, body=body)
    wire.send(*cut(data, pieces, rng))
    what = f"{size} bytes {'in chunks' if in_chunks else ''} in {pieces} sends{' by Envoy' if by_envoy else ''}"
    try:
        answer = wire.answer()
    except (WireError, OSError) as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
    check_answer(answer, name, what, body)
    assert answer.status == 200, f"{what}: {answer}"


def heads_in_pieces(world: World) -> None:
    """A head in two sends stays in the kernel; one in many, or a very long one, still arrives whole."""
    rng = random.Random(9)
    wire = world.dial()
    world.warm(wire)
    before = world.counters()
    for _ in range(100):
        _piece_of_head(world, wire, rng.choice((10, 300, 3000, 6000)), 2, rng)
    counted = difference(before, world.counters())
    assert counted == {FAST: 100}, f"100 heads in two sends: {dict(counted)}"
    for cookie, pieces in ((300, 4), (300, 7), (300, 30), (7000, 3), (9000, 2), (20_000, 5), (40_000, 9)):
        with world.dial() as other:
            _piece_of_head(world, other, cookie, pieces, rng)
            assert world.get(other, "/length/5").status == 200


def _piece_of_head(world: World, wire: Wire, cookie: int, pieces: int, rng: random.Random) -> None:
    name = world.new_id()
    value = "".join(rng.choices("abcdefghijklmnop", k=cookie))
    wire.send(*cut(request("/echo", headers=[("x-id", name), ("Cookie", value)]), pieces, rng))
    answer = wire.answer()
    what = f"a cookie of {cookie} bytes in {pieces} sends"
    check_answer(answer, name, what)
    assert json.loads(answer.body)["headers"]["cookie"] == value, f"{what}: another cookie arrived"


def expect_continue(world: World) -> None:
    """A client that waits for 100 gets it before it sends the body."""
    world.warm()
    for path in ("/length/5", slow("/length/5")):
        wire = world.dial()
        name, body = world.new_id(), payload(2000)
        headers = [("x-id", name), ("Expect", "100-continue"), ("Content-Length", str(len(body)))]
        wire.send(request(path, method="POST", headers=headers))
        assert wire.exactly(12) == b"HTTP/1.1 100"
        assert wire.exactly(len(b" Continue\r\n\r\n")) == b" Continue\r\n\r\n"
        wire.send(body)
        check_answer(wire.answer(), name, path, body)
        assert world.get(wire, "/length/5").status == 200


def illegal_requests(world: World) -> None:
    """What Envoy refuses never reaches a backend, whatever is behind it."""
    refused = (
        _POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        _POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        _POST + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\nhello\r\n0\r\n\r\n",
        _POST + b"Content-Length: +5\r\n\r\nhello",
        _POST + b"Content-Length: 99999999999999999999\r\n\r\nhello",
        _POST + b"Transfer-Encoding: gzip\r\n\r\nhello",
        _GET + b"Bad : header\r\n\r\n",
        _GET + b"X: a\0b\r\n\r\n",
        b"GET /length/5 HTTP/1.1\r\n\r\n",
    )
    world.warm()
    for data in refused:
        for pieces in _behind(data):
            before = world.stats()["requests"]
            answer = _answer_or_end(world, pieces)
            assert answer is None or answer.status in (400, 404, 411, 501), f"{answer} for {data!r}"
            seen = world.stats()["requests"] - before
            assert seen == 0, f"the backend got {seen} requests of {data!r}"
    with world.dial() as wire:
        assert world.get(wire, "/length/5").status == 200


def odd_requests(world: World) -> None:
    """What Envoy may take or refuse is not for the kernel to judge."""
    odd = (
        _GET + _HOST + b"\r\n",
        _GET + b"X: a\r\n folded\r\n\r\n",
        _GET + b"X: a\rb\r\n\r\n",
        _GET.replace(b"\r\n", b"\n") + b"\n",
        b"GET  /length/5 HTTP/1.1\r\n" + _HOST + b"\r\n",
        b"GET http://details:9080/length/5 HTTP/1.1\r\n" + _HOST + b"\r\n",
        b"OPTIONS * HTTP/1.1\r\n" + _HOST + b"\r\n",
        b"\r\n" + _GET + b"\r\n",
        _GET + b"x-envoy-max-retries: 1\r\n\r\n",
        _GET + b"TE: trailers\r\n\r\n",
        _GET + b"Connection: close, x\r\n\r\n",
    )
    world.warm()
    before = world.counters()
    for data in odd:
        for pieces in _behind(data):
            _answer_or_end(world, pieces)
    counted = difference(before, world.counters())
    assert not counted[FAST], f"the kernel carried some of it: {dict(counted)}"


_HOST: Final = b"Host: details:9080\r\n"
_POST: Final = b"POST /length/5 HTTP/1.1\r\n" + _HOST
_GET: Final = b"GET /length/5 HTTP/1.1\r\n" + _HOST


def _behind(data: bytes) -> tuple[tuple[bytes, ...], ...]:
    """Alone in two sends, and with a good request behind it in one."""
    return (data[:30], data[30:]), (data + request("/length/5", headers=[("x-id", "smuggled")]),)


def _answer_or_end(world: World, pieces: tuple[bytes, ...]) -> Answer | None:
    """What Envoy answers; None: it ends the connection."""
    with world.dial(timeout=3.0) as wire:
        wire.send(*pieces)
        try:
            answer = wire.answer()
        except (Truncated, ConnectionError):
            return None
        except TimeoutError:
            raise AssertionError(f"no answer and no end for {pieces!r}") from None
    assert answer.by_envoy, f"{answer} for {pieces!r}"
    return answer


def _check_body(answer: Answer, size: int, what: str) -> None:
    expected = payload(size, answer.headers["x-id"])
    assert answer.body == expected, f"{what}: {len(answer.body)} bytes, not the {size} expected"


def upgraded_connection_is_untouched(world: World) -> None:
    """A request to upgrade goes to Envoy whole; a backend that does not upgrade answers as usual."""
    world.warm()
    wire, before = world.dial(), world.counters()
    headers = [("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Key", "x" * 22 + "==")]
    answer = wire.ask("/echo", headers=headers)
    assert answer.by_envoy, answer
    # Whichever of the two headers comes first.
    counted = difference(before, world.counters())
    assert counted["UPGRADE"] + counted["HOP_BY_HOP_HEADER"] == 1, counted


def chunked_answers_keep_their_connection(world: World) -> None:
    """However many chunks there are in one piece: the kernel carries the next request too, by the same connection."""
    wire = world.dial()
    world.warm(wire)
    before, accepted = world.counters(), world.stats()["accepted"]
    for path in ("/chunked/300000?piece=7000", "/chunked/20000?piece=1", "/chunked/300000?piece=100000") * 5:
        answer = world.get(wire, path)
        _check_body(answer, int(path.split("/")[2].partition("?")[0]), path)
    counted = difference(before, world.counters())
    assert counted == {FAST: 15}, dict(counted)
    assert world.stats()["accepted"] == accepted, "the backend's connection was not used again"
