"""The oracle's own processes over real sockets, and what it reads from a scenario folder."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import pytest

from tests.bench.lab import Lab, converse
from tests.conftest import REPOSITORY
from tests.oracle.__main__ import carried, describe
from tests.oracle.peers import CapturedRules
from tests.oracle.play import Failure, Played
from tests.oracle.scenario import Request, ScenarioError, find_oracles, load_backends, load_oracle

ADDRESS = "127.45.67.89"
PORT = 28080


class Pair:
    """A backend on two ports, and a client."""

    def __init__(self, lab: Lab) -> None:
        self.log = lab.directory / "reached.log"
        listens = [f"echo:{port}={ADDRESS}:{port}" for port in (PORT, PORT + 1)]
        lab.start("backend", [sys.executable, "-m", "tests.oracle.backend", self.log, *listens])
        lab.wait_listening("backend", ADDRESS, PORT + 1)
        self._client = lab.start("client", [sys.executable, "-m", "tests.oracle.client"], talk=True)

    def order(self, **changes: Any) -> list[dict[str, Any]]:
        order = {
            "to": (ADDRESS, PORT),
            "method": "GET",
            "host": "echo",
            "path": "/",
            "headers": [],
            "tcp": False,
            "count": 1,
            "reuse": False,
            "timeout": 5.0,
        }
        answers: list[dict[str, Any]] = json.loads(converse(self._client, json.dumps({**order, **changes}).encode()))
        return answers


@pytest.fixture(scope="module")
def pair(monkeypatch_module: pytest.MonkeyPatch) -> Iterator[Pair]:
    monkeypatch_module.chdir(REPOSITORY)
    with Lab("xlb-unit") as lab:
        yield Pair(lab)


@pytest.fixture(scope="module")
def monkeypatch_module() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def test_the_backend_tells_what_it_saw(pair: Pair) -> None:
    (answer,) = pair.order(path="/a?b=c", headers=[["X-User", "alice"], ["x-user", "bob"]])
    assert (answer["status"], answer["served"]) == (200, f"echo:{PORT}")
    assert answer["saw"] == {
        "method": "GET",
        "path": "/a?b=c",
        "headers": [["Host", "echo"], ["X-User", "alice"], ["x-user", "bob"]],
    }
    assert "server" not in {name.lower() for name, _ in answer["headers"]}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([["x-test-status", "503"]], 503),
        ([["x-test-status", "503"], ["x-test-fail-n", "2"], ["x-envoy-attempt-count", "2"]], 503),
        ([["x-test-status", "503"], ["x-test-fail-n", "2"], ["x-envoy-attempt-count", "3"]], 200),
        ([["x-test-status", "204"]], 204),
        ([["x-test-status", "555"]], 555),
    ],
)
def test_the_backend_fails_as_asked(pair: Pair, headers: list[list[str]], status: int) -> None:
    (answer,) = pair.order(headers=headers)
    assert (answer["status"], answer["served"]) == (status, f"echo:{PORT}")


def test_the_backend_sleeps_as_asked(pair: Pair) -> None:
    (answer,) = pair.order(headers=[["x-test-sleep", "0.3"]])
    assert 0.3 <= answer["elapsed_s"] < 2.0


@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_methods(pair: Pair, method: str) -> None:
    for reuse in (False, True):  # a second request shows that the first was framed right
        (answer,) = pair.order(method=method, reuse=reuse)
        assert (answer["status"], answer["served"]) == (200, f"echo:{PORT}")
        assert method == "HEAD" or answer["saw"]["method"] == method


def test_bytes_are_answered_with_the_name(pair: Pair) -> None:
    (answer,) = pair.order(tcp=True, to=(ADDRESS, PORT + 1))
    assert answer["served"] == f"echo:{PORT + 1}"


def test_nobody_there_is_an_answer_too(pair: Pair) -> None:
    (answer,) = pair.order(to=(ADDRESS, PORT + 2))
    assert answer["status"] == 0
    assert answer["body"].startswith("ConnectionRefusedError")


def test_each_request_is_noted(pair: Pair) -> None:
    before = pair.log.stat().st_size
    assert len(pair.order(count=3)) == 3
    assert pair.log.read_text()[before:].split() == [f"echo:{PORT}"] * 3


def test_every_recorded_backend_is_one_that_is_started(scenarios: Path) -> None:
    files = find_oracles(scenarios)
    assert len(files) == 11
    for file in files:
        oracle = load_oracle(file)
        names = {name for backend in oracle.backends for name in backend.names.values()}
        recorded = {case.answer.served for case in oracle.cases if case.answer is not None}
        assert recorded <= names | {None}
        assert oracle.addresses() == ()


def test_captured_routes_tell_which_backends_are_as_good(scenarios: Path) -> None:
    (file,) = find_oracles(scenarios / "bookinfo-reviews-50-v3")
    oracle = load_oracle(file)
    rules = CapturedRules.load(oracle)
    weighted = rules.peers(Request(("127.2.0.4", 9080), host="reviews:9080"))
    assert weighted.interchangeable("reviews-v1", "reviews-v3")
    assert not weighted.interchangeable("reviews-v1", "reviews-v2")


SERVICES = """
kind: ServiceEntry
metadata: {name: web, namespace: demo}
spec:
  resolution: STATIC
  ports: [{name: http, number: 80, targetPort: 8080}, {name: other, number: 9090}]
  workloadSelector: {labels: {app: web}}
---
kind: WorkloadEntry
metadata: {name: web-v1, namespace: demo}
spec: {address: 10.1.1.1, labels: {app: web, version: v1}, serviceAccount: web}
---
kind: WorkloadEntry
metadata: {name: web-v2, namespace: elsewhere}
spec: {address: 10.1.1.2, labels: {app: web}}
---
kind: ServiceEntry
metadata: {name: ext, namespace: demo}
spec:
  resolution: STATIC
  ports: [{name: http, number: 8000}]
  endpoints: [{address: 10.1.2.1}, {address: 10.1.2.2, ports: {http: 8001}}, {address: unix:///x}]
"""


def test_backends_are_what_service_entries_select(tmp_path: Path) -> None:
    (tmp_path / "services.yaml").write_text(SERVICES)
    found = {b.workload: (b.address, dict(b.names)) for b in load_backends(tmp_path)}
    assert found == {
        "web-v1": ("10.1.1.1", {8080: "web-v1:8080", 9090: "web-v1:9090"}),
        "ext-0": ("10.1.2.1", {8000: "ext-0"}),
        "ext-1": ("10.1.2.2", {8001: "ext-1"}),
    }


def test_only_chooses_by_name(scenarios: Path) -> None:
    chosen = find_oracles(scenarios, "bookinfo-ratings-*")
    assert [file.parent.name for file in chosen] == ["bookinfo-ratings-abort", "bookinfo-ratings-delay"]
    with pytest.raises(ScenarioError, match="nothing-of-that-name"):
        find_oracles(scenarios, "nothing-of-that-name")


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "oracle.json"
    broken.write_text("{")
    with pytest.raises(ScenarioError, match=r"oracle\.json"):
        load_oracle(broken)


def test_the_report_tells_who_carried_what_and_what_failed() -> None:
    failure = Failure(2, "GET reviews:9080/ to 127.2.0.4:9080", ("status 404, expected 200",))
    played = Played("plain (client)", 3, 1, (failure,), {"NONE": 10, "POOL_EMPTY": 2, "ACTION_FAULT": 5}, "agent ended")
    assert (played.failed, played.by_kernel, played.by_envoy) == (2, 10, 7)
    assert describe(played, 1.0).splitlines() == [
        "plain (client): 1 of 3 cases passed in 1.0 s; kernel 10, Envoy 7 (ACTION_FAULT 5, POOL_EMPTY 2)",
        "  FAILED case 2: GET reviews:9080/ to 127.2.0.4:9080",
        "    status 404, expected 200",
        "  ERROR agent ended",
    ]
    assert carried({}) == "kernel 0, Envoy 0"


@pytest.mark.parametrize("arguments", [["/nonexistent"], []])
def test_usage_errors_exit_with_2(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "tests.oracle", *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done
    assert len(done.stderr.strip().splitlines()) <= 2


def http2(pair: Pair, *headers: tuple[str, str]) -> tuple[dict[str, str], bytes]:
    """One request with prior knowledge: response headers and body."""
    protocol = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    protocol.initiate_connection()
    request = [(":method", "GET"), (":path", "/h2"), (":scheme", "http"), (":authority", "echo"), *headers]
    protocol.send_headers(1, request, end_stream=True)
    answered, body = dict[str, str](), b""
    with socket.create_connection((ADDRESS, PORT), timeout=5) as connection:
        while True:
            connection.sendall(protocol.data_to_send())
            for event in protocol.receive_data(connection.recv(65536)):
                if isinstance(event, h2.events.ResponseReceived):
                    answered = {str(name): str(value) for name, value in event.headers or ()}
                elif isinstance(event, h2.events.DataReceived):
                    body += event.data or b""
                elif isinstance(event, h2.events.StreamEnded):
                    return answered, body


def test_the_backend_speaks_http2(pair: Pair) -> None:
    headers, body = http2(pair, ("x-user", "alice"))
    assert (headers[":status"], headers["x-echo-backend"]) == ("200", f"echo:{PORT}")
    assert json.loads(body) == {
        "method": "GET",
        "path": "/h2",
        "headers": [["host", "echo"], ["x-user", "alice"]],
    }


def test_the_backend_fails_as_grpc_does(pair: Pair) -> None:
    headers, body = http2(pair, ("x-test-grpc", "14"), ("x-test-fail-n", "1"))
    assert (headers[":status"], headers["grpc-status"], body) == ("200", "14", b"")
    headers, _ = http2(pair, ("x-test-grpc", "14"), ("x-test-fail-n", "1"), ("x-envoy-attempt-count", "2"))
    assert "grpc-status" not in headers
