"""Relays: a client whose bytes the kernel cannot frame talks to Envoy through us, for the rest of its connection."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Iterable
from typing import Final

from bpf.maps import BpfError
from xlb.keeper.accepted import Accepted
from xlb.keeper.estate import FeedEstate, RelayEstate
from xlb.keeper.inject import Feed, InjectError, Tools
from xlb.keeper.kernel import GONE, Destination
from xlb.keeper.loop import complain
from xlb.keeper.replies import Reply
from xlb.keeper.sockets import BLOCKED, BROKEN, CHUNK, IN, OUT, RDHUP, RECEIVE_BUFFER, Endpoint

_TURNS: Final = 16  # times CHUNK that one relay may move before it is the others' turn
_LISTEN: Final = IN | RDHUP
_QUIET: Final = 1.0  # seconds after which nothing can be on its way from C any more


class Relays:
    """All relays, and how one begins."""

    def __init__(self, tools: Tools, accepted: Accepted) -> None:
        self._tools = tools
        self.accepted = accepted
        self.open: set[Relay] = set()
        self.total = 0
        self.injected = 0  # answers instead of Envoy
        self.limit = 1 << 20

    def start(self, fd: int, client: int, destination: Destination, before: bytes, once: bool) -> None:
        """Take over A `fd`.

        :param before: bytes of the stream that have been read already
        :param once: C is relayed for this exchange only
        """
        tools = self._tools
        if tools.loop.kinds[fd]:
            tools.loop.unwatch(fd)
        envoy = tools.kernel.envoy_of(destination)
        upstream = self._connect(envoy, destination) if envoy is not None else -1
        try:
            relay = Relay(tools, self, fd, upstream, client, before, once)
        except InjectError:
            complain("relay")
            if upstream >= 0:
                os.close(upstream)
            self.accepted.drop(fd)
            return
        self.total += 1
        self.open.add(relay)
        relay.begin()

    def _connect(self, envoy: Endpoint, destination: Destination) -> int:
        """A connection to Envoy that is being made; -1: it cannot be."""
        kernel = self._tools.kernel
        try:
            made = socket.socket(envoy.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        except OSError:
            complain("socket to Envoy")
            return -1
        try:
            kernel.own(made.fileno(), kernel.codes.role.e, destination=destination)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
            result = made.connect_ex((envoy.host, envoy.port))
        except (OSError, BpfError):
            complain("connection to Envoy")
            made.close()
            return -1
        if result not in (0, errno.EINPROGRESS):
            made.close()
            return -1
        return made.detach()

    def save(self) -> tuple[RelayEstate, ...]:
        """For a successor."""
        return tuple(relay.save() for relay in self.open)

    def restore(self, left: Iterable[RelayEstate]) -> None:
        """Of a predecessor."""
        for one in left:
            self.open.add(Relay.restore(self._tools, self, one))
            self.accepted.count_in(one.a)

    def look_after(self) -> None:
        """Once a second: end those whose client has gone without our hearing of it."""
        for relay in list(self.open):
            relay.look_after()

    def close_all(self) -> None:
        for relay in list(self.open):
            relay.end()


class Relay:
    """A ↔ E; what Envoy says is injected into C."""

    def __init__(
        self,
        tools: Tools,
        relays: Relays,
        a: int,
        e: int,
        client: int,
        before: bytes,
        once: bool,
        left: FeedEstate | None = None,
    ) -> None:
        """Raises InjectError; not with `left`, see `restore`.

        :param e: -1: Envoy cannot be reached
        :param once: C is relayed for one exchange; after it, bytes on A may be for somebody else
        """
        self._tools = tools
        self._relays = relays
        self._a = a
        self._e = e
        self._client = client
        self._once = once
        self._out = before  # read from A, not yet taken by E
        self._head = before.startswith(b"HEAD ")
        self._a_events = 0
        self._e_events = 0
        self._a_done = False  # C says nothing any more
        self._blocked = bool(before)  # E does not take more for now
        self._ended = False
        self._active = tools.loop.now  # when something was last moved
        self._feed = Feed(tools, self, e, client, left.limit if left else relays.limit, left)

    def save(self) -> RelayEstate:
        """For a successor."""
        return RelayEstate(
            a=self._a,
            e=self._e,
            client=self._client,
            once=self._once,
            head=self._head,
            a_done=self._a_done,
            blocked=self._blocked,
            active=self._active,
            out=self._out,
            feed=self._feed.save(),
        )

    @classmethod
    def restore(cls, tools: Tools, relays: Relays, left: RelayEstate) -> Relay:
        """Of a predecessor."""
        relay = cls(tools, relays, left.a, left.e, left.client, left.out, left.once, left.feed)
        relay._head = left.head
        relay._a_done = left.a_done
        relay._blocked = left.blocked
        relay._active = left.active
        tools.loop.adopt(left.a, relay)
        tools.loop.adopt(left.e, relay)
        relay._listen()
        return relay

    def begin(self) -> None:
        loop = self._tools.loop
        loop.adopt(self._a, self)
        if self._e < 0:
            self._peek_method()
            self._unreachable()
            return
        loop.adopt(self._e, self)
        self._listen()
        self._up()

    def _listen(self) -> None:
        """Tell epoll what we want to hear."""
        loop = self._tools.loop
        events = 0 if self._a_done or self._blocked else _LISTEN
        loop.change(self._a, self._a_events, events)
        self._a_events = events
        events = (0 if self._feed.waiting else _LISTEN) | (OUT if self._blocked else 0)
        loop.change(self._e, self._e_events, events)
        self._e_events = events

    def on_events(self, fd: int, events: int) -> None:
        self._active = self._tools.loop.now
        if fd == self._a:
            if not self._once or self._is_ours():
                self._up()
            return
        if events & OUT:
            self._up()
        if self._ended:
            return
        if self._feed.waiting:
            if events & BROKEN:
                self._close_up()  # Envoy takes no more; what it has said still goes to the client
        elif events & (_LISTEN | BROKEN):
            self._feed.pump()

    # ---- client to Envoy

    def _is_ours(self) -> bool:
        """Whether what A has to say is for Envoy; if not, A is given back."""
        conn = self._tools.kernel.conn(self._client)
        codes = self._tools.kernel.codes.relayed
        if conn is not None and not conn.relayed:
            accepted = self._relays.accepted
            self.let_go()
            accepted.release(self._a)
            return False
        self._once = conn is not None and conn.relayed == codes.once
        return True

    def _up(self) -> None:
        sockets = self._tools.sockets
        for _ in range(_TURNS):
            if self._out:
                sent = sockets.send(self._e, self._out)
                if sent > 0:
                    self._out = self._out[sent:]
                full = False
            else:
                if self._a_done:
                    break
                size = sockets.recv(self._a)
                if size == BLOCKED:
                    break
                if size <= 0:
                    self._client_end(size < 0)
                    return
                if not self._feed.moved and bytes(sockets.buffer[:5]) == b"HEAD ":
                    self._head = True
                sent = sockets.send_buffer(self._e, size)
                if sent != size:
                    self._out = bytes(sockets.buffer[max(sent, 0) : size])
                full = size == CHUNK
            if sent < 0 and sent != BLOCKED:
                self._close_up()
                return
            if self._out or not full:
                break
        if self._blocked != bool(self._out):
            self._blocked = bool(self._out)
            self._listen()

    def _client_end(self, failed: bool) -> None:
        """C has closed, or shut down its sending side."""
        kernel = self._tools.kernel
        if failed or not kernel.half_closed() or kernel.queue(self._client)[0] == GONE:
            self.end()
            return
        self._a_done = True
        # Told of it, Envoy would drop what it has not answered yet, as it does for clients of its own.  When a single
        # exchange is over is known to the programs, so there Envoy need not be told.
        if self._once:
            self._end_once()
        else:
            self._tools.sockets.shutdown(self._e, socket.SHUT_WR)
        if not self._ended:
            self._listen()

    def _end_once(self) -> bool:
        """C, which says nothing any more, was relayed for one exchange: is that over?"""
        conn = self._tools.kernel.conn(self._client)
        if conn is not None and conn.relayed != self._tools.kernel.codes.relayed.ever:
            if conn.owed:
                return False
            self._detach()
            return True
        self._once = False
        self._tools.sockets.shutdown(self._e, socket.SHUT_WR)
        return False

    def _close_up(self) -> None:
        """Envoy takes nothing any more, but may have answered."""
        self._a_done = True
        self._out = b""
        self._blocked = False
        self._listen()

    # ---- Envoy to client

    def on_read(self, size: int) -> int:
        return size

    def on_injected(self) -> bool:
        return not (self._once and self._a_done and self._end_once())

    def on_source_end(self, failed: bool) -> None:
        if not self._feed.moved:
            self._unreachable()
        elif self._is_over():
            self._detach()
        else:
            self.end()

    def on_target_gone(self) -> None:
        self.end()

    def on_wait(self, waiting: bool) -> None:
        self._listen()

    def _peek_method(self) -> None:
        if not self._out:
            size = self._tools.sockets.recv(self._a)
            self._head = size > 0 and bytes(self._tools.sockets.buffer[:5]) == b"HEAD "

    def _unreachable(self) -> None:
        """Not a byte has come from Envoy, and none will."""
        reply = Reply.TERMINATED.render(time.time(), self._head, close=True)
        # The client may be gone: then X must not be used again.
        self._feed.spoiled |= self._tools.sockets.send(self._feed.injector.fd, reply) != len(reply)
        self._relays.injected += 1
        self.end()

    # ---- the end

    def look_after(self) -> None:
        if self._a_done or self._blocked or self._feed.waiting:
            if self._tools.kernel.queue(self._client)[0] == GONE:
                self.end()
        elif self._tools.loop.now - self._active >= _QUIET and self._is_over():
            self._detach()

    def _is_over(self) -> bool:
        """Whether C was relayed for one exchange only, and that is over: C is on the kernel's way again."""
        conn = self._tools.kernel.conn(self._client) if self._once else None
        return (
            conn is not None
            and conn.relayed != self._tools.kernel.codes.relayed.ever
            and not conn.owed
            and not self._out
            and (self._a_done or self._tools.sockets.peek(self._a) == BLOCKED)
        )

    def _detach(self) -> None:
        """Give A back; E has nothing to do any more."""
        self.let_go()
        accepted = self._relays.accepted
        if self._a_done:
            accepted.on_half_close(self._a)
        else:
            accepted.release(self._a)

    def abandon(self, fd: int) -> None:
        self.end()

    def end(self) -> None:
        """Close A and E; C sees the end after all that was injected."""
        if self._ended:
            return
        self._finish()
        self._tools.sockets.shutdown(self._a, socket.SHUT_RDWR)
        self._relays.accepted.drop(self._a)

    def let_go(self) -> None:
        """Somebody else takes A."""
        if not self._ended:
            self._finish()
            self._tools.loop.unwatch(self._a)

    def _finish(self) -> None:
        self._ended = True
        self._relays.open.discard(self)
        self._feed.close()
        if self._e >= 0:
            self._tools.loop.close(self._e)
