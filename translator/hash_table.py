"""The hash table of a kernel image: `struct xlb_key` in `bpf/include/xlb_types.h` says how it is read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

_MASK: Final = 2**64 - 1
_FNV_PRIME: Final = 0x100000001B3
_GOLDEN: Final = 0x9E3779B97F4A7C15
_SMALLEST: Final = 8
_GROWTHS: Final = 4
_NEXT_SEED: Final = 0x2545F4914F6CDD1D


@dataclass(frozen=True, slots=True)
class Key:
    """What is looked up, and the value found."""

    kind: int
    scope: int
    text: bytes
    value: int


@dataclass(frozen=True, slots=True)
class KeyTable:
    """`slots` holds indices of keys, None where a cell is free; its length is a power of two."""

    seed: int
    hashes: tuple[int, ...]
    slots: tuple[int | None, ...]


def key_hash(seed: int, kind: int, scope: int, text: bytes) -> int:
    """FNV-1a over the text from `seed`, then `xlb_hash_end`."""
    h = seed
    for byte in text:
        h = ((h ^ byte) * _FNV_PRIME) & _MASK
    return ((h ^ (scope << 8 | kind)) * _GOLDEN) & _MASK


def lay_out(keys: Sequence[Key], seed: int, probes: int) -> KeyTable:
    """Place all keys so that each is found within `probes` cells from its bucket.

    The table is at most half full and grows until it fits; only when that does not help is the seed changed.
    """
    while True:
        hashes = tuple(key_hash(seed, key.kind, key.scope, key.text) for key in keys)
        size = _SMALLEST
        while size < 2 * len(keys):
            size *= 2
        for _ in range(_GROWTHS):
            slots = _place(hashes, size, probes)
            if slots is not None:
                return KeyTable(seed, hashes, tuple(slots))
            size *= 2
        seed = (seed * _NEXT_SEED + 1) & _MASK


def _place(hashes: Iterable[int], size: int, probes: int) -> list[int | None] | None:
    """Robin Hood placement: the key farther from its bucket keeps the cell, which keeps the longest distance short.

    None if a key would be `probes` or more cells away from its bucket.
    """
    slots: list[int | None] = [None] * size
    away = [0] * size
    for index, h in enumerate(hashes):
        current: int = index
        distance = 0
        cell = (h >> 32) & (size - 1)
        while (resident := slots[cell]) is not None:
            if away[cell] < distance:
                slots[cell], away[cell], current, distance = current, distance, resident, away[cell]
            distance += 1
            if distance >= probes:
                return None
            cell = (cell + 1) & (size - 1)
        slots[cell], away[cell] = current, distance
    return slots
