"""The ADS server with the real Envoy: what is ACKed is in force, and a change loses no request on the way."""

from __future__ import annotations

import asyncio
import json
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)
from google.protobuf.any_pb2 import Any as PackedAny
from google.protobuf.message import Message

from tests.unit.xds_builders import CDS, EDS, LDS, RDS, cluster, endpoints, listener, routes
from xds_server.server import Acked, AdsServer, Nacked

ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def backend(name: str) -> AsyncIterator[int]:
    """An HTTP server that answers with its name."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(name), name.encode()))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@asynccontextmanager
async def envoy(binary: Path, ads: Path, log: Path) -> AsyncIterator[None]:
    """An Envoy that gets everything from our server."""
    api = {
        "api_type": "GRPC",
        "transport_api_version": "V3",
        "grpc_services": [{"envoy_grpc": {"cluster_name": "ads"}}],
    }
    http2 = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    bootstrap = {
        "node": {"id": "test", "cluster": "test"},
        "dynamic_resources": {
            "ads_config": api,
            "cds_config": {"ads": {}, "resource_api_version": "V3"},
            "lds_config": {"ads": {}, "resource_api_version": "V3"},
        },
        "static_resources": {
            "clusters": [
                {
                    "name": "ads",
                    "type": "STATIC",
                    "typed_extension_protocol_options": {
                        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                            "@type": http2,
                            "explicit_http_config": {"http2_protocol_options": {}},
                        }
                    },
                    "load_assignment": {
                        "cluster_name": "ads",
                        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": str(ads)}}}}]}],
                    },
                }
            ]
        },
    }
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(binary, "--config-yaml", json.dumps(bootstrap), "--concurrency", "1", "--disable-hot-restart"),
            stdout=output,
            stderr=output,
        )
        try:
            yield
        finally:
            process.kill()
            await process.wait()


def resources(port: int, backends: dict[str, int], to: str) -> dict[str, dict[str, Message]]:
    """One listener on `port`, with one route to one of the clusters."""
    made = listener("l", "r", port=port)
    made.address.socket_address.address = "127.0.0.1"
    packed = made.filter_chains[0].filters[0].typed_config
    manager = HttpConnectionManager.FromString(packed.value)
    manager.http_filters.add(name="router").typed_config.CopyFrom(PackedAny(type_url=ROUTER))
    packed.value = manager.SerializeToString()
    route = routes("r", to)
    route.virtual_hosts[0].domains[:] = ["*"]
    assignments = {name: endpoints(name, backend_port) for name, backend_port in backends.items()}
    for assignment in assignments.values():
        assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.address = "127.0.0.1"
    return {
        CDS: {name: cluster(name) for name in backends},
        EDS: dict(assignments),
        LDS: {"l": made},
        RDS: {"r": route},
    }


class Traffic:
    """Requests on one connection, one after the other, until stopped."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.answers: list[tuple[int, str]] = []
        self.seen = asyncio.Condition()

    async def run(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        while True:
            writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = int(head.partition("content-length: ")[2].split()[0])
            body = (await reader.readexactly(length)).decode()
            async with self.seen:
                self.answers.append((int(head.split()[1]), body))
                self.seen.notify_all()

    async def until(self, body: str) -> None:
        """Wait for a new answer with this body."""
        start = len(self.answers)
        async with asyncio.timeout(10), self.seen:
            await self.seen.wait_for(lambda: (200, body) in self.answers[start:])


@pytest.fixture
def folder() -> AsyncIterator[Path]:  # type: ignore[misc]  # a generator, run by pytest
    with tempfile.TemporaryDirectory(prefix="xlb-") as path:
        yield Path(path)


async def test_a_change_is_in_force_when_acked_and_loses_no_request(envoy_binary: Path, folder: Path) -> None:
    async with AsyncExitStack() as stack:
        ports = {f"b{i}": await stack.enter_async_context(backend(f"b{i}")) for i in range(4)}
        server = AdsServer()
        await server.start(folder / "ads.sock")
        stack.push_async_callback(server.stop)
        port = free_port()
        server.set_snapshot(resources(port, {"b0": ports["b0"]}, "b0"), "0")
        await stack.enter_async_context(envoy(envoy_binary, folder / "ads.sock", folder / "envoy.log"))
        assert await server.wait_acked("0", 20) == Acked("0"), (folder / "envoy.log").read_text()
        traffic = Traffic(port)
        running = asyncio.create_task(traffic.run())
        stack.callback(running.cancel)
        await traffic.until("b0")
        for turn in range(1, 40):
            # Each turn the cluster in use goes and another one comes.
            name = f"b{turn % 4}"
            server.set_snapshot(resources(port, {name: ports[name]}, name), str(turn))
            assert await server.wait_acked(str(turn), 10) == Acked(str(turn))
            await traffic.until(name)
        assert not running.done()
        assert {status for status, _ in traffic.answers} == {200}


async def test_what_envoy_refuses_is_told_and_the_old_stays(envoy_binary: Path, folder: Path) -> None:
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(backend("first"))
        server = AdsServer()
        await server.start(folder / "ads.sock")
        stack.push_async_callback(server.stop)
        port = free_port()
        good = resources(port, {"first": first}, "first")
        server.set_snapshot(good, "good")
        await stack.enter_async_context(envoy(envoy_binary, folder / "ads.sock", folder / "envoy.log"))
        assert await server.wait_acked("good", 20) == Acked("good"), (folder / "envoy.log").read_text()
        # Envoy checks regular expressions when it takes a route; constraints do not tell.
        bad = resources(port, {"first": first, "second": first}, "first")
        bad[RDS]["r"].virtual_hosts[0].routes[0].match.safe_regex.regex = "("  # type: ignore[attr-defined]
        server.set_snapshot(bad, "bad")
        answer = await server.wait_acked("bad", 10)
        assert isinstance(answer, Nacked)
        assert answer.type_url == RDS
        assert "missing )" in answer.message
        traffic = Traffic(port)
        running = asyncio.create_task(traffic.run())
        stack.callback(running.cancel)
        await traffic.until("first")
        server.set_snapshot(good, "good again")
        assert await server.wait_acked("good again", 10) == Acked("good again")


async def test_envoy_gets_everything_again_after_a_restart_of_the_server(envoy_binary: Path, folder: Path) -> None:
    async with AsyncExitStack() as stack:
        ports = {name: await stack.enter_async_context(backend(name)) for name in ("one", "two")}
        server = AdsServer()
        await server.start(folder / "ads.sock")
        port = free_port()
        server.set_snapshot(resources(port, {"one": ports["one"]}, "one"), "1")
        await stack.enter_async_context(envoy(envoy_binary, folder / "ads.sock", folder / "envoy.log"))
        assert await server.wait_acked("1", 20) == Acked("1"), (folder / "envoy.log").read_text()
        traffic = Traffic(port)
        running = asyncio.create_task(traffic.run())
        stack.callback(running.cancel)
        await traffic.until("one")
        await server.stop()
        await traffic.until("one")
        server = AdsServer()
        server.set_snapshot(resources(port, dict(ports), "two"), "2")
        await server.start(folder / "ads.sock")
        stack.push_async_callback(server.stop)
        assert await server.wait_acked("2", 30) == Acked("2")
        await traffic.until("two")
        assert {status for status, _ in traffic.answers} == {200}
