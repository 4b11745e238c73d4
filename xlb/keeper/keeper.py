"""The keeper put together: who hears of which event, what is done once a second, and the end."""

from __future__ import annotations

import gc
import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from xlb.keeper.accepted import Accepted
from xlb.keeper.clients import Clients
from xlb.keeper.control import Control
from xlb.keeper.destinations import Destinations
from xlb.keeper.endings import Endings
from xlb.keeper.framer import Framer
from xlb.keeper.inject import InjectError, Injectors, Throttle, Tools
from xlb.keeper.kernel import Kernel
from xlb.keeper.loop import ACCEPTED, UPSTREAM, Loop, complain
from xlb.keeper.pins import Pins
from xlb.keeper.pools import Pools, Upstream
from xlb.keeper.records import ConnRecord, EventRecord
from xlb.keeper.relay import Relays
from xlb.keeper.sockets import IN, RECEIVE_BUFFER, Endpoint, Sockets
from xlb.keeper.spill import Spill, SpillEnd

_BACKLOG: Final = 65535  # the kernel lowers it to net.core.somaxconn
_SECOND: Final = 1.0
# Seconds for which the ring does not wake us after it brought nothing but ends of connections: these come with every
# short connection.  What is urgent makes some socket readable too, and then the ring is read as well.
_CALM: Final = 0.002
_COLLECT: Final = 60  # seconds between searches for reference cycles, which only exceptions make
_LIMIT: Final = 1 << 20  # of a client's queue, when the configuration has none


class KeeperError(Exception):
    """The keeper cannot start; the message says why."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Command line."""

    instance: str
    run_dir: Path
    listener: Endpoint  # port 0: any
    max_fds: int


class Keeper:
    """Everything of one process."""

    def __init__(self, settings: Settings, pins: Pins) -> None:
        """Raises PinsError, ControlError, RecordsError, LayoutError or BpfError; announces nothing yet."""
        self._settings = settings
        self._started = time.monotonic()
        self._pid_file = settings.run_dir / "keeper.pid"
        sockets = Sockets()
        self.loop = Loop(settings.max_fds)
        self._kernel = kernel = Kernel(pins, sockets)
        injectors = Injectors(sockets, kernel)
        self._tools = Tools(self.loop, sockets, kernel, injectors, Throttle(self.loop, kernel))
        self._accepted = Accepted(self.loop, sockets, kernel)
        self._endings = Endings(self._tools, self._accepted)
        self._relays = Relays(self._tools, self._accepted)
        self._clients = Clients(self._tools, self._accepted, self._endings, self._relays)
        # The rest of the descriptors is for accepted connections.
        self._pools = Pools(self.loop, sockets, kernel, most=settings.max_fds // 3)
        self._destinations = Destinations(self.loop, kernel, self._pools)
        self._spills: dict[int, Spill] = {}  # by cookie of U
        self._spills_total = 0
        self._lost_before = kernel.lost_events()
        self._ticks = 0
        self._response_limit = _LIMIT
        self._pools.on_spill = self._spill
        self._pools.on_backend_gone = self._clients.on_backend_gone
        self._clients.on_reset = self._reset_upstream
        self._handlers = self._event_handlers()
        self._close = kernel.codes.event.close
        self._asked: set[tuple[int, int]] = set()  # pools and clients of the events being read
        self._ring_muted = False
        self._announced: Endpoint | None = None
        self._control = Control(
            self.loop,
            sockets,
            settings.run_dir / "keeper.sock",
            {"refresh": self._refresh, "status": self._status, "stop": self._stop},
        )

    def start(self) -> None:
        """Listen, and let the connect hooks know.  Raises KeeperError or BpfError."""
        asked = self._settings.listener
        listener = self._listen(asked)
        listener6 = self._listen6()
        port6 = 0
        if listener6 is not None:
            port6 = int(listener6.getsockname()[1])
            self._accepted.add_listener(listener6.detach())
        announced = Endpoint(asked.address, int(listener.getsockname()[1]))
        self._accepted.add_listener(listener.detach())
        self.loop.watch_object(self._kernel.ring_fd, self, IN)
        self.loop.before = self._read_ring
        self.loop.after = self._accepted.bury
        self.loop.at(self.loop.now + _SECOND, self._every_second)
        self._pools.start()
        self._destinations.start()
        self._read_limits()
        self._pid_file.write_text(Path("/proc/self/stat").read_text())
        self._kernel.announce(announced, port6)
        self._announced = announced

    @staticmethod
    def _listen(asked: Endpoint) -> socket.socket:
        try:
            made = socket.socket(asked.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # What it accepts inherits this.
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
            made.bind((asked.host, asked.port))
            made.listen(_BACKLOG)
        except OSError as error:
            raise KeeperError(
                f"cannot listen on {asked}: {error.strerror}: choose another --address or --port"
            ) from error
        return made

    @classmethod
    def _listen6(cls) -> socket.socket | None:
        """For clients that can reach IPv6 only; None where there is none."""
        try:
            return cls._listen(Endpoint.parse("::1", 0))
        except KeeperError:
            return None

    def run(self) -> None:
        """Until `stop`."""
        self.loop.run({ACCEPTED: self._accepted, UPSTREAM: self._pools})

    def close(self) -> None:
        """Capture nothing any more, then end everything."""
        if self._announced is not None:
            self._kernel.withdraw(self._announced)
        self._accepted.accept()
        self._relays.close_all()
        self._clients.close_all()
        for spill in list(self._spills.values()):
            spill.client_gone()
        self._endings.close_all()
        self._destinations.close_all()
        self._pools.close_all()
        self._accepted.close_all()
        self._tools.injectors.close()
        self._control.close()
        self.loop.shut()
        self._pid_file.unlink(missing_ok=True)

    # ---- events of the programs

    def on_events(self, fd: int, events: int) -> None:
        """The ring has been read before all else."""

    def abandon(self, fd: int) -> None:
        """The ring is not to be given up."""

    def _event_handlers(self) -> Mapping[int, Callable[[EventRecord], None]]:
        event = self._kernel.codes.event
        return {
            event.client_gone: self._on_client_gone,
            event.backend_gone: self._on_backend_gone,
            event.pool_empty: self._on_pool_empty,
            event.retire: self._on_retire,
            event.irregular: lambda _: self._accepted.accept(),
            event.upload: lambda _: self._accepted.accept(),
            event.spill: self._on_spill,
            event.ready: lambda e: self._clients.on_ready(e.client),
            event.destination: lambda e: self._destinations.want(e.client),
            event.close: lambda e: self._endings.add(e.client),
        }

    def _read_ring(self) -> None:
        seen = urgent = 0
        for event in self._kernel.events():
            seen += 1
            urgent += event.type != self._close
            handler = self._handlers.get(event.type)
            if handler is None:
                continue
            try:
                handler(event)
            except Exception:
                complain(f"event {event.type}")
        if self._asked:
            self._asked.clear()
        if seen and not urgent and not self._ring_muted:
            self._ring_muted = True
            self.loop.mute(self._kernel.ring_fd, True)
            self.loop.at(self.loop.now + _CALM, self._unmute_ring)

    def _unmute_ring(self) -> None:
        self._ring_muted = False
        self.loop.mute(self._kernel.ring_fd, False)

    def _on_pool_empty(self, event: EventRecord) -> None:
        # When we were slow, a client may have met the empty pool several times: it needs one connection all the same.
        asked = (event.pool, event.client)
        if asked not in self._asked:
            self._asked.add(asked)
            self._pools.grow(event.pool)

    def _on_client_gone(self, event: EventRecord) -> None:
        spill = self._spills.get(event.upstream)
        if spill is not None:
            spill.client_gone()
        else:
            self._reset_upstream(event.upstream)

    def _on_backend_gone(self, event: EventRecord) -> None:
        gone = self._kernel.codes.gone
        # A spilled response ends when all of it has been read from U.
        if not event.arg & gone.spilled:
            self._clients.on_backend_gone(event.client, event.backend, event.arg)
        if event.arg & gone.malformed:
            self._reset_upstream(event.upstream)

    def _on_retire(self, event: EventRecord) -> None:
        upstream = self._pools.find(event.upstream)
        if upstream is not None and event.upstream not in self._spills:
            self._pools.drop(upstream, reset=False)

    def _reset_upstream(self, cookie: int) -> None:
        upstream = self._pools.find(cookie)
        if upstream is not None and cookie not in self._spills:
            self._pools.drop(upstream, reset=True)

    # ---- spilled responses

    def _on_spill(self, event: EventRecord) -> None:
        upstream = self._pools.find(event.upstream)
        backend = self._kernel.conn(event.backend)
        if upstream is not None and backend is not None and backend.spilled and backend.peer == event.client:
            self._spill(upstream, backend)

    def _spill(self, upstream: Upstream, backend: ConnRecord) -> None:
        """The rest of B's response comes by U."""
        if upstream.cookie in self._spills:
            return
        client, self_cookie = backend.peer, backend.self
        framer = Framer.of_response(backend.frame, bool(backend.head))

        def ended(spill: Spill, how: SpillEnd) -> None:
            self._spill_ended(upstream, self_cookie, spill, how)

        self.loop.unwatch(upstream.fd)
        try:
            spill = Spill(self._tools, upstream.fd, client, framer, self._response_limit, ended)
        except InjectError:
            complain("spill")
            if self._kernel.take(client, self_cookie):
                self._endings.end_now(client)
            self._pools.drop(upstream, reset=True)
            return
        self._spills_total += 1
        self._spills[upstream.cookie] = spill
        spill.begin()

    def _spill_ended(self, upstream: Upstream, backend: int, spill: Spill, how: SpillEnd) -> None:
        del self._spills[upstream.cookie]
        kernel = self._kernel
        reusable = how is SpillEnd.REUSABLE and not upstream.retiring
        conn = kernel.conn(spill.client) if how is not SpillEnd.CLIENT_GONE else None
        kernel.release(spill.client, backend, reusable)
        if reusable:
            self.loop.watch(upstream.fd, UPSTREAM)
        else:
            self._pools.drop(upstream, reset=how in (SpillEnd.TRUNCATED, SpillEnd.CLIENT_GONE))
        if conn is None:
            return
        closing = kernel.codes.closing
        if how is SpillEnd.TRUNCATED:
            self._endings.end_now(spill.client)
        elif how is SpillEnd.COMPLETE or conn.closing & (closing.client | closing.backend):
            self._endings.add(spill.client)
        else:
            self._clients.on_ready(spill.client)

    # ---- once a second

    def _every_second(self) -> None:
        self.loop.at(self.loop.now + _SECOND, self._every_second)
        self._ticks += 1
        self._pools.look_after()
        self._destinations.look_after()
        self._relays.look_after()
        if self._ticks % _COLLECT == 0:
            gc.collect()

    def _read_limits(self) -> None:
        limits = self._kernel.limits()
        self._response_limit = limits.response or _LIMIT
        self._relays.limit = self._response_limit
        self._clients.upload_limit = limits.upload

    # ---- control

    def _refresh(self) -> Mapping[str, Any]:
        self._read_limits()
        self._pools.refresh()
        self._destinations.refresh()
        return {}

    def _stop(self) -> Mapping[str, Any]:
        self.loop.stop()
        return {}

    def _status(self) -> Mapping[str, Any]:
        announced = self._announced
        return {
            "pid": os.getpid(),
            "uptime": round(time.monotonic() - self._started, 3),
            "listener": str(announced) if announced else None,
            "accepted": self._accepted.total,
            "open": {"A": self._accepted.count, "U": len(self._pools), "E": len(self._relays.open)},
            "relays": {"open": len(self._relays.open), "total": self._relays.total, "parked": self._clients.parked},
            "spills": {"open": len(self._spills), "total": self._spills_total},
            "uploads": {"open": self._clients.uploads, "total": self._clients.uploads_total},
            "destinations": len(self._destinations),
            "pools": [
                {
                    "pool": pool.number,
                    "endpoint": str(pool.target.endpoint),
                    "generation": pool.target.generation,
                    "open": len(pool.members),
                    "idle": self._pools.idle(pool),
                    "connecting": pool.young,
                    "remote": pool.remote_until > self.loop.now,
                }
                for pool in self._pools
            ],
            "opened": self._pools.opened,
            "connect_failures": self._pools.failures,
            "injected_errors": self._clients.injected + self._relays.injected,
            "lost_events": self._kernel.lost_events() - self._lost_before,
        }
