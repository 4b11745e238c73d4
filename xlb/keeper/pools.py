"""The pooled upstream connections U: opened when a pool was found empty, closed when they are not needed.

The kernel puts the accepted side B of each on its pool's stack as soon as it is established.  We keep U and wait for
its end; bytes on it are a response that has left the kernel's way, or leftovers of one that nobody wants.
"""

from __future__ import annotations

import errno
import socket
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from bpf.maps import BpfError
from xlb.keeper.clients import is_until_close
from xlb.keeper.estate import PoolEstate, UpstreamEstate
from xlb.keeper.kernel import Destination, Kernel, PoolTarget
from xlb.keeper.loop import UPSTREAM, Loop, complain
from xlb.keeper.pool import Pool, surplus
from xlb.keeper.records import ConnRecord
from xlb.keeper.sockets import BLOCKED, BROKEN, FAILED, RECEIVE_BUFFER, Sockets

_SEEN_WITHIN: Final = 0.05  # seconds after which a connection without a B is one to another node
_CONNECT_TIMEOUT: Final = 5.0  # seconds
_SWEPT: Final = 64  # connections looked at in a second


@dataclass(slots=True, eq=False)
class Upstream:
    """One U."""

    fd: int
    cookie: int
    pool: Pool
    since: float  # when it began to connect
    young: bool = False  # its B has not been seen yet
    retiring: bool = False  # to be closed after the response in progress


class Pools:
    """All pools that have been used, and their connections."""

    def __init__(self, loop: Loop, sockets: Sockets, kernel: Kernel, most: int) -> None:
        """:param most: connections of all pools"""
        self._loop = loop
        self._sockets = sockets
        self._kernel = kernel
        self._most = most
        limits = kernel.codes.limits
        self._own_range = range(limits.max_pools - limits.destinations, limits.max_pools)
        self._pools: dict[int, Pool] = {}
        self._by_fd: dict[int, Upstream] = {}
        self._by_cookie: dict[int, Upstream] = {}
        self._young: deque[Upstream] = deque()
        self._young_scheduled = False
        self._retiring: set[Upstream] = set()
        self._remote: set[Pool] = set()
        self._to_sweep: list[int] = []
        self.opened = 0
        self.failures = 0
        # A response comes by this U to this client from here on: B's cookie and state.
        self.on_spill: Callable[[Upstream, ConnRecord], None] = _no_spill
        # client, B, enum xlb_gone_flags
        self.on_backend_gone: Callable[[int, int, int], None] = _no_client

    def start(self) -> None:
        """Take back what a predecessor said of pools: the programs do not ask for connections of remote ones."""
        self._kernel.clear_pool_flags()

    def __len__(self) -> int:
        return len(self._by_fd)

    def __iter__(self) -> Iterator[Pool]:
        return iter(self._pools.values())

    def find(self, cookie: int) -> Upstream | None:
        return self._by_cookie.get(cookie)

    # ---- handover

    def save(self) -> tuple[tuple[PoolEstate, ...], tuple[UpstreamEstate, ...]]:
        """For a successor: the pools, and the connections with the indexes of theirs."""
        current = set(self._pools.values())
        # Those that were given up live on in their connections.
        known = dict.fromkeys((*self._pools.values(), *(one.pool for one in self._by_fd.values())))
        index = {pool: number for number, pool in enumerate(known)}
        pools = tuple(pool.save(given_up=pool not in current, remote=pool in self._remote) for pool in known)
        upstreams = tuple(
            UpstreamEstate(one.fd, one.cookie, index[one.pool], one.since, one.young, one.retiring)
            for one in self._by_fd.values()
        )
        return pools, upstreams

    def restore(
        self, pools: Iterable[PoolEstate], upstreams: Iterable[UpstreamEstate], silent: Container[int]
    ) -> list[Pool]:
        """Of a predecessor.

        :param silent: cookies of those U that somebody else is to watch
        :returns: the pools, in the same order
        """
        known: list[Pool] = []
        for left in pools:
            pool = Pool.restore(left)
            known.append(pool)
            if not left.given_up:
                self._pools[pool.number] = pool
            if left.remote:
                self._remote.add(pool)
        for one in upstreams:
            pool = known[one.pool]
            upstream = Upstream(one.fd, one.cookie, pool, one.since, one.young, one.retiring)
            self._by_fd[one.fd] = self._by_cookie[one.cookie] = upstream
            pool.members.add(one.fd)
            pool.young += one.young
            if one.young:
                self._young.append(upstream)
            if one.retiring:
                self._retiring.add(upstream)
            if one.cookie not in silent:
                self._loop.watch(one.fd, UPSTREAM)
        self._schedule_young()
        return known

    # ---- opening

    def grow(self, number: int) -> None:
        """The pool was found empty: one connection more, if that is allowed."""
        pool = self._pools.get(number)
        if pool is None:
            # Those of our own range are made by `use`; the kernel may still ask for one that has just been given up.
            if number in self._own_range:
                return
            target = self._kernel.pool_target(number)
            if target is None:
                return
            pool = self.use(number, target)
        self.open(pool)

    def use(self, number: int, target: PoolTarget, destination: Destination | None = None) -> Pool:
        """Begin to use a pool number."""
        pool = Pool(number, target, self._kernel.pool_depth(number), destination)
        self._pools[number] = pool
        state = self._kernel.pool_state(number)
        state.flags &= ~self._kernel.codes.pool_flag.remote
        return pool

    def open(self, pool: Pool) -> None:
        """Begin one connection, within the pool's limits."""
        now = self._loop.now
        if len(self._by_fd) >= self._most or not pool.may_open(now):
            return
        fd = self._connect(pool)
        if fd < 0:
            self.failures += 1
            pool.failed(now)
            return
        cookie = self._sockets.cookie(fd)
        upstream = Upstream(fd, cookie, pool, now)
        self._by_fd[fd] = self._by_cookie[cookie] = upstream
        pool.members.add(fd)
        self.opened += 1
        self._loop.watch(fd, UPSTREAM)
        # On this node the connection is established by now, most likely.
        conn = self._kernel.conn(cookie)
        if conn is not None and conn.alt:
            pool.succeeded()
            return
        upstream.young = True
        pool.young += 1
        self._young.append(upstream)
        self._schedule_young()

    def _connect(self, pool: Pool) -> int:
        """A descriptor that is connecting, or -1."""
        endpoint = pool.target.endpoint
        try:
            made = socket.socket(endpoint.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        except OSError:
            complain(f"socket to {endpoint}")
            return -1
        try:
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
            self._kernel.own(made.fileno(), self._kernel.codes.role.u, pool.number, pool.destination)
            result = made.connect_ex((endpoint.host, endpoint.port))
        except (OSError, BpfError):
            complain(f"connection to {endpoint}")
            made.close()
            return -1
        if result not in (0, errno.EINPROGRESS):
            made.close()
            return -1
        return made.detach()

    # ---- is there anybody of ours at the other end?

    def _schedule_young(self) -> None:
        if self._young and not self._young_scheduled:
            self._young_scheduled = True
            self._loop.at(max(self._young[0].since + _SEEN_WITHIN, self._loop.now + 0.01), self._look_at_young)

    def _look_at_young(self) -> None:
        self._young_scheduled = False
        now = self._loop.now
        again: list[Upstream] = []
        while self._young and self._young[0].since + _SEEN_WITHIN <= now:
            upstream = self._young.popleft()
            if self._by_fd.get(upstream.fd) is not upstream or not upstream.young:
                continue
            conn = self._kernel.conn(upstream.cookie)
            if conn is None and now < upstream.since + _CONNECT_TIMEOUT:
                again.append(upstream)
            elif conn is None:
                self._refused(upstream)
            elif conn.alt:
                self._grown_up(upstream)
                upstream.pool.succeeded()
            else:
                self._remote_at(upstream)
        self._young.extendleft(reversed(again))
        self._schedule_young()

    def _grown_up(self, upstream: Upstream) -> None:
        if upstream.young:
            upstream.young = False
            upstream.pool.young -= 1

    def _refused(self, upstream: Upstream) -> None:
        self.failures += 1
        upstream.pool.failed(self._loop.now)
        self.drop(upstream, reset=True)

    def _remote_at(self, upstream: Upstream) -> None:
        """The other end is in no cgroup of ours: the kernel cannot redirect to it."""
        pool = upstream.pool
        if self._pools.get(pool.number) is pool:
            pool.seems_remote(self._loop.now)
            self._kernel.pool_state(pool.number).flags |= self._kernel.codes.pool_flag.remote
            self._remote.add(pool)
        self.drop(upstream, reset=False)

    # ---- events

    def on_events(self, fd: int, events: int) -> None:
        upstream = self._by_fd[fd]
        kernel = self._kernel
        conn = kernel.conn(upstream.cookie)
        if upstream.young and conn is None and events & BROKEN:
            self._refused(upstream)
            return
        backend = kernel.conn(conn.alt) if conn is not None else None
        # The ring keeps no order between processors, so its word is not waited for.
        if backend is not None and backend.spilled and backend.peer:
            self.on_spill(upstream, backend)
            return
        size = self._sockets.recv(fd)
        if size == BLOCKED:
            return
        if backend is not None and backend.peer and size <= 0:
            gone = kernel.codes.gone
            flags = gone.started if backend.response_bytes else 0
            if size != FAILED and is_until_close(backend):
                flags |= gone.until_close
            self.on_backend_gone(backend.peer, backend.self, flags)
        self.drop(upstream, reset=size != 0)

    def abandon_one(self, fd: int) -> None:
        upstream = self._by_fd.get(fd)
        if upstream is not None:
            self.drop(upstream, reset=True)

    # ---- closing

    def drop(self, upstream: Upstream, reset: bool) -> None:
        """Close U, and remove what the programs know of it and its B."""
        fd, pool = upstream.fd, upstream.pool
        if self._by_fd.get(fd) is not upstream:
            return
        del self._by_fd[fd]
        self._by_cookie.pop(upstream.cookie, None)
        pool.members.discard(fd)
        self._retiring.discard(upstream)
        self._grown_up(upstream)
        kernel = self._kernel
        conn = kernel.conn(upstream.cookie)
        if reset:
            self._sockets.reset_on_close(fd)
        self._loop.close(fd)
        if conn is not None and conn.alt:
            kernel.forget(conn.alt)
        kernel.forget(upstream.cookie)

    def retire(self, upstream: Upstream) -> None:
        """Close U as soon as no response is in progress on it."""
        conn = self._kernel.conn(upstream.cookie)
        backend = self._kernel.conn(conn.alt) if conn is not None else None
        if backend is not None and backend.state == self._kernel.codes.state.busy:
            # The programs could do that after the response, but would then end the client's connection too.
            upstream.retiring = True
            self._retiring.add(upstream)
        elif backend is None or self._kernel.retire(backend.self):
            self.drop(upstream, reset=False)
        else:
            upstream.retiring = True
            self._retiring.add(upstream)

    def give_up(self, pool: Pool) -> None:
        """Close the connections of a pool, and forget it; those in use end with their responses."""
        if self._pools.get(pool.number) is pool:
            del self._pools[pool.number]
        self._remote.discard(pool)
        for fd in list(pool.members):
            self.retire(self._by_fd[fd])

    def refresh(self) -> None:
        """The table of endpoints has changed: give up what is in it no more, or is another one now."""
        for pool in list(self._pools.values()):
            if pool.destination is None and self._kernel.pool_target(pool.number) != pool.target:
                self.give_up(pool)

    # ---- once a second

    def look_after(self) -> None:
        """Close what is not needed, and try anew what seemed to be remote."""
        now = self._loop.now
        for pool in [pool for pool in self._remote if pool.remote_until <= now]:
            self._remote.discard(pool)
            self._kernel.pool_state(pool.number).flags &= ~self._kernel.codes.pool_flag.remote
        for upstream in list(self._retiring):
            self.retire(upstream)
        self._sweep()
        for pool in list(self._pools.values()):
            if len(pool.members) > 1:
                self._shrink(pool, now)

    def _sweep(self) -> None:
        """Look at some connections: the event that told of their end may have been lost, or there was none."""
        if not self._to_sweep:
            self._to_sweep = list(self._by_fd)
        for _ in range(min(_SWEPT, len(self._to_sweep))):
            upstream = self._by_fd.get(self._to_sweep.pop())
            if upstream is None or upstream.young or self._loop.kinds[upstream.fd] != UPSTREAM:
                continue
            conn = self._kernel.conn(upstream.cookie)
            backend = self._kernel.conn(conn.alt) if conn is not None else None
            if backend is None or backend.state == self._kernel.codes.state.retired:
                self.drop(upstream, reset=False)

    def _shrink(self, pool: Pool, now: float) -> None:
        state = self._kernel.pool_state(pool.number)
        idle = len(pool.members) - pool.young - state.active
        excess = surplus(pool.idleness.sample(now, idle, state.empty))
        if not excess:
            return
        closed = 0
        for fd in list(pool.members):
            if closed == excess:
                break
            upstream = self._by_fd[fd]
            conn = None if upstream.young else self._kernel.conn(upstream.cookie)
            backend = self._kernel.conn(conn.alt) if conn is not None else None
            if backend is not None and backend.state == self._kernel.codes.state.idle:
                self.retire(upstream)
                closed += 1
        pool.idleness.closed(closed)

    def idle(self, pool: Pool) -> int:
        """About how many of its connections wait for a request."""
        return max(len(pool.members) - pool.young - self._kernel.pool_state(pool.number).active, 0)

    def close_all(self) -> None:
        for upstream in list(self._by_fd.values()):
            self.drop(upstream, reset=False)
        self._pools.clear()


def _no_spill(upstream: Upstream, backend: ConnRecord) -> None:
    return


def _no_client(client: int, backend: int, flags: int) -> None:
    return
