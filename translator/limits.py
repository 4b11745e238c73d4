"""What a kernel image can hold: the evaluator must know it without a compiled object at hand.

`bpf/include/xlb_types.h` is where the numbers are decided; a unit test compares.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """One number for each `XLB_MAX_*` that a rule can exceed."""

    head: int = 8192
    headers: int = 64
    slots: int = 32  # slot 0 is the method
    candidates: int = 64
    predicates: int = 8
    lengths: int = 31
    key: int = 488
    value: int = 240
    probes: int = 8
    weighted: int = 64
    endpoints: int = 4096
    image_cells: int = 1 << 20  # not in xlb_types.h: 64 MiB, far beyond what a route configuration needs
