"""Candidate lists of one virtual host: for each path literal the routes that may match a path found by it.

A request looks up its whole path among the exact literals, else the longest prefix literal, else takes the list of
what needs no literal.  So a list holds also what shorter prefixes and undecided paths bring in, in Envoy's order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from translator.kernel_view import KernelRoute, Reach
from translator.limits import Limits


@dataclass(frozen=True, slots=True)
class PathLists:
    """Positions of routes in their virtual host, ascending; each list ends at the first route that ends the walk.

    A list may hold one position more than the limit, which says that it is too long (`reachable`).  Literals that
    would find the same list without a key of their own are left out.
    """

    any: tuple[int, ...]
    exact: dict[bytes, tuple[int, ...]]
    prefix: dict[bytes, tuple[int, ...]]
    limit: int

    def reachable(self, positions: Sequence[int]) -> tuple[Sequence[int], bool]:
        """The positions to lay out, and whether an undecided route for the budget must follow them."""
        if len(positions) > self.limit:
            return positions[: self.limit - 1], True
        return positions, False


def path_lists(routes: Sequence[KernelRoute], limits: Limits) -> PathLists:
    """Merge the routes of one virtual host into lists; linear in the number of routes."""
    ends = [route.ends_walk for route in routes]
    longest = limits.candidates + 1
    own: dict[Reach, dict[bytes, list[int]]] = {reach: {} for reach in Reach}
    for position, route in enumerate(routes):
        positions = own[route.reach].setdefault(route.literal, [])
        if len(positions) < longest and not (positions and ends[positions[-1]]):
            positions.append(position)
    fallback = tuple(own[Reach.ANY].get(b"", ()))
    merged: dict[bytes, tuple[int, ...]] = {}
    prefix: dict[bytes, tuple[int, ...]] = {}
    lengths: list[int] = []  # of the prefixes in `merged`, ascending
    for literal in sorted(own[Reach.PREFIX], key=len):
        parent = _parent(literal, merged, lengths, fallback)
        merged[literal] = _merge(parent, own[Reach.PREFIX][literal], ends, longest)
        if not lengths or lengths[-1] != len(literal):
            lengths.append(len(literal))
        if merged[literal] != parent:
            prefix[literal] = merged[literal]
    exact: dict[bytes, tuple[int, ...]] = {}
    for literal, positions in own[Reach.EXACT].items():
        parent = _parent(literal, merged, lengths, fallback)
        both = _merge(parent, positions, ends, longest)
        if both != parent:
            exact[literal] = both
    return PathLists(fallback, exact, prefix, limits.candidates)


def _parent(
    literal: bytes, merged: dict[bytes, tuple[int, ...]], lengths: Sequence[int], fallback: tuple[int, ...]
) -> tuple[int, ...]:
    """The list of the longest prefix literal so far that the literal begins with."""
    for length in reversed(lengths):
        if length <= len(literal) and (found := merged.get(literal[:length])) is not None:
            return found
    return fallback


def _merge(one: Sequence[int], other: Sequence[int], ends: Sequence[bool], longest: int) -> tuple[int, ...]:
    """Both lists in order, cut after the first position that ends the walk and after `longest`."""
    merged: list[int] = []
    i = j = 0
    while len(merged) < longest and (i < len(one) or j < len(other)):
        if j >= len(other) or (i < len(one) and one[i] < other[j]):
            position = one[i]
            i += 1
        else:
            position = other[j]
            j += 1
        merged.append(position)
        if ends[position]:
            break
    return tuple(merged)
