"""Injection: what is written on X, a loopback connection of ours to ourselves, appears in its target's receive queue.

All bytes to a C have to come that way, because a socket's redirected bytes are read before those of TCP.  It knows no
back pressure, so whoever injects looks at the length of the target's queue first.
"""

from __future__ import annotations

import os
import socket
from contextlib import closing
from dataclasses import dataclass
from typing import Final, Protocol

from xlb.keeper.estate import FeedEstate
from xlb.keeper.kernel import GONE, Kernel
from xlb.keeper.loop import Loop, complain
from xlb.keeper.sockets import BLOCKED, CHUNK, Sockets

_KEPT: Final = 64  # injectors kept for the next use
_TURNS: Final = 16  # times CHUNK that one stream may move before it is the others' turn
_FIRST_WAIT: Final = 0.001  # seconds after which a full queue is looked at again
_LONGEST_WAIT: Final = 0.008


class InjectError(Exception):
    """No X can be made; the message says why."""


@dataclass(frozen=True, slots=True)
class Injector:
    """An X; `sink` is its accepted side, on which nothing ever arrives."""

    fd: int
    sink: int
    cookie: int


class Injectors:
    """Makes Xs and keeps some."""

    def __init__(self, sockets: Sockets, kernel: Kernel) -> None:
        self._sockets = sockets
        self._kernel = kernel
        self._idle: list[Injector] = []
        self._listener: socket.socket | None = None

    def take(self, target: int) -> Injector:
        """An X that injects into connection `target`.  Raises InjectError."""
        injector = self._idle.pop() if self._idle else self._make()
        if not self._kernel.target(injector.cookie, target):
            self.give(injector, spoiled=True)
            raise InjectError("the BPF programs do not see the keeper's sockets: is it in its cgroup?")
        return injector

    def give(self, injector: Injector, spoiled: bool) -> None:
        """Take one back.

        :param spoiled: a write failed: the kernel keeps that verdict as the socket's for ever, so close it
        """
        if spoiled or len(self._idle) >= _KEPT:
            os.close(injector.fd)
            os.close(injector.sink)
            return
        self._kernel.target(injector.cookie, 0)
        self._idle.append(injector)

    def say(self, target: int, data: bytes) -> bool:
        """Inject one small piece.  Raises InjectError.  :returns: whether it is in the target's queue"""
        injector = self.take(target)
        sent = self._sockets.send(injector.fd, data)
        self.give(injector, spoiled=sent != len(data))
        return sent == len(data)

    def _make(self) -> Injector:
        try:
            listener = self._listen()
            with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)) as made:
                self._kernel.own(made.fileno(), self._kernel.codes.role.x)
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                made.settimeout(1.0)
                made.connect(listener.getsockname())
                sink = self._sink(listener, made.getsockname())
                made.settimeout(0.0)
                fd = made.detach()
        except OSError as error:
            raise InjectError(f"cannot make an injector: {error}") from error
        return Injector(fd, sink, self._sockets.cookie(fd))

    def _listen(self) -> socket.socket:
        if self._listener is None:
            listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            listener.bind(("127.0.0.1", 0))
            listener.listen(128)
            listener.settimeout(1.0)
            self._listener = listener
        return self._listener

    @staticmethod
    def _sink(listener: socket.socket, name: tuple[str, int]) -> int:
        """The accepted side of the connection from `name`: any process could have connected.  Raises OSError."""
        while True:
            accepted, peer = listener.accept()
            if peer == name:
                accepted.setblocking(False)
                return accepted.detach()
            accepted.close()

    def close(self) -> None:
        for injector in self._idle:
            os.close(injector.fd)
            os.close(injector.sink)
        self._idle = []
        if self._listener is not None:
            self._listener.close()
            self._listener = None


class Throttled(Protocol):
    """A feed whose target's queue is too long."""

    target: int
    low: int

    def resume(self) -> None:
        """The queue is short enough again, or the target is gone."""


class Throttle:
    """Looks at the queues of those that wait, first every millisecond, less often while nobody reads."""

    def __init__(self, loop: Loop, kernel: Kernel) -> None:
        self._loop = loop
        self._kernel = kernel
        self._waiting: dict[Throttled, int] = {}  # with the length seen last
        self._wait = _FIRST_WAIT
        self._scheduled = False

    def add(self, feed: Throttled, queued: int) -> None:
        self._waiting[feed] = queued
        self._wait = _FIRST_WAIT
        if not self._scheduled:
            self._scheduled = True
            self._loop.at(self._loop.now + self._wait, self._tick)

    def remove(self, feed: Throttled) -> None:
        self._waiting.pop(feed, None)

    def _tick(self) -> None:
        moved = False
        self._scheduled = False
        ready: list[Throttled] = []
        for feed, before in self._waiting.items():
            queued, _ = self._kernel.queue(feed.target)
            if queued <= feed.low or queued == GONE:
                ready.append(feed)
            elif queued < before:
                moved = True
            self._waiting[feed] = queued
        self._wait = _FIRST_WAIT if moved or ready else min(self._wait * 2, _LONGEST_WAIT)
        for feed in ready:
            # One of them may have ended another.
            if self._waiting.pop(feed, None) is not None:
                feed.resume()
        if self._waiting and not self._scheduled:
            self._scheduled = True
            self._loop.at(self._loop.now + self._wait, self._tick)


class Source(Protocol):
    """Who owns a feed: what is to be done with what is read, and with its end."""

    def on_read(self, size: int) -> int:
        """`size` bytes are in the buffer.  :returns: how many of them to inject"""

    def on_injected(self) -> bool:
        """All that was read is in the target's queue.  :returns: whether to go on reading"""

    def on_source_end(self, failed: bool) -> None:
        """The stream is at its end, or broken."""

    def on_target_gone(self) -> None:
        """Nobody will read it."""

    def on_wait(self, waiting: bool) -> None:
        """Whether the source is not to be listened to for now."""

    def abandon(self, fd: int) -> None:
        """Something unforeseen has happened."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What everything that moves bytes needs."""

    loop: Loop
    sockets: Sockets
    kernel: Kernel
    injectors: Injectors
    throttle: Throttle


class _Nobody:
    """Source of a feed that is closed."""

    def on_read(self, size: int) -> int:
        return 0

    def on_injected(self) -> bool:
        return False

    def on_source_end(self, failed: bool) -> None:
        return

    def on_target_gone(self) -> None:
        return

    def on_wait(self, waiting: bool) -> None:
        return

    def abandon(self, fd: int) -> None:
        return


_NOBODY: Final = _Nobody()


class Feed:
    """Moves bytes from a descriptor into the receive queue of a connection, as fast as they are read there."""

    def __init__(
        self, tools: Tools, source: Source, fd: int, target: int, limit: int, left: FeedEstate | None = None
    ) -> None:
        """Raises InjectError, unless there is something left.

        :param limit: bytes in the target's queue above which to wait
        :param left: by a predecessor
        """
        self._sockets = tools.sockets
        self._kernel = tools.kernel
        self._throttle = tools.throttle
        self._injectors = tools.injectors
        self._source = source
        self.injector = Injector(left.injector, left.sink, left.cookie) if left else tools.injectors.take(target)
        self.fd = fd
        self.target = target
        self._limit = limit
        self.low = limit // 2
        self.waiting = False
        self.spoiled = False  # a write on X failed
        self.rest = b""  # read, but not injected yet
        self.moved = 0  # bytes
        if left is not None:
            self.spoiled = left.spoiled
            self.rest = left.rest
            self.moved = left.moved
            if left.waiting:
                self.waiting = True
                self._throttle.add(self, GONE)  # more than can be: it is looked at soon

    def save(self) -> FeedEstate:
        """For a successor."""
        x = self.injector
        return FeedEstate(x.fd, x.sink, x.cookie, self.waiting, self.spoiled, self.moved, self._limit, self.rest)

    def pump(self) -> None:
        """Move what there is; ends with the source blocked, throttled, ended, or its turns used up."""
        if self.waiting:
            return
        source = self._source
        for _ in range(_TURNS):
            queued, _ = self._kernel.queue(self.target)
            if queued == GONE:
                source.on_target_gone()
                return
            if queued > self._limit:
                self._pause(queued)
                return
            if not self.rest:
                size = self._sockets.recv(self.fd)
                if size == BLOCKED:
                    return
                if size <= 0:
                    source.on_source_end(size < 0)
                    return
                take = source.on_read(size)
                sent = self._sockets.send_buffer(self.injector.fd, take) if take else 0
                if sent != take and not self._keep(bytes(self._sockets.buffer[max(sent, 0) : take]), sent, queued):
                    return
            else:
                size = CHUNK
                sent = self._sockets.send(self.injector.fd, self.rest)
                if not self._keep(self.rest[max(sent, 0) :], sent, queued):
                    return
            self.moved += max(sent, 0)
            if not self.rest and not source.on_injected():
                return
            if size < CHUNK // 2:
                return  # most likely all there was; epoll tells if not

    def _keep(self, rest: bytes, sent: int, queued: int) -> bool:
        """After a write: what is left of it.  :returns: whether to go on"""
        self.rest = rest
        if sent < 0 and sent != BLOCKED:
            self.spoiled = True
            self._source.on_target_gone()
            return False
        if rest:
            self._pause(queued)
            return False
        return True

    def _pause(self, queued: int) -> None:
        self.waiting = True
        self._throttle.add(self, queued)
        self._source.on_wait(True)

    def resume(self) -> None:
        """The queue has become short enough."""
        try:
            self.waiting = False
            self._source.on_wait(False)
            self.pump()
        except Exception:
            complain(type(self._source).__name__)
            self._source.abandon(self.fd)

    def close(self) -> None:
        """Give X back."""
        self._throttle.remove(self)
        self._source = _NOBODY  # no cycle is left: nobody collects them here
        self._injectors.give(self.injector, spoiled=self.spoiled or bool(self.rest))
