"""`xlb top`: rates between two looks, and what is drawn."""

from __future__ import annotations

from typing import Any

from xlb.top import pools, rates, render, screen


def _look(time_s: float, requests: dict[str, int], *, lost: int = 0, total: int = 0, pool_requests: int = 0) -> Any:
    keeper = {
        "open": {"A": 7, "U": 2, "E": 1},
        "accepted": 10 * total,
        "relays": {"open": 1, "total": total},
        "spills": {"open": 0, "total": 0},
        "uploads": {"open": 0, "total": 0},
        "pools": [
            {"pool": 3, "endpoint": "10.0.0.1:80", "open": 2, "idle": 1, "connecting": 0, "remote": False},
            {"pool": 99, "endpoint": "127.0.0.1:15100", "open": 1, "idle": 1, "connecting": 0, "remote": False},
        ],
    }
    return {
        "time_s": time_s,
        "views": [{"name": "ns.w-1", "workloads": ["ns/w"], "requests": requests}],
        "push": {"count": 3, "p50_ms": 1.5, "p99_ms": 2.5},
        "bypasses": [],
        "lost_events": lost,
        "keeper": keeper,
        "keeper_error": "",
        "pools": pools(keeper, lambda number: (1, pool_requests + number, 0), {"10.0.0.1:80": "b"}, 90),
    }


def test_rates_are_differences_over_the_time_between() -> None:
    told = rates(
        _look(10.0, {"NONE": 100, "POOL_EMPTY": 5}, total=4, pool_requests=50),
        _look(12.0, {"NONE": 160, "POOL_EMPTY": 5, "ACTION_FAULT": 20}, lost=3, total=6, pool_requests=150),
    )
    assert told["interval_s"] == 2.0
    view = told["views"][0]
    assert (view["requests_per_s"], view["kernel_share"]) == (40.0, 0.75)
    assert view["reasons_per_s"] == {"NONE": 30.0, "ACTION_FAULT": 10.0}
    assert told["pools"][0]["requests_per_s"] == 50.0
    assert [pool["leads_to"] for pool in told["pools"]] == ["b", "Envoy"]
    assert told["connections"] == {"open": 7, "per_s": 10.0}
    assert told["relays"] == {"open": 1, "per_s": 1.0}
    assert told["lost_events"] == {"total": 3, "per_s": 1.5}
    text = render(told)
    for word in ("ns.w-1", "75.0%", "25.0%", "by Envoy: action: fault", "10.0.0.1:80", "lost 3"):
        assert word in text, text


def test_parts_that_begin_again_or_are_gone() -> None:
    before, after = _look(0.0, {"NONE": 100}, total=9), _look(1.0, {"NONE": 3}, total=1)
    told = rates(before, after)
    assert told["views"][0]["kernel_share"] is None
    assert told["relays"]["per_s"] == 0
    after |= {"keeper": None, "pools": [], "keeper_error": "it does not listen"}
    told = rates(before, after)
    assert told["connections"]["open"] == 0
    assert "it does not listen" in render(told)
    new = _look(1.0, {"NONE": 3}) | {"views": [{"name": "other", "workloads": [], "requests": {"NONE": 4}}]}
    assert rates(before, new)["views"][0]["requests_per_s"] == 4.0


def test_a_screen_is_not_overfilled() -> None:
    drawn = screen("\n".join(["x" * 30] * 10), 20, 5)
    lines = drawn.splitlines()
    assert len(lines) == 5  # the last one clears what is below
    assert drawn.count("x" * 20) == 3
    assert "x" * 21 not in drawn
    assert lines[3].startswith("...")
