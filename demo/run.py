"""The main job, told step by step: start, send traffic, change the rules under it, compare, leave nothing behind."""

from __future__ import annotations

import itertools
import os
import shlex
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from demo.bookinfo.topology import PORT, WORKLOADS, Workload, service_address
from demo.driver import Report, Traffic
from demo.kinds import KINDS, Kind, kind_named
from demo.phases import PHASES, Phase, Verdict, describe, judge
from demo.screen import Screen, Style
from tests.bench.compare import Comparison, backend_workload, find_envoy, start_peers
from tests.bench.lab import Lab, enter_network_namespace, need
from tests.bench.mesh import Mesh, difference, leftovers
from tests.bench.report import Load, Peer, ratios, render_findings, render_load, summarize
from tests.bench.rounds import Plan, measure

CLIENT: Final = "productpage-v1"
_BURST: Final = 20
_CONNECTIONS: Final = 4
_SETTLE_S: Final = 1.5
_STYLES: Final = (Style.BOLD, Style.PLAIN, Style.CYAN, Style.GREEN, Style.YELLOW, Style.DIM)
_LIMITS: Final = (18, 20, 26, 6, 5, 24)  # columns of a table that is 100 wide with what stands between
_PLAN: Final = Plan(rounds=3, wrk_seconds=2, connection_requests=4800)


def run(screen: Screen, *, stay: bool) -> int:
    """The whole demonstration.  Returns the exit code; raises LabError when something could not be done at all."""
    need("ip", "nginx", "wrk", "hey")
    envoy = find_envoy()
    enter_network_namespace()
    instance = f"demo-{os.getpid()}"
    with Lab("xlb-demo") as lab:
        story = _Story(screen, lab, Mesh(lab, instance, envoy))
        story.start()
        story.all_kinds(PHASES[0], KINDS)
        story.changes()
        story.compare()
        if stay:
            story.stay()
        screen.heading("Clean-up")
        story.stop()
    left = leftovers(instance)
    if left:
        story.fail(f"left behind: {', '.join(left)}")
    else:
        screen.done("no process, cgroup, BPF pin or file of this run is left")
    screen.line()
    if story.failures:
        screen.bad(f"{len(story.failures)} checks failed:")
        for failure in story.failures:
            screen.bad(failure)
        return 1
    screen.done(f"all checks passed: {story.checked:,} answers checked, 0 lost, 0 by a rule not in force")
    return 0


class _Story:
    """The steps, in order; what fails a check is kept in `failures` and told at the end too."""

    def __init__(self, screen: Screen, lab: Lab, mesh: Mesh) -> None:
        self._screen = screen
        self._lab = lab
        self._mesh = mesh
        self._services: dict[str, Any] = {}
        self._traffic: Traffic | None = None
        self.failures: list[str] = []
        self.checked = 0

    def fail(self, what: str) -> None:
        self.failures.append(what)
        self._screen.bad(what)

    # -- start ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        screen = self._screen
        screen.heading("Start")
        screen.progress("xlb replay")
        self._mesh.start_replay(PHASES[0].scenario)
        screen.done(f"xlb replay: what istiod generated for bookinfo ({PHASES[0].title}), served over ADS")
        screen.progress("xlb agent")
        self._mesh.start_agent()
        screen.done("xlb agent: BPF programs loaded, keeper and Envoy running")
        for workload in WORKLOADS:
            screen.progress(f"xlb exec --workload {workload.name}")
            self._start_service(workload)
        for workload in WORKLOADS:
            self._lab.wait_listening(workload.name, workload.address, PORT)
        screen.done(f"bookinfo: {', '.join(workload.name for workload in WORKLOADS)},")
        screen.line("      each a process and a workload of its own (xlb exec)")
        self._traffic = Traffic(self._lab, self._mesh.exec_prefix(CLIENT, {"app": "productpage", "version": "v1"}))
        screen.done(f"a client in workload {CLIENT}")

    def _start_service(self, workload: Workload) -> None:
        labels = {"app": workload.service, "version": workload.version}
        server = [sys.executable, "-m", "demo.bookinfo", workload.service]
        server += ["--version", workload.version, "--listen", workload.listen]
        prefix = self._mesh.exec_prefix(workload.name, labels, ip=workload.address)
        self._services[workload.name] = self._lab.start(workload.name, [*prefix, *server])

    @property
    def _client(self) -> Traffic:
        assert self._traffic is not None, "start() comes first"
        return self._traffic

    # -- what requests meet --------------------------------------------------------------------------------------

    def all_kinds(self, phase: Phase, kinds: tuple[Kind, ...]) -> None:
        """Send a burst of each kind, and tell what decided, who answered, and what carried it, measured."""
        self._screen.heading(f"What requests meet: {phase.title}")
        rows: list[tuple[str, ...]] = [
            ("request", "decided by", "answered by", "kernel", "Envoy", "why Envoy (measured)")
        ]
        for kind in kinds:
            self._screen.progress(f"{_BURST} x {kind.name}")
            rows.append(self._one_kind(phase, kind))
        self._screen.table(rows, _STYLES, _LIMITS)

    def _one_kind(self, phase: Phase, kind: Kind) -> tuple[str, ...]:
        told = self._mesh.explain(CLIENT, "GET", kind.url, kind.headers)
        before = self._mesh.counters()
        report = self._client.burst(kind, _BURST)
        counted = difference(before, self._mesh.counters())
        self._judge_burst(phase, kind, report)
        kernel = counted.pop("NONE", 0)
        return (
            kind.name,
            rule_of(told),
            describe(report.backends(), "\n") if report.windows else "-",
            str(kernel),
            str(counted.total()),
            why(counted, told),
        )

    def _judge_burst(self, phase: Phase, kind: Kind, report: Report) -> None:
        self.checked += report.answers
        for why_lost in report.lost:
            self.fail(f"lost: {why_lost}")
        for backends in report.backends():
            if backends not in phase.backends[kind.name]:
                self.fail(f"{kind.name} was answered by {backends} under {phase.title}")

    # -- changes under traffic -----------------------------------------------------------------------------------

    def changes(self) -> None:
        for old, new in itertools.pairwise(PHASES):
            self._screen.heading(f"Change under traffic: {new.title}")
            self._change(old, new)
            self.all_kinds(new, tuple(kind_named(name) for name in new.changed))
        self._mesh.switch(PHASES[0].scenario)

    def _change(self, old: Phase, new: Phase) -> None:
        screen, traffic = self._screen, self._client
        traffic.start(_CONNECTIONS)
        screen.progress(f"traffic on {_CONNECTIONS} x 4 connections under the old rules")
        time.sleep(_SETTLE_S)
        switched = time.monotonic()
        self._mesh.switch(new.scenario)
        in_force = time.monotonic()
        screen.progress("traffic under the new rules")
        time.sleep(_SETTLE_S)
        traffic.stop()
        report = traffic.report()
        verdict = judge(report.windows, old, new, switched, in_force)
        self.checked += verdict.answers
        for line in (*report.lost, *verdict.wrong):
            self.fail(line)
        self._tell(new, verdict, len(report.lost))

    def _tell(self, new: Phase, verdict: Verdict, lost: int) -> None:
        screen = self._screen
        screen.done(f"xlb replay switch {new.scenario}: acknowledged, so in force in the kernel and in Envoy")
        told = screen.done if not (lost or verdict.wrong) else screen.bad
        told(
            f"{verdict.answers:,} requests across the change: {lost} lost, {len(verdict.wrong)} by a rule not in force"
        )
        if verdict.first_new_s is not None and verdict.last_old_s is not None:
            overlap = max(verdict.last_old_s - verdict.first_new_s, 0.0) * 1000
            screen.done(f"from the first answer by the new rules to the last by the old ones: {overlap:.0f} ms")
        for kind in new.changed:
            if kind in verdict.after:
                screen.line(f"        {kind:<18} -> {describe(verdict.after[kind])}")

    # -- comparison ----------------------------------------------------------------------------------------------

    def compare(self) -> None:
        screen = self._screen
        screen.heading("Side by side: no mesh, one node Envoy, an Envoy-to-Envoy sidecar pair, XLB")
        screen.line("  nginx answers 74 bytes; medians of 3 short alternating rounds (`make bench` does it at length)")
        # The backend of the comparison takes the address that the captured configuration has for details-v1.
        self._lab.stop(self._services.pop(backend_workload().name))
        screen.progress("starting the peers")
        comparison = start_peers(self._lab, self._mesh)
        samples = {}
        for load in (Load.KEEP_ALIVE, Load.CONNECTION_EACH):
            samples[load] = measure(
                self._lab,
                load,
                comparison.targets(load),
                _PLAN,
                lambda number, peer: screen.progress(f"round {number} of {_PLAN.rounds}: {peer.value}"),
            )
        summary = summarize(samples)
        for load, peers in summary.items():
            screen.line()
            for line in render_load(load, peers):
                screen.line(f"  {line}", Style.GREEN if line.strip().startswith("XLB ") else Style.PLAIN)
            lost = peers[Peer.XLB].errors
            if lost:
                self.fail(f"{lost} requests of the comparison got no good answer by XLB")
        screen.line()
        for line in render_findings(ratios(summary)):
            screen.line(f"  {line}")
        self._give_back(comparison)

    def _give_back(self, comparison: Comparison) -> None:
        comparison.stop(self._lab)
        workload = backend_workload()
        self._start_service(workload)
        self._lab.wait_listening(workload.name, workload.address, PORT)

    # -- end -----------------------------------------------------------------------------------------------------

    def stay(self) -> None:
        """Wait for Ctrl-C or SIGTERM, with instructions."""
        self._screen.heading("Staying: press Ctrl-C to end")
        inside = f"nsenter --net=/proc/{os.getpid()}/ns/net --"
        for text, command in self._things_to_try():
            self._screen.line(f"  # {text}", Style.DIM)
            self._screen.line(f"  {inside} {shlex.join(command)}")
        try:
            while True:
                signal.pause()
        except KeyboardInterrupt:
            return

    def _things_to_try(self) -> list[tuple[str, list[str]]]:
        mesh = self._mesh
        address, port = service_address("reviews")
        curl = ["curl", "-s", "--resolve", f"reviews:{port}:{address}", f"http://reviews:{port}/reviews/0"]
        as_client = [*mesh.exec_prefix(CLIENT, {"app": "productpage", "version": "v1"})]
        jason = ["-H", "end-user: jason"]
        return [
            ("a request as the productpage workload", [*as_client, *curl, *jason]),
            ("what decides it", mesh.command("explain", "--from", CLIENT, "GET", f"http://reviews:{port}/", *jason)),
            ("another configuration", mesh.switch_command(PHASES[2].scenario)),
            ("the agent", mesh.command("status")),
            ("the rules", mesh.command("routes")),
        ]

    def stop(self) -> None:
        self._client.close()
        for name in reversed(tuple(self._services)):
            self._lab.stop(self._services.pop(name))
        self._mesh.stop()


def rule_of(told: Mapping[str, Any]) -> str:
    """ "reviews, route 1" of an explanation: VirtualService (without its namespace) and route."""
    service = str(told.get("virtual_service") or "no VirtualService").rpartition("/")[2]
    position = told.get("route_position")
    route = told.get("route") or (f"route {position + 1}" if isinstance(position, int) else "no route")
    return f"{service}, {route}"


def why(counted: Counter[str], told: Mapping[str, Any]) -> str:
    """The reasons of the requests that Envoy carried, and what `xlb explain` says if it differs."""
    measured = "\n".join(f"{count} x {plain(name)}" for name, count in counted.most_common())
    reason = str(told.get("reason", "NONE"))
    if reason != "NONE" and reason not in counted:
        return f"{measured}\nexplain says {plain(reason)}".lstrip()
    return measured


def plain(reason: str) -> str:
    return reason.lower().replace("_", " ")
