"""Names with types for what bpf/include/xlb_types.h shares with us; layouts and numbers come from the object's BTF."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Protocol, TypeVar

from bpf.layout import Layouts
from xlb.keeper.framer import Flag, Phase


class RecordsError(Exception):
    """The compiled object does not fit this keeper; the message says what to do."""


class FrameRecord(Protocol):
    """struct xlb_frame"""

    phase: int
    flags: int
    status: int
    name: int
    token: int
    column: int
    rest: int


class AddressRecord(Protocol):
    """struct xlb_address"""

    b: ctypes.Array[ctypes.c_uint8]


class PairRecord(Protocol):
    """struct xlb_pair_key"""

    local: AddressRecord
    remote: AddressRecord
    local_port: int
    remote_port: int
    netns: int


class ConnRecord(Protocol):
    """struct xlb_conn"""

    self: int
    peer: int
    alt: int
    frame: FrameRecord
    role: int
    pool: int
    state: int
    view: int
    in_flight: int
    relayed: int
    in_request: int
    owed: int
    upload: int
    head: int
    closing: int
    spilled: int
    response_bytes: int
    original: AddressRecord
    original_port: int
    pair: PairRecord


class EventRecord(Protocol):
    """struct xlb_event"""

    type: int
    pool: int
    client: int
    backend: int
    upstream: int
    arg: int


class RequestRecord(Protocol):
    """struct xlb_request"""

    op: int
    flags: int
    client: int
    backend: int
    arg: int
    references: int


class OwnRecord(Protocol):
    """struct xlb_own"""

    role: int
    pool: int
    view: int
    original: AddressRecord
    original_port: int


class CaptureKeyRecord(Protocol):
    """struct xlb_capture_key"""

    address: AddressRecord
    port: int


class CaptureRecord(Protocol):
    """struct xlb_capture"""

    kind: int
    envoy_address: AddressRecord
    envoy_port: int


class EndpointRecord(Protocol):
    """struct xlb_endpoint"""

    address: AddressRecord
    port: int
    generation: int


class DestinationRecord(Protocol):
    """struct xlb_destination"""

    original: AddressRecord
    original_port: int
    view: int


class ConfigRecord(Protocol):
    """struct xlb_config"""

    layout: int
    keeper_address: AddressRecord
    keeper_port: int
    keeper_port6: int
    response_limit: int
    upload_limit: int


class PoolStateRecord(Protocol):
    """struct xlb_pool_state"""

    active: int
    flags: int
    requests: int
    empty: int


class SharedRecord(Protocol):
    """struct xlb_shared"""

    half_closed: int
    lost_events: int


@dataclass(frozen=True, slots=True)
class Role:
    """enum xlb_role"""

    c: int
    u: int
    b: int
    x: int
    e: int


@dataclass(frozen=True, slots=True)
class Relayed:
    """enum xlb_relayed"""

    once: int
    ever: int


@dataclass(frozen=True, slots=True)
class State:
    """enum xlb_state"""

    idle: int
    busy: int
    dead: int
    retired: int


@dataclass(frozen=True, slots=True)
class EventType:
    """enum xlb_event_type"""

    client_gone: int
    backend_gone: int
    pool_empty: int
    retire: int
    irregular: int
    spill: int
    ready: int
    destination: int
    upload: int
    close: int


@dataclass(frozen=True, slots=True)
class Gone:
    """enum xlb_gone_flags"""

    started: int
    until_close: int
    spilled: int
    malformed: int


@dataclass(frozen=True, slots=True)
class Op:
    """enum xlb_op"""

    queue: int
    target: int
    take: int
    release: int
    upload_end: int
    upload_done: int
    retire: int
    forget: int


@dataclass(frozen=True, slots=True)
class Capture:
    """enum xlb_capture_kind"""

    mixed: int


@dataclass(frozen=True, slots=True)
class Closing:
    """enum xlb_closing"""

    client: int
    backend: int


@dataclass(frozen=True, slots=True)
class PoolFlag:
    """enum xlb_pool_flags"""

    remote: int


@dataclass(frozen=True, slots=True)
class Limits:
    """The anonymous enum."""

    max_pools: int
    destinations: int
    layout_version: int


_Group = TypeVar("_Group", Role, Relayed, State, EventType, Gone, Op, Capture, Closing, PoolFlag, Limits)


def _group(kind: type[_Group], values: Mapping[str, int], prefix: str) -> _Group:
    """Raises RecordsError."""
    try:
        return kind(**{field.name: values[prefix + field.name.upper()] for field in fields(kind)})
    except KeyError as error:
        raise RecordsError(f"the BPF object has no {error.args[0]}: run `make build`") from error


@dataclass(frozen=True, slots=True)
class Codes:
    """All numbers, by name."""

    role: Role
    relayed: Relayed
    state: State
    event: EventType
    gone: Gone
    op: Op
    capture: Capture
    closing: Closing
    pool_flag: PoolFlag
    limits: Limits

    @classmethod
    def read(cls, layouts: Layouts) -> Codes:
        """Raises RecordsError, also if the framer's numbers are not the programs'; bpf.layout.LayoutError."""
        for kind, name, prefix in ((Phase, "xlb_phase", "XLB_PHASE_"), (Flag, "xlb_frame_flags", "XLB_FRAME_")):
            ours = {prefix + (member.name or ""): int(member) for member in kind}
            if ours != dict(layouts.enum(name)):
                raise RecordsError(f"xlb/keeper/framer.py knows another {name} than the BPF object: install both anew")
        return cls(
            role=_group(Role, layouts.enum("xlb_role"), "XLB_ROLE_"),
            relayed=_group(Relayed, layouts.enum("xlb_relayed"), "XLB_RELAYED_"),
            state=_group(State, layouts.enum("xlb_state"), "XLB_"),
            event=_group(EventType, layouts.enum("xlb_event_type"), "XLB_EV_"),
            gone=_group(Gone, layouts.enum("xlb_gone_flags"), "XLB_GONE_"),
            op=_group(Op, layouts.enum("xlb_op"), "XLB_OP_"),
            capture=_group(Capture, layouts.enum("xlb_capture_kind"), "XLB_CAPTURE_"),
            closing=_group(Closing, layouts.enum("xlb_closing"), "XLB_CLOSING_"),
            pool_flag=_group(PoolFlag, layouts.enum("xlb_pool_flags"), "XLB_POOL_"),
            limits=_group(Limits, layouts.constants(), "XLB_"),
        )
