"""The keeper's framer: each message whole, byte by byte, and with trailing data."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.conftest import REPOSITORY
from xlb.keeper.framer import Flag, Framer, Phase


@dataclass(frozen=True)
class Start:
    """A state as the kernel leaves it; by default before the first byte."""

    phase: int = Phase.START
    flags: int = 0
    status: int = 0
    name: int = 0
    token: int = 0
    column: int = 0
    rest: int = 0


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


HEAD = b"HTTP/1.1 200 OK\r\n"
CODED = b"Transfer-Encoding: chunked\r\n\r\n"
COMPLETE = {
    "length": (HEAD + b"content-length: 5\r\n\r\nhello", Flag.LENGTH | Flag.HEAD),
    "length 0": (HEAD + b"content-length: 0\r\n\r\n", Flag.LENGTH | Flag.HEAD),
    "names of other length": (
        HEAD + b"content-lengthy: 9\r\ncontent-lengt: 9\r\nconnection-x: close\r\ncontent-length: 1\r\n\r\nx",
        Flag.LENGTH | Flag.HEAD,
    ),
    "blanks around the value": (HEAD + b"Content-Length: \t 5 \r\n\r\nhello", Flag.LENGTH | Flag.HEAD),
    "other headers": (
        HEAD + b"server: a\tb\r\nx-empty:\r\nContent-Type: text/html; charset=\xc3\xa4\r\ncontent-length: 2\r\n\r\nok",
        Flag.LENGTH | Flag.HEAD,
    ),
    "chunked": (HEAD + CODED + chunked(b"hello", b"w" * 300, b"\r\n0\r\n\r\n"), Flag.CHUNKED | Flag.HEAD),
    "no chunk": (HEAD + CODED + chunked(), Flag.CHUNKED | Flag.HEAD),
    "chunk extension": (HEAD + CODED + b'A;x="y"\r\n0123456789\r\n0 \r\n\r\n', Flag.CHUNKED | Flag.HEAD),
    "trailers": (HEAD + CODED + b"1\r\nx\r\n0\r\nx-sum: 1\r\ny: \r\n\r\n", Flag.CHUNKED | Flag.HEAD),
    "close": (
        HEAD + b"Connection: Foo, close\r\ncontent-length: 1\r\n\r\nx",
        Flag.LENGTH | Flag.HEAD | Flag.CLOSE,
    ),
    "close is part of a longer word": (
        HEAD + b"connection: closed, enclose, close x\r\ncontent-length: 1\r\n\r\nx",
        Flag.LENGTH | Flag.HEAD,
    ),
    "keep-alive": (
        b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 1\r\n\r\nx",
        Flag.LENGTH | Flag.HEAD | Flag.KEEP_ALIVE | Flag.HTTP10,
    ),
    "HTTP/1.0": (
        b"HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\nx",
        Flag.LENGTH | Flag.HEAD | Flag.HTTP10 | Flag.CLOSE,
    ),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n", Flag.HEAD),
    "304 with a length": (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n", Flag.LENGTH | Flag.HEAD),
    "100 before": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"
        + HEAD
        + b"content-length: 1\r\n\r\nx",
        Flag.LENGTH | Flag.HEAD,
    ),
    "no reason phrase": (b"HTTP/1.1 200\r\ncontent-length: 1\r\n\r\nx", Flag.LENGTH | Flag.HEAD),
    "empty reason phrase": (b"HTTP/1.1 200 \r\ncontent-length: 1\r\n\r\nx", Flag.LENGTH | Flag.HEAD),
}
BROKEN = {
    "other protocol": b"SSH-2.0-x\r\n",
    "HTTP/1.2": b"HTTP/1.2 200 OK\r\n",
    "status below 100": b"HTTP/1.1 099 x\r\n",
    "bare LF": b"HTTP/1.1 200 OK\n",
    "bare CR": HEAD + b"a: b\rc\r\n",
    "obs-fold": HEAD + b"a: b\r\n c\r\n",
    "blank before the colon": HEAD + b"content-length : 5\r\n",
    "no name": HEAD + b": x\r\n",
    "NUL in a value": HEAD + b"a: \0\r\n",
    "two lengths": HEAD + b"content-length: 1\r\ncontent-length: 1\r\n",
    "list of lengths": HEAD + b"content-length: 1, 1\r\n",
    "negative length": HEAD + b"content-length: -1\r\n",
    "no length": HEAD + b"content-length:\r\n",
    "huge length": HEAD + b"content-length: 99999999999999999999\r\n",
    "other coding": HEAD + b"transfer-encoding: gzip\r\n",
    "two codings": HEAD + b"transfer-encoding: gzip, chunked\r\n",
    "coding in part": HEAD + b"transfer-encoding: chunke\r\n",
    "coding twice": HEAD + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
    "coding and length": HEAD + b"content-length: 1\r\n" + CODED,
    "coding in HTTP/1.0": b"HTTP/1.0 200 OK\r\n" + CODED,
    "chunk without size": HEAD + CODED + b"\r\n",
    "size is no number": HEAD + CODED + b"x\r\n",
    "size too large": HEAD + CODED + b"f" * 16 + b"\r\n",
    "bare LF behind a size": HEAD + CODED + b"1\n",
    "no end of line behind a chunk": HEAD + CODED + b"1\r\nxy\r\n",
    "204 with a length": b"HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\n",
    "204 with a coding": b"HTTP/1.1 204 No Content\r\n" + CODED,
    "103 with a length": b"HTTP/1.1 103 Early Hints\r\ncontent-length: 5\r\n\r\n",
    "bad trailer": HEAD + CODED + b"0\r\nx y\r\n",
}


def feed(framer: Framer, data: bytes, size: int) -> int:
    """Feed pieces of a size until the framer takes no more.  :returns: bytes taken"""
    taken = 0
    while taken < len(data):
        step = framer.feed(memoryview(data)[taken : taken + size])
        taken += step
        if not step or framer.is_done or framer.is_broken:
            break
    return taken


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1 << 16])
@pytest.mark.parametrize("trailing", [b"", b"HTTP/1.1 200 OK\r\n"])
@pytest.mark.parametrize("name", COMPLETE)
def test_a_response_ends_where_it_ends(name: str, trailing: bytes, size: int) -> None:
    message, flags = COMPLETE[name]
    framer = Framer.of_response(Start(), to_head=False)
    assert feed(framer, message + trailing, size) == len(message)
    assert framer.is_done
    assert framer.flags == flags


@pytest.mark.parametrize("size", [1, 3, 1 << 16])
@pytest.mark.parametrize("name", BROKEN)
def test_what_could_be_read_in_two_ways_is_an_error(name: str, size: int) -> None:
    framer = Framer.of_response(Start(), to_head=False)
    feed(framer, BROKEN[name], size)
    assert framer.is_broken


@pytest.mark.parametrize("name", COMPLETE)
def test_it_goes_on_from_any_point(name: str) -> None:
    """As the kernel hands over: the state of one framer is where another one begins."""
    message, flags = COMPLETE[name]
    for cut in range(len(message)):
        first = Framer.of_response(Start(), to_head=False)
        assert first.feed(message[:cut]) == cut
        second = Framer.of_response(
            Start(first.phase, first.flags, first.status, first.name, first.token, first.column, first.rest),
            to_head=False,
        )
        assert second.feed(message[cut:]) == len(message) - cut
        assert second.is_done
        assert second.flags == flags


def test_the_response_to_head_has_no_body() -> None:
    framer = Framer.of_response(Start(), to_head=True)
    head = HEAD + b"content-length: 500\r\n\r\n"
    assert framer.feed(head + b"HTTP/1.1") == len(head)
    assert framer.is_done


def test_without_a_length_the_body_ends_with_the_connection() -> None:
    framer = Framer.of_response(Start(), to_head=False)
    message = HEAD + b"a: b\r\n\r\nanything" + bytes(1000)
    assert framer.feed(message) == len(message)
    assert framer.ends_with_connection
    assert not framer.is_done
    assert framer.flags & Flag.CLOSE


def test_a_tunnel_takes_everything() -> None:
    framer = Framer.of_response(Start(), to_head=False)
    message = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n\x00\x01"
    assert framer.feed(message) == len(message)
    assert framer.phase == Phase.TUNNEL


@pytest.mark.parametrize("size", [1, 5, 1 << 16])
def test_the_body_of_a_request(size: int) -> None:
    by_length = Framer.of_request(Start(Phase.BODY, rest=10))
    assert feed(by_length, b"0123456789GET / HTTP/1.1\r\n", size) == 10
    assert by_length.is_done
    body = chunked(b"x" * 40, b"y")
    in_chunks = Framer.of_request(Start(Phase.CHUNK_SIZE))
    assert feed(in_chunks, body + b"GET", size) == len(body)
    assert in_chunks.is_done


def test_the_middle_of_a_chunk() -> None:
    # 3 bytes of the chunk and its end of line are left.
    framer = Framer.of_request(Start(Phase.CHUNK, rest=5))
    rest = b"xyz\r\n" + chunked(b"1")
    assert framer.feed(rest) == len(rest)
    assert framer.is_done


def test_numbers_are_those_of_the_programs() -> None:
    text = (REPOSITORY / "bpf" / "include" / "xlb_types.h").read_text()
    for name, kind in (("xlb_phase", Phase), ("xlb_frame_flags", Flag)):
        words = text.partition(f"enum {name} {{")[2].partition("};")[0]
        for member in kind:
            assert f"_{member.name}" in words
    phases = text.partition("enum xlb_phase {")[2].partition("};")[0]
    names = [line.split(",")[0].split("=")[0].strip() for line in phases.splitlines() if "XLB_PHASE_" in line]
    assert names == [f"XLB_PHASE_{phase.name}" for phase in Phase]
