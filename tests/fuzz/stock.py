"""A real Envoy on loopback, its connection manager as istiod configures it, everything routed to one backend."""

from __future__ import annotations

import asyncio
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from envoy.config.bootstrap.v3.bootstrap_pb2 import Bootstrap
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.extensions.filters.http.router.v3.router_pb2 import Router
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)

from tests.conftest import REPOSITORY
from xds_server.captures import read_response, response_file

CAPTURE: Final = REPOSITORY / "tests" / "data" / "scenarios" / "bookinfo-all-v1" / "productpage-v1"
_LISTENER: Final = "0.0.0.0_9080"
_DEADLINE: Final = 10.0


def captured_manager() -> Any:
    """The HttpConnectionManager that istiod made for an outbound listener."""
    file = response_file(CAPTURE, "lds")
    assert file is not None
    for resource in read_response(file).resources:
        listener: Any = Listener.FromString(resource.value)
        if listener.name == _LISTENER:
            packed = listener.filter_chains[0].filters[0].typed_config
            return HttpConnectionManager.FromString(packed.value)
    raise AssertionError(f"{file} has no listener {_LISTENER}")


def bootstrap(port: int, backend: int) -> Any:
    """One listener on `port`; every request goes to `backend`, both on 127.0.0.1."""
    made: Any = Bootstrap()
    made.node.id = made.node.cluster = "fuzz"
    cluster = made.static_resources.clusters.add(name="echo")
    cluster.connect_timeout.seconds = 5
    cluster.load_assignment.cluster_name = "echo"
    endpoint = cluster.load_assignment.endpoints.add().lb_endpoints.add().endpoint
    endpoint.address.socket_address.address = "127.0.0.1"
    endpoint.address.socket_address.port_value = backend

    manager = captured_manager()
    # What istiod's own filters need is not here; none of those in its list changes how a request is read.
    for field in ("http_filters", "access_log", "tracing", "rds"):
        manager.ClearField(field)
    # How long Envoy waits for a client whom it has told that it closes: by default a second for each refused request.
    manager.delayed_close_timeout.FromMilliseconds(100)
    manager.http_filters.add(name="router").typed_config.Pack(Router())
    host = manager.route_config.virtual_hosts.add(name="all", domains=["*"])
    route = host.routes.add()
    route.match.prefix = ""
    route.route.cluster = "echo"
    route.route.timeout.SetInParent()

    listener = made.static_resources.listeners.add(name="fuzz")
    listener.address.socket_address.address = "127.0.0.1"
    listener.address.socket_address.port_value = port
    listener.filter_chains.add().filters.add(name="http").typed_config.Pack(manager)
    return made


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def stock_envoy(binary: Path, backend: int) -> AsyncIterator[int]:
    """The port of a running Envoy whose backend is there.  What it said is shown if it does not start."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="xlb-fuzz-") as folder:
        config = Path(folder) / "bootstrap.pb"
        config.write_bytes(bootstrap(port, backend).SerializeToString())
        log = Path(folder) / "envoy.log"
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *(str(binary), "--config-path", str(config), "--concurrency", "1"),
                *("--disable-hot-restart", "--log-level", "warning", "--skip-deprecated-logs"),
                stdout=output,
                stderr=output,
            )
        try:
            await _until_open(process, port, log)
            yield port
            assert process.returncode is None, f"Envoy has ended:\n{log.read_text(errors='replace')}"
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def _until_open(process: asyncio.subprocess.Process, port: int, log: Path) -> None:
    loop = asyncio.get_running_loop()
    until = loop.time() + _DEADLINE
    while loop.time() < until and process.returncode is None:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.05)
            continue
        writer.close()
        return
    raise AssertionError(f"Envoy does not listen on 127.0.0.1:{port}:\n{log.read_text(errors='replace')}")
