"""The kernel's parser against a real Envoy: what the kernel would forward, Envoy must accept, and see end there too.

Each request is sent with a marker request right behind the byte that is its last one for the parser.  If Envoy has
accepted the one and then sees the marker as a request of its own, both agree about where it ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from tests.fuzz.echo import SEEN, Echo, Seen, body_hash, decode, decode_chunks, decode_head
from tests.fuzz.reading import Reader, Reading
from translator.reasons import Reason

_DEADLINE: Final = 5.0
_BATCH: Final = 40
_TOGETHER: Final = 64

# Envoy writes these itself, or they are between two hops (docs/differences.md).
_NOT_COMPARED: Final = frozenset(
    {
        *(b"connection", b"keep-alive", b"transfer-encoding", b"content-length"),
        *(b"x-forwarded-proto", b"x-request-id", b"x-envoy-attempt-count", b"x-envoy-expected-rq-timeout-ms"),
    }
)

# Envoy takes a `referer` away that is no URL, or has a fragment or user in it (docs/differences.md).
_MAY_BE_DROPPED: Final = frozenset({b"referer"})


@dataclass(frozen=True, slots=True)
class Case:
    """A request that the parser forwards.  `data` ends where it does; `whole`: no byte of it is missing."""

    name: str
    data: bytes
    reading: Reading
    whole: bool


@dataclass(frozen=True, slots=True)
class Finding:
    """What Envoy does otherwise."""

    case: Case
    what: str

    def __str__(self) -> str:
        kind = "carried" if self.case.reading.carried else f"pooled ({self.case.reading.reason.name})"
        return f"{self.case.name}: {kind}, but {self.what}\n    {self.case.data!r}"


@dataclass(frozen=True, slots=True)
class Answer:
    """What Envoy has answered: `seen` is None if it did so itself."""

    status: int
    seen: Seen | None
    close: bool


class Gone(Exception):
    """Envoy has closed the connection."""


def prepare(reader: Reader, name: str, data: bytes) -> Case | None:
    """The case that an input makes; None if the kernel would not forward it.

    A client's `close` is blanked, as the kernel does it, so that the connection stays.
    """
    if not data:
        return None
    reading = reader.request(data)
    if not reading.forwarded:
        return None
    if reading.close:
        data = data[: reading.close_at] + b"     " + data[reading.close_at + 5 :]
        again = reader.request(data)
        if again.close:
            return prepare(reader, name, data)
        reading = again
    whole = reader.completed(data)
    if whole is None:
        return Case(name, data[: reading.end], reading, False)
    return Case(name, whole, reader.request(whole), True)


def _marker(number: int) -> bytes:
    return b"GET /marker-%d HTTP/1.1\r\nhost: marker\r\n\r\n" % number


def _is_marker(answer: Answer, number: int) -> bool:
    seen = answer.seen
    return seen is not None and (seen.method, seen.target, seen.host) == (b"GET", b"/marker-%d" % number, b"marker")


def _body(case: Case) -> bytes:
    reading = case.reading
    if not reading.chunked:
        return case.data[reading.head_len :]
    decoded = decode_chunks(case.data, reading.head_len)
    assert decoded is not None
    assert decoded[1] == len(case.data)
    return decoded[0]


def _joined(headers: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Values of equal names as one list, since Envoy makes one line of some; empty ones do not count."""
    made: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in _NOT_COMPARED or name == b"host":
            continue
        separator = b"; " if name == b"cookie" else b","
        made[name] = made[name] + separator + value if made.get(name) and value else made.get(name, b"") + value
    return made


def _differences(case: Case, seen: Seen) -> str | None:
    """What the backend got that the parser did not read, or the reverse."""
    body = _body(case)
    if (seen.body_len, seen.body_hash) != (len(body), body_hash(body)):
        return f"Envoy reads a body of {seen.body_len} bytes, the parser one of {len(body)}"
    reading = case.reading
    if reading.reason is not Reason.NONE:
        return None
    for what, read, got in (
        ("method", reading.method, seen.method),
        ("target", reading.target, seen.target),
        ("host", reading.host, seen.host),
    ):
        if read != got:
            return f"Envoy reads the {what} {got!r}, the parser {read!r}"
    ours = _joined(decode_head(case.data[: reading.head_len])[2])
    envoys = _joined(seen.headers)
    for name in sorted(ours.keys() | envoys.keys()):
        if name in _MAY_BE_DROPPED and name not in envoys:
            continue
        if ours.get(name) != envoys.get(name):
            return f"Envoy reads the header {name!r} as {envoys.get(name)!r}, the parser as {ours.get(name)!r}"
    return None


class _Connection:
    """One client connection to Envoy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    async def answer(self) -> Answer:
        """The next response's head; the backend's have no body.  Raises Gone, TimeoutError."""
        try:
            async with asyncio.timeout(_DEADLINE):
                head = await self._reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            raise Gone from None
        first, *lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
        fields = dict(line.split(b": ", 1) for line in lines if b": " in line)
        seen = fields.get(SEEN)
        close = fields.get(b"connection") == b"close"
        return Answer(int(first.split()[1]), decode(seen) if seen is not None else None, close)

    async def is_closed(self) -> bool:
        """Whether nothing but the end of the connection follows (and what is left of a body)."""
        try:
            async with asyncio.timeout(_DEADLINE):
                return b"HTTP/1.1 " not in await self._reader.read(-1)
        except ConnectionError:
            return True
        except TimeoutError:
            return False

    def close(self) -> None:
        self._writer.transport.abort()


class Differential:
    """Cases against the Envoy that listens on a port of 127.0.0.1 and has `echo` as its backend."""

    def __init__(self, port: int, echo: Echo) -> None:
        self._port = port
        self._echo = echo
        self.requests = 0

    async def check(self, cases: Sequence[Case]) -> list[Finding]:
        """All cases, many on each connection; one that Envoy takes differently is tried once more by itself."""
        found: list[Finding] = []
        rest = [case for case in cases if case.whole and case.reading.carried]
        while rest:
            batch = rest[:_BATCH]
            good = await self._batch(batch)
            rest = rest[good:]
            if good < len(batch):
                found += await self._alone(rest.pop(0))
        # Envoy may refuse these, and waits a second for the client's end of the connection: many at the same time.
        limit = asyncio.Semaphore(_TOGETHER)

        async def limited(case: Case) -> list[Finding]:
            async with limit:
                return await self._alone(case)

        for result in await asyncio.gather(*(limited(c) for c in cases if c.whole and not c.reading.carried)):
            found += result
        for case in cases:
            if not case.whole:
                found += await self._unfinished(case)
        return found

    async def _connect(self) -> _Connection:
        return _Connection(*await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 18))

    async def _batch(self, batch: Sequence[Case]) -> int:
        """How many are as they should be before the first that may not be."""
        good = 0
        connection = await self._connect()
        try:
            connection.send(b"".join(case.data + _marker(i) for i, case in enumerate(batch)))
            for case in batch:
                self.requests += 2
                answer = await connection.answer()
                if answer.seen is None or _differences(case, answer.seen) is not None:
                    break
                if not _is_marker(await connection.answer(), good):
                    break
                good += 1
        except (Gone, TimeoutError):
            return good
        finally:
            connection.close()
        return good

    async def _alone(self, case: Case) -> list[Finding]:
        connection = await self._connect()
        try:
            connection.send(case.data + _marker(0))
            self.requests += 2
            what = await self._judge(connection, case)
        except Gone:
            # What is pooled Envoy may refuse: a connection that is gone is not used again.
            what = "Envoy closes the connection" if case.reading.carried else None
        except TimeoutError:
            what = "Envoy waits for more of it: the request behind it would be taken for its body"
        finally:
            connection.close()
        return [] if what is None else [Finding(case, what)]

    async def _judge(self, connection: _Connection, case: Case) -> str | None:
        answer = await connection.answer()
        if answer.seen is None and case.reading.carried:
            return f"Envoy answers {answer.status} itself"
        if answer.seen is not None:
            what = _differences(case, answer.seen)
            if what is not None:
                return what
        if answer.close and not case.reading.carried:
            # Envoy may refuse what it is given, or end the connection with it, but then has to do so.
            return None if await connection.is_closed() else f"Envoy answers {answer.status} and `close`, but goes on"
        marker = await connection.answer()
        if _is_marker(marker, 0):
            return None
        if marker.seen is None:
            return f"Envoy answers {marker.status} to the request behind it"
        return f"Envoy sees another request within it: {marker.seen.method!r} {marker.seen.target!r}"

    async def _unfinished(self, case: Case) -> list[Finding]:
        """A request whose body is too large to be sent: Envoy has to pass on its head and wait."""
        self._echo.forget()
        connection = await self._connect()
        begun = asyncio.create_task(self._echo.next_begun())
        answered = asyncio.create_task(connection.answer())
        try:
            connection.send(case.data)
            self.requests += 1
            done, _ = await asyncio.wait((begun, answered), timeout=_DEADLINE, return_when=asyncio.FIRST_COMPLETED)
            if begun in done:
                method, target, _ = decode_head(begun.result())
                wanted = (case.reading.method, case.reading.target)
                if case.reading.carried and (method, target) != wanted:
                    return [Finding(case, f"Envoy reads {method!r} {target!r}")]
                return []
            if answered not in done:
                return [Finding(case, "Envoy does not pass on its head")]
            if answered.exception() is not None:
                return [Finding(case, "Envoy closes the connection")]
            answer = answered.result()
            if answer.seen is None and answer.close and not case.reading.carried:
                return []
            return [Finding(case, f"Envoy answers {answer.status} before its body is there")]
        finally:
            for task in (begun, answered):
                task.cancel()
            await asyncio.gather(begun, answered, return_exceptions=True)
            connection.close()
