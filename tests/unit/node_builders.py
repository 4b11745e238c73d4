"""Small views, and what the node Envoy gets of them, for tests of translator.envoy."""

from __future__ import annotations

from typing import Any

from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.core.v3.base_pb2 import OUTBOUND
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.config.listener.v3.listener_pb2 import Listener
from google.protobuf.message import Message

from tests.unit.xds_builders import CDS, EDS, LDS, RDS, listener
from translator.envoy import EnvoyOptions, NodeResources, listener_names, node_resources
from xds_server.cache import Snapshot
from xds_server.resources import TypeUrl, name_of

ADDRESS = "127.0.0.1"
DEFAULTS = EnvoyOptions()


def made(snapshot: Snapshot, options: EnvoyOptions = DEFAULTS, view: str = "v", first: int = 20000) -> NodeResources:
    ports = {name: first + index for index, name in enumerate(listener_names(snapshot))}
    return node_resources(view, snapshot, ports, ADDRESS, options)


def outbound(name: str, *route_names: str) -> Listener:
    """A listener as istiod sends them to sidecars."""
    found = listener(name, *route_names, port=9080)
    found.traffic_direction = OUTBOUND
    found.bind_to_port.value = False
    return found


def snapshot(
    *,
    clusters: tuple[Cluster, ...] = (),
    assignments: tuple[ClusterLoadAssignment, ...] = (),
    listeners: tuple[Listener, ...] = (),
    configs: tuple[Message, ...] = (),
) -> Snapshot:
    def by_name(kind: TypeUrl, messages: tuple[Any, ...]) -> dict[str, Any]:
        return {name_of(kind, message): message for message in messages}

    return Snapshot(
        "1", by_name(CDS, clusters), by_name(EDS, assignments), by_name(LDS, listeners), by_name(RDS, configs)
    )


def get(resources: NodeResources, kind: TypeUrl, name: str) -> Any:
    return resources.resources[kind][name]


def told(resources: NodeResources, part: str) -> list[str]:
    """What is said of harm in a line with `part` in it: the resources' names."""
    return [r for change in resources.changes if part in change.what and not change.harmless for r in change.resources]
