"""No reference overlooked: every field of what is passed on to the node Envoy that names a cluster is accounted for.

A new version of the API that brings another one makes this test fail, and somebody look.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

import pytest
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.config.route.v3.route_pb2 import RouteConfiguration
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)
from envoy.extensions.filters.network.tcp_proxy.v3.tcp_proxy_pb2 import TcpProxy
from envoy.extensions.upstreams.http.v3.http_protocol_options_pb2 import HttpProtocolOptions
from google.protobuf import descriptor_pool

from translator import node_filters
from translator.node_filters import HTTP, LISTENER, NETWORK, PER_ROUTE, UPSTREAM_HTTP

ROOTS = (Cluster, ClusterLoadAssignment, HttpConnectionManager, Listener, RouteConfiguration, TcpProxy)

CLUSTER_TYPES = (
    "envoy.extensions.clusters.aggregate.v3.ClusterConfig",
    "envoy.extensions.clusters.dns.v3.DnsCluster",
    "envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig",
    "envoy.extensions.clusters.redis.v3.RedisClusterConfig",
)

REWRITTEN = {
    "config.cluster.v3.Cluster.name",
    "config.core.v3.GrpcService.EnvoyGrpc.cluster_name",
    "config.core.v3.HttpUri.cluster",
    "config.endpoint.v3.ClusterLoadAssignment.cluster_name",
    "config.route.v3.RouteAction.RequestMirrorPolicy.cluster",
    "config.route.v3.RouteAction.cluster",
    "config.trace.v3.ZipkinConfig.collector_cluster",
    "config.route.v3.WeightedCluster.ClusterWeight.name",
    "extensions.clusters.aggregate.v3.ClusterConfig.clusters",
    "extensions.filters.http.fault.v3.HTTPFault.upstream_cluster",
    "extensions.filters.network.redis_proxy.v3.RedisProxy.PrefixRoutes.Route.ReadCommandPolicy.cluster",
    "extensions.filters.network.redis_proxy.v3.RedisProxy.PrefixRoutes.Route.RequestMirrorPolicy.cluster",
    "extensions.filters.network.redis_proxy.v3.RedisProxy.PrefixRoutes.Route.cluster",
    "extensions.filters.network.tcp_proxy.v3.TcpProxy.WeightedCluster.ClusterWeight.name",
    "extensions.filters.network.tcp_proxy.v3.TcpProxy.cluster",
}
REPORTED = {
    # The name comes with the request.
    "config.route.v3.RouteAction.RequestMirrorPolicy.cluster_header",
    "config.route.v3.RouteAction.cluster_header",
    "config.route.v3.WeightedCluster.ClusterWeight.cluster_header",
}
REFUSED = {
    # Configuration from elsewhere than ADS, and plugins.
    "config.core.v3.ApiConfigSource.cluster_names",
    "config.route.v3.RouteAction.cluster_specifier_plugin",
}
OTHER = {
    # What is only looked at, or names something else.
    "config.cluster.v3.Cluster.CustomClusterType.name",
    "config.route.v3.VirtualCluster.name",
}


def message_of(type_name: str) -> Any:
    """The descriptor of a message of Envoy's API, wherever in its package it is defined."""
    package = importlib.import_module(type_name.rpartition(".")[0])
    for module in pkgutil.iter_modules(package.__path__):
        if module.name.endswith("_pb2"):
            importlib.import_module(f"{package.__name__}.{module.name}")
    return descriptor_pool.Default().FindMessageTypeByName(type_name)


def passed_on() -> list[str]:
    return sorted(
        {*HTTP, *LISTENER, *NETWORK, *PER_ROUTE, *UPSTREAM_HTTP, *node_filters.ACCESS_LOGS, *node_filters.TRACERS}
    )


def fields(message: Any, seen: set[str]) -> Iterator[Any]:
    """All fields of a message and of those inside it."""
    if message.full_name in seen:
        return
    seen.add(message.full_name)
    for field in message.fields:
        yield field
        if field.message_type is not None:
            yield from fields(field.message_type, seen)


def cluster_fields(message: Any) -> set[str]:
    return {
        field.full_name.removeprefix("envoy.")
        for field in fields(message, set())
        if field.type == field.TYPE_STRING and _names_a_cluster(field)
    }


def _names_a_cluster(field: Any) -> bool:
    return "cluster" in field.name or (field.name == "name" and "Cluster" in field.containing_type.name)


def test_every_field_that_names_a_cluster_is_known() -> None:
    found: set[str] = set()
    for root in (*ROOTS, HttpProtocolOptions):
        found |= cluster_fields(root.DESCRIPTOR)
    for type_name in (*passed_on(), *CLUSTER_TYPES):
        found |= cluster_fields(message_of(type_name))
    assert found == REWRITTEN | REPORTED | REFUSED | OTHER


@pytest.mark.parametrize("type_name", passed_on())
def test_what_is_passed_on_exists(type_name: str) -> None:
    assert message_of(type_name).full_name == type_name


PLAIN = sorted(
    name
    for table in (HTTP, LISTENER, NETWORK, PER_ROUTE, UPSTREAM_HTTP)
    for name, rewrite in table.items()
    if rewrite is node_filters.keep
)


@pytest.mark.parametrize("type_name", PLAIN)
def test_what_is_passed_on_unread_calls_nobody(type_name: str) -> None:
    """No cluster, no service, no secret, no other source of configuration."""
    services = {"GrpcService", "HttpUri", "HttpService", "ConfigSource", "SdsSecretConfig", "ApiConfigSource"}
    found = fields(message_of(type_name), set())
    called = {f.full_name for f in found if f.message_type is not None and f.message_type.name in services}
    assert cluster_fields(message_of(type_name)) == set()
    assert called == set()
