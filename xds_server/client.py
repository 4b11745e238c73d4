"""ADS client of istiod (or of `xlb replay`): one workload's stream, kept up for ever.

    responses ──► Subscription (what to ask) ──► requests
        └──────► ResourceCache ──► consistent Snapshot ──► on_snapshot ──► ACK or NACK

An ACK is sent after `on_snapshot` returned, so it means "in force".  Whatever happens to the stream or to a
resource, the last good configuration stays where it is.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

import grpc
import structlog
from envoy.config.core.v3.base_pb2 import Node
from envoy.service.discovery.v3.discovery_pb2 import DiscoveryRequest, DiscoveryResponse

from translator.model import Rejected
from xds_server.cache import ResourceCache, Snapshot
from xds_server.grpc_options import MAX_MESSAGE_BYTES, check_target, client_options
from xds_server.node import ControlPlane, control_plane
from xds_server.resources import ADS_METHOD, ADS_SERVICE, TypeUrl, label_of
from xds_server.subscription import Receipt, Subscription, ask_for_references, nack_reason

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ApplyResult:
    """What became of a snapshot: in force, but for the resources in `rejected`, whose last good version stays."""

    rejected: tuple[Rejected, ...] = ()


class Phase(Enum):
    CONNECTING = "connecting"
    CONNECTED = "connected"  # a response came on this stream
    WAITING = "waiting"  # to try again
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class ConnectionState:
    """How the stream to the source is.  `error` and `retry_in` (seconds) are of the last failure, while WAITING."""

    target: str
    phase: Phase
    error: str = ""
    remedy: str = ""
    retry_in: float = 0.0
    control_plane: ControlPlane = field(default_factory=ControlPlane)


@dataclass(frozen=True, slots=True)
class UpdateTiming:
    """One change, from the first response that brought it (monotonic seconds) to in force."""

    version: str
    received: float
    in_force: float


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """Times in seconds.

    `settle`: a change often comes as several responses (istiod pushes CDS, EDS, LDS, RDS one after the other); a
    snapshot is applied when none came for this long, or `settle_limit` after the first.  `removal_grace`: how long
    clusters stay after the source dropped them (see `ResourceCache`).
    """

    backoff_first: float = 0.2
    backoff_factor: float = 1.6
    backoff_limit: float = 30.0
    settle: float = 0.003
    settle_limit: float = 0.02
    removal_grace: float = 1.0
    missing_warning: float = 15.0
    max_message_bytes: int = MAX_MESSAGE_BYTES
    metadata: tuple[tuple[str, str], ...] = field(default=(), repr=False)  # may hold a token


_REMEDIES: Final = {
    grpc.StatusCode.UNAVAILABLE: "check that istiod or `xlb replay` listens there (plaintext, 15010 by default)",
    grpc.StatusCode.UNAUTHENTICATED: "use the plaintext port 15010, or give a token that istiod accepts",
    grpc.StatusCode.PERMISSION_DENIED: "check the workload's namespace and service account against the token's",
    grpc.StatusCode.UNIMPLEMENTED: "this is a gRPC server without ADS: check source.ads",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "the response is larger than the receive limit: raise it, or scope the "
    "workload's configuration with an Istio Sidecar resource",
    grpc.StatusCode.INVALID_ARGUMENT: "the server refused the workload's identity: check its name, namespace and IP",
}


class AdsClient:
    """Keeps one ADS stream to `target` for `node`, and calls `on_snapshot` with every new consistent snapshot.

    Snapshots come one at a time; those that are overtaken while one is being applied are skipped.  If `on_snapshot`
    raises, the snapshot is NACKed and tried again, with back-off, until it succeeds or is overtaken.

    :raises ValueError: for a malformed target
    """

    def __init__(
        self,
        target: str,
        node: Node,
        on_snapshot: Callable[[Snapshot], Awaitable[ApplyResult]],
        *,
        on_state: Callable[[ConnectionState], None] | None = None,
        options: ClientOptions = ClientOptions(),
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.target = target
        self._address = check_target(target)
        self._on_snapshot = on_snapshot
        self._on_state = on_state
        self._options = options
        self._jitter = jitter
        self._log = _log.bind(target=target, node=node.id)
        self._subscription = Subscription(node)
        self._cache = ResourceCache()
        self._state = ConnectionState(target, Phase.STOPPED)
        self._outbox: asyncio.Queue[DiscoveryRequest] | None = None
        self._news = asyncio.Event()
        self._receipts: dict[TypeUrl, Receipt] = {}
        self._snapshot: Snapshot | None = None
        self._result: ApplyResult | None = None
        self._first_news = 0.0
        self._last_news = 0.0
        self._timing: UpdateTiming | None = None
        self._settle_timer: asyncio.TimerHandle | None = None
        self._missing_timer: asyncio.TimerHandle | None = None

    @property
    def state(self) -> ConnectionState:
        return self._state

    @property
    def snapshot(self) -> Snapshot | None:
        """The snapshot in force; None before the first."""
        return self._snapshot

    @property
    def rejected(self) -> tuple[Rejected, ...]:
        """Rejections that stand, found here or by `on_snapshot`."""
        return self._cache.rejected + (self._result.rejected if self._result else ())

    @property
    def timing(self) -> UpdateTiming | None:
        """Of the last change that was put in force."""
        return self._timing

    async def run(self) -> None:
        """Run until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._apply_for_ever())
                tasks.create_task(self._connect_for_ever())
        finally:
            for timer in (self._settle_timer, self._missing_timer):
                if timer is not None:
                    timer.cancel()
            self._set_state(ConnectionState(self.target, Phase.STOPPED))

    # The stream.

    async def _connect_for_ever(self) -> None:
        failures = 0
        last_error = ""
        while True:
            self._set_state(ConnectionState(self.target, Phase.CONNECTING))
            code, error = await self._one_stream()
            # A stream that delivered something was fine: istiod ends each after about 30 minutes.
            failures = 1 if self._state.phase is Phase.CONNECTED else failures + 1
            pause = self._backoff(failures)
            remedy = _REMEDIES.get(code, "see the server's log")
            if error != last_error or failures == 1 or failures % 10 == 0:
                self._log.warning(
                    "ads_stream_lost" if failures == 1 and self._snapshot else "ads_unreachable",
                    error=error,
                    remedy=remedy,
                    retry_in=round(pause, 1),
                    keeping="last good configuration" if self._snapshot else "nothing yet",
                )
            last_error = error
            self._set_state(ConnectionState(self.target, Phase.WAITING, error, remedy, pause))
            await asyncio.sleep(pause)

    def _backoff(self, failures: int) -> float:
        """Seconds before the next attempt: exponential, less a random part of up to a half (so that nodes spread)."""
        options = self._options
        # The exponent is bounded: float overflow after weeks of an absent server would end the agent.
        full = min(options.backoff_first * options.backoff_factor ** min(failures - 1, 64), options.backoff_limit)
        return full * (1 - self._jitter() / 2)

    async def _one_stream(self) -> tuple[grpc.StatusCode, str]:
        """Connect, and serve the stream to its end.  :returns: why it ended"""
        options = client_options(self._options.max_message_bytes)
        async with grpc.aio.insecure_channel(self._address, options=options) as channel:
            call = channel.stream_stream(
                f"/{ADS_SERVICE}/{ADS_METHOD}",
                request_serializer=DiscoveryRequest.SerializeToString,
                response_deserializer=DiscoveryResponse.FromString,
            )(metadata=self._options.metadata or None)
            outbox: asyncio.Queue[DiscoveryRequest] = asyncio.Queue()
            self._outbox = outbox
            self._receipts.clear()
            self._send(self._subscription.open())
            self._watch_missing(self._cache.snapshot())
            writer = asyncio.create_task(self._write(call, outbox))
            try:
                async for response in call:
                    self._receive(response)
                return grpc.StatusCode.OK, "the server ended the stream"
            except grpc.aio.AioRpcError as error:
                return error.code(), _describe(error)
            except Exception as error:  # a bug must not end the view: the next stream may do better
                self._log.exception("ads_stream_failed")
                return grpc.StatusCode.UNKNOWN, f"{type(error).__name__}: {error}"
            finally:
                self._outbox = None
                self._subscription.close()
                writer.cancel()
                call.cancel()

    @staticmethod
    async def _write(call: Any, outbox: asyncio.Queue[DiscoveryRequest]) -> None:
        try:
            while True:
                await call.write(await outbox.get())
        except (grpc.RpcError, asyncio.InvalidStateError):
            return  # the stream ended: its reader reports why

    def _send(self, requests: list[DiscoveryRequest]) -> None:
        if self._outbox is not None:
            for request in requests:
                self._outbox.put_nowait(request)

    def _receive(self, response: DiscoveryResponse) -> None:
        if self._state.phase is not Phase.CONNECTED:
            plane = control_plane(response.control_plane.identifier)
            self._set_state(ConnectionState(self.target, Phase.CONNECTED, control_plane=plane))
            self._log.info("ads_connected", control_plane=plane.id, component=plane.component)
        receipt = self._subscription.receive(response)
        if receipt is None:
            self._log.debug("ads_unasked_response", type=label_of(response.type_url))
            return
        self._receipts[receipt.type_url] = receipt
        result = self._cache.update(response)
        for rejected in result.rejected:
            self._log.warning("resource_rejected", **_fields(rejected), keeping="last good version, if any")
        if result.removed and self._cache.leaving:
            self._arm_settle()
        self._send(ask_for_references(self._subscription, self._cache))
        if result.rejected:
            # Does not wait for the snapshot: a set may stay incomplete for want of this very resource.
            self._send(self._subscription.nack(receipt, self._reason(receipt.type_url) or ""))
        self._tell()

    def _tell(self) -> None:
        now = time.monotonic()
        if not self._news.is_set():
            self._first_news = now
            self._news.set()
        self._last_news = now

    def _arm_settle(self) -> None:
        if self._settle_timer is not None:
            self._settle_timer.cancel()
        self._settle_timer = asyncio.get_running_loop().call_later(self._options.removal_grace, self._settle)

    def _settle(self) -> None:
        self._settle_timer = None
        if self._cache.settle():
            self._send(ask_for_references(self._subscription, self._cache))
            self._tell()

    # Putting in force.

    async def _apply_for_ever(self) -> None:
        failures = 0
        while True:
            if failures == 0:
                await self._news.wait()
            else:
                try:
                    async with asyncio.timeout(self._backoff(failures)):
                        await self._news.wait()
                except TimeoutError:
                    pass
            received = await self._quiet()
            snapshot = self._cache.snapshot()
            self._watch_missing(snapshot)
            if snapshot is None:
                continue
            receipts = dict(self._receipts)
            if self._snapshot is None or snapshot.version != self._snapshot.version:
                try:
                    result = await self._on_snapshot(snapshot)
                except Exception as error:  # whatever it is, the stream and the configuration in force live on
                    failures += 1
                    self._log.exception("apply_failed", version=snapshot.version, retry_in=self._backoff(failures))
                    reason = f"cannot be put in force: {type(error).__name__}: {error}"
                    for receipt in receipts.values():
                        self._send(self._subscription.nack(receipt, reason))
                    continue
                failures = 0
                for rejected in result.rejected:
                    self._log.warning("resource_rejected", **_fields(rejected), keeping="last good version, if any")
                self._snapshot, self._result = snapshot, result
                self._timing = UpdateTiming(snapshot.version, received, time.monotonic())
            self._answer(receipts)

    async def _quiet(self) -> float:
        """Wait until no response has come for a moment.  :returns: when the first one came"""
        first = self._first_news
        while True:
            now = time.monotonic()
            pause = min(self._last_news + self._options.settle, first + self._options.settle_limit) - now
            if pause <= 0:
                self._news.clear()
                return first
            await asyncio.sleep(pause)

    def _answer(self, receipts: dict[TypeUrl, Receipt]) -> None:
        for type_url in TypeUrl:
            receipt = receipts.get(type_url)
            if receipt is None:
                continue
            reason = self._reason(type_url)
            if reason is None:
                self._send(self._subscription.ack(receipt))
            else:
                self._send(self._subscription.nack(receipt, reason))

    def _reason(self, type_url: TypeUrl) -> str | None:
        """Why resources of a type are not all in force; None if they are."""
        problems = [_line(r) for r in self.rejected if r.type_url == type_url]
        return nack_reason(list(dict.fromkeys(problems))) if problems else None

    def _watch_missing(self, snapshot: Snapshot | None) -> None:
        if snapshot is not None:
            if self._missing_timer is not None:
                self._missing_timer.cancel()
                self._missing_timer = None
        elif self._missing_timer is None:
            loop = asyncio.get_running_loop()
            self._missing_timer = loop.call_later(self._options.missing_warning, self._warn_missing)

    def _warn_missing(self) -> None:
        self._missing_timer = None
        missing = [str(m) for m in self._cache.missing()]
        if not missing and self._cache.complete:
            return
        self._log.warning(
            "configuration_incomplete",
            waiting_for=missing[:10] or "the first CDS and LDS response",
            remedy="the server did not answer these; until it does, the last good configuration stays in force",
        )

    def _set_state(self, state: ConnectionState) -> None:
        if state != self._state:
            self._state = state
            if self._on_state is not None:
                self._on_state(state)


def _fields(rejected: Rejected) -> dict[str, str]:
    label = label_of(rejected.type_url)
    return {"type": label, "resource": rejected.name, "field": rejected.field, "why": rejected.why}


def _describe(error: grpc.aio.AioRpcError) -> str:
    details = str(error.details() or "no details")
    # gRPC wraps the one thing that matters: "failed to connect to all addresses; last error: UNKNOWN:
    # ipv4:127.0.0.1:15010: Failed to connect to remote host: Connection refused".
    if "Failed to connect to remote host: " in details:
        return f"cannot connect: {details.rpartition('remote host: ')[2]}"
    return f"{error.code().name}: {details}"


def _line(rejected: Rejected) -> str:
    where = f" field {rejected.field}" if rejected.field else ""
    return f"{label_of(rejected.type_url)} {rejected.name!r}{where}: {rejected.why}"
