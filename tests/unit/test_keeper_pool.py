"""When a pool opens one more connection, and when it closes some."""

from __future__ import annotations

import pytest

from xlb.keeper.kernel import PoolTarget
from xlb.keeper.pool import FLOOR, MAX_CONNECTING, MAX_RETIRED, RETRY_REMOTE, WINDOW, Idleness, Pool, surplus
from xlb.keeper.sockets import Endpoint


def pool(depth: int = 512) -> Pool:
    return Pool(1, PoolTarget(Endpoint.parse("127.0.0.1", 80), 1), depth)


def test_no_more_than_the_stack_can_hold() -> None:
    it = pool(depth=2)
    assert it.may_open(0)
    it.members |= {5, 6}
    assert not it.may_open(0)


def test_not_too_many_at_once() -> None:
    it = pool()
    it.young = MAX_CONNECTING
    assert not it.may_open(0)
    it.young -= 1
    assert it.may_open(0)


def test_a_dead_endpoint_is_tried_less_and_less_often() -> None:
    it = pool()
    now, pauses = 100.0, []
    for _ in range(7):
        it.failed(now)
        assert not it.may_open(now)
        pauses.append(it.not_before - now)
        now = it.not_before
        assert it.may_open(now)
    assert pauses == [0.25, 0.5, 1.0, 2.0, 4.0, 5.0, 5.0]
    it.succeeded()
    assert it.may_open(now)
    it.failed(now)
    assert it.not_before - now == 0.25


def test_failures_of_one_moment_count_once() -> None:
    it = pool()
    for _ in range(10):
        it.failed(100.0)
    assert it.not_before == 100.25


def test_a_remote_endpoint_is_tried_again() -> None:
    it = pool()
    it.seems_remote(10.0)
    assert not it.may_open(10.0 + RETRY_REMOTE - 0.1)
    assert it.may_open(10.0 + RETRY_REMOTE)


@pytest.mark.parametrize(
    ("unused", "expected"), [(0, 0), (FLOOR, 0), (FLOOR + 1, 1), (FLOOR + 9, 3), (FLOOR + 500, MAX_RETIRED)]
)
def test_a_quarter_of_the_surplus(unused: int, expected: int) -> None:
    assert surplus(unused) == expected


def test_idle_only_counts_after_the_window() -> None:
    idleness = Idleness()
    found = [idleness.sample(float(second), 20, 0) for second in range(int(WINDOW) + 2)]
    assert found[: int(WINDOW)] == [0] * int(WINDOW)
    assert found[-1] == 20


def test_what_was_needed_for_a_moment_is_not_idle() -> None:
    idleness = Idleness()
    found = [idleness.sample(float(second), 3 if second == 45 else 20, 0) for second in range(120)]
    assert found[59] == 3
    assert found[-1] == 20


def test_a_pool_that_was_empty_had_none_idle() -> None:
    idleness = Idleness()
    found = [idleness.sample(float(second), 20, 1 if second > 50 else 0) for second in range(60)]
    assert found[-1] == 0


def test_closed_ones_are_not_idle_any_more() -> None:
    idleness = Idleness()
    found = [idleness.sample(float(second), 20, 0) for second in range(60)]
    assert found[-1] == 20
    idleness.closed(4)
    assert idleness.sample(60.0, 16, 0) == 16
