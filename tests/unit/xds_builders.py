"""Small valid resources for tests of xds_server."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.config.route.v3.route_pb2 import RouteConfiguration
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)
from envoy.service.discovery.v3.discovery_pb2 import DiscoveryResponse
from google.protobuf.message import Message

from xds_server.resources import TypeUrl, name_of
from xds_server.stream import Packed, ResourceSet

CDS, EDS, LDS, RDS = TypeUrl


def cluster(name: str, *, timeout: int = 10, service: str = "") -> Cluster:
    """An EDS cluster; `timeout` is there to make a difference."""
    made = Cluster(name=name, type=Cluster.EDS)
    made.connect_timeout.seconds = timeout
    made.eds_cluster_config.eds_config.ads.SetInParent()
    made.eds_cluster_config.service_name = service
    return made


def static_cluster(name: str) -> Cluster:
    return Cluster(name=name, type=Cluster.STATIC)


def endpoints(name: str, port: int = 9080) -> ClusterLoadAssignment:
    made = ClusterLoadAssignment(cluster_name=name)
    address = made.endpoints.add().lb_endpoints.add().endpoint.address.socket_address
    address.address, address.port_value = "127.1.2.3", port
    return made


def listener(name: str, *routes: str, port: int = 80) -> Listener:
    """One filter chain per route configuration."""
    made = Listener(name=name)
    made.address.socket_address.address, made.address.socket_address.port_value = "0.0.0.0", port
    for route in routes:
        manager = HttpConnectionManager(stat_prefix=name)
        manager.rds.route_config_name = route
        manager.rds.config_source.ads.SetInParent()
        chain_filter = made.filter_chains.add().filters.add(name="http_connection_manager")
        chain_filter.typed_config.Pack(manager)
    return made


def routes(name: str, *clusters: str) -> RouteConfiguration:
    made = RouteConfiguration(name=name)
    for target in clusters:
        host = made.virtual_hosts.add(name=target, domains=[target])
        route = host.routes.add()
        route.match.prefix = "/"
        route.route.cluster = target
    return made


def response(type_url: TypeUrl, *messages: Message, version: str = "v1", nonce: str = "n1") -> DiscoveryResponse:
    made = DiscoveryResponse(type_url=type_url, version_info=version, nonce=nonce)
    for message in messages:
        made.resources.add(type_url=type_url, value=message.SerializeToString(deterministic=True))
    return made


def resource_set(
    serial: int, resources: Mapping[TypeUrl, Iterable[Message]], *, fill_missing: bool = False
) -> ResourceSet:
    by_type = {
        str(t): {name_of(t, m): Packed.of(t, m.SerializeToString(deterministic=True), m) for m in messages}
        for t, messages in resources.items()
    }
    return ResourceSet(version=f"v{serial}", serial=serial, by_type=by_type, fill_missing=fill_missing)
