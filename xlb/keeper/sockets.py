"""System calls on bare descriptors, by ctypes: no exception on EAGAIN, no object or allocation per accepted socket."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import socket
import struct
from dataclasses import dataclass
from typing import Final

IN: Final = select.EPOLLIN
OUT: Final = select.EPOLLOUT
RDHUP: Final = select.EPOLLRDHUP
BROKEN: Final = select.EPOLLHUP | select.EPOLLERR

CHUNK: Final = 1 << 16  # bytes of the shared buffer: what one recv(2) takes at most

# Bytes of a receive queue of ours; the kernel would let it grow to net.ipv4.tcp_rmem while a client reads slowly.
RECEIVE_BUFFER: Final = 1 << 18
BLOCKED: Final = -1  # recv, send: it would block; the kernel has no memory just now
FAILED: Final = -2  # recv, send: the connection is broken

_MAPPED: Final = b"\0" * 10 + b"\xff\xff"
_SO_COOKIE: Final = 57
_SO_NETNS_COOKIE: Final = 71
_RESET: Final = struct.pack("ii", 1, 0)  # struct linger: close(2) sends a reset
_RETRY: Final = frozenset({errno.EAGAIN, errno.EINTR, errno.ENOMEM, errno.ENOBUFS})
_NOT_CONNECTED_YET: Final = frozenset({errno.ENOTCONN, errno.EINPROGRESS})


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An IP address and TCP port; IPv4 as ::ffff:a.b.c.d, network byte order."""

    address: bytes
    port: int

    @classmethod
    def parse(cls, host: str, port: int) -> Endpoint:
        """From a numeric address.  Raises OSError."""
        if ":" in host:
            return cls(socket.inet_pton(socket.AF_INET6, host), port)
        return cls(_MAPPED + socket.inet_pton(socket.AF_INET, host), port)

    @property
    def is_ip4(self) -> bool:
        return self.address.startswith(_MAPPED)

    @property
    def family(self) -> socket.AddressFamily:
        return socket.AF_INET if self.is_ip4 else socket.AF_INET6

    @property
    def host(self) -> str:
        if self.is_ip4:
            return socket.inet_ntop(socket.AF_INET, self.address[12:])
        return socket.inet_ntop(socket.AF_INET6, self.address)

    @property
    def is_loopback(self) -> bool:
        """As the kernel programs see it (xlb_is_loopback)."""
        if self.is_ip4:
            return self.address[12] == 127
        return self.address == socket.inet_pton(socket.AF_INET6, "::1")

    @property
    def any(self) -> bytes:
        """The wildcard address of its family, as a key of xlb_captures has it."""
        return _MAPPED + bytes(4) if self.is_ip4 else bytes(16)

    def __str__(self) -> str:
        return f"{self.host}:{self.port}" if self.is_ip4 else f"[{self.host}]:{self.port}"


class Sockets:
    """The calls, and the one buffer that all reading goes through.

    `recv` fills `buffer`; what is in it must be used or copied before the next `recv`.
    """

    def __init__(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._storage = bytearray(CHUNK)
        self.buffer = memoryview(self._storage)
        self._address = ctypes.addressof((ctypes.c_char * CHUNK).from_buffer(self._storage))
        # 64-bit pointers and sizes: without argtypes ctypes would pass 32 bits.
        self._recv = libc.recv
        self._recv.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        self._recv.restype = ctypes.c_ssize_t
        self._send = libc.send
        self._send.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        self._send.restype = ctypes.c_ssize_t
        self._accept = libc.accept4
        self._accept.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int]
        self._getsockopt = libc.getsockopt
        self._getsockopt.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
        self._setsockopt = libc.setsockopt
        self._setsockopt.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
        self._getpeername = libc.getpeername
        self._getpeername.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
        self._getsockname = libc.getsockname
        self._getsockname.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
        self._shutdown = libc.shutdown
        self._shutdown.argtypes = [ctypes.c_int, ctypes.c_int]
        self._value = ctypes.c_uint64()
        self._size = ctypes.c_uint32()
        self._value_at = ctypes.byref(self._value)
        self._size_at = ctypes.byref(self._size)
        self._name = ctypes.create_string_buffer(28)  # struct sockaddr_in6

    def accept(self, listener: int) -> int:
        """A non-blocking descriptor, or -1: none is waiting, or there are too many open."""
        found: int = self._accept(listener, None, None, socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        return found

    def recv(self, fd: int, size: int = CHUNK) -> int:
        """Bytes read into `buffer`, 0 at the end of the stream, BLOCKED or FAILED."""
        n: int = self._recv(fd, self._address, size, socket.MSG_DONTWAIT)
        if n >= 0:
            return n
        return BLOCKED if ctypes.get_errno() in _RETRY else FAILED

    def peek(self, fd: int) -> int:
        """As `recv`, of one byte that stays there."""
        n: int = self._recv(fd, self._address, 1, socket.MSG_DONTWAIT | socket.MSG_PEEK)
        if n >= 0:
            return n
        return BLOCKED if ctypes.get_errno() in _RETRY else FAILED

    def send_buffer(self, fd: int, size: int, start: int = 0) -> int:
        """Send buffer[start:size].  :returns: bytes sent, BLOCKED (also while connecting) or FAILED"""
        n: int = self._send(fd, self._address + start, size - start, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        return n if n >= 0 else self._send_error()

    def send(self, fd: int, data: bytes) -> int:
        """As `send_buffer`, of `data`."""
        n: int = self._send(fd, data, len(data), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        return n if n >= 0 else self._send_error()

    def _send_error(self) -> int:
        error = ctypes.get_errno()
        return BLOCKED if error in _RETRY or error in _NOT_CONNECTED_YET else FAILED

    def shutdown(self, fd: int, how: int) -> None:
        """Errors are not of interest: the other side may have been quicker."""
        self._shutdown(fd, how)

    def reset_on_close(self, fd: int) -> None:
        self._setsockopt(fd, socket.SOL_SOCKET, socket.SO_LINGER, _RESET, len(_RESET))

    def cookie(self, fd: int) -> int:
        """The socket's cookie: never used twice, unlike descriptors.  0: it is no socket."""
        return self._option(fd, _SO_COOKIE)

    def netns(self, fd: int) -> int:
        """Cookie of the network namespace in which the socket was made."""
        return self._option(fd, _SO_NETNS_COOKIE)

    def _option(self, fd: int, option: int) -> int:
        self._size.value = 8
        if self._getsockopt(fd, socket.SOL_SOCKET, option, self._value_at, self._size_at):
            return 0
        return self._value.value

    def peer(self, fd: int) -> Endpoint | None:
        """getpeername(2); None if it is not connected any more."""
        self._size.value = 28
        return None if self._getpeername(fd, self._name, self._size_at) else self._endpoint()

    def local(self, fd: int) -> Endpoint | None:
        """getsockname(2)."""
        self._size.value = 28
        return None if self._getsockname(fd, self._name, self._size_at) else self._endpoint()

    def _endpoint(self) -> Endpoint | None:
        raw = self._name.raw
        family = int.from_bytes(raw[:2], "little" if _LITTLE else "big")
        port = raw[2] << 8 | raw[3]
        if family == socket.AF_INET:
            return Endpoint(_MAPPED + raw[4:8], port)
        return Endpoint(raw[8:24], port) if family == socket.AF_INET6 else None

    def close_all(self, fds: list[int]) -> None:
        """Close descriptors whose peers are gone, with resets: a packet and a system call less than an orderly end."""
        setsockopt = self._setsockopt
        for fd in fds:
            setsockopt(fd, socket.SOL_SOCKET, socket.SO_LINGER, _RESET, 8)
        for first, end in runs(fds):
            # close_range(2) for neighbours, which those of one batch mostly are.
            if end - first > 1:
                os.closerange(first, end)
            else:
                os.close(first)


_LITTLE: Final = struct.pack("=H", 1) == b"\x01\x00"


def runs(fds: list[int]) -> list[tuple[int, int]]:
    """Ranges [first, end) of neighbouring numbers; sorts `fds`."""
    fds.sort()
    found: list[tuple[int, int]] = []
    start = 0
    for i in range(1, len(fds) + 1):
        if i == len(fds) or fds[i] != fds[i - 1] + 1:
            found.append((fds[start], fds[i - 1] + 1))
            start = i
    return found
