"""The kernel's budgets: what goes over one stays in its place as a route that only Envoy can decide."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from translator.hash_table import Key, key_hash, lay_out
from translator.kernel_view import KernelRoute, Reach, candidates, kernel_view
from translator.limits import Limits
from translator.model import (
    Action,
    ActionKind,
    HeaderMatch,
    Origin,
    PathKind,
    PathMatch,
    RouteConfigRule,
    RouteRule,
    StringKind,
    VirtualHostRule,
    WeightedCluster,
)
from translator.path_lists import path_lists
from translator.reasons import Reason

CLUSTER = (WeightedCluster("c"),)


def route(
    index: int,
    path: str = "/",
    *headers: HeaderMatch,
    kind: PathKind = PathKind.PREFIX,
    match_reason: Reason = Reason.NONE,
    clusters: tuple[WeightedCluster, ...] = CLUSTER,
) -> RouteRule:
    action = Action(ActionKind.FORWARD, clusters)
    return RouteRule(index, Origin(None, "", index), PathMatch(kind, path), headers, (), action, match_reason)


def header(name: str, value: str = "v") -> HeaderMatch:
    return HeaderMatch(name, StringKind.EXACT, value)


def seen(*routes: RouteRule, limits: Limits, domains: tuple[str, ...] = ("*",)) -> tuple[KernelRoute, ...]:
    config = RouteConfigRule("x", (VirtualHostRule("h", domains, routes),))
    return kernel_view(config, limits).hosts[0].routes


def test_a_long_path_is_a_candidate_by_its_beginning() -> None:
    (found,) = seen(route(0, "/abcdef", kind=PathKind.EXACT), limits=Limits(key=4))
    assert (found.reach, found.literal, found.undecided) == (Reach.PREFIX, b"/abc", Reason.BUDGET_STRING)


def test_predicates_and_their_values() -> None:
    limits = Limits(predicates=1, value=2)
    many, long, fits = seen(
        route(0, "/", header("a"), header("b")),
        route(1, "/", header("a", "vvv")),
        route(2, "/", header("a")),
        limits=limits,
    )
    assert many.undecided is Reason.BUDGET_PREDICATES
    assert long.undecided is Reason.BUDGET_STRING
    assert (fits.undecided, len(fits.predicates), fits.ends_walk) == (Reason.NONE, 1, False)


def test_header_names_are_first_come_first_served() -> None:
    limits = Limits(slots=3)
    method = HeaderMatch(":method", StringKind.EXACT, "GET")
    found = seen(
        route(0, "/", header("a"), method),
        route(1, "/", header("b"), header("c")),
        route(2, "/", header("b")),
        route(3, "/", header("c")),
        limits=limits,
    )
    assert [r.undecided for r in found] == [
        Reason.NONE,
        Reason.BUDGET_HEADER_NAMES,
        Reason.NONE,
        Reason.BUDGET_HEADER_NAMES,
    ]


def test_undecided_routes_take_no_header_slots() -> None:
    config = RouteConfigRule(
        "x", (VirtualHostRule("h", ("*",), (route(0, "/", header("a"), match_reason=Reason.MATCH_QUERY),)),)
    )
    assert kernel_view(config, Limits()).names == ()


def test_prefix_lengths_too_many_cost_as_little_as_possible() -> None:
    # Length 5 is the cheapest to give up: "/bcd" and "/bce" share what they would be shortened to.
    found = seen(
        route(0, "/a"), route(1, "/bc"), route(2, "/bcd"), route(3, "/x/yz"), route(4, "/bce"), limits=Limits(lengths=3)
    )
    kept = {len(r.literal) for r in found}
    assert len(kept) <= 3
    assert 2 in kept
    shortened = [r for r in found if r.undecided]
    assert [r.undecided for r in shortened] == [Reason.BUDGET_PREFIX_LENGTHS]
    assert all(r.rule.path.value.encode().startswith(r.literal) for r in found)


def test_weights_and_domains_too_many() -> None:
    (found,) = seen(route(0, clusters=(CLUSTER * 3)), limits=Limits(weighted=2))
    assert (found.undecided, found.action_reason) == (Reason.NONE, Reason.BUDGET_IMAGE)
    domains = tuple("*" + "x" * n for n in range(1, 4))
    config = RouteConfigRule("x", (VirtualHostRule("h", domains, ()),))
    assert kernel_view(config, Limits(lengths=2)).reason is Reason.BUDGET_PREFIX_LENGTHS
    config = RouteConfigRule("x", (VirtualHostRule("h", ("abc",), ()),))
    assert kernel_view(config, Limits(key=2)).reason is Reason.BUDGET_STRING


def test_candidates_too_many_end_in_a_budget() -> None:
    routes = [route(i, "/", header("a", str(i))) for i in range(4)]
    for count, expected in ((3, ([0, 1], True)), (4, ([0, 1, 2, 3], False))):
        found, overflow = candidates(seen(*routes, limits=Limits()), Limits(candidates=count))
        assert ([r.rule.index for r in found], overflow) == expected


def test_an_empty_prefix_takes_every_path() -> None:
    (found,) = seen(route(0, ""), limits=Limits())
    assert found.literal == b"/"
    assert found.accepts(b"/anything")


literals = st.text("ab", max_size=4).map(lambda text: "/" + text)


@given(
    drawn=st.lists(st.tuples(st.sampled_from(["exact", "prefix", "regex"]), literals, st.booleans()), max_size=12),
    limit=st.integers(1, 4),
    path=literals,
)
def test_lists_are_what_a_walk_over_all_routes_finds(drawn: list[tuple[str, str, bool]], limit: int, path: str) -> None:
    limits = Limits(candidates=limit)
    routes = seen(
        *(
            route(
                i,
                literal,
                *([header("a")] if conditional else []),
                kind=PathKind(kind),
                match_reason=Reason.MATCH_REGEX if kind == "regex" else Reason.NONE,
            )
            for i, (kind, literal, conditional) in enumerate(drawn)
        ),
        limits=limits,
    )
    lists = path_lists(routes, limits)
    raw = path.encode()
    longest = max((p for p in lists.prefix if raw.startswith(p)), key=len, default=None)
    positions = lists.exact.get(raw, lists.any if longest is None else lists.prefix[longest])
    found, overflow = lists.reachable(positions)
    expected, expected_overflow = candidates((r for r in routes if r.accepts(raw)), limits)
    assert ([*found], overflow) == ([r.rule.index for r in expected], expected_overflow)


@given(texts=st.sets(st.binary(max_size=6), max_size=200), seed=st.integers(0, 2**64 - 1), probes=st.integers(3, 8))
def test_every_key_is_found_within_the_probes(texts: set[bytes], seed: int, probes: int) -> None:
    keys = [Key(1, 2, text, i) for i, text in enumerate(sorted(texts))]
    table = lay_out(keys, seed, probes)
    size = len(table.slots)
    assert size & (size - 1) == 0
    assert sorted(slot for slot in table.slots if slot is not None) == [*range(len(keys))]
    for index, key in enumerate(keys):
        bucket = key_hash(table.seed, key.kind, key.scope, key.text) >> 32
        probed = [table.slots[(bucket + n) & (size - 1)] for n in range(probes)]
        assert index in probed
        assert None not in probed[: probed.index(index)]


def test_the_hash_is_the_one_of_the_header_file() -> None:
    # The offset basis and the hash of "a" are FNV-1a's published ones.
    assert key_hash(0xCBF29CE484222325, 0, 0, b"a") == (0xAF63DC4C8601EC8C * 0x9E3779B97F4A7C15) % 2**64
