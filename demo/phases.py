"""The four configurations that the demonstration goes through, and the judgement of what clients saw.  Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

# A request that began this long before a switch may have been decided after it.
_IN_FLIGHT_S: Final = 0.2
# Of so many answers split by halves, all would come from one side once in 2^50 runs.
_ENOUGH: Final = 50


@dataclass(frozen=True, slots=True)
class Phase:
    """One captured configuration.  `backends` says, by kind of request, which backends may answer it."""

    scenario: str
    title: str
    changed: tuple[str, ...]  # the kinds whose answers this phase changes
    backends: Mapping[str, frozenset[str]]


@dataclass(frozen=True, slots=True)
class Window:
    """What the traffic program counted: `count` answers to requests that began in one short time window."""

    start: float
    kind: str
    status: int
    backends: str
    by_envoy: bool
    count: int
    latency_s: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of the traffic around one switch.  `wrong` names answers by a rule that was not in force."""

    answers: int
    wrong: tuple[str, ...]
    first_new_s: float | None  # seconds from the switch to the first answer that only the new rules give
    last_old_s: float | None  # and to the last one that only the old rules give
    after: Mapping[str, Counter[str]] = field(default_factory=dict)  # kind -> backends -> answers, once in force


_ALL_V1: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "details": frozenset({"details-v1"}),
        "details, odd path": frozenset({"details-v1"}),
        "reviews": frozenset({"reviews-v1"}),
        "reviews, jason": frozenset({"reviews-v1"}),
        "ratings": frozenset({"ratings-v1"}),
        "ratings, jason": frozenset({"ratings-v1"}),
        "whole page": frozenset({"details-v1 reviews-v1"}),
        "whole page, jason": frozenset({"details-v1 reviews-v1"}),
    }
)
_SPLIT: Final = frozenset({"reviews-v1", "reviews-v3"})
_SPLIT_PAGE: Final = frozenset({"details-v1 reviews-v1", "details-v1 reviews-v3 ratings-v1"})

PHASES: Final[tuple[Phase, ...]] = (
    Phase("bookinfo-all-v1", "every service at v1", (), _ALL_V1),
    Phase(
        "bookinfo-reviews-50-v3",
        "reviews: half v1, half v3",
        ("reviews", "reviews, jason", "whole page", "whole page, jason"),
        {
            **_ALL_V1,
            "reviews": _SPLIT,
            "reviews, jason": _SPLIT,
            "whole page": _SPLIT_PAGE,
            "whole page, jason": _SPLIT_PAGE,
        },
    ),
    Phase(
        "bookinfo-reviews-test-v2-jason",
        "reviews: jason to v2, all others to v1",
        ("reviews", "reviews, jason", "whole page", "whole page, jason"),
        {
            **_ALL_V1,
            "reviews, jason": frozenset({"reviews-v2"}),
            "whole page, jason": frozenset({"details-v1 reviews-v2 ratings-v1"}),
        },
    ),
    Phase(
        "bookinfo-ratings-abort",
        "ratings: a fault (HTTP 500) for jason",
        ("ratings", "ratings, jason", "whole page", "whole page, jason"),
        {
            **_ALL_V1,
            "reviews, jason": frozenset({"reviews-v2"}),
            "ratings, jason": frozenset({"(fault: 500)"}),
            "whole page, jason": frozenset({"details-v1 reviews-v2 ratings:500"}),
        },
    ),
)


def judge(windows: Iterable[Window], old: Phase, new: Phase, switched: float, in_force: float) -> Verdict:
    """Check every answer around a switch at `switched` that was said to be in force at `in_force` (CLOCK_MONOTONIC).

    Requests well before the switch must be answered by the old rules, those begun after `in_force` by the new ones,
    and those between by either.
    """
    answers = 0
    wrong: list[str] = []
    new_starts: list[float] = []
    old_starts: list[float] = []
    after: dict[str, Counter[str]] = {}
    for window in windows:
        answers += window.count
        by_old, by_new = old.backends[window.kind], new.backends[window.kind]
        if window.start >= in_force:
            allowed, rules = by_new, new.title
            after.setdefault(window.kind, Counter())[window.backends] += window.count
        elif window.start < switched - _IN_FLIGHT_S:
            allowed, rules = by_old, old.title
        else:
            allowed, rules = by_old | by_new, "either rule"
        if window.backends not in allowed:
            wrong.append(f"{window.count} x {window.kind!r} by {window.backends} under {rules}")
        if window.backends in by_new - by_old:
            new_starts.append(window.start)
        elif window.backends in by_old - by_new:
            old_starts.append(window.start)
    for kind, counts in after.items():
        unseen = new.backends[kind] - set(counts)
        if unseen and counts.total() >= _ENOUGH:
            wrong.append(f"no answer by {', '.join(sorted(unseen))} among {counts.total()} x {kind!r}")
    return Verdict(
        answers=answers,
        wrong=tuple(wrong),
        first_new_s=max(min(new_starts) - switched, 0.0) if new_starts else None,
        last_old_s=max(max(old_starts) - switched, 0.0) if old_starts else None,
        after=after,
    )


def describe(counts: Mapping[str, int], separator: str = ", ") -> str:
    """ "reviews-v1 52 %, reviews-v3 48 %", in the order of their names; one alone without its share."""
    total = sum(counts.values())
    if len(counts) == 1:
        return next(iter(counts))
    return separator.join(f"{name} {100 * count / total:.0f} %" for name, count in sorted(counts.items()))
