"""The control socket: a stream of JSON objects, one a line, each answered by one.

    {"do": "refresh"}   endpoints or captures have changed           → {"ok": true}
    {"do": "status"}    what is open, and what has happened          → {"ok": true, "pid": ..., ...}
    {"do": "stop"}      end the process                              → {"ok": true}, then the end of the stream

Anything else is answered by {"ok": false, "error": "..."}.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from xlb.keeper.estate import TalkEstate
from xlb.keeper.loop import Loop, complain
from xlb.keeper.sockets import BLOCKED, BROKEN, IN, Sockets

_MOST_CONNECTIONS: Final = 16
_LONGEST_LINE: Final = 1 << 16

Action = Callable[[], Mapping[str, Any]]


class ControlError(Exception):
    """The control socket cannot be made; the message says why."""


class Control:
    """Listens on a Unix socket.

    :param actions: what to do by name, and what to answer beside "ok"
    """

    def __init__(
        self, loop: Loop, sockets: Sockets, path: Path, actions: Mapping[str, Action], inherited: int = -1
    ) -> None:
        """Raises ControlError, also if another keeper listens there.

        :param inherited: the listening socket of a predecessor
        """
        self._loop = loop
        self._sockets = sockets
        self._path = path
        self._actions = actions
        self._clients: dict[int, bytearray] = {}  # what has come of an unfinished line
        if inherited >= 0:
            self._listener = socket.socket(fileno=inherited)
        else:
            self._listener = socket.socket(
                socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
            )
            try:
                self._bind()
            except OSError as error:
                self._listener.close()
                raise ControlError(f"cannot listen on {path}: {error.strerror or error}") from error
        loop.watch_object(self._listener.fileno(), self, IN)

    def _bind(self) -> None:
        if self._path.is_socket():
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
                if other.connect_ex(str(self._path)) == 0:
                    raise ControlError(f"another keeper listens on {self._path}: stop it first")
            self._path.unlink()
        self._listener.bind(str(self._path))
        self._path.chmod(0o600)
        self._listener.listen(_MOST_CONNECTIONS)

    @property
    def fd(self) -> int:
        return self._listener.fileno()

    def save(self) -> tuple[TalkEstate, ...]:
        """For a successor: who is connected."""
        return tuple(TalkEstate(fd, bytes(line)) for fd, line in self._clients.items())

    def restore(self, talks: Iterable[TalkEstate]) -> None:
        """Of a predecessor."""
        for talk in talks:
            self._clients[talk.fd] = bytearray(talk.line)
            self._loop.watch_object(talk.fd, self, IN)

    def on_events(self, fd: int, events: int) -> None:
        if fd == self._listener.fileno():
            self._accept()
            return
        size = self._sockets.recv(fd)
        if size == BLOCKED:
            if events & BROKEN:
                self._close(fd)
            return
        line = self._clients[fd]
        line += self._sockets.buffer[: max(size, 0)]
        while size > 0 and (end := line.find(b"\n")) >= 0:
            request = bytes(line[:end])
            del line[: end + 1]
            if not self._answer(fd, self._do(request)):
                self._close(fd)
                return
        if size <= 0 or len(line) > _LONGEST_LINE:
            self._close(fd)

    def _accept(self) -> None:
        fd = self._sockets.accept(self._listener.fileno())
        if fd < 0:
            return
        if len(self._clients) >= _MOST_CONNECTIONS:
            self._loop.close(fd)
            return
        self._clients[fd] = bytearray()
        self._loop.watch_object(fd, self, IN)

    def _do(self, request: bytes) -> Mapping[str, Any]:
        try:
            asked = json.loads(request)
        except ValueError:
            return {"ok": False, "error": "not a JSON object on one line"}
        name = asked.get("do") if isinstance(asked, dict) else None
        action = self._actions.get(name) if isinstance(name, str) else None
        if action is None:
            return {"ok": False, "error": f'"do" must be one of {", ".join(sorted(self._actions))}'}
        try:
            return {"ok": True, **action()}
        except Exception as error:
            complain(f"request {name}")
            return {"ok": False, "error": f"{type(error).__name__}: {error}"}

    def _answer(self, fd: int, answer: Mapping[str, Any]) -> bool:
        """False: the other side does not read, and is not waited for."""
        data = json.dumps(answer).encode() + b"\n"
        return self._sockets.send(fd, data) == len(data)

    def _close(self, fd: int) -> None:
        self._clients.pop(fd, None)
        self._loop.close(fd)

    def abandon(self, fd: int) -> None:
        if fd != self._listener.fileno():
            self._close(fd)

    def close(self) -> None:
        """Also removes the socket's file."""
        for fd in list(self._clients):
            self._close(fd)
        self._loop.unwatch(self._listener.fileno())
        self._listener.close()
        self._path.unlink(missing_ok=True)
