"""Listener rules of a view -> what its connect hooks capture.  Pure.

The kernel looks up (address, port), then (any, port), then (any, 0), as `translator.evaluate.find_listener` does.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from translator.model import ListenerKind, ListenerRule
from translator.reasons import Reason

_WILDCARDS: Final = ("0.0.0.0", "::")


class CaptureKind(Enum):
    """Values are the names in `enum xlb_capture_kind`."""

    NONE = "XLB_CAPTURE_NONE"
    MIXED = "XLB_CAPTURE_MIXED"
    ENVOY = "XLB_CAPTURE_ENVOY"


@dataclass(frozen=True, slots=True)
class Destination:
    """`address` as 16 bytes, IPv4 mapped into IPv6; the wildcard address and port 0 mean "any"."""

    address: bytes
    port: int


@dataclass(frozen=True, slots=True)
class Capture:
    """`image` is a slot of xlb_images (MIXED), `envoy_port` where the node Envoy listens for this listener."""

    kind: CaptureKind
    image: int = 0
    envoy_port: int = 0
    reason: Reason = Reason.NONE


def mapped(address: str) -> bytes:
    """An IP literal as the kernel half keeps addresses: 16 bytes, IPv4 as ::ffff:a.b.c.d.  Raises ValueError."""
    ip = ipaddress.ip_address(address)
    return ip.packed if ip.version == 6 else b"\0" * 10 + b"\xff\xff" + ip.packed


def captures(
    listeners: Iterable[ListenerRule], ports: Mapping[str, int], images: Mapping[str, int]
) -> dict[Destination, Capture]:
    """What a view captures.

    :param ports: the node Envoy's port by listener name; what Envoy does not serve is not captured
    :param images: slot by route configuration
    """
    rules: dict[tuple[str, int], ListenerRule] = {}
    for rule in listeners:
        rules.setdefault((rule.address, rule.port), rule)
    made: dict[Destination, Capture] = {}
    shadows: list[tuple[str, int]] = []
    for (address, port), rule in rules.items():
        if rule.bound and address in _WILDCARDS:
            continue  # takes only connections to this host, which an address does not tell
        capture = _capture(rule, ports, images)
        if capture is None:
            shadows.append((address, port))
        else:
            made[Destination(mapped(address), port)] = capture
    for address, port in shadows:
        if any(wider in made for wider in _wider(address, port)):
            made[Destination(mapped(address), port)] = Capture(CaptureKind.NONE)
    return made


def _capture(rule: ListenerRule, ports: Mapping[str, int], images: Mapping[str, int]) -> Capture | None:
    port = ports.get(rule.name)
    if port is None or rule.kind is ListenerKind.DIRECT:
        return None
    slot = images.get(rule.route_config) if rule.route_config is not None else None
    if rule.kind is ListenerKind.HTTP and slot is not None:
        return Capture(CaptureKind.MIXED, image=slot, envoy_port=port)
    reason = rule.reason or (Reason.NO_IMAGE if rule.kind is ListenerKind.HTTP else Reason.LISTENER_OTHER)
    return Capture(CaptureKind.ENVOY, envoy_port=port, reason=reason)


def _wider(address: str, port: int) -> list[Destination]:
    """The entries that would be found without one for this address and port."""
    anywhere = mapped("::" if ":" in address else "0.0.0.0")
    return [
        wider
        for wider in (Destination(anywhere, port), Destination(anywhere, 0))
        if wider != Destination(mapped(address), port)
    ]
