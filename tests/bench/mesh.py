"""XLB as its users run it: `xlb replay`, `xlb agent`, `xlb exec`, `xlb status`, `xlb explain`, all by command line."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from tests.bench.lab import Lab, LabError
from xlb.envoy import admin_request

ADS: Final = ("127.0.0.1", 15010)
NAMESPACE: Final = "default"
SCENARIOS: Final = Path(__file__).parents[1] / "data" / "scenarios"
_XLB: Final = Path(sys.executable).with_name("xlb")
_SWITCH_WAIT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Processes:
    """Process ids of the parts of a running instance."""

    agent: int
    keeper: int
    envoy: int


class Mesh:
    """One instance of XLB, fed by a replay server, in the network namespace of the caller."""

    def __init__(self, lab: Lab, instance: str, envoy: Path) -> None:
        self._lab = lab
        self._instance = instance
        self._envoy = envoy
        self._control = lab.directory / "replay.control"
        self._config = lab.directory / "xlb.yaml"
        self.run_dir = lab.directory / "run"
        self._replay_process: subprocess.Popen[bytes] | None = None
        self._agent_process: subprocess.Popen[bytes] | None = None

    def start_replay(self, scenario: str) -> None:
        """Serve a captured folder over ADS.  Raises LabError."""
        command = ("replay", folder(scenario), "--listen", f"{ADS[0]}:{ADS[1]}", "--control", self._control)
        self._replay_process = self._lab.start("replay", [_XLB, *command])
        self._lab.wait_listening("xlb replay", *ADS)

    def start_agent(self) -> None:
        """Start the agent and wait until it answers.  Raises LabError."""
        config = {
            "instance": self._instance,
            "run_dir": str(self.run_dir),
            "source": {"ads": f"{ADS[0]}:{ADS[1]}"},
            "envoy": {"binary": str(self._envoy)},
        }
        self._config.write_text(yaml.safe_dump(config))
        self._agent_process = self._lab.start("agent", [_XLB, "agent", "--config", self._config])
        self._lab.wait("xlb agent", self._answers, 30.0)

    def stop(self) -> None:
        """End agent and replay server in the order in which they need each other."""
        for process in (self._agent_process, self._replay_process):
            if process is not None:
                self._lab.stop(process)
        self._agent_process = self._replay_process = None

    def command(self, *words: str | Path) -> list[str]:
        """The command line of one `xlb` client command for this instance."""
        name, *rest = (str(word) for word in words)
        return [str(_XLB), name, "--run-dir", str(self.run_dir), *rest]

    def exec_prefix(self, workload: str, labels: Mapping[str, str], ip: str | None = None) -> tuple[str, ...]:
        """What to put before a command so that it runs as that workload."""
        words = self.command("exec", "--workload", workload, "--namespace", NAMESPACE)
        for name, value in labels.items():
            words += ["--label", f"{name}={value}"]
        if ip is not None:
            words += ["--ip", ip]
        return (*words, "--")

    def status(self) -> Mapping[str, Any]:
        return self._json("status")

    def processes(self) -> Processes:
        """Raises LabError while one of them is not running."""
        status = self.status()
        try:
            return Processes(*(int(status[part]["pid"]) for part in ("agent", "keeper", "envoy")))
        except (KeyError, TypeError, ValueError) as error:
            raise LabError(f"`xlb status` names no process: {error}") from error

    def counters(self) -> Counter[str]:
        """Requests of all views so far by the name of the reason; "NONE" counts those the kernel carried."""
        counted: Counter[str] = Counter()
        for view in self.status()["views"]:
            counted.update(view["requests"])
        return counted

    def push_p99_ms(self) -> float | None:
        """Push received -> in force, as the agent measured it; None before the first push."""
        told = self.status().get("push", {}).get("p99_ms")
        return None if told is None else float(told)

    def envoy_listener(self, workload: str, port: int) -> str | None:
        """HOST:PORT of the node Envoy's listener for what a workload sends to a port; None until there is one.

        Raises LabError.
        """
        try:
            _, body = admin_request(self.run_dir / "envoy-admin.sock", "/listeners?format=json")
            listeners = json.loads(body).get("listener_statuses", [])  # not there while there is none
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise LabError(f"the node Envoy does not tell its listeners: {error}") from error
        for listener in listeners:
            if workload in listener["name"] and listener["name"].endswith(f"_{port}"):
                address = listener["local_address"]["socket_address"]
                return f"{address['address']}:{address['port_value']}"
        return None

    def explain(
        self, workload: str, method: str, url: str, headers: Sequence[tuple[str, str]] = ()
    ) -> Mapping[str, Any]:
        """What `xlb explain -o json` says of one request.  Raises LabError."""
        words = ["explain", "--from", workload, method, url]
        for name, value in headers:
            words += ["-H", f"{name}: {value}"]
        return self._json(*words)

    def switch(self, scenario: str) -> None:
        """`xlb replay switch`: returns when every client has acknowledged, which means: in force.

        Raises LabError when one refused it or did not answer in time.
        """
        said = self._lab.run([*self.switch_command(scenario), "--wait", str(_SWITCH_WAIT_S)])
        if " 0 still to answer" not in said:
            raise LabError(f"not in force everywhere: {said.strip()}")

    def switch_command(self, scenario: str) -> list[str]:
        return [str(_XLB), "replay", "switch", str(folder(scenario)), "--control", str(self._control)]

    def switcher(self) -> Switcher:
        """For many switches: the same command without starting a program each time."""
        return Switcher(self._control)

    def _answers(self) -> bool:
        try:
            self._json("status")
        except LabError:
            return False
        return True

    def _json(self, *words: str) -> Mapping[str, Any]:
        name, *rest = words
        told = json.loads(self._lab.run([*self.command(name), *rest, "-o", "json"]))
        if not isinstance(told, dict):
            raise LabError(f"`xlb {name} -o json` did not print an object")
        return told


class Switcher:
    """One connection to the replay server's control socket."""

    def __init__(self, control: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(_SWITCH_WAIT_S + 10)
        self._socket.connect(str(control))
        self._lines = self._socket.makefile("rb")

    def switch(self, scenario: str) -> None:
        """Raises LabError unless every client acknowledged."""
        order = {"switch": str(folder(scenario)), "wait": _SWITCH_WAIT_S}
        self._socket.sendall(json.dumps(order).encode() + b"\n")
        told = json.loads(self._lines.readline())
        if not told.get("ok") or told.get("silent") or not told.get("clients"):
            raise LabError(f"switch to {scenario}: {told}")

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


def folder(scenario: str) -> Path:
    """A captured scenario that comes with the repository.  Raises LabError when it is not there."""
    path = SCENARIOS / scenario
    if not path.is_dir():
        raise LabError(f"there is no captured scenario {scenario} in {SCENARIOS}")
    return path


def difference(before: Counter[str], after: Counter[str]) -> Counter[str]:
    """What was counted in between; counters that stood still are left out."""
    return Counter({name: count - before[name] for name, count in after.items() if count != before[name]})


def leftovers(instance: str) -> tuple[str, ...]:
    """Cgroups, BPF pins and run folders that bear the instance's name: none once it has ended."""
    roots = [Path("/sys/fs/bpf"), Path("/run/xlb")]
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            roots.append(Path(where))
    return tuple(str(path) for root in roots for path in root.rglob(f"*{instance}*"))
