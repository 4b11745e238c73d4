"""One view's snapshot -> all that is to be put in force for it.  Pure, but for the numbers that it takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from translator.envoy import EnvoyOptions, NodeResources, listener_names, node_resources
from translator.from_xds import translate
from translator.model import ClusterRule, ListenerKind, Rejected, RouteConfigRule, ViewRules
from xds_server.cache import Snapshot
from xds_server.resources import TypeUrl
from xlb.effective import without
from xlb.incremental import node_resources_after, translate_after
from xlb.numbering import Numbering

_ROUNDS: Final = 8  # of four types, each twice: its last good version, then none


@dataclass(frozen=True, slots=True)
class Prepared:
    """`snapshot` is what remains of the received one; `rejected` says what does not.

    `images`: the route configurations that the kernel needs, each with the clusters it names.
    """

    snapshot: Snapshot
    rules: ViewRules
    part: NodeResources
    ports: Mapping[str, int]
    rejected: tuple[Rejected, ...] = ()

    def routed(self) -> dict[str, RouteConfigRule]:
        """The route configurations of listeners that the kernel may carry requests of."""
        names = {rule.route_config for rule in self.rules.listeners if rule.kind is ListenerKind.HTTP}
        configs = self.rules.route_configs
        return {name: configs[name] for name in names if name is not None and name in configs}

    def clusters_of(self, names: Iterable[str]) -> dict[str, ClusterRule]:
        clusters = self.rules.clusters
        return {name: clusters[name] for name in names if name in clusters}


@dataclass(frozen=True, slots=True)
class ViewPlan:
    """What preparing needs beside the snapshot.  `address`: where the node Envoy listens."""

    view: str
    address: str
    options: EnvoyOptions


def prepare(
    plan: ViewPlan,
    snapshot: Snapshot,
    last: Prepared | None,
    numbering: Numbering,
    now: float,
    refused: tuple[Rejected, ...] = (),
) -> Prepared:
    """Translate a snapshot, with last good versions in the place of what cannot be taken.

    :param refused: what Envoy is known to refuse of it
    :raises OutOfNumbers: if there are too many listeners
    """
    good = last.snapshot if last is not None else None
    rejected = {(one.type_url, one.name): one for one in refused}
    remaining = without(snapshot, refused, good) if refused else snapshot
    for _ in range(_ROUNDS):
        rules, ports, part = _translated(plan, remaining, last, numbering, now)
        found = _first((*rules.rejected, *part.rejected))
        if not found:
            break
        # A last good version that does not fit to the rest is left out too.
        again = [one for one in found if (one.type_url, one.name) in rejected]
        remaining = without(remaining, (one for one in found if one not in again), good)
        remaining = without(remaining, again, None)
        for one in found:
            rejected.setdefault((one.type_url, one.name), one)
    else:
        last_one = [*rejected.values()][-1]
        raise ValueError(f"too many resources are refused, the last one is {last_one.name}: {last_one.why}")
    return Prepared(remaining, rules, part, ports, tuple(rejected.values()))


def _translated(
    plan: ViewPlan, snapshot: Snapshot, last: Prepared | None, numbering: Numbering, now: float
) -> tuple[ViewRules, Mapping[str, int], NodeResources]:
    if last is not None:
        rules = translate_after(last.snapshot, last.rules, snapshot)
        part = node_resources_after(plan.view, last.snapshot, last.part, snapshot, plan.options)
        if part is not None:
            return rules, last.ports, part
    else:
        rules = translate(snapshot)
    ports = {name: numbering.ports.take((plan.view, name), now) for name in listener_names(snapshot)}
    return rules, ports, node_resources(plan.view, snapshot, ports, plan.address, plan.options)


def _first(rejected: Iterable[Rejected]) -> list[Rejected]:
    """Those of the first type in the order of reference: what refers to them may be good again without them."""
    distinct = {(one.type_url, one.name): one for one in rejected}
    types = [str(type_url) for type_url in (TypeUrl.CLUSTER, TypeUrl.ENDPOINT, TypeUrl.ROUTE, TypeUrl.LISTENER)]
    kinds = sorted({one.type_url for one in distinct.values()}, key=types.index)
    return [one for one in distinct.values() if one.type_url == kinds[0]]
