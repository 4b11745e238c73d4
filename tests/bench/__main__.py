"""`python -m tests.bench`: what `make bench` runs."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.bench.compare import Comparison, find_envoy, start_peers
from tests.bench.lab import Lab, LabError, cpu_seconds, enter_network_namespace, interrupt_once, need
from tests.bench.load import CONNECTIONS
from tests.bench.mesh import Mesh, leftovers
from tests.bench.report import Finding, Load, Peer, Samples, as_json, ratios, render_findings, render_load, summarize
from tests.bench.rounds import Plan, measure, one_run
from tests.bench.switches import findings as switch_findings
from tests.bench.switches import run_switches

_SCENARIO: Final = "bookinfo-all-v1"
_SWITCHES: Final = 500
_LONG_SWITCHES: Final = 10_000


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[2K... {text}")
        sys.stderr.flush()


def main() -> int:
    arguments = _arguments()
    interrupt_once()
    instance = f"bench-{os.getpid()}"
    try:
        need("ip", "nginx", "wrk", "hey", "curl")
        find_envoy()
        enter_network_namespace()
        with Lab("xlb-bench") as lab:
            code = _bench(lab, Mesh(lab, instance, find_envoy()), arguments)
    except LabError as error:
        _progress("")
        sys.stderr.write(f"bench: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\nbench: interrupted\n")
        return 1
    for thing in leftovers(instance):
        sys.stderr.write(f"bench: left behind: {thing}\n")
        code = 1
    return code


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="XLB beside its peers, same run")
    parser.add_argument("--rounds", type=int, default=5, help="alternating rounds (default 5)")
    parser.add_argument("--seconds", type=int, default=3, help="of each keep-alive run (default 3)")
    parser.add_argument("--requests", type=int, default=24_000, help="of each run of one request per connection")
    parser.add_argument("--workers", type=int, default=1, help="nginx workers (default 1)")
    parser.add_argument("--switches", type=int, help=f"configuration switches (default {_SWITCHES})")
    parser.add_argument("--long", action="store_true", help=f"{_LONG_SWITCHES:,} configuration switches")
    parser.add_argument("--output", type=Path, default=Path("bench-results/bench-results.json"), help="JSON file")
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.seconds < 1 or arguments.requests < 1:
        parser.error("rounds, seconds and requests are at least 1")
    arguments.requests = math.ceil(arguments.requests / CONNECTIONS) * CONNECTIONS
    if arguments.switches is None:
        arguments.switches = _LONG_SWITCHES if arguments.long else _SWITCHES
    return arguments


def _bench(lab: Lab, mesh: Mesh, arguments: argparse.Namespace) -> int:
    mesh.start_replay(_SCENARIO)
    mesh.start_agent()
    comparison = start_peers(lab, mesh, arguments.workers)
    plan = Plan(arguments.rounds, arguments.seconds, arguments.requests)
    keeper = _KeeperCpu(mesh)
    _warm_up(lab, comparison)
    samples = {
        load: measure(
            lab,
            load,
            comparison.targets(load),
            plan,
            lambda number, peer, load=load: _progress(f"{load.value}: round {number} of {plan.rounds}, {peer.value}"),  # type: ignore[misc]
            keeper.around if load is Load.KEEP_ALIVE else None,
        )
        for load in Load
    }
    kernel_share = keeper.kernel_share()
    switched = run_switches(lab, mesh, comparison.targets(Load.KEEP_ALIVE)[Peer.XLB], arguments.switches, _progress)
    summary = summarize(samples)
    found = (
        *ratios(summary),
        *switch_findings(switched, mesh.push_p99_ms()),
        Finding("keeper.cpu", "keeper's CPU during the keep-alive load", keeper.percent, "%", 2.0, False, True),
        Finding("keep_alive.kernel_share", "keep-alive requests carried by the kernel", kernel_share, "%"),
    )
    conditions = _conditions(arguments, switched.switches)
    _progress("")
    _print(samples, found, conditions)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(as_json(summary, samples, found, conditions), indent=1) + "\n")
    sys.stdout.write(f"\nwritten to {arguments.output}\n")
    return 0


class _KeeperCpu:
    """The keeper's CPU share while XLB is under keep-alive load, and how many of the requests the kernel carried."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._shares: list[float] = []
        self._kernel = 0
        self._all = 0

    def around(self, peer: Peer) -> Callable[[], None] | None:
        if peer is not Peer.XLB:
            return None
        keeper = self._mesh.processes().keeper
        counters = self._mesh.counters()
        cpu, start = cpu_seconds(keeper), time.monotonic()

        def after() -> None:
            self._shares.append((cpu_seconds(keeper) - cpu) / (time.monotonic() - start))
            counted = self._mesh.counters() - counters
            self._kernel += counted["NONE"]
            self._all += counted.total()

        return after

    @property
    def percent(self) -> float:
        return 100 * statistics.median(self._shares)

    def kernel_share(self) -> float:
        return 100 * self._kernel / max(self._all, 1)


def _warm_up(lab: Lab, comparison: Comparison) -> None:
    """One short run of everybody: pools are opened on first use, and page caches and branch predictors too."""
    plan = Plan(1, 1, 2000)
    for load in Load:
        for peer, target in comparison.targets(load).items():
            _progress(f"warm-up: {load.value}, {peer.value}")
            one_run(lab, load, target, plan)


def _conditions(arguments: argparse.Namespace, switches: int) -> dict[str, object]:
    return {
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "rounds": arguments.rounds,
        "wrk_seconds": arguments.seconds,
        "hey_requests": arguments.requests,
        "nginx_workers": arguments.workers,
        "envoy_concurrency": 1,
        "switches": switches,
        "scenario": _SCENARIO,
    }


def _print(samples: Samples, found: tuple[Finding, ...], conditions: dict[str, object]) -> None:
    out = sys.stdout
    out.write(
        f"Linux {conditions['kernel']}, {conditions['cpus']} CPUs, all on loopback; medians of {conditions['rounds']} "
        f"alternating rounds.\nnginx with {conditions['nginx_workers']} worker answers 74 bytes; each Envoy has one "
        f"worker, router filter only, no mTLS.\n{conditions['switches']:,} configuration switches"
        f"{'' if conditions['switches'] == _LONG_SWITCHES else ' (`make bench LONG=1`: 10,000)'}.\n"
    )
    for load, peers in summarize(samples).items():
        out.write("\n" + "\n".join(render_load(load, peers)) + "\n")
    out.write("\nXLB against its targets\n" + "".join(f"  {line}\n" for line in render_findings(found)))


if __name__ == "__main__":
    sys.exit(main())
