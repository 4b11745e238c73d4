"""Everything that one oracle file needs, running in the network namespace of this process: the rim.

The subject (XLB), and backends and the client as workloads of it (`xlb exec`), so that their sockets are in cgroups of
ours.  The address of every backend and every destination is local, so nothing can leave the namespace.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from tests.bench.lab import Lab, LabError, converse
from tests.bench.mesh import difference
from tests.oracle.judge import Attempt
from tests.oracle.scenario import Answer, Headers, Oracle, Request, Upstream
from tests.oracle.subject import Subject

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

    def __init__(self, lab: Lab, subject: Subject, oracle: Oracle) -> None:
        self._lab = lab
        self._subject = subject
        self._oracle = oracle
        self._log = lab.directory / "reached.log"
        self._client: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Raises LabError naming what did not start."""
        for address in self._oracle.addresses():
            prefix = 128 if ":" in address else 32
            self._lab.run(["ip", "address", "add", f"{address}/{prefix}", "dev", "lo"])
        self._subject.start(self._oracle)
        self._log.touch()
        for backend in self._oracle.backends:
            listens = [f"{name}={backend.address}:{port}" for port, name in backend.names.items()]
            server = [sys.executable, "-m", "tests.oracle.backend", str(self._log), *listens]
            self._lab.start(backend.workload, self._subject.as_workload(backend, server))
        for backend in self._oracle.backends:
            for port in backend.names:
                self._lab.wait_listening(backend.workload, backend.address, port)
        client = self._subject.as_workload(self._oracle.node, [sys.executable, "-m", "tests.oracle.client"])
        self._client = self._lab.start("client", client, talk=True)
        self._lab.wait(f"the configuration of {self._oracle.node.workload}", self._captured)

    def _captured(self) -> bool:
        """Whether the client's configuration is in force: a destination that it captures accepts connections."""
        virtual = self._oracle.virtual_addresses()
        return not virtual or any(self._accepts(address) for address in sorted(virtual))

    def _accepts(self, to: tuple[str, int]) -> bool:
        (reply,) = self._order(Request(to, tcp=True), count=1, reuse=False, timeout=2.0)
        return not reply.answer.body.startswith(ConnectionRefusedError.__name__)

    def send(self, request: Request, *, reuse: bool, expect_reached: int) -> Attempt:
        """Send a request once, on a new connection or on the one used before, and see what became of it.

        Waits a little for `expect_reached` backends to be reached: a mirror comes after the answer.
        """
        before, offset = self._subject.counters(), self._log.stat().st_size
        (reply,) = self._order(request, count=1, reuse=reuse)
        counted = difference(before, self._subject.counters())
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
