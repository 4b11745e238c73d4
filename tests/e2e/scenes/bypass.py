"""Off-switches: by workload, by port, for established connections, by annotation; removed again, and kept."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

from demo.bookinfo.topology import PORT, service_address
from tests.e2e.world import FAST, SLOW, Traffic, World, check_answer, slow, until
from xlb.client import AdminClient

_NAME: Final = "default/productpage-v1"
_TRAFFIC: Final = "traffic.sidecar.istio.io/"
_ASK: Final = """\
import socket, sys
try:
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), 3) as s:
        s.sendall(b"GET /length/3 HTTP/1.1\\r\\nhost: details\\r\\nx-id: a\\r\\nconnection: close\\r\\n\\r\\n")
        answer = b"".join(iter(lambda: s.recv(65536), b""))
    print("captured" if b" 200 " in answer[:20] else answer)
except ConnectionRefusedError:
    print("direct")
"""


def _command(world: World, *words: str) -> str:
    """`xlb bypass ...`: what it prints."""
    program, group, *options = world.mesh.command("bypass")
    return world.lab.run([program, group, words[0], *options, *words[1:]])


def _add(
    world: World, workload: str | None = None, port: int | None = None, to: str = "direct", *, established: bool = False
) -> int:
    """As the command does; how many established connections are to leave."""
    asked = {"workload": workload, "port": port, "to": to, "established": established}
    return int(AdminClient(world.mesh.run_dir).post("bypasses", asked)["established"])


def _remove(world: World, workload: str | None = None, port: int | None = None) -> None:
    AdminClient(world.mesh.run_dir).post("bypasses/remove", {"workload": workload, "port": port})


def _captured(world: World) -> bool:
    """Whether a new connection of the client is; nobody listens at the virtual address itself."""
    try:
        world.dial().close()
    except ConnectionRefusedError:
        return False
    return True


def _explained(world: World) -> Mapping[str, Any]:
    words = {"from": "productpage-v1", "method": "GET", "url": "http://details:9080/details/0"}
    return AdminClient(world.mesh.run_dir).get("explain", words.items())


def by_workload_and_port(world: World) -> None:
    """A bypass holds for the next connection, that of the workload and the port before the wider ones."""
    world.warm()
    assert _captured(world)
    keys: Sequence[tuple[str | None, int | None]] = ((_NAME, None), (None, PORT), (_NAME, PORT))
    for workload, port in keys:
        _add(world, workload, port)
        assert not _captured(world), (workload, port)
        told = _explained(world)
        assert told["carried_by"] == "direct", told
        assert told["bypass"]["to"] == "direct", told
        _remove(world, workload, port)
        assert _captured(world), (workload, port)
    # Others do not count: another workload, another port.
    _add(world, "default/nobody")
    _add(world, None, PORT + 1)
    assert _captured(world)
    _remove(world, "default/nobody")
    _remove(world, None, PORT + 1)
    # The closest one decides.
    _add(world, None, PORT)
    _add(world, _NAME, None, "envoy")
    assert _captured(world)
    _add(world, _NAME, PORT)
    assert not _captured(world)
    for workload, port in keys:
        _remove(world, workload, port)
    world.warm()
    assert _explained(world)["bypass"] is None


def commands(world: World) -> None:
    """What the commands print, and what they refuse."""
    said = _command(world, "add", "--workload", _NAME, "--port", str(PORT))
    assert said.strip() == f"connections of {_NAME} to port {PORT} go straight to their destination", said
    assert not _captured(world)
    assert json.loads(_command(world, "list", "-o", "json"))["bypasses"] == [
        {"workload": _NAME, "port": PORT, "to": "direct", "known": True}
    ]
    for command in ("status", "workloads"):
        assert f"{PORT}" in world.lab.run(world.mesh.command(command)), command
    _command(world, "remove", "--workload", _NAME, "--port", str(PORT))
    assert _captured(world)
    program, group, *options = world.mesh.command("bypass")
    for words, code in (
        (("add",), 2),
        (("add", "--workload", "a/b/c"), 2),
        (("add", "--port", "0"), 2),
        (("remove", "--workload", _NAME), 1),
    ):
        asked = [program, group, words[0], *options, *words[1:]]
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
        assert done.returncode == code, (words, done)
        assert "Error: " in done.stderr, done


def to_envoy(world: World) -> None:
    """With --to envoy all requests are Envoy's, under the same rules, and are counted so."""
    world.warm()
    _add(world, _NAME, PORT, "envoy")
    told = _explained(world)
    assert (told["carried_by"], told["reason"]) == ("envoy", "BYPASSED"), told
    before = world.counters()
    with world.dial() as wire:
        for _ in range(5):
            assert world.get(wire, "/length/10").by_envoy
    after = world.counters()
    assert after[FAST] == before[FAST]
    assert after["BYPASSED"] == before["BYPASSED"] + 1, after - before  # a connection
    _remove(world, _NAME, PORT)
    world.warm()


def established(world: World) -> None:
    """Established connections go on in the kernel, or on demand with Envoy, without losing a request."""
    with world.dial() as moved, world.dial() as idle:
        world.warm(moved)
        world.warm(idle)
        _add(world, _NAME)
        before = world.counters()
        world.get(moved, "/length/10")
        assert world.counters()[FAST] == before[FAST] + 1
        # Within a request: its rest still goes the kernel's way.
        moved.send(b"POST /echo HTTP/1.1\r\nhost: details\r\nx-id: split\r\ncontent-length: 6\r\n\r\nabc")
        assert _add(world, _NAME, established=True) == 2
        moved.send(b"def")
        check_answer(moved.answer("POST"), "split", "a request on its way", b"abcdef")
        before = world.counters()
        for _ in range(3):
            assert world.get(moved, "/length/10").by_envoy
            world.get(moved, "/echo", method="POST", body=b"x" * 100_000)
        after = world.counters()
        assert after[FAST] == before[FAST]
        assert after["BYPASSED"] >= before["BYPASSED"] + 6
        # One that has not made a request since comes back.
        _remove(world, _NAME)
        world.get(idle, "/length/10")
        assert world.counters()[FAST] == after[FAST] + 1
        assert world.get(moved, "/length/10").by_envoy


def leaving_under_load(world: World) -> None:
    """Connections that are sent away while they work, and new ones meanwhile: no request is lost."""
    world.warm()
    before = world.counters()["BYPASSED"]
    paths = ("/length/10", slow("/length/10"), "/length/50000", "/length/3000")
    for _ in range(5):
        with Traffic(world, paths, 4) as traffic:
            traffic.flow(20)
            assert _add(world, _NAME, PORT, "envoy", established=True) == 4
            traffic.flow(20)
            _remove(world, _NAME, PORT)
            traffic.flow(20)
        assert not traffic.lost, traffic.lost
        assert {answer.partition(" ")[0] for answer in traffic.answers} == {"200"}, traffic.answers
    assert world.counters()["BYPASSED"] >= before + 5 * 20


def top(world: World) -> None:
    """`xlb top --once` shows what happens: views, shares, pools."""
    world.warm()
    command = world.mesh.command("top")
    with Traffic(world, ("/length/10", slow("/length/10")), 2, pause=0.001) as traffic:
        traffic.flow(10)
        told = json.loads(world.lab.run([*command, "--once", "-o", "json", "--interval", "0.3"]))
        table = world.lab.run([*command, "--once", "--interval", "0.3"])
    view = next(view for view in told["views"] if view["requests_per_s"])
    assert view["workloads"] == [_NAME], told
    assert 0.2 < view["kernel_share"] < 0.8, view
    assert set(view["reasons_per_s"]) >= {FAST, SLOW}, view
    backend = next(pool for pool in told["pools"] if pool["leads_to"] == "details-v1")
    assert backend["requests_per_s"], told
    assert backend["open"], told
    assert any(pool["leads_to"] == "Envoy" and pool["requests_per_s"] for pool in told["pools"]), told
    assert (told["lost_events"]["total"], told["keeper_error"]) == (0, ""), told
    assert "details-v1" in table, table
    assert "path normalization" in table, table


def _annotated(world: World, *notes: str) -> list[str]:
    """What to put before a command so that it runs as the client with these annotations."""
    *prefix, end = world.as_client()
    assert end == "--"
    return [*prefix, *(word for note in notes for word in ("--annotation", note)), end]


def _workloads(world: World) -> Sequence[Mapping[str, Any]]:
    told: Sequence[Mapping[str, Any]] = AdminClient(world.mesh.run_dir).get("workloads")["workloads"]
    return told


def by_annotation(world: World) -> None:
    """Istio's annotations say what of a workload is captured; a malformed one is refused in one line."""
    address, port = service_address("details")
    start, _, _ = address.rpartition(".")
    cases = {
        (f"{_TRAFFIC}excludeOutboundPorts={PORT}",): "direct",
        (f"{_TRAFFIC}excludeOutboundIPRanges=192.0.2.0/24,{start}.0/24",): "direct",
        (f"{_TRAFFIC}includeOutboundIPRanges=192.0.2.0/24",): "direct",
        (f"{_TRAFFIC}includeOutboundIPRanges={start}.0/24",): "captured",
        (f"{_TRAFFIC}includeOutboundIPRanges=", f"{_TRAFFIC}includeOutboundPorts={PORT}"): "captured",
        (f"{_TRAFFIC}includeOutboundPorts={PORT}", f"{_TRAFFIC}excludeOutboundIPRanges={address}/32"): "direct",
        (
            f"{_TRAFFIC}includeOutboundIPRanges={address}/32",
            f"{_TRAFFIC}excludeOutboundIPRanges={start}.0/24",
        ): "direct",
        ("sidecar.istio.io/inject=false",): "direct",
    }
    for notes, wanted in cases.items():
        command = [*_annotated(world, *notes), sys.executable, "-c", _ASK, address, str(port)]
        assert world.lab.run(command, 10.0).strip() == wanted, notes
    command = [*_annotated(world, f"{_TRAFFIC}excludeOutboundPorts=80;81"), "true"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done
    assert "excludeOutboundPorts" in done.stderr.splitlines()[-1], done.stderr


def kept_over_restarts() -> None:
    """Switches stay in force while no agent runs and after the next one has come, also without an ADS server."""
    with World() as world:
        world.warm()
        excluded = _annotated(world, f"{_TRAFFIC}excludeOutboundPorts={PORT}")
        ask = [*excluded[:-1], "--no-wait", "--", sys.executable, "-c", _ASK, service_address("details")[0], str(PORT)]
        keeps = world.lab.start("excluded", [*excluded, "sleep", "60"])
        until("the annotated workload", lambda: any(row["annotations"] and row["pids"] for row in _workloads(world)))
        _add(world, _NAME, PORT)
        world.mesh.stop_replay()
        world.mesh.kill_agent()
        assert not _captured(world)
        world.mesh.start_agent()
        assert not _captured(world)
        assert world.status()["bypasses"] == [{"workload": _NAME, "port": PORT, "to": "direct"}]
        _remove(world, _NAME, PORT)
        assert _captured(world)
        world.warm()
        assert world.lab.run(ask).strip() == "direct"
        assert [row["annotations"] for row in _workloads(world) if row["annotations"]], _workloads(world)
        world.lab.stop(keeps)
