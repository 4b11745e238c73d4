"""The peers of the comparison, running, and how a load generator reaches each."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from demo.bookinfo.topology import WORKLOADS, Workload
from tests.bench import peers
from tests.bench.lab import Lab, LabError
from tests.bench.load import curl_command
from tests.bench.mesh import Mesh
from tests.bench.report import Load, Peer
from tests.bench.rounds import Target

CLIENT = "productpage-v1"
CLIENT_LABELS: Mapping[str, str] = {"app": "productpage", "version": "v1"}
_ENVOY = Path(__file__).parents[2] / ".venv-envoy" / "bin" / "envoy"
FAST_PATH = "/details/0"
# Envoy's path normalisation would change this one, so it is Envoy's to forward; it arrives as /details/0.
SLOW_PATH = "/details/a/../0"


def backend_workload() -> Workload:
    """The workload whose address the nginx of the comparison takes."""
    return next(workload for workload in WORKLOADS if workload.listen == str(peers.MESHED_BACKEND))


def find_envoy() -> Path:
    """The Envoy binary that `make setup` fetched.  Raises LabError when it is not there."""
    if not os.access(_ENVOY, os.X_OK):
        raise LabError(f"there is no Envoy at {_ENVOY}: run `make setup`")
    return _ENVOY


@dataclass(frozen=True, slots=True)
class Comparison:
    """Running peers.  `prefix` goes before a command that is to run inside the mesh."""

    prefix: tuple[str, ...]
    processes: tuple[subprocess.Popen[bytes], ...]
    own_envoy: str  # HOST:PORT of the client's listener in the node Envoy

    def targets(self, load: Load) -> dict[Peer, Target]:
        """Which peers carry this load, and how they are reached."""
        path = SLOW_PATH if load is Load.SLOW_PATH else FAST_PATH
        everyone = {
            Peer.DIRECT: Target(f"http://{peers.PLAIN_BACKEND}{path}"),
            Peer.XLB: Target(f"http://{peers.VIP}{path}", self.prefix),
            Peer.NODE_ENVOY: Target(f"http://{peers.NODE_ENVOY}{path}"),
            Peer.SIDECARS: Target(f"http://{peers.SIDECAR_CLIENT}{path}"),
            Peer.SAME_RULES: Target(f"http://{self.own_envoy}{path}"),
        }
        left_out = {
            Load.KEEP_ALIVE: (Peer.SAME_RULES,),
            Load.SLOW_PATH: (Peer.DIRECT, Peer.SIDECARS),
            Load.CONNECTION_EACH: (Peer.SIDECARS, Peer.SAME_RULES),
        }[load]
        return {peer: target for peer, target in everyone.items() if peer not in left_out}

    def stop(self, lab: Lab) -> None:
        """End the peers; the mesh itself goes on."""
        for process in reversed(self.processes):
            lab.stop(process)


def start_peers(lab: Lab, mesh: Mesh, workers: int = 1) -> Comparison:
    """Start the backends (one in the mesh, one not), the node Envoy and the sidecar pair, and check an answer of each.

    `workers` is the number of nginx workers.  Raises LabError when one does not start or answers wrongly.
    """
    envoy = find_envoy()
    backend = backend_workload()
    inside = mesh.exec_prefix(backend.name, {"app": backend.service, "version": backend.version}, ip=backend.address)
    home = lab.directory
    envoys = (
        ("node-envoy", peers.NODE_ENVOY, peers.PLAIN_BACKEND),
        ("sidecar-server", peers.SIDECAR_SERVER, peers.PLAIN_BACKEND),
        ("sidecar-client", peers.SIDECAR_CLIENT, peers.SIDECAR_SERVER),
    )
    processes = [
        lab.start("nginx-meshed", [*inside, *peers.write_nginx(home, "nginx-meshed", peers.MESHED_BACKEND, workers)]),
        lab.start("nginx-plain", peers.write_nginx(home, "nginx-plain", peers.PLAIN_BACKEND, workers)),
    ]
    # Views live as long as their workloads: these two keep theirs, with all that istiod sends them, between the runs.
    for workload, labels in ((CLIENT, CLIENT_LABELS), ("reviews-v2", {"app": "reviews", "version": "v2"})):
        processes.append(lab.start(f"idle-{workload}", [*mesh.exec_prefix(workload, labels), "sleep", "infinity"]))
    processes += [
        lab.start(name, peers.write_envoy(home, name, listen, upstream, envoy)) for name, listen, upstream in envoys
    ]
    for address in (peers.MESHED_BACKEND, peers.PLAIN_BACKEND, *(listen for _, listen, _ in envoys)):
        lab.wait_listening("a peer", address.host, address.port)
    lab.wait(f"the node Envoy's listener for {CLIENT}", lambda: bool(mesh.envoy_listener(CLIENT, peers.VIP.port)))
    own = mesh.envoy_listener(CLIENT, peers.VIP.port)
    assert own is not None
    comparison = Comparison(mesh.exec_prefix(CLIENT, CLIENT_LABELS), tuple(processes), own)
    for load in Load:
        for peer, target in comparison.targets(load).items():
            body = lab.run([*target.prefix, *curl_command(target.url)])
            if body != peers.BODY:
                raise LabError(f"{peer.value} answers {body[:80]!r} to {target.url}")
    return comparison
