"""Client, server and replay over real gRPC, on loopback and Unix sockets."""

from __future__ import annotations

import asyncio
import gzip
import os
import shutil
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from envoy.service.discovery.v3.discovery_pb2 import DiscoveryRequest, DiscoveryResponse
from google.protobuf.message import Message

from tests.unit.xds_builders import CDS, EDS, LDS, RDS, cluster, endpoints, listener, response, routes
from translator.model import Rejected
from xds_server.cache import Snapshot
from xds_server.captures import CaptureError, Fit, load_scenario
from xds_server.client import AdsClient, ApplyResult, ClientOptions, ConnectionState, Phase
from xds_server.grpc_options import check_target, claim_unix_path, client_options
from xds_server.node import ControlPlane, Workload, node_for
from xds_server.replay import Replay, ReplayControl
from xds_server.resources import ADS_METHOD, ADS_SERVICE
from xds_server.server import Acked, AdsServer, Nacked

ALL_V1, HALF_V3 = "bookinfo-all-v1", "bookinfo-reviews-50-v3"
FAST = ClientOptions(backoff_first=0.02, backoff_limit=0.1, removal_grace=0.05)


def workload(name: str = "productpage-v1", **changes: object) -> Workload:
    app = name.partition("-")[0]
    return Workload(name=name, ip="127.0.0.1", labels={"app": app}, **changes)  # type: ignore[arg-type]


async def eventually(condition: Callable[[], bool], what: str, timeout: float = 10) -> None:
    """Wait until a condition holds."""
    try:
        async with asyncio.timeout(timeout):
            while not condition():  # noqa: ASYNC110 - any condition, not one that could set an event
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"not within {timeout} s: {what}") from None


class Applied:
    """An `on_snapshot` that notes what it gets and can be held, told to reject, or to fail."""

    def __init__(self) -> None:
        self.snapshots: list[Snapshot] = []
        self.states: list[ConnectionState] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.rejected: tuple[Rejected, ...] = ()
        self.failures: list[Exception] = []

    async def __call__(self, snapshot: Snapshot) -> ApplyResult:
        self.snapshots.append(snapshot)
        await self.gate.wait()
        if self.failures:
            raise self.failures.pop(0)
        return ApplyResult(self.rejected)


@asynccontextmanager
async def running(
    target: str, who: Workload | None = None, options: ClientOptions = FAST
) -> AsyncIterator[tuple[AdsClient, Applied]]:
    applied = Applied()
    client = AdsClient(target, node_for(who or workload()), applied, on_state=applied.states.append, options=options)
    task = asyncio.create_task(client.run())
    try:
        yield client, applied
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def replaying(folder: Path, listen: str = "127.0.0.1:0") -> AsyncIterator[tuple[Replay, str]]:
    replay = Replay(folder)
    address = await replay.start(listen)
    try:
        yield replay, address
    finally:
        await replay.stop()


def reviews_weights(snapshot: Snapshot) -> list[int]:
    """Weights of the clusters that reviews goes to; [] for a single one."""
    (host,) = (h for h in snapshot.routes["9080"].virtual_hosts if h.name.startswith("reviews."))
    return sorted(c.weight.value for c in host.routes[0].route.weighted_clusters.clusters)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_a_captured_configuration_arrives_and_is_acked(scenarios: Path, tmp_path: Path, kind: str) -> None:
    listen = "127.0.0.1:0" if kind == "tcp" else f"unix://{tmp_path}/ads.sock"
    async with replaying(scenarios / ALL_V1, listen) as (replay, address), running(address) as (client, applied):
        result = await replay.wait_acked(10)
        assert (result.clients, result.refused, result.silent) == (1, (), 0)
        (snapshot,) = applied.snapshots
        assert (len(snapshot.clusters), len(snapshot.endpoints)) == (18, 14)
        assert set(snapshot.listeners) == {"0.0.0.0_9080", "virtualOutbound", "virtualInbound"}
        assert set(snapshot.routes) == {"9080"}
        assert client.snapshot is snapshot
        assert client.state.phase is Phase.CONNECTED
        assert client.state.control_plane == ControlPlane("xlb-replay", "productpage-v1", "exact")
        assert client.timing is not None
        assert client.timing.version == snapshot.version
        assert 0 <= client.timing.in_force - client.timing.received < 5


async def test_an_ack_is_sent_only_when_the_snapshot_is_in_force(scenarios: Path) -> None:
    async with replaying(scenarios / ALL_V1) as (replay, address), running(address) as (client, applied):
        applied.gate.clear()
        await eventually(lambda: bool(applied.snapshots), "a snapshot")
        result = await replay.wait_acked(0.1)
        assert (result.clients, result.silent) == (1, 1)
        assert client.snapshot is None
        applied.gate.set()
        assert (await replay.wait_acked(10)).silent == 0
        assert client.snapshot is applied.snapshots[-1]


async def test_a_switch_reaches_every_stream(scenarios: Path) -> None:
    async with (
        replaying(scenarios / ALL_V1) as (replay, address),
        running(address) as (_, page),
        running(address, workload("reviews-v2")) as (_, reviews),
    ):
        assert (await replay.wait_acked(10, at_least=2)).clients == 2
        assert reviews_weights(page.snapshots[-1]) == []
        replay.switch(scenarios / HALF_V3)
        result = await replay.wait_acked(10, at_least=2)
        assert (result.scenario, result.clients, result.refused, result.silent) == (HALF_V3, 2, (), 0)
        for applied in (page, reviews):
            assert reviews_weights(applied.snapshots[-1]) == [50, 50]
        # Only the routes differ between the two; everything else is the very same object.
        assert page.snapshots[-1].clusters["PassthroughCluster"] is page.snapshots[0].clusters["PassthroughCluster"]


async def test_a_switch_to_a_broken_folder_changes_nothing(scenarios: Path, tmp_path: Path) -> None:
    async with replaying(scenarios / ALL_V1) as (replay, _):
        version = replay.version
        with pytest.raises(CaptureError, match="holds no captured node"):
            replay.switch(tmp_path)
        assert replay.version == version
        assert replay.scenario.name == ALL_V1


@pytest.mark.parametrize(
    ("who", "folder", "info", "clusters"),
    [
        (workload("reviews-v2"), "reviews-v2", "exact", 18),
        (workload("reviews-v2", namespace="elsewhere"), "reviews-v2", "exact", 18),
        (workload("reviews-v3"), "reviews-v2", "same-app", 18),
        (workload("ratings-v1"), "", "none", 0),
        (workload("productpage-v1", generator="grpc"), "", "none", 0),
    ],
    ids=["exact", "other namespace", "same app", "none", "other kind"],
)
async def test_each_workload_gets_the_folder_that_fits(
    scenarios: Path, who: Workload, folder: str, info: str, clusters: int
) -> None:
    async with replaying(scenarios / ALL_V1) as (replay, address), running(address, who) as (client, applied):
        await replay.wait_acked(10)
        assert client.state.control_plane == ControlPlane("xlb-replay", folder, info)
        assert len(applied.snapshots[-1].clusters) == clusters


async def test_what_cannot_be_put_in_force_is_nacked_by_name(scenarios: Path) -> None:
    async with replaying(scenarios / ALL_V1) as (replay, address), running(address) as (client, applied):
        applied.rejected = (Rejected(RDS, "9080", "virtual_hosts[0].domains", "cannot be carried out"),)
        (refused,) = (await replay.wait_acked(10)).refused
        assert refused == (
            "sidecar~127.0.0.1~productpage-v1.default~default.svc.cluster.local: RDS: 1 resource rejected: "
            "RDS '9080' field virtual_hosts[0].domains: cannot be carried out"
        )
        assert [r.name for r in client.rejected] == ["9080"]
        # The next configuration is a new chance.
        applied.rejected = ()
        replay.switch(scenarios / HALF_V3)
        result = await replay.wait_acked(10)
        assert (result.refused, result.silent) == ((), 0)
        assert not client.rejected


async def test_a_malformed_resource_is_nacked_by_name_and_the_last_good_one_stays(
    scenarios: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(scenarios / HALF_V3, folder)
    file = folder / "productpage-v1" / "cds.pb"
    damaged = DiscoveryResponse.FromString(file.read_bytes())
    names = [i for i, a in enumerate(damaged.resources) if b"outbound|9080|v1|reviews.default" in a.value[:60]]
    bad = cluster("outbound|9080|v1|reviews.default.svc.cluster.local", timeout=0)
    damaged.resources[names[0]].value = bad.SerializeToString()
    file.write_bytes(damaged.SerializeToString())
    async with replaying(scenarios / ALL_V1) as (replay, address), running(address) as (_, applied):
        await replay.wait_acked(10)
        replay.switch(folder)
        (refused,) = (await replay.wait_acked(10)).refused
        assert f"CDS '{bad.name}' field connect_timeout: is 0s, must be greater than 0s" in refused
        await eventually(lambda: reviews_weights(applied.snapshots[-1]) == [50, 50], "the good part in force")
        last = applied.snapshots[-1]
        assert last.clusters[bad.name] is applied.snapshots[0].clusters[bad.name]
        replay.switch(scenarios / HALF_V3)
        result = await replay.wait_acked(10)
        assert (result.refused, result.silent) == ((), 0)


async def test_a_failed_apply_is_nacked_tried_again_and_then_acked(scenarios: Path) -> None:
    async with replaying(scenarios / ALL_V1) as (replay, address), running(address) as (client, applied):
        applied.gate.clear()
        applied.failures = [OSError("no memory for a map")]
        await eventually(lambda: len(applied.snapshots) == 1, "the first try")
        applied.gate.set()
        await eventually(lambda: len(applied.snapshots) == 2, "the second try")
        await eventually(lambda: replay.streams[0].in_force, "an ACK that takes the NACK back")
        assert client.snapshot is not None


async def test_a_failed_apply_says_why(scenarios: Path) -> None:
    async with replaying(scenarios / ALL_V1) as (replay, address), running(address) as (_, applied):
        applied.failures = [OSError("no memory for a map")] * 1000
        refused = (await replay.wait_acked(10)).refused
        assert "cannot be put in force: OSError: no memory for a map" in refused[0]


async def test_the_client_comes_back_after_a_restart_of_the_server(scenarios: Path) -> None:
    async with replaying(scenarios / ALL_V1) as (first, address), running(address) as (client, applied):
        await first.wait_acked(10)
        await first.stop()
        await eventually(lambda: client.state.phase is Phase.WAITING, "the loss to be noticed")
        assert client.snapshot is applied.snapshots[0]
        async with replaying(scenarios / ALL_V1, address) as (second, _):
            result = await second.wait_acked(10)
            assert (result.clients, result.silent) == (1, 0)
            # The same content under another version and another nonce needs no work.
            assert len(applied.snapshots) == 1
            second.switch(scenarios / HALF_V3)
            assert (await second.wait_acked(10)).silent == 0
            assert reviews_weights(applied.snapshots[-1]) == [50, 50]
        phases = [state.phase for state in applied.states]
        assert phases.count(Phase.CONNECTED) == 2


async def test_a_change_while_the_client_was_away_arrives_when_it_is_back(scenarios: Path) -> None:
    async with replaying(scenarios / ALL_V1) as (first, address), running(address) as (_, applied):
        await first.wait_acked(10)
        await first.stop()
        async with replaying(scenarios / HALF_V3, address) as (second, _):
            assert (await second.wait_acked(10)).silent == 0
            assert reviews_weights(applied.snapshots[-1]) == [50, 50]


async def test_a_server_that_is_not_there_is_named_with_a_remedy_and_tried_again() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        async with running(address) as (client, applied):
            waits = [Phase.WAITING] * 3
            await eventually(
                lambda: [s.phase for s in applied.states if s.phase is Phase.WAITING][:3] == waits, "three attempts"
            )
            state = next(s for s in applied.states if s.phase is Phase.WAITING)
            assert state.target == address
            assert state.error == "cannot connect: Connection refused"
            assert "xlb replay" in state.remedy
            assert 0 < state.retry_in <= FAST.backoff_limit
        assert client.state.phase is Phase.STOPPED


async def test_a_response_above_the_receive_limit_is_named(scenarios: Path) -> None:
    options = ClientOptions(backoff_first=0.02, backoff_limit=0.05, max_message_bytes=4096)
    async with replaying(scenarios / ALL_V1) as (_, address), running(address, options=options) as (client, _applied):
        await eventually(lambda: client.state.phase is Phase.WAITING, "the failure")
        assert client.state.error.startswith("RESOURCE_EXHAUSTED")
        assert "receive limit" in client.state.remedy


@pytest.mark.parametrize("jitter", [0.0, 0.5, 1.0])
def test_back_off_grows_to_its_limit_and_is_jittered(jitter: float) -> None:
    async def never(snapshot: Snapshot) -> ApplyResult:
        raise AssertionError

    options = ClientOptions(backoff_first=1, backoff_factor=2, backoff_limit=10)
    client = AdsClient("127.0.0.1:1", node_for(workload()), never, options=options, jitter=lambda: jitter)
    pauses = [client._backoff(n) for n in (1, 2, 3, 4, 5, 10_000)]
    assert pauses == [full * (1 - jitter / 2) for full in (1, 2, 4, 8, 10, 10)]


# The wire, spoken by hand.


class Raw:
    """One stream, request by request."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.call = channel.stream_stream(
            f"/{ADS_SERVICE}/{ADS_METHOD}",
            request_serializer=DiscoveryRequest.SerializeToString,
            response_deserializer=DiscoveryResponse.FromString,
        )()

    async def send(self, type_url: str, *names: str, version: str = "", nonce: str = "", node: bool = False) -> None:
        request = DiscoveryRequest(type_url=type_url, resource_names=names, version_info=version, response_nonce=nonce)
        if node:
            request.node.CopyFrom(node_for(workload()))
        await self.call.write(request)

    async def next(self) -> DiscoveryResponse:
        async with asyncio.timeout(10):
            read = await self.call.read()
        assert isinstance(read, DiscoveryResponse)
        return read


@asynccontextmanager
async def raw(address: str) -> AsyncIterator[Raw]:
    async with grpc.aio.insecure_channel(check_target(address), options=client_options()) as channel:
        stream = Raw(channel)
        yield stream
        stream.call.cancel()


async def test_a_stale_nonce_is_ignored(scenarios: Path) -> None:
    async with replaying(scenarios / ALL_V1) as (replay, address), raw(address) as stream:
        await stream.send(CDS, node=True)
        clusters = await stream.next()
        await stream.send(LDS)
        first = await stream.next()
        await stream.send(RDS, "9080")
        assert (await stream.next()).type_url == RDS
        replay.switch(scenarios / HALF_V3)
        newer = await stream.next()
        assert newer.type_url == RDS
        # An answer to something never sent, and one with other names to an old nonce: neither gets a reply.
        await stream.send(RDS, "other", version=first.version_info, nonce="never")
        await stream.send(RDS, "other", version=first.version_info, nonce="")
        reply = await stream.next()
        assert [a.type_url for a in reply.resources] == [RDS], "an empty nonce asks anew"
        await stream.send(RDS, "9080", version=newer.version_info, nonce=newer.nonce)
        await stream.send(EDS, "outbound|9080||details.default.svc.cluster.local")
        assert (await stream.next()).type_url == EDS, "no reply to the stale names"
        assert clusters.nonce != first.nonce


async def test_the_first_request_must_carry_a_node(scenarios: Path) -> None:
    async with replaying(scenarios / ALL_V1) as (_, address), raw(address) as stream:
        await stream.send(CDS)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.next()
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_delta_is_said_to_be_unimplemented(scenarios: Path) -> None:
    async with (
        replaying(scenarios / ALL_V1) as (_, address),
        grpc.aio.insecure_channel(address, options=client_options()) as channel,
    ):
        call: Any = channel.stream_stream(f"/{ADS_SERVICE}/DeltaAggregatedResources")()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


# The server of the node Envoy.


def one_service(name: str, port: int = 9080) -> dict[str, dict[str, Message]]:
    return {
        CDS: {name: cluster(name)},
        EDS: {name: endpoints(name, port)},
        LDS: {"l": listener("l", "80")},
        RDS: {"80": routes("80", name)},
    }


@asynccontextmanager
async def serving(path: Path) -> AsyncIterator[tuple[AdsServer, str]]:
    server = AdsServer()
    address = await server.start(path)
    try:
        yield server, address
    finally:
        await server.stop()


async def test_the_server_tells_when_a_version_is_in_force(tmp_path: Path) -> None:
    async with serving(tmp_path / "ads.sock") as (server, address):
        assert (tmp_path / "ads.sock").stat().st_mode & 0o777 == 0o600
        server.set_snapshot(one_service("a"), "one")
        with pytest.raises(TimeoutError):
            await server.wait_acked("one", 0.05)  # nobody is there
        async with running(address) as (_, applied):
            assert await server.wait_acked("one", 10) == Acked("one")
            applied.gate.clear()
            server.set_snapshot(one_service("b"), "two")
            with pytest.raises(TimeoutError):
                await server.wait_acked("two", 0.1)
            with pytest.raises(ValueError, match="'one' is not being served"):
                await server.wait_acked("one", 0.1)
            waiting = asyncio.create_task(server.wait_acked("two", 10))
            await asyncio.sleep(0)
            server.set_snapshot(one_service("b", port=9081), "three")
            applied.gate.set()
            assert await waiting == Acked("two"), "a newer version includes it"
            await eventually(lambda: set(applied.snapshots[-1].clusters) == {"b"}, "the old cluster to go")
            assert [s.version for s in server.streams] == ["three"]
    assert not (tmp_path / "ads.sock").exists()


async def test_the_server_tells_what_was_refused(tmp_path: Path) -> None:
    async with serving(tmp_path / "ads.sock") as (server, address), running(address):
        server.set_snapshot(one_service("a"), "one")
        assert await server.wait_acked("one", 10) == Acked("one")
        bad = one_service("a")
        bad[RDS] = {"80": routes("80", "a", "a")}
        server.set_snapshot(bad, "two")
        answer = await server.wait_acked("two", 10)
        assert isinstance(answer, Nacked)
        assert answer.type_url == RDS
        assert "RDS '80' field virtual_hosts[1].domains[0]: 'a' of virtual host 'a'" in answer.message
        server.set_snapshot(one_service("a"), "three")
        assert await server.wait_acked("three", 10) == Acked("three")


async def test_many_clients_connect_to_one_server(tmp_path: Path) -> None:
    async with serving(tmp_path / "ads.sock") as (server, address):
        server.set_snapshot(one_service("a"), "one")
        async with running(address), running(address), running(address):
            await eventually(lambda: len(server.streams) == 3, "three streams")
            assert await server.wait_acked("one", 10) == Acked("one")
        await eventually(lambda: not server.streams, "the streams to go")


# Addresses.


async def test_a_port_in_use_is_refused_and_two_servers_run_side_by_side(scenarios: Path) -> None:
    async with (
        replaying(scenarios / ALL_V1) as (_, first),
        replaying(scenarios / HALF_V3) as (_, second),
        running(first) as (_, one),
        running(second) as (_, two),
    ):
        with pytest.raises(OSError, match=f"cannot listen on {first}"):
            await Replay(scenarios / ALL_V1).start(first)
        await eventually(lambda: bool(one.snapshots and two.snapshots), "both")
        assert reviews_weights(one.snapshots[-1]) == []
        assert reviews_weights(two.snapshots[-1]) == [50, 50]


async def test_a_socket_of_a_living_process_is_not_taken_but_that_of_a_dead_one_is(
    scenarios: Path, tmp_path: Path
) -> None:
    path = tmp_path / "ads.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with replaying(scenarios / ALL_V1, f"unix://{path}") as (_, address):
        with pytest.raises(OSError, match="another process listens on"):
            await Replay(scenarios / ALL_V1).start(address)
        async with running(address) as (_, applied):
            await eventually(lambda: bool(applied.snapshots), "the first server to be served still")


def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(FileExistsError, match="is not a socket"):
        claim_unix_path(tmp_path / "file")
    with pytest.raises(ValueError, match="longer than the kernel's 107 bytes"):
        claim_unix_path(tmp_path / ("x" * 108))


@pytest.mark.parametrize("target", ["istiod:15010", "127.0.0.1:15010", "[::1]:15010", "istiod.istio-system.svc:15010"])
def test_good_targets(target: str) -> None:
    assert check_target(target) == target


@pytest.mark.parametrize(
    "target", ["", "istiod", "istiod:", ":15010", "::1:15010", "istiod:99999", "http://istiod:15010x", "unix://a/b"]
)
def test_bad_targets_are_named(target: str) -> None:
    with pytest.raises(ValueError, match="unix:///"):
        check_target(target)


# Folders.


def test_a_scenario_is_read_gzipped_too_and_a_node_folder_alone(scenarios: Path, tmp_path: Path) -> None:
    node = tmp_path / "some" / "node"
    node.mkdir(parents=True)
    source = scenarios / ALL_V1 / "productpage-v1"
    shutil.copy(source / "node.json", node)
    for kind in ("cds", "eds", "lds", "rds"):
        (node / f"{kind}.pb.gz").write_bytes(gzip.compress((source / f"{kind}.pb").read_bytes()))
    plain = next(n for n in load_scenario(scenarios / ALL_V1).nodes if n.folder == "productpage-v1")
    for folder in (tmp_path / "some", node):
        (read,) = load_scenario(folder).nodes
        assert read.resources == plain.resources
        assert read.identity == plain.identity


def test_among_folders_of_one_workload_the_one_named_like_it_is_found(scenarios: Path, tmp_path: Path) -> None:
    for name in ("another-capture", "productpage-v1"):
        shutil.copytree(scenarios / ALL_V1 / "productpage-v1", tmp_path / name)
    fit, found = load_scenario(tmp_path).find(node_for(workload()))
    assert fit is Fit.EXACT
    assert found is not None
    assert found.folder == "productpage-v1"


def broken_folders() -> Iterator[tuple[str, dict[str, bytes], str]]:
    good = b'{"id": "sidecar~1.1.1.1~a.b~b.svc.cluster.local"}'
    yield "empty", {}, "holds no captured node"
    yield "node.json", {"n/node.json": b"{", "n/cds.pb": b""}, "node.json is not a node"
    yield "pb", {"n/node.json": good, "n/cds.pb": b"\xff"}, "cds.pb is not a captured DiscoveryResponse"
    yield "gz", {"n/node.json": good, "n/cds.pb.gz": b"no gzip"}, "cds.pb.gz is not a captured DiscoveryResponse"
    wrong = response(LDS, listener("l")).SerializeToString()
    yield "type", {"n/node.json": good, "n/cds.pb": wrong}, "cds.pb: resource 0 is a .*Listener"


@pytest.mark.parametrize(("files", "why"), [b[1:] for b in broken_folders()], ids=[b[0] for b in broken_folders()])
def test_a_folder_that_cannot_be_served_is_named(tmp_path: Path, files: dict[str, bytes], why: str) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CaptureError, match=why):
        load_scenario(tmp_path)


# Control.


async def ask(path: Path, line: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(line)
    await writer.drain()
    answer = await reader.readline()
    writer.close()
    return answer


async def test_the_control_socket_switches(scenarios: Path, tmp_path: Path) -> None:
    path = tmp_path / "made" / "control.sock"
    async with replaying(scenarios / ALL_V1) as (replay, address), running(address) as (_, applied):
        await replay.wait_acked(10)
        control = ReplayControl(replay, path)
        await control.start()
        try:
            assert path.stat().st_mode & 0o777 == 0o600
            with pytest.raises(OSError, match="another process listens"):
                await ReplayControl(replay, path).start()
            answer = await ask(path, f'{{"switch": "{scenarios / HALF_V3}", "wait": 10}}\n'.encode())
            assert answer == (
                b'{"ok": true, "scenario": "bookinfo-reviews-50-v3", "clients": 1, "refused": [], "silent": 0}\n'
            )
            assert reviews_weights(applied.snapshots[-1]) == [50, 50]
            assert b"is not a folder" in await ask(path, b'{"switch": "/nowhere"}\n')
            for bad in (b"nonsense\n", b"[]\n", b'{"switch": 7}\n', b'{"wait": 1}\n'):
                assert b"a command is" in await ask(path, bad)
            assert await ask(path, b"x" * 100_000 + b"\n") == b""
            assert replay.scenario.name == HALF_V3
        finally:
            await control.stop()
        assert not os.path.exists(path)
