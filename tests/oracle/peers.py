"""Which backends a request may reach in place of one another.

Picks within a cluster are not stable from run to run, so "the same backend" means "a backend of the same cluster".
Which clusters a request's route leads to is taken from the captured routes by the reference evaluator; which backends
a cluster has, from its captured endpoints.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tests.oracle.scenario import Backend, Oracle, Request
from tests.unit.captured import load_snapshot
from translator import evaluate
from translator.from_xds import translate
from translator.model import RouteRule, ViewRules
from translator.reasons import Reason


class RoutePeers:
    """Backends of the clusters that one request's route leads to (all of them, if it is weighted).

    `mirrors` are groups of backends that copies may go to in place of one another.  `chance`: what becomes of the
    request is drawn anew each time in more than the choice of a backend, so that one recorded answer is one of several.
    """

    def __init__(
        self, clusters: Iterable[frozenset[str]], mirrors: Iterable[frozenset[str]] = (), *, chance: bool = False
    ) -> None:
        self._together: frozenset[str] = frozenset().union(*clusters)
        self._mirrors = tuple(mirrors)
        self.chance = chance

    def interchangeable(self, recorded: str, seen: str) -> bool:
        return recorded in self._together and seen in self._together

    def also_reached(self, recorded: str, seen: str) -> bool:
        return self.interchangeable(recorded, seen) or any({recorded, seen} <= group for group in self._mirrors)


class CapturedRules:
    """The rules captured for an oracle's node."""

    def __init__(self, rules: ViewRules, backends: Iterable[Backend]) -> None:
        self._rules = rules
        self._names = {(b.address, port): name for b in backends for port, name in b.names.items()}

    @classmethod
    def load(cls, oracle: Oracle) -> CapturedRules:
        """Read and translate the captured responses of the oracle's node."""
        return cls(translate(load_snapshot(oracle.node.folder)), oracle.backends)

    def peers(self, request: Request) -> RoutePeers:
        """What a request may reach, by the captured routes."""
        asked = evaluate.Request(request.method, request.host, request.path, request.headers, request.to)
        decision = evaluate.decide(self._rules, asked)
        names = {decision.cluster} if decision.cluster is not None else set()
        if decision.route_index is None or decision.listener is None:
            return RoutePeers(self._backends(name) for name in names)
        route = self._route(decision.listener, decision.route_index)
        names |= {weighted.cluster for weighted in route.action.clusters}
        mirrored = route.action_reason is Reason.ACTION_MIRROR
        return RoutePeers(
            [self._backends(name) for name in names],
            # The model does not say where a copy goes: to any cluster.
            [self._backends(name) for name in self._rules.clusters] if mirrored else (),
            chance=mirrored or len(route.action.clusters) > 1,
        )

    def _route(self, listener: str, index: int) -> RouteRule:
        config = next(r.route_config for r in self._rules.listeners if r.name == listener)
        routes: Mapping[int, RouteRule] = {
            route.index: route
            for host in self._rules.route_configs[config or listener].virtual_hosts
            for route in host.routes
        }
        return routes[index]

    def _backends(self, cluster: str) -> frozenset[str]:
        rule = self._rules.clusters.get(cluster)
        found = (self._names.get((e.address, e.port)) for e in (rule.endpoints if rule is not None else ()))
        return frozenset(name for name in found if name is not None)
