"""The end of clients' connections: A is shut when the last response is where C can read it, and not before."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from xlb.keeper.accepted import Accepted
from xlb.keeper.estate import EndingEstate
from xlb.keeper.inject import Tools
from xlb.keeper.loop import complain

_TICK: Final = 0.002  # seconds between looks
_FIRST_LOOK: Final = 0.001  # seconds; nearly all clients have closed by themselves then
# A program tells of the last byte just before the kernel moves it into C's queue, and while it does so it holds a
# reference to C.  So a C with no more references than one that is left alone has got everything; how many those are is
# learnt.  Timers hold one too (keep-alive probes): then these many seconds must do.
_CERTAIN: Final = 0.05


@dataclass(frozen=True, slots=True)
class _Ending:
    since: float
    client: int
    fd: int  # an A that nobody else watches any more; -1: look for it when the time has come


class Endings:
    """Clients that are to see the end of their connection."""

    def __init__(self, tools: Tools, accepted: Accepted) -> None:
        self._tools = tools
        self._accepted = accepted
        self._young: deque[_Ending] = deque()
        self._old: deque[_Ending] = deque()
        self._scheduled = False
        self._at_rest = 0  # references to a C that is left alone; 0: not known yet

    def add(self, client: int, fd: int = -1) -> None:
        """End the connection of C `client` when it has what was sent to it.

        :param fd: its A, if the caller has it: it is not listened to any more
        """
        if fd >= 0:
            loop = self._tools.loop
            if loop.kinds[fd]:
                loop.unwatch(fd)
            loop.adopt(fd, self)
        self._young.append(_Ending(self._tools.loop.now, client, fd))
        self._schedule()

    def end_now(self, client: int) -> None:
        """C sees the end at once: what it got is not a whole response."""
        fd = self.find(client)
        if fd >= 0:
            self.end(fd)

    def find(self, client: int) -> int:
        """The A of C `client`, whoever has it; -1: none."""
        conn = self._tools.kernel.conn(client)
        address = self._tools.kernel.address_of(conn) if conn is not None else None
        return -1 if address is None else self._accepted.find(address)

    @property
    def at_rest(self) -> int:
        return self._at_rest

    def save(self) -> tuple[EndingEstate, ...]:
        """For a successor."""
        return tuple(
            EndingEstate(ending.fd, ending.client, ending.since)
            for ending in (*self._old, *self._young)
            # Somebody has ended the others.
            if ending.fd < 0 or self._holds(ending)
        )

    def restore(self, left: Iterable[EndingEstate], at_rest: int) -> None:
        """Of a predecessor."""
        self._at_rest = at_rest
        for one in left:
            if one.a >= 0:
                self._tools.loop.adopt(one.a, self)
                self._accepted.count_in(one.a)
            self._young.append(_Ending(one.since, one.client, one.a))
        self._schedule()

    def _schedule(self) -> None:
        if (self._young or self._old) and not self._scheduled:
            self._scheduled = True
            self._tools.loop.at(self._tools.loop.now + _TICK, self._tick)

    def _tick(self) -> None:
        self._scheduled = False
        now = self._tools.loop.now
        while self._old and self._old[0].since + _CERTAIN <= now:
            self._look(self._old.popleft(), certain=True)
        while self._young and self._young[0].since + _FIRST_LOOK <= now:
            self._look(self._young.popleft(), certain=False)
        self._schedule()

    def _look(self, ending: _Ending, certain: bool) -> None:
        try:
            references = self._tools.kernel.references(ending.client)
            if certain and references:
                self._at_rest = min(self._at_rest or references, references)
            if not references:
                if self._holds(ending):
                    self._accepted.drop(ending.fd)
            elif certain or references <= self._at_rest:
                if ending.fd < 0:
                    self.end_now(ending.client)
                elif self._holds(ending):
                    self.end(ending.fd)
            else:
                self._old.append(ending)
        except Exception:
            complain("end of a client's connection")

    def _holds(self, ending: _Ending) -> bool:
        return ending.fd >= 0 and self._tools.loop.objects.get(ending.fd) is self

    def end(self, fd: int) -> None:
        """Shut this A, whoever has it."""
        owner = self._tools.loop.objects.get(fd)
        if owner is not None and owner is not self:
            owner.abandon(fd)
            return
        self._tools.sockets.shutdown(fd, socket.SHUT_RDWR)
        self._accepted.drop(fd)

    def on_events(self, fd: int, events: int) -> None:
        """Adopted descriptors are silent."""

    def abandon(self, fd: int) -> None:
        self._accepted.drop(fd)

    def close_all(self) -> None:
        for ending in (*self._young, *self._old):
            if self._holds(ending):
                self._accepted.drop(ending.fd)
        self._young.clear()
        self._old.clear()
