"""`route.v3.RouteConfiguration` -> `RouteConfigRule`."""

from __future__ import annotations

import re
from typing import Any, Final

from translator.actions import read_action
from translator.closed import Malformed, unhandled
from translator.matches import read_match
from translator.model import (
    Action,
    ActionKind,
    Origin,
    PathKind,
    PathMatch,
    RouteConfigRule,
    RouteRule,
    VirtualHostRule,
)
from translator.reasons import Reason

_CONFIG: Final = frozenset(
    {
        "name",
        "virtual_hosts",
        "validate_clusters",
        "max_direct_response_body_size_bytes",
        "ignore_port_in_host_matching",
        "metadata",
    }
)
# With these set the evaluator, too, would choose the wrong virtual host or route.
_CONFIG_UNREADABLE: Final = ("vhds", "vhost_header", "ignore_path_parameters_in_path_matching")
_HOST: Final = frozenset({"name", "domains", "routes", "include_request_attempt_count", "metadata"})
_HOST_UNREADABLE: Final = ("matcher", "require_tls")
_VIRTUAL_SERVICE: Final = re.compile(r"/apis/[^/]+/[^/]+/namespaces/([^/]+)/virtual-service/(.+)")


def read_route_config(config: Any, name: str = "") -> RouteConfigRule:
    """Read a route configuration; `name` replaces its own (inline ones go by their listener's).

    :raises Malformed: for what Envoy would refuse
    """
    reason = Reason.ROUTE_CONFIG_OPTION if unhandled(config, _CONFIG) else Reason.NONE
    hosts = []
    position = 0
    for i, host in enumerate(config.virtual_hosts):
        rule = _virtual_host(host, position, f"virtual_hosts[{i}]")
        if any(_is_set(config, field) for field in _CONFIG_UNREADABLE):
            rule = _unreadable(rule, position, reason)
        hosts.append(rule)
        # Every route of the message counts, so that an index means the same whatever could be read.
        position += max(len(host.routes), 1)
    return RouteConfigRule(name or str(config.name), tuple(hosts), bool(config.ignore_port_in_host_matching), reason)


def ascii_lower(text: str) -> str:
    """Lower case as Envoy has it: A to Z only."""
    return text.translate(_LOWER)


_LOWER: Final = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}


def _virtual_host(host: Any, first_index: int, field: str) -> VirtualHostRule:
    if not host.domains:
        raise Malformed(f"{field}.domains", "is empty")
    routes = tuple(
        _route(route, first_index + position, position, f"{field}.routes[{position}]")
        for position, route in enumerate(host.routes)
    )
    reason = Reason.VIRTUAL_HOST_OPTION if unhandled(host, _HOST) else Reason.NONE
    rule = VirtualHostRule(str(host.name), tuple(ascii_lower(d) for d in host.domains), routes, reason)
    if any(_is_set(host, name) for name in _HOST_UNREADABLE):
        rule = _unreadable(rule, first_index, reason)
    return rule


def _unreadable(host: VirtualHostRule, index: int, reason: Reason) -> VirtualHostRule:
    """The host with one route that nobody can decide in place of its own."""
    route = RouteRule(
        index=index,
        origin=Origin(None, "", 0),
        path=PathMatch(PathKind.OTHER, ""),
        headers=(),
        queries=(),
        action=Action(ActionKind.NONE),
        match_reason=reason,
    )
    return VirtualHostRule(host.name, host.domains, (route,), reason)


def _route(route: Any, index: int, position: int, field: str) -> RouteRule:
    if not route.HasField("match"):
        raise Malformed(f"{field}.match", "is required")
    match = read_match(route.match, f"{field}.match")
    action, action_reason = read_action(route, field)
    return RouteRule(
        index=index,
        origin=Origin(virtual_service_of(route.metadata), str(route.name), position),
        path=match.path,
        headers=match.headers,
        queries=match.queries,
        action=action,
        match_reason=match.reason,
        action_reason=action_reason,
    )


def virtual_service_of(metadata: Any) -> str | None:
    """ "namespace/name" of the VirtualService that istiod says a route or filter chain was made from."""
    if "istio" not in metadata.filter_metadata:
        return None
    fields = metadata.filter_metadata["istio"].fields
    found = _VIRTUAL_SERVICE.fullmatch(fields["config"].string_value) if "config" in fields else None
    return f"{found[1]}/{found[2]}" if found else None


def _is_set(message: Any, name: str) -> bool:
    try:
        return bool(message.HasField(name))
    except ValueError:
        return bool(getattr(message, name))
