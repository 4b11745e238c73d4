"""Talking to the traffic program (`demo.traffic`), which runs as the productpage workload."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from demo.kinds import Kind
from demo.phases import Window
from tests.bench.lab import Lab, converse


@dataclass(frozen=True, slots=True)
class Report:
    """What the traffic program saw since the last report; `lost` has one line per lost request."""

    windows: tuple[Window, ...]
    lost: tuple[str, ...]

    @property
    def answers(self) -> int:
        return sum(window.count for window in self.windows)

    @property
    def by_envoy(self) -> int:
        """Answers that bear Envoy's headers."""
        return sum(window.count for window in self.windows if window.by_envoy)

    def backends(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for window in self.windows:
            counts[window.backends] = counts.get(window.backends, 0) + window.count
        return counts


class Traffic:
    """The traffic program, started with `prefix` before its command line (`xlb exec ... --`)."""

    def __init__(self, lab: Lab, prefix: Sequence[str]) -> None:
        self._lab = lab
        self._process: subprocess.Popen[bytes] = lab.start(
            "traffic", [*prefix, sys.executable, "-m", "demo.traffic"], talk=True
        )

    def burst(self, kind: Kind, count: int) -> Report:
        """Send `count` requests one after the other on one connection.  Raises LabError when the program is gone."""
        return _report(self._ask(do="burst", kind=kind.name, count=count))

    def start(self, connections: int) -> None:
        self._ask(do="start", connections=connections)

    def report(self) -> Report:
        return _report(self._ask(do="report"))

    def stop(self) -> None:
        """End the continuous traffic."""
        self._ask(do="stop")

    def close(self) -> None:
        self._lab.stop(self._process)

    def _ask(self, **order: object) -> Mapping[str, Any]:
        told = json.loads(converse(self._process, json.dumps(order).encode()))
        assert isinstance(told, dict)
        return told


def _report(told: Mapping[str, Any]) -> Report:
    return Report(
        windows=tuple(Window(*row) for row in told["windows"]),
        lost=tuple(why for _, why in told["lost"]),
    )
