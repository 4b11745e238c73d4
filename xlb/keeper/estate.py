"""What a keeper leaves to its successor, and its form on the way: a JSON header, packed records, and descriptors.

Everything goes over at once.  A predecessor that stayed to finish what is hard to describe would need events of the
programs for it, and the ring that brings them has one reader only; and nothing here turned out to be hard to describe.
What can be done again is left out: idle injectors, how long connections have been idle, where a retry is not due.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, Protocol

from xlb.keeper.framer import Framer
from xlb.keeper.kernel import Destination, PoolTarget
from xlb.keeper.sockets import Endpoint

FORMAT: Final = 1
"""Of all that is below, the meaning of every field included: raise it with any change."""


class EstateError(Exception):
    """It cannot be taken over; the message says why."""


# ---- records; descriptors are numbers in the process that has the record, times are those of time.monotonic


@dataclass(frozen=True, slots=True)
class FrameEstate:
    """State of a `Framer`."""

    phase: int
    flags: int
    status: int
    name: int
    token: int
    column: int
    rest: int
    to_head: bool

    @classmethod
    def of(cls, framer: Framer) -> FrameEstate:
        names = (one.name for one in fields(cls))
        return cls(*(getattr(framer, name) for name in names))


@dataclass(frozen=True, slots=True)
class FeedEstate:
    """A `Feed` with its injector; `rest` has been read but not injected."""

    injector: int
    sink: int
    cookie: int
    waiting: bool
    spoiled: bool
    moved: int
    limit: int
    rest: bytes


@dataclass(frozen=True, slots=True)
class RelayEstate:
    """`out` has been read from A but not been taken by E."""

    a: int
    e: int
    client: int
    once: bool
    head: bool
    a_done: bool
    blocked: bool
    active: float
    out: bytes
    feed: FeedEstate


@dataclass(frozen=True, slots=True)
class SpillEstate:
    """`upstream` is the cookie of a U, which has a record of its own."""

    upstream: int
    backend: int
    client: int
    trailing: bool
    frame: FrameEstate
    feed: FeedEstate


@dataclass(frozen=True, slots=True)
class UploadEstate:
    """`taken`: bytes read from A; `rest` came behind the body."""

    a: int
    client: int
    backend: int
    taken: int
    back: bool
    rest: bytes
    frame: FrameEstate
    feed: FeedEstate


@dataclass(frozen=True, slots=True)
class ParkedEstate:
    a: int
    client: int
    half_closed: bool
    before: bytes


@dataclass(frozen=True, slots=True)
class EndingEstate:
    """`a` is -1 if it is to be looked for."""

    a: int
    client: int
    since: float


@dataclass(frozen=True, slots=True)
class PoolEstate:
    """`given_up`: it has no number any more, only connections that end with their responses."""

    number: int
    target: PoolTarget
    depth: int
    destination: Destination | None
    given_up: bool
    remote: bool
    remote_until: float
    not_before: float
    pause: float


@dataclass(frozen=True, slots=True)
class UpstreamEstate:
    """`pool`: index in `Estate.pools`."""

    fd: int
    cookie: int
    pool: int
    since: float
    young: bool
    retiring: bool


@dataclass(frozen=True, slots=True)
class LeadEstate:
    """A pool to Envoy; `pool`: index in `Estate.pools`."""

    pool: int
    used: float
    requests: int


@dataclass(frozen=True, slots=True)
class TalkEstate:
    """A connection to the control socket, with what has come of an unfinished line."""

    fd: int
    line: bytes


@dataclass(frozen=True, slots=True)
class Estate:
    """Everything of a keeper.

    `accepted` are the A with nothing to say; `free` and `generation` are of the pools to Envoy; `at_rest` is what
    `Endings` has learnt; `totals` are counters for the status, by names of which a successor may miss some.
    """

    pid: int
    frozen: float
    listener: Endpoint
    port6: int
    listeners: tuple[int, ...]
    control: int
    handover: int
    free: tuple[int, ...]
    generation: int
    at_rest: int
    totals: Mapping[str, int]
    accepted: tuple[int, ...] = ()
    talks: tuple[TalkEstate, ...] = ()
    pools: tuple[PoolEstate, ...] = ()
    leads: tuple[LeadEstate, ...] = ()
    upstreams: tuple[UpstreamEstate, ...] = ()
    relays: tuple[RelayEstate, ...] = ()
    spills: tuple[SpillEstate, ...] = ()
    uploads: tuple[UploadEstate, ...] = ()
    parked: tuple[ParkedEstate, ...] = ()
    endings: tuple[EndingEstate, ...] = ()


@dataclass(frozen=True, slots=True)
class Packed:
    """`fds` go along in this order."""

    header: bytes
    body: bytes
    fds: tuple[int, ...]


# ---- codecs


@dataclass(slots=True)
class _Writer:
    body: bytearray = field(default_factory=bytearray)
    fds: list[int] = field(default_factory=list)


@dataclass(slots=True)
class _Reader:
    body: bytes
    fds: tuple[int, ...]
    at: int = 0
    fd_at: int = 0

    def take(self, size: int) -> bytes:
        found = self.body[self.at : self.at + size]
        if len(found) != size:
            raise EstateError("what came of the running keeper's state is too short")
        self.at += size
        return found

    def take_fds(self, count: int) -> tuple[int, ...]:
        found = self.fds[self.fd_at : self.fd_at + count]
        if len(found) != count:
            raise EstateError("descriptors of the running keeper are missing")
        self.fd_at += count
        return found


class _Codec(Protocol):
    def put(self, writer: _Writer, value: Any) -> None: ...

    def get(self, reader: _Reader) -> Any: ...


class _Packed:
    """One value that `struct` knows."""

    def __init__(self, code: str) -> None:
        self._struct = struct.Struct("<" + code)

    def put(self, writer: _Writer, value: Any) -> None:
        writer.body += self._struct.pack(value)

    def get(self, reader: _Reader) -> Any:
        return self._struct.unpack(reader.take(self._struct.size))[0]


class _Fd:
    """A descriptor, or -1: whether there is one; the descriptors themselves go along in order."""

    def put(self, writer: _Writer, value: Any) -> None:
        writer.body.append(value >= 0)
        if value >= 0:
            writer.fds.append(value)

    def get(self, reader: _Reader) -> int:
        return reader.take_fds(1)[0] if reader.take(1)[0] else -1


class _Bytes:
    def put(self, writer: _Writer, value: Any) -> None:
        writer.body += len(value).to_bytes(4, "little")
        writer.body += value

    def get(self, reader: _Reader) -> bytes:
        return reader.take(int.from_bytes(reader.take(4), "little"))


class _Record:
    """A dataclass, field by field in the order of its definition."""

    def __init__(self, kind: type[Any], **codecs: _Codec) -> None:
        names = tuple(one.name for one in fields(kind))
        if names != tuple(codecs):
            raise TypeError(f"{kind.__name__} has the fields {names}, its codec {tuple(codecs)}")
        self._kind = kind
        self._codecs = tuple(codecs.items())

    def put(self, writer: _Writer, value: Any) -> None:
        for name, codec in self._codecs:
            codec.put(writer, getattr(value, name))

    def get(self, reader: _Reader) -> Any:
        return self._kind(*[codec.get(reader) for _, codec in self._codecs])


class _Maybe:
    """None, or what another codec knows."""

    def __init__(self, codec: _Codec) -> None:
        self._codec = codec

    def put(self, writer: _Writer, value: Any) -> None:
        writer.body.append(value is not None)
        if value is not None:
            self._codec.put(writer, value)

    def get(self, reader: _Reader) -> Any:
        return self._codec.get(reader) if reader.take(1)[0] else None


_U8, _U16, _U32, _U64 = _Packed("B"), _Packed("H"), _Packed("I"), _Packed("Q")
_FLAG, _TIME, _ADDRESS = _Packed("?"), _Packed("d"), _Packed("16s")
_FD, _BYTES = _Fd(), _Bytes()
_ENDPOINT = _Record(Endpoint, address=_ADDRESS, port=_U16)
_TARGET = _Record(PoolTarget, endpoint=_ENDPOINT, generation=_U32)
_DESTINATION = _Record(Destination, original=_ENDPOINT, view=_U32)
_FRAME = _Record(
    FrameEstate, phase=_U8, flags=_U8, status=_U16, name=_U32, token=_U32, column=_U32, rest=_U64, to_head=_FLAG
)
_FEED = _Record(
    FeedEstate,
    injector=_FD,
    sink=_FD,
    cookie=_U64,
    waiting=_FLAG,
    spoiled=_FLAG,
    moved=_U64,
    limit=_U64,
    rest=_BYTES,
)
_SECTIONS: Final[tuple[tuple[str, _Record], ...]] = (
    ("talks", _Record(TalkEstate, fd=_FD, line=_BYTES)),
    (
        "pools",
        _Record(
            PoolEstate,
            number=_U32,
            target=_TARGET,
            depth=_U32,
            destination=_Maybe(_DESTINATION),
            given_up=_FLAG,
            remote=_FLAG,
            remote_until=_TIME,
            not_before=_TIME,
            pause=_TIME,
        ),
    ),
    ("leads", _Record(LeadEstate, pool=_U32, used=_TIME, requests=_U64)),
    (
        "upstreams",
        _Record(UpstreamEstate, fd=_FD, cookie=_U64, pool=_U32, since=_TIME, young=_FLAG, retiring=_FLAG),
    ),
    (
        "relays",
        _Record(
            RelayEstate,
            a=_FD,
            e=_FD,
            client=_U64,
            once=_FLAG,
            head=_FLAG,
            a_done=_FLAG,
            blocked=_FLAG,
            active=_TIME,
            out=_BYTES,
            feed=_FEED,
        ),
    ),
    (
        "spills",
        _Record(SpillEstate, upstream=_U64, backend=_U64, client=_U64, trailing=_FLAG, frame=_FRAME, feed=_FEED),
    ),
    (
        "uploads",
        _Record(
            UploadEstate,
            a=_FD,
            client=_U64,
            backend=_U64,
            taken=_U64,
            back=_FLAG,
            rest=_BYTES,
            frame=_FRAME,
            feed=_FEED,
        ),
    ),
    ("parked", _Record(ParkedEstate, a=_FD, client=_U64, half_closed=_FLAG, before=_BYTES)),
    ("endings", _Record(EndingEstate, a=_FD, client=_U64, since=_TIME)),
)


# ---- the whole


def pack(estate: Estate) -> Packed:
    """Its form on the way."""
    writer = _Writer()
    writer.fds += (*estate.listeners, estate.control, estate.handover, *estate.accepted)
    for name, codec in _SECTIONS:
        for record in getattr(estate, name):
            codec.put(writer, record)
    header = {
        "format": FORMAT,
        "pid": estate.pid,
        "frozen": estate.frozen,
        "listener": [estate.listener.host, estate.listener.port],
        "port6": estate.port6,
        "free": estate.free,
        "generation": estate.generation,
        "at_rest": estate.at_rest,
        "totals": dict(estate.totals),
        "listeners": len(estate.listeners),
        "accepted": len(estate.accepted),
        "records": {name: len(getattr(estate, name)) for name, _ in _SECTIONS},
        "bytes": len(writer.body),
        "descriptors": len(writer.fds),
    }
    return Packed(json.dumps(header).encode(), bytes(writer.body), tuple(writer.fds))


def unpack(packed: Packed) -> Estate:
    """Of `pack`, with the descriptors as they are numbered here.  Raises EstateError."""
    try:
        header = json.loads(packed.header)
        check_format(header["format"])
        if (header["bytes"], header["descriptors"]) != (len(packed.body), len(packed.fds)):
            raise EstateError(
                f"of {header['bytes']} bytes and {header['descriptors']} descriptors of the running keeper "
                f"{len(packed.body)} and {len(packed.fds)} have come"
            )
        reader = _Reader(packed.body, packed.fds)
        listeners = reader.take_fds(header["listeners"])
        control, handover = reader.take_fds(2)
        accepted = reader.take_fds(header["accepted"])
        records = {name: tuple(codec.get(reader) for _ in range(header["records"][name])) for name, codec in _SECTIONS}
        if (reader.at, reader.fd_at) != (len(packed.body), len(packed.fds)):
            raise EstateError("there is more in the running keeper's state than its header tells of")
        return Estate(
            pid=int(header["pid"]),
            frozen=float(header["frozen"]),
            listener=Endpoint.parse(*header["listener"]),
            port6=int(header["port6"]),
            listeners=listeners,
            control=control,
            handover=handover,
            free=tuple(map(int, header["free"])),
            generation=int(header["generation"]),
            at_rest=int(header["at_rest"]),
            totals={str(name): int(number) for name, number in header["totals"].items()},
            accepted=accepted,
            **records,
        )
    except (KeyError, TypeError, ValueError, AttributeError, OSError, struct.error) as error:
        raise EstateError(f"the running keeper's state cannot be read: {type(error).__name__}: {error}") from error


def check_format(theirs: object) -> None:
    """Raises EstateError unless the running keeper's format is ours."""
    if theirs != FORMAT:
        raise EstateError(
            f"the running keeper hands over in format {theirs}, this one knows {FORMAT}: to change between these "
            "versions, end the agent with SIGTERM and start it again, which ends the keeper's connections"
        )
