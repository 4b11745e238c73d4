"""One view's resources, as received -> what the node's Envoy gets.  Pure.

The node Envoy is a stock one and serves all views at once, so: every name carries its view; every outbound listener is
bound to an address of its own; what only Istio's build of Envoy has is left out; what waits for secrets that nobody
serves is replaced by something that answers 503.  Everything that becomes different is in `NodeResources.warnings`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, Protocol

from envoy.config.core.v3.address_pb2 import SocketAddress
from envoy.config.core.v3.base_pb2 import OUTBOUND
from envoy.config.route.v3.route_pb2 import RouteConfiguration
from google.protobuf.message import Message

from translator.closed import Malformed
from translator.listeners import read_listener
from translator.model import ListenerKind, Rejected
from translator.node_clusters import is_inbound, rewrite_cluster
from translator.node_listeners import rewrite_listener
from translator.node_routes import rewrite_route_config
from translator.node_scope import (
    Change,
    EnvoyOptions,
    MtlsEndpoints,
    NodeResources,
    Report,
    Scope,
    check_view,
    split_name,
)
from xds_server.resources import TypeUrl, endpoint_name, references

__all__ = [
    "Change",
    "EnvoyOptions",
    "MtlsEndpoints",
    "NodeResources",
    "Resources",
    "listener_names",
    "merge",
    "node_resources",
    "split_name",
]

_DEFAULTS: Final = EnvoyOptions()


class Resources(Protocol):
    """What is read of a view: `xds_server.cache.Snapshot` is one.  The messages are not changed."""

    @property
    def clusters(self) -> Mapping[str, Any]: ...

    @property
    def endpoints(self) -> Mapping[str, Any]: ...

    @property
    def listeners(self) -> Mapping[str, Any]: ...

    @property
    def routes(self) -> Mapping[str, Any]: ...


def listener_names(snapshot: Resources) -> tuple[str, ...]:
    """The listeners that need a port of the node Envoy: the outbound ones that capture anything, in order."""
    return tuple(
        name
        for name, listener in snapshot.listeners.items()
        if not _foreign(listener) and not _is_idle(listener, snapshot.clusters)
    )


def node_resources(
    view: str,
    snapshot: Resources,
    ports: Mapping[str, int],
    address: str,
    options: EnvoyOptions = _DEFAULTS,
) -> NodeResources:
    """Make one view's resources fit for the node Envoy.

    :param view: goes before every name, with "~"
    :param ports: TCP port by listener name, for those of `listener_names`; other listeners are left out
    :param address: IP address that the listeners are bound to
    :raises ValueError: for a view's name with "~" in it, or a port given twice
    """
    check_view(view)
    if len(set(ports.values())) != len(ports):
        raise ValueError(f"view {view}: two listeners have the same port")
    report = Report(view)
    served = frozenset(name for name in snapshot.clusters if not is_inbound(name))
    scope = Scope(view, options, report, served)
    for name in snapshot.clusters.keys() - served:
        scope.at(name).note("inbound clusters left out, since the sidecar's inbound side is not served", harmless=True)
    clusters, endpoints = _clusters(snapshot, served, scope)
    routes = _routes(snapshot, scope)
    listeners = _listeners(snapshot, ports, address, frozenset(routes), scope)
    resources: dict[str, Mapping[str, Message]] = {
        TypeUrl.CLUSTER: clusters,
        TypeUrl.ENDPOINT: endpoints,
        TypeUrl.LISTENER: listeners,
        TypeUrl.ROUTE: routes,
    }
    return NodeResources(resources, report.changes, report.rejected)


def merge(parts: Iterable[NodeResources]) -> NodeResources:
    """The resources of several views as one set for the one Envoy.

    :raises ValueError: if two of them are of one view, or have listeners of the same address
    """
    merged: dict[str, dict[str, Message]] = {type_url: {} for type_url in TypeUrl}
    changes: list[Change] = []
    rejected: list[Rejected] = []
    for part in parts:
        for type_url, messages in part.resources.items():
            both = merged[type_url].keys() & messages.keys()
            if both:
                raise ValueError(f"{min(both)} comes twice: the views must differ")
            merged[type_url].update(messages)
        changes.extend(part.changes)
        rejected.extend(part.rejected)
    addresses: dict[tuple[str, int], str] = {}
    for name, listener in merged[TypeUrl.LISTENER].items():
        bound: Any = listener.address.socket_address  # type: ignore[attr-defined]  # a Listener
        other = addresses.setdefault((bound.address, bound.port_value), name)
        if other != name:
            raise ValueError(f"{other} and {name} have the same address, {bound.address}:{bound.port_value}")
    return NodeResources(merged, tuple(changes), tuple(rejected))


def _clusters(
    snapshot: Resources, served: frozenset[str], scope: Scope
) -> tuple[dict[str, Message], dict[str, Message]]:
    clusters: dict[str, Message] = {}
    endpoints: dict[str, Message] = {}
    for name, received in snapshot.clusters.items():
        if name not in served:
            continue
        wanted = endpoint_name(received)
        assignment = None if wanted is None else snapshot.endpoints.get(wanted)
        cluster, found = rewrite_cluster(received, assignment, scope.at(name))
        clusters[cluster.name] = cluster
        if found is not None:
            endpoints[cluster.name] = found
    return clusters, endpoints


def _routes(snapshot: Resources, scope: Scope) -> dict[str, Message]:
    routes: dict[str, Message] = {}
    for name, received in snapshot.routes.items():
        config = RouteConfiguration()
        config.CopyFrom(received)
        try:
            rewrite_route_config(config, scope.at(name))
        except Malformed as error:
            scope.report.reject(TypeUrl.ROUTE, name, error)
            continue
        routes[config.name] = config
    return routes


def _listeners(
    snapshot: Resources, ports: Mapping[str, int], address: str, routes: frozenset[str], scope: Scope
) -> dict[str, Message]:
    listeners: dict[str, Message] = {}
    for name, received in snapshot.listeners.items():
        at = scope.at(name)
        foreign = _foreign(received)
        if foreign:
            at.note(f"listeners left out, since they {foreign}", harmless=True)
            continue
        if name not in ports:
            idle = _is_idle(received, snapshot.clusters)
            why = "what they would pass on is not captured" if idle else "they were given no port"
            at.note(f"listeners left out, since {why}", harmless=idle)
            continue
        try:
            listener = rewrite_listener(received, address, ports[name], at)
            for wanted in references(TypeUrl.LISTENER, listener):
                if wanted not in routes:
                    # Envoy would wait for it, and with it everything.
                    raise Malformed("rds", f"there is no route configuration {split_name(wanted)[1]!r} to serve")
        except Malformed as error:
            scope.report.reject(TypeUrl.LISTENER, name, error)
            continue
        listeners[listener.name] = listener
    return listeners


def _foreign(listener: Any) -> str:
    """Why a listener is none of ours; "" if it is."""
    if listener.traffic_direction != OUTBOUND:
        return "are not of the outbound side"
    if not listener.address.HasField("socket_address"):
        return "have no IP address"
    return "" if listener.address.socket_address.protocol == SocketAddress.TCP else "are not for TCP"


def _is_idle(listener: Any, clusters: Mapping[str, Any]) -> bool:
    """Whether no connection can come to a listener, since what it would take is not captured."""
    try:
        rules = read_listener(listener, clusters).rules
    except Malformed:
        return False  # for Envoy to say, or for `rewrite_listener`
    return all(rule.kind is ListenerKind.DIRECT for rule in rules)
