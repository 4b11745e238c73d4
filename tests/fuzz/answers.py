"""The kernel's framer against a real Envoy as a client: where the framer sees a response end, Envoy must see it too.

A backend's connection is used for the next client once its response is complete.  So Envoy gets exactly the bytes that
are a whole response for the framer, on a connection that stays open, and must have the same body then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tests.fuzz.echo import Echo, Raw, decode_chunks
from tests.fuzz.reading import Reader

_DEADLINE: Final = 5.0
_TOGETHER: Final = 32
_END: Final = b"\r\n\r\n"
# Envoy writes it into the responses of backends alone.
_FROM_BACKEND: Final = b"x-envoy-upstream-service-time"


@dataclass(frozen=True, slots=True)
class Reply:
    """A response that is whole for the framer; `until_close`: with the end of its connection."""

    name: str
    data: bytes
    status: int
    until_close: bool
    to_head: bool


@dataclass(frozen=True, slots=True)
class Misread:
    """What Envoy makes of a response instead."""

    reply: Reply
    what: str

    def __str__(self) -> str:
        method = "HEAD" if self.reply.to_head else "GET"
        return f"{self.reply.name}: complete response to {method}, but {self.what}\n    {self.reply.data!r}"


def prepare_reply(reader: Reader, name: str, data: bytes, *, to_head: bool) -> Reply | None:
    """The case that some bytes make; None if they hold no whole response."""
    read = reader.response(data, to_head=to_head)
    if read.phase not in ("DONE", "UNTIL_CLOSE"):
        return None
    return Reply(name, data[: read.end], read.status, read.phase == "UNTIL_CLOSE", to_head)


def _fields(head: bytes) -> dict[bytes, bytes]:
    lines = (line.partition(b":") for line in head.split(b"\r\n")[1:])
    return {name.lower(): value.strip(b" \t") for name, _, value in lines}


def body_of(reply: Reply) -> bytes:
    """The body of the final response."""
    at = 0
    while True:
        end = reply.data.index(_END, at) + len(_END)
        head = reply.data[at : end - len(_END)]
        if head[9:10] != b"1":
            break
        at = end
    if reply.to_head or reply.status in (204, 304):
        return b""
    if b"transfer-encoding" in _fields(head):
        decoded = decode_chunks(reply.data, end)
        assert decoded is not None
        assert decoded[1] == len(reply.data)
        return decoded[0]
    return reply.data[end:]


class Answers:
    """Replies through the Envoy that listens on a port of 127.0.0.1 and has `echo` as its backend."""

    def __init__(self, port: int, echo: Echo) -> None:
        self._port = port
        self._echo = echo

    async def check(self, replies: Sequence[Reply]) -> list[Misread]:
        """All replies, several at a time."""
        limit = asyncio.Semaphore(_TOGETHER)

        async def one(number: int, reply: Reply) -> Misread | None:
            async with limit:
                return await self._one(number, reply)

        results = await asyncio.gather(*(one(number, reply) for number, reply in enumerate(replies)))
        return [result for result in results if result is not None]

    async def _one(self, number: int, reply: Reply) -> Misread | None:
        target = b"/raw-%d" % number
        self._echo.raw[target] = Raw(reply.data, reply.until_close)
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 18)
        try:
            method = b"HEAD" if reply.to_head else b"GET"
            writer.write(method + b" " + target + b" HTTP/1.1\r\nhost: a\r\n\r\n")
            async with asyncio.timeout(_DEADLINE):
                return await self._judge(reader, reply)
        except TimeoutError:
            return Misread(reply, "Envoy waits for more of it")
        except (asyncio.IncompleteReadError, ConnectionError):
            return Misread(reply, "Envoy breaks it off")
        finally:
            writer.transport.abort()
            del self._echo.raw[target]

    async def _judge(self, reader: asyncio.StreamReader, reply: Reply) -> Misread | None:
        while True:
            head = (await reader.readuntil(_END)).removesuffix(_END)
            if head[9:10] != b"1":
                break
        status, fields = int(head[9:12]), _fields(head)
        if _FROM_BACKEND not in fields:
            if reply.status == 204 and b"content-length" in _fields(reply.data.split(_END)[-2]):
                # Envoy takes only a length of "0" there, and not "00".
                return None
            return Misread(reply, f"Envoy answers {status} itself")
        if status != reply.status:
            return Misread(reply, f"Envoy reads its status as {status}, the framer as {reply.status}")
        wanted = body_of(reply)
        body = await self._body(reader, reply, fields)
        if body != wanted:
            return Misread(reply, f"Envoy reads a body of {len(body)} bytes, the framer one of {len(wanted)}")
        return None

    async def _body(self, reader: asyncio.StreamReader, reply: Reply, fields: dict[bytes, bytes]) -> bytes:
        """As Envoy wrote it."""
        if reply.to_head or reply.status in (204, 304):
            return b""
        if b"content-length" in fields:
            return await reader.readexactly(int(fields[b"content-length"]))
        if fields.get(b"transfer-encoding") != b"chunked":
            return await reader.read(-1)
        data = b""
        while (decoded := decode_chunks(data, 0)) is None:
            more = await reader.read(1 << 16)
            if not more:
                raise asyncio.IncompleteReadError(data, None)
            data += more
        return decoded[0]
