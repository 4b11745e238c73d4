"""`listener.v3.Listener` -> `ListenerRule`: what is captured, and whether the kernel may carry part of it."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.core.v3.base_pb2 import OUTBOUND
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)
from envoy.extensions.filters.network.tcp_proxy.v3.tcp_proxy_pb2 import TcpProxy
from google.protobuf.message import Message

from translator.closed import is_empty, type_name, unhandled, unpack
from translator.model import ListenerKind, ListenerRule
from translator.reasons import Reason

_HCM: Final = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_TCP_PROXY: Final = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
_HTTP_INSPECTOR: Final = "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector"
_TLS_INSPECTOR: Final = "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"
_ORIGINAL_DST: Final = "envoy.extensions.filters.listener.original_dst.v3.OriginalDst"
_STATS: Final = "stats.PluginConfig"

_LISTENER: Final = frozenset(
    {
        "name",
        "address",
        "additional_addresses",
        "stat_prefix",
        "filter_chains",
        "default_filter_chain",
        "use_original_dst",
        "listener_filters",
        "listener_filters_timeout",
        "continue_on_listener_filters_timeout",
        "traffic_direction",
        "bind_to_port",
        "metadata",
        "access_log",
        "max_connections_to_accept_per_socket_event",
    }
)
_CHAIN: Final = frozenset({"filter_chain_match", "filters", "metadata", "name", "transport_socket_connect_timeout"})
_FILTER: Final = frozenset({"name", "typed_config"})

# Fields of the connection manager that change nothing for a request that the kernel carries.  What goes with them:
# tracing has no provider here, generated request ids and the server header are differences by design, upgrades and
# HTTP/2 and 3 are Envoy's whatever their options say.
_MANAGER: Final = frozenset(
    {
        "codec_type",
        "stat_prefix",
        "rds",
        "route_config",
        "http_filters",
        "tracing",
        "http_protocol_options",
        "http2_protocol_options",
        "http3_protocol_options",
        "server_name",
        "server_header_transformation",
        "stream_idle_timeout",
        "request_timeout",
        "request_headers_timeout",
        "access_log",
        "access_log_options",
        "use_remote_address",
        "generate_request_id",
        "proxy_100_continue",
        "upgrade_configs",
        "normalize_path",
        "merge_slashes",
        "path_with_escaped_slashes_action",
        "request_id_extension",
    }
)
_OFF: Final = ("stream_idle_timeout", "request_timeout", "request_headers_timeout")

# HTTP filters that do nothing to a request that the kernel carries, by the type of their settings; True: only if the
# settings are empty.
_FILTERS: Final[Mapping[str, bool]] = {
    # Peer metadata headers for the other side's telemetry: a difference by design.
    "io.istio.http.peer_metadata.Config": False,
    # Filter state for statistics of gRPC requests, which are Envoy's.
    "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig": False,
    # Acts on content-type application/grpc-web*, and every application/grpc* is Envoy's.
    "envoy.extensions.filters.http.grpc_web.v3.GrpcWeb": False,
    # Chooses the ALPN of mTLS connections; endpoints that take them are Envoy's.
    "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig": False,
    "stats.PluginConfig": False,
    # These two act by what a route says, and a route that says something is Envoy's.
    "envoy.extensions.filters.http.fault.v3.HTTPFault": True,
    "envoy.extensions.filters.http.cors.v3.Cors": True,
}
_ROUTER: Final = "envoy.extensions.filters.http.router.v3.Router"


@dataclass(frozen=True, slots=True)
class ListenerRead:
    """`rules` is empty for a listener that is not captured; `inline` is a route configuration it holds itself."""

    rules: tuple[ListenerRule, ...] = ()
    inline: Any = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Found:
    kind: ListenerKind
    reason: Reason
    route_config: str | None = None
    cluster: str | None = None
    inline: Any = None
    normalize_path: bool = True
    warnings: tuple[str, ...] = ()


def read_listener(listener: Any, clusters: Mapping[str, Any]) -> ListenerRead:
    """Read a listener.

    :param clusters: `cluster.v3.Cluster` by name: a catch-all to an ORIGINAL_DST cluster is not captured
    :raises Malformed: for what Envoy would refuse
    """
    name = str(listener.name)
    if listener.traffic_direction != OUTBOUND:
        return ListenerRead()
    addresses = [*_addresses(listener)]
    if not addresses:
        return ListenerRead(warnings=(f"listener {name}: not captured, it has no IP address to dial",))
    catch_all = bool(listener.use_original_dst.value)
    found = _catch_all(listener, clusters) if catch_all else _inspect(listener)
    if unhandled(listener, _LISTENER) and found.kind is not ListenerKind.ENVOY:
        found = replace(found, kind=ListenerKind.ENVOY, reason=Reason.LISTENER_OTHER)
    rules = tuple(
        ListenerRule(
            name=name,
            address=("::" if ":" in address else "0.0.0.0") if catch_all else address,
            port=0 if catch_all else port,
            kind=found.kind,
            route_config=found.route_config,
            reason=found.reason,
            bound=not catch_all and not (listener.HasField("bind_to_port") and not listener.bind_to_port.value),
            cluster=found.cluster,
            normalize_path=found.normalize_path,
        )
        for address, port in addresses
    )
    return ListenerRead(rules, found.inline, found.warnings)


def _addresses(listener: Any) -> Iterator[tuple[str, int]]:
    for address in (listener.address, *(more.address for more in listener.additional_addresses)):
        if not address.HasField("socket_address"):
            continue
        try:
            ip = ipaddress.ip_address(address.socket_address.address)
        except ValueError:
            continue
        yield str(ip), int(address.socket_address.port_value)


def _catch_all(listener: Any, clusters: Mapping[str, Any]) -> _Found:
    """virtualOutbound: what no other listener takes.

    Its chains for its own port only stop loops.  A single tcp_proxy to the original destination has the same effect
    as no proxy at all.
    """
    own = listener.address.socket_address.port_value
    chains = [
        chain
        for chain in listener.filter_chains
        if not (chain.filter_chain_match.HasField("destination_port"))
        or chain.filter_chain_match.destination_port.value != own
    ]
    if listener.HasField("default_filter_chain"):
        chains.append(listener.default_filter_chain)
    cluster = _tcp_cluster(chains[-1]) if chains else None
    if len(chains) == 1 and cluster is not None and is_empty(chains[0].filter_chain_match) and _is_plain(chains[0]):
        target = clusters.get(cluster)
        if target is not None and _is_passthrough(target):
            return _Found(ListenerKind.DIRECT, Reason.NONE, cluster=cluster)
    has_http = any(type_name(f.typed_config) == _HCM for chain in chains for f in chain.filters)
    return _Found(ListenerKind.ENVOY, Reason.LISTENER_OTHER if has_http else Reason.LISTENER_TCP, cluster=cluster)


def _is_passthrough(cluster: Any) -> bool:
    return (
        cluster.WhichOneof("cluster_discovery_type") == "type"
        and cluster.type == Cluster.ORIGINAL_DST
        and not cluster.HasField("transport_socket")
        and not cluster.transport_socket_matches
        and not cluster.HasField("upstream_bind_config")
        and not cluster.HasField("original_dst_lb_config")
    )


def _tcp_cluster(chain: Any) -> str | None:
    """The cluster of a chain that ends in a tcp_proxy with one cluster."""
    for network_filter in chain.filters:
        if type_name(network_filter.typed_config) == _TCP_PROXY:
            return str(unpack(network_filter.typed_config, TcpProxy, "tcp_proxy").cluster) or None
    return None


def _is_plain(chain: Any) -> bool:
    """Whether a chain does nothing but proxy bytes: telemetry aside."""
    if unhandled(chain, _CHAIN):
        return False
    for network_filter in chain.filters:
        kind = type_name(network_filter.typed_config)
        if unhandled(network_filter, _FILTER):
            return False
        if kind == _TCP_PROXY:
            proxy = unpack(network_filter.typed_config, TcpProxy, "tcp_proxy")
            if unhandled(proxy, frozenset({"stat_prefix", "cluster", "access_log"})):
                return False
        elif kind != _STATS:
            return False
    return True


def _inspect(listener: Any) -> _Found:
    chains = [*listener.filter_chains]
    managers = [(chain, manager) for chain in chains for manager in _managers(chain)]
    if not managers:
        default = listener.default_filter_chain if listener.HasField("default_filter_chain") else None
        last = default if default is not None else chains[-1] if chains else None
        tls = any(type_name(f.typed_config) == _TLS_INSPECTOR for f in listener.listener_filters) or any(
            chain.filter_chain_match.server_names for chain in chains
        )
        return _Found(
            ListenerKind.ENVOY,
            Reason.LISTENER_TLS if tls else Reason.LISTENER_TCP,
            cluster=_tcp_cluster(last) if last is not None else None,
        )
    chain, manager = managers[0]
    found = _manager(manager, str(listener.name))
    # The kernel tells HTTP/1.1 from all else by itself, which stands for the HTTP inspector; every other way to
    # choose a chain is Envoy's.
    if len(chains) != 1 or not _is_http_match(chain, listener) or unhandled(chain, _CHAIN):
        reason = Reason.LISTENER_TLS if chain.HasField("transport_socket") else Reason.LISTENER_OTHER
        return replace(found, kind=ListenerKind.ENVOY, reason=reason)
    return found


def _managers(chain: Any) -> Iterator[HttpConnectionManager]:
    for network_filter in chain.filters:
        if type_name(network_filter.typed_config) == _HCM:
            yield unpack(network_filter.typed_config, HttpConnectionManager, "http_connection_manager")


def _is_http_match(chain: Any, listener: Any) -> bool:
    if len(chain.filters) != 1 or unhandled(chain.filters[0], _FILTER):
        return False
    known = (_HTTP_INSPECTOR, _TLS_INSPECTOR, _ORIGINAL_DST)
    inspectors = [type_name(f.typed_config) for f in listener.listener_filters]
    if any(
        kind not in known or unhandled(f, _FILTER)
        for kind, f in zip(inspectors, listener.listener_filters, strict=True)
    ):
        return False
    match = chain.filter_chain_match
    if is_empty(match):
        return True
    return (
        unhandled(match, frozenset({"transport_protocol", "application_protocols"})) is None
        and match.transport_protocol in ("", "raw_buffer")
        and "http/1.1" in match.application_protocols
        and _HTTP_INSPECTOR in inspectors
    )


def _manager(manager: Any, name: str) -> _Found:
    specifier = manager.WhichOneof("route_specifier")
    route_config, inline = None, None
    reason = Reason.NONE
    if specifier == "rds":
        route_config = str(manager.rds.route_config_name)
    elif specifier == "route_config":
        route_config, inline = name, manager.route_config
    else:
        reason = Reason.SCOPED_ROUTES
    if reason is Reason.NONE:
        reason = _filters_reason(manager.http_filters)
    if reason is Reason.NONE and not _options_are_plain(manager):
        reason = Reason.HCM_OPTION
    warnings: tuple[str, ...] = ()
    if manager.access_log and reason is Reason.NONE:
        warnings = (f"listener {name}: its access log will not have the requests that the kernel carries",)
    kind = ListenerKind.ENVOY if reason else ListenerKind.HTTP
    normalize = bool(manager.normalize_path.value)
    return _Found(kind, reason, route_config, None, inline, normalize, warnings)


def _filters_reason(http_filters: Any) -> Reason:
    kinds = []
    for http_filter in http_filters:
        if unhandled(http_filter, frozenset({"name", "typed_config", "is_optional", "disabled"})):
            return Reason.HTTP_FILTER
        kind = type_name(http_filter.typed_config)
        kinds.append(kind)
        # A route may enable it again, and does so by typed_per_filter_config, which makes it Envoy's.
        if http_filter.disabled or (kind == _ROUTER and _is_plain_router(http_filter.typed_config)):
            continue
        if kind not in _FILTERS or (_FILTERS[kind] and http_filter.typed_config.value):
            return Reason.HTTP_FILTER
    return Reason.NONE if kinds and kinds[-1] == _ROUTER and kinds.count(_ROUTER) == 1 else Reason.HTTP_FILTER


def _is_plain_router(packed: Any) -> bool:
    from envoy.extensions.filters.http.router.v3.router_pb2 import Router

    # Both concern headers that the fast path does not send anyway, and spans.
    known = frozenset({"suppress_envoy_headers", "start_child_span"})
    return unhandled(unpack(packed, Router, "router"), known) is None


def _options_are_plain(manager: Any) -> bool:
    if unhandled(manager, _MANAGER) or manager.codec_type not in (0, 1):  # AUTO, HTTP1
        return False
    # Unset is 5 minutes for stream_idle_timeout, and none for the others.
    if not manager.HasField("stream_idle_timeout"):
        return False
    if any(getattr(manager, name).seconds or getattr(manager, name).nanos for name in _OFF):
        return False
    if manager.use_remote_address.value or manager.merge_slashes:
        return False
    # IMPLEMENTATION_SPECIFIC_DEFAULT and KEEP_UNCHANGED are the same (http_connection_manager.proto).
    if manager.path_with_escaped_slashes_action not in (0, 1):
        return False
    if manager.tracing.HasField("provider"):
        return False
    if any(str(u.upgrade_type).lower() != "websocket" for u in manager.upgrade_configs):
        return False
    http1: Message = manager.http_protocol_options
    return unhandled(http1, frozenset({"accept_http_10", "default_host_for_http_10"})) is None
