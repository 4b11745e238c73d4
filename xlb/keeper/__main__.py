"""`python -m xlb.keeper`: options, signals, and the process around the keeper."""

from __future__ import annotations

import argparse
import gc
import os
import resource
import signal
import socket
import sys
from pathlib import Path
from types import FrameType
from typing import Final

from bpf.layout import LayoutError
from bpf.maps import BpfError
from xlb.keeper.control import ControlError
from xlb.keeper.estate import EstateError
from xlb.keeper.handover import NAME as HANDOVER
from xlb.keeper.handover import Claim, HandoverError
from xlb.keeper.keeper import Keeper, KeeperError, Settings
from xlb.keeper.loop import Loop
from xlb.keeper.pins import Pins, PinsError
from xlb.keeper.records import RecordsError
from xlb.keeper.sockets import IN, Endpoint

_PATIENCE: Final = 10  # seconds that a takeover may last
_MOST_FDS: Final = 1 << 20  # more would cost memory for the table of kinds


class _Wake:
    """A signal has come: epoll would else wait on, as Python restarts it."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._here, self._there = socket.socketpair()
        for end in (self._here, self._there):
            end.setblocking(False)
        signal.set_wakeup_fd(self._there.fileno())
        loop.watch_object(self._here.fileno(), self, IN)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._loop.stop()

    def on_events(self, fd: int, events: int) -> None:
        self._here.recv(64)

    def abandon(self, fd: int) -> None:
        self._loop.stop()


def _settings(argv: list[str] | None) -> tuple[Settings, bool]:
    """:returns: also whether to take over"""
    parser = argparse.ArgumentParser(prog="python -m xlb.keeper", description=__doc__)
    parser.add_argument("--instance", required=True, help="whose pinned programs and maps to use")
    parser.add_argument("--run-dir", required=True, type=Path, help="where keeper.pid and keeper.sock go")
    parser.add_argument("--address", required=True, help="IPv4 loopback address to listen on")
    parser.add_argument("--port", required=True, type=int, help="TCP port to listen on; 0: any")
    parser.add_argument("--take-over", action="store_true", help="from the keeper that runs: all its connections")
    options = parser.parse_args(argv)
    try:
        listener = Endpoint.parse(options.address, options.port)
    except OSError:
        parser.error(f"--address {options.address} is not an IP address")
    if not listener.is_ip4 or not listener.is_loopback or not 0 <= options.port < 65536:
        parser.error("--address must be an IPv4 loopback address, --port below 65536")
    return Settings(options.instance, options.run_dir, listener, _raise_limit()), options.take_over


def _raise_limit() -> int:
    """Allow as many descriptors as we may.  :returns: how many"""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FDS if hard == resource.RLIM_INFINITY else min(hard, _MOST_FDS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most


def _take_over(keeper: Keeper, path: Path) -> None:
    """Raises HandoverError, EstateError, KeeperError, BpfError or OSError: then the keeper that runs goes on."""
    # It may have given us up and go on, and as long as we have its descriptors too, what it closes does not end.  So
    # we end by SIGALRM if we hang, as by any other signal up to the moment when everything is ours.
    signal.alarm(_PATIENCE)
    claim = Claim(path)
    _keep_what_there_is()
    keeper.inherit(claim.take())
    signal.alarm(0)
    _Wake(keeper.loop)
    claim.confirm()
    keeper.succeed()


def _keep_what_there_is() -> None:
    """What lives until the end is not searched for cycles; nothing makes any on the way."""
    gc.collect()
    gc.freeze()
    gc.disable()


def main(argv: list[str] | None = None) -> int:
    """:returns: exit code: 0 after `stop` or SIGTERM or when a successor has everything, 1 if it cannot start"""
    settings, is_heir = _settings(argv)
    try:
        keeper = Keeper(settings, Pins(settings.instance))
        if is_heir:
            _take_over(keeper, settings.run_dir / HANDOVER)
        else:
            _Wake(keeper.loop)
        try:
            if not is_heir:
                keeper.start()
                _keep_what_there_is()
            keeper.run()
        finally:
            keeper.close()
        if keeper.given:
            sys.stderr.flush()
            os._exit(0)  # connections that the successor closes do not end before our duplicates do
    except (
        *(KeeperError, ControlError, HandoverError, EstateError),
        *(RecordsError, LayoutError, PinsError, BpfError, OSError),
    ) as error:
        print(f"keeper: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
