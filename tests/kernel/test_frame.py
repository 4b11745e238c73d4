"""Where the kernel's framer sees messages end: whole, byte by byte, cut anywhere, with more behind them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kernel.programs import Frame, Programs


@pytest.fixture(scope="module")
def programs() -> Iterator[Programs]:
    with Programs() as loaded:
        yield loaded


@dataclass(frozen=True, slots=True)
class Case:
    """A message and where the framer must be after it; `to_head`: it answers a HEAD request."""

    data: bytes
    phase: str
    flags: frozenset[str] = frozenset()
    status: int = 200
    rest: int = 0
    to_head: bool = False


OK = b"HTTP/1.1 200 OK\r\n"


def done(data: bytes, *flags: str, status: int = 200, to_head: bool = False) -> Case:
    return Case(data, "DONE", frozenset({"HEAD", *flags}), status, to_head=to_head)


COMPLETE = (
    done(OK + b"Content-Length: 5\r\n\r\nhello", "LENGTH"),
    done(OK + b"content-length:5\r\n\r\nhello", "LENGTH"),
    done(OK + b"CONTENT-LENGTH: \t5 \t\r\nx: y\r\n\r\nhello", "LENGTH"),
    done(OK + b"content-length: 0\r\n\r\n", "LENGTH"),
    done(OK + b"content-length: 0005\r\n\r\nhello", "LENGTH"),
    done(b"HTTP/1.1 200\r\ncontent-length: 0\r\n\r\n", "LENGTH"),
    done(b"HTTP/1.1 200 \r\ncontent-length: 0\r\n\r\n", "LENGTH"),
    done(b"HTTP/1.1 404 Not\tF\xf6und\r\ncontent-length: 1\r\n\r\nx", "LENGTH", status=404),
    done(OK + b"content-length: 1\r\nconnection: close\r\n\r\nx", "LENGTH", "CLOSE"),
    done(OK + b"content-length: 1\r\nConnection: Keep-Alive\r\n\r\nx", "LENGTH", "KEEP_ALIVE"),
    done(OK + b"content-length: 1\r\nConnection:keep-alive , close,x\r\n\r\nx", "LENGTH", "CLOSE", "KEEP_ALIVE"),
    done(OK + b"content-length: 1\r\nConnection: ,, close \t\r\n\r\nx", "LENGTH", "CLOSE"),
    done(OK + b"content-length: 1\r\nConnection: closed, xclose, clos, clo se, close x\r\n\r\nx", "LENGTH"),
    done(OK + b"content-length: 1\r\nConnection: keep-alive-not, keep-aliv, keep-alive x\r\n\r\nx", "LENGTH"),
    done(OK + b"content-length: 1\r\nConnectionx: close\r\nx-connection: close\r\n\r\nx", "LENGTH"),
    done(OK + b"content-length: 1\r\nconnection: \r\n\r\nx", "LENGTH"),
    done(OK + b"content-length: 1\r\nconnection: x\r\nconnection: close\r\n\r\nx", "LENGTH", "CLOSE"),
    done(OK + b"content-lengthx: 7\r\ncontent-lengt: 7\r\ncontent-length: 1\r\n\r\nx", "LENGTH"),
    done(OK + b"a:\r\nb: \r\nc" + b"d" * 100 + b": \t" + b"e\t" * 200 + b"\r\ncontent-length: 1\r\n\r\nx", "LENGTH"),
    done(OK + b"!#$%&'*+-.^_`|~09azAZ: \xff\x80\r\ncontent-length: 1\r\n\r\nx", "LENGTH"),
    done(OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "CHUNKED"),
    done(OK + b"transfer-encoding:\tCHUNKED\t\r\n\r\n3\r\nabc\r\n0\r\n\r\n", "CHUNKED"),
    done(OK + b"transfer-encoding: chunked\r\n\r\n0a\r\n0123456789\r\n0000\r\n\r\n", "CHUNKED"),
    done(OK + b'transfer-encoding: chunked\r\n\r\n1;a=b;c="d\t"\r\nx\r\n1 ;y\r\nz\r\n0;e\r\n\r\n', "CHUNKED"),
    done(OK + b"transfer-encoding: chunked\r\n\r\n1 \r\nx\r\nAf\r\n" + b"\r" * 0xAF + b"\r\n0\t\r\n\r\n", "CHUNKED"),
    done(OK + b"transfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\na: b\r\nc:\td\xff\r\n\r\n", "CHUNKED"),
    done(OK + b"transfer-encoding: chunked\r\n\r\n4\r\n\r\n\r\n\r\n0\r\n\r\n", "CHUNKED"),
    done(b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"content-length: 1\r\n\r\nx", "LENGTH"),
    done(
        b"HTTP/1.1 103 Early Hints\r\nlink: x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        b"HTTP/1.1 100\r\n\r\n" + OK + b"content-length: 1\r\n\r\nx",
        "LENGTH",
    ),
    done(b"HTTP/1.1 204 No Content\r\n\r\n", status=204),
    done(b"HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n", "LENGTH", status=204),
    done(b"HTTP/1.1 304 Not Modified\r\ncontent-length: 7\r\n\r\n", "LENGTH", status=304),
    done(b"HTTP/1.1 304 Not Modified\r\ntransfer-encoding: chunked\r\n\r\n", "CHUNKED", status=304),
    done(OK + b"content-length: 7\r\n\r\n", "LENGTH", to_head=True),
    done(OK + b"transfer-encoding: chunked\r\n\r\n", "CHUNKED", to_head=True),
    done(OK + b"\r\n", to_head=True),
    done(b"HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\nx", "LENGTH", "HTTP10", "CLOSE"),
    done(b"HTTP/1.0 200 OK\r\ncontent-length: 1\r\nconnection: keep-alive\r\n\r\nx", "LENGTH", "HTTP10", "KEEP_ALIVE"),
    done(
        b"HTTP/1.0 200 OK\r\ncontent-length: 1\r\nconnection: keep-alive, close\r\n\r\nx",
        *("LENGTH", "HTTP10", "KEEP_ALIVE", "CLOSE"),
    ),
    done(b"HTTP/1.1 999 ?\r\ncontent-length: 0\r\n\r\n", "LENGTH", status=999),
)

# What ends elsewhere than with a last byte of its own.
OPEN = (
    Case(OK + b"\r\n", "UNTIL_CLOSE", frozenset({"HEAD", "CLOSE"})),
    Case(OK + b"connection: keep-alive\r\n\r\nabc", "UNTIL_CLOSE", frozenset({"HEAD", "CLOSE", "KEEP_ALIVE"})),
    Case(b"HTTP/1.0 404 x\r\n\r\nabc", "UNTIL_CLOSE", frozenset({"HEAD", "CLOSE", "HTTP10"}), 404),
    Case(OK + b"content-length: 10\r\n\r\n", "BODY", frozenset({"HEAD", "LENGTH"}), rest=10),
    Case(OK + b"content-length: 10\r\n\r\nabc", "BODY", frozenset({"HEAD", "LENGTH"}), rest=7),
    Case(
        OK + b"content-length: 4611686018427387904\r\n\r\n",
        *("BODY", frozenset({"HEAD", "LENGTH"})),
        rest=2**62,
    ),
    Case(OK + b"transfer-encoding: chunked\r\n\r\n", "CHUNK_SIZE", frozenset({"HEAD", "CHUNKED"})),
    Case(OK + b"transfer-encoding: chunked\r\n\r\na\r\nbcd", "CHUNK", frozenset({"HEAD", "CHUNKED"}), rest=9),
    Case(OK + b"transfer-encoding: chunked\r\n\r\n1\r\nx", "CHUNK", frozenset({"HEAD", "CHUNKED"}), rest=2),
    Case(OK + b"transfer-encoding: chunked\r\n\r\n0\r\n", "TRAILER", frozenset({"HEAD", "CHUNKED"})),
    Case(b"HTTP/1.1 100 Continue\r\n\r\n", "START", status=0),
)

ERRORS: tuple[bytes, ...] = (
    *(b"\r\n" + OK, b"x", b"http/1.1 200 OK\r\n", b"HTTP/1.2 200 OK\r\n", b"HTTP/2.0 200\r\n", b"HTTP/1.1  200 OK\r\n"),
    *(b"HTTP/1.1 20 OK\r\n", b"HTTP/1.1 2000 OK\r\n", b"HTTP/1.1 099 OK\r\n", b"HTTP/1.1 2x0 OK\r\n", b"HTTP/1.1\r\n"),
    *(b"HTTP/1.1 200 OK\n", b"HTTP/1.1 200 O\rK\r\n", b"HTTP/1.1 200 O\0K\r\n", b"HTTP/1.1 200\n", b"HTTP/1.1 200\rx"),
    *(
        OK + lines
        for lines in (
            *(b" x: y\r\n", b"x : y\r\n", b": y\r\n", b"x\r\n", b"x: y\n", b"x: y\rz\r\n", b"x: y\r\n z\r\n", b"\n"),
            *(b"x: \0\r\n", b"x: \x7f\r\n", b"(: y\r\n", b"x\xff: y\r\n", b"x: y\r\r", b"\rx", b"x" * 99 + b" : y\r\n"),
            *(b"content-length : 5\r\n", b"content-length\t: 5\r\n", b"\tcontent-length: 5\r\n"),
            *(b"content-length: \r\n", b"content-length:\r\n", b"content-length: x\r\n", b"content-length: -1\r\n"),
            *(b"content-length: 1 1\r\n", b"content-length: 1,1\r\n", b"content-length: +1\r\n"),
            *(b"content-length: 0x1\r\n", b"content-length: 1\n", b"content-length: 1\rx", b"content-length: 1\0"),
            *(b"content-length: 4611686018427387905\r\n", b"content-length: 99999999999999999999\r\n"),
            b"content-length: 5\r\ncontent-length: 5\r\n",
            b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
            b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n",
            b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
            *(b"transfer-encoding: gzip\r\n", b"transfer-encoding: chunked, chunked\r\n", b"transfer-encoding: \r\n"),
            *(
                b"transfer-encoding: gzip, chunked\r\n",
                b"transfer-encoding: chunke\r\n",
                b"transfer-encoding: chunkedx\r\n",
            ),
            *(
                b"transfer-encoding: c hunked\r\n",
                b"transfer-encoding: identity\r\n",
                b"transfer-encoding: chunked \r\r",
            ),
            # CR is '-' but for one bit.
            *(b"content\rlength: 5\r\n", b"transfer\rencoding: chunked\r\n", b"connection: keep\ralive\r\n"),
            *(b"connection: close\n", b"connection: clo\0se\r\n", b"connection: close\rx"),
        )
    ),
    b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\ncontent-length: 7\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\ntransfer-encoding: chunked\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\ncontent-length: 7\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\ntransfer-encoding: chunked\r\n\r\n",
    b"HTTP/1.1 101 x\r\ncontent-length: 7\r\n\r\n",
    *(
        OK + b"transfer-encoding: chunked\r\n\r\n" + body
        for body in (
            *(
                b"\r\n",
                b"x\r\n",
                b" 1\r\nx\r\n",
                b"1\nx\r\n",
                b"1\r\nxy",
                b"1\r\nx\n",
                b"1\r\nx\ry",
                b"1\rx",
                b"-1\r\n",
            ),
            *(b"0x1\r\n", b"1;a\nb\r\n", b"1;a\rb\r\n", b"1;\0\r\n", b"1 2\r\n", b"g\r\n", b";a\r\n", b"1,\r\n"),
            *(b"ffffffffffffffff\r\n", b"10000000000000000\r\n", b"8000000000000000\r\n", b"5000000000000000\r\n"),
            *(b"0" * 17 + b"\r\n", b"0\r\n\n", b"0\r\nx\r\n\r\n", b"0\r\n: x\r\n", b"0\r\nx : y\r\n", b"0\r\nx: y\n"),
            *(b"0\r\nx: y\r\n z\r\n", b"0\r\n\rx", b"0\n\r\n", b"0\r\nx: \0", b"0\r\nx: y\rz"),
        )
    ),
)


def feed_all(programs: Programs, pieces: Sequence[bytes], to_head: bool = False) -> tuple[int, Frame]:
    """Bytes taken in all, and where the framer is after them."""
    taken = 0
    for piece in pieces:
        if not piece:
            continue
        count = programs.feed(piece, to_head=to_head)
        taken += count
        if count < len(piece):
            break
    return taken, programs.frame()


def ways(data: bytes) -> Iterator[list[bytes]]:
    """The same bytes in different pieces."""
    yield [data]
    yield [data[i : i + 1] for i in range(len(data))]
    yield [data[i : i + 7] for i in range(0, len(data), 7)]
    for cut in range(1, len(data)):
        yield [data[:cut], data[cut:]]


@pytest.mark.parametrize("case", COMPLETE)
def test_complete_responses(programs: Programs, case: Case) -> None:
    for pieces in ways(case.data):
        programs.begin_response()
        taken, frame = feed_all(programs, pieces, case.to_head)
        assert taken == len(case.data)
        assert (frame.phase, frame.flags, frame.status) == (case.phase, case.flags, case.status)
    for trailing in (b"x", b"\r\n", OK + b"\r\n", b"z" * 8000):
        programs.begin_response()
        assert feed_all(programs, [case.data + trailing], case.to_head)[0] == len(case.data)
        assert programs.frame().phase == "DONE"
        # Nothing is taken once a message is complete.
        assert programs.feed(trailing) == 0
        assert programs.skip(5) == 0


@pytest.mark.parametrize("case", OPEN)
def test_responses_that_go_on(programs: Programs, case: Case) -> None:
    for pieces in ways(case.data):
        programs.begin_response()
        assert feed_all(programs, pieces) == (
            len(case.data),
            Frame(case.phase, case.flags, case.status, case.rest),
        )


@pytest.mark.parametrize("data", ERRORS)
def test_errors(programs: Programs, data: bytes) -> None:
    for pieces in ways(data):
        programs.begin_response()
        assert feed_all(programs, pieces)[1].phase == "ERROR"
    programs.begin_response()
    taken, _ = feed_all(programs, [data + b"\r\n" + OK])
    assert taken <= len(data) + 2
    assert programs.feed(OK) == 0


def test_a_tunnel(programs: Programs) -> None:
    head = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n"
    for pieces in ways(head):
        programs.begin_response()
        taken, frame = feed_all(programs, [*pieces, b"any\0thing"])
        assert (taken, frame.phase, frame.status) == (len(head), "TUNNEL", 101)
    assert programs.skip(2**40) == 2**40


def test_bodies_are_skipped(programs: Programs) -> None:
    programs.begin_response()
    programs.feed(OK + b"content-length: 1000\r\n\r\nabc")
    assert programs.skip(500) == 500
    assert programs.frame().rest == 497
    assert programs.skip(10**12) == 497
    assert programs.frame().phase == "DONE"
    programs.begin_response()
    programs.feed(OK + b"transfer-encoding: chunked\r\n\r\n3e8\r\nabc")
    assert programs.skip(10**12) == 997
    # The end of the chunk must be looked at.
    assert programs.skip(10**12) == 0
    assert programs.feed(b"\r\n") == 2
    assert programs.frame().phase == "CHUNK_SIZE"
    assert programs.skip(5) == 0
    assert programs.feed(b"0\r\n\r\nHTTP") == 5
    assert programs.frame().phase == "DONE"
    programs.begin_response()
    programs.feed(OK + b"\r\n")
    assert programs.skip(10**12) == 10**12
    assert programs.frame().phase == "UNTIL_CLOSE"


def test_request_bodies(programs: Programs) -> None:
    programs.begin_body(5)
    assert programs.feed(b"hel", response=False) == 3
    assert programs.feed(b"loGET", response=False) == 2
    assert programs.frame().phase == "DONE"
    for body in (b"0\r\n\r\n", b"5\r\nhello\r\n0\r\n\r\n", b"1;a\r\nx\r\n2\r\nyz\r\n0\r\nt: u\r\n\r\n"):
        for pieces in ways(body):
            programs.begin_body(None)
            assert feed_all(programs, pieces)[0] == len(body)
            assert programs.frame().phase == "DONE"
        programs.begin_body(None)
        assert programs.feed(body + b"GET / HTTP/1.1\r\n", response=False) == len(body)


@pytest.mark.parametrize("size", [8190, 8191, 8192])
def test_pieces_as_large_as_the_buffer(programs: Programs, size: int) -> None:
    head = OK + b"x: "
    programs.begin_response()
    piece = head + b"y" * (size - len(head))
    assert programs.feed(piece) == size
    assert programs.feed(b"\r\ncontent-length: 1\r\n\r\nz") == 24
    assert programs.frame().phase == "DONE"
    programs.begin_response()
    programs.feed(OK + b"transfer-encoding: chunked\r\n\r\n")
    chunk = f"{size - 6:x}\r\n".encode()
    assert programs.feed(chunk.ljust(size, b"x")) == size
    assert programs.frame().rest == size - 6 + 2 - (size - len(chunk))


# ---- random messages and cuts

HEADERS = st.lists(
    st.sampled_from(
        (
            *(b"server: nginx", b"Connection: close", b"connection: keep-alive", b"x:y", b"content-type: text/html"),
            *(b"set-cookie: " + b"c" * 70, b"transfer-encodin: x", b"content-lengt: 9", b"x-a: \t", b"date: a, b"),
        )
    ),
    max_size=6,
)
CHUNKS = st.lists(st.binary(min_size=1, max_size=40), max_size=5)


@st.composite
def responses(draw: st.DrawFn) -> tuple[bytes, int]:
    """A complete response and its status."""
    status = draw(st.sampled_from((200, 304, 404, 500)))
    lines = draw(HEADERS)
    body = b""
    if draw(st.booleans()):
        content = draw(st.binary(max_size=60))
        lines.insert(draw(st.integers(0, len(lines))), b"Content-Length: %d" % len(content))
        body = content
    else:
        lines.insert(draw(st.integers(0, len(lines))), b"Transfer-Encoding: chunked")
        extension = draw(st.sampled_from((b"", b";a=b", b" ")))
        for chunk in draw(CHUNKS):
            body += b"%x%s\r\n%s\r\n" % (len(chunk), extension, chunk)
        body += b"0\r\n" + draw(st.sampled_from((b"", b"t: u\r\n"))) + b"\r\n"
    if status == 304:
        body = b""
    interim = draw(st.sampled_from((b"", b"", b"HTTP/1.1 100 Continue\r\n\r\n")))
    head = b"HTTP/1.1 %d Reason\r\n" % status + b"".join(line + b"\r\n" for line in lines) + b"\r\n"
    return interim + head + body, status


@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(response=responses(), cuts=st.lists(st.integers(0, 400), max_size=6), trailing=st.sampled_from((b"", b"HTTP")))
def test_random_responses(programs: Programs, response: tuple[bytes, int], cuts: list[int], trailing: bytes) -> None:
    data, status = response
    stream = data + trailing
    at = sorted({cut % len(stream) for cut in cuts} | {0})
    pieces = [stream[start:end] for start, end in zip(at, [*at[1:], len(stream)], strict=True)]
    programs.begin_response()
    taken, frame = feed_all(programs, pieces)
    assert (taken, frame.phase, frame.status) == (len(data), "DONE", status)


@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(
    response=responses(),
    position=st.integers(0, 400),
    byte=st.sampled_from((0, 9, 10, 13, 32, 44, 58, 59, 127)) | st.integers(0, 255),
    cuts=st.lists(st.integers(0, 400), max_size=6),
)
def test_damaged_responses_are_read_alike_in_any_pieces(
    programs: Programs, response: tuple[bytes, int], position: int, byte: int, cuts: list[int]
) -> None:
    data = bytearray(response[0])
    data[position % len(data)] = byte
    whole = bytes(data)
    programs.begin_response()
    expected = feed_all(programs, [whole])
    programs.begin_response()
    assert feed_all(programs, [whole[i : i + 1] for i in range(len(whole))]) == expected
    at = sorted({cut % len(whole) for cut in cuts} | {0})
    programs.begin_response()
    assert feed_all(programs, [whole[a:b] for a, b in zip(at, [*at[1:], len(whole)], strict=True)]) == expected


def test_speed(programs: Programs, capsys: pytest.CaptureFixture[str]) -> None:
    """Printed, not judged."""
    head = OK + b"server: nginx\r\ndate: Mon, 01 Jan 2024 00:00:00 GMT\r\ncontent-type: text/html\r\n"
    length = programs.frame_ns(head + b"content-length: 12\r\nconnection: keep-alive\r\n\r\nhello world!")
    chunked = programs.frame_ns(head + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n7\r\n world!\r\n0\r\n\r\n")
    with capsys.disabled():
        print(f"\nresponse with content-length: {length:.0f} ns, with chunks: {chunked:.0f} ns")
