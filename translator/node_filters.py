"""Filters, access logs and tracers on their way to the node Envoy: which it has, and where they name clusters.

A closed list: a filter is passed on only if it is known to be in a stock Envoy, and known either to name nothing that
is kept per process or how those names are rewritten.  Istio's own filters are left out; any other is refused, since
a filter may be there to protect something.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from translator.closed import Malformed, type_name, unpack
from translator.node_scope import Scope

Rewrite = Callable[[Any, Scope, str], None]
"""Changes an Any in place; `str` is the path for error messages.  Raises Malformed for what cannot be passed on."""

_EXT: Final = "envoy.extensions.filters."

ISTIO_ONLY: Final[Mapping[str, str]] = MappingProxyType(
    {
        "io.istio.http.peer_metadata.Config": "istio.metadata_exchange (tells peers of each other)",
        "envoy.tcp.metadataexchange.config.MetadataExchange": "istio.metadata_exchange (tells peers of each other)",
        "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig": "istio.alpn (concerns mesh mTLS only)",
        "stats.PluginConfig": "istio.stats (Istio's own metrics)",
    }
)
"""Istio's filters that a stock Envoy does not have, and that decide nothing about a request."""


def keep(packed: Any, scope: Scope, path: str) -> None:
    """For what names no cluster and no file."""


def rewrite_packed(packed: Any, kind: Any, path: str, change: Callable[[Any], None]) -> None:
    """Unpack, change, and pack again if that made a difference.

    :raises Malformed: also for a TypedStruct, whose fields have no types to go by
    """
    if not str(packed.type_url).endswith("/" + kind.DESCRIPTOR.full_name):
        raise Malformed(path, f"{kind.DESCRIPTOR.name} in a TypedStruct cannot be passed on")
    message = unpack(packed, kind, path)
    before = kind()
    before.CopyFrom(message)
    change(message)
    if message != before:
        packed.value = message.SerializeToString(deterministic=True)


def filters(items: Any, table: Mapping[str, Rewrite], scope: Scope, path: str) -> None:
    """Rewrite a list of filters (any message with name and typed_config) in place.

    :raises Malformed: naming the filter that cannot be passed on
    """
    dropped = []
    for index, item in enumerate(items):
        where = f"{path}[{index}]"
        if not item.HasField("typed_config"):
            raise Malformed(where, f"filter {item.name!r} has no typed_config (extension discovery is not served)")
        kind = type_name(item.typed_config)
        if kind in ISTIO_ONLY:
            scope.note(f"without Istio's filter {ISTIO_ONLY[kind]}", harmless=True)
            dropped.append(index)
        elif kind in table:
            table[kind](item.typed_config, scope, f"{where}.typed_config")
        elif getattr(item, "is_optional", False):
            scope.note(f"without the optional filter {item.name} ({kind}), which is not known")
            dropped.append(index)
        else:
            raise Malformed(where, f"filter {item.name!r} ({kind or 'of no type'}) cannot be passed on to Envoy")
    for index in reversed(dropped):
        del items[index]


def rest_idle_filters(items: Any, scope: Scope) -> None:
    """Turn off filters that do something only where a route says so: such a route turns them on again.

    An idle filter costs Envoy a few microseconds for every request.  Only where nothing else stands in the chain: a
    filter that has the route chosen anew would not bring one back (`HttpFilter.disabled`).
    """
    idle = [item for item in items if type_name(item.typed_config) in _BY_ROUTE]
    if len(idle) + 1 != len(items) or type_name(items[-1].typed_config) != _EXT + "http.router.v3.Router":
        return
    for item in idle:
        # gRPC statistics have no say in anything, and who read them were Istio's own.
        if not item.typed_config.value or type_name(item.typed_config) == _GRPC_STATS:
            item.disabled = True
            scope.note(f"with {item.name} only where a route asks for it", harmless=True)


_GRPC_STATS: Final = _EXT + "http.grpc_stats.v3.FilterConfig"
_BY_ROUTE: Final = frozenset({_GRPC_STATS, _EXT + "http.fault.v3.HTTPFault", _EXT + "http.cors.v3.Cors"})


def grpc_service(service: Any, scope: Scope, path: str) -> None:
    """:raises Malformed: unless Envoy's own client is to call a cluster of this view"""
    if service.WhichOneof("target_specifier") != "envoy_grpc":
        raise Malformed(path, "calls a gRPC service other than by a cluster")
    target = service.envoy_grpc
    target.cluster_name = scope.existing(target.cluster_name, f"{path}.envoy_grpc.cluster_name")


def http_uri(uri: Any, scope: Scope, path: str) -> None:
    """:raises Malformed: if the cluster is not in this view"""
    uri.cluster = scope.existing(uri.cluster, f"{path}.cluster")


def access_logs(logs: Any, scope: Scope) -> None:
    """Keep the access logs that are sent to a cluster of the view.

    Files are left out: their path is one of the workload's file system, and /dev/stdout is not Envoy's to open anew
    when it is a log file.
    """
    dropped = []
    for index, log in enumerate(logs):
        kind = type_name(log.typed_config)
        rewrite = ACCESS_LOGS.get(kind)
        try:
            if rewrite is None:
                raise Malformed("", kind.rpartition(".")[2] or log.name)
            rewrite(log.typed_config, scope, "")
        except Malformed as error:
            scope.note(f"without its access log ({error.why})")
            dropped.append(index)
    for index in reversed(dropped):
        del logs[index]


def tracing(manager: Any, scope: Scope) -> None:
    """Keep a connection manager's tracing if its collector is a cluster of the view.

    Without a provider no span leaves, but Envoy would still decide and keep a span's record for every request.
    """
    if not manager.HasField("tracing"):
        return
    if not manager.tracing.HasField("provider"):
        scope.note("without tracing settings, since they name no provider", harmless=True)
        manager.ClearField("tracing")
        return
    packed = manager.tracing.provider.typed_config
    kind = type_name(packed)
    try:
        if kind not in TRACERS:
            raise Malformed("", kind.rpartition(".")[2] or manager.tracing.provider.name)
        TRACERS[kind](packed, scope, "")
    except Malformed as error:
        scope.note(f"without its tracing provider ({error.why})")
        manager.ClearField("tracing")


# -- access logs and tracers -------------------------------------------------------------------------------------------


def _http_grpc_log(packed: Any, scope: Scope, path: str) -> None:
    from envoy.extensions.access_loggers.grpc.v3.als_pb2 import HttpGrpcAccessLogConfig

    _common_log(packed, HttpGrpcAccessLogConfig, scope)


def _tcp_grpc_log(packed: Any, scope: Scope, path: str) -> None:
    from envoy.extensions.access_loggers.grpc.v3.als_pb2 import TcpGrpcAccessLogConfig

    _common_log(packed, TcpGrpcAccessLogConfig, scope)


def _otel_log(packed: Any, scope: Scope, path: str) -> None:
    from envoy.extensions.access_loggers.open_telemetry.v3.logs_service_pb2 import OpenTelemetryAccessLogConfig

    _common_log(packed, OpenTelemetryAccessLogConfig, scope)


def _common_log(packed: Any, kind: Any, scope: Scope) -> None:
    rewrite_packed(packed, kind, "", lambda m: grpc_service(m.common_config.grpc_service, scope, "grpc_service"))


def _zipkin(packed: Any, scope: Scope, path: str) -> None:
    from envoy.config.trace.v3.zipkin_pb2 import ZipkinConfig

    def change(config: Any) -> None:
        if config.HasField("collector_service"):
            http_uri(config.collector_service.http_uri, scope, "collector_service")
        if config.collector_cluster or not config.HasField("collector_service"):
            config.collector_cluster = scope.existing(config.collector_cluster, "collector_cluster")

    rewrite_packed(packed, ZipkinConfig, path, change)


def _otel(packed: Any, scope: Scope, path: str) -> None:
    from envoy.config.trace.v3.opentelemetry_pb2 import OpenTelemetryConfig

    rewrite_packed(packed, OpenTelemetryConfig, path, lambda m: _service(m, scope))


def _skywalking(packed: Any, scope: Scope, path: str) -> None:
    from envoy.config.trace.v3.skywalking_pb2 import SkyWalkingConfig

    rewrite_packed(packed, SkyWalkingConfig, path, lambda m: grpc_service(m.grpc_service, scope, "grpc_service"))


def _service(message: Any, scope: Scope) -> None:
    """A message with grpc_service or http_service."""
    if message.HasField("grpc_service"):
        grpc_service(message.grpc_service, scope, "grpc_service")
    if message.HasField("http_service"):
        http_uri(message.http_service.http_uri, scope, "http_service.http_uri")


ACCESS_LOGS: Final[Mapping[str, Rewrite]] = MappingProxyType(
    {
        "envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig": _http_grpc_log,
        "envoy.extensions.access_loggers.grpc.v3.TcpGrpcAccessLogConfig": _tcp_grpc_log,
        "envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig": _otel_log,
    }
)
TRACERS: Final[Mapping[str, Rewrite]] = MappingProxyType(
    {
        "envoy.config.trace.v3.ZipkinConfig": _zipkin,
        "envoy.config.trace.v3.OpenTelemetryConfig": _otel,
        "envoy.config.trace.v3.SkyWalkingConfig": _skywalking,
    }
)

# -- HTTP filters ------------------------------------------------------------------------------------------------------


def _router(packed: Any, scope: Scope, path: str) -> None:
    from envoy.extensions.filters.http.router.v3.router_pb2 import Router

    def change(router: Any) -> None:
        access_logs(router.upstream_log, scope)
        filters(router.upstream_http_filters, UPSTREAM_HTTP, scope, f"{path}.upstream_http_filters")

    rewrite_packed(packed, Router, path, change)


def _fault(packed: Any, scope: Scope, path: str) -> None:
    from envoy.extensions.filters.http.fault.v3.fault_pb2 import HTTPFault

    def change(fault: Any) -> None:
        fault.upstream_cluster = scope.name(fault.upstream_cluster)

    rewrite_packed(packed, HTTPFault, path, change)


def _jwt_authn(packed: Any, scope: Scope, path: str) -> None:
    from envoy.extensions.filters.http.jwt_authn.v3.config_pb2 import JwtAuthentication

    def change(config: Any) -> None:
        for name, provider in config.providers.items():
            if provider.WhichOneof("jwks_source_specifier") == "remote_jwks":
                http_uri(provider.remote_jwks.http_uri, scope, f"{path}.providers[{name}].remote_jwks.http_uri")
            elif provider.local_jwks.WhichOneof("specifier") not in ("inline_string", "inline_bytes"):
                raise Malformed(f"{path}.providers[{name}]", "its keys are in a file of the workload")

    rewrite_packed(packed, JwtAuthentication, path, change)


def _ext_authz(packed: Any, scope: Scope, path: str) -> None:
    from envoy.extensions.filters.http.ext_authz.v3.ext_authz_pb2 import ExtAuthz

    rewrite_packed(packed, ExtAuthz, path, lambda m: _authz_service(m, scope, path))


def _ext_authz_per_route(packed: Any, scope: Scope, path: str) -> None:
    from envoy.extensions.filters.http.ext_authz.v3.ext_authz_pb2 import ExtAuthzPerRoute

    def change(config: Any) -> None:
        if config.HasField("check_settings"):
            _authz_service(config.check_settings, scope, f"{path}.check_settings")

    rewrite_packed(packed, ExtAuthzPerRoute, path, change)


def _authz_service(message: Any, scope: Scope, path: str) -> None:
    if message.HasField("grpc_service"):
        grpc_service(message.grpc_service, scope, f"{path}.grpc_service")
    if message.HasField("http_service"):
        http_uri(message.http_service.server_uri, scope, f"{path}.http_service.server_uri")


def _ratelimit(packed: Any, scope: Scope, path: str) -> None:
    from envoy.extensions.filters.http.ratelimit.v3.rate_limit_pb2 import RateLimit

    rewrite_packed(packed, RateLimit, path, lambda m: _limit_service(m, scope, path))


def _limit_service(message: Any, scope: Scope, path: str) -> None:
    grpc_service(message.rate_limit_service.grpc_service, scope, f"{path}.rate_limit_service.grpc_service")


def _dynamic_forward_proxy(packed: Any, scope: Scope, path: str) -> None:
    from envoy.extensions.filters.http.dynamic_forward_proxy.v3.dynamic_forward_proxy_pb2 import FilterConfig

    rewrite_packed(packed, FilterConfig, path, lambda m: dns_cache(m, scope))


def dns_cache(message: Any, scope: Scope) -> None:
    """DNS caches are one table for the process; two views may have different settings under one name."""
    message.dns_cache_config.name = scope.name(message.dns_cache_config.name)


_PLAIN_HTTP: Final = (
    "http.adaptive_concurrency.v3.AdaptiveConcurrency",
    "http.admission_control.v3.AdmissionControl",
    "http.bandwidth_limit.v3.BandwidthLimit",
    "http.buffer.v3.Buffer",
    "http.cdn_loop.v3.CdnLoopConfig",
    "http.compressor.v3.Compressor",
    "http.connect_grpc_bridge.v3.FilterConfig",
    "http.cors.v3.Cors",
    "http.csrf.v3.CsrfPolicy",
    "http.decompressor.v3.Decompressor",
    "http.grpc_http1_bridge.v3.Config",
    "http.grpc_stats.v3.FilterConfig",
    "http.grpc_web.v3.GrpcWeb",
    "http.header_mutation.v3.HeaderMutation",
    "http.header_to_metadata.v3.Config",
    "http.local_ratelimit.v3.LocalRateLimit",
    "http.rbac.v3.RBAC",
    "http.set_metadata.v3.Config",
    "http.stateful_session.v3.StatefulSession",
)

HTTP: Final[Mapping[str, Rewrite]] = MappingProxyType(
    {_EXT + name: keep for name in _PLAIN_HTTP}
    | {
        _EXT + "http.dynamic_forward_proxy.v3.FilterConfig": _dynamic_forward_proxy,
        _EXT + "http.ext_authz.v3.ExtAuthz": _ext_authz,
        _EXT + "http.fault.v3.HTTPFault": _fault,
        _EXT + "http.jwt_authn.v3.JwtAuthentication": _jwt_authn,
        _EXT + "http.ratelimit.v3.RateLimit": _ratelimit,
        _EXT + "http.router.v3.Router": _router,
    }
)
"""HTTP filters of a connection manager."""

UPSTREAM_HTTP: Final[Mapping[str, Rewrite]] = MappingProxyType(
    {
        _EXT + name: keep
        for name in (
            "http.admission_control.v3.AdmissionControl",
            "http.buffer.v3.Buffer",
            "http.header_mutation.v3.HeaderMutation",
            "http.upstream_codec.v3.UpstreamCodec",
        )
    }
)
"""HTTP filters of a cluster or a router."""

PER_ROUTE: Final[Mapping[str, Rewrite]] = MappingProxyType(
    {
        _EXT + name: keep
        for name in (
            "http.bandwidth_limit.v3.BandwidthLimit",
            "http.buffer.v3.BufferPerRoute",
            "http.compressor.v3.CompressorPerRoute",
            "http.cors.v3.CorsPolicy",
            "http.csrf.v3.CsrfPolicy",
            "http.dynamic_forward_proxy.v3.PerRouteConfig",
            "http.header_mutation.v3.HeaderMutationPerRoute",
            "http.header_to_metadata.v3.Config",
            "http.jwt_authn.v3.PerRouteConfig",
            "http.local_ratelimit.v3.LocalRateLimit",
            "http.ratelimit.v3.RateLimitPerRoute",
            "http.rbac.v3.RBACPerRoute",
            "http.set_metadata.v3.Config",
            "http.stateful_session.v3.StatefulSessionPerRoute",
        )
    }
    | {
        _EXT + "http.ext_authz.v3.ExtAuthzPerRoute": _ext_authz_per_route,
        _EXT + "http.fault.v3.HTTPFault": _fault,
    }
)
"""What a route may say to a filter (typed_per_filter_config)."""

# -- network filters ---------------------------------------------------------------------------------------------------


def _network_ext_authz(packed: Any, scope: Scope, path: str) -> None:
    from envoy.extensions.filters.network.ext_authz.v3.ext_authz_pb2 import ExtAuthz

    rewrite_packed(packed, ExtAuthz, path, lambda m: grpc_service(m.grpc_service, scope, f"{path}.grpc_service"))


def _network_ratelimit(packed: Any, scope: Scope, path: str) -> None:
    from envoy.extensions.filters.network.ratelimit.v3.rate_limit_pb2 import RateLimit

    rewrite_packed(packed, RateLimit, path, lambda m: _limit_service(m, scope, path))


def _mongo_proxy(packed: Any, scope: Scope, path: str) -> None:
    from envoy.extensions.filters.network.mongo_proxy.v3.mongo_proxy_pb2 import MongoProxy

    def change(proxy: Any) -> None:
        proxy.stat_prefix = scope.name(proxy.stat_prefix)
        if proxy.access_log:
            scope.note("without its access log (a file)")
            proxy.access_log = ""

    rewrite_packed(packed, MongoProxy, path, change)


def _redis_proxy(packed: Any, scope: Scope, path: str) -> None:
    from envoy.extensions.filters.network.redis_proxy.v3.redis_proxy_pb2 import RedisProxy

    def change(proxy: Any) -> None:
        proxy.stat_prefix = scope.name(proxy.stat_prefix)
        if proxy.HasField("external_auth_provider"):
            raise Malformed(f"{path}.external_auth_provider", "cannot be passed on to Envoy")
        routes = [*proxy.prefix_routes.routes]
        if proxy.prefix_routes.HasField("catch_all_route"):
            routes.append(proxy.prefix_routes.catch_all_route)
        for route in routes:
            route.cluster = scope.existing(route.cluster, f"{path}.prefix_routes.cluster")
            for mirror in route.request_mirror_policy:
                mirror.cluster = scope.existing(mirror.cluster, f"{path}.prefix_routes.request_mirror_policy.cluster")
            if route.HasField("read_command_policy"):
                policy = route.read_command_policy
                policy.cluster = scope.existing(policy.cluster, f"{path}.prefix_routes.read_command_policy.cluster")

    rewrite_packed(packed, RedisProxy, path, change)


def _sni_dynamic_forward_proxy(packed: Any, scope: Scope, path: str) -> None:
    from envoy.extensions.filters.network.sni_dynamic_forward_proxy.v3.sni_dynamic_forward_proxy_pb2 import FilterConfig

    rewrite_packed(packed, FilterConfig, path, lambda m: dns_cache(m, scope))


_PLAIN_NETWORK: Final = (
    "network.connection_limit.v3.ConnectionLimit",
    "network.direct_response.v3.Config",
    "network.echo.v3.Echo",
    "network.local_ratelimit.v3.LocalRateLimit",
    "network.rbac.v3.RBAC",
    "network.set_filter_state.v3.Config",
)

NETWORK: Final[Mapping[str, Rewrite]] = MappingProxyType(
    {_EXT + name: keep for name in _PLAIN_NETWORK}
    | {
        _EXT + "network.ext_authz.v3.ExtAuthz": _network_ext_authz,
        _EXT + "network.mongo_proxy.v3.MongoProxy": _mongo_proxy,
        _EXT + "network.ratelimit.v3.RateLimit": _network_ratelimit,
        _EXT + "network.redis_proxy.v3.RedisProxy": _redis_proxy,
        _EXT + "network.sni_dynamic_forward_proxy.v3.FilterConfig": _sni_dynamic_forward_proxy,
    }
)
"""Network filters other than those that choose a cluster or a route (`translator.node_listeners`)."""

LISTENER: Final[Mapping[str, Rewrite]] = MappingProxyType(
    {
        _EXT + name: keep
        for name in (
            "listener.http_inspector.v3.HttpInspector",
            "listener.local_ratelimit.v3.LocalRateLimit",
            "listener.proxy_protocol.v3.ProxyProtocol",
            "listener.tls_inspector.v3.TlsInspector",
        )
    }
)
"""Listener filters other than original_dst."""
