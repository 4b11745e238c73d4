"""When two samples of the same traffic differ too much to come from the same rules.

The rule.  Envoy answered `n` requests, we answer `m` of the same kind.  For each outcome, given that it came `k` times
in both together, the number among ours is hypergeometric if both follow the same rules (Fisher's exact test: no
approximation, so it also holds for rare outcomes and small samples).  The case fails if, for any outcome, a number as
far off as ours on that side has a probability below `SIGNIFICANCE / (2 * outcomes)`.  So a case that is right fails
with a probability below 1e-6, however many outcomes it has.  Round robin spreads more evenly than chance does, which
only makes it less likely to fail.  1,000 against 1,000 requests tell a share of 50 % from one of 62 %.

An outcome that Envoy never had is not left to statistics: it fails the case.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import exp, lgamma
from typing import Final

SIGNIFICANCE: Final = 1e-6


def implausible(recorded: Mapping[str, int], seen: Mapping[str, int]) -> str | None:
    """Why two distributions over outcomes cannot come from the same rules; None if they can."""
    for outcome in sorted(seen):
        if seen[outcome] and not recorded.get(outcome):
            return f"{outcome!r} came {seen[outcome]} times, in the recording never"
    recorded_total, seen_total = sum(recorded.values()), sum(seen.values())
    outcomes = [outcome for outcome, count in recorded.items() if count]
    for outcome in sorted(outcomes):
        ours, theirs = seen.get(outcome, 0), recorded[outcome]
        probability = tail(ours, seen_total, ours + theirs, seen_total + recorded_total)
        if probability < SIGNIFICANCE / (2 * len(outcomes)):
            return (
                f"{outcome!r} came {ours} times of {seen_total}, in the recording {theirs} of {recorded_total}: "
                f"probability {probability:.1e} under the same rules"
            )
    return None


def tail(drawn_marked: int, drawn: int, marked: int, total: int) -> float:
    """Probability of a count at least as far off, on its side, among `drawn` of `total` items, `marked` of them marked.

    Hypergeometric distribution: P(X <= drawn_marked) or P(X >= drawn_marked), whichever is smaller.
    """
    lowest, highest = max(0, drawn + marked - total), min(drawn, marked)
    all_ways = _log_choose(total, drawn)

    def probability(x: int) -> float:
        return exp(_log_choose(marked, x) + _log_choose(total - marked, drawn - x) - all_ways)

    below = sum(probability(x) for x in range(lowest, drawn_marked + 1))
    above = sum(probability(x) for x in range(drawn_marked, highest + 1))
    return min(1.0, below, above)


def _log_choose(n: int, k: int) -> float:
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)
