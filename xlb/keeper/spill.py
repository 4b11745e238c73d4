"""What leaves the kernel's way because its receiver is slow: responses (U → C) and request bodies (A → B).

Both go on where the kernel's framer stopped, and back onto the kernel's way at the end of the message.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from xlb.keeper.estate import FeedEstate, FrameEstate, SpillEstate, UploadEstate
from xlb.keeper.framer import Flag, Framer
from xlb.keeper.inject import Feed, Tools
from xlb.keeper.loop import OBJECT
from xlb.keeper.sockets import IN, RDHUP

_LISTEN = IN | RDHUP


class SpillEnd(Enum):
    """How a spilled response ended."""

    REUSABLE = 1
    """Complete; U goes back to its pool."""
    COMPLETE = 2
    """Complete; U must not be used again."""
    TRUNCATED = 3
    """The backend has gone in the middle."""
    CLIENT_GONE = 4


class _Diverted:
    """The rest of a message: read from `fd`, injected into the connection `target`."""

    def __init__(self, tools: Tools, fd: int, framer: Framer) -> None:
        self._tools = tools
        self.fd = fd
        self.framer = framer
        self._ended = False
        self._feed: Feed

    def begin(self) -> None:
        self._tools.loop.watch_object(self.fd, self)
        self._feed.pump()

    def _resume(self, waiting: bool) -> None:
        """Go on after a predecessor."""
        self._tools.loop.adopt(self.fd, self)
        if not waiting:
            self.on_wait(False)

    def on_events(self, fd: int, events: int) -> None:
        self._feed.pump()

    def on_wait(self, waiting: bool) -> None:
        self._tools.loop.change(self.fd, _LISTEN if waiting else 0, 0 if waiting else _LISTEN)

    def abandon(self, fd: int) -> None:
        """Something unforeseen has happened."""
        raise NotImplementedError

    def _stop(self) -> bool:
        """Touch `fd` no more.  :returns: False: it was stopped already"""
        if self._ended:
            return False
        self._ended = True
        self._feed.close()
        if self._tools.loop.kinds[self.fd] == OBJECT:
            self._tools.loop.unwatch(self.fd)
        return True


class Spill(_Diverted):
    """The rest of a response: read from U, injected into C."""

    def __init__(
        self,
        tools: Tools,
        fd: int,
        client: int,
        framer: Framer,
        limit: int,
        on_end: Callable[[Spill, SpillEnd], None],
        left: FeedEstate | None = None,
    ) -> None:
        """:param fd: of U, which nobody watches any more.  Raises InjectError; not with `left`, see `restore`."""
        super().__init__(tools, fd, framer)
        self.client = client
        self._on_end = on_end
        self._trailing = False  # more came than the response has
        self._feed = Feed(tools, self, fd, client, limit, left)

    def save(self, upstream: int, backend: int) -> SpillEstate:
        """For a successor.

        :param upstream: cookies of U and its B
        """
        return SpillEstate(
            upstream, backend, self.client, self._trailing, FrameEstate.of(self.framer), self._feed.save()
        )

    @classmethod
    def restore(cls, tools: Tools, left: SpillEstate, fd: int, on_end: Callable[[Spill, SpillEnd], None]) -> Spill:
        """Of a predecessor.

        :param fd: of U
        """
        spill = cls(
            tools,
            fd,
            left.client,
            Framer.of_response(left.frame, left.frame.to_head),
            left.feed.limit,
            on_end,
            left.feed,
        )
        spill._trailing = left.trailing
        spill._resume(left.feed.waiting)
        return spill

    def on_read(self, size: int) -> int:
        taken = self.framer.feed(self._tools.sockets.buffer[:size])
        self._trailing = taken < size
        if self.framer.is_done:
            # With its last bytes C may send its next request, so they have to clear its mark.
            self._tools.kernel.target(self._feed.injector.cookie, self.client, last=True)
        return taken

    def on_injected(self) -> bool:
        if self.framer.is_done:
            reusable = not self._trailing and not self.framer.flags & Flag.CLOSE
            self._end(SpillEnd.REUSABLE if reusable else SpillEnd.COMPLETE)
            return False
        if self.framer.is_broken:
            self._end(SpillEnd.TRUNCATED)
            return False
        return True

    def on_source_end(self, failed: bool) -> None:
        complete = self.framer.ends_with_connection and not failed
        self._end(SpillEnd.COMPLETE if complete else SpillEnd.TRUNCATED)

    def on_target_gone(self) -> None:
        self._end(SpillEnd.CLIENT_GONE)

    def client_gone(self) -> None:
        self._end(SpillEnd.CLIENT_GONE)

    def abandon(self, fd: int) -> None:
        self._end(SpillEnd.TRUNCATED)

    def _end(self, how: SpillEnd) -> None:
        if self._stop():
            self._on_end(self, how)


class UploadEnd(Enum):
    """How a spilled request body ended."""

    COMPLETE = 1
    """B has all of it; A is back to nothing to say."""
    RELAY = 2
    """B has all of it, but more has come behind it: `Upload.rest`, and what follows, go to the relay."""
    CLIENT_GONE = 3
    """The body is not complete and never will be: end A and U."""
    BACKEND_GONE = 4
    """Nobody reads the rest: C is to see the response, if there is one, and the end."""


class Upload(_Diverted):
    """The rest of a request body: read from A, injected into B."""

    def __init__(
        self,
        tools: Tools,
        fd: int,
        client: int,
        backend: int,
        framer: Framer,
        limit: int,
        on_end: Callable[[Upload, UploadEnd], None],
        left: FeedEstate | None = None,
    ) -> None:
        """:param fd: of A, which nobody watches any more.  Raises InjectError; not with `left`, see `restore`."""
        super().__init__(tools, fd, framer)
        self.client = client
        self.backend = backend
        self._on_end = on_end
        self._taken = 0  # bytes read from A
        self._back = False  # C is on the kernel's way again
        self.rest = b""  # what came behind the body
        self._feed = Feed(tools, self, fd, backend, limit, left)

    def save(self) -> UploadEstate:
        """For a successor."""
        frame, feed = FrameEstate.of(self.framer), self._feed.save()
        return UploadEstate(self.fd, self.client, self.backend, self._taken, self._back, self.rest, frame, feed)

    @classmethod
    def restore(cls, tools: Tools, left: UploadEstate, on_end: Callable[[Upload, UploadEnd], None]) -> Upload:
        """Of a predecessor."""
        framer = Framer.of_request(left.frame)
        upload = cls(tools, left.a, left.client, left.backend, framer, left.feed.limit, on_end, left.feed)
        upload._taken = left.taken
        upload._back = left.back
        upload.rest = left.rest
        upload._resume(left.feed.waiting)
        return upload

    def on_read(self, size: int) -> int:
        buffer = self._tools.sockets.buffer
        self._taken += size
        taken = self.framer.feed(buffer[:size])
        if self.framer.is_done:
            self.rest = bytes(buffer[taken:size])
            # Before the last piece goes to B: its response could else bring C's next request too early.  What is behind
            # the body does not count, so that C, which has written more then, stays with the relay.
            self._back = self._tools.kernel.upload_end(self.client, self._taken - len(self.rest))
        return taken

    def on_injected(self) -> bool:
        if self.framer.is_done:
            self._tools.kernel.upload_done(self.client, self.backend)
            self._end(UploadEnd.COMPLETE if self._back else UploadEnd.RELAY)
            return False
        if self.framer.is_broken:
            self._end(UploadEnd.CLIENT_GONE)
            return False
        return True

    def on_source_end(self, failed: bool) -> None:
        self._end(UploadEnd.CLIENT_GONE)

    def on_target_gone(self) -> None:
        self._end(UploadEnd.BACKEND_GONE)

    def backend_gone(self) -> None:
        self._end(UploadEnd.BACKEND_GONE)

    def abandon(self, fd: int) -> None:
        self._end(UploadEnd.CLIENT_GONE)

    def close(self) -> None:
        """At the end of all."""
        self._end(UploadEnd.CLIENT_GONE)

    def _end(self, how: UploadEnd) -> None:
        if self._stop():
            self._on_end(self, how)
