"""Off-switches: what of the captured connections is not to be the kernel's, and what tells the connect hooks.  Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, Flag, auto
from typing import Any, Final

from xlb.annotations import Range, Redirection
from xlb.identity import DEFAULT_NAMESPACE, IdentityError, wanted

ALL: Final = 0  # workloads or ports, in the keys of the switches
_MAX_PORT: Final = 65535


class BypassError(Exception):
    """One line that says what a bypass is."""


class To(Enum):
    """Where bypassed connections go."""

    DIRECT = "direct"  # not captured: plain TCP to where the application says
    ENVOY = "envoy"  # captured, and straight to the node Envoy


class Switch(Flag):
    """As `enum xlb_switch`; the names are those there."""

    DIRECT = auto()
    ENVOY = auto()
    EXCLUDED = auto()
    INCLUDED = auto()
    RANGES = auto()


_SWITCHES: Final = {To.DIRECT: Switch.DIRECT, To.ENVOY: Switch.ENVOY}
_WORDS: Final = {To.DIRECT: "straight to their destination", To.ENVOY: "straight to Envoy"}


@dataclass(frozen=True, slots=True)
class Bypass:
    """One off-switch.  `workload` is NAMESPACE/NAME, None: all; `port` None: all; not both."""

    workload: str | None
    port: int | None
    to: To = To.DIRECT

    @property
    def key(self) -> tuple[str | None, int | None]:
        """There is one bypass of a key."""
        return self.workload, self.port

    def covers(self, workload: str, port: int) -> bool:
        return self.workload in (None, workload) and self.port in (None, port)

    def document(self) -> dict[str, Any]:
        """As JSON; `from_document` reads it."""
        return {"workload": self.workload, "port": self.port, "to": self.to.value}

    def __str__(self) -> str:
        ports = "" if self.port is None else f" to port {self.port}"
        return f"connections of {self.workload or 'all workloads'}{ports} go {_WORDS[self.to]}"


def from_document(document: Any) -> Bypass:
    """Raises BypassError."""
    if not isinstance(document, dict):
        raise BypassError("a bypass is a JSON object")
    workload, port, to = document.get("workload"), document.get("port"), document.get("to") or To.DIRECT.value
    if workload is None and port is None:
        raise BypassError("name what to bypass: --workload NS/NAME, --port PORT, or both")
    if workload is not None:
        workload = _workload(workload)
    if port is not None and (isinstance(port, bool) or not isinstance(port, int) or not 0 < port <= _MAX_PORT):
        raise BypassError(f"port {port!r}: give 1 to {_MAX_PORT}")
    try:
        return Bypass(workload, port, To(to))
    except ValueError:
        raise BypassError(f"bypass to {to!r}: use {' or '.join(one.value for one in To)}") from None


def _workload(text: Any) -> str:
    if not isinstance(text, str):
        raise BypassError("a workload is NS/NAME")
    namespace, slash, name = text.rpartition("/")
    try:
        known = wanted(name, namespace if slash else DEFAULT_NAMESPACE)
        if slash and not namespace:
            raise IdentityError("the namespace is missing")
    except IdentityError as error:
        raise BypassError(f"workload {text!r}: use NS/NAME ({error})") from None
    return f"{known.namespace}/{known.name}"


def bypass_of(bypasses: Iterable[Bypass], workload: str, port: int) -> Bypass | None:
    """The one that decides about a workload's connections to a port, as the connect hook finds it.

    The closest: of the workload and the port, of the workload, of the port.
    """
    by_key = {one.key: one for one in bypasses}
    keys = ((workload, port), (workload, None), (None, port))
    return next((by_key[key] for key in keys if key in by_key), None)


@dataclass(frozen=True, slots=True)
class Subject:
    """A registered workload: its number in the kernel, NAMESPACE/NAME, and what its annotations say."""

    number: int
    workload: str
    redirection: Redirection


@dataclass(frozen=True, slots=True)
class Table:
    """What xlb_switches, by (workload, port), and xlb_ranges, by (workload, bits, address), are to hold."""

    switches: Mapping[tuple[int, int], Switch]
    ranges: Mapping[tuple[int, int, bytes], Range]


def table(bypasses: Iterable[Bypass], subjects: Iterable[Subject]) -> Table:
    """Both for these workloads."""
    switches: dict[tuple[int, int], Switch] = {}
    ranges: dict[tuple[int, int, bytes], Range] = {}

    def add(workload: int, port: int, switch: Switch) -> None:
        switches[workload, port] = switches.get((workload, port), Switch(0)) | switch

    known = [*subjects]
    for one in bypasses:
        numbers = [ALL] if one.workload is None else [s.number for s in known if s.workload == one.workload]
        for number in numbers:
            add(number, one.port or ALL, _SWITCHES[one.to])
    for subject in known:
        asked = subject.redirection
        if not asked.injected:
            add(subject.number, ALL, Switch.EXCLUDED)
        for port in asked.exclude_ports:
            add(subject.number, port, Switch.EXCLUDED)
        if asked.by_range:
            add(subject.number, ALL, Switch.RANGES)
            for port in asked.include_ports:
                add(subject.number, port, Switch.INCLUDED)
            for (bits, address), found in asked.prefixes().items():
                ranges[subject.number, bits, address] = found
    return Table(switches, ranges)
