"""The four resource types of a sidecar's configuration, their names, and the references between them.

Only the xDS messages named here are imported: the whole of `xds-protos` would cost tens of megabytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.config.route.v3.route_pb2 import RouteConfiguration
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)
from google.protobuf.message import DecodeError, Message

ADS_SERVICE: Final = "envoy.service.discovery.v3.AggregatedDiscoveryService"
ADS_METHOD: Final = "StreamAggregatedResources"
HCM_TYPE_URL: Final = (
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
)


class TypeUrl(StrEnum):
    """Resource types, in the order in which they are pushed and applied (istiod: `pilot/pkg/xds/ads.go:PushOrder`)."""

    CLUSTER = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
    ENDPOINT = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
    LISTENER = "type.googleapis.com/envoy.config.listener.v3.Listener"
    ROUTE = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"

    @property
    def label(self) -> str:
        """The short name people use: CDS, EDS, LDS, RDS."""
        return _LABELS[self]

    @property
    def state_of_the_world(self) -> bool:
        """Whether a response lists everything that exists, so that absence means deletion (xDS protocol, SotW).

        For EDS and RDS a response may be partial: absence never means deletion there.
        """
        return self in (TypeUrl.CLUSTER, TypeUrl.LISTENER)


_LABELS: Final[Mapping[TypeUrl, str]] = MappingProxyType(
    {TypeUrl.CLUSTER: "CDS", TypeUrl.ENDPOINT: "EDS", TypeUrl.LISTENER: "LDS", TypeUrl.ROUTE: "RDS"}
)
MESSAGES: Final[Mapping[TypeUrl, type[Message]]] = MappingProxyType(
    {
        TypeUrl.CLUSTER: Cluster,
        TypeUrl.ENDPOINT: ClusterLoadAssignment,
        TypeUrl.LISTENER: Listener,
        TypeUrl.ROUTE: RouteConfiguration,
    }
)


def type_of(type_url: str) -> TypeUrl | None:
    """The resource type of a type URL; None if it is not one of the four."""
    try:
        return TypeUrl(type_url)
    except ValueError:
        return None


def label_of(type_url: str) -> str:
    """CDS, EDS, LDS, RDS, or for another type its message name."""
    known = type_of(type_url)
    return known.label if known else type_url.rsplit(".", 1)[-1]


def digest(value: bytes) -> bytes:
    """16 bytes that stand for a serialised resource; equal content has equal digests."""
    return hashlib.blake2b(value, digest_size=16).digest()


def wire_name(value: bytes) -> str | None:
    """The resource name in a serialised resource, found without parsing the rest; None if it does not come first.

    In all four types the name is field 1, a string, and serialisers write fields in order.  So a resource that is
    damaged further on still has a name to be rejected by, and naming a large set costs next to nothing.
    """
    if not value or value[0] != 0x0A:  # field 1, length-delimited
        return None
    length = shift = 0
    for position in range(1, min(len(value), 6)):
        byte = value[position]
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            raw = value[position + 1 : position + 1 + length]
            if len(raw) != length:
                return None
            try:
                return raw.decode()
            except UnicodeDecodeError:
                return None
    return None


def name_of(type_url: TypeUrl, message: Message) -> str:
    """The resource name of a parsed resource."""
    field = "cluster_name" if type_url is TypeUrl.ENDPOINT else "name"
    return str(getattr(message, field))


def endpoint_name(cluster: Cluster) -> str | None:
    """The ClusterLoadAssignment an EDS cluster asks for over ADS; None for clusters of other types."""
    if cluster.WhichOneof("cluster_discovery_type") != "type" or cluster.type != Cluster.EDS:
        return None
    if not _over_ads(cluster.eds_cluster_config.eds_config):
        return None
    return str(cluster.eds_cluster_config.service_name or cluster.name)


def connection_managers(listener: Listener) -> list[tuple[str, HttpConnectionManager]]:
    """Every HTTP connection manager in a listener, with the field path it was found at.

    :raises ValueError: "FIELD: why" when one cannot be parsed
    """
    found = []
    chains = [(f"filter_chains[{i}]", chain) for i, chain in enumerate(listener.filter_chains)]
    if listener.HasField("default_filter_chain"):
        chains.append(("default_filter_chain", listener.default_filter_chain))
    places = [
        (f"{path}.filters[{i}].typed_config", network_filter.typed_config)
        for path, chain in chains
        for i, network_filter in enumerate(chain.filters)
    ]
    places.append(("api_listener.api_listener", listener.api_listener.api_listener))
    for path, packed in places:
        if packed.type_url != HCM_TYPE_URL:
            continue
        try:
            found.append((path, HttpConnectionManager.FromString(packed.value)))
        except DecodeError as error:
            raise ValueError(f"{path}: not a valid HttpConnectionManager ({error})") from None
    return found


def route_names(managers: list[tuple[str, HttpConnectionManager]]) -> tuple[str, ...]:
    """The route configurations that connection managers ask for over ADS, each once, in order."""
    names = (
        manager.rds.route_config_name
        for _, manager in managers
        if manager.WhichOneof("route_specifier") == "rds" and _over_ads(manager.rds.config_source)
    )
    return tuple(dict.fromkeys(names))


def references(type_url: TypeUrl, message: Message) -> tuple[str, ...]:
    """What a resource makes its reader ask for: EDS names for a cluster, RDS names for a listener, else nothing.

    :raises ValueError: as `connection_managers` does
    """
    if type_url is TypeUrl.CLUSTER:
        name = endpoint_name(message)
        return () if name is None else (name,)
    if type_url is TypeUrl.LISTENER:
        return route_names(connection_managers(message))
    return ()


def referenced_type(type_url: TypeUrl) -> TypeUrl | None:
    """The type of what `references` returns."""
    return {TypeUrl.CLUSTER: TypeUrl.ENDPOINT, TypeUrl.LISTENER: TypeUrl.ROUTE}.get(type_url)


def _over_ads(source: Message) -> bool:
    return source.WhichOneof("config_source_specifier") in ("ads", "self")
