"""What becomes of a client that leaves the kernel's way, or whose backend leaves it alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from xlb.keeper.accepted import Accepted
from xlb.keeper.endings import Endings
from xlb.keeper.estate import ParkedEstate, UploadEstate
from xlb.keeper.framer import Framer, Phase
from xlb.keeper.inject import InjectError, Tools
from xlb.keeper.kernel import GONE
from xlb.keeper.loop import complain
from xlb.keeper.records import ConnRecord
from xlb.keeper.relay import Relay, Relays
from xlb.keeper.replies import Reply
from xlb.keeper.spill import Upload, UploadEnd

_FIRST_WAIT: Final = 0.001  # seconds after which those that wait for a response are looked at
_LONGEST_WAIT: Final = 0.016
_LIMIT: Final = 1 << 20  # of a queue, when the configuration has none


@dataclass(slots=True)
class _Parked:
    """An A that waits until the kernel's response to its C has ended."""

    fd: int
    client: int
    before: bytes  # read from A already
    half_closed: bool  # C says nothing any more, so the end of the response is the end


class Clients:
    """Decides for each A with something to say; answers for backends that cannot."""

    def __init__(self, tools: Tools, accepted: Accepted, endings: Endings, relays: Relays) -> None:
        self._tools = tools
        self._accepted = accepted
        self._endings = endings
        self._relays = relays
        self._parked: dict[int, _Parked] = {}  # by client
        self._uploads: dict[int, Upload] = {}  # by client
        self._wait = _FIRST_WAIT
        self._scheduled = False
        self.upload_limit = _LIMIT
        self.injected = 0
        self.uploads_total = 0
        self.on_reset: Callable[[int], None] = _nobody  # end the U with this cookie with a reset
        accepted.on_bytes = self.on_bytes
        accepted.on_half_close = self.on_half_close

    @property
    def uploads(self) -> int:
        return len(self._uploads)

    @property
    def parked(self) -> int:
        return len(self._parked)

    # ---- handover

    def save_parked(self) -> tuple[ParkedEstate, ...]:
        """For a successor."""
        return tuple(ParkedEstate(one.fd, one.client, one.half_closed, one.before) for one in self._parked.values())

    def save_uploads(self) -> tuple[UploadEstate, ...]:
        """For a successor."""
        return tuple(upload.save() for upload in self._uploads.values())

    def restore(self, parked: Iterable[ParkedEstate], uploads: Iterable[UploadEstate]) -> None:
        """Of a predecessor."""
        for one in parked:
            self._park(_Parked(one.a, one.client, one.before, one.half_closed))
            self._accepted.count_in(one.a)
        for left in uploads:
            self._uploads[left.client] = Upload.restore(self._tools, left, self._upload_ended)
            self._accepted.count_in(left.a)

    # ---- A has something to say

    def on_bytes(self, fd: int, before: bytes = b"") -> None:
        """Bytes of C are in A `fd` (and `before` them these): relay, upload, or the end."""
        kernel = self._tools.kernel
        client = kernel.client_of(fd)
        conn = kernel.conn(client)
        if conn is None:
            self._accepted.drop(fd)
        elif conn.upload and not before:
            self._upload(fd, client, conn)
        elif conn.in_flight:
            self._park(_Parked(fd, client, before, half_closed=False))
        elif not conn.relayed or (conn.relayed == kernel.codes.relayed.ever and conn.in_request):
            # The rest of a body whose backend has gone, or what came after `connection: close`: to relay it would be
            # to take the middle of a message for a request.
            self._endings.add(client, fd)
        else:
            once = conn.relayed == kernel.codes.relayed.once
            self._relays.start(fd, client, kernel.destination_of(conn), before, once)

    def on_half_close(self, fd: int) -> None:
        """C has shut down its sending side, or is gone: it still gets its response."""
        kernel = self._tools.kernel
        client = kernel.client_of(fd)
        conn = kernel.conn(client)
        if conn is None or kernel.queue(client)[0] == GONE:
            self._accepted.drop(fd)
        elif conn.in_flight and conn.in_request:
            # The request is not complete and never will be.
            if kernel.take(client, conn.peer):
                self._reset_backend(conn.peer)
            self._endings.add(client, fd)
        elif conn.in_flight:
            self._park(_Parked(fd, client, b"", half_closed=True))
        else:
            self._endings.add(client, fd)

    def _reset_backend(self, backend: int) -> None:
        conn = self._tools.kernel.conn(backend)
        if conn is not None:
            self.on_reset(conn.alt)

    # ---- waiting for the kernel's response

    def _park(self, parked: _Parked) -> None:
        loop = self._tools.loop
        if loop.kinds[parked.fd]:
            loop.unwatch(parked.fd)
        loop.adopt(parked.fd, self)
        self._parked[parked.client] = parked
        self._wait = _FIRST_WAIT
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled and self._parked:
            self._scheduled = True
            self._tools.loop.at(self._tools.loop.now + self._wait, self._tick)

    def _tick(self) -> None:
        self._scheduled = False
        self._wait = min(self._wait * 2, _LONGEST_WAIT)
        for client in list(self._parked):
            self.on_ready(client)
        self._schedule()

    def on_ready(self, client: int) -> None:
        """C may have no kernel response outstanding any more."""
        parked = self._parked.get(client)
        if parked is None:
            return
        try:
            kernel = self._tools.kernel
            conn = kernel.conn(client)
            if conn is not None and conn.in_flight and kernel.queue(client)[0] != GONE:
                if conn.peer and kernel.conn(conn.peer) is None:
                    self.on_backend_gone(client, conn.peer, kernel.codes.gone.started)  # its event was lost
                return
            del self._parked[client]
            self._leave(parked.fd)
            if conn is None:
                self._accepted.drop(parked.fd)
            elif parked.half_closed or self._is_ending(conn):
                self._endings.add(client, parked.fd)
            else:
                self.on_bytes(parked.fd, parked.before)
        except Exception:
            complain("parked connection")
            self._parked.pop(client, None)
            self._accepted.drop(parked.fd)

    def _is_ending(self, conn: ConnRecord) -> bool:
        closing = self._tools.kernel.codes.closing
        return bool(conn.closing & (closing.client | closing.backend))

    def _leave(self, fd: int) -> None:
        if self._tools.loop.objects.get(fd) is self:
            self._tools.loop.unwatch(fd)

    def on_events(self, fd: int, events: int) -> None:
        """Parked descriptors are silent."""

    def abandon(self, fd: int) -> None:
        self._forget(fd)
        self._accepted.drop(fd)

    def _forget(self, fd: int) -> None:
        """Of a parked A that somebody else takes."""
        for client, parked in self._parked.items():
            if parked.fd == fd:
                del self._parked[client]
                return

    # ---- uploads

    def _upload(self, fd: int, client: int, conn: ConnRecord) -> None:
        tools = self._tools
        if tools.loop.kinds[fd]:
            tools.loop.unwatch(fd)
        framer = Framer.of_request(conn.frame)
        try:
            upload = Upload(tools, fd, client, conn.peer, framer, self.upload_limit or _LIMIT, self._upload_ended)
        except InjectError:
            complain("upload")
            # B waits for a body that cannot be brought to it.
            self._reset_backend(conn.peer)
            self._endings.add(client, fd)
            return
        self.uploads_total += 1
        self._uploads[client] = upload
        upload.begin()

    def _upload_ended(self, upload: Upload, how: UploadEnd) -> None:
        self._uploads.pop(upload.client, None)
        if how is UploadEnd.COMPLETE:
            self._accepted.release(upload.fd)
        elif how is UploadEnd.RELAY:
            if upload.rest:
                self.on_bytes(upload.fd, upload.rest)
            else:
                self._accepted.release(upload.fd)
        elif how is UploadEnd.BACKEND_GONE:
            self._endings.add(upload.client, upload.fd)
        else:
            if self._tools.kernel.take(upload.client, upload.backend):
                self._reset_backend(upload.backend)
            self._accepted.drop(upload.fd)

    # ---- backends that have gone

    def on_backend_gone(self, client: int, backend: int, flags: int) -> None:
        """B has ended while C waited for its response.

        :param flags: enum xlb_gone_flags
        """
        kernel, gone = self._tools.kernel, self._tools.kernel.codes.gone
        before = kernel.conn(client)
        if before is None or not kernel.take(client, backend):
            return
        if flags & gone.until_close and not flags & gone.malformed:
            self._stop_listening(client)
        elif flags & gone.started:
            self._cut(client)
        else:
            self._reply(client, before, Reply.MALFORMED if flags & gone.malformed else Reply.TERMINATED)

    def _reply(self, client: int, before: ConnRecord, reply: Reply) -> None:
        """Answer instead of the backend.

        :param before: state of C when its backend ended
        """
        # A request that is not complete cannot be followed by another one.
        close = bool(before.in_request or before.upload or self._is_ending(before))
        try:
            said = self._tools.injectors.say(client, reply.render(time.time(), bool(before.head), close))
        except InjectError:
            complain("reply")
            said = False
        self.injected += said
        if close or not said:
            self._stop_listening(client)
        else:
            self.on_ready(client)

    def _stop_listening(self, client: int) -> None:
        """C is to see the end once it has what was sent to it; what it still says is not for anybody."""
        upload = self._uploads.get(client)
        if upload is not None:
            upload.backend_gone()
            return
        parked = self._parked.pop(client, None)
        fd = parked.fd if parked is not None else self._endings.find(client)
        if fd < 0:
            return
        owner = self._tools.loop.objects.get(fd)
        if isinstance(owner, Relay):
            owner.let_go()  # it had an exchange before this one
        self._endings.add(client, fd)

    def _cut(self, client: int) -> None:
        """C is to see that the response is not whole."""
        upload = self._uploads.get(client)
        if upload is not None:
            upload.backend_gone()
            return
        self._endings.end_now(client)

    def close_all(self) -> None:
        for upload in list(self._uploads.values()):
            upload.close()
        for parked in self._parked.values():
            self._accepted.drop(parked.fd)
        self._parked.clear()


def _nobody(cookie: int) -> None:
    return


def is_until_close(conn: ConnRecord) -> bool:
    """Whether the response in progress of a B ends with its connection."""
    return conn.frame.phase == Phase.UNTIL_CLOSE
