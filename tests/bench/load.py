"""The load generators: their command lines, and what their output says."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench.lab import LabError

CONNECTIONS: Final = 16
# The name that the rules know; the peers without rules take it as it comes.
HOST: Final = "details:9080"
_SCRIPT: Final = Path(__file__).with_name("wrk.lua")


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of a load generator.  Latencies in microseconds; `errors` counts requests without a good answer."""

    requests_per_s: float
    p50_us: float
    p99_us: float
    p999_us: float
    requests: int
    errors: int


def wrk_command(url: str, seconds: int, connections: int = CONNECTIONS) -> list[str]:
    """One thread, keep-alive."""
    return ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(_SCRIPT), "-H", f"Host: {HOST}", url]


def curl_command(url: str) -> list[str]:
    """One request as the load generators send them; prints the body, fails on a status from 400."""
    return ["curl", "-sS", "--fail", "--path-as-is", "-H", f"Host: {HOST}", "--max-time", "5", url]


def parse_wrk(output: str) -> Sample:
    """What `wrk.lua` printed.  Raises LabError when it is not there or no request was answered."""
    for line in output.splitlines():
        if line.startswith("WRK "):
            told = json.loads(line[4:])
            break
    else:
        raise LabError(f"wrk printed no result: {output.strip()[-200:]!r}")
    if told["requests"] == 0:
        raise LabError("wrk got no answer at all")
    return Sample(
        requests_per_s=told["requests"] / (told["duration_us"] / 1e6),
        p50_us=told["p50"],
        p99_us=told["p99"],
        p999_us=told["p999"],
        requests=told["requests"],
        errors=sum(told[name] for name in ("connect", "read", "write", "status", "timeout")),
    )


def hey_command(url: str, requests: int, connections: int = CONNECTIONS) -> list[str]:
    """One request per connection: `Connection: close` on each.

    `requests` must be a multiple of `connections`: hey would leave the rest out.
    """
    if requests % connections:
        raise ValueError(f"{requests} requests cannot be shared among {connections} connections")
    return ["hey", "-disable-keepalive", "-n", str(requests), "-c", str(connections), "-o", "csv", "-host", HOST, url]


def parse_hey(output: str, asked: int) -> Sample:
    """hey's CSV: a line per answer (failed requests have none, so they are counted by their absence).

    Columns used: `response-time` (seconds, connection set-up included), `status-code`, `offset` (start, seconds).
    Raises LabError when no request was answered.
    """
    rows = list(csv.DictReader(io.StringIO(output)))
    if not rows:
        raise LabError("hey got no answer at all")
    times = sorted(float(row["response-time"]) for row in rows)
    good = sum(1 for row in rows if row["status-code"] == "200")
    elapsed = max(float(row["offset"]) + float(row["response-time"]) for row in rows)
    return Sample(
        requests_per_s=len(rows) / elapsed,
        p50_us=percentile(times, 50) * 1e6,
        p99_us=percentile(times, 99) * 1e6,
        p999_us=percentile(times, 99.9) * 1e6,
        requests=len(rows),
        errors=asked - good,
    )


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile of a sorted, non-empty sequence."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]
