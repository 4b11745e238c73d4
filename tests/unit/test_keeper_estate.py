"""What a keeper leaves to its successor goes there and comes back the same, or is refused."""

from __future__ import annotations

import json
import struct
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xlb.keeper import estate
from xlb.keeper.estate import (
    EndingEstate,
    Estate,
    EstateError,
    FeedEstate,
    FrameEstate,
    LeadEstate,
    Packed,
    ParkedEstate,
    PoolEstate,
    RelayEstate,
    SpillEstate,
    TalkEstate,
    UploadEstate,
    UpstreamEstate,
    pack,
    unpack,
)
from xlb.keeper.framer import Framer
from xlb.keeper.kernel import Destination, PoolTarget
from xlb.keeper.sockets import Endpoint

U8, U16, U32, U64 = (st.integers(0, (1 << bits) - 1) for bits in (8, 16, 32, 64))
FLAG, TIME, BYTES = st.booleans(), st.floats(allow_nan=False), st.binary(max_size=200)
FD = st.integers(3, 1 << 20)
ENDPOINT = st.builds(Endpoint, st.binary(min_size=16, max_size=16), U16)
TARGET = st.builds(PoolTarget, ENDPOINT, U32)
DESTINATION = st.builds(Destination, ENDPOINT, U32)
FRAME = st.builds(FrameEstate, U8, U8, U16, U32, U32, U32, U64, FLAG)
FEED = st.builds(FeedEstate, FD, FD, U64, FLAG, FLAG, U64, U64, BYTES)
RELAY = st.builds(RelayEstate, FD, FD, U64, FLAG, FLAG, FLAG, FLAG, TIME, BYTES, FEED)
SPILL = st.builds(SpillEstate, U64, U64, U64, FLAG, FRAME, FEED)
UPLOAD = st.builds(UploadEstate, FD, U64, U64, U64, FLAG, BYTES, FRAME, FEED)
PARKED = st.builds(ParkedEstate, FD, U64, FLAG, BYTES)
ENDING = st.builds(EndingEstate, st.one_of(FD, st.just(-1)), U64, TIME)
POOL = st.builds(PoolEstate, U32, TARGET, U32, st.one_of(st.none(), DESTINATION), FLAG, FLAG, TIME, TIME, TIME)
UPSTREAM = st.builds(UpstreamEstate, FD, U64, U32, TIME, FLAG, FLAG)
LEAD = st.builds(LeadEstate, U32, TIME, U64)
TALK = st.builds(TalkEstate, FD, BYTES)


def several(records: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(records, max_size=4).map(tuple)


ESTATES = st.builds(
    Estate,
    pid=U32,
    frozen=TIME,
    listener=st.builds(lambda host, port: Endpoint.parse(str(host), port), st.ip_addresses(v=4), U16),
    port6=U16,
    listeners=several(FD),
    control=FD,
    handover=FD,
    free=several(U32),
    generation=U32,
    at_rest=U32,
    totals=st.dictionaries(st.text(), U64, max_size=4),
    accepted=several(FD),
    talks=several(TALK),
    pools=several(POOL),
    leads=several(LEAD),
    upstreams=several(UPSTREAM),
    relays=several(RELAY),
    spills=several(SPILL),
    uploads=several(UPLOAD),
    parked=several(PARKED),
    endings=several(ENDING),
)

SMALL = Estate(
    pid=7,
    frozen=1.5,
    listener=Endpoint.parse("127.0.0.1", 15001),
    port6=15002,
    listeners=(5, 6),
    control=7,
    handover=8,
    free=(4, 2),
    generation=9,
    at_rest=2,
    totals={"accepted": 12},
    accepted=(20, 21, 22),
    endings=(EndingEstate(23, 1, 2.0), EndingEstate(-1, 2, 3.0)),
    relays=(
        RelayEstate(24, 25, 99, True, False, False, True, 4.0, b"GET", FeedEstate(26, 27, 5, True, False, 3, 10, b"x")),
    ),
)


@settings(max_examples=50, deadline=None)
@given(ESTATES)
def test_it_comes_back_the_same(left: Estate) -> None:
    assert unpack(pack(left)) == left


def test_descriptors_are_renumbered_in_order() -> None:
    packed = pack(SMALL)
    assert packed.fds == (5, 6, 7, 8, 20, 21, 22, 24, 25, 26, 27, 23)
    there = unpack(replace(packed, fds=tuple(fd + 100 for fd in packed.fds)))
    assert there.listeners == (105, 106)
    assert (there.control, there.handover, there.accepted) == (107, 108, (120, 121, 122))
    relay = there.relays[0]
    assert (relay.a, relay.e, relay.feed.injector, relay.feed.sink) == (124, 125, 126, 127)
    assert [ending.a for ending in there.endings] == [123, -1], "-1 is no descriptor"


@settings(max_examples=50, deadline=None)
@given(ESTATES, st.data())
def test_what_is_not_whole_is_refused(left: Estate, data: st.DataObject) -> None:
    packed = pack(left)
    shorter = packed.body[: data.draw(st.integers(0, len(packed.body)), label="bytes")]
    fewer = packed.fds[: data.draw(st.integers(0, len(packed.fds)), label="descriptors")]
    if (shorter, fewer) == (packed.body, packed.fds):
        return
    with pytest.raises(EstateError):
        unpack(Packed(packed.header, shorter, fewer))
    header = json.loads(packed.header)
    header["bytes"], header["descriptors"] = len(shorter), len(fewer)
    with pytest.raises(EstateError):
        unpack(Packed(json.dumps(header).encode(), shorter, fewer))


@pytest.mark.parametrize("theirs", [0, 2, None, "1"])
def test_another_format_is_refused(theirs: object) -> None:
    packed = pack(SMALL)
    header = json.loads(packed.header) | {"format": theirs}
    with pytest.raises(EstateError, match=f"in format {theirs}, this one knows 1: .*start it again"):
        unpack(replace(packed, header=json.dumps(header).encode()))


@pytest.mark.parametrize("header", [b"", b"{}", b"[1]", b"\xff", b'{"format": 1}'])
def test_a_header_that_is_none_is_refused(header: bytes) -> None:
    with pytest.raises(EstateError):
        unpack(replace(pack(SMALL), header=header))


def test_what_does_not_fit_is_no_reason_to_end() -> None:
    """The running keeper says so and goes on: `Offer` catches it."""
    too_large = replace(SMALL, endings=(EndingEstate(-1, 1 << 64, 0.0),))
    with pytest.raises(struct.error):
        pack(too_large)


def test_every_record_of_an_estate_goes_along() -> None:
    own = {
        "pid",
        "frozen",
        "listener",
        "port6",
        "listeners",
        "control",
        "handover",
        "free",
        "generation",
        "at_rest",
        "totals",
    }
    sections = {name for name, _ in estate._SECTIONS}
    assert {one.name for one in fields(Estate)} == own | {"accepted"} | sections


def test_a_framer_goes_on_in_the_middle() -> None:
    start = FrameEstate(0, 0, 0, 0, 0, 0, 0, False)
    message = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\nt: 1\r\n\r\n"
    for cut in range(len(message) + 1):
        before = Framer.of_response(start, to_head=False)
        before.feed(message[:cut])
        left = FrameEstate.of(before)
        after = Framer.of_response(left, left.to_head)
        assert cut + after.feed(message[cut:] + b"more") == len(message) or cut == len(message)
        assert after.is_done, cut
