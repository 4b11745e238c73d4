"""`xlb top`: what happens now, as the difference of two looks at the agent.  Pure.

A look is the document of the admin socket's /top.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from xlb.tables import carried, table

Document = dict[str, Any]

_Rate = Callable[[float, float], float]

_KERNEL: Final = "NONE"
_CLEAR_LINE: Final = "\x1b[K"
_HOME: Final = "\x1b[H"
_CLEAR_BELOW: Final = "\x1b[J"
_MORE: Final = "..."


def rates(before: Document, after: Document) -> Document:
    """What happened between two looks; rates are per second.

    :returns: `interval_s`; `views` with `requests_per_s`, `kernel_share` (0 to 1, None without requests) and
        `reasons_per_s`; `pools` with `requests_per_s` and `empty_per_s`; `connections`, `relays`, `spills` and
        `uploads` that are open, and how many began; `lost_events`; `push`; `bypasses`; `keeper_error`
    """
    seconds: float = max(after["time_s"] - before["time_s"], 1e-6)
    keeper = after["keeper"] or {}
    earlier = before["keeper"] or {}

    def per_second(now: float, then: float) -> float:
        # A part that was restarted begins again.
        return round(max(now - then, 0) / seconds, 1)

    def moving(name: str) -> Document:
        now, then = keeper.get(name) or {}, earlier.get(name) or {}
        return {"open": now.get("open", 0), "per_s": per_second(now.get("total", 0), then.get("total", 0))}

    old_views = {view["name"]: view["requests"] for view in before["views"]}
    old_pools: dict[tuple[int, str], Document] = {(pool["pool"], pool["endpoint"]): pool for pool in before["pools"]}
    return {
        "interval_s": round(seconds, 3),
        "views": [_view(view, old_views.get(view["name"], {}), per_second) for view in after["views"]],
        "pools": [_pool(one, old_pools.get((one["pool"], one["endpoint"]), one), per_second) for one in after["pools"]],
        "connections": {
            "open": keeper.get("open", {}).get("A", 0),
            "per_s": per_second(keeper.get("accepted", 0), earlier.get("accepted", 0)),
        },
        "relays": moving("relays"),
        "spills": moving("spills"),
        "uploads": moving("uploads"),
        "lost_events": {
            "total": after["lost_events"],
            "per_s": per_second(after["lost_events"], before["lost_events"]),
        },
        "push": after["push"],
        "bypasses": after["bypasses"],
        "keeper_error": after["keeper_error"],
    }


def _view(view: Document, then: Mapping[str, int], per_second: _Rate) -> Document:
    now: Mapping[str, int] = view["requests"]
    reasons = {name: per_second(count, then.get(name, 0)) for name, count in now.items()}
    new = {name: max(count - then.get(name, 0), 0) for name, count in now.items()}
    total = sum(new.values())
    return {
        "name": view["name"],
        "workloads": view["workloads"],
        "requests_per_s": round(sum(reasons.values()), 1),
        "kernel_share": round(new.get(_KERNEL, 0) / total, 4) if total else None,
        "reasons_per_s": {name: rate for name, rate in sorted(reasons.items(), key=lambda item: -item[1]) if rate},
    }


def _pool(pool: Document, then: Document, per_second: _Rate) -> Document:
    kept = ("pool", "endpoint", "leads_to", "open", "idle", "connecting", "active", "remote")
    return {
        **{name: pool[name] for name in kept},
        "requests_per_s": per_second(pool["requests"], then["requests"]),
        "empty_per_s": per_second(pool["empty"], then["empty"]),
    }


def render(told: Document) -> str:
    """The result of `rates` as text for people: the busiest first."""
    push = told["push"]
    moving = ", ".join(f"{name} {told[name]['open']} ({told[name]['per_s']:g}/s)" for name in _MOVING)
    lines = [
        moving,
        f"ring events lost {told['lost_events']['total']} ({told['lost_events']['per_s']:g}/s), "
        f"bypasses {len(told['bypasses'])}",
        f"pushes {push['count']}"
        + ("" if push["p50_ms"] is None else f", received to in force {push['p50_ms']} ms, p99 {push['p99_ms']} ms"),
    ]
    if told["keeper_error"]:
        lines.append(f"keeper: {told['keeper_error']}")
    views = sorted(told["views"], key=lambda view: (-view["requests_per_s"], view["name"]))
    lines += ["", table(("VIEW", "REQUESTS/S", "KERNEL", "ENVOY", "WHY"), (_view_row(view) for view in views))]
    for view in views:
        rest = list(view["reasons_per_s"].items())
        lines += [f"  {view['name']}: {rate:g}/s {carried(name)}" for name, rate in rest if name != _KERNEL][1:]
    pools = sorted(told["pools"], key=lambda pool: (-pool["requests_per_s"], pool["pool"]))
    head = ("POOL", "ENDPOINT", "LEADS TO", "REQUESTS/S", "ACTIVE", "IDLE", "OPEN", "CONNECTING", "EMPTY/S", "REMOTE")
    rows = (
        (
            *(pool["pool"], pool["endpoint"], pool["leads_to"], f"{pool['requests_per_s']:g}", pool["active"]),
            *(pool["idle"], pool["open"], pool["connecting"], f"{pool['empty_per_s']:g}", pool["remote"]),
        )
        for pool in pools
    )
    lines += ["", table(head, rows)]
    return "\n".join(lines)


_MOVING: Final = ("connections", "relays", "spills", "uploads")


def _view_row(view: Document) -> tuple[object, ...]:
    share = view["kernel_share"]
    others = [(name, rate) for name, rate in view["reasons_per_s"].items() if name != _KERNEL]
    why = f"{others[0][1]:g}/s {carried(others[0][0])}" if others else ""
    kernel, envoy = ("", "") if share is None else (f"{share:.1%}", f"{1 - share:.1%}")
    return (view["name"], f"{view['requests_per_s']:g}", kernel, envoy, why)


def screen(text: str, columns: int, rows: int) -> str:
    """Text to put over what was there before; what does not fit is left out."""
    lines = text.splitlines()
    if len(lines) > rows - 1:
        lines = [*lines[: max(rows - 2, 0)], _MORE]
    return _HOME + "".join(f"{line[:columns]}{_CLEAR_LINE}\n" for line in lines) + _CLEAR_BELOW


def pools(
    keeper: Document, shared: Callable[[int], tuple[int, int, int]], names: Mapping[str, str], own: int
) -> list[Document]:
    """The pools of a look.

    :param keeper: the keeper's status
    :param shared: of a pool: requests in flight, requests ever, how often it was empty
    :param names: what an endpoint (ADDRESS:PORT) is called
    :param own: pools from this number on lead to Envoy
    """
    made: list[Document] = []
    for pool in keeper["pools"]:
        active, requests, empty = shared(pool["pool"])
        made.append(
            {
                **{name: pool[name] for name in ("pool", "endpoint", "open", "idle", "connecting", "remote")},
                "leads_to": "Envoy" if pool["pool"] >= own else names.get(pool["endpoint"], ""),
                "active": active,
                "requests": requests,
                "empty": empty,
            }
        )
    return made
