"""`route.v3.RouteConfiguration` on its way to the node Envoy: every cluster it names gets its view."""

from __future__ import annotations

from typing import Any, Final

from translator.closed import Malformed, type_name, unpack
from translator.node_filters import ISTIO_ONLY, PER_ROUTE
from translator.node_scope import Scope

_FILTER_CONFIG: Final = "envoy.config.route.v3.FilterConfig"
HASH_BY_SOURCE: Final = "hashes by source address, where Envoy sees one of the node instead of the workload's"
_HEADER_LISTS: Final = ("request_headers_to_add", "response_headers_to_add")


def rewrite_route_config(config: Any, scope: Scope) -> None:
    """Rewrite in place; the name becomes Envoy's.

    :raises Malformed: for what chooses clusters by means other than names in the configuration
    """
    config.name = scope.name(config.name)
    if config.HasField("vhds"):
        raise Malformed("vhds", "virtual host discovery is not served")
    if config.cluster_specifier_plugins:
        raise Malformed("cluster_specifier_plugins", "plugins that choose a cluster cannot be passed on to Envoy")
    _mirrors(config.request_mirror_policies, scope)
    _per_filter(config, scope, "typed_per_filter_config")
    _headers(config, scope)
    for host in config.virtual_hosts:
        where = f"virtual_hosts[{host.name}]"
        if host.HasField("matcher"):
            raise Malformed(f"{where}.matcher", "cannot be passed on to Envoy")
        _mirrors(host.request_mirror_policies, scope)
        _per_filter(host, scope, f"{where}.typed_per_filter_config")
        _headers(host, scope)
        for index, route in enumerate(host.routes):
            path = f"{where}.routes[{index}]"
            _per_filter(route, scope, f"{path}.typed_per_filter_config")
            _headers(route, scope)
            if route.HasField("route"):
                _action(route.route, scope, f"{path}.route", where + (f" route {route.name}" if route.name else ""))


def _action(action: Any, scope: Scope, path: str, remark: str) -> None:
    specifier = action.WhichOneof("cluster_specifier")
    if specifier == "cluster":
        action.cluster = scope.name(action.cluster)
    elif specifier == "cluster_header":
        _cluster_header(scope, remark)
    elif specifier == "weighted_clusters":
        for choice in action.weighted_clusters.clusters:
            if choice.cluster_header:
                _cluster_header(scope, remark)
            choice.name = scope.name(choice.name)
            _per_filter(choice, scope, f"{path}.weighted_clusters.typed_per_filter_config")
            _headers(choice, scope)
    elif specifier is not None:
        raise Malformed(f"{path}.{specifier}", "plugins that choose a cluster cannot be passed on to Envoy")
    _mirrors(action.request_mirror_policies, scope)
    if any(policy.connection_properties.source_ip for policy in action.hash_policy):
        scope.note(HASH_BY_SOURCE, remark)


def _cluster_header(scope: Scope, remark: str) -> None:
    # What the client writes into the header is the name without its view, and nothing in Envoy can put it before.
    scope.note("takes the cluster's name from a header, and no cluster has that name here (503 NC)", remark)


def _mirrors(policies: Any, scope: Scope) -> None:
    for policy in policies:
        policy.cluster = scope.name(policy.cluster)
        if policy.cluster_header:
            _cluster_header(scope, "mirror")


def _headers(message: Any, scope: Scope) -> None:
    for name in _HEADER_LISTS:
        for option in getattr(message, name):
            if "%UPSTREAM_CLUSTER" in option.header.value:
                scope.note("shows the cluster's name, with its view, in a header", option.header.key)


def _per_filter(message: Any, scope: Scope, path: str) -> None:
    configs = message.typed_per_filter_config
    dropped = [name for name, packed in configs.items() if not _settings(packed, scope, f"{path}[{name}]")]
    for name in dropped:
        scope.note(f"without what routes say to Istio's filter {name}", harmless=True)
        del configs[name]


def _settings(packed: Any, scope: Scope, path: str) -> bool:
    """Rewrite one filter's settings; False if they are for a filter that is left out."""
    kind = type_name(packed)
    if kind == _FILTER_CONFIG:
        from envoy.config.route.v3.route_components_pb2 import FilterConfig

        outer = unpack(packed, FilterConfig, path)
        if outer.HasField("config"):
            inner = outer.config.value
            if not _settings(outer.config, scope, f"{path}.config"):
                return False
            if outer.config.value != inner:
                packed.value = outer.SerializeToString(deterministic=True)
        return True
    if kind in ISTIO_ONLY:
        return False
    if kind not in PER_ROUTE:
        raise Malformed(path, f"settings of type {kind or 'none'} cannot be passed on to Envoy")
    PER_ROUTE[kind](packed, scope, path)
    return True
