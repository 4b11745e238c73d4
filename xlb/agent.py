"""The agent: it puts the parts of an instance together, and keeps views and workloads."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import structlog

from bpf.libbpf import BpfError
from bpf.loader import LoadError
from translator.envoy import EnvoyOptions, MtlsEndpoints
from xlb import config, state
from xlb.addresses import AddressError
from xlb.apply import Applier
from xlb.bypass import Bypass
from xlb.cgroups import CgroupError
from xlb.envoy_link import EnvoyLink
from xlb.identity import Identity, Wanted
from xlb.keeper_process import KeeperError
from xlb.numbering import Numbering
from xlb.parts import Ends, Parts, PartsError, Paths, keeper_lives, make_parts
from xlb.shared import Shared
from xlb.supervisor import SupervisorError
from xlb.switch_maps import SwitchMaps
from xlb.switches import Switches
from xlb.timings import Timings
from xlb.view import View
from xlb.workloads import Registered, Workloads, identity_of

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_POLL_S: Final = 0.5
_TRIM_S: Final = 30.0
# A view outlives its last workload a little: commands that come one after the other find rules and connections ready.
_LINGER_S: Final = 10.0
# Where distributions keep the system's authorities (Istio looks in the same places: security/pkg/util).
_SYSTEM_CA: Final = (
    Path("/etc/ssl/certs/ca-certificates.crt"),
    Path("/etc/pki/tls/certs/ca-bundle.crt"),
    Path("/etc/ssl/ca-bundle.pem"),
    Path("/etc/ssl/cert.pem"),
)


class AgentError(Exception):
    """The agent cannot run; one line that says what to do."""


class Agent:
    """One running instance.  Made by `start`; ended by `stop` (everything) or `leave` (for the next agent)."""

    def __init__(self, settings: config.AgentConfig, parts: Parts, ends: Ends) -> None:
        """Use `start`."""
        self.settings = settings
        self.parts = parts
        self._ends = ends
        self.paths = Paths(settings.run_dir)
        self.timings = Timings()
        self.started = time.time()
        self._tasks: list[asyncio.Task[None]] = []
        self._refresh = asyncio.Event()
        self._views: dict[str, View] = {}  # by identity key
        self._idle: dict[View, float] = {}  # views without workloads, and since when
        self._link = EnvoyLink(self.paths.ads)
        self._numbering = Numbering(parts.kernel.sizes)
        self._applier = Applier(
            parts.kernel,
            self._link,
            self._numbering,
            parts.data_path.layouts,
            address=parts.address,
            options=_envoy_options(settings.mtls_endpoints),
            save=self._save,
            refresh_keeper=self._refresh.set,
        )
        self.shared = Shared(parts.data_path)
        self.switches = Switches(SwitchMaps(parts.data_path, self.shared))
        self._switching = asyncio.Lock()
        self.workloads = Workloads(parts.cgroups, parts.kernel, self.switches)

    @classmethod
    async def start(cls, settings: config.AgentConfig) -> Agent:
        """Start everything, in the order in which it is needed; what was made is undone if it fails.

        Raises AgentError.
        """
        paths = Paths(settings.run_dir)
        # What an earlier agent has left works, and goes on working if this one cannot start.
        ends = Ends(forgetful=keeper_lives(paths.run_dir))
        try:
            parts = await make_parts(settings, paths, ends)
            agent = cls(settings, parts, ends)
            ends.add("views", agent._end_tasks)
            await agent._start()
        except (PartsError, CgroupError, LoadError, SupervisorError, AddressError, OSError) as error:
            await ends.after_failure()
            raise AgentError(str(error)) from error
        except BaseException:
            await ends.after_failure()
            raise
        return agent

    async def _start(self) -> None:
        left = self.parts.left
        if left is not None:
            self._numbering.restore(left, time.monotonic())
            self.switches.restore(left.bypasses)
        if not self._recover(left):
            await self._link.serve()
        await self.parts.envoy.start()
        for work in (self._applier.run(), self._watch_workloads(), self._keep_refreshing(), self._keep_small()):
            self._tasks.append(asyncio.create_task(work))
        for view in self._views.values():
            view.start()
        self._save()
        # What there is now stays: the collector need not look at it again.
        gc.collect()
        gc.freeze()

    def _recover(self, left: state.State | None) -> int:
        """Register again what an earlier agent had and what still runs.  :returns: how many workloads"""
        recovered = 0
        for saved in left.workloads if left is not None else ():
            if not (self.parts.cgroups.workloads / saved.folder).is_dir():
                continue
            identity = identity_of(saved)
            self.workloads.add(identity, self._view(identity, recovered=True), saved.folder, saved.number)
            recovered += 1
        self.workloads.forget_strangers()
        self.workloads.switch()
        known = {view.name for view in self._views.values()}
        gone = self._numbering.free_strangers(self._views, known, time.monotonic())
        self.parts.kernel.swap_captures({index: {} for index in gone})
        if recovered:
            _log.info("workloads_taken_over", count=recovered)
        return recovered

    # -- workloads -----------------------------------------------------------------------------------------------

    def view_of(self, name: str, namespace: str) -> View | None:
        """The view of a workload: of the first of that name, if there are several; also of one that has just ended."""
        wanted = Wanted(name, namespace)
        found = self.workloads.find(wanted)
        if found is not None:
            return found.view
        return next((view for view in self._views.values() if wanted.fits(view.identity)), None)

    @property
    def views(self) -> Mapping[str, View]:
        """By identity key."""
        return self._views

    @property
    def envoy_connected(self) -> bool:
        """Whether the node Envoy listens to us."""
        return self._link.connected

    def pool_of(self, address: str, port: int) -> int | None:
        """The number of an endpoint's pool of connections; None if the kernel sends nothing there."""
        return self._numbering.pools.get((address, port))

    @property
    def first_envoy_pool(self) -> int:
        """From this number on pools are the keeper's own, of connections to Envoy."""
        return self.parts.kernel.sizes.pools

    def counters(self, view: View) -> dict[str, int]:
        """Requests of a view by reason, since the view exists."""
        before = view.counted_before
        counted = {name: count - before.get(name, 0) for name, count in self.parts.kernel.counters(view.index).items()}
        return {name: count for name, count in counted.items() if count}

    async def register(self, wanted: Wanted, pid: int) -> Registered:
        """Make a workload, or find it.  Raises CgroupError, BpfError or OutOfNumbers."""
        found = self.workloads.find(wanted)
        if found is None:
            identity = wanted.identity()
            known = self._views.get(identity.key)
            view = known or self._view(identity)
            found = self.workloads.add(identity, view, self.workloads.folder_for(identity))
            if known is None:
                view.start()
            _log.info("workload_registered", workload=str(identity), view=view.name, cgroup=found.folder.name)
            self._save()
        self.workloads.expect(found, pid)
        return found

    async def bypass(self, bypass: Bypass, *, established: bool) -> int:
        """Add an off-switch, in force at once for new connections.

        :param established: have the established ones that it covers go to Envoy from their next request on
        :returns: how many of those there were
        Raises BpfError.
        """
        async with self._switching:
            self.switches.add(bypass, self.workloads.subjects())
            self._save()
            _log.info("bypass_added", bypass=str(bypass))
            return await self._leave(bypass, leave=True) if established else 0

    async def end_bypass(self, bypass: Bypass) -> bool:
        """Remove the off-switch of the same workload and port: whether there was one.  Raises BpfError."""
        async with self._switching:
            if not self.switches.remove(bypass, self.workloads.subjects()):
                return False
            self._save()
            _log.info("bypass_removed", workload=bypass.workload, port=bypass.port)
            await self._leave(bypass, leave=False)
            return True

    async def _leave(self, bypass: Bypass, *, leave: bool) -> int:
        names = {view.index: f"{view.identity.namespace}/{view.identity.name}" for view in self._views.values()}
        return await self.switches.leave(bypass, names, leave=leave)

    def _view(self, identity: Identity, *, recovered: bool = False) -> View:
        found = self._views.get(identity.key)
        if found is None:
            index = self._numbering.views.take(identity.key, time.monotonic())
            found = View(identity, index, self.settings.ads, self._applier.apply, self.timings.add)
            if not recovered:
                # The number may have been another's.
                found.counted_before = self.parts.kernel.counters(index)
            self._views[identity.key] = found
            self._applier.add(found, recovered=recovered)
        return found

    async def _watch_workloads(self) -> None:
        while True:
            await asyncio.sleep(_POLL_S)
            try:
                ended = self.workloads.ended()
            except BpfError as error:
                _log.error("workloads_not_ended", reason=str(error))
                continue
            for one in ended:
                _log.info("workload_ended", workload=str(one.identity))
            if ended:
                self._save()
            now = time.monotonic()
            used = {one.view for one in self.workloads}
            self._idle = {view: self._idle.get(view, now) for view in self._views.values() if view not in used}
            for view in [view for view, since in self._idle.items() if now - since >= _LINGER_S]:
                await self._end_view(view)

    async def _end_view(self, view: View) -> None:
        del self._views[view.identity.key], self._idle[view]
        await view.stop()
        try:
            await self._applier.remove(view)
        except (BpfError, ValueError):
            _log.exception("view_not_removed", view=view.name)

    def _save(self) -> None:
        saved = replace(
            self._numbering.save(self.parts.address, tuple(one.state() for one in self.workloads)),
            bypasses=tuple(bypass.document() for bypass in self.switches.bypasses),
        )
        try:
            state.save(self.paths.state, saved)
        except OSError as error:
            _log.error("state_not_saved", reason=str(error), remedy="a restarted agent will not know the workloads")

    async def upgrade_keeper(self) -> Mapping[str, Any]:
        """Replace the keeper by one that runs what is installed now, without losing a request: its status.

        Raises KeeperError: it runs on, and the message says why.
        """
        return await self.parts.keeper.upgrade()

    # -- while it runs -------------------------------------------------------------------------------------------

    async def _keep_refreshing(self) -> None:
        """Have the keeper look at its pools again; it does so by itself when it starts."""
        while True:
            await self._refresh.wait()
            self._refresh.clear()
            try:
                await self.parts.keeper.ask("refresh")
            except (OSError, KeeperError) as error:
                _log.warning("keeper_not_refreshed", reason=str(error))

    @staticmethod
    async def _keep_small() -> None:
        libc = ctypes.CDLL(None)
        while True:
            await asyncio.sleep(_TRIM_S)
            with suppress(AttributeError):  # another C library than glibc
                libc.malloc_trim(0)

    # -- end -----------------------------------------------------------------------------------------------------

    async def stop(self) -> None:
        """End everything and remove it."""
        await self._ends.run()

    async def leave(self) -> None:
        """End the agent alone: keeper, Envoy and the kernel go on, for the next agent to take over."""
        await self._end_tasks()
        self._save()
        await self.parts.keeper.release()
        await self.parts.envoy.release()
        self.parts.kernel.close()
        self.parts.data_path.close()

    async def _end_tasks(self) -> None:
        for view in self._views.values():
            await view.stop()
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._link.stop()


def _envoy_options(mtls: config.MtlsEndpoints) -> EnvoyOptions:
    found = next((path for path in _SYSTEM_CA if path.is_file()), None)
    return EnvoyOptions(MtlsEndpoints(mtls.value), None if found is None else str(found))
