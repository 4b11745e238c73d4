"""`cluster.v3.Cluster` and its `endpoint.v3.ClusterLoadAssignment` on their way to the node Envoy.

A cluster that Envoy could not take, or that would wait for ever for something nobody serves, is replaced by one of the
same name without endpoints: requests for it get 503 UH, as they do when no endpoint is healthy, and nothing else is
held up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.core.v3.config_source_pb2 import V3
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment

from translator.closed import Malformed, type_name
from translator.node_filters import ISTIO_ONLY, UPSTREAM_HTTP, dns_cache, filters, rewrite_packed
from translator.node_scope import MtlsEndpoints, Scope
from translator.node_sockets import Fate, Socket, examine

_INBOUND: Final = ("inbound|", "InboundPassthroughCluster")
_HTTP_OPTIONS: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_TCP_OPTIONS: Final = "envoy.extensions.upstreams.tcp.v3.TcpProtocolOptions"
_CLUSTERS: Final = "envoy.extensions.clusters."
_PLAIN_TYPES: Final = frozenset(
    {
        _CLUSTERS + "dns.v3.DnsCluster",
        _CLUSTERS + "redis.v3.RedisClusterConfig",
    }
)
_DNS: Final = (Cluster.STRICT_DNS, Cluster.LOGICAL_DNS)
_LABELS: Final = "envoy.transport_socket_match"

REFUSED: Final = "endpoints left out, since they need mesh mTLS (mtls_endpoints: refuse)"
PLAINTEXT: Final = "endpoints get plain bytes instead of mesh mTLS (mtls_endpoints: plaintext)"


def is_inbound(name: str) -> bool:
    """Whether a cluster of istiod's is for a sidecar's inbound side (names: `pilot/pkg/networking/util`)."""
    return name.startswith(_INBOUND)


def rewrite_cluster(
    received: Any, assignment: Any | None, scope: Scope
) -> tuple[Cluster, ClusterLoadAssignment | None]:
    """Copies fit for Envoy of a cluster and, if it is an EDS one, of its assignment (None: it never came).

    The assignment gets the cluster's name, whatever its own: which endpoints remain depends on the cluster.
    """
    cluster = Cluster()
    cluster.CopyFrom(received)
    try:
        found = _rewrite(cluster, assignment, _Sockets(received, scope), scope)
    except Malformed as error:
        scope.note(f"replaced by a cluster without endpoints (503 UH): {error}")
        return _empty(received, scope), None
    return cluster, found


def _empty(received: Any, scope: Scope) -> Cluster:
    made = Cluster(name=scope.name(received.name), type=Cluster.STATIC)
    made.alt_stat_name = scope.name(received.alt_stat_name)
    for name in ("connect_timeout", "metadata", "circuit_breakers"):
        if received.HasField(name):
            getattr(made, name).CopyFrom(getattr(received, name))
    return made


def _rewrite(cluster: Any, assignment: Any | None, sockets: _Sockets, scope: Scope) -> ClusterLoadAssignment | None:
    sockets.replace(cluster)
    cluster.name = scope.name(cluster.name)
    # Statistics of two views would else be counted together.
    cluster.alt_stat_name = scope.name(cluster.alt_stat_name)
    _filters(cluster, scope)
    _options(cluster, scope)
    if cluster.HasField("lrs_server"):
        scope.note("without load reports (lrs_server)", harmless=True)
        cluster.ClearField("lrs_server")
    for check in cluster.health_checks:
        if check.event_log_path:
            scope.note("without its health checks' event log (a file)")
            check.event_log_path = ""
    if cluster.WhichOneof("cluster_discovery_type") == "cluster_type":
        _custom(cluster, scope)
    elif cluster.type == Cluster.EDS:
        return _eds(cluster, assignment, sockets, scope)
    if cluster.HasField("load_assignment"):
        cluster.load_assignment.cluster_name = cluster.name
        sockets.filter(cluster.load_assignment)
    else:
        sockets.check_unlisted()
    if cluster.WhichOneof("cluster_discovery_type") == "type" and cluster.type in _DNS:
        # Envoy starts no listener before its first clusters are warm, and a name server may take minutes not to answer.
        cluster.wait_for_warm_on_init.value = False
    return None


def _filters(cluster: Any, scope: Scope) -> None:
    dropped = []
    for index, network_filter in enumerate(cluster.filters):
        kind = type_name(network_filter.typed_config)
        if kind not in ISTIO_ONLY:
            raise Malformed(
                f"filters[{index}]", f"filter {network_filter.name!r} ({kind}) cannot be passed on to Envoy"
            )
        scope.note(f"without Istio's filter {ISTIO_ONLY[kind]}", harmless=True)
        dropped.append(index)
    for index in reversed(dropped):
        del cluster.filters[index]


def _options(cluster: Any, scope: Scope) -> None:
    for name, packed in cluster.typed_extension_protocol_options.items():
        path = f"typed_extension_protocol_options[{name}]"
        kind = type_name(packed)
        if kind == _HTTP_OPTIONS:
            _http_options(packed, scope, path)
        elif kind != _TCP_OPTIONS:
            raise Malformed(path, f"options of type {kind} cannot be passed on to Envoy")


def _http_options(packed: Any, scope: Scope, path: str) -> None:
    from envoy.extensions.upstreams.http.v3.http_protocol_options_pb2 import HttpProtocolOptions

    def change(options: Any) -> None:
        filters(options.http_filters, UPSTREAM_HTTP, scope, f"{path}.http_filters")
        for policy in options.request_mirror_policies:
            policy.cluster = scope.name(policy.cluster)

    rewrite_packed(packed, HttpProtocolOptions, path, change)


def _custom(cluster: Any, scope: Scope) -> None:
    packed = cluster.cluster_type.typed_config
    kind = type_name(packed)
    path = "cluster_type.typed_config"
    if kind == _CLUSTERS + "dynamic_forward_proxy.v3.ClusterConfig":
        from envoy.extensions.clusters.dynamic_forward_proxy.v3.cluster_pb2 import ClusterConfig

        def change(config: Any) -> None:
            if config.HasField("dns_cache_config"):
                dns_cache(config, scope)

        rewrite_packed(packed, ClusterConfig, path, change)
    elif kind == _CLUSTERS + "aggregate.v3.ClusterConfig":
        from envoy.extensions.clusters.aggregate.v3 import cluster_pb2 as aggregate

        def rename(config: Any) -> None:
            config.clusters[:] = [scope.name(name) for name in config.clusters]

        rewrite_packed(packed, aggregate.ClusterConfig, path, rename)
    elif kind not in _PLAIN_TYPES:
        raise Malformed(path, f"a cluster of type {kind} cannot be passed on to Envoy")


def _eds(cluster: Any, received: Any | None, sockets: _Sockets, scope: Scope) -> ClusterLoadAssignment:
    source = cluster.eds_cluster_config.eds_config
    if source.WhichOneof("config_source_specifier") not in ("ads", "self"):
        raise Malformed("eds_cluster_config.eds_config", "endpoints from elsewhere than ADS are not served")
    source.ads.SetInParent()
    source.resource_api_version = V3
    cluster.eds_cluster_config.service_name = cluster.name
    assignment = ClusterLoadAssignment()
    if received is not None:
        assignment.CopyFrom(received)
    else:
        scope.note("without endpoints, since none were received")
    assignment.cluster_name = cluster.name
    sockets.filter(assignment)
    return assignment


@dataclass(frozen=True, slots=True)
class _Choice:
    labels: Any  # Struct; None for the default
    socket: Socket


class _Sockets:
    """The transport sockets of one cluster as received: which endpoint gets which, and what becomes of it.

    :raises Malformed: if no endpoint could be reached at all, whatever its labels
    """

    def __init__(self, received: Any, scope: Scope) -> None:
        self._scope = scope
        self._plaintext = scope.options.mtls_endpoints is MtlsEndpoints.PLAINTEXT
        if received.HasField("transport_socket_matcher"):
            raise Malformed("transport_socket_matcher", "cannot be passed on to Envoy")
        self._choices = [
            _Choice(match.match, examine(match.transport_socket, scope.options))
            for match in received.transport_socket_matches
        ]
        self._default = examine(received.transport_socket, scope.options)
        if not self._choices and not self._usable(self._default):
            raise Malformed("transport_socket", f"no endpoint can be reached, {self._default.why}")

    def _usable(self, socket: Socket) -> bool:
        return socket.fate is Fate.OPEN or (socket.fate is Fate.MESH_MTLS and self._plaintext)

    def replace(self, cluster: Any) -> None:
        """Take from a copy of the cluster the sockets that Envoy cannot open."""
        for index in reversed(range(len(self._choices))):
            socket = self._choices[index].socket
            if self._usable(socket):
                cluster.transport_socket_matches[index].transport_socket.CopyFrom(socket.use)
            else:
                del cluster.transport_socket_matches[index]
        if cluster.HasField("transport_socket"):
            if self._usable(self._default):
                cluster.transport_socket.CopyFrom(self._default.use)
            else:
                cluster.ClearField("transport_socket")  # whoever would have it is left out

    def _choose(self, endpoint: Any | None, group: Any | None) -> Socket:
        """What an endpoint gets, by its own labels or else its locality's (transport_socket_match_impl.cc)."""
        for choice in self._choices:
            if _has(endpoint, choice.labels) or _has(group, choice.labels):
                return choice.socket
        return self._default

    def check_unlisted(self) -> None:
        """For a cluster that finds its endpoints by itself, so that they have no labels.

        :raises Malformed: if they cannot be reached
        """
        socket = self._choose(None, None)
        if not self._usable(socket):
            raise Malformed("transport_socket_matches", f"no endpoint can be reached, {socket.why}")
        if socket.fate is Fate.MESH_MTLS:
            self._scope.note(PLAINTEXT)

    def filter(self, assignment: Any) -> None:
        """Leave out the endpoints that cannot be reached.  Their groups stay, so that priorities keep their meaning."""
        total = 0
        left_out: dict[str, int] = {}
        plain = 0
        for group in assignment.endpoints:
            if group.HasField("leds_cluster_locality_config"):
                raise Malformed("endpoints.leds_cluster_locality_config", "is not served")
            endpoints = group.load_balancer_endpoints.lb_endpoints if _listed(group) else group.lb_endpoints
            total += len(endpoints)
            for index in reversed(range(len(endpoints))):
                why, is_plain = self._judge(endpoints[index], group)
                plain += is_plain
                if why:
                    left_out[why] = left_out.get(why, 0) + 1
                    del endpoints[index]
        for why, count in left_out.items():
            self._scope.note(why, f"{count} of {total}")
        if plain:
            self._scope.note(PLAINTEXT, f"{plain} of {total}")

    def _judge(self, candidate: Any, group: Any) -> tuple[str, bool]:
        """Why an endpoint is left out ("": it is not), and whether it gets plain bytes against its will."""
        if candidate.endpoint.address.HasField("envoy_internal_address"):
            return "endpoints left out, since they are behind a listener inside a sidecar (HBONE)", False
        socket = self._choose(candidate.metadata, group.metadata)
        if socket.fate is Fate.MESH_MTLS:
            return ("", True) if self._plaintext else (REFUSED, False)
        if socket.fate is Fate.CLOSED:
            return f"endpoints left out, since they cannot be reached: {socket.why}", False
        return "", False


def _listed(group: Any) -> bool:
    return bool(group.HasField("load_balancer_endpoints"))


def _has(metadata: Any | None, labels: Any) -> bool:
    """Whether metadata has all labels; without any labels, always."""
    if not labels.fields:
        return True
    if metadata is None or _LABELS not in metadata.filter_metadata:
        return False
    own = metadata.filter_metadata[_LABELS].fields
    return all(key in own and own[key] == value for key, value in labels.fields.items())
