"""The kernel half as the keeper sees it: typed reading of the pinned maps, and the operations of program xlb_control.

State of connections is changed by that program only: what user space writes would overwrite what the programs write
at the same time.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, cast

from bpf.layout import Layouts
from bpf.maps import BpfError, Map
from bpf.ring import RingBuffer
from xlb.keeper.pins import Pins
from xlb.keeper.records import (
    AddressRecord,
    CaptureKeyRecord,
    CaptureRecord,
    Codes,
    ConfigRecord,
    ConnRecord,
    DestinationRecord,
    EndpointRecord,
    EventRecord,
    OwnRecord,
    PairRecord,
    PoolStateRecord,
    RecordsError,
    RequestRecord,
)
from xlb.keeper.sockets import Endpoint, Sockets

GONE: Final = 0xFFFFFFFF  # `queued` of Queue: the connection is no more
_INT: Final = struct.Struct("=i")
_U32: Final = struct.Struct("=I")
_U64: Final = struct.Struct("=Q")
_FIRST: Final = _U32.pack(0)


@dataclass(frozen=True, slots=True)
class Destination:
    """What a captured connection was on its way to, and whose rules it goes by."""

    original: Endpoint
    view: int


@dataclass(frozen=True, slots=True)
class PoolTarget:
    """An entry of xlb_endpoints that is in use."""

    endpoint: Endpoint
    generation: int


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes in a receive queue from which what goes there has to wait; 0: none."""

    response: int
    upload: int


def _put(record: AddressRecord, address: bytes) -> None:
    ctypes.memmove(record.b, address, 16)


def _get(record: AddressRecord) -> bytes:
    return bytes(record.b)


class Kernel:
    """Pinned maps and programs of one instance.

    Reading something that is gone gives None or 0, never an error: connections end at any time.
    """

    def __init__(self, pins: Pins, sockets: Sockets) -> None:
        """Raises PinsError, RecordsError, LayoutError or BpfError: the pinned objects are not of this version."""
        layouts: Layouts = pins.layouts
        self._sockets = sockets
        self.codes = Codes.read(layouts)
        self._conns = pins.map("xlb_conns")
        self._pairs = pins.map("xlb_pairs")
        self._own = pins.map("xlb_sockets_own")
        self._pools = pins.map("xlb_pools")
        self._endpoints = pins.map("xlb_endpoints")
        self._destinations = pins.map("xlb_destinations")
        self._captures = pins.map("xlb_captures")
        self._config = pins.map("xlb_config")
        self._control = pins.program("xlb_control")
        self._ring = RingBuffer(pins.map("xlb_events"))
        self.ring_fd = self._ring.fd

        self._conn_type = layouts.struct("xlb_conn")
        self._event_type = layouts.struct("xlb_event")
        self._pair_type = layouts.struct("xlb_pair_key")
        self._own_type = layouts.struct("xlb_own")
        self._endpoint_type = layouts.struct("xlb_endpoint")
        self._destination_type = layouts.struct("xlb_destination")
        self._key_type = layouts.struct("xlb_capture_key")
        self._capture_type = layouts.struct("xlb_capture")
        self._config_type = layouts.struct("xlb_config")
        self._context = layouts.struct("xlb_request")()
        self._request = cast(RequestRecord, self._context)

        self._shared_memory = pins.map("xlb_shared").mmap(writable=False)
        # Read on every accept and end of a connection, so without ctypes' attribute access.
        self._shared = memoryview(self._shared_memory)
        shared_type = layouts.struct("xlb_shared")
        self._half_closed = _u64_at(self._shared, shared_type, "half_closed")
        self._lost_events = _u64_at(self._shared, shared_type, "lost_events")
        state_type = layouts.struct("xlb_pool_state")
        self._pool_memory = pins.map("xlb_pool_state").mmap(writable=True)
        self._pool_states = (state_type * self.codes.limits.max_pools).from_buffer(self._pool_memory)
        config = self._read_config()
        if config.layout != self.codes.limits.layout_version:
            raise RecordsError(
                f"the pinned maps have layout {config.layout}, this keeper knows {self.codes.limits.layout_version}: "
                "restart the agent, which loads them anew"
            )

    # ---- the keeper's own announcements

    def _read_config(self) -> ConfigRecord:
        found = self._config.lookup(_FIRST)
        if found is None:
            raise RecordsError("xlb_config has no value: restart the agent, which writes it")
        return cast(ConfigRecord, self._config_type.from_buffer_copy(found))

    def limits(self) -> Limits:
        config = self._read_config()
        return Limits(config.response_limit, config.upload_limit)

    def announce(self, listener: Endpoint, port6: int) -> None:
        """From now on captured connections are sent to `listener` ([::1]:port6 those to IPv6)."""
        config = self._read_config()
        _put(config.keeper_address, listener.address)
        config.keeper_port = listener.port
        config.keeper_port6 = port6
        self._config.update(_FIRST, bytes(cast(ctypes.Structure, config)))

    def withdraw(self, listener: Endpoint) -> None:
        """Capture nothing any more, unless another keeper has taken our place."""
        config = self._read_config()
        if config.keeper_port != listener.port or _get(config.keeper_address) != listener.address:
            return
        config.keeper_port = 0
        config.keeper_port6 = 0
        self._config.update(_FIRST, bytes(cast(ctypes.Structure, config)))

    def own(self, fd: int, role: int, pool: int = 0, destination: Destination | None = None) -> None:
        """Say what a socket of ours is; before connect(2).  Raises BpfError."""
        structure = self._own_type()
        record = cast(OwnRecord, structure)
        record.role = role
        record.pool = pool
        if destination is not None:
            record.view = destination.view
            _put(record.original, destination.original.address)
            record.original_port = destination.original.port
        self._own.update(_INT.pack(fd), bytes(structure))

    # ---- reading

    def events(self) -> Iterator[EventRecord]:
        """What has come by the ring buffer since."""
        make = self._event_type.from_buffer_copy
        for record in self._ring.events():
            yield cast(EventRecord, make(record))

    def half_closed(self) -> int:
        """How many clients have shut down their sending side only: while 0, the end of A's stream is C's end."""
        return self._half_closed[0]

    def lost_events(self) -> int:
        return self._lost_events[0]

    def conn(self, cookie: int) -> ConnRecord | None:
        found = self._conns.lookup(_U64.pack(cookie)) if cookie else None
        return None if found is None else cast(ConnRecord, self._conn_type.from_buffer_copy(found))

    def client_of(self, fd: int) -> int:
        """Cookie of the C whose accepted side `fd` is; 0: gone, or none that the programs know."""
        peer, local = self._sockets.peer(fd), self._sockets.local(fd)
        if peer is None or local is None:
            return 0
        structure = self._pair_type()
        key = cast(PairRecord, structure)
        _put(key.local, peer.address)
        _put(key.remote, local.address)
        key.local_port = peer.port
        key.remote_port = local.port
        if local.is_loopback:
            key.netns = self._sockets.netns(fd)
        found = self._pairs.lookup(bytes(structure))
        return 0 if found is None else int(_U64.unpack(found)[0])

    def address_of(self, conn: ConnRecord) -> Endpoint | None:
        """The local end of a C: the peer of its A.  None if it has no pair."""
        pair = conn.pair
        return Endpoint(_get(pair.local), pair.local_port) if pair.local_port else None

    def destination_of(self, conn: ConnRecord) -> Destination:
        return Destination(Endpoint(_get(conn.original), conn.original_port), conn.view)

    def pool_target(self, pool: int) -> PoolTarget | None:
        """What a pool leads to; None if its number is not in use."""
        found = self._endpoints.lookup(_U32.pack(pool))
        if found is None:
            return None
        record = cast(EndpointRecord, self._endpoint_type.from_buffer_copy(found))
        return PoolTarget(Endpoint(_get(record.address), record.port), record.generation) if record.port else None

    def pool_depth(self, pool: int) -> int:
        """How many idle connections the pool's stack can hold; 0: it has none."""
        inner = self._pools.lookup(_U32.pack(pool))
        if inner is None:
            return 0
        try:
            with Map.from_id(_U32.unpack(inner)[0]) as stack:
                return stack.max_entries
        except BpfError:
            return 0  # replaced since the lookup

    def pool_state(self, pool: int) -> PoolStateRecord:
        """Shared with the programs: only `flags` is ours to write."""
        return cast(PoolStateRecord, self._pool_states[pool])

    def clear_pool_flags(self) -> None:
        for state in self._pool_states:
            if state.flags:
                state.flags = 0

    def envoy_of(self, destination: Destination) -> Endpoint | None:
        """Envoy's listener for a captured destination, as the connect hook finds it; None: it is captured no more."""
        inner = self._captures.lookup(_U32.pack(destination.view))
        if inner is None:
            return None
        try:
            captures = Map.from_id(_U32.unpack(inner)[0])
        except BpfError:
            return None  # replaced since the lookup: the next attempt finds the new one
        original = destination.original
        with captures:
            for address, port in ((original.address, original.port), (original.any, original.port), (original.any, 0)):
                structure = self._key_type()
                key = cast(CaptureKeyRecord, structure)
                _put(key.address, address)
                key.port = port
                found = captures.lookup(bytes(structure))
                if found is not None:
                    record = cast(CaptureRecord, self._capture_type.from_buffer_copy(found))
                    if not record.envoy_port:
                        return None
                    return Endpoint(_get(record.envoy_address), record.envoy_port)
        return None

    # ---- pools to Envoy

    def set_pool_target(self, pool: int, target: PoolTarget | None) -> None:
        """Of the keeper's own range of pools.  Raises BpfError."""
        structure = self._endpoint_type()
        if target is not None:
            record = cast(EndpointRecord, structure)
            _put(record.address, target.endpoint.address)
            record.port = target.endpoint.port
            record.generation = target.generation
        self._endpoints.update(_U32.pack(pool), bytes(structure))

    def lead(self, destination: Destination, pool: int) -> None:
        """Requests for `destination` that Envoy carries go by `pool` from now on.  Raises BpfError."""
        self._destinations.update(self._destination_key(destination), _U32.pack(pool))

    def lead_no_more(self, destination: Destination) -> None:
        self._destinations.delete(self._destination_key(destination))

    def clear_destinations(self) -> None:
        """Remove what a predecessor left: its pools are empty."""
        for key in list(self._destinations.keys()):
            self._destinations.delete(key)

    def _destination_key(self, destination: Destination) -> bytes:
        structure = self._destination_type()
        record = cast(DestinationRecord, structure)
        _put(record.original, destination.original.address)
        record.original_port = destination.original.port
        record.view = destination.view
        return bytes(structure)

    # ---- operations

    def _run(self, op: int, client: int = 0, backend: int = 0, flags: int = 0, arg: int = 0) -> int:
        request = self._request
        request.op = op
        request.flags = flags
        request.client = client
        request.backend = backend
        request.arg = arg
        self._control.run(self._context)
        return request.arg

    def queue(self, cookie: int) -> tuple[int, bool]:
        """Bytes that a connection has not read (GONE: it is no more), and whether a C waits for a kernel response."""
        queued = self._run(self.codes.op.queue, client=cookie)
        return queued, bool(self._request.flags)

    def references(self, cookie: int) -> int:
        """How many references the kernel holds to a connection's socket; 0: it is no more."""
        gone = self._run(self.codes.op.queue, client=cookie) == GONE
        return 0 if gone else int(self._request.references)

    def target(self, injector: int, cookie: int, last: bool = False) -> bool:
        """What is written on X `injector` goes to `cookie` (0: nobody).  False: the programs do not know X.

        :param last: the next write completes a spilled response of the C `cookie`
        """
        return bool(self._run(self.codes.op.target, client=cookie, backend=injector, flags=int(last)))

    def take(self, client: int, backend: int) -> bool:
        """Whether the client of a dead B is now ours to answer; true once only."""
        return bool(self._run(self.codes.op.take, client=client, backend=backend))

    def release(self, client: int, backend: int, reusable: bool) -> None:
        """The spilled response of B has ended."""
        self._run(self.codes.op.release, client=client, backend=backend, flags=int(reusable))

    def upload_end(self, client: int, taken: int) -> bool:
        """Before the last piece of a spilled request body is injected; `taken` bytes were read from A.

        :returns: whether C is back on the kernel's way; if not, it is relayed from now on
        """
        return bool(self._run(self.codes.op.upload_end, client=client, arg=taken & 0xFFFFFFFF))

    def upload_done(self, client: int, backend: int) -> None:
        self._run(self.codes.op.upload_done, client=client, backend=backend)

    def retire(self, backend: int) -> bool:
        """B must not be used again.  :returns: whether it is idle, so that U can be closed now"""
        return bool(self._run(self.codes.op.retire, backend=backend))

    def forget(self, cookie: int) -> None:
        """Remove the entry of a dead U or B."""
        self._run(self.codes.op.forget, client=cookie, backend=cookie)


def _u64_at(view: memoryview, structure: type[ctypes.Structure], field: str) -> memoryview:
    """One counter in a mapped structure, to be read as [0]."""
    offset: int = getattr(structure, field).offset
    return view[offset : offset + 8].cast("Q")
