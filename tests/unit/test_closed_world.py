"""No field is overlooked: set any one that is not known to be harmless, and the request becomes Envoy's.

The tables say which fields the translator reads (those have tests of their own) and which it may ignore.  A field
that a newer Envoy API adds is in neither, so it fails here until somebody has looked at it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.unit.small_world import World
from translator.reasons import Reason


def fields(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Where in a `World`; fields that are read and tested apart; fields without an effect on what the kernel carries.
PLACES: tuple[tuple[str, Callable[[World], Any], frozenset[str], frozenset[str]], ...] = (
    (
        "listener",
        lambda w: w.listener,
        fields("address filter_chains listener_filters traffic_direction bind_to_port use_original_dst"),
        fields(
            "name stat_prefix default_filter_chain listener_filters_timeout continue_on_listener_filters_timeout"
            " metadata access_log max_connections_to_accept_per_socket_event additional_addresses"
        ),
    ),
    (
        "listener.listener_filters",
        lambda w: w.listener_filter,
        fields("typed_config"),
        fields("name"),
    ),
    (
        "listener.filter_chains",
        lambda w: w.chain,
        fields("filter_chain_match filters"),
        fields("metadata name transport_socket_connect_timeout"),
    ),
    (
        "listener.filter_chains.filter_chain_match",
        lambda w: w.chain_match,
        fields("application_protocols"),
        frozenset(),
    ),
    (
        "manager",
        lambda w: w.manager,
        fields(
            "rds http_filters stream_idle_timeout normalize_path route_config codec_type"
            " path_with_escaped_slashes_action"
        ),
        fields(
            "stat_prefix tracing http_protocol_options http2_protocol_options http3_protocol_options"
            " server_name server_header_transformation access_log access_log_options generate_request_id"
            " proxy_100_continue request_id_extension"
        ),
    ),
    (
        "listener.filter_chains.filters",
        lambda w: w.network_filter,
        fields("typed_config"),
        fields("name"),
    ),
    (
        "manager.http_protocol_options",
        lambda w: w.manager.http_protocol_options,
        frozenset(),
        fields("accept_http_10 default_host_for_http_10"),
    ),
    (
        "manager.http_filters",
        lambda w: w.http_filter,
        fields("typed_config"),
        fields("name is_optional disabled"),
    ),
    ("router", lambda w: w.router, frozenset(), fields("suppress_envoy_headers start_child_span")),
    (
        "config",
        lambda w: w.config,
        fields("virtual_hosts ignore_port_in_host_matching"),
        fields("name validate_clusters max_direct_response_body_size_bytes metadata"),
    ),
    (
        "host",
        lambda w: w.host,
        fields("domains routes"),
        fields("name include_request_attempt_count metadata"),
    ),
    (
        "route",
        lambda w: w.route,
        fields("match route"),
        fields("name metadata decorator stat_prefix"),
    ),
    ("match", lambda w: w.match, fields("headers case_sensitive"), frozenset()),
    (
        "match.headers",
        lambda w: w.header,
        fields("name string_match present_match"),
        fields("treat_missing_header_as_empty"),
    ),
    ("match.headers.string_match", lambda w: w.header.string_match, fields("exact"), frozenset()),
    ("action", lambda w: w.action, fields("weighted_clusters timeout"), fields("retry_policy max_stream_duration")),
    ("action.weighted_clusters", lambda w: w.weighted, fields("clusters"), frozenset()),
    ("action.weighted_clusters.clusters", lambda w: w.weight, fields("name weight"), frozenset()),
    (
        "action.retry_policy",
        lambda w: w.retry,
        fields("retry_on num_retries retry_host_predicate"),
        fields("host_selection_retry_max_attempts"),
    ),
    ("action.retry_policy.retry_host_predicate", lambda w: w.predicate, fields("typed_config"), fields("name")),
    (
        "cluster",
        lambda w: w.cluster,
        fields("name type cluster_type eds_cluster_config lb_policy common_lb_config circuit_breakers"),
        # DNS settings do not concern a cluster of addresses, nor do an original destination's.
        fields(
            "alt_stat_name connect_timeout load_assignment metadata cleanup_interval wait_for_warm_on_init"
            " dns_refresh_rate dns_jitter dns_failure_refresh_rate respect_dns_ttl dns_lookup_family"
            " typed_dns_resolver_config original_dst_lb_config least_request_lb_config round_robin_lb_config"
        ),
    ),
    ("cluster.circuit_breakers", lambda w: w.cluster.circuit_breakers, fields("thresholds"), frozenset()),
    ("cluster.circuit_breakers.thresholds", lambda w: w.threshold, frozenset(), fields("track_remaining")),
    ("cluster.common_lb_config", lambda w: w.common, fields("healthy_panic_threshold"), frozenset()),
    ("cluster.least_request", lambda w: w.cluster.least_request_lb_config, frozenset(), frozenset()),
    ("cluster.round_robin", lambda w: w.cluster.round_robin_lb_config, frozenset(), frozenset()),
    ("options", lambda w: w.options, fields("explicit_http_config use_downstream_protocol_config"), frozenset()),
    ("options.explicit", lambda w: w.options.explicit_http_config, fields("http_protocol_options"), frozenset()),
    (
        "options.explicit.http",
        lambda w: w.options.explicit_http_config.http_protocol_options,
        frozenset(),
        frozenset(),
    ),
    ("assignment", lambda w: w.assignment, fields("cluster_name endpoints"), fields("policy named_endpoints")),
    ("assignment.policy", lambda w: w.assignment.policy, frozenset(), fields("overprovisioning_factor")),
    (
        "assignment.endpoints",
        lambda w: w.group,
        fields("lb_endpoints"),
        fields("locality metadata load_balancing_weight proximity"),
    ),
    (
        "assignment.endpoints.lb_endpoints",
        lambda w: w.candidate,
        fields("endpoint health_status"),
        fields("metadata load_balancing_weight"),
    ),
    ("endpoint", lambda w: w.endpoint, fields("address"), fields("hostname")),
    ("endpoint.address.socket_address", lambda w: w.socket, fields("address port_value"), frozenset()),
)


def set_field(message: Any, descriptor: Any) -> None:
    """Give a field some value that is not its default."""
    name = descriptor.name
    if descriptor.message_type is not None and descriptor.message_type.GetOptions().map_entry:
        value = descriptor.message_type.fields_by_name["value"]
        if value.message_type is None:
            getattr(message, name)["some"] = "some"
        else:
            getattr(message, name)["some"].SetInParent()
    elif descriptor.is_repeated:
        repeated = getattr(message, name)
        if descriptor.message_type is not None:
            repeated.add()
        else:
            repeated.append(scalar(descriptor))
    elif descriptor.message_type is not None:
        child = getattr(message, name)
        child.SetInParent()
        full_name = descriptor.message_type.full_name
        if full_name.startswith("google.protobuf.") and full_name.endswith("Value"):
            child.value = scalar(child.DESCRIPTOR.fields_by_name["value"])
        elif full_name == "google.protobuf.Duration":
            child.seconds = 7
    else:
        setattr(message, name, scalar(descriptor))


def scalar(descriptor: Any) -> Any:
    if descriptor.enum_type is not None:
        return max(value.number for value in descriptor.enum_type.values)
    kinds: dict[int, Any] = {
        descriptor.CPPTYPE_STRING: "some",
        descriptor.CPPTYPE_BOOL: True,
        descriptor.CPPTYPE_DOUBLE: 7.0,
        descriptor.CPPTYPE_FLOAT: 7.0,
    }
    value = kinds.get(descriptor.cpp_type, 7)
    return b"some" if descriptor.type == descriptor.TYPE_BYTES else value


def all_fields() -> Iterator[Any]:
    for place, find, read, harmless in PLACES:
        for descriptor in find(World()).DESCRIPTOR.fields:
            if descriptor.name not in read:
                yield pytest.param(find, descriptor, descriptor.name in harmless, id=f"{place}.{descriptor.name}")


def test_the_world_is_carried_by_the_kernel() -> None:
    assert World().reason() is Reason.NONE


@pytest.mark.parametrize(("find", "descriptor", "harmless"), [*all_fields()])
def test_a_field(find: Callable[[World], Any], descriptor: Any, harmless: bool) -> None:
    world = World()
    set_field(find(world), descriptor)
    reason = world.reason()
    assert (reason is Reason.NONE) == harmless, reason.name


@pytest.mark.parametrize(("place", "find"), [(p[0], p[1]) for p in PLACES], ids=[p[0] for p in PLACES])
def test_a_field_that_the_definitions_lack(place: str, find: Callable[[World], Any]) -> None:
    world = World()
    # Field 5000, a varint.
    find(world).MergeFromString(b"\xc0\xb8\x02\x01")
    assert world.reason() is not Reason.NONE
