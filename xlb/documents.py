"""What the admin socket tells, as JSON documents; `xlb status` and the like print them."""

from __future__ import annotations

import os
import time
from typing import Any

from translator.model import ActionKind, HeaderMatch, ListenerKind, PathKind, RouteRule, StringKind, ViewRules
from translator.reasons import Reason
from xds_server.client import Phase
from xds_server.resources import label_of
from xlb.agent import Agent
from xlb.bypass import To
from xlb.keeper_process import KeeperError
from xlb.prepare import Prepared
from xlb.supervisor import State
from xlb.tables import socket_address
from xlb.top import pools
from xlb.view import View

Document = dict[str, Any]


def status(agent: Agent, version: str) -> Document:
    """`requests` by reason, "NONE" being those that the kernel carried; without those that are 0."""
    views = [*agent.views.values()]
    return {
        "agent": {
            "pid": os.getpid(),
            "uptime_s": round(time.time() - agent.started, 1),
            "version": version,
            "instance": agent.settings.instance,
            "address": agent.parts.address,
        },
        "keeper": _process(agent.parts.keeper.state),
        "envoy": _process(agent.parts.envoy.state) | {"connected": agent.envoy_connected},
        "source": _source(agent.settings.ads, views),
        "views": [_view(agent, view) for view in views],
        "bypasses": [bypass.document() for bypass in agent.switches.bypasses],
        "lost_events": agent.shared.lost_events,
        "push": {
            "count": agent.timings.count,
            "p50_ms": agent.timings.percentile_ms(50),
            "p99_ms": agent.timings.percentile_ms(99),
        },
    }


async def top(agent: Agent, version: str) -> Document:
    """One look for `xlb top`, which shows what changes from one to the next."""
    keeper: Document | None = None
    error = ""
    try:
        keeper = dict(await agent.parts.keeper.ask("status"))
    except (OSError, KeeperError) as problem:
        error = str(problem)
    told = status(agent, version)
    names = {f"{socket_address(row)}": row["workload"] for row in endpoints(agent)["endpoints"]}
    return {
        "time_s": time.monotonic(),
        "views": told["views"],
        "push": told["push"],
        "bypasses": told["bypasses"],
        "lost_events": told["lost_events"],
        "keeper": keeper,
        "keeper_error": error,
        "pools": pools(keeper, agent.shared.pool, names, agent.first_envoy_pool) if keeper is not None else [],
    }


def _process(state: State) -> Document:
    return {
        "pid": state.pid,
        "phase": state.phase.value,
        "restarts": state.restarts,
        "adopted": state.adopted,
        "error": state.error,
    }


def _source(target: str, views: list[View]) -> Document:
    """The state of the stream that is worst off."""
    if not views:
        return {"target": target, "phase": "idle", "error": "", "remedy": "", "control_plane": ""}
    order = (Phase.WAITING, Phase.STOPPED, Phase.CONNECTING, Phase.CONNECTED)
    worst = min((view.state for view in views), key=lambda state: order.index(state.phase))
    plane = worst.control_plane
    return {
        "target": target,
        "phase": worst.phase.value,
        "error": worst.error,
        "remedy": worst.remedy,
        "retry_in_s": round(worst.retry_in, 1),
        "control_plane": plane.component,
    }


def _view(agent: Agent, view: View) -> Document:
    prepared = view.prepared
    snapshot = view.client.snapshot
    return {
        "name": view.name,
        "index": view.index,
        # Once each: those that differ in annotations only share their view.
        "workloads": [*dict.fromkeys(str(one.identity) for one in agent.workloads.of_view(view))],
        "version": snapshot.version if snapshot is not None else None,
        "connected": view.state.phase is Phase.CONNECTED,
        "error": view.state.error,
        "captured_folder": view.state.control_plane.id,
        "requests": agent.counters(view),
        "rejected": [
            {"type": label_of(one.type_url), "name": one.name, "field": one.field, "why": one.why}
            for one in view.client.rejected
        ],
        # Beside them, what nobody can feel.
        "warnings": [*prepared.rules.warnings, *_changes(prepared, harmless=False)] if prepared is not None else [],
        "notes": _changes(prepared, harmless=True) if prepared is not None else [],
    }


def _changes(prepared: Prepared, *, harmless: bool) -> list[str]:
    """What Envoy was given otherwise than it was received; without the view, which is known here."""
    return [str(change).partition(": ")[2] for change in prepared.part.changes if change.harmless is harmless]


def workloads(agent: Agent) -> Document:
    return {
        "workloads": [
            {
                "name": one.identity.name,
                "namespace": one.identity.namespace,
                "labels": dict(one.identity.labels),
                "service_account": one.identity.service_account,
                "ip": one.identity.ip,
                "view": one.view.name,
                "in_force": one.view.prepared is not None,
                "annotations": dict(one.identity.annotations),
                "bypasses": [bypass.document() for bypass in agent.switches.bypasses_of(str(one.identity))],
                "cgroup": str(one.folder),
                "pids": one.processes,
            }
            for one in agent.workloads
        ]
    }


def bypasses(agent: Agent) -> Document:
    known = {str(one.identity) for one in agent.workloads}
    return {
        "bypasses": [
            {**one.document(), "known": one.workload is None or one.workload in known}
            for one in agent.switches.bypasses
        ]
    }


def switched(agent: Agent, view: View, to: tuple[str, int], told: Document) -> Document:
    """What `explain` says of off-switches: what keeps a connection from being captured as the rules have it.

    `annotation` is the name of one, `bypass` a document; where they decide, `carried_by` is "direct" or "envoy".

    :param told: the explanation without them
    """
    address, port = to
    identity = next((one.identity for one in agent.workloads.of_view(view)), view.identity)
    annotation = identity.redirection.keeps_out(None if address in ("0.0.0.0", "::") else address, port)
    bypass = agent.switches.of(str(identity), port) if annotation is None else None
    made: Document = {"annotation": annotation, "bypass": bypass.document() if bypass is not None else None}
    if told["listener"] is None:
        return made  # not captured anyhow
    if annotation is not None or (bypass is not None and bypass.to is To.DIRECT):
        made["carried_by"] = "direct"
    elif bypass is not None and told["carried_by"] == "kernel":
        made |= {"carried_by": "envoy", "reason": Reason.BYPASSED.name}
    return made


def routes(agent: Agent) -> Document:
    """One entry for each route, in Envoy's order."""
    rows: list[Document] = []
    for view in agent.views.values():
        if view.prepared is None:
            continue
        rules = view.prepared.rules
        taken_by = {rule.route_config: rule for rule in reversed(rules.listeners) if rule.route_config is not None}
        for name, config in rules.route_configs.items():
            listener = taken_by.get(name)
            outer = Reason.NONE
            if listener is not None and listener.kind is not ListenerKind.HTTP:
                outer = listener.reason or Reason.LISTENER_OTHER
            for host in config.virtual_hosts:
                for route in host.routes:
                    reason = outer or config.reason or host.reason or _reason(route, rules)
                    rows.append(
                        {
                            "view": view.name,
                            "route_config": name,
                            "virtual_host": host.name,
                            "domains": list(host.domains),
                            "position": route.origin.position,
                            "route": route.origin.route,
                            "virtual_service": route.origin.virtual_service,
                            "match": _match(route),
                            "action": _action(route),
                            "clusters": [{"cluster": c.cluster, "weight": c.weight} for c in route.action.clusters],
                            "carried_by": "envoy" if reason else "kernel",
                            "reason": reason.name,
                        }
                    )
    return {"routes": rows}


def _reason(route: RouteRule, rules: ViewRules) -> Reason:
    """Why a route, or one of the clusters it leads to, is Envoy's."""
    reason = route.match_reason or route.action_reason
    for choice in route.action.clusters:
        cluster = rules.clusters.get(choice.cluster)
        reason = reason or (cluster.reason if cluster is not None else Reason.CLUSTER_MISSING)
    return reason


def _match(route: RouteRule) -> str:
    path = route.path
    words = [f"{path.kind.value} {path.value}"] if path.kind is not PathKind.PREFIX or path.value != "/" else []
    words += [_header(header) for header in route.headers]
    words += [f"query {query.name} {query.kind.value} {query.value}".rstrip() for query in route.queries]
    return ", ".join(words) or "everything"


def _header(header: HeaderMatch) -> str:
    verb = "" if header.kind is StringKind.EXACT else f"{header.kind.value} "
    told = f"{header.name}: {verb}{header.value}".rstrip()
    return f"not ({told})" if header.invert else told


def _action(route: RouteRule) -> str:
    action = route.action
    if action.kind is ActionKind.REDIRECT and action.redirect is not None:
        return f"redirect {action.redirect.code}"
    if action.kind is ActionKind.DIRECT_RESPONSE:
        return f"respond {action.direct_status}"
    return str(action.kind.value)


def clusters(agent: Agent) -> Document:
    rows: list[Document] = []
    for view in agent.views.values():
        found = view.prepared.rules.clusters if view.prepared is not None else {}
        rows.extend(
            {
                "view": view.name,
                "cluster": cluster.name,
                "lb": cluster.lb.name.lower(),
                "endpoints": len(cluster.endpoints),
                "carried_by": "envoy" if cluster.reason else "kernel",
                "reason": cluster.reason.name,
            }
            for cluster in found.values()
        )
    return {"clusters": rows}


def endpoints(agent: Agent) -> Document:
    """`pool` is the number of its pool of connections in the kernel; None: no route of the kernel's leads there."""
    rows: list[Document] = []
    for view in agent.views.values():
        for cluster in view.prepared.rules.clusters.values() if view.prepared is not None else ():
            rows.extend(
                {
                    "view": view.name,
                    "cluster": cluster.name,
                    "address": endpoint.address,
                    "port": endpoint.port,
                    "workload": endpoint.workload,
                    "weight": endpoint.weight,
                    "mtls": endpoint.mtls,
                    "pool": agent.pool_of(endpoint.address, endpoint.port),
                }
                for endpoint in cluster.endpoints
            )
    return {"endpoints": rows}
