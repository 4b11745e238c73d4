"""Putting snapshots in force, in order: Envoy first, then images, then what is captured.

One switch at a time, but what several views have to change goes in together: a change of configuration reaches them
all at once, and both Envoy's answer and the kernel's grace periods take as long for one view as for many.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import structlog

from translator import image
from translator.envoy import EnvoyOptions
from translator.model import Rejected, RouteConfigRule
from translator.reasons import Reason
from xds_server.cache import Snapshot
from xds_server.client import ApplyResult
from xlb.captures import Capture, Destination, captures
from xlb.effective import blame
from xlb.envoy_link import EnvoyLink, EnvoyRefusedError, pushed
from xlb.kernel import Kernel
from xlb.numbering import Endpoint, Numbering
from xlb.prepare import Prepared, ViewPlan, prepare
from xlb.view import ImageInForce, View

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_ROUNDS: Final = 4
_GATHER_S: Final = 0.0015  # views get a change within this of each other
_GATHER_LIMIT_S: Final = 0.006
_LOOK_S: Final = 0.001
_GRACES: Final = 4
_RECOVERY_S: Final = 30.0
_CLOSED: Final = RouteConfigRule(name="", virtual_hosts=(), reason=Reason.NO_IMAGE)


@dataclass(slots=True, eq=False)
class _Work:
    """One snapshot on its way."""

    view: View
    snapshot: Snapshot
    done: asyncio.Future[ApplyResult]
    refused: tuple[Rejected, ...] = ()
    prepared: Prepared | None = None
    images: dict[str, ImageInForce] = field(default_factory=dict)
    changed: dict[int, bytes] = field(default_factory=dict)  # slot -> new image
    captures: Mapping[Destination, Capture] | None = None  # only if they change

    @property
    def plan(self) -> Prepared:
        assert self.prepared is not None, "prepared before it goes on"
        return self.prepared

    def fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)


class Applier:
    """All views' way into force."""

    def __init__(
        self,
        kernel: Kernel,
        envoy: EnvoyLink,
        numbering: Numbering,
        layouts: image.Layouts,
        *,
        address: str,
        options: EnvoyOptions,
        save: Callable[[], None],
        refresh_keeper: Callable[[], None],
    ) -> None:
        self._kernel = kernel
        self._envoy = envoy
        self._numbering = numbering
        self._layouts = layouts
        self._address = address
        self._options = options
        self._save = save
        self._refresh_keeper = refresh_keeper
        self._views: dict[str, View] = {}
        self._recovering: set[str] = set()
        self._recovery_ends = 0.0
        self._pending: list[_Work] = []
        self._news = asyncio.Event()
        self._lock = asyncio.Lock()
        self._graces: set[asyncio.Future[None]] = set()  # swaps that have happened and wait for running programs
        self._saved_revision = -1
        # Goes on from any earlier agent's.
        self._generation = time.time_ns() // 1_000_000

    # -- views ---------------------------------------------------------------------------------------------------

    def add(self, view: View, *, recovered: bool = False) -> None:
        """Take a view in.  `recovered`: the kernel and Envoy still have what an earlier agent put in force for it."""
        self._views[view.name] = view
        if recovered:
            self._recovering.add(view.name)

    async def apply(self, view: View, snapshot: Snapshot) -> ApplyResult:
        """Put a snapshot in force.  Raises what keeps it from that; what was in force then stays."""
        work = _Work(view, snapshot, asyncio.get_running_loop().create_future())
        self._pending.append(work)
        self._news.set()
        return await work.done

    async def remove(self, view: View) -> None:
        """Take a view, whose stream is closed and which has no workloads, out of everything."""
        async with self._lock:
            self._views.pop(view.name, None)
            self._recovering.discard(view.name)
            self._envoy.withdraw(view.name)
            now = time.monotonic()
            await asyncio.to_thread(self._kernel.swap_captures, {view.index: {}})
            slots = self._numbering.free_but(view.name, now, images=(), ports=(), cursors=())
            self._numbering.views.free((view.identity.key,), now)
            await self._tidy(slots, refresh=True)
        self._news.set()  # it may have been the one that the others waited for

    # -- the loop ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run until cancelled."""
        try:
            while True:
                await self._news.wait()
                works = await self._gather()
                if works:
                    async with self._lock:
                        await self._in_force_together(works)
        finally:
            for work in self._pending:
                work.done.cancel()

    async def _gather(self) -> list[_Work]:
        """What is to be applied together; nothing if it has to wait for more."""
        self._news.clear()
        deadline = time.monotonic() + _GATHER_LIMIT_S
        while 0 < len(self._pending) < len(self._views) and time.monotonic() < deadline:
            known = len(self._pending)
            await asyncio.sleep(_GATHER_S)
            if len(self._pending) == known:
                break
        self._news.clear()
        if self._recovering and self._pending:
            missing = self._recovering - {work.view.name for work in self._pending}
            now = time.monotonic()
            self._recovery_ends = self._recovery_ends or now + _RECOVERY_S
            if missing and now < self._recovery_ends:
                # Serving Envoy some of its views would take the others away from it.
                asyncio.get_running_loop().call_later(1.0, self._news.set)
                return []
            self._recovering.clear()
        works, self._pending = self._pending, []
        return [work for work in works if not work.done.done() and work.view.name in self._views]

    async def _in_force_together(self, works: list[_Work]) -> None:
        try:
            await self._in_force(works)
        except EnvoyRefusedError as error:
            self._envoy.take_back()
            if len(works) == 1 or not self._envoy.connected:
                for work in works:
                    work.fail(error)
                return
            # One of them is to blame, and Envoy did not say which.
            for work in works:
                if not work.done.done():
                    await self._in_force_together([work])
        except Exception as error:  # whatever it is, each client has to hear of it and tries again
            self._envoy.take_back()
            _log.exception("apply_failed", views=[work.view.name for work in works])
            for work in works:
                work.fail(error)

    async def _in_force(self, works: list[_Work]) -> None:
        works = self._prepare(works)
        if not works:
            return
        pools: dict[Endpoint, int] = {}
        for _ in range(_ROUNDS):
            parts = {work.view.name: work.plan.part for work in works}
            offered = self._envoy.offer(parts)
            settled = asyncio.create_task(self._envoy.settled(parts)) if offered else None
            try:
                # Lets the responses go out: Envoy works while we do.
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                new_pools = self._build(works)
                pools |= new_pools
                if self._numbering.revision != self._saved_revision:
                    # Before the kernel has them: the next agent must mean the same by each number.
                    self._saved_revision = self._numbering.revision
                    self._save()
                if new_pools:
                    await asyncio.to_thread(self._kernel.open_pools, new_pools)
                nack = await settled if settled is not None else None
            finally:
                if settled is not None:
                    settled.cancel()
            if nack is None:
                break
            self._blame(works, nack.type_url, nack.message)
        else:
            raise EnvoyRefusedError("the node Envoy refuses one resource after the other: see envoy.log")
        slots, captured = await self._switch(works)
        for work in works:
            if not work.done.done():
                work.done.set_result(ApplyResult(work.plan.rejected))
        await self._tidy(slots, refresh=captured)

    def _prepare(self, works: Iterable[_Work]) -> list[_Work]:
        """Prepare each, and go on with those that can be."""
        good = []
        for work in works:
            try:
                self._prepare_one(work)
            except Exception as error:
                _log.exception("view_not_prepared", view=work.view.name)
                work.fail(error)
            else:
                good.append(work)
        return good

    def _prepare_one(self, work: _Work) -> None:
        view = work.view
        plan = ViewPlan(view.name, self._address, self._options)
        now = time.monotonic()
        work.prepared = prepare(plan, work.snapshot, view.prepared, self._numbering, now, work.refused)

    def _blame(self, works: list[_Work], type_url: str, message: str) -> None:
        """Leave out what Envoy names in its refusal.  Raises EnvoyRefusedError if that is nothing of these views."""
        found = blame(type_url, message, pushed({work.view.name: work.plan.part for work in works}))
        known = {work.view.name: work for work in works}
        if not found:
            raise EnvoyRefusedError(f"the node Envoy refuses the configuration: {message}")
        for name, rejected in found.items():
            work = known[name]
            work.refused += tuple(rejected)
            self._prepare_one(work)

    def _build(self, works: Iterable[_Work]) -> dict[Endpoint, int]:
        """Build the images that differ from those in force.  :returns: endpoints that have no pool yet"""
        pools: dict[Endpoint, int] = {}
        now = time.monotonic()
        for work in works:
            view, plan = work.view, work.plan
            ids = self._numbering.ids(view.name, now)
            work.images, work.changed = {}, {}
            for name, config in plan.routed().items():
                clusters = plan.clusters_of(image.cluster_names(config))
                old = view.in_force.images.get(name)
                if old is not None and old.config == config and old.clusters == clusters:
                    work.images[name] = old
                    continue
                slot = self._numbering.images.take((view.name, name), now)
                self._generation += 1
                work.changed[slot] = image.build(config, clusters, ids, self._generation, layouts=self._layouts)
                work.images[name] = ImageInForce(slot, config, clusters)
            pools |= ids.new_pools
            slots = {name: made.slot for name, made in work.images.items()}
            wanted = captures(plan.rules.listeners, _served(plan), slots)
            work.captures = wanted if wanted != view.in_force.captures else None
        return pools

    async def _switch(self, works: list[_Work]) -> tuple[list[int], bool]:
        """:returns: image slots that are not used any more, and whether something else is captured than before"""
        images = {slot: made for work in works for slot, made in work.changed.items()}
        taken = {work.view.index: work.captures for work in works if work.captures is not None}
        if taken:
            await asyncio.to_thread(self._to_kernel, images, taken)
        elif images:
            await self._swap_images(images)
        now = time.monotonic()
        slots: list[int] = []
        for work in works:
            view, plan = work.view, work.plan
            view.in_force.prepared = plan
            view.in_force.images = work.images
            if work.captures is not None:
                view.in_force.captures = work.captures
            slots += self._numbering.free_but(
                view.name, now, images=work.images, ports=plan.ports, cursors=plan.rules.clusters
            )
        return slots, bool(taken)

    def _to_kernel(self, images: Mapping[int, bytes], taken: Mapping[int, Mapping[Destination, Capture]]) -> None:
        # A listener that is captured must find its image.
        self._kernel.swap_images(images)
        self._kernel.swap_captures(taken)

    async def _swap_images(self, images: Mapping[int, bytes]) -> None:
        """Returns when every request that comes from now on is decided by these images.

        What the kernel waits for beyond that, the end of programs that run, matters only to what is taken away.
        """
        filled = self._kernel.fill_images(images)
        put = asyncio.ensure_future(asyncio.to_thread(self._kernel.put, filled))
        self._graces.add(put)
        put.add_done_callback(self._graces.discard)
        while not put.done() and not self._kernel.holds(filled):
            await asyncio.wait((put,), timeout=_LOOK_S)
        if put.done():
            await put  # for its error, if it has one
        elif len(self._graces) > _GRACES:
            await asyncio.wait(self._graces, return_when=asyncio.FIRST_COMPLETED)

    async def _tidy(self, slots: Iterable[int], *, refresh: bool) -> None:
        """Let go what no view uses any more: image slots, and the pools of endpoints that are gone."""
        closed = {slot: self._closed() for slot in slots}
        pools: list[int] = []
        if not self._recovering:
            pools = self._numbering.unused_pools(self._used(), time.monotonic())
        if closed or pools:
            if self._graces:
                await asyncio.wait(self._graces)
            await asyncio.to_thread(self._let_go, closed, pools)
        if refresh or pools:
            self._refresh_keeper()

    def _let_go(self, closed: Mapping[int, bytes], pools: Iterable[int]) -> None:
        self._kernel.swap_images(closed)
        self._kernel.close_pools(pools)

    def _closed(self) -> bytes:
        ids = self._numbering.ids("", 0.0)
        return image.build(_CLOSED, {}, ids, self._generation, layouts=self._layouts)

    def _used(self) -> frozenset[Endpoint]:
        return frozenset(
            (endpoint.address, endpoint.port)
            for view in self._views.values()
            if view.prepared is not None
            for cluster in view.prepared.rules.clusters.values()
            for endpoint in cluster.endpoints
        )


def _served(plan: Prepared) -> dict[str, int]:
    """Ports of the listeners that Envoy has; what it has not cannot be captured."""
    refused = {rejected.name for rejected in plan.part.rejected}
    return {name: port for name, port in plan.ports.items() if name not in refused}
