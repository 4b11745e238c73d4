"""xDS resources -> rule model: the one edge where protobuf messages are read."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from translator.closed import Malformed
from translator.clusters import read_cluster
from translator.limits import Limits
from translator.listeners import read_listener
from translator.model import ClusterRule, ListenerKind, ListenerRule, Rejected, RouteConfigRule, ViewRules
from translator.reasons import Reason
from translator.routes import read_route_config
from xds_server.cache import Snapshot
from xds_server.resources import TypeUrl

_DEFAULT_LIMITS: Final = Limits()


def translate(snapshot: Snapshot, limits: Limits = _DEFAULT_LIMITS) -> ViewRules:
    """Translate all resources of one view.

    A resource that cannot be taken ends up in `rejected` and the others go on without it: never an exception.
    """
    rejected: list[Rejected] = []
    warnings: list[str] = []
    clusters: dict[str, ClusterRule] = {}
    for name, cluster in snapshot.clusters.items():
        try:
            clusters[name] = read_cluster(cluster, snapshot.endpoints, limits)
        except Malformed as error:
            rejected.append(Rejected(TypeUrl.CLUSTER, name, error.field, error.why))
    configs: dict[str, RouteConfigRule] = {}
    for name, config in snapshot.routes.items():
        try:
            configs[name] = read_route_config(config)
        except Malformed as error:
            rejected.append(Rejected(TypeUrl.ROUTE, name, error.field, error.why))
    listeners: list[ListenerRule] = []
    for name, listener in snapshot.listeners.items():
        try:
            found = read_listener(listener, snapshot.clusters)
            if found.inline is not None:
                configs[name] = read_route_config(found.inline, name)
        except Malformed as error:
            rejected.append(Rejected(TypeUrl.LISTENER, name, error.field, error.why))
            continue
        listeners.extend(found.rules)
        warnings.extend(found.warnings)
    return ViewRules(
        listeners=tuple(_with_routes(rule, configs) for rule in listeners),
        route_configs=configs,
        clusters=clusters,
        rejected=tuple(rejected),
        warnings=tuple(warnings),
    )


def _with_routes(rule: ListenerRule, configs: dict[str, RouteConfigRule]) -> ListenerRule:
    if rule.route_config is None or rule.route_config in configs or rule.kind is not ListenerKind.HTTP:
        return rule
    return replace(rule, kind=ListenerKind.ENVOY, reason=Reason.ROUTE_CONFIG_MISSING)
