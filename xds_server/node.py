"""Who a workload says it is on an xDS stream, in the form istiod expects.

Source: Istio `pilot/pkg/model/context.go:ParseServiceNodeWithMetadata` (the id) and
`pkg/model/proxy.go:NodeMetadata` (the metadata keys that change generated configuration).
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from envoy.config.core.v3.base_pb2 import Locality as XdsLocality
from envoy.config.core.v3.base_pb2 import Node
from google.protobuf.struct_pb2 import Struct

# Unset is read by istiod as "newest", with a warning on every connect.
ISTIO_VERSION: Final = "1.32.0"
USER_AGENT: Final = "xlb"


@dataclass(frozen=True, slots=True)
class Locality:
    region: str = ""
    zone: str = ""
    sub_zone: str = ""


@dataclass(frozen=True, slots=True)
class Workload:
    """What is known about a workload: a pod, or a process started with `xlb exec`.

    `name` is the workload's (a Deployment's, say); `pod` the pod's, by which istiod looks up real labels, and which
    defaults to `name` where there is no pod.  `ip` may be several addresses, the first being the one in the id.
    `extra` holds further metadata (PROXY_CONFIG, NETWORK, DNS_CAPTURE ...); istiod wants booleans as strings and
    lists as one comma-separated string.
    """

    name: str
    ip: str
    namespace: str = "default"
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    service_account: str = "default"
    pod: str = ""
    cluster_id: str = "Kubernetes"
    mesh_id: str = "cluster.local"
    domain: str = "cluster.local"
    node_name: str = ""
    interception_mode: str = "REDIRECT"
    generator: str = ""
    locality: Locality = field(default_factory=Locality)
    more_ips: tuple[str, ...] = ()
    extra: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        """:raises ValueError: for an identity that istiod would misread, naming the field"""
        for what, value in (("name", self.name), ("namespace", self.namespace), ("pod", self.pod or self.name)):
            # "~" separates the four parts of the id; "." separates pod from namespace in the third.
            if not value or "~" in value or (what == "namespace" and "." in value):
                raise ValueError(f"workload {what} {value!r} cannot be part of a node id")
        for address in (self.ip, *self.more_ips):
            try:
                ipaddress.ip_address(address)
            except ValueError:
                raise ValueError(f"workload ip {address!r} is not an IP address") from None
        # Copies, so that nobody else holds them; plain dicts, so that dataclasses.asdict and json take them.
        object.__setattr__(self, "labels", dict(self.labels))
        object.__setattr__(self, "extra", dict(self.extra))

    @property
    def pod_name(self) -> str:
        """The pod-name part of the node id."""
        return self.pod or self.name

    @property
    def canonical_name(self) -> str:
        """Istio's canonical service name: the label if set, else `app`, else the workload's name."""
        labels = self.labels
        return (
            labels.get("service.istio.io/canonical-name")
            or labels.get("app.kubernetes.io/name")
            or labels.get("app")
            or self.name
        )


def node_id(workload: Workload) -> str:
    """`sidecar~IP~POD.NAMESPACE~NAMESPACE.svc.DOMAIN`: exactly four parts."""
    namespace = workload.namespace
    return f"sidecar~{workload.ip}~{workload.pod_name}.{namespace}~{namespace}.svc.{workload.domain}"


def node_for(workload: Workload) -> Node:
    """The `node` of the first request on a workload's stream."""
    metadata: dict[str, Any] = {
        "NAME": workload.pod_name,
        "NAMESPACE": workload.namespace,
        "CLUSTER_ID": workload.cluster_id,
        "MESH_ID": workload.mesh_id,
        "ISTIO_VERSION": ISTIO_VERSION,
        "INSTANCE_IPS": ",".join((workload.ip, *workload.more_ips)),
        "INTERCEPTION_MODE": workload.interception_mode,
        "LABELS": dict(workload.labels),
        "SERVICE_ACCOUNT": workload.service_account,
        "WORKLOAD_NAME": workload.name,
        "OWNER": f"kubernetes://apis/apps/v1/namespaces/{workload.namespace}/deployments/{workload.name}",
        "APP_CONTAINERS": workload.canonical_name,
    }
    if workload.node_name:
        metadata["NODE_NAME"] = workload.node_name
    if workload.generator:
        metadata["GENERATOR"] = workload.generator
    metadata.update(workload.extra)
    struct = Struct()
    struct.update(metadata)
    node = Node(
        id=node_id(workload),
        cluster=f"{workload.canonical_name}.{workload.namespace}",
        metadata=struct,
        user_agent_name=USER_AGENT,
    )
    if workload.locality != Locality():
        place = workload.locality
        node.locality.CopyFrom(XdsLocality(region=place.region, zone=place.zone, sub_zone=place.sub_zone))
    return node


@dataclass(frozen=True, slots=True)
class Identity:
    """The parts of a node that choose its configuration, read back from a request or from a captured node.json."""

    kind: str  # sidecar, router ...; "" when the id is not Istio's
    workload: str
    namespace: str
    app: str
    generator: str


def identity(node: Node) -> Identity:
    """Read a node's identity; missing parts are empty strings."""
    metadata = node.metadata.fields

    def text(key: str) -> str:
        return str(metadata[key].string_value) if key in metadata else ""

    labels = metadata["LABELS"].struct_value.fields if "LABELS" in metadata else {}
    parts = node.id.split("~")
    is_istio = len(parts) == 4
    return Identity(
        kind=parts[0] if is_istio else "",
        workload=text("WORKLOAD_NAME"),
        namespace=text("NAMESPACE") or (parts[3].split(".", 1)[0] if is_istio else ""),
        app=str(labels["app"].string_value) if "app" in labels else "",
        generator=text("GENERATOR"),
    )


@dataclass(frozen=True, slots=True)
class ControlPlane:
    """Who answered, from `control_plane.identifier` (istiod and `xlb replay` both write this JSON)."""

    component: str = ""
    id: str = ""
    info: str = ""


def control_plane(identifier: str) -> ControlPlane:
    """Read a control plane identifier; one that is not the expected JSON becomes the `id`."""
    try:
        fields = json.loads(identifier)
    except ValueError:
        return ControlPlane(id=identifier)
    if not isinstance(fields, dict):
        return ControlPlane(id=identifier)
    info = fields.get("Info", "")
    return ControlPlane(
        component=str(fields.get("Component", "")),
        id=str(fields.get("ID", "")),
        info=info if isinstance(info, str) else json.dumps(info),
    )


def control_plane_identifier(plane: ControlPlane) -> str:
    """The JSON that `control_plane` reads."""
    return json.dumps({"Component": plane.component, "ID": plane.id, "Info": plane.info})
