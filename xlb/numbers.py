"""Numbers that stand for things in the kernel's arrays, and outlive a configuration.  Pure; the clock is passed in.

A number must not be given to something else while anything may still act on its old meaning (a connection that is
open, a program that runs), so freed numbers rest; and what comes back gets the number that it had.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class _Nameless:
    """Stands for the key that a number had in an earlier process."""

    number: int


class OutOfNumbers(Exception):
    """All numbers are taken or resting; one line that says of what."""


class Numbers(Generic[K]):
    """Numbers from `first` to `last` by key.

    :param what: what is numbered, for errors
    :param rest: seconds that a freed number is not given to another key while there are numbers that were never used
    :param least: seconds that it is not given to another key even if there are none
    """

    def __init__(self, what: str, first: int, last: int, *, rest: float, least: float = 2.0) -> None:
        self._what = what
        self._next = first
        self._last = last
        self._rest = rest
        self._least = min(least, rest)
        self._taken: dict[K, int] = {}
        self._resting: dict[K | _Nameless, tuple[int, float]] = {}  # the longest freed first
        self.revision = 0  # differs whenever `taken` does

    def take(self, key: K, now: float) -> int:
        """The number of a key: the one it has, the one it had, or another.  Raises OutOfNumbers."""
        number = self._taken.get(key)
        if number is not None:
            return number
        found = self._resting.pop(key, None)
        number = found[0] if found is not None else self._free(now)
        self._taken[key] = number
        self.revision += 1
        return number

    def _free(self, now: float) -> int:
        oldest = next(iter(self._resting.items()), None)
        wait = self._rest if self._next <= self._last else self._least
        if oldest is not None and now - oldest[1][1] >= wait:
            del self._resting[oldest[0]]
            return oldest[1][0]
        if self._next > self._last:
            raise OutOfNumbers(f"no {self._what} is left: {len(self._taken)} are in use, {len(self._resting)} rest")
        self._next += 1
        return self._next - 1

    def get(self, key: K) -> int | None:
        """The number a key has; None if it has none."""
        return self._taken.get(key)

    def free(self, keys: Iterable[K], now: float) -> dict[K, int]:
        """Take the numbers of keys back; keys that have none are ignored.  :returns: what was taken back"""
        freed = {key: self._taken.pop(key) for key in keys if key in self._taken}
        self._resting.update((key, (number, now)) for key, number in freed.items())
        self.revision += len(freed)
        return freed

    @property
    def taken(self) -> Mapping[K, int]:
        return self._taken

    def restore(self, taken: Mapping[K, int], now: float) -> None:
        """Begin with what an earlier process gave out.  Numbers below the highest of them rest: they may be in use."""
        self._taken.update(taken)
        used = set(self._taken.values())
        highest = max(used, default=self._next - 1)
        for number in range(self._next, highest):
            if number not in used:
                self._resting[_Nameless(number)] = (number, now)
        self._next = max(self._next, highest + 1)
