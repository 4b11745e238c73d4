"""ADS over gRPC: the server for the node Envoy, and the streams that `xlb replay` shares with it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import structlog
from envoy.config.core.v3.base_pb2 import Node
from envoy.service.discovery.v3.discovery_pb2 import DiscoveryRequest, DiscoveryResponse
from google.protobuf.message import Message

from xds_server.grpc_options import claim_unix_path, server_options
from xds_server.resources import ADS_METHOD, ADS_SERVICE, digest, label_of
from xds_server.stream import Nack, Packed, ResourceSet, ServerStream

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Acked:
    """Every client has the version in force."""

    version: str


@dataclass(frozen=True, slots=True)
class Nacked:
    """A client refused it; `message` is its own words, which name the resources."""

    type_url: str
    message: str


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """One connected client, for status pages."""

    peer: str
    node_id: str
    version: str
    in_force: bool
    nack: Nack | None


class _Connection:
    """One gRPC stream: its protocol state, and what wakes its writer."""

    def __init__(self, node: Node, peer: str, stream: ServerStream) -> None:
        self.node = node
        self.peer = peer
        self.stream = stream
        self.task = asyncio.current_task()
        self.lock = asyncio.Lock()
        self.wake = asyncio.Event()


class AdsService:
    """All ADS streams of one gRPC server.  `resolve` says what a node is to have."""

    def __init__(self, resolve: Callable[[Node], ResourceSet], *, ordered: bool) -> None:
        self._resolve = resolve
        self._ordered = ordered
        self._connections: set[_Connection] = set()
        self._opened = 0
        self._moved = asyncio.Condition()
        self._server: grpc.aio.Server | None = None
        self._unix_path: Path | None = None

    async def start(self, unix: Path | None = None, tcp: str | None = None) -> str:
        """Listen on a Unix socket (mode 0600) and/or a TCP address HOST:PORT (port 0: any).

        :returns: the TCP address with its real port, else `unix:///PATH`
        :raises OSError: if an address is in use or cannot be bound
        """
        server = grpc.aio.server(options=server_options())
        try:
            address = await self._bind(server, unix, tcp)
        except BaseException:
            await server.stop(None)
            self._unlink()
            raise
        self._server = server
        return address

    async def _bind(self, server: grpc.aio.Server, unix: Path | None, tcp: str | None) -> str:
        handler = grpc.stream_stream_rpc_method_handler(
            self._serve,
            request_deserializer=DiscoveryRequest.FromString,
            response_serializer=DiscoveryResponse.SerializeToString,
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(ADS_SERVICE, {ADS_METHOD: handler}),))
        address = ""
        if unix is not None:
            claim_unix_path(unix)
            try:
                server.add_insecure_port(f"unix:{unix}")
            except RuntimeError as error:
                raise OSError(f"cannot listen on {unix}: {error}") from None
            self._unix_path = unix
            unix.chmod(0o600)
            address = f"unix://{unix}"
        if tcp is not None:
            try:
                port = server.add_insecure_port(tcp)
            except RuntimeError:
                raise OSError(f"cannot listen on {tcp}: the address is in use or not on this machine") from None
            address = f"{tcp.rpartition(':')[0]}:{port}"
        await server.start()
        return address

    async def stop(self, grace: float | None = None) -> None:
        """End all streams and remove the Unix socket."""
        if self._server is not None:
            await self._server.stop(grace)
            self._server = None
        self._unlink()

    def _unlink(self) -> None:
        if self._unix_path is not None:
            self._unix_path.unlink(missing_ok=True)
            self._unix_path = None

    @property
    def streams(self) -> list[StreamInfo]:
        return [
            StreamInfo(c.peer, c.node.id, c.stream.target.version, c.stream.in_force, c.stream.nack)
            for c in self._connections
        ]

    def publish(self) -> None:
        """Have every client brought to what `resolve` now says."""
        for connection in self._connections:
            connection.wake.set()

    async def settled(self, serial: int, timeout: float, *, at_least: int = 1) -> Nack | None:
        """Wait until every client has a set of this serial or a newer one in force.

        :returns: None, or the refusal of the first client found to refuse one
        :raises TimeoutError: when neither happens in time, or fewer than `at_least` clients are connected
        """
        deadline = time.monotonic() + timeout
        async with self._moved:
            while True:
                streams = [c.stream for c in self._connections]
                current = [s for s in streams if s.target.serial >= serial]
                for stream in current:
                    if stream.nack is not None:
                        return stream.nack
                if len(streams) >= at_least and len(current) == len(streams) and all(s.in_force for s in current):
                    return None
                async with asyncio.timeout(max(deadline - time.monotonic(), 0)):
                    await self._moved.wait()

    async def _serve(
        self, requests: AsyncIterator[DiscoveryRequest], context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        connection: _Connection | None = None
        pusher: asyncio.Task[None] | None = None
        try:
            async for request in requests:
                if connection is None:
                    if not request.HasField("node"):
                        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the first request must carry a node")
                    connection = self._open(request.node, context.peer())
                    pusher = asyncio.create_task(self._push(connection, context))
                async with connection.lock:
                    self._note(connection, request)
                    await self._write(connection.stream.request(request), context)
                await self._notify()
        finally:
            if pusher is not None:
                pusher.cancel()
            if connection is not None:
                self._connections.discard(connection)
                _log.debug("ads_stream_closed", node=connection.node.id)
                await self._notify()

    def _open(self, node: Node, peer: str) -> _Connection:
        self._opened += 1
        stream = ServerStream(self._resolve(node), ordered=self._ordered, nonce_prefix=f"{self._opened}-")
        connection = _Connection(node, peer, stream)
        self._connections.add(connection)
        _log.debug("ads_stream_opened", node=node.id, peer=peer)
        return connection

    async def _push(self, connection: _Connection, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        try:
            while True:
                await connection.wake.wait()
                connection.wake.clear()
                async with connection.lock:
                    resources = self._resolve(connection.node)
                    if resources.serial > connection.stream.target.serial:
                        await self._write(connection.stream.publish(resources), context)
                await self._notify()
        except Exception as error:  # gRPC has no one type for "the client is gone"
            # The client learns nothing more on this stream; ended, it connects again and gets everything.
            _log.warning("ads_push_failed", node=connection.node.id, error=f"{type(error).__name__}: {error}")
            if connection.task is not None:
                connection.task.cancel()

    @staticmethod
    async def _write(responses: list[DiscoveryResponse], context: grpc.aio.ServicerContext[Any, Any]) -> None:
        for response in responses:
            await context.write(response)

    @staticmethod
    def _note(connection: _Connection, request: DiscoveryRequest) -> None:
        if request.HasField("error_detail"):
            _log.warning(
                "ads_client_refused_configuration",
                node=connection.node.id,
                type=label_of(request.type_url),
                reason=request.error_detail.message,
            )

    async def _notify(self) -> None:
        async with self._moved:
            self._moved.notify_all()


class AdsServer:
    """The ADS server of the node Envoy: one set of resources for every client.

    Sets are taken over in order and without a gap (see `ServerStream`).  Serving begins with an empty set, so that an
    Envoy that starts first has something to be answered.
    """

    def __init__(self, identifier: str = "xlb") -> None:
        self._identifier = identifier
        self._current = ResourceSet(version="0", serial=0, identifier=identifier)
        self._service = AdsService(lambda node: self._current, ordered=True)

    async def start(self, unix: Path | None = None, tcp: str | None = None) -> str:
        """As `AdsService.start`."""
        return await self._service.start(unix, tcp)

    async def stop(self, grace: float | None = None) -> None:
        await self._service.stop(grace)

    @property
    def version(self) -> str:
        return self._current.version

    @property
    def streams(self) -> list[StreamInfo]:
        return self._service.streams

    def set_snapshot(self, resources: Mapping[str, Mapping[str, Message]], version: str) -> None:
        """Serve these resources (type URL → name → message) from now on.

        :raises ValueError: if a listener's connection manager cannot be parsed
        """
        old = self._current.by_type
        self._current = ResourceSet(
            version=version,
            serial=self._current.serial + 1,
            by_type={
                str(type_url): {
                    name: _pack(type_url, message, old.get(type_url, {}).get(name))
                    for name, message in messages.items()
                }
                for type_url, messages in resources.items()
            },
            identifier=self._identifier,
        )
        self._service.publish()

    async def wait_acked(self, version: str, timeout: float) -> Acked | Nacked:
        """Wait until every connected client (at least one) has this version in force, or a newer one that came since.

        :raises TimeoutError: when no client is connected, or one has not answered in time
        :raises ValueError: if `version` is not the one being served
        """
        if version != self._current.version:
            raise ValueError(f"version {version!r} is not being served, {self._current.version!r} is")
        nack = await self._service.settled(self._current.serial, timeout)
        return Acked(version) if nack is None else Nacked(nack.type_url, nack.message)


def _pack(type_url: str, message: Message, old: Packed | None) -> Packed:
    # Maps inside messages would else be written in any order, and look changed.
    value = message.SerializeToString(deterministic=True)
    if old is not None and old.digest == digest(value):
        return old
    return Packed.of(type_url, value, message)
