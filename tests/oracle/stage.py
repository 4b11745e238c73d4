"""Everything that one oracle file needs, running in the network namespace of this process: the rim.

replay ──ADS──► agent; backends and the client, each started through `xlb exec`, so that their sockets are in cgroups
of ours.  The address of every backend and every destination is local, so nothing can leave the namespace.
"""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from tests.bench.lab import Lab, LabError, converse
from tests.bench.mesh import Mesh, difference
from tests.oracle.judge import Attempt
from tests.oracle.scenario import Answer, Backend, Headers, Node, Oracle, Request, Upstream

KERNEL: Final = "NONE"
"""The counter of requests that the kernel carried: no reason not to."""

_REQUEST_TIMEOUT_S: Final = 30.0
_MIRROR_WAIT_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class _Reply:
    """One answer, as it was seen."""

    answer: Answer
    tcp: bool

    @property
    def outcome(self) -> str:
        """As the keys of `counts` have it."""
        return (self.answer.served or "-") if self.tcp else self.answer.outcome


class Stage:
    """A running mesh with the backends of a scenario and a client in the captured workload."""

    def __init__(self, lab: Lab, mesh: Mesh, oracle: Oracle) -> None:
        self._lab = lab
        self._mesh = mesh
        self._oracle = oracle
        self._log = lab.directory / "reached.log"
        self._client: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Raises LabError naming what did not start."""
        for address in self._oracle.addresses():
            prefix = 128 if ":" in address else 32
            self._lab.run(["ip", "address", "add", f"{address}/{prefix}", "dev", "lo"])
        self._mesh.start_replay(str(self._only_this_node()))
        self._mesh.start_agent()
        self._log.touch()
        for backend in self._oracle.backends:
            self._start_backend(backend)
        for backend in self._oracle.backends:
            for port in backend.names:
                self._lab.wait_listening(backend.workload, backend.address, port)
        self._start_client(self._oracle.node)

    def _only_this_node(self) -> Path:
        """The scenario without other captures of the same workload: replay chooses by the workload's name."""
        folder = self._lab.directory / "scenarios" / self._oracle.scenario.name
        folder.mkdir(parents=True)
        wanted = self._oracle.node
        for file in self._oracle.scenario.glob("*/node.json"):
            metadata = json.loads(file.read_text(encoding="utf-8"))["metadata"]
            same = (metadata.get("WORKLOAD_NAME"), metadata.get("NAMESPACE")) == (wanted.workload, wanted.namespace)
            if file.parent == wanted.folder or not same:
                (folder / file.parent.name).symlink_to(file.parent.resolve())
        return folder

    def _exec(self, who: Backend | Node, *command: str) -> list[str]:
        """The command, as that workload."""
        words = ["exec", "--workload", who.workload, "--namespace", who.namespace]
        for name, value in who.labels.items():
            words += ["--label", f"{name}={value}"]
        words += ["--ip", who.address]
        if who.service_account:
            words += ["--service-account", who.service_account]
        return self._mesh.command(*words, "--", *command)

    def _start_backend(self, backend: Backend) -> None:
        listens = [f"{name}={backend.address}:{port}" for port, name in backend.names.items()]
        server = [sys.executable, "-m", "tests.oracle.backend", str(self._log), *listens]
        self._lab.start(backend.workload, self._exec(backend, *server))

    def _start_client(self, node: Node) -> None:
        command = self._exec(node, sys.executable, "-m", "tests.oracle.client")
        self._client = self._lab.start("client", command, talk=True)
        self._lab.wait(f"the configuration of {node.workload}", self._captured)

    def _captured(self) -> bool:
        """Whether the client's configuration is in force: a destination that it captures accepts connections.

        The virtual addresses have no listener of their own, so only the connect hook can make this true.
        """
        listening = {(b.address, port) for b in self._oracle.backends for port in b.names}
        virtual = {c.request.to for c in self._oracle.cases} - listening
        return not virtual or any(self._accepts(address) for address in sorted(virtual))

    def _accepts(self, to: tuple[str, int]) -> bool:
        (reply,) = self._order(Request(to, tcp=True), count=1, reuse=False, timeout=2.0)
        return not reply.answer.body.startswith(ConnectionRefusedError.__name__)

    def counters(self) -> Counter[str]:
        """Requests of all views so far by reason; KERNEL counts those the kernel carried.

        The same document as `xlb status -o json` prints, without starting a program for each request.
        """
        connection = _UnixConnection(self._mesh.run_dir / "admin.sock")
        try:
            connection.request("GET", "/status")
            response = connection.getresponse()
            told = json.loads(response.read())
        except (OSError, http.client.HTTPException, json.JSONDecodeError) as error:
            raise LabError(f"the agent does not tell its counters: {error}") from error
        finally:
            connection.close()
        counted: Counter[str] = Counter()
        for view in told["views"]:
            counted.update(view["requests"])
        return counted

    def send(self, request: Request, *, reuse: bool, expect_reached: int) -> Attempt:
        """Send a request once, on a new connection or on the one used before, and see what became of it.

        Waits a little for `expect_reached` backends to be reached: a mirror comes after the answer.
        """
        before, offset = self.counters(), self._log.stat().st_size
        (reply,) = self._order(request, count=1, reuse=reuse)
        counted = difference(before, self.counters())
        reached = self._reached(offset, expect_reached)
        return Attempt(replace(reply.answer, reached=reached), by_kernel=set(counted) == {KERNEL})

    def outcomes(self, request: Request, count: int) -> list[str]:
        """Send a request over so many new connections; the outcomes as the keys of `counts` have them."""
        return [reply.outcome for reply in self._order(request, count=count, reuse=False)]

    def _reached(self, offset: int, expected: int) -> tuple[str, ...]:
        deadline = time.monotonic() + _MIRROR_WAIT_S
        while True:
            with self._log.open("rb") as log:
                log.seek(offset)
                names = log.read().decode().split()
            if len(names) >= expected or time.monotonic() > deadline:
                return tuple(names)
            time.sleep(0.02)

    def _order(self, request: Request, *, count: int, reuse: bool, timeout: float = _REQUEST_TIMEOUT_S) -> list[_Reply]:
        if self._client is None:
            raise LabError("the client has not been started")
        order = {
            "to": request.to,
            "method": request.method,
            "host": request.host,
            "path": request.path,
            "headers": request.headers,
            "tcp": request.tcp,
            "count": count,
            "reuse": reuse,
            "timeout": timeout,
        }
        answers = json.loads(converse(self._client, json.dumps(order).encode()))
        return [_Reply(_answer(answer), request.tcp) for answer in answers]


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=10.0)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _answer(told: Mapping[str, Any]) -> Answer:
    """What the client told of one request."""
    saw = told["saw"]
    return Answer(
        status=told["status"],
        served=told["served"],
        body=told["body"],
        response_headers=_pairs(told["headers"]),
        elapsed_s=told["elapsed_s"],
        upstream=None if saw is None else Upstream(saw["method"], saw["path"], _pairs(saw["headers"])),
    )


def _pairs(items: Any) -> Headers:
    return tuple((name, value) for name, value in items)
