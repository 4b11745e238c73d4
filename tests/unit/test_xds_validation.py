"""What is wrong with a resource is found, and named by field."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from envoy.config.core.v3.address_pb2 import SocketAddress
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.config.route.v3 import route_components_pb2 as parts
from envoy.config.route.v3.route_pb2 import RouteConfiguration

from tests.unit.xds_builders import CDS, EDS, LDS, RDS, cluster, endpoints, listener, response, routes, static_cluster
from xds_server.constraints import Constraints
from xds_server.resources import TypeUrl, wire_name
from xds_server.validation import InvalidResourceError, Validator

Change = Callable[[Any], object]


def first_address(assignment: Any) -> Any:
    return assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address


def two_hosts(config: Any) -> None:
    config.virtual_hosts.add(name="second", domains=["other", "One"])


def same_domain_twice(config: Any) -> None:
    config.virtual_hosts[0].domains.append("ONE")


def weights(config: Any, *values: int) -> None:
    action = config.virtual_hosts[0].routes[0].route
    for value in values:
        action.weighted_clusters.clusters.add(name="c").weight.value = value


def route_without_action(config: Any) -> None:
    config.virtual_hosts[0].routes.add().match.prefix = "/x"


def manager_bytes(made: Any, value: bytes) -> None:
    made.filter_chains[0].filters[0].typed_config.value = value


BASES = {CDS: cluster("one"), EDS: endpoints("one"), LDS: listener("one", "80"), RDS: routes("one", "one")}

BAD: dict[str, tuple[TypeUrl, Change, str, str]] = {
    "cluster type": (CDS, lambda m: setattr(m, "type", 77), "type", "value 77"),
    "cluster EDS source": (
        CDS,
        lambda m: m.ClearField("eds_cluster_config"),
        "eds_cluster_config.eds_config",
        "is required for a cluster of type EDS",
    ),
    "cluster connect timeout": (
        CDS,
        lambda m: setattr(m.connect_timeout, "seconds", 0),
        "connect_timeout",
        "is 0s, must be greater than 0s",
    ),
    "cluster socket match": (
        CDS,
        lambda m: m.transport_socket_matches.add(),
        "transport_socket_matches[0].name",
        "is empty",
    ),
    "endpoint port": (
        EDS,
        lambda m: setattr(first_address(m), "port_value", 70_000),
        "endpoints[0].lb_endpoints[0].endpoint.address.socket_address.port_value",
        "is 70000, must be at most 65535",
    ),
    "endpoint address": (
        EDS,
        lambda m: setattr(first_address(m), "address", "reviews.local"),
        "endpoints[0].lb_endpoints[0].endpoint.address.socket_address.address",
        "'reviews.local' is not an IP address",
    ),
    "endpoint weight": (
        EDS,
        lambda m: setattr(m.endpoints[0].lb_endpoints[0].load_balancing_weight, "value", 0),
        "endpoints[0].lb_endpoints[0].load_balancing_weight",
        "is 0, must be at least 1",
    ),
    "endpoint priority": (
        EDS,
        lambda m: setattr(m.endpoints[0], "priority", 129),
        "endpoints[0].priority",
        "is 129, must be at most 128",
    ),
    "listener address": (LDS, lambda m: m.ClearField("address"), "address", "is required"),
    "listener's connection manager, unreadable": (
        LDS,
        lambda m: manager_bytes(m, b"\x0a\xff"),
        "filter_chains[0].filters[0].typed_config",
        "not a valid HttpConnectionManager",
    ),
    "listener's connection manager, no routes": (
        LDS,
        lambda m: manager_bytes(m, b"\x12\x01x"),
        "filter_chains[0].filters[0].typed_config.route_specifier",
        "is required",
    ),
    "listener's route configuration, inline": (
        LDS,
        lambda m: manager_bytes(m, b"\x12\x01x\x22\x04\x12\x02\x12\x00"),
        "filter_chains[0].filters[0].typed_config.route_config.virtual_hosts[0].name",
        "is empty",
    ),
    "domain in two virtual hosts": (
        RDS,
        two_hosts,
        "virtual_hosts[1].domains[1]",
        "'One' of virtual host 'second' is also a domain of 'one'",
    ),
    "domain twice in one": (
        RDS,
        same_domain_twice,
        "virtual_hosts[0].domains[1]",
        "'ONE' of virtual host 'one' is also",
    ),
    "no domains": (
        RDS,
        lambda m: m.virtual_hosts.add(name="x"),
        "virtual_hosts[1].domains",
        "needs at least 1 item",
    ),
    "weights of zero": (
        RDS,
        lambda m: weights(m, 0, 0),
        "virtual_hosts[0].routes[0].route.weighted_clusters",
        "the sum of weights is 0",
    ),
    "weights too large": (
        RDS,
        lambda m: weights(m, 2**32 - 1, 1),
        "virtual_hosts[0].routes[0].route.weighted_clusters",
        "the sum of weights is 4294967296",
    ),
    "route without action": (RDS, route_without_action, "virtual_hosts[0].routes[1].action", "is required"),
    "route without match": (
        RDS,
        lambda m: m.virtual_hosts[0].routes[0].ClearField("match"),
        "virtual_hosts[0].routes[0].match",
        "is required",
    ),
    "header name": (
        RDS,
        lambda m: m.request_headers_to_remove.append("a\nb"),
        "request_headers_to_remove[0]",
        "'a\\nb' is not a valid HTTP header name or value",
    ),
    "path separated prefix": (
        RDS,
        lambda m: setattr(m.virtual_hosts[0].routes[0].match, "path_separated_prefix", "/a/"),
        "virtual_hosts[0].routes[0].match.path_separated_prefix",
        "does not match",
    ),
    "metadata key": (
        RDS,
        lambda m: m.virtual_hosts[0].routes[0].metadata.filter_metadata[""].SetInParent(),
        "virtual_hosts[0].routes[0].metadata.filter_metadata['']",
        "key is empty",
    ),
}


@pytest.mark.parametrize(("type_url", "change", "field", "why"), BAD.values(), ids=BAD.keys())
def test_a_bad_resource_is_refused_by_field(type_url: TypeUrl, change: Change, field: str, why: str) -> None:
    message = type(BASES[type_url])()
    message.CopyFrom(BASES[type_url])
    change(message)
    with pytest.raises(InvalidResourceError) as caught:
        Validator().parse(type_url, message.SerializeToString())
    assert caught.value.field == field
    assert why in caught.value.why
    assert str(caught.value) == f"{field}: {caught.value.why}"


GOOD: dict[str, tuple[TypeUrl, Change, tuple[str, ...]]] = {
    "EDS cluster": (CDS, lambda m: None, ("one",)),
    "EDS cluster with a service name": (
        CDS,
        lambda m: setattr(m.eds_cluster_config, "service_name", "other"),
        ("other",),
    ),
    "EDS cluster from a file": (
        CDS,
        lambda m: setattr(m.eds_cluster_config.eds_config.path_config_source, "path", "/x"),
        (),
    ),
    "static cluster": (CDS, lambda m: m.CopyFrom(static_cluster("s")), ()),
    "endpoints by Unix socket": (
        EDS,
        lambda m: setattr(m.endpoints[0].lb_endpoints[0].endpoint.address.pipe, "path", "/x"),
        (),
    ),
    "no endpoints": (EDS, lambda m: m.ClearField("endpoints"), ()),
    "IPv6 endpoint": (EDS, lambda m: setattr(first_address(m), "address", "fd00::7"), ()),
    "listener of two route configurations": (LDS, lambda m: m.CopyFrom(listener("l", "80", "90", "80")), ("80", "90")),
    "wildcard domain": (RDS, lambda m: m.virtual_hosts.add(name="any", domains=["*"]), ()),
    "regex match": (RDS, lambda m: setattr(m.virtual_hosts[0].routes[0].match.safe_regex, "regex", ".*"), ()),
}


@pytest.mark.parametrize(("type_url", "change", "references"), GOOD.values(), ids=GOOD.keys())
def test_a_good_resource_tells_what_to_ask_for(type_url: TypeUrl, change: Change, references: tuple[str, ...]) -> None:
    message = type(BASES[type_url])()
    message.CopyFrom(BASES[type_url])
    change(message)
    parsed = Validator().parse(type_url, message.SerializeToString())
    assert parsed.references == references
    assert parsed.message == message


def test_a_resource_may_not_be_larger_than_the_limit() -> None:
    value = cluster("one").SerializeToString()
    assert Validator(len(value)).parse(CDS, value).name == "one"
    with pytest.raises(InvalidResourceError, match=f"is {len(value)} bytes long, more than {len(value) - 1}"):
        Validator(len(value) - 1).parse(CDS, value)


@pytest.mark.parametrize("type_url", list(TypeUrl))
def test_the_name_is_found_without_parsing(type_url: TypeUrl) -> None:
    (packed,) = response(type_url, BASES[type_url]).resources
    assert wire_name(packed.value) == "one"
    assert wire_name(packed.value + b"\xff\xff broken") == "one"


@pytest.mark.parametrize(
    "value", [b"", b"\x0a", b"\x0a\x05ab", b"\x0a\x02\xff\xfe", b"\x12\x01a", b"\x0a\x80\x80\x80\x80\x80\x01"]
)
def test_no_name_is_found_where_there_is_none(value: bytes) -> None:
    assert wire_name(value) is None


def test_a_long_name_is_found() -> None:
    name = "n" * 40_000
    assert wire_name(cluster(name).SerializeToString()) == name


def test_constraints_of_messages_on_their_own() -> None:
    constraints = Constraints()
    assert constraints.first_violation(SocketAddress(address="::1", port_value=1)) is None
    assert constraints.first_violation(SocketAddress()) == ("port_specifier", "is required")
    assert constraints.first_violation(SocketAddress(port_value=1)) == ("address", "is empty")
    redirect = parts.RedirectAction(response_code=99)  # an open enum on the wire
    assert constraints.first_violation(redirect) == ("response_code", "has the unknown or refused value 99")
    # A type that refers to itself compiles, and its rules hold at depth.
    nested = Listener(name="l")
    predicate = nested.listener_filters.add(name="f").filter_disabled
    for _ in range(5):
        predicate = predicate.not_match
    predicate.or_match.rules.add().any_match = True
    path = f"listener_filters[0].filter_disabled.{'not_match.' * 5}or_match.rules"
    assert constraints.first_violation(nested) == (path, "needs at least 2 items")
    assert constraints.first_violation(RouteConfiguration(name="x")) is None
