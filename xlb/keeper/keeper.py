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
from xlb.keeper.control import Action, Control
from xlb.keeper.destinations import Destinations
from xlb.keeper.endings import Endings
from xlb.keeper.estate import Estate, Packed, pack, unpack
from xlb.keeper.handover import NAME as HANDOVER
from xlb.keeper.handover import Offer
from xlb.keeper.inject import Injectors, Throttle, Tools
from xlb.keeper.kernel import Kernel
from xlb.keeper.loop import ACCEPTED, UPSTREAM, Loop, complain
from xlb.keeper.pins import Pins
from xlb.keeper.pools import Pools
from xlb.keeper.records import EventRecord
from xlb.keeper.relay import Relays
from xlb.keeper.sockets import IN, RECEIVE_BUFFER, Endpoint, Sockets
from xlb.keeper.spills import Spills

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
        """Raises PinsError, RecordsError, LayoutError or BpfError.  Nobody notices it before `start` or `succeed`."""
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
        self._spills = Spills(self._tools, self._pools, self._clients, self._endings)
        self._lost_before = kernel.lost_events()
        self._ticks = 0
        self._pools.on_backend_gone = self._clients.on_backend_gone
        self._clients.on_reset = self._reset_upstream
        self._handlers = self._event_handlers()
        self._close = kernel.codes.event.close
        self._asked: set[tuple[int, int]] = set()  # pools and clients of the events being read
        self._ring_muted = False
        self._announced: Endpoint | None = None
        self._port6 = 0
        self._control: Control | None = None
        self._offer: Offer | None = None
        self._given = False  # a successor has everything
        self._left: Estate | None = None  # until the predecessor lets go of it
        self._taken: Mapping[str, Any] | None = None  # what was taken over, for the status

    def start(self) -> None:
        """Listen, and let the connect hooks know.  Raises KeeperError, ControlError, OSError or BpfError."""
        self._open_doors()
        asked = self._settings.listener
        listener = self._listen(asked)
        listener6 = self._listen6()
        if listener6 is not None:
            self._port6 = int(listener6.getsockname()[1])
            self._accepted.add_listener(listener6.detach())
        announced = Endpoint(asked.address, int(listener.getsockname()[1]))
        self._accepted.add_listener(listener.detach())
        self._begin()
        self._pools.start()
        self._destinations.start()
        self._leave_pid()
        self._kernel.announce(announced, self._port6)
        self._announced = announced

    def _open_doors(self, control: int = -1, handover: int = -1) -> Control:
        """The Unix sockets; -1: new ones."""
        actions: Mapping[str, Action] = {"refresh": self._refresh, "status": self._status, "stop": self._stop}
        path = self._settings.run_dir / "keeper.sock"
        self._control = Control(self.loop, self._tools.sockets, path, actions, control)
        self._offer = Offer(self.loop, self._settings.run_dir / HANDOVER, self._pack, self._on_given, handover)
        return self._control

    def _begin(self) -> None:
        self.loop.watch_object(self._kernel.ring_fd, self, IN)
        self.loop.before = self._read_ring
        self.loop.after = self._accepted.bury
        self.loop.at(self.loop.now + _SECOND, self._every_second)
        self._read_limits()

    def _leave_pid(self) -> None:
        """Who reads it sees the old or the new one."""
        part = self._pid_file.with_name(self._pid_file.name + ".part")
        part.write_text(Path("/proc/self/stat").read_text())
        part.replace(self._pid_file)

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

    @property
    def given(self) -> bool:
        """Whether a successor has everything: then only duplicates of its descriptors are left here."""
        return self._given

    def close(self) -> None:
        """Capture nothing any more, then end everything; nothing if it is a successor's."""
        if self._given:
            return
        if self._announced is not None:
            self._kernel.withdraw(self._announced)
        self._accepted.accept()
        self._relays.close_all()
        self._clients.close_all()
        self._spills.close_all()
        self._endings.close_all()
        self._destinations.close_all()
        self._pools.close_all()
        self._accepted.close_all()
        self._tools.injectors.close()
        if self._offer is not None:
            self._offer.close()
        # Without it, another keeper has these names.
        if self._control is not None:
            self._control.close()
            self._pid_file.unlink(missing_ok=True)
        self.loop.shut()

    # ---- handover

    def _pack(self) -> Packed:
        frozen = time.monotonic()
        if self._announced is None or self._control is None or self._offer is None:
            raise KeeperError("there is nothing to hand over yet")
        pools, upstreams = self._pools.save()
        return pack(
            Estate(
                pid=os.getpid(),
                frozen=frozen,
                listener=self._announced,
                port6=self._port6,
                listeners=self._accepted.listeners,
                control=self._control.fd,
                handover=self._offer.fd,
                free=self._destinations.free,
                generation=self._destinations.generation,
                at_rest=self._endings.at_rest,
                totals=self._totals(),
                accepted=self._accepted.save(),
                talks=self._control.save(),
                pools=pools,
                leads=self._destinations.save(pools),
                upstreams=upstreams,
                relays=self._relays.save(),
                spills=self._spills.save(),
                uploads=self._clients.save_uploads(),
                parked=self._clients.save_parked(),
                endings=self._endings.save(),
            )
        )

    def _on_given(self) -> None:
        self._given = True
        self.loop.stop()

    def inherit(self, packed: Packed) -> None:
        """Be ready to go on where a predecessor stands still: nobody notices yet.

        Raises EstateError, KeeperError or BpfError: then, and as long as the predecessor has not let go, this one must
        not be closed, which would end its connections.
        """
        left = unpack(packed)
        asked = self._settings.listener
        if left.listener.address != asked.address or asked.port not in (0, left.listener.port):
            raise KeeperError(f"the running keeper listens on {left.listener}, this one was to listen on {asked}")
        self.loop.now = time.monotonic()
        try:
            self._restore(left)
        except (KeyError, IndexError) as error:
            raise KeeperError(f"the running keeper's state does not fit together: {error!r}") from error
        self._begin()
        self._left = left

    def succeed(self) -> None:
        """The predecessor has let go: go on, in place of `start`."""
        try:
            self._leave_pid()
        except OSError:
            complain("pid file")  # nobody is helped by our end
        # Tables may have changed since it looked at them.
        self.loop.at(self.loop.now, self._look_anew)
        left, self._left = self._left, None
        if left is not None:
            self._taken = {
                "from": left.pid,
                "stood_still_ms": round((time.monotonic() - left.frozen) * 1000, 1),
                "open": self._open(),
                **{name: len(getattr(left, name)) for name in ("relays", "spills", "uploads", "parked", "endings")},
            }

    def _restore(self, left: Estate) -> None:
        self._announced = left.listener
        self._port6 = left.port6
        self._open_doors(left.control, left.handover).restore(left.talks)
        self._set_totals(left.totals)
        for fd in left.listeners:
            self._accepted.add_listener(fd)
        self._accepted.restore(left.accepted)
        spilled = {spill.upstream for spill in left.spills}
        pools = self._pools.restore(left.pools, left.upstreams, spilled)
        self._destinations.restore(left.leads, pools, left.free, left.generation)
        self._relays.restore(left.relays)
        self._clients.restore(left.parked, left.uploads)
        self._endings.restore(left.endings, left.at_rest)
        self._spills.restore(left.spills)

    def _totals(self) -> Mapping[str, int]:
        return {
            "accepted": self._accepted.total,
            "relays": self._relays.total,
            "spills": self._spills.total,
            "uploads": self._clients.uploads_total,
            "opened": self._pools.opened,
            "failures": self._pools.failures,
            "injected_by_clients": self._clients.injected,
            "injected_by_relays": self._relays.injected,
            "lost_before": self._lost_before,
        }

    def _set_totals(self, totals: Mapping[str, int]) -> None:
        self._accepted.total = totals.get("accepted", 0)
        self._relays.total = totals.get("relays", 0)
        self._spills.total = totals.get("spills", 0)
        self._clients.uploads_total = totals.get("uploads", 0)
        self._pools.opened = totals.get("opened", 0)
        self._pools.failures = totals.get("failures", 0)
        self._clients.injected = totals.get("injected_by_clients", 0)
        self._relays.injected = totals.get("injected_by_relays", 0)
        self._lost_before = totals.get("lost_before", self._lost_before)

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
            event.spill: self._spills.on_event,
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
        if not self._spills.client_gone(event.upstream):
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
        self._spills.limit = self._relays.limit = limits.response or _LIMIT
        self._clients.upload_limit = limits.upload

    # ---- control

    def _refresh(self) -> Mapping[str, Any]:
        self._look_anew()
        return {}

    def _look_anew(self) -> None:
        self._read_limits()
        self._pools.refresh()
        self._destinations.refresh()

    def _stop(self) -> Mapping[str, Any]:
        self.loop.stop()
        return {}

    def _open(self) -> Mapping[str, int]:
        return {"A": self._accepted.count, "U": len(self._pools), "E": len(self._relays.open)}

    def _status(self) -> Mapping[str, Any]:
        announced = self._announced
        return {
            "pid": os.getpid(),
            "took_over": self._taken,
            "uptime": round(time.monotonic() - self._started, 3),
            "listener": str(announced) if announced else None,
            "accepted": self._accepted.total,
            "open": self._open(),
            "relays": {"open": len(self._relays.open), "total": self._relays.total, "parked": self._clients.parked},
            "spills": {"open": len(self._spills), "total": self._spills.total},
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
