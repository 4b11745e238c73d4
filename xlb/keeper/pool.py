"""Arithmetic of one pool of upstream connections: when to open one more, and how many are too many."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from xlb.keeper.estate import PoolEstate
from xlb.keeper.kernel import Destination, PoolTarget

MAX_CONNECTING: Final = 64  # connections of one pool that are being made at once
FLOOR: Final = 4  # idle connections that a pool keeps
WINDOW: Final = 30.0  # seconds for which a connection must not have been needed before it is closed
RETRY_REMOTE: Final = 5.0  # seconds after which an endpoint that seemed to be remote is tried again
# Closed at once, at most: they stay in the kernel's stack, and it looks at 8 entries before it takes a pool for empty.
MAX_RETIRED: Final = 6
_FIRST_PAUSE: Final = 0.25
_LONGEST_PAUSE: Final = 5.0
_BUCKETS: Final = 3


class Idleness:
    """How many connections have been idle all through the last WINDOW, from samples taken now and then."""

    __slots__ = ("_buckets", "_empty", "_until")

    def __init__(self) -> None:
        self._buckets: deque[int] = deque(maxlen=_BUCKETS + 1)
        self._until = 0.0
        self._empty = 0

    def sample(self, now: float, idle: int, empty: int) -> int:
        """How many were idle for all of the window; 0 also when it is not known yet.

        :param empty: how often the pool had none, a counter
        """
        if empty != self._empty:
            self._empty = empty
            idle = 0
        if now >= self._until or not self._buckets:
            self._buckets.append(idle)
            self._until = now + WINDOW / _BUCKETS
        else:
            self._buckets[-1] = min(self._buckets[-1], idle)
        # The newest bucket is not full yet, so that all of the others make up the window.
        return max(min(self._buckets), 0) if len(self._buckets) > _BUCKETS else 0

    def closed(self, count: int) -> None:
        """So many of them have been closed."""
        for i, idle in enumerate(self._buckets):
            self._buckets[i] = max(idle - count, 0)


def surplus(unused: int) -> int:
    """How many of the connections that were not needed to close now: a quarter of what is over the floor."""
    over = unused - FLOOR
    return min(-(-over // 4), MAX_RETIRED) if over > 0 else 0


@dataclass(slots=True, eq=False)
class Pool:
    """One pool; `members` are its upstream connections by descriptor, those being made (`young`) included."""

    number: int
    target: PoolTarget
    depth: int  # connections it may have
    destination: Destination | None = None  # of a pool to Envoy
    members: set[int] = field(default_factory=set)
    young: int = 0
    not_before: float = 0.0  # time of the next attempt
    remote_until: float = 0.0
    idleness: Idleness = field(default_factory=Idleness)
    _pause: float = 0.0

    def may_open(self, now: float) -> bool:
        """Whether one more connection is allowed."""
        return (
            now >= self.not_before
            and now >= self.remote_until
            and len(self.members) < self.depth
            and self.young < MAX_CONNECTING
        )

    def failed(self, now: float) -> None:
        """A connection was refused or cannot be made: the next attempts come later and later."""
        if now < self.not_before:
            return  # of the same moment as one before
        self._pause = min(self._pause * 2, _LONGEST_PAUSE) if self._pause else _FIRST_PAUSE
        self.not_before = now + self._pause

    def save(self, *, given_up: bool, remote: bool) -> PoolEstate:
        """For a successor.  It finds out anew how many connections are idle."""
        return PoolEstate(
            number=self.number,
            target=self.target,
            depth=self.depth,
            destination=self.destination,
            given_up=given_up,
            remote=remote,
            remote_until=self.remote_until,
            not_before=self.not_before,
            pause=self._pause,
        )

    @classmethod
    def restore(cls, left: PoolEstate) -> Pool:
        """Of a predecessor; its members have to join it."""
        pool = cls(left.number, left.target, left.depth, left.destination)
        pool.remote_until = left.remote_until
        pool.not_before = left.not_before
        pool._pause = left.pause
        return pool

    def succeeded(self) -> None:
        """A connection was made and has its B."""
        self._pause = 0.0
        self.not_before = 0.0

    def seems_remote(self, now: float) -> None:
        """A connection was made, but none of our programs has seen its other end."""
        self.remote_until = now + RETRY_REMOTE
