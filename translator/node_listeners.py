"""`listener.v3.Listener` on its way to the node Envoy: an address of its own, and the original destination.

With a sidecar all connections arrive at one port and are handed to the listener of their original destination.  Here
the keeper chose the listener already (`translator.listeners`) and connects to it; SO_ORIGINAL_DST on that connection
is answered with what the workload dialled.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from envoy.config.core.v3.config_source_pb2 import V3
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)
from envoy.extensions.filters.network.tcp_proxy.v3.tcp_proxy_pb2 import TcpProxy

from translator.closed import Malformed, type_name
from translator.node_filters import (
    HTTP,
    LISTENER,
    NETWORK,
    Rewrite,
    access_logs,
    filters,
    rest_idle_filters,
    rewrite_packed,
    tracing,
)
from translator.node_routes import HASH_BY_SOURCE, rewrite_route_config
from translator.node_scope import Scope

_ORIGINAL_DST: Final = "envoy.extensions.filters.listener.original_dst.v3.OriginalDst"
_ORIGINAL_DST_NAME: Final = "envoy.filters.listener.original_dst"
_BY_SOURCE: Final = ("direct_source_prefix_ranges", "source_prefix_ranges", "source_ports")
_BY_DESTINATION: Final = ("destination_port", "prefix_ranges", "address_suffix")
_NOT_OURS: Final = ("udp_listener_config", "api_listener", "internal_listener", "fcds_config", "filter_chain_matcher")


def rewrite_listener(received: Any, address: str, port: int, scope: Scope) -> Listener:
    """A copy fit for Envoy, bound to `address` and `port`.

    :raises Malformed: for what cannot be served; the rest of the view can do without it
    """
    listener: Any = Listener()
    listener.CopyFrom(received)
    for name in _NOT_OURS:
        if listener.HasField(name):
            raise Malformed(name, "cannot be passed on to Envoy")
    chains = [(f"filter_chains[{i}]", chain) for i, chain in enumerate(listener.filter_chains)]
    if listener.HasField("default_filter_chain"):
        chains.append(("default_filter_chain", listener.default_filter_chain))
    _bind(listener, received, address, port, scope)
    _listener_filters(listener, scope, restore=_is_redirected(received, chains))
    access_logs(listener.access_log, scope)
    for path, chain in chains:
        _chain(chain, scope, path)
    return listener


def _bind(listener: Any, received: Any, address: str, port: int, scope: Scope) -> None:
    listener.name = scope.name(received.name)
    listener.stat_prefix = scope.name(received.stat_prefix or received.name)
    del listener.additional_addresses[:]
    listener.address.Clear()
    listener.address.socket_address.address = address
    listener.address.socket_address.port_value = port
    listener.bind_to_port.value = True
    listener.ClearField("use_original_dst")
    # Two Envoys that by mistake get one port must not share its connections silently: the second one is refused.
    listener.enable_reuse_port.value = False
    for name in ("transparent", "freebind"):
        if listener.HasField(name):
            scope.note(f"without {name}, which concerns the address it was bound to", harmless=True)
            listener.ClearField(name)


def _is_redirected(received: Any, chains: list[tuple[str, Any]]) -> bool:
    """Whether its connections had another destination than the listener itself.

    Those of a listener bound to a port (interception mode NONE) had not: Envoy answers "pass it on" with 503 there,
    and would otherwise try and connect to the listener's own address.
    """
    bound = not received.use_original_dst.value and (
        not received.HasField("bind_to_port") or received.bind_to_port.value
    )
    return not bound or any(
        field.name in _BY_DESTINATION for _, chain in chains for field, _ in chain.filter_chain_match.ListFields()
    )


def _listener_filters(listener: Any, scope: Scope, *, restore: bool) -> None:
    others = []
    for index, item in enumerate(listener.listener_filters):
        kind = type_name(item.typed_config)
        if kind == _ORIGINAL_DST:
            restore = True
        elif kind in LISTENER:
            others.append(item)
        else:
            raise Malformed(f"listener_filters[{index}]", f"filter {item.name!r} ({kind}) cannot be passed on to Envoy")
    made = Listener()
    if restore:
        # First: what comes after it, and which chain is taken, may depend on the destination.
        first = made.listener_filters.add(name=_ORIGINAL_DST_NAME)
        first.typed_config.type_url = f"type.googleapis.com/{_ORIGINAL_DST}"
    made.listener_filters.extend(others)
    listener.ClearField("listener_filters")
    listener.listener_filters.MergeFrom(made.listener_filters)


def _chain(chain: Any, scope: Scope, path: str) -> None:
    match = chain.filter_chain_match
    if match.source_type or any(len(getattr(match, name)) for name in _BY_SOURCE):
        scope.note("chooses by source address, where Envoy sees one of the node instead of the workload's", chain.name)
    if chain.HasField("transport_socket") and type_name(chain.transport_socket.typed_config) != _RAW_BUFFER:
        raise Malformed(f"{path}.transport_socket", "ends TLS of its clients, whose secrets nobody serves here")
    filters(chain.filters, _NETWORK, scope, f"{path}.filters")


_RAW_BUFFER: Final = "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"


def _connection_manager(packed: Any, scope: Scope, path: str) -> None:
    rewrite_packed(packed, HttpConnectionManager, path, lambda manager: _manager(manager, scope, path))


def _manager(manager: Any, scope: Scope, path: str) -> None:
    specifier = manager.WhichOneof("route_specifier")
    if specifier == "rds":
        if manager.rds.config_source.WhichOneof("config_source_specifier") not in ("ads", "self"):
            raise Malformed(f"{path}.rds", "routes from elsewhere than ADS are not served")
        manager.rds.config_source.ads.SetInParent()
        manager.rds.config_source.resource_api_version = V3
        manager.rds.route_config_name = scope.name(manager.rds.route_config_name)
    elif specifier == "route_config":
        try:
            rewrite_route_config(manager.route_config, scope)
        except Malformed as error:
            raise Malformed(f"{path}.route_config.{error.field}", error.why) from None
    else:
        raise Malformed(f"{path}.{specifier or 'route_specifier'}", "cannot be passed on to Envoy")
    manager.stat_prefix = scope.name(manager.stat_prefix)
    filters(manager.http_filters, HTTP, scope, f"{path}.http_filters")
    rest_idle_filters(manager.http_filters, scope)
    for upgrade in manager.upgrade_configs:
        filters(upgrade.filters, HTTP, scope, f"{path}.upgrade_configs[{upgrade.upgrade_type}].filters")
    access_logs(manager.access_log, scope)
    tracing(manager, scope)


def _tcp_proxy(packed: Any, scope: Scope, path: str) -> None:
    def change(proxy: Any) -> None:
        if proxy.HasField("on_demand"):
            raise Malformed(f"{path}.on_demand", "clusters on demand are not served")
        proxy.stat_prefix = scope.name(proxy.stat_prefix)
        if proxy.cluster:  # one of a oneof: to set it, even to nothing, clears the other
            proxy.cluster = scope.name(proxy.cluster)
        for choice in proxy.weighted_clusters.clusters:
            choice.name = scope.name(choice.name)
        if any(policy.HasField("source_ip") for policy in proxy.hash_policy):
            scope.note(HASH_BY_SOURCE)
        access_logs(proxy.access_log, scope)

    rewrite_packed(packed, TcpProxy, path, change)


_NETWORK: Final[Mapping[str, Rewrite]] = MappingProxyType(
    {
        **NETWORK,
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager": _connection_manager,
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy": _tcp_proxy,
    }
)
