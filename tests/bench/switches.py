"""Configuration switches: how soon they are in force, whether they lose requests, and what they cost in memory."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from tests.bench.lab import Lab, resident_bytes
from tests.bench.load import Sample, parse_wrk, percentile, wrk_command
from tests.bench.mesh import Mesh
from tests.bench.report import Finding
from tests.bench.rounds import Target

SCENARIOS: Final = ("bookinfo-reviews-50-v3", "bookinfo-all-v1")
_MEGABYTE: Final = 1e6
# Allocators settle in the first switches; growth is counted from then on.
_SETTLED_AFTER: Final = 0.1
# What an allocator's arenas may differ by between two looks without anything being kept.
_NOISE_MB: Final = 2.0
_LOAD_S: Final = 4


@dataclass(frozen=True, slots=True)
class SwitchResult:
    """`acknowledged_s` are seconds from the switch order to the last client's ACK, of every switch, sorted."""

    acknowledged_s: tuple[float, ...]
    under_load: Sample
    switches_under_load: int
    settled_bytes: int
    resident_bytes: int

    @property
    def switches(self) -> int:
        return len(self.acknowledged_s)


def run_switches(lab: Lab, mesh: Mesh, target: Target, count: int, progress: Callable[[str], None]) -> SwitchResult:
    """Switch to and fro `count` times, the first of them under keep-alive load.  Raises LabError."""
    scenarios = itertools.cycle(SCENARIOS)
    switcher = mesh.switcher()
    times: list[float] = []
    try:
        progress("switches under load")
        under_load = _under_load(lab, target, times, lambda: switcher.switch(next(scenarios)))
        switches_under_load = len(times)
        settled = 0
        while len(times) < count or not settled:
            if not settled and len(times) >= count * _SETTLED_AFTER:
                settled = resident(mesh)
            if len(times) % 100 == 0:
                progress(f"{len(times)} of {count} switches")
            times.append(_timed(lambda: switcher.switch(next(scenarios))))
        return SwitchResult(tuple(sorted(times)), under_load, switches_under_load, settled, resident(mesh))
    finally:
        switcher.close()


def _under_load(lab: Lab, target: Target, times: list[float], switch: Callable[[], None]) -> Sample:
    """Switch as long as one run of wrk goes on; its errors are the requests that were lost."""
    with ThreadPoolExecutor(1) as pool:
        output = pool.submit(lab.run, [*target.prefix, *wrk_command(target.url, _LOAD_S)])
        while not output.done():
            times.append(_timed(switch))
    return parse_wrk(output.result())


def _timed(action: Callable[[], None]) -> float:
    start = time.monotonic()
    action()
    return time.monotonic() - start


def resident(mesh: Mesh) -> int:
    """Agent plus keeper, in bytes."""
    processes = mesh.processes()
    return resident_bytes(processes.agent) + resident_bytes(processes.keeper)


def findings(result: SwitchResult, push_p99_ms: float | None) -> Iterator[Finding]:
    """`push_p99_ms` is the agent's own measure, received -> in force; None when it has none."""
    if push_p99_ms is not None:
        yield Finding(
            key="push.in_force_p99",
            text="push received -> in force, p99",
            value=push_p99_ms,
            unit="ms",
            target=50.0,
            at_least=False,
            strict=True,
        )
    yield Finding(
        key="push.acknowledged_p99",
        text="switch ordered -> acknowledged by all views, p99",
        value=percentile(result.acknowledged_s, 99) * 1000,
        unit="ms",
    )
    yield Finding(
        key="switches.lost",
        text=f"requests lost in {result.switches_under_load} switches under load",
        value=result.under_load.errors,
        unit="",
        target=0.0,
        at_least=False,
    )
    yield Finding(
        key="memory.resident",
        text="agent + keeper, resident",
        value=result.resident_bytes / _MEGABYTE,
        unit="MB",
        target=120.0,
        at_least=False,
        strict=True,
    )
    yield Finding(
        key="memory.growth",
        text=f"its growth over {result.switches * (1 - _SETTLED_AFTER):,.0f} switches",
        value=(result.resident_bytes - result.settled_bytes) / _MEGABYTE,
        unit="MB",
        target=_NOISE_MB,
        at_least=False,
    )
