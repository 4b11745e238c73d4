"""The kernel image against the evaluator: the same answer for every request, by two ways that share no matching."""

from __future__ import annotations

import random
import re

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import REPOSITORY
from tests.unit.image_reader import ImageReader
from tests.unit.rule_strategies import Backends, backends, requests, route_configurations
from translator import image
from translator.evaluate import decide, kernel_route
from translator.from_xds import translate
from translator.image import Layouts
from translator.kernel_view import kernel_view
from translator.limits import Limits
from translator.model import (
    Action,
    ActionKind,
    ClusterRule,
    EndpointRule,
    HeaderMatch,
    LbPolicy,
    ListenerKind,
    ListenerRule,
    Origin,
    PathKind,
    PathMatch,
    RouteConfigRule,
    RouteRule,
    StringKind,
    ViewRules,
    VirtualHostRule,
    WeightedCluster,
)
from translator.reasons import Reason
from translator.request import Request
from xds_server.cache import Snapshot

BACKENDS: Backends = backends()
ROOMY = Limits()
# So tight that every budget is met often.
TIGHT = Limits(slots=3, candidates=2, predicates=2, lengths=3, key=45, value=50, weighted=3, probes=2)


class Ids:
    """Numbers in the order asked for."""

    def __init__(self) -> None:
        self.pools: dict[tuple[str, int], int] = {}
        self.cursors: dict[str, int] = {}

    def pool(self, endpoint: EndpointRule) -> int:
        return self.pools.setdefault((endpoint.address, endpoint.port), len(self.pools) + 1)

    def round_robin(self, cluster: str) -> int:
        return self.cursors.setdefault(cluster, len(self.cursors))


@settings(deadline=None, max_examples=300)
@given(data=st.data(), limits=st.sampled_from((ROOMY, TIGHT)))
def test_the_image_gives_the_evaluators_answer(layouts: Layouts, data: st.DataObject, limits: Limits) -> None:
    message = data.draw(route_configurations())
    found = translate(Snapshot("1", BACKENDS.clusters, BACKENDS.endpoints, {}, {"80": message}), limits)
    assert not found.rejected
    config = found.route_configs["80"]
    listener = ListenerRule("0.0.0.0_80", "0.0.0.0", 80, ListenerKind.HTTP, "80")
    rules = ViewRules((listener,), found.route_configs, found.clusters)
    ids = Ids()
    seed = data.draw(st.integers(0, 2**64 - 1))
    built = image.build(config, found.clusters, ids, 7, layouts=layouts, seed=seed, limits=limits)
    reader = ImageReader(built, layouts, limits)
    view = kernel_view(config, limits)
    names = image.cluster_names(config)
    for _ in range(8):
        request = data.draw(requests(message))
        number = data.draw(st.integers(0, 2**64 - 1))
        assert {name for name, _ in request.lines() if reader.looks_at(name)} == {
            name for name, _ in request.lines() if name in view.names
        }
        plain_host = Request(request.method, request.host.removesuffix(":"), request.path, request.headers)
        outcome = reader.match(plain_host, number)
        reason, route = kernel_route(view, found.clusters, plain_host, number, config.ignore_port_in_host, limits)
        assert outcome.reason is reason
        if route is not None:
            assert outcome.route == route.rule.index
        decision = decide(
            rules,
            Request(request.method, request.host, request.path, request.headers, ("10.9.9.9", 80)),
            number,
            limits,
        )
        if decision.carried_by == "envoy":
            assert decision.reason is not Reason.NONE
            continue
        # Carried by the kernel: then exactly as Envoy would.
        assert outcome.reason is Reason.NONE
        assert decision.action == "forward"
        assert decision.status is None
        assert outcome.route == decision.route_index
        assert outcome.cluster is not None
        assert names[outcome.cluster] == decision.cluster
        assert decision.path_upstream == request.path
        rule = found.clusters[names[outcome.cluster]]
        assert outcome.pools == tuple(ids.pool(endpoint) for endpoint in rule.endpoints)
        assert outcome.lb is rule.lb
        assert outcome.round_robin == ids.cursors[rule.name]


def _route(index: int, path: PathMatch, headers: tuple[HeaderMatch, ...] = ()) -> RouteRule:
    action = Action(ActionKind.FORWARD, (WeightedCluster("c"),))
    return RouteRule(index, Origin(None, "", index), path, headers, (), action)


def _large(count: int) -> RouteConfigRule:
    chance = random.Random(3)
    routes = []
    for i in range(count):
        words = [f"{chance.choice(['api', 'users', 'orders'])}{chance.randrange(30)}" for _ in range(i % 4 + 1)]
        path = PathMatch(PathKind.EXACT if i % 2 else PathKind.PREFIX, "/" + "/".join([*words, str(i)]))
        user = HeaderMatch("x-user", StringKind.EXACT, str(i))
        routes.append(_route(i, path, (user,) if i % 3 == 0 else ()))
    routes.append(_route(count, PathMatch(PathKind.PREFIX, "/")))
    return RouteConfigRule("large", (VirtualHostRule("any", ("*",), tuple(routes)),))


def test_ten_thousand_routes_are_found(layouts: Layouts) -> None:
    config = _large(10_000)
    clusters = {"c": ClusterRule("c", LbPolicy.RANDOM, (EndpointRule("10.0.0.1", 80),))}
    built = image.build(config, clusters, Ids(), 1, layouts=layouts)
    reader = ImageReader(built, layouts, ROOMY)
    view = kernel_view(config, ROOMY)
    for route in config.virtual_hosts[0].routes[::97]:
        for tail in ("", "x", "/x"):
            request = Request("GET", "any", route.path.value + tail, (("x-user", str(route.index)),))
            reason, found = kernel_route(view, clusters, request, 0, False)
            outcome = reader.match(request, 0)
            assert (outcome.reason, outcome.route) == (reason, found.rule.index if found else None)


def test_what_cannot_be_carried_at_all_is_one_cell(layouts: Layouts) -> None:
    config = RouteConfigRule("x", (), reason=Reason.ROUTE_CONFIG_OPTION)
    built = image.build(config, {}, Ids(), 5, layouts=layouts)
    reader = ImageReader(built, layouts, ROOMY)
    assert reader.header.cells == 1
    assert reader.header.generation == 5
    assert reader.match(Request("GET", "a", "/"), 0).reason is Reason.ROUTE_CONFIG_OPTION


def test_an_image_beyond_its_size_is_envoys(layouts: Layouts) -> None:
    built = image.build(_large(200), {}, Ids(), 1, layouts=layouts, limits=Limits(image_cells=100))
    reader = ImageReader(built, layouts, ROOMY)
    assert reader.match(Request("GET", "a", "/"), 0).reason is Reason.BUDGET_IMAGE


def test_no_routes_and_no_hosts_are_envoys_404(layouts: Layouts) -> None:
    def reason(config: RouteConfigRule) -> Reason:
        reader = ImageReader(image.build(config, {}, Ids(), 1, layouts=layouts), layouts, ROOMY)
        return reader.match(Request("GET", "a", "/"), 0).reason

    assert reason(RouteConfigRule("empty", ())) is Reason.NO_VIRTUAL_HOST
    assert reason(RouteConfigRule("bare", (VirtualHostRule("any", ("*",), ()),))) is Reason.NO_ROUTE


def test_a_fixed_seed_gives_the_same_image(layouts: Layouts) -> None:
    config = _large(50)
    one, other = (image.build(config, {}, Ids(), 1, layouts=layouts, seed=9) for _ in range(2))
    assert one == other


def test_numbers_are_those_of_the_header_file(layouts: Layouts) -> None:
    text = (REPOSITORY / "bpf" / "include" / "xlb_types.h").read_text()
    numbers = {name: int(value, 0) for name, value in re.findall(r"\b(XLB_\w+)\s*=\s*(\w+),", text)}
    for field, name in (
        ("head", "XLB_MAX_HEAD"),
        ("headers", "XLB_MAX_HEADERS"),
        ("slots", "XLB_MAX_SLOTS"),
        ("candidates", "XLB_MAX_CANDIDATES"),
        ("predicates", "XLB_MAX_PREDICATES"),
        ("lengths", "XLB_MAX_LENGTHS"),
        ("key", "XLB_MAX_KEY"),
        ("value", "XLB_MAX_VALUE"),
        ("probes", "XLB_MAX_PROBES"),
        ("weighted", "XLB_MAX_WEIGHTED"),
        ("endpoints", "XLB_MAX_ENDPOINTS"),
    ):
        assert getattr(ROOMY, field) == numbers[name], name
    assert numbers["XLB_CELL"] == image.CELL
    magic = re.search(r"#define XLB_IMAGE_MAGIC (0x[0-9a-f]+)", text)
    assert magic is not None
    assert int(magic[1], 16) == image.MAGIC
    kinds = layouts.enum("xlb_lb")
    assert {f"XLB_LB_{policy.name}": policy for policy in LbPolicy} == kinds
