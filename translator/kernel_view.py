"""How the kernel sees a route configuration: which routes it can decide, and what the image's budgets take from it.

The image builder lays this out and the evaluator walks it, so both give the same reasons.  Whatever the kernel cannot
decide stays in its place among the others as an undecided route: a request that gets as far as it goes to Envoy.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from translator.limits import Limits
from translator.model import HeaderMatch, PathKind, RouteConfigRule, RouteRule, VirtualHostRule
from translator.reasons import Reason


class Reach(Enum):
    """For which paths a route is a candidate."""

    EXACT = "exact"
    PREFIX = "prefix"
    ANY = "any"


@dataclass(frozen=True, slots=True)
class KernelRoute:
    """A route as the kernel walks it.

    `undecided` other than NONE: the walk ends here, at Envoy.  Then `predicates` is empty, and `literal` may be
    shorter than the route's own: it is a candidate for more paths than it can match.
    """

    rule: RouteRule
    reach: Reach
    literal: bytes
    undecided: Reason
    predicates: tuple[HeaderMatch, ...]
    action_reason: Reason

    @property
    def ends_walk(self) -> bool:
        """Whether no route behind this one is ever reached by a request that this one is a candidate for."""
        return bool(self.undecided) or not self.predicates

    def accepts(self, path: bytes) -> bool:
        """Whether the route is a candidate for a path (without query)."""
        if self.reach is Reach.EXACT:
            return path == self.literal
        return self.reach is Reach.ANY or path.startswith(self.literal)


@dataclass(frozen=True, slots=True)
class KernelHost:
    """A virtual host; `routes` is empty if all of it is Envoy's."""

    rule: VirtualHostRule
    routes: tuple[KernelRoute, ...]


@dataclass(frozen=True, slots=True)
class KernelView:
    """`names`: the headers looked at, slot 1 first.  `reason` other than NONE: everything goes to Envoy."""

    hosts: tuple[KernelHost, ...]
    names: tuple[str, ...]
    reason: Reason


class DomainKind(Enum):
    EXACT = "exact"
    SUFFIX = "suffix"  # *example.com
    PREFIX = "prefix"  # example.*
    ANY = "any"  # *


METHOD: Final = ":method"


def domain_kind(domain: str) -> tuple[DomainKind, str]:
    """The kind of a virtual host's domain and its text without the wildcard (config_impl.cc, RouteMatcher)."""
    if domain == "*":
        return DomainKind.ANY, ""
    if domain.startswith("*"):
        return DomainKind.SUFFIX, domain[1:]
    if domain.endswith("*"):
        return DomainKind.PREFIX, domain[:-1]
    return DomainKind.EXACT, domain


def kernel_view(config: RouteConfigRule, limits: Limits) -> KernelView:
    """What of a route configuration the kernel can carry within `limits`."""
    reason = config.reason or _domains_reason(config, limits)
    if reason:
        return KernelView(tuple(KernelHost(host, ()) for host in config.virtual_hosts), (), reason)
    drafts = [
        [_draft(route, limits) for route in host.routes] if not host.reason else [] for host in config.virtual_hosts
    ]
    slots: dict[str, None] = {}
    hosts = []
    for host, routes in zip(config.virtual_hosts, drafts, strict=True):
        named = [_with_slots(route, slots, limits) for route in routes]
        hosts.append(KernelHost(host, tuple(_with_lengths(named, limits))))
    return KernelView(tuple(hosts), tuple(slots), Reason.NONE)


def candidates(routes: Iterable[KernelRoute], limits: Limits) -> tuple[Sequence[KernelRoute], bool]:
    """The reachable part of a list of candidates, and whether a synthetic undecided route (BUDGET_CANDIDATES) ends it.

    :param routes: all candidates for one path, in Envoy's order
    """
    found: list[KernelRoute] = []
    for route in routes:
        found.append(route)
        if len(found) > limits.candidates:
            return found[: limits.candidates - 1], True
        if route.ends_walk:
            break
    return found, False


def _domains_reason(config: RouteConfigRule, limits: Limits) -> Reason:
    lengths: dict[DomainKind, set[int]] = {kind: set() for kind in DomainKind}
    for host in config.virtual_hosts:
        for domain in host.domains:
            kind, text = domain_kind(domain)
            size = len(text.encode())
            if size > limits.key:
                return Reason.BUDGET_STRING
            lengths[kind].add(size)
    if any(len(lengths[kind]) > limits.lengths for kind in (DomainKind.SUFFIX, DomainKind.PREFIX)):
        return Reason.BUDGET_PREFIX_LENGTHS
    return Reason.NONE


def _draft(rule: RouteRule, limits: Limits) -> KernelRoute:
    reach, literal = _reach(rule)
    undecided = rule.match_reason
    if len(literal) > limits.key:
        reach, literal = Reach.PREFIX, literal[: limits.key]
        undecided = undecided or Reason.BUDGET_STRING
    if len(rule.headers) > limits.predicates:
        undecided = undecided or Reason.BUDGET_PREDICATES
    for header in rule.headers:
        if len(header.value.encode()) > limits.value or len(header.name.encode()) > limits.key:
            undecided = undecided or Reason.BUDGET_STRING
    action_reason = rule.action_reason
    if len(rule.action.clusters) > limits.weighted:
        action_reason = action_reason or Reason.BUDGET_IMAGE
    return KernelRoute(rule, reach, literal, undecided, () if undecided else rule.headers, action_reason)


def _reach(rule: RouteRule) -> tuple[Reach, bytes]:
    if rule.path.case_sensitive and rule.path.kind is PathKind.EXACT:
        return Reach.EXACT, rule.path.value.encode()
    if rule.path.case_sensitive and rule.path.kind is PathKind.PREFIX:
        # Every path the kernel reads begins with a slash.
        return Reach.PREFIX, rule.path.value.encode() or b"/"
    return Reach.ANY, b""


def _with_slots(route: KernelRoute, slots: dict[str, None], limits: Limits) -> KernelRoute:
    """Give the route's header names slots, first come first served; slot 0 is the method's."""
    wanted = dict.fromkeys(h.name for h in route.predicates if h.name != METHOD and h.name not in slots)
    if len(slots) + len(wanted) > limits.slots - 1:
        return replace(route, undecided=Reason.BUDGET_HEADER_NAMES, predicates=())
    slots.update(wanted)
    return route


def _with_lengths(routes: list[KernelRoute], limits: Limits) -> list[KernelRoute]:
    """Keep to the number of distinct prefix lengths: the kernel tries each of them for every request.

    A route of a length too many becomes undecided at the next shorter length that is kept, so that only paths which
    begin like it are affected.
    """
    lengths = {len(route.literal) for route in routes if route.reach is Reach.PREFIX}
    if len(lengths) <= limits.lengths:
        return routes
    kept = _kept_lengths(routes, limits.lengths)
    return [
        replace(
            route,
            literal=route.literal[: _at_most(kept, len(route.literal))],
            undecided=route.undecided or Reason.BUDGET_PREFIX_LENGTHS,
            predicates=(),
        )
        if route.reach is Reach.PREFIX and len(route.literal) not in kept
        else route
        for route in routes
    ]


def _kept_lengths(routes: list[KernelRoute], count: int) -> list[int]:
    """The prefix lengths to keep, ascending: the shortest, and without those that cost the fewest routes.

    Giving a length up costs every route whose literal begins like one that must be shortened.
    """
    literals = [route.literal for route in routes if route.reach is not Reach.ANY]
    shortened: dict[int, set[bytes]] = {}
    for route in routes:
        if route.reach is Reach.PREFIX:
            shortened.setdefault(len(route.literal), set()).add(route.literal)
    kept = sorted(shortened)

    def cost(position: int) -> int:
        length = kept[position - 1]
        heads = {literal[:length] for literal in shortened[kept[position]]}
        return sum(literal[:length] in heads for literal in literals)

    costs = {kept[position]: cost(position) for position in range(1, len(kept))}
    while len(kept) > count:
        position = min(range(1, len(kept)), key=lambda p: (costs[kept[p]], kept[p]))
        length, below = kept.pop(position), kept[position - 1]
        shortened[below] |= {literal[:below] for literal in shortened[length]}
        for changed in (position - 1, position):
            if 0 < changed < len(kept):
                costs[kept[changed]] = cost(changed)
    return kept


def _at_most(ascending: list[int], value: int) -> int:
    return ascending[bisect_right(ascending, value) - 1]
