"""gRPC channel and server settings, and addresses, shared by the ADS client and servers."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from pathlib import Path
from typing import Final

Option = tuple[str, int]

# Istio's own agent lifts the limit altogether; the gRPC default of 4 MiB breaks at a few hundred services.
MAX_MESSAGE_BYTES: Final = 256 << 20
KEEPALIVE_SECONDS: Final = 30  # istiod refuses pings that come more often than every 15 s
# sizeof(sockaddr_un.sun_path) - 1, Linux
_MAX_UNIX_PATH: Final = 107


def client_options(max_message_bytes: int = MAX_MESSAGE_BYTES) -> list[Option]:
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.keepalive_time_ms", KEEPALIVE_SECONDS * 1000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.max_pings_without_data", 0),
        # Each attempt has its own channel; with the shared pool it would inherit the waiting time of the one before.
        ("grpc.use_local_subchannel_pool", 1),
        # An xDS server is never reached through the proxy that http_proxy names.
        ("grpc.enable_http_proxy", 0),
    ]


def server_options(max_message_bytes: int = MAX_MESSAGE_BYTES) -> list[Option]:
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        # Without this a second server on the same port starts without complaint and takes half of the connections.
        ("grpc.so_reuseport", 0),
        # The default takes a client that pings every 30 s for an attacker.
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
        ("grpc.http2.max_ping_strikes", 0),
    ]


def check_target(target: str) -> str:
    """Check an address of the form HOST:PORT, [IPV6]:PORT or unix:///PATH.

    :returns: it, as gRPC takes it
    :raises ValueError: naming the address and the forms allowed
    """
    if target.startswith("unix://"):
        path = target.removeprefix("unix://")
        if not path.startswith("/"):
            raise ValueError(f"{target!r}: a Unix socket is given as unix:///absolute/path")
        check_unix_path(Path(path))
        return f"unix:{path}"
    host, colon, port = target.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535 or (":" in host and host[0] != "["):
        raise ValueError(f"{target!r} is not an address: use HOST:PORT, [IPV6]:PORT or unix:///PATH")
    return target


def check_unix_path(path: Path) -> None:
    """:raises ValueError: if the kernel cannot take a socket path of this length"""
    if len(os.fsencode(path)) > _MAX_UNIX_PATH:
        raise ValueError(
            f"Unix socket path {path} is longer than the kernel's {_MAX_UNIX_PATH} bytes: use a shorter one"
        )


def claim_unix_path(path: Path) -> None:
    """Make a path free for a new Unix socket: remove the socket of a dead process, never that of a living one.

    gRPC and asyncio remove whatever socket is there before they bind, a living server's included.

    :raises OSError: if another process listens there, or something that is not a socket is in the way
    """
    check_unix_path(path)
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FileExistsError(f"{path} exists and is not a socket")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            return
    raise FileExistsError(f"another process listens on {path}")
