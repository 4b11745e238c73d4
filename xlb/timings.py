"""How long updates took from received to in force."""

from __future__ import annotations

import math
from array import array
from typing import Final

from xds_server.client import UpdateTiming

_KEPT: Final = 10_000


class Timings:
    """The last 10,000 updates, in a ring that does not grow."""

    def __init__(self, kept: int = _KEPT) -> None:
        self._kept = kept
        self._seconds = array("d")
        self._count = 0

    def add(self, timing: UpdateTiming) -> None:
        seconds = timing.in_force - timing.received
        if len(self._seconds) < self._kept:
            self._seconds.append(seconds)
        else:
            self._seconds[self._count % self._kept] = seconds
        self._count += 1

    @property
    def count(self) -> int:
        """Of all updates ever."""
        return self._count

    def percentile_ms(self, percent: float) -> float | None:
        """The nearest-rank percentile in milliseconds; None without updates."""
        if not self._seconds:
            return None
        ordered = sorted(self._seconds)
        rank = max(math.ceil(len(ordered) * percent / 100), 1)
        return round(ordered[rank - 1] * 1000, 3)
