"""A small mesh to play a scene in: replay server, agent, keeper, Envoy, backends and clients, all real."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from bpf.loader import LoadError
from bpf.maps import BpfError, Map
from demo.bookinfo.topology import PORT, WORKLOADS, Workload, service_address
from tests.bench.compare import CLIENT, CLIENT_LABELS, find_envoy
from tests.bench.lab import Lab, LabError
from tests.bench.mesh import Mesh, leftovers
from tests.e2e.dialer import BUFFER
from tests.e2e.state import Census, KernelState
from tests.e2e.wire import Answer, Wire, digest
from xlb.unix_http import UnixConnection

FAST: Final = "NONE"
"""The counter of requests that the kernel carried."""

SLOW: Final = "PATH_NORMALIZATION"
"""The counter of requests with a path as `slow` makes it."""

_LOG_LINES: Final = 25
_STATUS_TIMEOUT_S: Final = 5.0


def slow(path: str) -> str:
    """The same resource by a path that is Envoy's to normalise; the backend gets `path`."""
    return f"/a/..{path}"


def until(what: str, ready: Callable[[], Any], seconds: float = 5.0) -> None:
    """Poll until `ready()`.  Raises AssertionError when it is not in time."""
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.01)


def check_answer(answer: Answer, name: str, what: str, body: bytes = b"") -> None:
    """Raises AssertionError unless a backend answers the request `name`, which it got with this body."""
    told = f"{what}: asked {name}, answered {answer.status} {dict(answer.headers)} {answer.body[:100]!r}"
    assert answer.headers.get("x-id") == name, told
    assert int(answer.headers["x-length"]) == len(body), told
    assert answer.headers["x-sha256"] == digest(body), told


class WorldMesh(Mesh):
    """A mesh whose parts can be ended one by one."""

    def kill_agent(self) -> None:
        assert self._agent_process is not None
        self._agent_process.kill()
        self._lab.stop(self._agent_process)
        self._agent_process = None

    def stop_replay(self) -> None:
        assert self._replay_process is not None
        self._lab.stop(self._replay_process)
        self._replay_process = None

    def stop_agent(self) -> int:
        """Ask it to end; its exit code."""
        assert self._agent_process is not None
        process, self._agent_process = self._agent_process, None
        self._lab.stop(process)
        return process.returncode


class World:
    """A running mesh on captured configuration, with productpage-v1 as the workload of the clients.

    Leaving the `with` block closes all connections, waits until the kernel holds nothing but idle pools, stops
    everything and looks for what is left.  If it is left by an exception, the last words of all parts are printed.
    """

    def __init__(self, scenario: str = "bookinfo-all-v1", backends: Iterable[str] = ("details-v1",)) -> None:
        self.lab = Lab("xlb-e2e")
        self.instance = f"e2e-{os.getpid()}"
        self.mesh = WorldMesh(self.lab, self.instance, find_envoy())
        self._scenario = scenario
        self._wanted = [workload for workload in WORKLOADS if workload.name in set(backends)]
        self._backends: dict[str, subprocess.Popen[bytes]] = {}
        self._dialer: socket.socket | None = None
        self._dialing = threading.Lock()
        self._wires: list[Wire] = []
        self._state: KernelState | None = None
        self._maps: dict[str, int] = {}
        self._ids = itertools.count(1)
        self.check_end = True
        """Whether the end of the world is checked; a scene that breaks it beyond repair says no."""

    # -- life

    def __enter__(self) -> Self:
        self.lab.__enter__()
        try:
            self._start()
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def _start(self) -> None:
        self.mesh.start_replay(self._scenario)
        self.mesh.start_agent()
        for workload in self._wanted:
            self.start_backend(workload.name)
        path = self.lab.directory / "dialer.sock"
        self.lab.start("dialer", [*self.as_client(), sys.executable, "-m", "tests.e2e.dialer", path])
        for workload in self._wanted:
            self.lab.wait_listening(workload.name, workload.address, PORT)
        self.lab.wait("the dialer", path.exists)
        self._dialer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.lab.wait("the dialer", lambda: self._dialer is not None and self._dialer.connect_ex(str(path)) == 0)
        self.lab.wait("captured connections", self._captures)
        self._state = KernelState(self.instance)
        self._maps = self._state.map_ids()

    def _captures(self) -> bool:
        # Nobody listens at the virtual address itself.
        try:
            self.dial().close()
        except ConnectionRefusedError:
            return False
        return True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        problems: list[str] = []
        try:
            if error is None and self.check_end:
                self.settle()
        except AssertionError as problem:
            problems.append(str(problem))
            error = problem
        if error is not None:
            self._print_logs()
        self._end()
        if error is None and self.check_end:
            problems += self._left()
        if problems and (kind is None or issubclass(kind, AssertionError)):
            raise AssertionError("\n".join(problems)) from error

    def _end(self) -> None:
        self.close_all()
        if self._dialer is not None:
            self._dialer.close()
        if self._state is not None:
            self._state.close()
        for process in self._backends.values():
            self.lab.stop(process)
        self._backends.clear()
        with contextlib.suppress(LabError):
            self.mesh.stop()
        self.lab.close()

    def _left(self) -> list[str]:
        left = [f"left behind: {path}" for path in leftovers(self.instance)]
        deadline = time.monotonic() + 3.0
        while (maps := self._living_maps()) and time.monotonic() < deadline:
            time.sleep(0.05)  # maps are freed after a grace period of RCU
        return left + [f"BPF map {name} is still loaded" for name in maps]

    def _living_maps(self) -> list[str]:
        living = []
        for name, number in self._maps.items():
            try:
                Map.from_id(number).close()
            except BpfError:
                continue
            living.append(name)
        return living

    def _print_logs(self) -> None:
        print("status:", self._try(lambda: json.dumps(self.status())), file=sys.stderr)
        print("kernel:", self._try(lambda: self.census().unexplained()), file=sys.stderr)
        logs = [*self.lab.directory.glob("*.log"), *self.mesh.run_dir.glob("*.log")]
        for path in logs:
            lines = path.read_text(errors="replace").splitlines()[-_LOG_LINES:]
            if lines:
                print(f"--- {path.name}", *lines, sep="\n", file=sys.stderr)

    @staticmethod
    def _try(ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except (AssertionError, LoadError, BpfError, OSError, ValueError, http.client.HTTPException) as error:
            return f"{type(error).__name__}: {error}"

    # -- workloads

    def as_client(self) -> tuple[str, ...]:
        """What to put before a command so that it runs as productpage-v1."""
        return self.mesh.exec_prefix(CLIENT, CLIENT_LABELS)

    def run_client(self, *argv: str | Path, timeout: float = 30.0) -> str:
        """Run a program as productpage-v1: its output.  Raises LabError when it fails."""
        return self.lab.run([*self.as_client(), *argv], timeout)

    def start_backend(self, name: str) -> None:
        """Start it (again); see `wait_backend`."""
        workload = _workload(name)
        labels = {"app": workload.service, "version": workload.version}
        prefix = self.mesh.exec_prefix(workload.name, labels, ip=workload.address)
        server = [sys.executable, "-m", "tests.e2e.backends", name, workload.listen]
        self._backends[name] = self.lab.start(name, [*prefix, *server])

    def wait_backend(self, name: str) -> None:
        self.lab.wait_listening(name, _workload(name).address, PORT)

    def kill_backend(self, name: str) -> None:
        """kill -9."""
        process = self._backends.pop(name)
        process.kill()
        self.lab.stop(process)

    def backend_pid(self, name: str) -> int:
        return self._backends[name].pid

    def stats(self, name: str = "details-v1") -> Mapping[str, int]:
        """What the backend has seen (backends.Stats)."""
        with Wire(socket.create_connection((_workload(name).address, PORT), 5.0)) as wire:
            told: dict[str, int] = json.loads(wire.ask("/stats").body)
        return told

    # -- connections of the client

    def dial(
        self,
        service: str = "details",
        *,
        ip6: bool = False,
        timeout: float = 5.0,
        options: Sequence[tuple[int, int, int]] = (),
    ) -> Wire:
        """A new connection of productpage-v1 to the virtual address of a service.  Raises OSError as connect(2)."""
        assert self._dialer is not None
        order = {"to": service_address(service), "ip6": ip6, "timeout": timeout, "options": options}
        with self._dialing:
            self._dialer.send(json.dumps(order).encode())
            told, descriptors, _, _ = socket.recv_fds(self._dialer, BUFFER, 1)
        if not descriptors:
            number = json.loads(told)["errno"]
            raise OSError(number, os.strerror(number))
        wire = Wire(socket.socket(fileno=descriptors[0]), timeout, f"{service}:{PORT}")
        self._wires = [other for other in self._wires if other.socket.fileno() >= 0]
        self._wires.append(wire)
        return wire

    def close_all(self) -> None:
        """Close every connection that was dialled."""
        for wire in self._wires:
            wire.close()
        self._wires.clear()

    def new_id(self) -> str:
        return f"r{next(self._ids)}"

    def get(
        self,
        wire: Wire,
        path: str,
        *,
        method: str = "GET",
        headers: Iterable[tuple[str, str]] = (),
        body: bytes | None = None,
    ) -> Answer:
        """Ask with an id, and check that the answer is to this request and that the body arrived as it was sent."""
        name = self.new_id()
        answer = wire.ask(path, method=method, headers=(("x-id", name), *headers), body=body)
        check_answer(answer, name, f"{method} {path}", body or b"")
        return answer

    def warm(self, wire: Wire | None = None, path: str = "/length/10") -> None:
        """Ask until the kernel has carried a request, as it does once the pool has a connection."""
        own = wire or self.dial()

        def carried() -> bool:
            before = self.counters()[FAST]
            self.get(own, path)
            return self.counters()[FAST] > before

        until("a request carried by the kernel", carried)
        if wire is None:
            own.close()

    # -- what the mesh says of itself

    def status(self) -> Mapping[str, Any]:
        """The document of `xlb status -o json`, without starting a program.  Raises OSError, HTTPException."""
        connection = UnixConnection(self.mesh.run_dir / "admin.sock", _STATUS_TIMEOUT_S)
        try:
            connection.request("GET", "/status")
            told: dict[str, Any] = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        return told

    def counters(self) -> Counter[str]:
        """Requests so far by reason."""
        counted: Counter[str] = Counter()
        for view in self.status()["views"]:
            counted.update(view["requests"])
        return counted

    def pid(self, part: str) -> int:
        """Of "agent", "keeper" or "envoy"; 0 while it does not run."""
        told = self.status().get(part) or {}
        return int(told.get("pid") or 0)

    def kill(self, part: str) -> int:
        """kill -9 the keeper or Envoy; the pid that it had."""
        pid = self.pid(part)
        assert pid, f"there is no {part}"
        os.kill(pid, signal.SIGKILL)
        until(f"the end of the {part}", lambda: not _runs(pid))
        return pid

    def wait_part(self, part: str, other_than: int, seconds: float = 10.0) -> None:
        """Until there is one with another pid."""
        until(f"a new {part}", lambda: self.pid(part) not in (0, other_than), seconds)

    def census(self) -> Census:
        assert self._state is not None
        return self._state.census()

    @property
    def kernel(self) -> KernelState:
        assert self._state is not None
        return self._state

    def reopen_kernel(self) -> None:
        """After the data path has been replaced."""
        if self._state is not None:
            self._state.close()
        self._state = KernelState(self.instance)
        self._maps = self._state.map_ids()

    def settle(self, seconds: float = 5.0) -> None:
        """Close all connections and wait until nothing is in the kernel that idle pools do not explain."""
        self.close_all()
        found: list[str] = ["?"]

        def nothing() -> bool:
            found[:] = self.census().unexplained()
            return not found

        try:
            until("only idle pools", nothing, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}; there is:\n  " + "\n  ".join(found[:20])) from None


class Traffic:
    """Keep-alive requests on several connections, every answer checked, until the `with` block is left."""

    def __init__(self, world: World, paths: Sequence[str], connections: int = 4, *, pause: float = 0.0) -> None:
        self._world = world
        self._paths = paths
        self._pause = pause
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,), daemon=True) for n in range(connections)]
        self._lock = threading.Lock()
        self.answers: Counter[str] = Counter()
        """By status and path, "200 /length/10"."""
        self.lost: list[str] = []

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(15.0)
        if kind is not None and self.lost:
            print(f"lost: {self.lost[:10]}", file=sys.stderr)

    def total(self) -> int:
        with self._lock:
            return self.answers.total()

    def flow(self, more: int = 50, seconds: float = 10.0) -> None:
        """Until so many more have been answered."""
        goal = self.total() + more
        until(f"{more} more answers", lambda: self.total() >= goal or self.lost, seconds)

    def _run(self, number: int) -> None:
        wire: Wire | None = None
        for path in itertools.islice(itertools.cycle(self._paths), number, None):
            if self._stop.is_set():
                break
            begun = time.monotonic()
            try:
                wire = wire or self._world.dial()
                name = self._world.new_id()
                answer = wire.ask(path, headers=[("x-id", name)])
                assert answer.status != 200 or answer.headers.get("x-id") == name, f"asked {name}, got {answer}"
            except Exception as problem:
                with self._lock:
                    self.lost.append(f"{path} after {time.monotonic() - begun:.3f} s: {problem!r:.200}")
                if wire is not None:
                    wire.close()
                wire = None
                self._stop.wait(0.02)
                continue
            with self._lock:
                self.answers[f"{answer.status} {path}"] += 1
            if answer.closes:
                wire.close()
                wire = None
            if self._pause:
                self._stop.wait(self._pause)
        if wire is not None:
            wire.close()


def _workload(name: str) -> Workload:
    return next(workload for workload in WORKLOADS if workload.name == name)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False
