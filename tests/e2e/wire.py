"""HTTP/1.1 as bytes on a socket: requests written as the test wants them, answers read strictly."""

from __future__ import annotations

import hashlib
import random
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

BLOCK: Final = 1 << 16
_PATTERN: Final = random.Random(20).randbytes((1 << 20) + 7)


class WireError(Exception):
    """The peer sent something that is no answer, or ended where it must not."""


class Truncated(WireError):
    """The connection ended within an answer, or where one had to begin."""


def payload(size: int, seed: str = "") -> bytes:
    """`size` bytes that depend on `seed`, so that bytes of another answer, or at another place, are noticed."""
    start = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4]) % len(_PATTERN)
    turned = _PATTERN[start:] + _PATTERN[:start]
    return (turned * (size // len(turned) + 1))[:size]


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def request(
    path: str,
    *,
    method: str = "GET",
    host: str = "details:9080",
    headers: Iterable[tuple[str, str]] = (),
    body: bytes | None = None,
) -> bytes:
    """One request; a body that is not None comes with its content-length."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *(f"{name}: {value}" for name, value in headers)]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


def chunked(body: bytes, sizes: Sequence[int], *, extension: str = "", trailers: Sequence[str] = ()) -> bytes:
    """A body in chunks of the given sizes in turn, with a last chunk and trailer lines."""
    parts, at, turn = [], 0, 0
    while at < len(body):
        piece = body[at : at + sizes[turn % len(sizes)]]
        parts.append(b"%x%s\r\n%s\r\n" % (len(piece), extension.encode(), piece))
        at, turn = at + len(piece), turn + 1
    tail = "".join(f"{line}\r\n" for line in trailers)
    return b"".join(parts) + f"0{extension}\r\n{tail}\r\n".encode()


def cut(data: bytes, pieces: int, rng: random.Random) -> list[bytes]:
    """`data` in up to so many non-empty pieces, cut anywhere."""
    places = sorted(rng.sample(range(1, len(data)), min(pieces, len(data)) - 1)) if len(data) > 1 else []
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


@dataclass(frozen=True, slots=True)
class Answer:
    """One final response.  `headers` by lower-case name; `interim`: statuses of the 1xx responses before it.

    `ended`: its end was the connection's.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    trailers: Mapping[str, str] = field(default_factory=dict)
    interim: tuple[int, ...] = ()
    ended: bool = False

    @property
    def by_envoy(self) -> bool:
        return self.headers.get("server") == "envoy"

    @property
    def closes(self) -> bool:
        return self.ended or "close" in self.headers.get("connection", "").lower()


class Wire:
    """A connection; `timeout` in seconds applies to every single receive and send."""

    def __init__(self, connection: socket.socket, timeout: float = 5.0, host: str = "details:9080") -> None:
        self.socket = connection
        self.host = host
        self.socket.settimeout(timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def reset(self) -> None:
        """End the connection with a RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.socket.close()

    def send(self, *pieces: bytes) -> None:
        """Send each piece with a send of its own."""
        for piece in pieces:
            self.socket.sendall(piece)

    @property
    def pending(self) -> bytes:
        """What was received after the last answer."""
        return self._buffer

    def ask(
        self, path: str, *, method: str = "GET", headers: Iterable[tuple[str, str]] = (), body: bytes | None = None
    ) -> Answer:
        """Send a request and read its answer."""
        self.send(request(path, method=method, host=self.host, headers=headers, body=body))
        return self.answer(method)

    def answer(self, method: str = "GET") -> Answer:
        """Read the answer to a request of that method, with all 1xx before it.

        Raises Truncated at an early end, WireError for what is no answer, TimeoutError, ConnectionError.
        """
        interim: list[int] = []
        while True:
            status, headers = self._head()
            if status >= 200 or status == 101:
                break
            interim.append(status)
        told = tuple(interim)
        if method == "HEAD" or status in (101, 204, 304):
            return Answer(status, headers, b"", interim=told)
        if headers.get("transfer-encoding") == "chunked":
            body, trailers = self._chunks()
            return Answer(status, headers, body, trailers, told)
        if "content-length" in headers:
            return Answer(status, headers, self.exactly(int(headers["content-length"])), interim=told)
        return Answer(status, headers, self._rest(), interim=told, ended=True)

    def at_end(self) -> bool:
        """Wait for the next byte or the end: whether it is the end."""
        return not self._buffer and not self._more()

    def exactly(self, size: int) -> bytes:
        parts, have = [self._buffer], len(self._buffer)
        while have < size:
            piece = self.socket.recv(min(size - have + BLOCK, 1 << 20))
            if not piece:
                raise Truncated(f"the end after {have} of {size} bytes")
            parts.append(piece)
            have += len(piece)
        data = b"".join(parts)
        self._buffer = data[size:]
        return data[:size]

    def _rest(self) -> bytes:
        parts, self._buffer = [self._buffer], b""
        while piece := self.socket.recv(1 << 20):
            parts.append(piece)
        return b"".join(parts)

    def _head(self) -> tuple[int, dict[str, str]]:
        text = self._until(b"\r\n\r\n").decode("latin-1")
        first, *lines = text.split("\r\n")
        version, _, rest = first.partition(" ")
        if version not in ("HTTP/1.1", "HTTP/1.0") or not rest[:3].isdecimal():
            raise WireError(f"no status line: {first[:80]!r}")
        return int(rest[:3]), _fields(lines)

    def _chunks(self) -> tuple[bytes, dict[str, str]]:
        parts: list[bytes] = []
        while size := int(self._until(b"\r\n").split(b";")[0], 16):
            parts.append(self.exactly(size))
            if self.exactly(2) != b"\r\n":
                raise WireError("a chunk without its end")
        lines: list[str] = []
        while line := self._until(b"\r\n"):
            lines.append(line.decode("latin-1"))
        return b"".join(parts), _fields(lines)

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._buffer:
            if not self._more():
                raise Truncated(f"the end after {self._buffer[:80]!r}" if self._buffer else "the end, and no answer")
        found, self._buffer = self._buffer.split(mark, 1)
        return found

    def _more(self) -> bool:
        data = self.socket.recv(BLOCK)
        self._buffer += data
        return bool(data)


def _fields(lines: Iterable[str]) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            raise WireError(f"no header: {line[:80]!r}")
        name = name.lower()
        fields[name] = f"{fields[name]}, {value.strip()}" if name in fields else value.strip()
    return fields
