"""One epoll for all: what each descriptor is, who hears of it, and what is to be done at which time.

An idle accepted or pooled connection costs one byte in a table here; only what is doing something has an object.
"""

from __future__ import annotations

import heapq
import itertools
import os
import select
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from xlb.keeper.sockets import IN, RDHUP

NONE: Final = 0
ACCEPTED: Final = 1  # an A with nothing to say
UPSTREAM: Final = 2  # a U
OBJECT: Final = 3  # in `Loop.objects`

_BATCH: Final = 1024  # events taken at once


class Watcher(Protocol):
    """Something that watches descriptors."""

    def on_events(self, fd: int, events: int) -> None:
        """epoll says this of one of its descriptors."""

    def abandon(self, fd: int) -> None:
        """Close this descriptor and all that belongs to it: it is to end, or something unforeseen has happened."""


class Crowd(Protocol):
    """Handles all descriptors of one kind that have no object."""

    def on_events(self, fd: int, events: int) -> None:
        """epoll says this of one of them."""

    def abandon_one(self, fd: int) -> None:
        """Close this one: something unforeseen has happened."""


def complain(what: str) -> None:
    """Log the exception being handled, in one line for the cause and one for the place."""
    error = sys.exc_info()[1]
    frame = traceback.extract_tb(error.__traceback__)[-1] if error is not None else None
    place = f" ({frame.filename}:{frame.lineno} in {frame.name})" if frame else ""
    print(f"keeper: {what}: {type(error).__name__}: {error}{place}", file=sys.stderr, flush=True)


class Loop:
    """Dispatches events and timers until `stop`; an exception ends the connection that it is about, never the loop."""

    def __init__(self, max_fds: int) -> None:
        self._epoll = select.epoll()
        self.kinds = bytearray(max_fds)
        self.objects: dict[int, Watcher] = {}
        self.now = time.monotonic()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._dead: list[int] = []
        self._stopping = False
        self._interlude: Callable[[], None] | None = None
        # Called first after every wait: state that others wait for comes by the ring.
        self.before: Callable[[], None] = _nothing
        # Called after a batch of events.
        self.after: Callable[[], None] = _nothing

    # ---- descriptors

    def watch(self, fd: int, kind: int, events: int = IN | RDHUP) -> None:
        """Start to watch an accepted or pooled connection."""
        self.kinds[fd] = kind
        self._epoll.register(fd, events)

    def mark(self, fds: Iterable[int], kind: int) -> None:
        """They are connections of this kind; `watch_marked` has to follow."""
        kinds = self.kinds
        for fd in fds:
            kinds[fd] = kind

    def watch_marked(self, fds: Iterable[int], kind: int, events: int = IN | RDHUP) -> None:
        """Start to watch those that are still what they were marked as."""
        kinds, register = self.kinds, self._epoll.register
        for fd in fds:
            if kinds[fd] == kind:
                try:
                    register(fd, events)
                except FileExistsError:
                    continue  # the number has been given to another connection since

    def watch_object(self, fd: int, watcher: Watcher, events: int = IN | RDHUP) -> None:
        """Start to watch a descriptor for `watcher`."""
        self.kinds[fd] = OBJECT
        self.objects[fd] = watcher
        self._epoll.register(fd, events)

    def adopt(self, fd: int, watcher: Watcher) -> None:
        """As `watch_object`, of one that is to be silent for now: not even its errors are heard of."""
        self.kinds[fd] = OBJECT
        self.objects[fd] = watcher

    def change(self, fd: int, before: int, events: int) -> None:
        """Other events than `before`; 0 takes it out of the epoll, which would else go on reporting hang-ups."""
        if before == events:
            return
        if not before:
            self._epoll.register(fd, events)
        elif events:
            self._epoll.modify(fd, events)
        else:
            self._epoll.unregister(fd)

    def mute(self, fd: int, muted: bool) -> None:
        """Of a listener: whether it is watched."""
        self._epoll.modify(fd, 0 if muted else IN)

    def unwatch(self, fd: int) -> None:
        """Watch it no more.

        Also before a close, which would take it out of the epoll only if it were the last descriptor of that file: in a
        handover another process has one too, and we would hear of that file under a number that means another one.
        """
        if self.kinds[fd] == OBJECT:
            del self.objects[fd]
        self.kinds[fd] = NONE
        # An object may have silenced it.
        try:
            self._epoll.unregister(fd)
        except FileNotFoundError:
            return

    def close(self, fd: int) -> None:
        """Close it once the events at hand are done with: its number must not be given out again before."""
        if self.kinds[fd]:
            self.unwatch(fd)
        self._dead.append(fd)

    # ---- time

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Call `action` once, at a time of `time.monotonic`; there is no cancelling."""
        heapq.heappush(self._timers, (when, next(self._order), action))

    # ---- running

    def stop(self) -> None:
        """Return from `run` after the events at hand."""
        self._stopping = True

    def pause(self, action: Callable[[], None]) -> None:
        """Call `action` soon, while no event or timer is being handled and nothing is left to be closed."""
        self._interlude = action

    def run(self, crowds: dict[int, Crowd]) -> None:
        """:param crowds: who handles ACCEPTED and UPSTREAM"""
        poll, kinds, objects, timers = self._epoll.poll, self.kinds, self.objects, self._timers
        clock = time.monotonic
        while not self._stopping:
            if self._interlude is not None:
                self._play_interlude()
                continue
            timeout = -1.0
            if timers:
                timeout = max(timers[0][0] - clock(), 0.0)
            ready = poll(timeout, _BATCH)
            self.now = clock()
            self.before()
            for fd, events in ready:
                kind = kinds[fd]
                try:
                    if kind == OBJECT:
                        objects[fd].on_events(fd, events)
                    elif kind:
                        crowds[kind].on_events(fd, events)
                except Exception:
                    self._abandon(fd, crowds)
            self.after()
            while timers and timers[0][0] <= self.now:
                action = heapq.heappop(timers)[2]
                try:
                    action()
                except Exception:
                    complain(f"timer {getattr(action, '__qualname__', action)}")
            if self._dead:
                self._bury()

    def _play_interlude(self) -> None:
        action, self._interlude = self._interlude, None
        try:
            if action is not None:
                action()
        except Exception:
            complain("interlude")
        self.now = time.monotonic()

    def _bury(self) -> None:
        dead, self._dead = self._dead, []
        for fd in dead:
            os.close(fd)

    def _abandon(self, fd: int, crowds: dict[int, Crowd]) -> None:
        """After an exception in the handling of `fd`."""
        kind = self.kinds[fd]
        watcher = self.objects.get(fd)
        complain(type(watcher).__name__ if watcher else type(crowds[kind]).__name__ if kind in crowds else "event")
        try:
            if watcher is not None:
                watcher.abandon(fd)
            elif kind in crowds:
                crowds[kind].abandon_one(fd)
        except Exception:
            complain("closing it")

    def shut(self) -> None:
        """Close what is to be closed, and the epoll."""
        self._bury()
        self._epoll.close()


def _nothing() -> None:
    return
