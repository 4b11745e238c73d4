"""What each thing that Istio can say becomes: carried by the kernel, or Envoy's for this reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.core.v3.base_pb2 import INBOUND
from envoy.config.core.v3.health_check_pb2 import DEGRADED, DRAINING, HEALTHY, UNHEALTHY
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.config.route.v3.route_components_pb2 import VirtualHost
from envoy.extensions.filters.http.cors.v3.cors_pb2 import Cors, CorsPolicy
from envoy.extensions.filters.http.fault.v3.fault_pb2 import HTTPFault
from envoy.extensions.filters.http.grpc_web.v3.grpc_web_pb2 import GrpcWeb
from envoy.extensions.filters.http.lua.v3.lua_pb2 import Lua
from envoy.extensions.filters.network.tcp_proxy.v3.tcp_proxy_pb2 import TcpProxy
from envoy.extensions.transport_sockets.raw_buffer.v3.raw_buffer_pb2 import RawBuffer
from envoy.extensions.transport_sockets.tls.v3.tls_pb2 import UpstreamTlsContext
from google.protobuf.message import Message
from udpa.type.v1.typed_struct_pb2 import TypedStruct

from tests.unit.small_world import World
from translator.model import FaultAbort, ListenerKind, PathKind, StringKind
from translator.reasons import Reason

Change = Callable[[World], Any]


def filter_of(settings: Message) -> Change:
    """Put an HTTP filter before the router."""

    def change(world: World) -> None:
        router = world.manager.http_filters.pop()
        world.manager.http_filters.add(name="some").typed_config.Pack(settings)
        world.http_filter = world.manager.http_filters.add()
        world.http_filter.CopyFrom(router)

    return change


def per_route(name: str, settings: Message) -> Change:
    return lambda world: world.route.typed_per_filter_config[name].Pack(settings)


def endpoint(address: str, **fields: Any) -> Change:
    def change(world: World) -> None:
        added = world.group.lb_endpoints.add(**fields)
        added.endpoint.address.socket_address.address = address
        added.endpoint.address.socket_address.port_value = 8080

    return change


def tls_matches(world: World) -> None:
    """As auto-mTLS has it: TLS for endpoints that say so, plain for the rest."""
    secure = world.cluster.transport_socket_matches.add(name="tlsMode-istio")
    secure.match["tlsMode"] = "istio"
    secure.transport_socket.typed_config.Pack(UpstreamTlsContext())
    plain = world.cluster.transport_socket_matches.add(name="tlsMode-disabled")
    plain.transport_socket.typed_config.Pack(RawBuffer())


def takes_tls(world: World) -> None:
    world.candidate.metadata.filter_metadata["envoy.transport_socket_match"]["tlsMode"] = "istio"


def both(*changes: Change) -> Change:
    def change(world: World) -> None:
        for one in changes:
            one(world)

    return change


def assign(path: str, value: Any) -> Change:
    """Set "place.field...field" of a `World`."""

    def change(world: World) -> None:
        *places, last = path.split(".")
        target: Any = world
        for place in places:
            target = getattr(target, place)
        if isinstance(value, Message):
            getattr(target, last).CopyFrom(value)
        elif isinstance(value, list):
            getattr(target, last).extend(value)
        else:
            setattr(target, last, value)

    return change


PEER_METADATA = TypedStruct(type_url="type.googleapis.com/io.istio.http.peer_metadata.Config")
ABORT = HTTPFault(abort={"http_status": 500, "percentage": {"numerator": 50}})
PREFIX_MATCH = {"name": "x", "string_match": {"prefix": "1"}}

CHANGES: tuple[tuple[str, Change, Reason], ...] = (
    ("istio's peer metadata filter", filter_of(PEER_METADATA), Reason.NONE),
    ("another filter in a TypedStruct", filter_of(TypedStruct(type_url="x/some.Filter")), Reason.HTTP_FILTER),
    ("empty fault filter", filter_of(HTTPFault()), Reason.NONE),
    ("fault filter for all routes", filter_of(ABORT), Reason.HTTP_FILTER),
    ("empty cors filter", filter_of(Cors()), Reason.NONE),
    ("grpc_web", filter_of(GrpcWeb()), Reason.NONE),
    ("lua", filter_of(Lua()), Reason.HTTP_FILTER),
    ("no router", lambda w: w.manager.ClearField("http_filters"), Reason.HTTP_FILTER),
    ("stream idle timeout", assign("manager.stream_idle_timeout.seconds", 300), Reason.HCM_OPTION),
    ("default stream idle timeout", lambda w: w.manager.ClearField("stream_idle_timeout"), Reason.HCM_OPTION),
    ("merge slashes", assign("manager.merge_slashes", True), Reason.HCM_OPTION),
    ("escaped slashes kept", assign("manager.path_with_escaped_slashes_action", 1), Reason.NONE),
    ("escaped slashes rejected", assign("manager.path_with_escaped_slashes_action", 2), Reason.HCM_OPTION),
    ("remote address used", assign("manager.use_remote_address.value", True), Reason.HCM_OPTION),
    ("remote address not used", assign("manager.use_remote_address.value", False), Reason.NONE),
    ("HTTP/2 only", assign("manager.codec_type", 2), Reason.HCM_OPTION),
    ("tracing provider", lambda w: w.manager.tracing.provider.SetInParent(), Reason.HCM_OPTION),
    ("websocket", lambda w: w.manager.upgrade_configs.add(upgrade_type="websocket"), Reason.NONE),
    ("CONNECT", lambda w: w.manager.upgrade_configs.add(upgrade_type="CONNECT"), Reason.HCM_OPTION),
    ("scoped routes", lambda w: w.manager.scoped_routes.SetInParent(), Reason.SCOPED_ROUTES),
    ("a chain for TLS", assign("chain_match.transport_protocol", "tls"), Reason.LISTENER_OTHER),
    ("two chains", lambda w: w.listener.filter_chains.add(), Reason.LISTENER_OTHER),
    ("two network filters", lambda w: w.chain.filters.insert(0, w.chain.filters[0]), Reason.LISTENER_OTHER),
    ("no inspector", lambda w: w.listener.ClearField("listener_filters"), Reason.LISTENER_OTHER),
    (
        "no inspector and no match",
        lambda w: (w.listener.ClearField("listener_filters"), w.chain.ClearField("filter_chain_match")),
        Reason.NONE,
    ),
    ("unknown route configuration", assign("manager.rds.route_config_name", "81"), Reason.ROUTE_CONFIG_MISSING),
    ("a timeout", assign("action.timeout.seconds", 1), Reason.ACTION_TIMEOUT),
    ("the default timeout", lambda w: w.action.ClearField("timeout"), Reason.ACTION_TIMEOUT),
    ("gRPC timeout 0", lambda w: w.action.max_grpc_timeout.SetInParent(), Reason.NONE),
    ("three retries", assign("retry.num_retries.value", 3), Reason.ACTION_RETRY_POLICY),
    ("no retries", assign("retry.num_retries.value", 0), Reason.NONE),
    ("retries on 5xx", assign("retry.retry_on", "connect-failure,5xx"), Reason.ACTION_RETRY_POLICY),
    ("retries on reset", assign("retry.retry_on", "reset"), Reason.ACTION_RETRY_POLICY),
    ("retries on connect failure", assign("retry.retry_on", "connect-failure"), Reason.NONE),
    ("retries on status", assign("retry.retriable_status_codes", [503]), Reason.ACTION_RETRY_POLICY),
    ("per-try timeout", lambda w: w.retry.per_try_timeout.SetInParent(), Reason.ACTION_RETRY_POLICY),
    ("another predicate", lambda w: w.predicate.typed_config.Pack(Lua()), Reason.ACTION_RETRY_POLICY),
    ("prefix rewrite", assign("action.prefix_rewrite", "/b"), Reason.ACTION_REWRITE),
    ("host rewrite", assign("action.host_rewrite_literal", "b"), Reason.ACTION_REWRITE),
    ("mirror", lambda w: w.action.request_mirror_policies.add(cluster="c"), Reason.ACTION_MIRROR),
    ("hash policy", lambda w: w.action.hash_policy.add(), Reason.ACTION_HASH_POLICY),
    ("cluster by header", assign("action.cluster_header", "x"), Reason.ACTION_CLUSTER_HEADER),
    ("header edit", assign("route.request_headers_to_remove", ["x"]), Reason.ACTION_HEADER_EDIT),
    ("header edit of a weight", assign("weight.response_headers_to_remove", ["x"]), Reason.ACTION_HEADER_EDIT),
    ("redirect", assign("route.redirect.path_redirect", "/"), Reason.ACTION_REDIRECT),
    ("direct response", assign("route.direct_response.status", 200), Reason.ACTION_DIRECT_RESPONSE),
    ("fault", per_route("envoy.filters.http.fault", ABORT), Reason.ACTION_FAULT),
    ("cors", per_route("envoy.filters.http.cors", CorsPolicy()), Reason.ACTION_CORS),
    ("lua of a route", per_route("lua", Lua()), Reason.ACTION_FILTER_CONFIG),
    ("regex", assign("match.safe_regex.regex", "/.*"), Reason.MATCH_REGEX),
    ("separated prefix", assign("match.path_separated_prefix", "/a"), Reason.MATCH_PATH_KIND),
    ("any case", assign("match.case_sensitive.value", False), Reason.MATCH_CASE_INSENSITIVE),
    ("header prefix", lambda w: w.match.headers.add(**PREFIX_MATCH), Reason.MATCH_HEADER_KIND),
    ("query", lambda w: w.match.query_parameters.add(name="q", present_match=True), Reason.MATCH_QUERY),
    ("runtime fraction", lambda w: w.match.runtime_fraction.SetInParent(), Reason.MATCH_RUNTIME_FRACTION),
    ("gRPC only", lambda w: w.match.grpc.SetInParent(), Reason.MATCH_OTHER),
    ("vhost retry policy", lambda w: w.host.retry_policy.SetInParent(), Reason.VIRTUAL_HOST_OPTION),
    ("TLS required", assign("host.require_tls", VirtualHost.ALL), Reason.VIRTUAL_HOST_OPTION),
    ("internal headers", assign("config.internal_only_headers", ["x"]), Reason.ROUTE_CONFIG_OPTION),
    ("another cluster", assign("weight.name", "d"), Reason.CLUSTER_MISSING),
    ("original destination", assign("cluster.type", Cluster.ORIGINAL_DST), Reason.CLUSTER_ORIGINAL_DST),
    ("DNS", assign("cluster.type", Cluster.STRICT_DNS), Reason.CLUSTER_DNS),
    ("custom cluster", assign("cluster.cluster_type.name", "x"), Reason.CLUSTER_TYPE),
    ("ring hash", assign("cluster.lb_policy", Cluster.RING_HASH), Reason.LB_POLICY),
    ("round robin", assign("cluster.lb_policy", Cluster.ROUND_ROBIN), Reason.NONE),
    ("more choices", assign("cluster.least_request_lb_config.choice_count.value", 3), Reason.LB_POLICY),
    (
        "slow start",
        lambda w: w.cluster.least_request_lb_config.slow_start_config.SetInParent(),
        Reason.LB_SLOW_START,
    ),
    ("locality weights", lambda w: w.common.locality_weighted_lb_config.SetInParent(), Reason.LB_LOCALITY),
    ("a limit", assign("threshold.max_requests.value", 10), Reason.CIRCUIT_BREAKER),
    ("default limits", lambda w: w.cluster.ClearField("circuit_breakers"), Reason.CIRCUIT_BREAKER),
    ("limits of high priority", assign("threshold.priority", 1), Reason.CIRCUIT_BREAKER),
    ("outlier detection", lambda w: w.cluster.outlier_detection.SetInParent(), Reason.OUTLIER_DETECTION),
    ("health checks", lambda w: w.cluster.health_checks.add(), Reason.HEALTH_CHECK),
    (
        "TLS",
        lambda w: w.cluster.transport_socket.typed_config.Pack(UpstreamTlsContext()),
        Reason.UPSTREAM_TLS,
    ),
    ("plain socket", lambda w: w.cluster.transport_socket.typed_config.Pack(RawBuffer()), Reason.NONE),
    ("auto mTLS, plain endpoint", tls_matches, Reason.NONE),
    ("auto mTLS, mTLS endpoint", both(tls_matches, takes_tls), Reason.ENDPOINT_MTLS),
    ("mTLS endpoint of a plain cluster", takes_tls, Reason.NONE),
    (
        "HTTP/2",
        lambda w: w.options.explicit_http_config.http2_protocol_options.SetInParent(),
        Reason.UPSTREAM_PROTOCOL,
    ),
    (
        "the client's protocol",
        lambda w: w.options.use_downstream_protocol_config.http2_protocol_options.SetInParent(),
        Reason.NONE,
    ),
    (
        "requests per connection",
        assign("options.common_http_protocol_options.max_requests_per_connection.value", 1),
        Reason.UPSTREAM_PROTOCOL,
    ),
    ("cluster filter", lambda w: w.cluster.filters.add(name="x"), Reason.CLUSTER_FILTER),
    ("second endpoint", endpoint("10.0.0.2"), Reason.NONE),
    ("IPv6 endpoint", endpoint("fd00::2"), Reason.NONE),
    ("weights", endpoint("10.0.0.2", load_balancing_weight={"value": 2}), Reason.LB_WEIGHTS),
    (
        "weights with RANDOM",
        both(endpoint("10.0.0.2", load_balancing_weight={"value": 2}), assign("cluster.lb_policy", Cluster.RANDOM)),
        Reason.NONE,
    ),
    ("unhealthy endpoint, no panic", endpoint("10.0.0.2", health_status=UNHEALTHY), Reason.NONE),
    (
        "unhealthy endpoint, default panic",
        both(endpoint("10.0.0.2", health_status=DRAINING), lambda w: w.cluster.ClearField("common_lb_config")),
        Reason.PANIC_THRESHOLD,
    ),
    (
        "all healthy, default panic",
        both(endpoint("10.0.0.2", health_status=HEALTHY), lambda w: w.cluster.ClearField("common_lb_config")),
        Reason.NONE,
    ),
    ("degraded endpoint", endpoint("10.0.0.2", health_status=DEGRADED), Reason.LB_PRIORITY),
    ("none healthy", assign("candidate.health_status", UNHEALTHY), Reason.NO_HEALTHY_ENDPOINT),
    (
        "none healthy, default panic",
        both(assign("candidate.health_status", UNHEALTHY), lambda w: w.cluster.ClearField("common_lb_config")),
        Reason.PANIC_THRESHOLD,
    ),
    ("no endpoints", lambda w: w.assignment.ClearField("endpoints"), Reason.NO_HEALTHY_ENDPOINT),
    ("second priority", assign("group.priority", 1), Reason.LB_PRIORITY),
    ("unix socket", assign("endpoint.address.pipe.path", "/x"), Reason.ENDPOINT_ADDRESS),
    ("host name", assign("socket.address", "b.example"), Reason.ENDPOINT_ADDRESS),
    (
        "several addresses",
        lambda w: w.endpoint.additional_addresses.add(),
        Reason.ENDPOINT_ADDRESS,
    ),
)


@pytest.mark.parametrize(("change", "expected"), [c[1:] for c in CHANGES], ids=[c[0] for c in CHANGES])
def test_a_change(change: Change, expected: Reason) -> None:
    world = World()
    change(world)
    assert world.reason() is expected
    assert world.rules().rejected == ()


def test_static_clusters_hold_their_endpoints_themselves() -> None:
    world = World()
    world.cluster.type = Cluster.STATIC
    world.cluster.load_assignment.CopyFrom(world.assignment)
    world.assignment.ClearField("endpoints")
    assert world.reason() is Reason.NONE


def test_many_endpoints_are_beyond_the_budget() -> None:
    world = World()
    for i in range(4096):
        endpoint(f"10.1.{i // 256}.{i % 256}")(world)
    assert world.reason() is Reason.BUDGET_ENDPOINTS


def test_endpoints_and_origins_are_kept_for_people() -> None:
    world = World()
    world.candidate.metadata.filter_metadata["istio"]["workload"] = "reviews-v1;default;reviews;v1;Kubernetes"
    world.route.metadata.filter_metadata["istio"]["config"] = (
        "/apis/networking.istio.io/v1/namespaces/default/virtual-service/reviews"
    )
    world.route.name = "jason"
    rules = world.rules()
    assert [e.workload for e in rules.clusters["c"].endpoints] == ["reviews-v1"]
    route = rules.route_configs["80"].virtual_hosts[0].routes[0]
    assert (route.origin.virtual_service, route.origin.route, route.origin.position) == ("default/reviews", "jason", 0)
    assert route.path.kind is PathKind.PREFIX
    assert [(h.name, h.kind, h.value) for h in route.headers] == [("x", StringKind.EXACT, "1")]


def test_faults_are_read_in_parts_per_million() -> None:
    world = World()
    per_route("envoy.filters.http.fault", ABORT)(world)
    route = world.rules().route_configs["80"].virtual_hosts[0].routes[0]
    assert route.action.abort == FaultAbort(500, 500_000)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (assign("match.safe_regex.regex", "("), "virtual_hosts[0].routes[0].match.safe_regex.regex"),
        (lambda w: w.match.ClearField("prefix"), "virtual_hosts[0].routes[0].match"),
        (lambda w: w.host.ClearField("domains"), "virtual_hosts[0].domains"),
    ],
)
def test_a_malformed_route_configuration_is_rejected_alone(change: Change, field: str) -> None:
    world = World()
    change(world)
    rules = world.rules()
    (rejected,) = rules.rejected
    assert (rejected.name, rejected.field) == ("80", field)
    assert rejected.why
    assert "c" in rules.clusters
    assert [(rule.kind, rule.reason) for rule in rules.listeners] == [(ListenerKind.ENVOY, Reason.ROUTE_CONFIG_MISSING)]


def test_a_damaged_any_is_rejected() -> None:
    world = World()
    world.cluster.typed_extension_protocol_options["x"].Pack(world.options)
    world.cluster.typed_extension_protocol_options["x"].value = b"\x0a\xff"
    (rejected,) = world.rules().rejected
    assert (rejected.name, rejected.field) == ("c", "typed_extension_protocol_options[x]")


def test_inbound_listeners_are_not_captured() -> None:
    world = World()
    world.listener.traffic_direction = INBOUND
    assert world.rules().listeners == ()


def test_listeners_without_an_address_are_reported() -> None:
    world = World()
    world.listener.address.pipe.path = "/x"
    rules = world.rules()
    assert rules.listeners == ()
    assert len(rules.warnings) == 1


def test_every_address_is_captured_and_bound_ones_are_marked() -> None:
    world = World()
    second = world.listener.additional_addresses.add().address.socket_address
    second.address, second.port_value = "::", 80
    assert [(r.address, r.port, r.bound) for r in world.rules().listeners] == [
        ("0.0.0.0", 80, False),
        ("::", 80, False),
    ]
    world.listener.ClearField("bind_to_port")
    assert all(rule.bound for rule in world.rules().listeners)


def test_access_logs_are_warned_of() -> None:
    world = World()
    world.manager.access_log.add()
    assert world.reason() is Reason.NONE
    assert len(world.rules().warnings) == 1


def test_inline_routes_go_by_the_listeners_name() -> None:
    world = World()
    world.manager.route_config.CopyFrom(world.config)
    rules = world.rules()
    assert rules.listeners[0].route_config == "0.0.0.0_80"
    assert "0.0.0.0_80" in rules.route_configs
    assert world.reason() is Reason.NONE


def catch_all(cluster: Cluster, proxy: TcpProxy) -> tuple[ListenerKind, str, int, Reason]:
    world = World()
    world.cluster.CopyFrom(cluster)
    world.cluster.name = "c"
    listener = Listener(name="virtualOutbound", traffic_direction=world.listener.traffic_direction)
    listener.use_original_dst.value = True
    listener.address.socket_address.address, listener.address.socket_address.port_value = "0.0.0.0", 15001
    loop = listener.filter_chains.add()
    loop.filter_chain_match.destination_port.value = 15001
    loop.filters.add().typed_config.Pack(TcpProxy(cluster="BlackHoleCluster"))
    listener.filter_chains.add().filters.add().typed_config.Pack(proxy)
    world.listener.CopyFrom(listener)
    (rule,) = world.rules().listeners
    return rule.kind, rule.address, rule.port, rule.reason


def test_the_catch_all() -> None:
    passthrough, static = Cluster(type=Cluster.ORIGINAL_DST), Cluster(type=Cluster.STATIC)
    plain = TcpProxy(stat_prefix="s", cluster="c")
    assert catch_all(passthrough, plain) == (ListenerKind.DIRECT, "0.0.0.0", 0, Reason.NONE)
    envoys = (ListenerKind.ENVOY, "0.0.0.0", 0, Reason.LISTENER_TCP)
    assert catch_all(static, plain) == envoys
    assert catch_all(passthrough, TcpProxy(cluster="c", idle_timeout={"seconds": 1})) == envoys
    assert catch_all(passthrough, TcpProxy(cluster="other")) == envoys
    bound = Cluster(type=Cluster.ORIGINAL_DST)
    bound.upstream_bind_config.SetInParent()
    assert catch_all(bound, plain) == envoys
