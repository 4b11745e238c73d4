"""A backend that does what HTTP/1.1 allows, and some of what it does not.

`python -m tests.e2e.backends NAME ADDRESS:PORT` runs it.

The first segment of the path says what to answer (`_KINDS`), the second how many bytes of body; the query refines it:

    split=N      written N bytes at a time, each with a write of its own (1: byte by byte)
    pause=MS     between those writes
    delay=MS     before the first byte
    rate=MB      megabytes a second of the request's body that are read
    trailers=1, extensions=1, piece=N     of chunked answers
    sent=N, reset=1                       of answers that break off

`/drop` closes all idle connections, as a server does after its keep-alive timeout; `/stats` tells what was seen.

Every final answer tells in headers whose it is and what was received: `x-pod`, `x-connection` (number of the accepted
connection), `x-request` (number on it), `x-id` (as sent), `x-length` and `x-sha256` of the request's body.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import socket
import sys
import urllib.parse
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Final

from tests.e2e.wire import chunked, payload

_LINE_LIMIT: Final = 1 << 20
_RECEIVE_BUFFER: Final = 1 << 16  # small, so that a slow reader pushes back
_BLOCK: Final = 1 << 16


@dataclass(slots=True)
class Stats:
    """What a backend has seen since it started, connections that ask only for this left out."""

    accepted: int = 0
    open: int = 0
    requests: int = 0
    broken: int = 0  # connections that ended within a request or while its answer was written


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, its body read."""

    method: str
    target: str
    headers: Mapping[str, str]
    length: int
    sha256: str
    connection: int
    number: int
    options: Mapping[str, int] = field(default_factory=dict)

    @property
    def words(self) -> list[str]:
        return self.target.partition("?")[0].strip("/").split("/")

    @property
    def size(self) -> int:
        return int(self.words[1]) if len(self.words) > 1 else 0

    @property
    def seed(self) -> str:
        """Of the answer's body."""
        return self.headers.get("x-id", "")


class Talk:
    """Answering one request: writes as the query asks for."""

    def __init__(self, pod: str, asked: Asked, writer: asyncio.StreamWriter) -> None:
        self.asked = asked
        self._pod = pod
        self._writer = writer

    async def write(self, data: bytes) -> None:
        step = self.asked.options.get("split", 0) or max(len(data), 1)
        pause = self.asked.options.get("pause", 0) / 1000
        for at in range(0, len(data), step):
            self._writer.write(data[at : at + step])
            if pause:
                await asyncio.sleep(pause)
            # Not more than a block ahead of the socket: `drain` returns at once below the high-water mark.
            await self._writer.drain()

    def head(self, status: str, *lines: str, version: str = "HTTP/1.1") -> bytes:
        asked = self.asked
        told = (
            f"x-pod: {self._pod}",
            f"x-connection: {asked.connection}",
            f"x-request: {asked.number}",
            f"x-id: {asked.headers.get('x-id', '')}",
            f"x-length: {asked.length}",
            f"x-sha256: {asked.sha256}",
        )
        return "\r\n".join((f"{version} {status}", *told, *lines, "", "")).encode()

    def body(self) -> bytes:
        return payload(self.asked.size, self.asked.seed)

    async def whole(self, head: bytes, body: bytes) -> None:
        """Head and body in one write, unless asked otherwise."""
        await self.write(head + (b"" if self.asked.method == "HEAD" else body))

    def abort(self) -> None:
        """End with a RST."""
        raw = self._writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self._writer.transport.abort()


Kind = Callable[[Talk], Awaitable[bool]]
"""Answers a request; returns whether the connection stays open."""


async def _length(talk: Talk) -> bool:
    body = talk.body()
    await talk.whole(talk.head("200 OK", f"content-length: {len(body)}"), body)
    return True


async def _echo(talk: Talk) -> bool:
    asked = talk.asked
    told = {"method": asked.method, "target": asked.target, "headers": dict(asked.headers)}
    body = json.dumps(told).encode() + b"\n"
    await talk.whole(talk.head("200 OK", "content-type: application/json", f"content-length: {len(body)}"), body)
    return True


async def _chunked(talk: Talk) -> bool:
    options = talk.asked.options
    extension = ';name="a;b";x' if options.get("extensions") else ""
    trailers = ("x-trailer: end", "x-more: 2") if options.get("trailers") else ()
    body = chunked(talk.body(), [options.get("piece", 1000), 1], extension=extension, trailers=trailers)
    await talk.whole(talk.head("200 OK", "transfer-encoding: chunked"), body)
    return True


async def _eof(talk: Talk) -> bool:
    await talk.whole(talk.head("200 OK", "connection: close"), talk.body())
    return False


async def _silent_eof(talk: Talk) -> bool:
    """Ends with the connection and does not say so."""
    await talk.whole(talk.head("200 OK"), talk.body())
    return False


async def _http10(talk: Talk) -> bool:
    body = talk.body()
    await talk.whole(talk.head("200 OK", f"content-length: {len(body)}", version="HTTP/1.0"), body)
    return False


async def _last(talk: Talk) -> bool:
    body = talk.body()
    await talk.whole(talk.head("200 OK", "Connection: Close", f"content-length: {len(body)}"), body)
    return False


async def _status(talk: Talk) -> bool:
    status = talk.asked.words[1]
    if status == "204":
        await talk.write(talk.head("204 No Content"))
    elif status == "304":
        await talk.write(talk.head("304 Not Modified", "content-length: 1234"))  # of what it would have been
    else:
        await talk.whole(talk.head(f"{status} As Asked", "content-length: 3"), b"no\n")
    return True


async def _interim(talk: Talk) -> bool:
    await talk.write(b"HTTP/1.1 103 Early Hints\r\nlink: </style.css>; rel=preload\r\n\r\n")
    return await _length(talk)


async def _none(talk: Talk) -> bool:
    if talk.asked.options.get("reset"):
        talk.abort()
    return False


async def _part(talk: Talk) -> bool:
    options = talk.asked.options
    head = talk.head("200 OK", f"content-length: {talk.asked.size}")
    await talk.write(head + talk.body()[: options.get("sent", 0)])
    if options.get("reset"):
        await asyncio.sleep(0.05)  # a RST overtakes what has been written
        talk.abort()
    return False


async def _part_chunked(talk: Talk) -> bool:
    await talk.write(talk.head("200 OK", "transfer-encoding: chunked") + b"5\r\nhello\r\n40\r\nonly some")
    return False


async def _extra(talk: Talk) -> bool:
    body = talk.body()
    unasked = talk.head("200 OK", "content-length: 6") + b"stolen"
    await talk.write(talk.head("200 OK", f"content-length: {len(body)}") + body + unasked)
    return True


async def _malformed(talk: Talk) -> bool:
    await talk.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!")
    return True


_KINDS: Final[Mapping[str, Kind]] = MappingProxyType(
    {
        "length": _length,
        "details": _length,
        "reviews": _length,
        "ratings": _length,
        "echo": _echo,
        "chunked": _chunked,
        "eof": _eof,
        "silent-eof": _silent_eof,
        "http10": _http10,
        "last": _last,
        "status": _status,
        "interim": _interim,
        "none": _none,
        "part": _part,
        "part-chunked": _part_chunked,
        "extra": _extra,
        "malformed": _malformed,
    }
)


class Backend:
    """Serves connections of one address."""

    def __init__(self, pod: str) -> None:
        self._pod = pod
        self._idle: set[asyncio.StreamWriter] = set()
        self.stats = Stats()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        stats = self.stats
        stats.accepted += 1
        stats.open += 1
        connection = stats.accepted
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        number, within = 0, False
        try:
            self._idle.add(writer)
            while head := await _head(reader):
                self._idle.discard(writer)
                within, number = True, number + 1
                if not await self._one(reader, writer, head, connection, number):
                    break
                within = False
                self._idle.add(writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            within = True
        finally:
            self._idle.discard(writer)
            stats.open -= 1
            stats.broken += within and writer.transport.is_closing()
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _one(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes, connection: int, number: int
    ) -> bool:
        first, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        query = urllib.parse.parse_qs(target.partition("?")[2])
        options = {name: int(values[0]) for name, values in query.items() if values[0].isdecimal()}
        early = target.startswith("/early")
        length, sha256 = 0, ""
        if not early:
            if headers.get("expect") == "100-continue":
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            length, sha256 = await _body(reader, headers, options.get("rate", 0) * 1_000_000)
        self.stats.requests += 1  # the whole of it is here
        asked = Asked(method, target, headers, length, sha256, connection, number, options)
        talk = Talk(self._pod, asked, writer)
        if "delay" in options:
            await asyncio.sleep(options["delay"] / 1000)
        if early:
            await talk.write(talk.head("413 Content Too Large", "connection: close", "content-length: 4") + b"much")
            return False
        if asked.words[0] == "stats":
            stats = self.stats
            stats.accepted, stats.requests = stats.accepted - 1, stats.requests - 1
            body = json.dumps(asdict(stats) | {"open": stats.open - 1}).encode()
            await talk.write(talk.head("200 OK", f"content-length: {len(body)}") + body)
            return False
        if asked.words[0] == "drop":
            dropped = tuple(self._idle)
            for idle in dropped:
                idle.close()
            # The sockets are closed by the time this is answered.
            await asyncio.gather(*(idle.wait_closed() for idle in dropped), return_exceptions=True)
            await talk.write(talk.head("200 OK", "content-length: 0"))
            self.stats.accepted, self.stats.requests = self.stats.accepted - 1, self.stats.requests - 1
            return False
        kind = _KINDS.get(asked.words[0])
        if kind is None:
            await talk.whole(talk.head("404 Not Found", "content-length: 3"), b"no\n")
            return True
        stays = await kind(talk)
        return stays and headers.get("connection", "").lower() != "close"


async def _head(reader: asyncio.StreamReader) -> bytes:
    """Up to and without the empty line; nothing at the end of the connection."""
    try:
        return (await reader.readuntil(b"\r\n\r\n"))[:-4]
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return b""


async def _body(reader: asyncio.StreamReader, headers: Mapping[str, str], rate: int) -> tuple[int, str]:
    """Read a request's body, at most `rate` bytes a second (0: no limit): its length and sha256."""
    hashed, length = hashlib.sha256(), 0
    begun = asyncio.get_running_loop().time()

    async def take(size: int) -> None:
        nonlocal length
        left = size
        while left:
            piece = await reader.read(min(left, _BLOCK))
            if not piece:
                raise asyncio.IncompleteReadError(b"", left)
            hashed.update(piece)
            left -= len(piece)
            length += len(piece)
            if rate:
                ahead = begun + length / rate - asyncio.get_running_loop().time()
                if ahead > 0:
                    await asyncio.sleep(ahead)

    if headers.get("transfer-encoding", "").lower() == "chunked":
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            await take(size)
            await reader.readexactly(2)
        while await reader.readuntil(b"\r\n") != b"\r\n":
            pass
    else:
        await take(int(headers.get("content-length", "0")))
    return length, hashed.hexdigest()


async def _run(pod: str, listen: str) -> None:
    address, _, port = listen.rpartition(":")
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        listener.bind((address, int(port)))
        backend = Backend(pod)
        server = await asyncio.start_server(backend.serve, sock=listener, limit=_LINE_LIMIT, backlog=4096)
        await server.serve_forever()


def main(arguments: list[str]) -> int:
    """See the module's docstring."""
    pod, listen = arguments
    asyncio.run(_run(pod, listen))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
