"""Istio's annotations that say which outbound connections of a workload are redirected.  Pure.

They are applied in the order of the rules that Istio makes of them (istio/istio, tools/istio-iptables/pkg/capture):
excluded ports, excluded ranges, included ports, included ranges.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_TRAFFIC: Final = "traffic.sidecar.istio.io/"
INJECT: Final = "sidecar.istio.io/inject"
INCLUDE_PORTS: Final = f"{_TRAFFIC}includeOutboundPorts"
EXCLUDE_PORTS: Final = f"{_TRAFFIC}excludeOutboundPorts"
INCLUDE_RANGES: Final = f"{_TRAFFIC}includeOutboundIPRanges"
EXCLUDE_RANGES: Final = f"{_TRAFFIC}excludeOutboundIPRanges"
_OURS: Final = (INCLUDE_PORTS, EXCLUDE_PORTS, INCLUDE_RANGES, EXCLUDE_RANGES)
# Istio's others of that prefix, which are about what we do not redirect: inbound connections, and by interface.
_OTHERS: Final = frozenset(
    f"{_TRAFFIC}{name}"
    for name in ("includeInboundPorts", "excludeInboundPorts", "excludeInterfaces", "kubevirtInterfaces")
)
_MAX_PORT: Final = 65535
_PORT: Final = re.compile(r"[0-9]{1,5}")
_PREFIX: Final = re.compile(r"[0-9a-fA-F.:]+/[0-9]{1,3}")
_IP4_BITS: Final = 96  # of an IPv4-mapped address before the IPv4 address
_ANY4: Final = ipaddress.IPv4Network("0.0.0.0/0")
_ANY6: Final = ipaddress.IPv6Network("::/0")


class AnnotationError(Exception):
    """One line that names the annotation and says what it may be."""


class Range(Enum):
    """What the ranges say of an address; values are the names in `enum xlb_range`."""

    EXCLUDED = "XLB_RANGE_EXCLUDED"
    NEITHER = "XLB_RANGE_NEITHER"
    INCLUDED = "XLB_RANGE_INCLUDED"


@dataclass(frozen=True, slots=True)
class Redirection:
    """What of a workload's outbound connections may be captured.  `include_ranges` None: all addresses ("*")."""

    injected: bool = True
    include_ports: frozenset[int] = frozenset()
    exclude_ports: frozenset[int] = frozenset()
    include_ranges: tuple[Network, ...] | None = None
    exclude_ranges: tuple[Network, ...] = ()

    @property
    def by_range(self) -> bool:
        """Whether it depends on the address."""
        return self.include_ranges is not None or bool(self.exclude_ranges)

    def keeps_out(self, address: str | None, port: int) -> str | None:
        """The annotation that keeps a connection from being captured; None: none does.

        :param address: None: not known, so that ranges say nothing
        Raises ValueError for what is no address.
        """
        if not self.injected:
            return INJECT
        if port in self.exclude_ports:
            return EXCLUDE_PORTS
        if address is None:
            return None
        ip = ipaddress.ip_address(address)
        if any(ip in network for network in self.exclude_ranges):
            return EXCLUDE_RANGES
        if port in self.include_ports or self.include_ranges is None:
            return None
        return None if any(ip in network for network in self.include_ranges) else INCLUDE_RANGES

    def prefixes(self) -> dict[tuple[int, bytes], Range]:
        """(bits, IPv4-mapped address) -> what holds for it where no longer prefix says otherwise."""
        if not self.by_range:
            return {}
        otherwise = Range.INCLUDED if self.include_ranges is None else Range.NEITHER
        # The two families have nothing to do with each other, but IPv4 lies within IPv6 here.
        made = {_prefix(_ANY6): otherwise, _prefix(_ANY4): otherwise}
        for network in self.include_ranges or ():
            # What is within an excluded range stays excluded, however long its prefix.
            if not any(_within(network, excluded) for excluded in self.exclude_ranges):
                made[_prefix(network)] = Range.INCLUDED
        for network in self.exclude_ranges:
            made[_prefix(network)] = Range.EXCLUDED
        return made


def redirection(annotations: Mapping[str, str], labels: Mapping[str, str] | None = None) -> Redirection:
    """Read a workload's annotations; others than these are nobody's business here.

    :param labels: `sidecar.istio.io/inject` may be a label too, which then decides
    Raises AnnotationError.
    """
    for name in annotations:
        if name.startswith(_TRAFFIC) and name not in _OURS and name not in _OTHERS:
            raise AnnotationError(f"annotation {name}: Istio has none of that name: use {', '.join(_OURS)}")
    ranges = annotations.get(INCLUDE_RANGES, "*")
    return Redirection(
        injected=_injected((labels or {}).get(INJECT, annotations.get(INJECT, ""))),
        include_ports=_ports(INCLUDE_PORTS, annotations),
        exclude_ports=_ports(EXCLUDE_PORTS, annotations),
        include_ranges=None if ranges == "*" else _networks(INCLUDE_RANGES, ranges, 'or "*" for all'),
        exclude_ranges=_networks(EXCLUDE_RANGES, annotations.get(EXCLUDE_RANGES, ""), 'and not "*"'),
    )


def _injected(value: str) -> bool:
    if value not in ("", "true", "false"):
        raise AnnotationError(f"{INJECT}: {value!r} is neither true nor false")
    return value != "false"


def _ports(name: str, annotations: Mapping[str, str]) -> frozenset[int]:
    found = set()
    for word in _words(annotations.get(name, "").strip()):
        text = word.strip()
        if not _PORT.fullmatch(text) or not 0 < int(text) <= _MAX_PORT:
            raise AnnotationError(f"annotation {name}: {text!r} is no port: give 1 to {_MAX_PORT}, separated by commas")
        found.add(int(text))
    return frozenset(found)


def _networks(name: str, value: str, otherwise: str) -> tuple[Network, ...]:
    found: list[Network] = []
    for text in _words(value):
        try:
            if not _PREFIX.fullmatch(text):
                raise ValueError
            found.append(ipaddress.ip_network(text, strict=False))
        except ValueError:
            raise AnnotationError(
                f"annotation {name}: {text!r} is no range: give such as 10.0.0.0/8, separated by commas, {otherwise}"
            ) from None
    return tuple(found)


def _words(value: str) -> Iterable[str]:
    return value.split(",") if value else ()


def _within(inner: Network, outer: Network) -> bool:
    if isinstance(inner, ipaddress.IPv4Network):
        return isinstance(outer, ipaddress.IPv4Network) and inner.subnet_of(outer)
    return isinstance(outer, ipaddress.IPv6Network) and inner.subnet_of(outer)


def _prefix(network: Network) -> tuple[int, bytes]:
    if isinstance(network, ipaddress.IPv6Network):
        return network.prefixlen, network.network_address.packed
    return _IP4_BITS + network.prefixlen, b"\0" * 10 + b"\xff\xff" + network.network_address.packed
