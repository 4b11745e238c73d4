"""The evaluator against recorded answers of a real Envoy to captured Istio configuration."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.unit.captured import OracleCase, load_snapshot, oracle_cases
from translator.evaluate import Decision, decide
from translator.from_xds import translate
from translator.model import FaultAbort, ViewRules

CASES = tuple(oracle_cases())
# The weights of all captured routes repeat within this many consecutive random numbers.
NUMBERS = range(300)
# What depends on time or on a filter that no route decision tells of.
PREFLIGHT = "answered by the CORS filter"
TIMEOUT = "answered by Envoy when the backend was too slow"
NOT_DECIDED: Mapping[str, str] = {
    "features-http/oracle/98": TIMEOUT,
    "features-http/oracle/104": TIMEOUT,
    "features-http/oracle/121": PREFLIGHT,
    "features-http/oracle/122": PREFLIGHT,
    "features-http/oracle/123": PREFLIGHT,
}
# Nothing listens at the address dialled, or the mode knows none.
NOBODY_THERE = ("remote connection failure", "no healthy upstream")
SIGMAS = 5


@functools.cache
def rules_of(node: Path) -> ViewRules:
    return translate(load_snapshot(node))


def decisions(case: OracleCase) -> Counter[Decision]:
    """Every decision the case can meet, by how often."""
    return Counter(decide(rules_of(case.node), case.request, number) for number in NUMBERS)


def can_serve(rules: ViewRules, decision: Decision, backend: str) -> bool:
    """Whether the decision's cluster holds a backend, named "workload" or "workload:port"."""
    name, _, port = backend.partition(":")
    cluster = rules.clusters.get(decision.cluster or "")
    endpoints = cluster.endpoints if cluster else ()
    return any(e.workload == name and port in ("", str(e.port)) for e in endpoints)


@pytest.mark.skipif(not CASES, reason="no oracle files here")
@pytest.mark.parametrize("case", [c for c in CASES if c.result], ids=lambda case: case.label)
def test_one_answer(case: OracleCase) -> None:
    if case.label in NOT_DECIDED:
        pytest.skip(NOT_DECIDED[case.label])
    rules, result = rules_of(case.node), case.result
    assert result is not None
    possible = decisions(case)
    served = result.get("served")
    if served:
        agreeing = [d for d in possible if d.status is None and can_serve(rules, d, served)]
        assert agreeing, possible
        upstream = result.get("upstream")
        for decision in agreeing:
            if upstream:
                assert decision.path_upstream == upstream["path"]
                assert [decision.host_upstream] == upstream["headers"]["host"]
        return
    (decision,) = possible
    if result["status"] == 0:
        assert (decision.action, decision.cluster) == ("tcp", "BlackHoleCluster")
    elif any(text in result.get("body", "") for text in NOBODY_THERE) and decision.status is None:
        assert decision.cluster == "PassthroughCluster"
    else:
        assert decision.status == result["status"]


def aborts(rules: ViewRules, decision: Decision) -> FaultAbort | None:
    """The fault that a part of a decision's requests meets."""
    listener = next(rule for rule in rules.listeners if rule.name == decision.listener)
    hosts = rules.route_configs[listener.route_config].virtual_hosts if listener.route_config else ()
    return next((r.action.abort for h in hosts for r in h.routes if r.index == decision.route_index), None)


def assert_share(found: int, total: int, share: float) -> None:
    """Within so many standard deviations of a binomial distribution."""
    assert abs(found - total * share) <= SIGMAS * math.sqrt(total * share * (1 - share)) + 0.5, (found, total, share)


@pytest.mark.skipif(not CASES, reason="no oracle files here")
@pytest.mark.parametrize("case", [c for c in CASES if c.counts], ids=lambda case: case.label)
def test_a_distribution(case: OracleCase) -> None:
    rules, counts = rules_of(case.node), case.counts
    assert counts is not None
    possible = decisions(case)
    answers = {tuple(answer.split(" ", 1)): count for answer, count in counts.items()}
    # Status 0 is no answer: connections that were open when Envoy took over new listeners.
    answers = {(status, backend): count for (status, backend), count in answers.items() if status != "0"}
    forwarded: Counter[str] = Counter()
    for (status, backend), count in answers.items():
        if backend != "-":
            serving = {str(d.cluster) for d in possible if can_serve(rules, d, backend)}
            assert serving, (status, backend, possible)
            # A backend of several of the clusters says nothing about the choice between them.
            forwarded[serving.pop() if len(serving) == 1 else "any"] += count
        elif all(d.status != int(status) for d in possible):
            (decision,) = possible
            abort = aborts(rules, decision)
            assert abort is not None
            assert abort.http_status == int(status)
            assert_share(count, sum(answers.values()), abort.per_million / 1_000_000)
    if "any" in forwarded:
        return
    weights: Counter[str] = Counter()
    for decision, times in possible.items():
        if decision.status is None:
            weights[str(decision.cluster)] += times
    for cluster, weight in weights.items():
        assert_share(forwarded[cluster], sum(forwarded.values()), weight / sum(weights.values()))
