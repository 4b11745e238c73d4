"""The demonstration's judgement of what clients saw."""

from __future__ import annotations

import pytest

from demo.kinds import KINDS
from demo.phases import PHASES, Window, describe, judge

ALL_V1, SPLIT, JASON, _FAULT = PHASES


def window(start: float, kind: str, backends: str, count: int = 1) -> Window:
    return Window(start, kind, 200, backends, False, count, 0.001 * count)


def test_every_phase_says_what_to_expect_of_every_kind() -> None:
    for phase in PHASES:
        assert set(phase.backends) == {kind.name for kind in KINDS}
        assert set(phase.changed) <= set(phase.backends)


def test_a_clean_switch() -> None:
    verdict = judge(
        [
            window(9.0, "reviews, jason", "reviews-v1", 7),
            window(10.010, "reviews, jason", "reviews-v1"),
            window(10.015, "reviews, jason", "reviews-v2"),
            window(10.5, "reviews, jason", "reviews-v2", 5),
        ],
        old=ALL_V1,
        new=JASON,
        switched=10.0,
        in_force=10.03,
    )
    assert verdict.wrong == ()
    assert verdict.answers == 14
    assert verdict.last_old_s == pytest.approx(0.010)
    assert verdict.first_new_s == pytest.approx(0.015)
    assert verdict.after == {"reviews, jason": {"reviews-v2": 5}}


@pytest.mark.parametrize(
    ("start", "backends"),
    [(9.0, "reviews-v2"), (10.05, "reviews-v1"), (10.01, "reviews-v3")],
    ids=["new rule before the switch", "old rule once the new one is in force", "no rule's backend"],
)
def test_an_answer_by_the_wrong_rule_is_named(start: float, backends: str) -> None:
    verdict = judge([window(start, "reviews, jason", backends, 3)], ALL_V1, JASON, 10.0, 10.03)
    assert len(verdict.wrong) == 1
    assert backends in verdict.wrong[0]
    assert "3 x" in verdict.wrong[0]


def test_a_side_of_a_split_that_never_answers_is_named() -> None:
    verdict = judge([window(11.0, "reviews", "reviews-v1", 60)], ALL_V1, SPLIT, 10.0, 10.03)
    assert verdict.wrong == ("no answer by reviews-v3 among 60 x 'reviews'",)


def test_describe() -> None:
    assert describe({"reviews-v1": 3}) == "reviews-v1"
    assert describe({"reviews-v1": 1, "reviews-v3": 3}) == "reviews-v1 25 %, reviews-v3 75 %"
