"""Accepted sides A of captured connections C: on the kernel's way nothing ever happens on them.

Most short connections are over before anybody looks: the listener is silenced at its first event and emptied a few
milliseconds later, when one poll(2) finds those that have ended meanwhile, and they are closed without ever being
registered.  An A costs a byte in a table; which C it belongs to is looked up when somebody asks.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Sequence
from typing import Final

from xlb.keeper.kernel import Kernel
from xlb.keeper.loop import ACCEPTED, OBJECT, Loop
from xlb.keeper.sockets import BLOCKED, BROKEN, IN, RDHUP, Endpoint, Sockets

_GATHER: Final = 0.003  # seconds in which accepted connections gather; longer costs latency and gains nothing
_BATCH: Final = 4096  # accepted at once
_WATCHED: Final = 500  # of a predecessor, at once: about 1 ms


class Accepted:
    """The listeners, and every A on the kernel's way.  One that relays or uploads belongs to its object."""

    def __init__(self, loop: Loop, sockets: Sockets, kernel: Kernel) -> None:
        self._loop = loop
        self._sockets = sockets
        self._kernel = kernel
        self._listeners: list[int] = []
        self._pending = False  # the listeners are silenced, and connections wait
        self._dead: list[int] = []  # found in this round of events
        # Which A has which peer: filled from `_fresh` on demand only.
        self._index: dict[Endpoint, int] = {}
        self._fresh: list[int] = []
        self.count = 0  # open A, relayed ones included
        self.total = 0
        # Given by who takes over an A: bytes have come, or C has shut down its sending side.
        self.on_bytes: Callable[[int], None] = self.drop
        self.on_half_close: Callable[[int], None] = self.drop

    # ---- listening

    def add_listener(self, fd: int) -> None:
        self._listeners.append(fd)
        self._loop.watch_object(fd, self, IN)

    def on_events(self, fd: int, events: int) -> None:
        if self._loop.kinds[fd] == OBJECT:
            self._gather()
        else:
            self._on_connection(fd, events)

    def abandon(self, fd: int) -> None:
        """A listener cannot be given up: go on accepting."""

    def abandon_one(self, fd: int) -> None:
        self.drop(fd)

    def _gather(self) -> None:
        if self._pending:
            return
        self._pending = True
        for listener in self._listeners:
            self._loop.mute(listener, True)
        self._loop.at(self._loop.now + _GATHER, self._gathered)

    def _gathered(self) -> None:
        if self._pending:
            self.accept()

    def accept(self) -> None:
        """Accept at once what waits, whether the listeners have been heard of or not."""
        fds: list[int] = []
        for listener in self._listeners:
            accept = self._sockets.accept
            for _ in range(_BATCH):
                fd = accept(listener)
                if fd < 0:
                    break
                fds.append(fd)
            if self._pending:
                self._loop.mute(listener, False)
        self._pending = False
        if not fds:
            return
        self.total += len(fds)
        if not self._kernel.half_closed():
            fds = self._without_dead(fds)
        watch = self._loop.watch
        for fd in fds:
            watch(fd, ACCEPTED)
        self.count += len(fds)
        self._fresh.extend(fds)
        most = 4 * self.count + 1024
        if len(self._fresh) > most:
            kinds = self._loop.kinds
            self._fresh = [fd for fd in set(self._fresh) if kinds[fd] in (ACCEPTED, OBJECT)]
        if len(self._index) > most:
            self._index.clear()
            self._fresh = self._all(ACCEPTED) + self._all(OBJECT)

    def _without_dead(self, fds: list[int]) -> list[int]:
        """Close those whose client has gone already."""
        poll = select.poll()
        for fd in fds:
            poll.register(fd, RDHUP)
        dead = [fd for fd, _ in poll.poll(0)]
        # Asked again, as a client that shuts down its sending side only is counted before that is seen here: the first
        # one may have done so since.
        if not dead or self._kernel.half_closed():
            return fds
        self._sockets.close_all(dead)
        gone = set(dead)
        return [fd for fd in fds if fd not in gone]

    # ---- connections

    def _on_connection(self, fd: int, events: int) -> None:
        if events & BROKEN or (events & RDHUP and not self._kernel.half_closed()):
            self._dead.append(fd)
            self._loop.unwatch(fd)
            return
        if not events & RDHUP:
            self.on_bytes(fd)
            return
        # Some client has shut down its sending side only; maybe this one.
        waiting = self._sockets.peek(fd)
        if waiting > 0:
            self.on_bytes(fd)
        elif waiting == 0:
            self.on_half_close(fd)
        elif waiting != BLOCKED:
            self.drop(fd)

    def bury(self) -> None:
        """Close what has been found dead in this round."""
        if self._dead:
            self.count -= len(self._dead)
            self._sockets.close_all(self._dead)
            self._dead = []

    def drop(self, fd: int) -> None:
        """Close an A, whoever has it."""
        self.count -= 1
        self._loop.close(fd)

    def release(self, fd: int) -> None:
        """An object that had taken over an A gives it back."""
        if self._loop.kinds[fd]:
            self._loop.unwatch(fd)
        self._loop.watch(fd, ACCEPTED)
        self._fresh.append(fd)

    def find(self, client: Endpoint) -> int:
        """The A whose peer is `client`, whoever has it; -1: there is none."""
        self.accept()
        found = self._indexed(client)
        if found < 0 and self._fresh:
            fresh, self._fresh = self._fresh, []
            for fd in fresh:
                peer = self._sockets.peer(fd) if self._loop.kinds[fd] else None
                if peer is not None:
                    self._index[peer] = fd
            found = self._indexed(client)
        return found

    def _indexed(self, client: Endpoint) -> int:
        """Descriptors are used again, so the index may be wrong by now."""
        fd = self._index.get(client, -1)
        if fd < 0:
            return -1
        if self._loop.kinds[fd] in (ACCEPTED, OBJECT) and self._sockets.peer(fd) == client:
            return fd
        del self._index[client]
        return -1

    # ---- handover

    @property
    def listeners(self) -> tuple[int, ...]:
        return tuple(self._listeners)

    def save(self) -> tuple[int, ...]:
        """For a successor: every A with nothing to say.  Those of objects are theirs to tell of."""
        return tuple(self._all(ACCEPTED))

    def restore(self, fds: Sequence[int]) -> None:
        """Of a predecessor.

        Nothing is urgent about most of them, and to watch ten thousand takes longer than all the rest of a handover.
        So that is done bit by bit, while those that are in use go on.
        """
        self._loop.mark(fds, ACCEPTED)
        self.count += len(fds)
        self._fresh.extend(fds)
        self._watch_some(fds)

    def _watch_some(self, fds: Sequence[int]) -> None:
        self._loop.watch_marked(fds[:_WATCHED], ACCEPTED)
        rest = fds[_WATCHED:]
        if rest:
            self._loop.at(time.monotonic(), lambda: self._watch_some(rest))

    def count_in(self, fd: int) -> None:
        """An A of a predecessor that somebody else watches."""
        self.count += 1
        self._fresh.append(fd)

    # ---- all of them

    def _all(self, kind: int) -> list[int]:
        kinds = self._loop.kinds
        found: list[int] = []
        fd = kinds.find(kind)
        while fd >= 0:
            found.append(fd)
            fd = kinds.find(kind, fd + 1)
        return found

    def close_all(self) -> None:
        """At the end: listeners first, so that nothing new comes."""
        for fd in self._listeners:
            self._loop.close(fd)
        self._listeners = []
        for fd in self._all(ACCEPTED):
            self.drop(fd)
