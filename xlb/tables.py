"""The agent's documents as text for people.  Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

Document = dict[str, Any]


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Left-aligned columns with a heading; "-" for what is empty."""
    cells = [list(head), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = ("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in cells)
    return "\n".join(lines)


def _cell(value: object) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def status(told: Document) -> str:
    agent, keeper, envoy, source, push = (told[name] for name in ("agent", "keeper", "envoy", "source", "push"))
    lines = [
        f"agent   process {agent['pid']}, {agent['version']}, instance {agent['instance']} at {agent['address']}, "
        f"up {agent['uptime_s']:.0f} s",
        f"keeper  {_process(keeper)}",
        f"envoy   {_process(envoy)}{'' if envoy['connected'] else ', not connected to the agent'}",
        f"source  {source['target']}: {source['phase']}{_because(source)}",
        f"pushes  {push['count']} in force"
        + ("" if push["p50_ms"] is None else f", received to in force {push['p50_ms']} ms, p99 {push['p99_ms']} ms"),
        f"events  {told['lost_events']} lost by the ring",
    ]
    lines += [f"bypass  {bypass(one)}" for one in told["bypasses"]]
    for view in told["views"]:
        lines += ["", *_view(view)]
    if not told["views"]:
        lines += ["", "no workloads: start one with `xlb exec --workload NAME -- COMMAND`"]
    return "\n".join(lines)


def bypass(one: Document) -> str:
    """A bypass in words."""
    ports = f"port {one['port']}" if one["port"] else "all ports"
    where = "not captured" if one["to"] == "direct" else "straight to Envoy"
    return f"{one['workload'] or 'all workloads'}, {ports}: {where}"


def bypasses(told: Document) -> str:
    return table(
        ("WORKLOAD", "PORT", "TO", "REGISTERED"),
        ((one["workload"] or "all", one["port"] or "all", one["to"], one["known"]) for one in told["bypasses"]),
    )


def upgrade(told: Document) -> str:
    text = f"{told['part']}: process {told['pid']} has taken the place of process {told['before']}"
    taken = told["took_over"]
    if not taken:
        return text
    count = sum(taken["open"].values())
    return f"{text}, with {count} connections, which waited for {taken['stood_still_ms']} ms"


def _process(part: Document) -> str:
    pid = f"process {part['pid']}" if part["pid"] else "no process"
    again = f", restarted {part['restarts']} times" if part["restarts"] else ""
    why = f": {part['error']}" if part["error"] and not part["pid"] else ""
    return f"{pid}, {part['phase']}{again}{why}"


def _because(source: Document) -> str:
    return f" ({source['error']}; {source['remedy']})" if source["error"] else ""


def _view(view: Document) -> list[str]:
    folder = f", configuration of {view['captured_folder']}" if view["captured_folder"] else ""
    version = f"version {view['version']}" if view["version"] else "nothing in force yet"
    lines = [f"view {view['name']}: {', '.join(view['workloads']) or 'no workload'}; {version}{folder}"]
    requests = sorted(view["requests"].items(), key=lambda item: -item[1])
    lines += [f"  {count:>10} requests {carried(name)}" for name, count in requests]
    lines += [
        f"  refused: {one['type']} {one['name']}{' ' + one['field'] if one['field'] else ''}: {one['why']}"
        for one in view["rejected"]
    ]
    lines += [f"  warning: {text}" for text in view["warnings"]]
    return lines


def carried(reason: str) -> str:
    """Who carries a request, and why, in words."""
    return "by the kernel" if reason == "NONE" else f"by Envoy: {words(reason)}"


def words(reason: str) -> str:
    """A reason's name as words: "ACTION_FAULT" is "action: fault"."""
    group, _, rest = reason.partition("_")
    text = rest.lower().replace("_", " ")
    return f"{group.lower()}: {text}" if group in _GROUPS and text else reason.lower().replace("_", " ")


_GROUPS = ("ACTION", "MATCH", "CLUSTER", "LISTENER", "BUDGET", "LB", "UPSTREAM")


def routes(told: Document) -> str:
    head = ("VIEW", "VIRTUAL HOST", "MATCH", "VIRTUAL SERVICE", "ACTION", "CLUSTERS", "CARRIED")
    return table(
        head,
        (
            (
                row["view"],
                row["virtual_host"],
                row["match"],
                row["virtual_service"],
                row["action"],
                weighted(row["clusters"]),
                carried(row["reason"]),
            )
            for row in told["routes"]
        ),
    )


def weighted(clusters: Sequence[Document]) -> str:
    """Clusters with their shares, where there are several."""
    if len(clusters) == 1:
        return str(clusters[0]["cluster"])
    return " ".join(f"{one['weight']} x {one['cluster']}" for one in clusters)


def clusters(told: Document) -> str:
    return table(
        ("VIEW", "CLUSTER", "BALANCING", "ENDPOINTS", "CARRIED"),
        (
            (row["view"], row["cluster"], row["lb"].replace("_", " "), row["endpoints"], carried(row["reason"]))
            for row in told["clusters"]
        ),
    )


def endpoints(told: Document) -> str:
    return table(
        ("VIEW", "CLUSTER", "ADDRESS", "WORKLOAD", "WEIGHT", "POOL"),
        (
            (row["view"], row["cluster"], socket_address(row), row["workload"], row["weight"], row["pool"])
            for row in told["endpoints"]
        ),
    )


def socket_address(row: Document) -> str:
    host = f"[{row['address']}]" if ":" in row["address"] else row["address"]
    return f"{host}:{row['port']}"


def workloads(told: Document) -> str:
    return table(
        ("WORKLOAD", "IP", "SERVICE ACCOUNT", "LABELS", "VIEW", "IN FORCE", "BYPASSED", "PROCESSES"),
        (
            (
                f"{row['namespace']}/{row['name']}",
                row["ip"],
                row["service_account"],
                ",".join(f"{name}={value}" for name, value in row["labels"].items()),
                row["view"],
                row["in_force"],
                _switched(row),
                len(row["pids"]),
            )
            for row in told["workloads"]
        ),
    )


def _switched(row: Document) -> str:
    """What bypasses and annotations take from a workload, in short."""
    words = [f"{one['port'] or 'all'} to {one['to']}" for one in row["bypasses"]]
    words += [
        f"{name.rpartition('/')[2]}={value}"
        for name, value in row["annotations"].items()
        if name.startswith(("traffic.sidecar.istio.io/", "sidecar.istio.io/inject"))
    ]
    return "; ".join(words)


def explanation(told: Document) -> str:
    several = f" (one of: {weighted(told['clusters'])})" if len(told["clusters"]) > 1 else ""
    rows = [
        ("to", told["to"]),
        ("listener", told["listener"] or "none: not captured"),
        ("virtual host", told["virtual_host"]),
        ("route", _route(told)),
        ("VirtualService", told["virtual_service"]),
        ("action", _did(told)),
        ("cluster", f"{told['cluster']}{several}" if told["cluster"] else None),
        ("carried by", _CARRIERS[told["carried_by"]]),
        ("reason", words(told["reason"]) if told["reason"] != "NONE" else None),
    ]
    if told["bypass"]:
        rows.append(("bypass", bypass(told["bypass"])))
    if told["annotation"]:
        rows.append(("annotation", f"{told['annotation']}: not captured"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name.ljust(width)}  {_cell(value)}" for name, value in rows)


_CARRIERS = {
    "kernel": "the kernel",
    "envoy": "Envoy",
    "direct": "plain TCP, to where the client says: neither route nor cluster apply",
}


def _route(told: Document) -> str | None:
    if told["route_position"] is None:
        return None
    position = f"route {told['route_position'] + 1}"
    return f"{told['route']} ({position})" if told["route"] else position


def _did(told: Document) -> str:
    text = str(told["action"]).replace("_", " ")
    if told["status"] is not None:
        text += f" {told['status']}"
    changed = [
        f"{what} {told[key]}" for what, key in (("path", "path_upstream"), ("host", "host_upstream")) if told[key]
    ]
    return f"{text} ({', '.join(changed)})" if changed else text
