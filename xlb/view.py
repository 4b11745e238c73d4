"""A view: one identity's configuration, from its ADS stream to what is in force."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from translator.model import ClusterRule, RouteConfigRule
from xds_server.cache import Snapshot
from xds_server.client import AdsClient, ApplyResult, ConnectionState, UpdateTiming
from xds_server.node import Workload, node_for
from xlb.captures import Capture, Destination
from xlb.identity import Identity
from xlb.prepare import Prepared


@dataclass(frozen=True, slots=True)
class ImageInForce:
    """What the image in a slot was made of."""

    slot: int
    config: RouteConfigRule
    clusters: Mapping[str, ClusterRule]


@dataclass(slots=True)
class InForce:
    """What a view has in the kernel and in Envoy; changed by the one who applies (`xlb.apply`)."""

    prepared: Prepared | None = None
    images: dict[str, ImageInForce] = field(default_factory=dict)
    captures: Mapping[Destination, Capture] | None = None


class View:
    """One view; `index` is its number in the kernel's maps, `name` its prefix in Envoy."""

    def __init__(
        self,
        identity: Identity,
        index: int,
        target: str,
        apply: Callable[[View, Snapshot], Awaitable[ApplyResult]],
        on_timing: Callable[[UpdateTiming], None],
    ) -> None:
        self.identity = identity
        self.index = index
        self.name = f"{identity.namespace}.{identity.name}-{index}"
        self.in_force = InForce()
        self.counted_before: Mapping[str, int] = {}
        self._apply = apply
        self._on_timing = on_timing
        self._first = asyncio.Event()
        node = node_for(
            Workload(
                name=identity.name,
                ip=identity.ip,
                namespace=identity.namespace,
                labels=dict(identity.labels),
                service_account=identity.service_account,
            )
        )
        self.client = AdsClient(target, node, self._on_snapshot)
        self._task: asyncio.Task[None] | None = None

    @property
    def state(self) -> ConnectionState:
        return self.client.state

    @property
    def prepared(self) -> Prepared | None:
        return self.in_force.prepared

    def start(self) -> None:
        self._task = asyncio.create_task(self.client.run(), name=f"view {self.name}")

    async def stop(self) -> None:
        """Close the stream; what is in force stays."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def wait_in_force(self, timeout: float) -> bool:
        """Whether the first configuration is in force, waiting so many seconds for it."""
        try:
            async with asyncio.timeout(timeout):
                await self._first.wait()
        except TimeoutError:
            return False
        return True

    async def _on_snapshot(self, snapshot: Snapshot) -> ApplyResult:
        result = await self._apply(self, snapshot)
        self._first.set()
        # The client notes the time when this has returned.
        asyncio.get_running_loop().call_soon(self._tell_timing)
        return result

    def _tell_timing(self) -> None:
        if self.client.timing is not None:
            self._on_timing(self.client.timing)
