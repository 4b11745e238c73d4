"""A small configuration that the kernel carries, for tests that change one thing in it."""

from __future__ import annotations

from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.core.v3.base_pb2 import OUTBOUND
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.config.route.v3.route_pb2 import RouteConfiguration
from envoy.extensions.filters.http.router.v3.router_pb2 import Router
from envoy.extensions.filters.listener.http_inspector.v3.http_inspector_pb2 import HttpInspector
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)
from envoy.extensions.retry.host.previous_hosts.v3.previous_hosts_pb2 import PreviousHostsPredicate
from envoy.extensions.upstreams.http.v3.http_protocol_options_pb2 import HttpProtocolOptions

from translator.evaluate import decide
from translator.from_xds import translate
from translator.model import ViewRules
from translator.reasons import Reason
from translator.request import Request
from xds_server.cache import Snapshot

UNLIMITED = 2**32 - 1
HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
REQUEST = Request("GET", "a", "/", (("x", "1"),), ("10.0.0.1", 80))


class World:
    """The messages of one listener, route, cluster and endpoint; settings inside an Any are packed when asked."""

    def __init__(self) -> None:
        self.manager = HttpConnectionManager(stat_prefix="s")
        self.manager.rds.route_config_name = "80"
        self.manager.rds.config_source.ads.SetInParent()
        self.manager.stream_idle_timeout.SetInParent()
        self.manager.normalize_path.value = True
        self.http_filter = self.manager.http_filters.add(name="envoy.filters.http.router")
        self.router = Router()
        self.listener = Listener(name="0.0.0.0_80", traffic_direction=OUTBOUND)
        self.listener.address.socket_address.address = "0.0.0.0"
        self.listener.address.socket_address.port_value = 80
        self.listener.bind_to_port.value = False
        self.listener_filter = self.listener.listener_filters.add(name="http_inspector")
        self.listener_filter.typed_config.Pack(HttpInspector())
        self.chain = self.listener.filter_chains.add()
        self.chain_match = self.chain.filter_chain_match
        self.chain_match.transport_protocol = "raw_buffer"
        self.chain_match.application_protocols.append("http/1.1")
        self.network_filter = self.chain.filters.add(name="hcm")
        self.config = RouteConfiguration(name="80")
        self.host = self.config.virtual_hosts.add(name="any", domains=["*"])
        self.route = self.host.routes.add()
        self.match = self.route.match
        self.match.prefix = "/"
        self.header = self.match.headers.add(name="x")
        self.header.string_match.exact = "1"
        self.action = self.route.route
        self.action.timeout.SetInParent()
        self.weighted = self.action.weighted_clusters
        self.weight = self.weighted.clusters.add(name="c")
        self.weight.weight.value = 1
        self.retry = self.action.retry_policy
        self.retry.retry_on = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes"
        self.retry.num_retries.value = 2
        self.predicate = self.retry.retry_host_predicate.add(name="previous_hosts")
        self.predicate.typed_config.Pack(PreviousHostsPredicate())
        self.cluster = Cluster(name="c", type=Cluster.EDS, lb_policy=Cluster.LEAST_REQUEST)
        self.cluster.eds_cluster_config.eds_config.ads.SetInParent()
        names = ("max_connections", "max_pending_requests", "max_requests", "max_retries")
        self.threshold = self.cluster.circuit_breakers.thresholds.add(**{name: {"value": UNLIMITED} for name in names})
        self.common = self.cluster.common_lb_config
        self.common.healthy_panic_threshold.SetInParent()
        self.options = HttpProtocolOptions()
        self.options.explicit_http_config.http_protocol_options.SetInParent()
        self.assignment = ClusterLoadAssignment(cluster_name="c")
        self.group = self.assignment.endpoints.add()
        self.candidate = self.group.lb_endpoints.add()
        self.endpoint = self.candidate.endpoint
        self.socket = self.endpoint.address.socket_address
        self.socket.address, self.socket.port_value = "10.0.0.9", 8080

    def reason(self) -> Reason:
        """Why the kernel does not carry the request."""
        return decide(self.rules(), REQUEST).reason

    def rules(self) -> ViewRules:
        """The translation of it all."""
        if self.http_filter.WhichOneof("config_type") != "config_discovery":
            self.http_filter.typed_config.Pack(self.router)
        if self.network_filter.WhichOneof("config_type") != "config_discovery":
            self.network_filter.typed_config.Pack(self.manager)
        if not self.cluster.typed_extension_protocol_options:
            self.cluster.typed_extension_protocol_options[HTTP_OPTIONS].Pack(self.options)
        return translate(
            Snapshot(
                "1",
                {"c": self.cluster},
                {"c": self.assignment},
                {self.listener.name: self.listener},
                {"80": self.config},
            )
        )
