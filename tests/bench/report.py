"""From samples to a table of ratios with their targets.  Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any, Final

from tests.bench.load import Sample


class Peer(Enum):
    """Who carries the requests.  The value is the key in the JSON."""

    DIRECT = "direct"
    XLB = "xlb"
    NODE_ENVOY = "node_envoy"
    SIDECARS = "sidecar_pair"
    SAME_RULES = "same_rules"


class Load(Enum):
    """What kind of requests.  The value is the key in the JSON."""

    KEEP_ALIVE = "keep_alive"
    SLOW_PATH = "slow_path"
    CONNECTION_EACH = "connection_each"


PEER_NAMES: Final[Mapping[Peer, str]] = {
    Peer.DIRECT: "no mesh (direct TCP)",
    Peer.XLB: "XLB",
    Peer.NODE_ENVOY: "one node Envoy",
    Peer.SIDECARS: "sidecar pair",
    Peer.SAME_RULES: "our Envoy, dialled directly",
}

LOAD_NAMES: Final[Mapping[Load, str]] = {
    Load.KEEP_ALIVE: "keep-alive, 16 connections (wrk)",
    Load.SLOW_PATH: "requests that are Envoy's, keep-alive, 16 connections (wrk)",
    Load.CONNECTION_EACH: "one request per connection, 16 at a time (hey)",
}


@dataclass(frozen=True, slots=True)
class Medians:
    """The medians over the rounds of one (load, peer)."""

    requests_per_s: float
    p50_us: float
    p99_us: float
    p999_us: float
    errors: int  # the sum, not the median: one lost request must not disappear
    rounds: int


@dataclass(frozen=True, slots=True)
class Finding:
    """One number beside its target.  `target` None: reported without one."""

    key: str
    text: str
    value: float
    unit: str  # "x", "ms", "MB", "%"
    target: float | None = None
    at_least: bool = True  # False: the value should be no more than the target (or less, when `strict`)
    strict: bool = False

    @property
    def reached(self) -> bool | None:
        if self.target is None:
            return None
        if self.at_least:
            return self.value >= self.target
        return self.value < self.target if self.strict else self.value <= self.target


Samples = Mapping[Load, Mapping[Peer, Sequence[Sample]]]
Summary = Mapping[Load, Mapping[Peer, Medians]]


def medians(samples: Sequence[Sample]) -> Medians:
    """Raises statistics.StatisticsError for no samples."""
    return Medians(
        requests_per_s=statistics.median(sample.requests_per_s for sample in samples),
        p50_us=statistics.median(sample.p50_us for sample in samples),
        p99_us=statistics.median(sample.p99_us for sample in samples),
        p999_us=statistics.median(sample.p999_us for sample in samples),
        errors=sum(sample.errors for sample in samples),
        rounds=len(samples),
    )


def summarize(samples: Samples) -> Summary:
    return {load: {peer: medians(runs) for peer, runs in peers.items()} for load, peers in samples.items()}


# (load, peer XLB is compared with, target): throughput of XLB / throughput of the peer.  What XLB adds to requests that
# are Envoy's shows beside an Envoy with the same rules; the other has none (no retry policy, no filters, one route).
_THROUGHPUT: Final = (
    (Load.KEEP_ALIVE, Peer.DIRECT, 1.15),
    (Load.KEEP_ALIVE, Peer.NODE_ENVOY, 4.0),
    (Load.KEEP_ALIVE, Peer.SIDECARS, 8.0),
    (Load.SLOW_PATH, Peer.SAME_RULES, 1.0),
    (Load.SLOW_PATH, Peer.NODE_ENVOY, 1.0),
    (Load.CONNECTION_EACH, Peer.NODE_ENVOY, 1.3),
    (Load.CONNECTION_EACH, Peer.DIRECT, 0.7),
)


def ratios(summary: Summary) -> tuple[Finding, ...]:
    """XLB against each peer that was measured, in the order of the targets."""
    found = []
    for load, peer, target in _THROUGHPUT:
        peers = summary.get(load, {})
        if Peer.XLB in peers and peer in peers:
            found.append(
                Finding(
                    key=f"{load.value}.throughput_vs_{peer.value}",
                    text=f"{LOAD_NAMES[load].partition(',')[0]}: throughput / {PEER_NAMES[peer]}",
                    value=peers[Peer.XLB].requests_per_s / peers[peer].requests_per_s,
                    unit="x",
                    target=target,
                )
            )
    keep_alive = summary.get(Load.KEEP_ALIVE, {})
    if Peer.XLB in keep_alive and Peer.DIRECT in keep_alive:
        xlb, direct = keep_alive[Peer.XLB], keep_alive[Peer.DIRECT]
        for name, value, target_or_none in (
            ("p50", xlb.p50_us / direct.p50_us, 1.0),
            ("p99", xlb.p99_us / direct.p99_us, None),
            ("p99.9", xlb.p999_us / direct.p999_us, None),
        ):
            found.append(
                Finding(
                    key=f"{Load.KEEP_ALIVE.value}.{name}_vs_{Peer.DIRECT.value}",
                    text=f"keep-alive: {name} latency / {PEER_NAMES[Peer.DIRECT]}",
                    value=value,
                    unit="x",
                    target=target_or_none,
                    at_least=False,
                )
            )
    return tuple(found)


def render_load(load: Load, peers: Mapping[Peer, Medians]) -> list[str]:
    """A side-by-side table of one kind of load; the last column is the throughput against the first row's."""
    rows = [("", "requests/s", "p50", "p99", "p99.9", "errors", "throughput")]
    first = next(iter(peers.values()))
    for peer, told in peers.items():
        rows.append(
            (
                PEER_NAMES[peer],
                f"{told.requests_per_s:,.0f}",
                _time(told.p50_us),
                _time(told.p99_us),
                _time(told.p999_us),
                str(told.errors),
                f"{told.requests_per_s / first.requests_per_s:.2f} x",
            )
        )
    return [LOAD_NAMES[load], *("  " + line for line in align(rows))]


def render_findings(findings: Sequence[Finding]) -> list[str]:
    rows = [("", "measured", "target", "")]
    for finding in findings:
        reached = finding.reached
        rows.append(
            (
                finding.text,
                _value(finding.value, finding.unit),
                _target(finding),
                "" if reached is None else "ok" if reached else "below" if finding.at_least else "above",
            )
        )
    return align(rows)


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as they need be: the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def as_json(
    summary: Summary, samples: Samples, findings: Sequence[Finding], conditions: Mapping[str, object]
) -> dict[str, Any]:
    """The whole result; `samples` keeps every round so that a reader can judge the noise."""
    return {
        "conditions": dict(conditions),
        "findings": {
            finding.key: {
                "value": finding.value,
                "unit": finding.unit,
                "target": finding.target,
                "reached": finding.reached,
            }
            for finding in findings
        },
        "medians": {
            load.value: {peer.value: asdict(told) for peer, told in peers.items()} for load, peers in summary.items()
        },
        "rounds": {
            load.value: {peer.value: [asdict(sample) for sample in runs] for peer, runs in peers.items()}
            for load, peers in samples.items()
        },
    }


def _time(microseconds: float) -> str:
    return f"{microseconds:,.0f} us" if microseconds < 10_000 else f"{microseconds / 1000:,.1f} ms"


def _value(value: float, unit: str) -> str:
    return f"{value:.2f} {unit}" if unit == "x" else f"{value:.1f} {unit}"


def _target(finding: Finding) -> str:
    if finding.target is None:
        return "-"
    sign = ">=" if finding.at_least else "<" if finding.strict else "<="
    return f"{sign} {_value(finding.target, finding.unit)}"
