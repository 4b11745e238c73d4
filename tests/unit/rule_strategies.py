"""Random configuration as istiod shapes it, and requests aimed at its edges, for Hypothesis.

Everything is drawn from small sets, so that domains, prefixes and headers collide, nest and shadow each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.config.route.v3.route_components_pb2 import HeaderMatcher, QueryParameterMatcher, Route, VirtualHost
from envoy.config.route.v3.route_pb2 import RouteConfiguration
from hypothesis import strategies as st

from translator.request import Request

CLUSTERS = ("outbound|80|v1|a", "outbound|80|v2|a", "outbound|80||b", "outbound|80||empty", "outbound|80||dns")
UNKNOWN_CLUSTER = "outbound|80||gone"
SEGMENTS = ("a", "ab", "b", "items", "a.b", "x" * 45)
METHODS = ("GET", "POST", "DELETE")
NAMES = ("x-user", "x-env", "end-user", "cookie", "x-request-id", ":authority")
VALUES = ("", "alice", "Alice", "v1", "y" * 60)
DOMAINS = (
    "a.ns.svc",
    "a.ns.svc.",
    "a",
    "b.ns.svc",
    "10.0.0.1",
    "*.ns.svc",
    "*svc",
    "*.example.com",
    "a.*",
    "a.ns.*",
    "B.Example.com",
    "*",
)
paths = st.lists(st.sampled_from(SEGMENTS), max_size=3).map(lambda segments: "/" + "/".join(segments))


def rarely(draw: st.DrawFn, one_in: int) -> bool:
    """True once in a while; not 0, which Hypothesis likes best."""
    return draw(st.integers(0, one_in - 1)) == one_in // 2


@st.composite
def matches(draw: st.DrawFn) -> dict[str, Any]:
    """A `RouteMatch`, as keyword arguments."""
    kind = draw(st.sampled_from(("prefix", "path")))
    if rarely(draw, 12):
        kind = draw(st.sampled_from(("safe_regex", "path_separated_prefix", "insensitive")))
    path = draw(paths)
    match: dict[str, Any] = {}
    if kind == "safe_regex":
        match["safe_regex"] = {"regex": draw(st.sampled_from(("/items/.*", "/a(/.*)?", "/[ab]+")))}
    elif kind == "path_separated_prefix":
        match["path_separated_prefix"] = path.rstrip("/") or "/a"
    elif kind == "insensitive":
        match.update(prefix=path, case_sensitive={"value": False})
    else:
        match[kind] = path.rstrip("/") + draw(st.sampled_from(("", "/"))) or "/"
        match["case_sensitive"] = {"value": True}
    match["headers"] = draw(st.lists(header_matchers(), max_size=draw(st.integers(0, 3))))
    if rarely(draw, 20):
        match["query_parameters"] = [QueryParameterMatcher(name="q", string_match={"exact": "1"})]
    if rarely(draw, 40):
        match["runtime_fraction"] = {"default_value": {"numerator": 50}}
    return match


@st.composite
def header_matchers(draw: st.DrawFn) -> HeaderMatcher:
    """Mostly what the kernel can decide."""
    value = draw(st.sampled_from(VALUES))
    kind = draw(st.sampled_from(("exact", "present", "absent", "method")))
    name = draw(st.sampled_from(NAMES[:4]))
    if rarely(draw, 12):
        kind, name = draw(st.sampled_from(("not", "prefix", "exact"))), draw(st.sampled_from(NAMES))
    if kind == "method":
        return HeaderMatcher(name=":method", string_match={"exact": draw(st.sampled_from(METHODS))})
    if kind in ("present", "absent"):
        return HeaderMatcher(name=name, present_match=True, invert_match=kind == "absent")
    if kind == "prefix":
        return HeaderMatcher(name=name, string_match={"prefix": value[:2]})
    matcher = HeaderMatcher(name=name, string_match={"exact": value})
    if kind == "not":
        matcher.invert_match = matcher.treat_missing_header_as_empty = True
    return matcher


@st.composite
def routes(draw: st.DrawFn) -> Route:
    route = Route(match=draw(matches()))
    kind = draw(st.sampled_from(("cluster", "weighted")))
    if rarely(draw, 8):
        kind = draw(st.sampled_from(("redirect", "direct", "timeout", "headers")))
    if kind == "redirect":
        route.redirect.host_redirect = "elsewhere"
        return route
    if kind == "direct":
        route.direct_response.status = 418
        return route
    names = st.sampled_from((*CLUSTERS[:3] * 4, *CLUSTERS[3:], UNKNOWN_CLUSTER))
    if kind == "weighted":
        weights = draw(st.lists(st.integers(0, 100), min_size=1, max_size=4))
        weights[0] += 1
        for weight in weights:
            item = route.route.weighted_clusters.clusters.add(name=draw(names))
            item.weight.value = weight
    else:
        route.route.cluster = draw(names)
    route.route.timeout.seconds = 3 if kind == "timeout" else 0
    if kind == "headers":
        route.request_headers_to_remove.append("x-user")
    return route


@st.composite
def route_configurations(draw: st.DrawFn) -> RouteConfiguration:
    """One route configuration that Envoy would accept."""
    domains = draw(st.permutations(DOMAINS))
    config = RouteConfiguration(name="80", ignore_port_in_host_matching=draw(st.booleans()))
    # As with sniffed ports: nothing but one virtual host for any host.
    only_any = rarely(draw, 5)
    for i in range(1 if only_any else draw(st.integers(1, 4))):
        own = ["*"] if only_any else domains[i * 3 : i * 3 + 3]
        host = VirtualHost(name=f"host-{i}", domains=own, routes=draw(st.lists(routes(), max_size=12)))
        if rarely(draw, 20):
            host.include_attempt_count_in_response = True
        config.virtual_hosts.append(host)
    return config


def literals(config: RouteConfiguration) -> list[str]:
    """The path literals of a configuration."""
    found = []
    for host in config.virtual_hosts:
        for route in host.routes:
            kind = route.match.WhichOneof("path_specifier")
            if kind != "safe_regex":
                found.append(str(getattr(route.match, kind)))
    return found


@st.composite
def requests(draw: st.DrawFn, config: RouteConfiguration) -> Request:
    """A request at the edges of what the configuration names: the literal itself, one byte more, one byte less."""
    path = draw(st.sampled_from(literals(config) or ["/"]) | paths)
    tail = draw(st.sampled_from(("", "", "z", "?q=1", "/a" if not path.endswith("/") else "a")))
    path += tail
    if rarely(draw, 8):
        path = draw(st.sampled_from((path[:-1], path.upper(), path + "/")))
    domains = [domain for host in config.virtual_hosts for domain in host.domains]
    host = draw(st.sampled_from((*domains, *domains, "other", "x.a.ns.svc")))
    host = host.replace("*", draw(st.sampled_from(("z", "a.z", "")))) or "z"
    host += draw(st.sampled_from(("", "", ":80")))
    if rarely(draw, 8):
        host = draw(st.sampled_from((host.upper(), host + ":", "", "[::1]")))
    matchers = [m for host in config.virtual_hosts for route in host.routes for m in route.match.headers]
    named = [(m.name, m.string_match.exact) for m in matchers if not m.name.startswith(":")] or [("accept", "*/*")]
    lines = st.sampled_from(named) | st.tuples(
        st.sampled_from((*NAMES[:5], "X-User", "accept")), st.sampled_from((*VALUES, " alice ", "v11"))
    )
    headers = draw(st.lists(lines, max_size=4, unique_by=None if rarely(draw, 6) else lambda line: line[0].lower()))
    if rarely(draw, 8):
        extra = (("connection", "close"), ("te", "trailers"), ("x-envoy-max-retries", "1"), ("content-length", "0"))
        headers.insert(draw(st.integers(0, len(headers))), draw(st.sampled_from(extra)))
    return Request(draw(st.sampled_from(METHODS)), host, path or "/", tuple(headers))


@dataclass(frozen=True, slots=True)
class Backends:
    """The clusters that `route_configurations` names, one of them without endpoints and one that is DNS's."""

    clusters: dict[str, Cluster]
    endpoints: dict[str, ClusterLoadAssignment]


def backends() -> Backends:
    unlimited = {"value": 2**32 - 1}
    limits = dict.fromkeys(("max_connections", "max_pending_requests", "max_requests", "max_retries"), unlimited)
    found = Backends({}, {})
    for n, name in enumerate(CLUSTERS):
        cluster = Cluster(name=name, lb_policy=(Cluster.LEAST_REQUEST, Cluster.ROUND_ROBIN, Cluster.RANDOM)[n % 3])
        cluster.type = Cluster.STRICT_DNS if name.endswith("dns") else Cluster.EDS
        cluster.eds_cluster_config.eds_config.ads.SetInParent()
        cluster.circuit_breakers.thresholds.add(**limits)
        cluster.common_lb_config.healthy_panic_threshold.SetInParent()
        found.clusters[name] = cluster
        assignment = ClusterLoadAssignment(cluster_name=name)
        for k in range(0 if name.endswith("empty") else 20 * n + 1):
            address = assignment.endpoints.add().lb_endpoints.add().endpoint.address.socket_address
            address.address, address.port_value = f"10.{n}.0.{k + 1}", 8080
        found.endpoints[name] = assignment
    return found
