"""What the requests go through: XLB, or a plain Envoy, to check the recordings and the oracle itself."""

from __future__ import annotations

import http.client
import json
import socket
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from tests.bench.lab import Lab, LabError, need
from tests.bench.mesh import ADS, Mesh, leftovers
from tests.oracle.scenario import Backend, Node, Oracle, ScenarioError

_ENVOY_USER: Final = "1337"  # any that is not the client's: what Envoy itself sends must not come back to it
_CAPTURE_PORT: Final = 15001  # where the captured virtualOutbound listens
_HTTP_OPTIONS: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


class Subject(Protocol):
    """A mesh that is under test."""

    def start(self, oracle: Oracle) -> None:
        """Start it with the captured configuration.  Raises LabError naming what did not start."""
        ...

    def as_workload(self, who: Backend | Node, command: Sequence[str]) -> list[str]:
        """The command line that runs a command as that workload."""
        ...

    def counters(self) -> Counter[str]:
        """Requests so far by reason (`Reason.NONE.name`: carried by the kernel)."""
        ...

    def stop(self) -> None: ...

    def leftovers(self) -> tuple[str, ...]:
        """What should be gone after `stop` and is not."""
        ...


class Xlb:
    """XLB itself, as its users run it."""

    def __init__(self, lab: Lab, instance: str, envoy: Path) -> None:
        self._lab = lab
        self._instance = instance
        self._mesh = Mesh(lab, instance, envoy)

    def start(self, oracle: Oracle) -> None:
        self._mesh.start_replay(str(_only_this_node(oracle, self._lab.directory / "scenarios")))
        self._mesh.start_agent()

    def as_workload(self, who: Backend | Node, command: Sequence[str]) -> list[str]:
        words = ["exec", "--workload", who.workload, "--namespace", who.namespace, "--ip", who.address]
        for name, value in who.labels.items():
            words += ["--label", f"{name}={value}"]
        if who.service_account:
            words += ["--service-account", who.service_account]
        return self._mesh.command(*words, "--", *command)

    def counters(self) -> Counter[str]:
        """The same document as `xlb status -o json` prints, without starting a program for each request."""
        connection = _UnixConnection(self._mesh.run_dir / "admin.sock")
        try:
            connection.request("GET", "/status")
            told = json.loads(connection.getresponse().read())
        except (OSError, http.client.HTTPException, json.JSONDecodeError) as error:
            raise LabError(f"the agent does not tell its counters: {error}") from error
        finally:
            connection.close()
        counted = Counter[str]()
        for view in told["views"]:
            counted.update(view["requests"])
        return counted

    def stop(self) -> None:
        self._mesh.stop()

    def leftovers(self) -> tuple[str, ...]:
        return leftovers(self._instance)


class PlainEnvoy:
    """One unmodified Envoy beside the client, captured by iptables, as when the answers were recorded.

    It takes what istiod sends for an unmodified Envoy (SCENARIO/stock-envoy), or a capture of mode NONE as it is.
    """

    def __init__(self, lab: Lab, envoy: Path) -> None:
        self._lab = lab
        self._envoy = envoy
        self._mesh = Mesh(lab, "plain-envoy", envoy)

    def start(self, oracle: Oracle) -> None:
        node = json.loads((oracle.node.folder / "node.json").read_text(encoding="utf-8"))
        responses = oracle.node.folder
        if node["metadata"]["INTERCEPTION_MODE"] != "NONE":
            responses = oracle.scenario / "stock-envoy" / oracle.node.folder.name
            self._capture(oracle)
        if not responses.is_dir():
            raise ScenarioError(f"{responses} does not exist: an unmodified Envoy does not take NODE itself")
        folder = self._lab.directory / "stock" / oracle.node.folder.name
        folder.mkdir(parents=True)
        for file in (*responses.glob("?ds.pb*"), oracle.node.folder / "node.json"):
            (folder / file.name).symlink_to(file.resolve())
        self._mesh.start_replay(str(folder.parent))
        config = self._lab.directory / "envoy.json"
        config.write_text(json.dumps(_bootstrap(node)))
        user = ("setpriv", f"--reuid={_ENVOY_USER}", f"--regid={_ENVOY_USER}", "--clear-groups")
        options = ("--disable-hot-restart", "--concurrency", "1", "--log-level", "warning")
        self._lab.start("agent", [*user, self._envoy, "-c", config, *options])

    def _capture(self, oracle: Oracle) -> None:
        need("iptables")
        output = ("iptables", "-t", "nat", "-A", "OUTPUT", "-p", "tcp")
        self._lab.run([*output, "-m", "owner", "--uid-owner", _ENVOY_USER, "-j", "RETURN"])
        for address, port in sorted(oracle.virtual_addresses()):
            where = ("-d", address, "--dport", str(port))
            self._lab.run([*output, *where, "-j", "REDIRECT", "--to-ports", str(_CAPTURE_PORT)])

    def as_workload(self, who: Backend | Node, command: Sequence[str]) -> list[str]:
        return list(command)

    def counters(self) -> Counter[str]:
        return Counter()

    def stop(self) -> None:
        self._mesh.stop()

    def leftovers(self) -> tuple[str, ...]:
        return ()


def _only_this_node(oracle: Oracle, below: Path) -> Path:
    """The scenario without other captures of the same workload: replay chooses by the workload's name."""
    folder = below / oracle.scenario.name
    folder.mkdir(parents=True)
    wanted = oracle.node
    for file in oracle.scenario.glob("*/node.json"):
        metadata = json.loads(file.read_text(encoding="utf-8"))["metadata"]
        same = (metadata.get("WORKLOAD_NAME"), metadata.get("NAMESPACE")) == (wanted.workload, wanted.namespace)
        if file.parent == wanted.folder or not same:
            (folder / file.parent.name).symlink_to(file.parent)
    return folder


def _bootstrap(node: dict[str, Any]) -> dict[str, Any]:
    http2 = {
        "@type": f"type.googleapis.com/{_HTTP_OPTIONS}",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
    ads_address = {"socket_address": {"address": ADS[0], "port_value": ADS[1]}}
    from_ads = {"ads": {}, "resource_api_version": "V3"}
    return {
        "node": node,
        "dynamic_resources": {
            "ads_config": {
                "api_type": "GRPC",
                "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": "xds"}}],
            },
            "cds_config": from_ads,
            "lds_config": from_ads,
        },
        "static_resources": {
            "clusters": [
                {
                    "name": "xds",
                    "type": "STATIC",
                    "typed_extension_protocol_options": {_HTTP_OPTIONS: http2},
                    "load_assignment": {
                        "cluster_name": "xds",
                        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": ads_address}}]}],
                    },
                }
            ]
        },
    }


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=10.0)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
