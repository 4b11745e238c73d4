"""All spilled responses: which U each comes by, and what becomes of U, B and C at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from xlb.keeper.clients import Clients
from xlb.keeper.endings import Endings
from xlb.keeper.estate import SpillEstate
from xlb.keeper.framer import Framer
from xlb.keeper.inject import InjectError, Tools
from xlb.keeper.loop import UPSTREAM, complain
from xlb.keeper.pools import Pools, Upstream
from xlb.keeper.records import ConnRecord, EventRecord
from xlb.keeper.spill import Spill, SpillEnd


class Spills:
    """Responses that go on through U as their clients read slowly."""

    def __init__(self, tools: Tools, pools: Pools, clients: Clients, endings: Endings) -> None:
        self._tools = tools
        self._pools = pools
        self._clients = clients
        self._endings = endings
        self._open: dict[int, tuple[Spill, int]] = {}  # with the cookie of B, by that of U
        self.total = 0
        self.limit = 1 << 20  # bytes in a client's queue
        pools.on_spill = self.start

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, upstream: int) -> bool:
        return upstream in self._open

    def on_event(self, event: EventRecord) -> None:
        """The programs say that the rest comes by U."""
        upstream = self._pools.find(event.upstream)
        backend = self._tools.kernel.conn(event.backend)
        if upstream is not None and backend is not None and backend.spilled and backend.peer == event.client:
            self.start(upstream, backend)

    def start(self, upstream: Upstream, backend: ConnRecord) -> None:
        """The rest of B's response comes by U."""
        if upstream.cookie in self._open:
            return
        client, self_cookie = backend.peer, backend.self
        framer = Framer.of_response(backend.frame, bool(backend.head))
        ended = self._ender(upstream, self_cookie)
        self._tools.loop.unwatch(upstream.fd)
        try:
            spill = Spill(self._tools, upstream.fd, client, framer, self.limit, ended)
        except InjectError:
            complain("spill")
            if self._tools.kernel.take(client, self_cookie):
                self._endings.end_now(client)
            self._pools.drop(upstream, reset=True)
            return
        self.total += 1
        self._open[upstream.cookie] = (spill, self_cookie)
        spill.begin()

    def _ender(self, upstream: Upstream, backend: int) -> Callable[[Spill, SpillEnd], None]:
        return lambda spill, how: self._ended(upstream, backend, spill, how)

    def _ended(self, upstream: Upstream, backend: int, spill: Spill, how: SpillEnd) -> None:
        del self._open[upstream.cookie]
        kernel = self._tools.kernel
        reusable = how is SpillEnd.REUSABLE and not upstream.retiring
        conn = kernel.conn(spill.client) if how is not SpillEnd.CLIENT_GONE else None
        kernel.release(spill.client, backend, reusable)
        if reusable:
            self._tools.loop.watch(upstream.fd, UPSTREAM)
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

    def client_gone(self, upstream: int) -> bool:
        """Whether there was one by this U."""
        spilled = self._open.get(upstream)
        if spilled is not None:
            spilled[0].client_gone()
        return spilled is not None

    # ---- handover

    def save(self) -> tuple[SpillEstate, ...]:
        """For a successor."""
        return tuple(spill.save(upstream, backend) for upstream, (spill, backend) in self._open.items())

    def restore(self, left: Iterable[SpillEstate]) -> None:
        """Of a predecessor, after its pools.  Raises KeyError if they do not have its U."""
        for one in left:
            upstream = self._pools.find(one.upstream)
            if upstream is None:
                raise KeyError(one.upstream)
            spill = Spill.restore(self._tools, one, upstream.fd, self._ender(upstream, one.backend))
            self._open[one.upstream] = (spill, one.backend)

    def close_all(self) -> None:
        for spill, _ in list(self._open.values()):
            spill.client_gone()
