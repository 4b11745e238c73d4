"""Translating only what has changed since the last snapshot.  Pure.

Most changes are of routes or endpoints alone, and a view has hundreds of clusters.  The cache hands out the same
message as long as its content is the same, so "changed" is a matter of identity.  The results are the same as without.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from envoy.config.route.v3.route_pb2 import RouteConfiguration
from google.protobuf.message import Message

from translator.closed import Malformed
from translator.envoy import EnvoyOptions, NodeResources
from translator.from_xds import translate
from translator.model import ViewRules
from translator.node_clusters import is_inbound
from translator.node_routes import rewrite_route_config
from translator.node_scope import Report, Scope
from xds_server.cache import Snapshot
from xds_server.resources import TypeUrl, endpoint_name


def same_roots(before: Snapshot, after: Snapshot) -> bool:
    """Whether clusters and listeners, and the names of routes, are the same."""
    return (
        before.routes.keys() == after.routes.keys()
        and _same(before.listeners, after.listeners)
        and _same(before.clusters, after.clusters)
    )


def translate_after(before: Snapshot, rules: ViewRules, snapshot: Snapshot) -> ViewRules:
    """As `translate(snapshot)`, given the rules of an earlier snapshot of the same view."""
    if rules.rejected or not same_roots(before, snapshot):
        return translate(snapshot)
    moved = {
        name
        for name in before.endpoints.keys() | snapshot.endpoints.keys()
        if before.endpoints.get(name) is not snapshot.endpoints.get(name)
    }
    part = Snapshot(
        snapshot.version,
        clusters={n: c for n, c in snapshot.clusters.items() if endpoint_name(c) in moved} if moved else {},
        endpoints=snapshot.endpoints,
        routes=_changed(before.routes, snapshot.routes),
    )
    changed = translate(part)
    if changed.rejected:
        return translate(snapshot)
    return ViewRules(
        listeners=rules.listeners,
        route_configs={**rules.route_configs, **changed.route_configs},
        clusters={**rules.clusters, **changed.clusters},
        warnings=rules.warnings,
    )


def node_resources_after(
    view: str, before: Snapshot, part: NodeResources, snapshot: Snapshot, options: EnvoyOptions
) -> NodeResources | None:
    """As `node_resources` for the same ports, where only routes have changed; None: it has to be done in full."""
    if part.rejected or not same_roots(before, snapshot) or not _same(before.endpoints, snapshot.endpoints):
        return None
    changed = _changed(before.routes, snapshot.routes)
    noted = {resource.partition(" (")[0] for change in part.changes for resource in change.resources}
    if not noted.isdisjoint(changed):
        return None
    report = Report(view)
    scope = Scope(view, options, report, frozenset(name for name in snapshot.clusters if not is_inbound(name)))
    routes: dict[str, Message] = {**part.resources[TypeUrl.ROUTE]}
    for name, received in changed.items():
        config = RouteConfiguration()
        config.CopyFrom(received)
        try:
            rewrite_route_config(config, scope.at(name))
        except Malformed:
            return None
        routes[config.name] = config
    if report.changes:
        return None
    return NodeResources({**part.resources, TypeUrl.ROUTE: routes}, part.changes)


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    return {name: message for name, message in after.items() if before[name] is not message}


def _same(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    return before.keys() == after.keys() and all(before[name] is message for name, message in after.items())
