"""A backend that tells the bytes of each request it got: Envoy's own writing, so this reader can be plain.

To /raw-N it answers whatever bytes it was given.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from dataclasses import dataclass
from typing import Final

SEEN: Final = b"x-seen"
_END: Final = b"\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Seen:
    """A request as the backend got it; names in lower case, each with its values in order."""

    method: bytes
    target: bytes
    host: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body_len: int
    body_hash: bytes


def body_hash(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest().encode()


def decode_head(head: bytes) -> tuple[bytes, bytes, tuple[tuple[bytes, bytes], ...]]:
    """Method, target and header lines of a well-formed head."""
    first, *lines = head.removesuffix(_END).split(b"\r\n")
    method, target, _ = first.split(b" ")
    headers = []
    for line in lines:
        name, _, value = line.partition(b":")
        headers.append((name.lower(), value.strip(b" \t")))
    return method, target, tuple(headers)


def encode(head: bytes, body: bytes) -> bytes:
    """The value of SEEN."""
    return b"%s,%d,%s" % (base64.b64encode(head), len(body), body_hash(body))


def decode(value: bytes) -> Seen:
    """What `encode` has written."""
    head, length, hashed = value.split(b",")
    method, target, headers = decode_head(base64.b64decode(head))
    host = b"\n".join(value for name, value in headers if name == b"host")
    others = tuple(header for header in headers if header[0] != b"host")
    return Seen(method, target, host, others, int(length), hashed)


def decode_chunks(data: bytes | bytearray, at: int) -> tuple[bytes, int] | None:
    """A chunked body that begins at an offset, and the offset behind it; None if it goes on."""
    body = bytearray()
    while True:
        line = data.find(b"\r\n", at)
        if line < 0:
            return None
        size = int(bytes(data[at:line]).partition(b";")[0].strip(b" \t"), 16)
        if size == 0:
            break
        if len(data) < line + 4 + size:
            return None
        body += data[line + 2 : line + 2 + size]
        at = line + 4 + size
    at = line + 2
    while True:
        line = data.find(b"\r\n", at)
        if line < 0:
            return None
        if line == at:
            return bytes(body), at + 2
        at = line + 2


@dataclass(frozen=True, slots=True)
class Raw:
    """Bytes to answer, and whether the connection ends with them."""

    data: bytes
    close: bool


class EchoProtocol(asyncio.Protocol):
    """One connection from Envoy."""

    def __init__(self, echo: Echo) -> None:
        self._echo = echo
        self._data = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        while self._data and self._one():
            pass

    def _one(self) -> bool:
        end = self._data.find(_END)
        if end < 0:
            return False
        end += len(_END)
        head = bytes(self._data[:end])
        _, target, headers = decode_head(head)
        fields = dict(headers)
        if fields.get(b"transfer-encoding") == b"chunked":
            decoded = decode_chunks(self._data, end)
            if decoded is None:
                self._echo.begun(head)
                return False
            body, end = decoded
        else:
            length = int(fields.get(b"content-length", b"0"))
            if len(self._data) < end + length:
                self._echo.begun(head)
                return False
            body = bytes(self._data[end : end + length])
            end += length
        del self._data[:end]
        assert self._transport is not None
        raw = self._echo.raw.get(target)
        if raw is None:
            seen = b"HTTP/1.1 200 OK\r\n%s: %s\r\ncontent-length: 0\r\n\r\n" % (SEEN, encode(head, body))
            self._transport.write(seen)
            return True
        self._transport.write(raw.data)
        if raw.close:
            self._transport.close()
        return not raw.close


class Echo:
    """The listening backend."""

    def __init__(self) -> None:
        self.port = 0
        self.raw: dict[bytes, Raw] = {}
        self._server: asyncio.Server | None = None
        self._begun: asyncio.Queue[bytes] = asyncio.Queue()

    def begun(self, head: bytes) -> None:
        """A head has come whose body has not."""
        self._begun.put_nowait(head)

    def forget(self) -> None:
        """Heads without bodies so far."""
        while not self._begun.empty():
            self._begun.get_nowait()

    async def next_begun(self) -> bytes:
        """The next head whose body has not come whole."""
        return await self._begun.get()

    async def __aenter__(self) -> Echo:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: EchoProtocol(self), "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
