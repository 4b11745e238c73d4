"""The kernel's matcher over the images that `translator.image` builds, against the evaluator."""

from __future__ import annotations

import random as chance_module
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kernel.programs import Decided, Programs, raw
from tests.unit.rule_strategies import Backends, backends, requests, route_configurations
from translator import image
from translator.evaluate import kernel_reason, kernel_route, pick_cluster
from translator.from_xds import translate
from translator.kernel_view import KernelView, kernel_view
from translator.limits import Limits
from translator.model import (
    Action,
    ActionKind,
    ClusterRule,
    EndpointRule,
    HeaderMatch,
    LbPolicy,
    Origin,
    PathKind,
    PathMatch,
    RouteConfigRule,
    RouteRule,
    StringKind,
    VirtualHostRule,
    WeightedCluster,
)
from translator.reasons import Reason
from translator.request import Request, head_reason
from xds_server.cache import Snapshot

BACKENDS: Backends = backends()
LIMITS = Limits()
# So tight that every budget is met often; what the C code counts by itself is as it is.
TIGHT = Limits(slots=3, candidates=2, predicates=2, lengths=3, key=45, value=50, weighted=3, probes=2)
CLUSTERS = {name: ClusterRule(name, LbPolicy.RANDOM, (EndpointRule("10.0.0.1", 80),)) for name in ("a", "b", "c")}
SEED = 0x0123_4567_89AB_CDEF


class Ids:
    """Numbers in the order asked for."""

    def __init__(self) -> None:
        self.pools: dict[tuple[str, int], int] = {}
        self.cursors: dict[str, int] = {}

    def pool(self, endpoint: EndpointRule) -> int:
        return self.pools.setdefault((endpoint.address, endpoint.port), len(self.pools) + 1)

    def round_robin(self, cluster: str) -> int:
        return self.cursors.setdefault(cluster, len(self.cursors))


@pytest.fixture(scope="module")
def programs() -> Iterator[Programs]:
    with Programs() as loaded:
        yield loaded


def use(
    programs: Programs,
    config: RouteConfigRule,
    clusters: dict[str, ClusterRule] = CLUSTERS,
    limits: Limits = LIMITS,
    seed: int | None = SEED,
) -> None:
    programs.use(image.build(config, clusters, Ids(), 7, layouts=programs.layouts, seed=seed, limits=limits))


def expected(
    config: RouteConfigRule,
    clusters: dict[str, ClusterRule],
    request: Request,
    random: int,
    limits: Limits = LIMITS,
    view: KernelView | None = None,
) -> Decided:
    """The evaluator's answer: `kernel_reason`, and what it does not tell of the way there."""
    view = view or kernel_view(config, limits)
    reason = head_reason(request, frozenset(view.names), limits)
    if reason:
        return Decided(reason, None, None)
    reason, route = kernel_route(view, clusters, request, random, config.ignore_port_in_host, limits)
    if route is None:
        return Decided(reason, None, None)
    if route.undecided or route.action_reason:
        return Decided(reason, route.rule.index, None)
    name = pick_cluster(route.rule.action.clusters, random)
    return Decided(reason, route.rule.index, image.cluster_names(config).index(name))


@settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), limits=st.sampled_from((LIMITS, TIGHT)))
def test_the_kernel_gives_the_evaluators_answer(programs: Programs, data: st.DataObject, limits: Limits) -> None:
    message = data.draw(route_configurations())
    found = translate(Snapshot("1", BACKENDS.clusters, BACKENDS.endpoints, {}, {"80": message}), limits)
    config = found.route_configs["80"]
    use(programs, config, found.clusters, limits, data.draw(st.integers(0, 2**64 - 1)))
    for _ in range(8):
        request = data.draw(requests(message))
        random = data.draw(st.integers(0, 2**32 - 1))
        decided = programs.match(raw(request), random)
        assert decided == expected(config, found.clusters, request, random, limits)
        assert decided.reason is kernel_reason(config, found.clusters, request, random, limits)


def route(
    index: int,
    path: PathMatch,
    headers: tuple[HeaderMatch, ...] = (),
    clusters: tuple[WeightedCluster, ...] = (WeightedCluster("a"),),
) -> RouteRule:
    return RouteRule(index, Origin(None, "", index), path, headers, (), Action(ActionKind.FORWARD, clusters))


def prefix(text: str) -> PathMatch:
    return PathMatch(PathKind.PREFIX, text)


def exact(text: str) -> PathMatch:
    return PathMatch(PathKind.EXACT, text)


def config(*routes: RouteRule, domains: tuple[str, ...] = ("*",), ignore_port: bool = False) -> RouteConfigRule:
    hosts = (VirtualHostRule("host", domains, routes),)
    return RouteConfigRule("80", hosts, ignore_port_in_host=ignore_port)


def check(programs: Programs, rules: RouteConfigRule, request: Request, random: int = 0) -> Decided:
    found = programs.match(raw(request), random)
    assert found == expected(rules, CLUSTERS, request, random), request
    return found


# Lengths at which a text goes on in the next cell, at both ends.
TEXT_LENGTHS = (1, 7, 8, 9, 31, 32, 33, 39, 40, 41, 47, 48, 49, 103, 104, 105, 168, 169, 487, 488)


@pytest.mark.parametrize("length", TEXT_LENGTHS)
def test_paths_of_every_length(programs: Programs, length: int) -> None:
    path = "/" + "p" * (length - 1)
    for kind in (exact, prefix):
        rules = config(route(0, kind(path)))
        use(programs, rules)
        assert check(programs, rules, Request("GET", "h", path)).route == 0
        check(programs, rules, Request("GET", "h", path + "?q"))
        check(programs, rules, Request("GET", "h", path + "p"))
        if length > 1:
            check(programs, rules, Request("GET", "h", path[:-1]))
            for position in {1, length // 2, length - 1}:
                other = path[:position] + "P" + path[position + 1 :]
                assert check(programs, rules, Request("GET", "h", other)).reason is Reason.NO_ROUTE


@pytest.mark.parametrize("length", [n for n in TEXT_LENGTHS if n < 480])
def test_hosts_of_every_length(programs: Programs, length: int) -> None:
    name = ("h.X-y_" * 100)[: length - 1] + "e"
    for domain in (name, f"*{name}", f"{name}*"):
        for ignore_port in (False, True):
            rules = config(route(0, prefix("/")), domains=(domain.lower(),), ignore_port=ignore_port)
            use(programs, rules)
            found = [
                check(programs, rules, Request("GET", host, "/")).route
                for host in (name, name.upper(), f"{name}:80", f"a{name}", f"{name}b", f"a.{name}:8", name[1:] + "q")
            ]
            assert 0 in found
            assert None in found


@pytest.mark.parametrize("length", [0, *(n for n in TEXT_LENGTHS if n <= LIMITS.value), 239, 240])
def test_values_of_every_length(programs: Programs, length: int) -> None:
    value = "v" * length
    rules = config(route(0, prefix("/"), (HeaderMatch("x-user", StringKind.EXACT, value),)))
    use(programs, rules)
    assert check(programs, rules, Request("GET", "h", "/", (("X-User", f" {value}\t"),))).route == 0
    check(programs, rules, Request("GET", "h", "/"))
    check(programs, rules, Request("GET", "h", "/", (("x-user", value + "v"),)))
    if length:
        for position in {0, length // 2, length - 1}:
            other = value[:position] + "V" + value[position + 1 :]
            assert check(programs, rules, Request("GET", "h", "/", (("x-user", other),))).route is None


@pytest.mark.parametrize("length", [n for n in TEXT_LENGTHS if n > 1])
def test_header_names_of_every_length(programs: Programs, length: int) -> None:
    name = "n" + "a" * (length - 1)
    rules = config(route(0, prefix("/"), (HeaderMatch(name, StringKind.PRESENT, ""),)))
    use(programs, rules)
    assert check(programs, rules, Request("GET", "h", "/", ((name.upper(), ""),))).route == 0
    for other in (name + "a", name[:-1] + "^", name[:-1]):
        assert check(programs, rules, Request("GET", "h", "/", ((other, ""),))).route is None


def test_longest_prefix_of_as_many_lengths_as_there_may_be(programs: Programs) -> None:
    texts = ["/" + "p" * n for n in range(LIMITS.lengths)]
    rules = config(*(route(i, prefix(text)) for i, text in enumerate(reversed(texts))))
    use(programs, rules)
    for i, text in enumerate(reversed(texts)):
        assert check(programs, rules, Request("GET", "h", text)).route == i
        assert check(programs, rules, Request("GET", "h", text + "x")).route == i
    domains = tuple(f"*{'s' * (n + 1)}.x" for n in range(LIMITS.lengths))
    rules = config(route(0, prefix("/")), domains=domains)
    use(programs, rules)
    for n in range(LIMITS.lengths + 3):
        check(programs, rules, Request("GET", "s" * n + ".x" if n else "x", "/"))


def test_wildcard_hosts_prefer_exact_then_suffix_then_prefix(programs: Programs) -> None:
    domains = (("a.b.c",), ("*.c", "*.b.c"), ("a.*", "a.b.*"), ("*",))
    hosts = tuple(VirtualHostRule(f"h{i}", own, (route(i, prefix("/")),)) for i, own in enumerate(domains))
    rules = RouteConfigRule("80", hosts, ignore_port_in_host=True)
    use(programs, rules)
    found = {
        host: check(programs, rules, Request("GET", host, "/")).route
        for host in ("a.b.c", "A.B.C:80", "x.c", "x.b.c", "a.x", "a.b.x", "b.c", ".c", "c", "a.", "a.b", "zz")
    }
    assert [found[host] for host in ("a.b.c", "A.B.C:80", "x.c", "a.b.x", "zz", "c")] == [0, 0, 1, 2, 3, 3]


def test_all_candidates_and_predicates_are_walked(programs: Programs) -> None:
    names = [f"h{i}" for i in range(LIMITS.predicates)]
    every = tuple(HeaderMatch(name, StringKind.EXACT, "v") for name in names)
    routes = [
        route(i, prefix("/"), (HeaderMatch("x", StringKind.EXACT, str(i)),)) for i in range(LIMITS.candidates - 2)
    ]
    rules = config(*routes, route(100, prefix("/"), every), route(101, prefix("/")))
    use(programs, rules)
    for i in (0, 1, 14, 15, 16, 31, 32, LIMITS.candidates - 3):
        assert check(programs, rules, Request("GET", "h", "/", (("x", str(i)),))).route == i
    lines = tuple((name, "v") for name in names)
    assert check(programs, rules, Request("GET", "h", "/", lines)).route == 100
    for missing in range(LIMITS.predicates):
        others = (*lines[:missing], (names[missing], "w"), *lines[missing + 1 :])
        assert check(programs, rules, Request("GET", "h", "/", others)).route == 101
        assert check(programs, rules, Request("GET", "h", "/", lines[:missing] + lines[missing + 1 :])).route == 101
    rules = config(*routes, *(route(i, prefix("/"), every) for i in range(200, 204)))
    use(programs, rules)
    assert check(programs, rules, Request("GET", "h", "/")).reason is Reason.BUDGET_CANDIDATES


def test_methods_and_absent_headers(programs: Programs) -> None:
    post = HeaderMatch(":method", StringKind.EXACT, "POST")
    absent = HeaderMatch("x", StringKind.PRESENT, "", invert=True)
    rules = config(
        route(0, prefix("/a"), (post,)),
        route(1, prefix("/a"), (absent,)),
        route(2, prefix("/"), (HeaderMatch(":method", StringKind.PRESENT, ""),)),
        route(3, prefix("/"), (HeaderMatch(":method", StringKind.PRESENT, "", invert=True),)),
    )
    use(programs, rules)
    for method in ("GET", "POST", "POS", "POSTS", "post"):
        for lines in ((), (("x", ""),), (("X", "1"),), (("x", "1"), ("x", "2"))):
            if method[0].isupper():
                check(programs, rules, Request(method, "h", "/a", lines))
                check(programs, rules, Request(method, "h", "/b", lines))


def test_every_share_of_weighted_clusters(programs: Programs) -> None:
    weights = [3, 0, 1, 7, 0, 2, 5, 1, 1, 1, 4]
    clusters = tuple(WeightedCluster("abc"[i % 3], weight) for i, weight in enumerate(weights))
    many = tuple(WeightedCluster("abc"[i % 3], 1) for i in range(LIMITS.weighted))
    rules = config(route(0, exact("/"), clusters=clusters), route(1, prefix("/m"), clusters=many))
    use(programs, rules)
    for random in (*range(2 * sum(weights)), 2**32 - 1):
        check(programs, rules, Request("GET", "h", "/"), random)
    for random in range(LIMITS.weighted + 1):
        check(programs, rules, Request("GET", "h", "/m"), random)


def test_repeated_headers(programs: Programs) -> None:
    rules = config(route(0, prefix("/"), (HeaderMatch("x-user", StringKind.EXACT, "v"),)), route(1, prefix("/")))
    use(programs, rules)
    twice = (("x-user", "v"), ("X-USER", "w"))
    for lines in (
        twice,
        (("x-other", "v"), ("x-other", "v")),
        (*twice, ("te", "")),
        (("te", ""), *twice),
        (twice[0], ("te", ""), twice[1]),
        (twice[0], ("connection", "x"), twice[1]),
        (*twice, ("content-length", "x")),
        (*twice, ("host", "h")),
    ):
        for path in ("/", "//"):
            request = Request("GET", "h", path, lines)
            assert programs.match(raw(request)) == expected(rules, CLUSTERS, request, 0)


def test_what_is_envoys_as_a_whole(programs: Programs) -> None:
    bare = VirtualHostRule("bare", ("*",), ())
    closed = VirtualHostRule("closed", ("a",), (), reason=Reason.VIRTUAL_HOST_OPTION)
    for rules in (
        RouteConfigRule("x", (bare,), reason=Reason.ROUTE_CONFIG_OPTION),
        RouteConfigRule("x", ()),
        RouteConfigRule("x", (bare, closed)),
        config(route(0, prefix("/"), clusters=(WeightedCluster("gone"),))),
    ):
        use(programs, rules)
        for host in ("a", "b"):
            check(programs, rules, Request("GET", host, "/"))
            check(programs, rules, Request("GET", host, "/", (("te", ""),)))


def large(count: int) -> RouteConfigRule:
    chance = chance_module.Random(3)
    routes = []
    for i in range(count):
        words = [f"{chance.choice(['api', 'users', 'orders'])}{chance.randrange(30)}" for _ in range(i % 4 + 1)]
        path = (exact if i % 2 else prefix)("/" + "/".join([*words, str(i)]))
        user = HeaderMatch("x-user", StringKind.EXACT, str(i))
        routes.append(route(i, path, (user,) if i % 3 == 0 else ()))
    return config(*routes, route(count, prefix("/")))


def test_ten_thousand_routes(programs: Programs) -> None:
    rules = large(10_000)
    use(programs, rules)
    view = kernel_view(rules, LIMITS)
    for rule in rules.virtual_hosts[0].routes[::199]:
        for tail in ("", "x", "/x"):
            request = Request("GET", "any", rule.path.value + tail, (("x-user", str(rule.index)),))
            assert programs.match(raw(request)) == expected(rules, CLUSTERS, request, 0, view=view)


def test_speed(programs: Programs, capsys: pytest.CaptureFixture[str]) -> None:
    """Printed, not judged."""
    jason = HeaderMatch("end-user", StringKind.EXACT, "jason")
    reviews = VirtualHostRule(
        "reviews:9080",
        ("reviews.default.svc.cluster.local", "reviews.default.svc.cluster.local:9080", "reviews", "reviews:9080"),
        (route(0, prefix("/"), (jason,)), route(1, prefix("/"))),
    )
    lines = (("user-agent", "curl/8.1"), ("accept", "*/*"), ("x-request-id", "5e9a1d2f-2c5f-4b7c-a62b-1c5d7b4d6a4e"))
    requests_ = {
        "one route": (config(route(0, prefix("/"))), Request("GET", "reviews:9080", "/reviews/0", lines)),
        "a header rule": (RouteConfigRule("9080", (reviews,)), Request("GET", "reviews:9080", "/reviews/0", lines)),
        "10,000 routes": (large(10_000), Request("GET", "any", "/api7/users3/orders9/users1/9999", lines)),
    }
    found = []
    for name, (rules, request) in requests_.items():
        use(programs, rules)
        found.append(f"{name} {programs.match_ns(raw(request)):.0f} ns")
    with capsys.disabled():
        print(f"\nmatch: {', '.join(found)}")
