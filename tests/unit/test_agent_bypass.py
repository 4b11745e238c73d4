"""Off-switches: what they are, which one decides, and what the connect hooks are told; Istio's annotations."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xlb.annotations import (
    EXCLUDE_PORTS,
    EXCLUDE_RANGES,
    INCLUDE_PORTS,
    INCLUDE_RANGES,
    INJECT,
    AnnotationError,
    Range,
    Redirection,
    redirection,
)
from xlb.bypass import Bypass, BypassError, Subject, Switch, To, bypass_of, from_document, table
from xlb.captures import mapped
from xlb.identity import Identity, IdentityError, wanted
from xlb.state import State, WorkloadState
from xlb.workloads import identity_of


def test_a_bypass_is_read_as_it_was_written() -> None:
    for bypass in (Bypass("ns/w", None), Bypass(None, 80, To.ENVOY), Bypass("ns/w", 65535)):
        assert from_document(bypass.document()) == bypass
    assert from_document({"workload": "w"}) == Bypass("default/w", None, To.DIRECT)


@pytest.mark.parametrize(
    "document",
    [
        [],
        {},
        {"workload": None, "port": None},
        {"workload": 3},
        {"workload": "/w"},
        {"workload": "a/b/c"},
        {"workload": "ns/"},
        {"port": 0},
        {"port": 65536},
        {"port": "80"},
        {"port": True},
        {"port": 80, "to": "nowhere"},
    ],
)
def test_what_is_no_bypass(document: object) -> None:
    with pytest.raises(BypassError):
        from_document(document)


def test_the_closest_bypass_decides() -> None:
    port, workload, both = Bypass(None, 80), Bypass("ns/w", None, To.ENVOY), Bypass("ns/w", 80)
    assert bypass_of((port, workload, both), "ns/w", 80) is both
    assert bypass_of((port, workload), "ns/w", 80) is workload
    assert bypass_of((port, workload, both), "ns/w", 81) is workload
    assert bypass_of((port, workload, both), "ns/other", 80) is port
    assert bypass_of((port, workload, both), "ns/other", 81) is None


def test_the_table_of_the_hooks() -> None:
    nothing = Redirection()
    subjects = (
        Subject(1, "ns/w", nothing),
        Subject(2, "ns/w", redirection({EXCLUDE_PORTS: "80,81"})),
        Subject(3, "ns/other", redirection({INJECT: "false"})),
        Subject(4, "ns/ranges", redirection({INCLUDE_RANGES: "", INCLUDE_PORTS: "443"})),
        # Without ranges all addresses are included, so a port adds nothing.
        Subject(5, "ns/port", redirection({INCLUDE_PORTS: "443"})),
    )
    made = table((Bypass("ns/w", 80), Bypass(None, 80, To.ENVOY), Bypass("ns/gone", None)), subjects)
    assert made.switches == {
        (1, 80): Switch.DIRECT,
        (2, 80): Switch.DIRECT | Switch.EXCLUDED,
        (2, 81): Switch.EXCLUDED,
        (0, 80): Switch.ENVOY,
        (3, 0): Switch.EXCLUDED,
        (4, 0): Switch.RANGES,
        (4, 443): Switch.INCLUDED,
    }
    assert {(number, found) for (number, _, _), found in made.ranges.items()} == {(4, Range.NEITHER)}
    assert not table((), subjects[:1]).switches


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (EXCLUDE_PORTS, "http"),
        (EXCLUDE_PORTS, "80;81"),
        (EXCLUDE_PORTS, "80,"),
        (EXCLUDE_PORTS, "0"),
        (INCLUDE_PORTS, "65536"),
        (INCLUDE_PORTS, "*"),
        (EXCLUDE_RANGES, "*"),
        (EXCLUDE_RANGES, "10.0.0.0"),
        (EXCLUDE_RANGES, "10.0.0.0/33"),
        (INCLUDE_RANGES, "10.0.0.0/255.0.0.0"),
        (INCLUDE_RANGES, "*,10.0.0.0/8"),
        (INCLUDE_RANGES, "10.0.0.0/8, 11.0.0.0/8"),
        (INJECT, "no"),
        ("traffic.sidecar.istio.io/excludeOutboundPort", "80"),
    ],
)
def test_malformed_annotations_are_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(AnnotationError) as raised:
        redirection({name: value})
    assert name in str(raised.value)
    assert "\n" not in str(raised.value)
    with pytest.raises(IdentityError):
        wanted("w", annotations={name: value})


def test_annotations_in_istios_order() -> None:
    asked = redirection(
        {
            EXCLUDE_PORTS: " 22 , 23 ",
            EXCLUDE_RANGES: "10.1.0.0/16",
            INCLUDE_PORTS: "443",
            INCLUDE_RANGES: "10.0.0.0/8,fd00::/8",
            "traffic.sidecar.istio.io/excludeInboundPorts": "80",
            "prometheus.io/port": "x",
        }
    )
    assert asked.keeps_out("10.2.0.1", 22) == EXCLUDE_PORTS
    assert asked.keeps_out("10.1.0.1", 443) == EXCLUDE_RANGES
    assert asked.keeps_out("192.0.2.1", 443) is None
    assert asked.keeps_out("192.0.2.1", 80) == INCLUDE_RANGES
    assert asked.keeps_out("10.2.0.1", 80) is None
    assert asked.keeps_out("fd00::1", 80) is None
    assert asked.keeps_out("2001:db8::1", 80) == INCLUDE_RANGES
    assert asked.keeps_out(None, 80) is None
    assert redirection({}) == Redirection()
    assert redirection({INCLUDE_RANGES: "*", INJECT: "true"}) == Redirection()


def test_the_label_decides_about_injection() -> None:
    assert redirection({INJECT: "false"}).keeps_out("10.0.0.1", 80) == INJECT
    assert redirection({}, {INJECT: "false"}).keeps_out("10.0.0.1", 80) == INJECT
    assert redirection({INJECT: "false"}, {INJECT: "true"}).injected


_RANGES = st.lists(
    st.builds(
        lambda number, bits: ipaddress.ip_network((number << 28, bits), strict=False),
        st.integers(0, 15),
        st.integers(0, 6),
    )
    | st.builds(
        lambda number, bits: ipaddress.ip_network((number << 124, bits), strict=False),
        st.integers(0, 15),
        st.integers(0, 6),
    ),
    max_size=4,
)


@given(include=st.none() | _RANGES, exclude=_RANGES, number=st.integers(0, 15), ip6=st.booleans(), port=st.booleans())
def test_the_longest_prefix_says_what_the_rules_say(
    include: Any, exclude: Any, number: int, ip6: bool, port: bool
) -> None:
    asked = Redirection(
        include_ports=frozenset({443} if port else ()),
        include_ranges=None if include is None else tuple(include),
        exclude_ranges=tuple(exclude),
    )
    address = str(ipaddress.IPv6Address(number << 124) if ip6 else ipaddress.IPv4Address(number << 28))
    captured = True
    if asked.by_range:
        text = int.from_bytes(mapped(address), "big")
        hits = {
            bits: found
            for (bits, prefix), found in asked.prefixes().items()
            if text >> (128 - bits) == int.from_bytes(prefix, "big") >> (128 - bits)
        }
        # As the connect hook reads it.
        order = [Range.EXCLUDED, Range.NEITHER, Range.INCLUDED]
        captured = order.index(hits[max(hits)]) >= (1 if port else 2)
    assert captured == (asked.keeps_out(address, 443) is None)


def test_annotations_belong_to_a_workload_and_not_to_its_view() -> None:
    notes = {EXCLUDE_PORTS: "80"}
    one, other = wanted("w", annotations=notes), wanted("w")
    assert one.identity().key == other.identity().key
    assert other.fits(one.identity())  # not said: what is registered decides
    assert not one.fits(other.identity())
    assert one.identity().redirection.exclude_ports == frozenset({80})
    saved = WorkloadState("w", "default", {}, "default", "127.0.0.1", "default.w", 1, notes)
    assert identity_of(saved) == one.identity()
    assert identity_of(WorkloadState("w", "default", {}, "default", "127.0.0.1", "f", 1)) == Identity("w")
    assert State("127.0.0.1").bypasses == ()
