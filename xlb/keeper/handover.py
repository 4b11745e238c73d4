"""From one keeper to the next, through a Unix socket (SEQPACKET), while connections are in use.

    running keeper                                     successor, which has done all that it can do before
    {"format": ..., "pid": ...}                ──►
                                               ◄──     {"take": format}, or the end: it refuses
    stands still
    "H" + header, "F" + up to 250 descriptors
    and "B" + a piece of the body, each several
    times, "E"                                 ──►     has everything, and could go on at once
                                               ◄──     "ok"
    "go", and ends, closing nothing of it      ──►     is the keeper

Until "go" the successor does nothing that anybody would notice, and the running keeper is one.  Without "ok" in time it
goes on as before: what the successor has are duplicates of descriptors, which end with it.  Without "go" it ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from array import array
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from xlb.keeper.estate import FORMAT, EstateError, Packed, check_format
from xlb.keeper.loop import Loop, complain
from xlb.keeper.sockets import IN

NAME: Final = "keeper-handover.sock"
LIMIT: Final = 5.0  # seconds for which the running keeper stands still at most, and one waits for each message of it

_FDS: Final = 250  # of one message; SCM_MAX_FD is 253
_PIECE: Final = 60_000  # bytes of one message
_LONGEST: Final = 1 << 16
_ROOM: Final = 1 << 22  # bytes that may be on their way
_SO_SNDBUFFORCE: Final = 32
_HEADER, _DESCRIPTORS, _BODY, _END, _OK, _GO = b"H", b"F", b"B", b"E", b"ok", b"go"


class HandoverError(Exception):
    """Nothing was taken over; the message says why."""


class Offer:
    """The running keeper's side: listens for a successor."""

    def __init__(
        self,
        loop: Loop,
        path: Path,
        on_pack: Callable[[], Packed],
        on_given: Callable[[], None],
        inherited: int = -1,
    ) -> None:
        """Raises OSError.

        :param on_pack: says what to hand over
        :param on_given: it is the successor's now
        :param inherited: the listening socket of a predecessor
        """
        self._loop = loop
        self._path = path
        self._peer: socket.socket | None = None
        self._on_pack = on_pack
        self._on_given = on_given
        if inherited >= 0:
            self._listener = socket.socket(fileno=inherited)
        else:
            self._listener = socket.socket(
                socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
            )
            try:
                # Who listens on the control socket is the only keeper: what is here is what a killed one left.
                path.unlink(missing_ok=True)
                self._listener.bind(str(path))
                path.chmod(0o600)
                self._listener.listen(1)
            except OSError:
                self._listener.close()
                raise
        loop.watch_object(self._listener.fileno(), self, IN)

    @property
    def fd(self) -> int:
        return self._listener.fileno()

    def on_events(self, fd: int, events: int) -> None:
        if fd == self._listener.fileno():
            self._greet()
        elif self._peer is not None and fd == self._peer.fileno() and self._is_wanted(self._peer):
            self._loop.pause(partial(self._hand_over, self._peer))

    def _greet(self) -> None:
        try:
            peer, _ = self._listener.accept()
        except OSError:
            return
        # One that came before and has not asked yet is slow, or will never ask.
        self._dismiss()
        self._peer = peer
        peer.setblocking(False)
        self._loop.watch_object(peer.fileno(), self, IN)
        try:
            peer.send(json.dumps({"format": FORMAT, "pid": os.getpid()}).encode())
        except OSError:
            self._dismiss()

    def _is_wanted(self, peer: socket.socket) -> bool:
        """Whether a successor that knows our format asks for everything; one that does not is dismissed."""
        try:
            wanted = bool(json.loads(peer.recv(_PIECE)).get("take") == FORMAT)
        except BlockingIOError:
            return False
        except (OSError, ValueError, AttributeError):
            wanted = False
        if not wanted:
            self._dismiss()
        return wanted

    def _hand_over(self, peer: socket.socket) -> None:
        """While nothing else happens in this process."""
        if self._peer is not peer:
            return  # another one has come since
        try:
            given = give(peer, self._on_pack(), time.monotonic() + LIMIT)
        except Exception:
            complain("handover")
            given = False
        if given:
            self._on_given()
        else:
            self._dismiss()

    def _dismiss(self) -> None:
        peer, self._peer = self._peer, None
        if peer is not None:
            with contextlib.suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)
            self._loop.close(peer.detach())

    def abandon(self, fd: int) -> None:
        if fd != self._listener.fileno():
            self._dismiss()

    def close(self) -> None:
        """Also removes the socket's file."""
        self._dismiss()
        self._loop.unwatch(self._listener.fileno())
        self._listener.close()
        self._path.unlink(missing_ok=True)


def give(peer: socket.socket, packed: Packed, deadline: float) -> bool:
    """Send everything.

    :param deadline: of time.monotonic
    :returns: whether it is the successor's now; False: it has gone, or has not answered in time, and will not go on
    """

    def send(message: bytes, fds: tuple[int, ...] = ()) -> None:
        peer.settimeout(max(deadline - time.monotonic(), 0.001))
        if fds:
            socket.send_fds(peer, [message], fds)
        else:
            peer.send(message)

    try:
        with contextlib.suppress(PermissionError):
            peer.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _ROOM)
        send(_HEADER + packed.header)
        for at in range(0, len(packed.fds), _FDS):
            send(_DESCRIPTORS, packed.fds[at : at + _FDS])
        for at in range(0, len(packed.body), _PIECE):
            send(_BODY + packed.body[at : at + _PIECE])
        send(_END)
        peer.settimeout(max(deadline - time.monotonic(), 0.001))
        if peer.recv(_PIECE) != _OK:
            return False  # it says itself why
        send(_GO)
    except TimeoutError:
        print("keeper: handover: the successor did not answer in time", file=sys.stderr, flush=True)
        return False
    except (BrokenPipeError, ConnectionResetError):
        return False
    return True


class Claim:
    """The successor's side."""

    def __init__(self, path: Path) -> None:
        """Find the keeper that runs, which goes on for now.  Raises HandoverError, also if its format is not ours."""
        self._peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        self._peer.settimeout(LIMIT)
        try:
            self._peer.connect(str(path))
            hello = json.loads(self._peer.recv(_PIECE))
            check_format(hello.get("format"))
        except (OSError, ValueError, AttributeError, EstateError) as error:
            self._peer.close()
            if isinstance(error, EstateError):
                raise HandoverError(str(error)) from error
            raise HandoverError(f"no keeper hands over at {path}: {_why(error)}") from error

    def take(self) -> Packed:
        """Have it stand still, and receive everything.  Raises HandoverError: then it goes on."""
        try:
            self._peer.send(json.dumps({"take": FORMAT}).encode())
            return self._receive()
        except OSError as error:
            raise HandoverError(f"the running keeper broke off: {_why(error)}") from error

    def _receive(self) -> Packed:
        header, body, fds = b"", bytearray(), array("i")
        room = socket.CMSG_SPACE(_FDS * fds.itemsize)
        while True:
            # Not socket.recv_fds, which does not pass flags on.
            message, along, flags, _ = self._peer.recvmsg(_LONGEST, room, socket.MSG_CMSG_CLOEXEC)
            for _, _, found in along:
                fds.frombytes(found)
            if flags & socket.MSG_CTRUNC:
                raise HandoverError(f"more than {len(fds)} descriptors are not allowed: raise the limit (ulimit -n)")
            if flags & socket.MSG_TRUNC:
                raise HandoverError("a message of the running keeper is too long")
            kind = message[:1]
            if kind == _HEADER:
                header = message[1:]
            elif kind == _BODY:
                body += memoryview(message)[1:]
            elif kind == _END:
                return Packed(header, bytes(body), tuple(fds))
            elif kind != _DESCRIPTORS:
                raise HandoverError("the running keeper broke off: its log says why")

    def confirm(self) -> None:
        """Say that everything is here, and wait for the running keeper to end.  Raises HandoverError: it goes on."""
        try:
            self._peer.send(_OK)
            # It answers at once, or has been told that it is too late: it never both goes on and says so.
            said = self._peer.recv(_PIECE)
        except OSError as error:
            raise HandoverError(f"the running keeper did not let go: {_why(error)}") from error
        if said != _GO:
            raise HandoverError("the running keeper did not let go: its log says why")
        self._peer.close()


def _why(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
