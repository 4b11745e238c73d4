"""The loopback address of an instance: where its keeper and its Envoy listen."""

from __future__ import annotations

import hashlib
import ipaddress
import socket
from collections.abc import Iterator
from typing import Final

_ATTEMPTS: Final = 64


class AddressError(Exception):
    """One line that says what to do."""


def candidates(instance: str) -> Iterator[ipaddress.IPv4Address]:
    """127.<64..127>.x.y by the instance's name: always the same ones, in the same order."""
    for attempt in range(_ATTEMPTS):
        digest = hashlib.blake2b(f"{instance}/{attempt}".encode(), digest_size=3).digest()
        # 0 and 255 in the last place look like network and broadcast addresses to some software.
        yield ipaddress.IPv4Address(bytes((127, 64 + digest[0] % 64, digest[1], 1 + digest[2] % 254)))


def choose(instance: str, port: int, configured: ipaddress.IPv4Address | None = None) -> ipaddress.IPv4Address:
    """An address on which nobody has `port`.  Raises AddressError."""
    tried = [configured] if configured is not None else [*candidates(instance)]
    for address in tried:
        if _is_free(address, port):
            return address
    if configured is not None:
        raise AddressError(
            f"{configured}:{port} is in use: end what listens there, or give another address in the configuration"
        )
    raise AddressError(f"port {port} is in use on every address tried: set `address` in the configuration")


def _is_free(address: ipaddress.IPv4Address, port: int) -> bool:
    with socket.socket() as probe:
        # As servers do: a connection in TIME_WAIT is not in the way.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((str(address), port))
            probe.listen(1)
        except OSError:
            return False
    return True
