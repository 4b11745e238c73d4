"""What a restarted agent must know of the one before: RUN_DIR/state.json.

Numbers are in maps that outlive the agent, so the next one has to mean the same by them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

FORMAT: Final = 1


class StateError(Exception):
    """The file cannot be used; one line."""


@dataclass(frozen=True, slots=True)
class WorkloadState:
    """One registered workload; `folder` is the name of its cgroup, `number` its id in xlb_workloads."""

    name: str
    namespace: str
    labels: Mapping[str, str]
    service_account: str
    ip: str
    folder: str
    number: int
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class State:
    """All numbers that were given out.

    `views`: index by `xlb.identity.Identity.key`; `images`, `ports`, `cursors`: by view's name, then by route
    configuration, listener, cluster; `pools`: number by "ADDRESS PORT"; `bypasses`: documents of `xlb.bypass`.
    """

    address: str
    workloads: tuple[WorkloadState, ...] = ()
    views: Mapping[str, int] = field(default_factory=dict)
    images: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    ports: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    cursors: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    pools: Mapping[str, int] = field(default_factory=dict)
    bypasses: tuple[Mapping[str, Any], ...] = ()


def save(path: Path, state: State) -> None:
    """Write it so that a reader sees the old or the new text.  Raises OSError."""
    part = path.with_name(path.name + ".part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump({"format": FORMAT, **asdict(state)}, file)
    part.replace(path)


def load(path: Path) -> State | None:
    """What was saved; None if there is nothing.  Raises StateError."""
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StateError(f"{path} cannot be read: {error}") from None
    try:
        if document.pop("format") != FORMAT:
            raise StateError(f"{path} is of another version of XLB")
        return _parse(document)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StateError(f"{path} is damaged: {type(error).__name__}: {error}") from None


def _parse(document: Any) -> State:
    def nested(name: str) -> dict[str, dict[str, int]]:
        return {str(view): _numbers(inner) for view, inner in document[name].items()}

    return State(
        address=str(document["address"]),
        workloads=tuple(WorkloadState(**workload) for workload in document["workloads"]),
        views=_numbers(document["views"]),
        images=nested("images"),
        ports=nested("ports"),
        cursors=nested("cursors"),
        pools=_numbers(document["pools"]),
        bypasses=tuple(dict(bypass) for bypass in document.get("bypasses", ())),
    )


def _numbers(items: Any) -> dict[str, int]:
    return {str(name): int(number) for name, number in items.items()}
