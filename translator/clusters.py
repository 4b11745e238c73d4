"""`cluster.v3.Cluster` and its `endpoint.v3.ClusterLoadAssignment` -> `ClusterRule`."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.core.v3.health_check_pb2 import DEGRADED, HEALTHY, UNKNOWN
from envoy.extensions.upstreams.http.v3.http_protocol_options_pb2 import HttpProtocolOptions

from translator.closed import is_empty, type_name, unhandled, unpack
from translator.limits import Limits
from translator.model import ClusterRule, EndpointRule, LbPolicy
from translator.reasons import Reason

_CLUSTER: Final = frozenset(
    {
        "name",
        "alt_stat_name",
        "type",
        "cluster_type",
        "eds_cluster_config",
        "connect_timeout",
        "lb_policy",
        "load_assignment",
        "circuit_breakers",
        "metadata",
        "common_lb_config",
        "filters",
        "transport_socket",
        "transport_socket_matches",
        "typed_extension_protocol_options",
        "outlier_detection",
        "health_checks",
        "least_request_lb_config",
        "round_robin_lb_config",
        "lb_subset_config",
        "load_balancing_policy",
        "ring_hash_lb_config",
        "maglev_lb_config",
        "original_dst_lb_config",
        "cleanup_interval",
        "wait_for_warm_on_init",
        # Which addresses a name has is no question for a cluster of addresses.
        "dns_refresh_rate",
        "dns_jitter",
        "dns_failure_refresh_rate",
        "respect_dns_ttl",
        "dns_lookup_family",
        "typed_dns_resolver_config",
        # UPSTREAM_PROTOCOL
        "max_requests_per_connection",
        "upstream_http_protocol_options",
        "common_http_protocol_options",
        "http_protocol_options",
        "http2_protocol_options",
        "protocol_selection",
    }
)
_PROTOCOL_FIELDS: Final = (
    "max_requests_per_connection",
    "upstream_http_protocol_options",
    "common_http_protocol_options",
    "http_protocol_options",
    "http2_protocol_options",
)
_POLICIES: Final = {
    Cluster.ROUND_ROBIN: LbPolicy.ROUND_ROBIN,
    Cluster.RANDOM: LbPolicy.RANDOM,
    Cluster.LEAST_REQUEST: LbPolicy.LEAST_REQUEST,
}
_UNLIMITED: Final = 2**32 - 1
_HTTP_OPTIONS: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_RAW_BUFFER: Final = "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"
_PEER_EXCHANGE: Final = "envoy.tcp.metadataexchange.config.MetadataExchange"


def read_cluster(cluster: Any, assignments: Mapping[str, Any], limits: Limits) -> ClusterRule:
    """Read a cluster with the assignment that goes with it; of several reasons the lowest number is given.

    :param assignments: by name; absent means that no endpoint is known
    :raises Malformed: for what Envoy would refuse
    """
    reasons = set(_cluster_reasons(cluster))
    lb = _POLICIES.get(cluster.lb_policy, LbPolicy.ROUND_ROBIN)
    eds = cluster.WhichOneof("cluster_discovery_type") == "type" and cluster.type == Cluster.EDS
    if eds:
        assignment = assignments.get(str(cluster.eds_cluster_config.service_name or cluster.name))
    else:
        assignment = cluster.load_assignment
    none = _Endpoints((), frozenset({Reason.NO_HEALTHY_ENDPOINT}))
    found = none if assignment is None else _endpoints(cluster, assignment)
    reasons |= found.reasons
    if len(found.endpoints) > limits.endpoints:
        reasons.add(Reason.BUDGET_ENDPOINTS)
    # RANDOM takes no notice of weights (random_lb.cc).
    if lb is not LbPolicy.RANDOM and len({e.weight for e in found.endpoints}) > 1:
        reasons.add(Reason.LB_WEIGHTS)
    reasons.discard(Reason.NONE)
    # A cluster that has no endpoints by its nature must say so, not that none is healthy.
    by_nature = {Reason.CLUSTER_ORIGINAL_DST, Reason.CLUSTER_DNS, Reason.CLUSTER_TYPE} & reasons
    return ClusterRule(str(cluster.name), lb, found.endpoints, min(by_nature or reasons, default=Reason.NONE))


def _cluster_reasons(cluster: Any) -> Iterator[Reason]:
    yield _type_reason(cluster)
    yield from _lb_reasons(cluster)
    if not _is_unlimited(cluster.circuit_breakers):
        yield Reason.CIRCUIT_BREAKER
    if cluster.HasField("outlier_detection"):
        yield Reason.OUTLIER_DETECTION
    if cluster.health_checks:
        yield Reason.HEALTH_CHECK
    if cluster.HasField("transport_socket") and not _is_raw(cluster.transport_socket):
        yield Reason.UPSTREAM_TLS
    if cluster.protocol_selection or any(cluster.HasField(name) for name in _PROTOCOL_FIELDS):
        yield Reason.UPSTREAM_PROTOCOL
    for name, packed in cluster.typed_extension_protocol_options.items():
        path = f"typed_extension_protocol_options[{name}]"
        if type_name(packed) != _HTTP_OPTIONS or not _is_http1(unpack(packed, HttpProtocolOptions, path)):
            yield Reason.UPSTREAM_PROTOCOL
    for network_filter in cluster.filters:
        # It offers peer metadata on TLS connections that agreed on it by ALPN: nothing to do on a plain one.
        known = unhandled(network_filter, frozenset({"name", "typed_config"})) is None
        if not known or type_name(network_filter.typed_config) != _PEER_EXCHANGE:
            yield Reason.CLUSTER_FILTER
    if unhandled(cluster, _CLUSTER):
        yield Reason.CLUSTER_OTHER


def _type_reason(cluster: Any) -> Reason:
    if cluster.WhichOneof("cluster_discovery_type") == "cluster_type":
        return Reason.CLUSTER_TYPE
    if cluster.type == Cluster.EDS:
        source = cluster.eds_cluster_config.eds_config.WhichOneof("config_source_specifier")
        return Reason.NONE if source in ("ads", "self") else Reason.CLUSTER_TYPE
    if cluster.type == Cluster.STATIC:
        return Reason.NONE
    if cluster.type == Cluster.ORIGINAL_DST:
        return Reason.CLUSTER_ORIGINAL_DST
    if cluster.type in (Cluster.STRICT_DNS, Cluster.LOGICAL_DNS):
        return Reason.CLUSTER_DNS
    return Reason.CLUSTER_TYPE


def _lb_reasons(cluster: Any) -> Iterator[Reason]:
    other = ("lb_subset_config", "load_balancing_policy", "ring_hash_lb_config", "maglev_lb_config")
    if cluster.lb_policy not in _POLICIES or any(cluster.HasField(name) for name in other):
        yield Reason.LB_POLICY
    for name in ("least_request_lb_config", "round_robin_lb_config"):
        if cluster.HasField(name):
            config = getattr(cluster, name)
            if config.HasField("slow_start_config"):
                yield Reason.LB_SLOW_START
            # choice_count and active_request_bias change how endpoints are chosen.
            if unhandled(config, frozenset({"slow_start_config"})):
                yield Reason.LB_POLICY
    common = cluster.common_lb_config
    if common.HasField("locality_weighted_lb_config") or common.HasField("zone_aware_lb_config"):
        yield Reason.LB_LOCALITY
    known = {"healthy_panic_threshold", "locality_weighted_lb_config", "zone_aware_lb_config"}
    if unhandled(common, frozenset(known)):
        yield Reason.CLUSTER_OTHER


def _is_unlimited(breakers: Any) -> bool:
    """Whether every limit of the default priority is out of reach; unset is 1024 connections, 3 retries."""
    if unhandled(breakers, frozenset({"thresholds"})):
        return False
    names = ("max_connections", "max_pending_requests", "max_requests", "max_retries")
    defaults = [t for t in breakers.thresholds if t.priority == 0]
    return bool(defaults) and all(
        unhandled(threshold, frozenset(names) | {"priority", "track_remaining"}) is None
        and all(getattr(threshold, name).value == _UNLIMITED for name in names)
        for threshold in defaults
    )


def _is_raw(socket: Any) -> bool:
    if unhandled(socket, frozenset({"name", "typed_config"})):
        return False
    if not socket.HasField("typed_config"):
        return bool(socket.name == "envoy.transport_sockets.raw_buffer")
    return type_name(socket.typed_config) == _RAW_BUFFER


def _is_http1(options: HttpProtocolOptions) -> bool:
    """Whether a request that came in as HTTP/1.1 goes out as HTTP/1.1 with nothing special about it."""
    if unhandled(options, frozenset({"explicit_http_config", "use_downstream_protocol_config"})):
        return False
    which = options.WhichOneof("upstream_protocol_options")
    if which == "explicit_http_config":
        explicit = options.explicit_http_config
        return (
            unhandled(explicit, frozenset({"http_protocol_options"})) is None
            and explicit.HasField("http_protocol_options")
            and is_empty(explicit.http_protocol_options)
        )
    if which == "use_downstream_protocol_config":
        # What it says of HTTP/2 and 3 holds for requests that came in so, and those are Envoy's.
        downstream = options.use_downstream_protocol_config
        known = frozenset({"http_protocol_options", "http2_protocol_options", "http3_protocol_options"})
        return unhandled(downstream, known) is None and is_empty(downstream.http_protocol_options)
    return False


@dataclass(frozen=True, slots=True)
class _Endpoints:
    endpoints: tuple[EndpointRule, ...]
    reasons: frozenset[Reason]


def _endpoints(cluster: Any, assignment: Any) -> _Endpoints:
    """The endpoints that may be chosen, and what about them only Envoy can honour."""
    found: list[EndpointRule] = []
    reasons: set[Reason] = set()
    total = usable = 0
    if unhandled(assignment, frozenset({"cluster_name", "endpoints", "policy", "named_endpoints"})):
        reasons.add(Reason.CLUSTER_OTHER)
    # Overprovisioning says when to go to the next priority, and a cluster with more than one is not carried.
    if unhandled(assignment.policy, frozenset({"overprovisioning_factor"})):
        reasons.add(Reason.CLUSTER_OTHER)
    group_fields = frozenset({"locality", "metadata", "lb_endpoints", "load_balancing_weight", "priority", "proximity"})
    for group in assignment.endpoints:
        if unhandled(group, group_fields):
            reasons.add(Reason.CLUSTER_OTHER)
        if group.priority and group.lb_endpoints:
            reasons.add(Reason.LB_PRIORITY)
        for candidate in group.lb_endpoints:
            total += 1
            # Degraded hosts are a second choice (upstream/load_balancer docs, "Degraded endpoints").
            if candidate.health_status == DEGRADED:
                reasons.add(Reason.LB_PRIORITY)
            usable += candidate.health_status in (UNKNOWN, HEALTHY, DEGRADED)
            if candidate.health_status not in (UNKNOWN, HEALTHY) or group.priority:
                continue
            endpoint = _endpoint(cluster, candidate, reasons)
            if endpoint is not None:
                found.append(endpoint)
    if total != len(found) and not _panic_is_off(cluster.common_lb_config):
        reasons.add(Reason.PANIC_THRESHOLD)
    elif not usable:
        reasons.add(Reason.NO_HEALTHY_ENDPOINT)
    return _Endpoints(tuple(found), frozenset(reasons))


def _panic_is_off(common: Any) -> bool:
    # Unset is 50 %.
    return bool(common.HasField("healthy_panic_threshold") and not common.healthy_panic_threshold.value)


def _endpoint(cluster: Any, candidate: Any, reasons: set[Reason]) -> EndpointRule | None:
    if unhandled(candidate, frozenset({"endpoint", "health_status", "metadata", "load_balancing_weight"})):
        reasons.add(Reason.CLUSTER_OTHER)
    endpoint = candidate.endpoint
    if endpoint.HasField("health_check_config"):
        reasons.add(Reason.HEALTH_CHECK)
    if unhandled(endpoint, frozenset({"address", "hostname", "health_check_config"})):
        reasons.add(Reason.ENDPOINT_ADDRESS)
    socket = endpoint.address.socket_address
    address = _ip(str(socket.address)) if endpoint.address.HasField("socket_address") else None
    if address is None or socket.protocol or unhandled(socket, frozenset({"address", "port_value"})):
        reasons.add(Reason.ENDPOINT_ADDRESS)
    if address is None:
        return None
    labels = candidate.metadata.filter_metadata
    socket_labels = labels.get("envoy.transport_socket_match")
    secure = False
    for choice in cluster.transport_socket_matches:
        # The first whose labels the endpoint all has (transport_socket_match_impl.cc).
        if all(socket_labels is not None and _has(socket_labels, k, v) for k, v in choice.match.fields.items()):
            secure = not _is_raw(choice.transport_socket)
            break
    if secure:
        istio = (
            socket_labels is not None
            and "tlsMode" in socket_labels.fields
            and socket_labels.fields["tlsMode"].string_value == "istio"
        )
        reasons.add(Reason.ENDPOINT_MTLS if istio else Reason.UPSTREAM_TLS)
    weight = int(candidate.load_balancing_weight.value) if candidate.HasField("load_balancing_weight") else 1
    return EndpointRule(address, int(socket.port_value), _workload(labels), weight, secure)


def _has(labels: Any, key: str, value: Any) -> bool:
    return key in labels.fields and bool(labels.fields[key] == value)


def _workload(labels: Any) -> str:
    """The name part of `istio.workload`: "name;namespace;canonical name;revision;cluster"."""
    if "istio" not in labels or "workload" not in labels["istio"].fields:
        return ""
    return str(labels["istio"].fields["workload"].string_value).partition(";")[0]


def _ip(text: str) -> str | None:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None
