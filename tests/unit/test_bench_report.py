"""The benchmark's pure parts: reading the load generators' output, order of rounds, ratios and table."""

from __future__ import annotations

import pytest

from tests.bench.lab import LabError
from tests.bench.load import Sample, parse_hey, parse_wrk, percentile
from tests.bench.report import Finding, Load, Peer, as_json, medians, ratios, render_findings, render_load, summarize
from tests.bench.rounds import schedule

WRK_OUTPUT = """\
Running 2s test @ http://127.1.250.1:9080/f
  1 threads and 16 connections
Requests/sec: 144783.16
WRK {"requests":304061,"duration_us":2100115,"p50":67.0,"p99":236.0,"p999":1150.0,\
"connect":0,"read":1,"write":0,"status":2,"timeout":0}
"""

HEY_OUTPUT = """\
response-time,DNS+dialup,DNS,Request-write,Response-delay,Response-read,status-code,offset
0.0010,0.0002,0.0000,0.0000,0.0005,0.0000,200,0.0000
0.0030,0.0002,0.0000,0.0000,0.0005,0.0000,200,0.0010
0.0020,0.0002,0.0000,0.0000,0.0005,0.0000,503,0.0020
"""


def sample(rate: float, p50: float = 100.0, errors: int = 0) -> Sample:
    return Sample(rate, p50, p50 * 3, p50 * 9, 1000, errors)


def test_parse_wrk() -> None:
    told = parse_wrk(WRK_OUTPUT)
    assert told.requests_per_s == pytest.approx(304061 / 2.100115)
    assert (told.p50_us, told.p99_us, told.p999_us, told.requests, told.errors) == (67, 236, 1150, 304061, 3)


@pytest.mark.parametrize("output", ["", "unable to connect to 127.1.250.1:9080", WRK_OUTPUT.replace("304061", "0")])
def test_parse_wrk_without_a_result(output: str) -> None:
    with pytest.raises(LabError):
        parse_wrk(output)


def test_parse_hey_counts_missing_and_bad_answers_as_errors() -> None:
    told = parse_hey(HEY_OUTPUT, asked=5)
    assert told.requests_per_s == pytest.approx(3 / 0.004)
    assert [told.p50_us, told.p99_us] == pytest.approx([2000, 3000])
    assert (told.requests, told.errors) == (3, 3)


def test_parse_hey_without_an_answer() -> None:
    with pytest.raises(LabError):
        parse_hey(HEY_OUTPUT.splitlines()[0], asked=5)


def test_percentile_is_nearest_rank() -> None:
    values = [float(number) for number in range(1, 1001)]
    assert [percentile(values, percent) for percent in (50, 99, 99.9, 100)] == [500, 990, 999, 1000]
    assert percentile([7.0], 50) == 7.0


def test_every_round_has_every_peer_in_another_order() -> None:
    peers = (Peer.DIRECT, Peer.XLB, Peer.NODE_ENVOY)
    orders = list(schedule(peers, 6))
    assert all(set(order) == set(peers) for order in orders)
    assert [order[0] for order in orders[:3]] == list(peers)


def test_medians_keep_every_error() -> None:
    told = medians([sample(10), sample(30, errors=1), sample(20, errors=2)])
    assert (told.requests_per_s, told.errors, told.rounds) == (20, 3, 3)


def test_ratios_and_targets() -> None:
    found = {
        finding.key: finding
        for finding in ratios(
            summarize(
                {
                    Load.KEEP_ALIVE: {
                        Peer.DIRECT: [sample(100, 70)],
                        Peer.XLB: [sample(150, 60)],
                        Peer.NODE_ENVOY: [sample(40)],
                    },
                    Load.SLOW_PATH: {
                        Peer.XLB: [sample(39)],
                        Peer.SAME_RULES: [sample(40)],
                        Peer.NODE_ENVOY: [sample(50)],
                    },
                }
            )
        )
    }
    assert set(found) == {
        "keep_alive.throughput_vs_direct",
        "keep_alive.throughput_vs_node_envoy",
        "slow_path.throughput_vs_same_rules",
        "slow_path.throughput_vs_node_envoy",
        "keep_alive.p50_vs_direct",
        "keep_alive.p99_vs_direct",
        "keep_alive.p99.9_vs_direct",
    }
    assert found["keep_alive.throughput_vs_direct"].reached is True
    assert found["keep_alive.throughput_vs_node_envoy"].reached is False
    assert found["slow_path.throughput_vs_same_rules"].reached is False
    assert found["slow_path.throughput_vs_node_envoy"].reached is False
    assert found["keep_alive.p50_vs_direct"].reached is True
    assert found["keep_alive.p99_vs_direct"].reached is None


def test_a_strict_target_is_not_reached_by_equality() -> None:
    finding = Finding("k", "t", 50.0, "ms", target=50.0, at_least=False, strict=True)
    assert finding.reached is False


def test_tables_fit_a_terminal() -> None:
    summary = summarize({Load.KEEP_ALIVE: {peer: [sample(1e6, 123456)] for peer in Peer}})
    findings = ratios(summary)
    lines = render_load(Load.KEEP_ALIVE, summary[Load.KEEP_ALIVE]) + render_findings(findings)
    assert max(map(len, lines)) <= 100
    assert any("1.00 x" in line and "ok" in line for line in render_findings(findings))
    assert any("below" in line for line in render_findings(findings))


def test_json_keeps_the_rounds() -> None:
    samples = {Load.KEEP_ALIVE: {Peer.DIRECT: [sample(1), sample(2)], Peer.XLB: [sample(3), sample(4)]}}
    summary = summarize(samples)
    told = as_json(summary, samples, ratios(summary), {"kernel": "test"})
    assert [run["requests_per_s"] for run in told["rounds"]["keep_alive"]["xlb"]] == [3, 4]
    assert told["findings"]["keep_alive.throughput_vs_direct"]["value"] == pytest.approx(3.5 / 1.5)
    assert told["conditions"] == {"kernel": "test"}
