"""Envoy's matching rules one by one, and what `decide` says where no route is asked."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.config.route.v3.route_components_pb2 import Route
from envoy.config.route.v3.route_pb2 import RouteConfiguration

from translator.evaluate import Decision, decide, find_virtual_host, pick_cluster
from translator.model import (
    ClusterRule,
    EndpointRule,
    LbPolicy,
    ListenerKind,
    ListenerRule,
    ViewRules,
    VirtualHostRule,
    WeightedCluster,
)
from translator.reasons import Reason
from translator.request import Request
from translator.routes import read_route_config

TO = ("10.0.0.1", 80)


def rules(*routes: dict[str, Any], domains: tuple[str, ...] = ("*",), **options: Any) -> ViewRules:
    """One listener, one virtual host; the routes go to cluster "hit" unless they say otherwise, the last to "miss"."""
    config = RouteConfiguration(name="80", **options)
    host = config.virtual_hosts.add(name="host", domains=domains)
    for fields in routes:
        route = Route(**fields)
        if route.WhichOneof("action") is None:
            route.route.cluster = "hit"
        if route.WhichOneof("action") == "route":
            route.route.timeout.SetInParent()
        host.routes.append(route)
    miss = host.routes.add(match={"prefix": "/"})
    miss.route.cluster = "miss"
    miss.route.timeout.SetInParent()
    endpoints = (EndpointRule("10.1.0.1", 80),)
    clusters = {name: ClusterRule(name, LbPolicy.RANDOM, endpoints) for name in ("hit", "miss")}
    listener = ListenerRule("0.0.0.0_80", "0.0.0.0", 80, ListenerKind.HTTP, "80")
    return ViewRules((listener,), {"80": read_route_config(config)}, clusters)


def ask(
    view: ViewRules, path: str = "/", method: str = "GET", host: str = "a", headers: tuple[tuple[str, str], ...] = ()
) -> Decision:
    return decide(view, Request(method, host, path, headers, TO))


@pytest.mark.parametrize(
    ("match", "path", "hit"),
    [
        ({"path": "/a"}, "/a", True),
        ({"path": "/a"}, "/a?x=1", True),
        ({"path": "/a"}, "/a/", False),
        ({"path": "/a?x"}, "/a?x", False),
        ({"path": "/a"}, "/A", False),
        ({"path": "/a", "case_sensitive": {"value": False}}, "/A", True),
        ({"prefix": "/a"}, "/ab", True),
        ({"prefix": "/a/"}, "/a", False),
        ({"prefix": "/A", "case_sensitive": {"value": False}}, "/ab", True),
        ({"path_separated_prefix": "/a"}, "/a", True),
        ({"path_separated_prefix": "/a"}, "/a/b", True),
        ({"path_separated_prefix": "/a"}, "/a?x", True),
        ({"path_separated_prefix": "/a"}, "/ab", False),
        ({"safe_regex": {"regex": "/[0-9]+"}}, "/12?x", True),
        ({"safe_regex": {"regex": "/[0-9]+"}}, "/12/", False),
        ({"safe_regex": {"regex": "/[0-9]+"}}, "/a/12", False),
    ],
)
def test_paths(match: dict[str, Any], path: str, hit: bool) -> None:
    assert ask(rules({"match": match}), path).cluster == ("hit" if hit else "miss")


@pytest.mark.parametrize(
    ("matcher", "values", "hit"),
    [
        ({"string_match": {"exact": "v"}}, ["v"], True),
        ({"string_match": {"exact": "v"}}, [" v\t"], True),
        ({"string_match": {"exact": "v"}}, ["V"], False),
        ({"string_match": {"exact": "v", "ignore_case": True}}, ["V"], True),
        ({"string_match": {"exact": "v"}}, [], False),
        ({"string_match": {"exact": ""}}, [""], True),
        ({"string_match": {"exact": ""}}, [], False),
        ({"string_match": {"exact": "v"}}, ["w", "v"], True),
        ({"string_match": {"exact": "w,v"}}, ["w", "v"], False),
        ({"string_match": {"exact": "v"}, "invert_match": True}, [], False),
        ({"string_match": {"exact": "v"}, "invert_match": True}, ["w"], True),
        ({"string_match": {"exact": "v"}, "invert_match": True}, ["w", "v"], False),
        ({"string_match": {"exact": "v"}, "invert_match": True, "treat_missing_header_as_empty": True}, [], True),
        ({"string_match": {"safe_regex": {"regex": ".*"}}, "invert_match": True}, [], False),
        (
            {
                "string_match": {"safe_regex": {"regex": ".*"}},
                "invert_match": True,
                "treat_missing_header_as_empty": True,
            },
            [],
            False,
        ),
        ({"string_match": {"prefix": "ab"}}, ["abc"], True),
        ({"string_match": {"suffix": "bc"}}, ["abc"], True),
        ({"string_match": {"contains": "b"}}, ["abc"], True),
        ({"string_match": {"safe_regex": {"regex": "b"}}}, ["abc"], False),
        ({"present_match": True}, [""], True),
        ({"present_match": True}, [], False),
        ({"present_match": True, "invert_match": True}, [], True),
        ({"present_match": True, "invert_match": True}, ["v"], False),
        ({"present_match": False}, [], True),
        ({"present_match": False}, ["v"], False),
        ({}, ["v"], True),
        ({"exact_match": "v"}, ["v"], True),
        ({"prefix_match": "v"}, ["vw"], True),
    ],
)
def test_headers(matcher: dict[str, Any], values: list[str], hit: bool) -> None:
    match = {"prefix": "/", "headers": [{"name": "X-H", **matcher}]}
    found = ask(rules({"match": match}), headers=tuple(("x-h", value) for value in values))
    assert found.cluster == ("hit" if hit else "miss")


@pytest.mark.parametrize(
    ("name", "value", "hit"),
    [
        (":method", "POST", True),
        (":method", "post", False),
        (":authority", "A:80", True),
        (":authority", "a:80", False),
        ("host", "A:80", True),
        (":scheme", "http", True),
        (":path", "/p?q=1", True),
        ("x-forwarded-proto", "http", True),
    ],
)
def test_pseudo_headers(name: str, value: str, hit: bool) -> None:
    view = rules({"match": {"prefix": "/", "headers": [{"name": name, "string_match": {"exact": value}}]}})
    assert ask(view, "/p?q=1", "POST", "A:80").cluster == ("hit" if hit else "miss")


@pytest.mark.parametrize(
    ("matcher", "query", "hit"),
    [
        ({"string_match": {"exact": "1"}}, "q=1", True),
        ({"string_match": {"exact": "1"}}, "a=0&q=1", True),
        ({"string_match": {"exact": "1"}}, "q=0&q=1", False),
        ({"string_match": {"exact": "1"}}, "q=1&q=0", True),
        ({"string_match": {"exact": "1=2"}}, "q=1=2", True),
        ({"string_match": {"exact": "1"}}, "q=%31", False),
        ({"string_match": {"exact": "1"}}, "Q=1", False),
        ({"present_match": True}, "q", True),
        ({"present_match": True}, "q=", True),
        ({"present_match": True}, "qq=", False),
        ({"string_match": {"safe_regex": {"regex": "[0-9]"}}}, "q=12", False),
    ],
)
def test_queries(matcher: dict[str, Any], query: str, hit: bool) -> None:
    view = rules({"match": {"prefix": "/", "query_parameters": [{"name": "q", **matcher}]}})
    found = ask(view, f"/?{query}")
    assert found.cluster == ("hit" if hit else "miss")
    assert found.reason is Reason.MATCH_QUERY


@pytest.mark.parametrize(
    ("match", "action", "path", "upstream"),
    [
        ({"prefix": "/a"}, {"prefix_rewrite": "/b"}, "/a/x?q", "/b/x?q"),
        ({"prefix": "/a"}, {"prefix_rewrite": "/b"}, "/amore", "/bmore"),
        ({"prefix": "/A", "case_sensitive": {"value": False}}, {"prefix_rewrite": "/b"}, "/a/x", "/b/x"),
        ({"path": "/a"}, {"prefix_rewrite": "/b"}, "/a?q", "/b?q"),
        ({"safe_regex": {"regex": "/a.*"}}, {"prefix_rewrite": "/b"}, "/a/x?q", "/b?q"),
        (
            {"prefix": "/"},
            {"regex_rewrite": {"pattern": {"regex": "/(.)/(.)"}, "substitution": "/\\2\\\\\\1"}},
            "/a/b?/c/d",
            "/b\\a?/c/d",
        ),
    ],
)
def test_rewrites(match: dict[str, Any], action: dict[str, Any], path: str, upstream: str) -> None:
    found = ask(rules({"match": match, "route": {"cluster": "hit", **action}}), path)
    assert found.path_upstream == upstream
    assert found.carried_by == "envoy"


def test_hosts_are_chosen_in_envoys_order() -> None:
    domains = ("a.ns.svc", "*.ns.svc", "*svc", "a.*", "a.ns.*", "*")
    hosts = [VirtualHostRule(domain, (domain,), ()) for domain in domains]

    def chosen(host: str, ignore_port: bool = True) -> str | None:
        found = find_virtual_host(hosts, host, ignore_port)
        return found.name if found else None

    assert chosen("a.ns.svc") == "a.ns.svc"
    assert chosen("A.NS.svc:80") == "a.ns.svc"
    assert chosen("a.ns.svc:80", ignore_port=False) == "a.ns.*"
    assert chosen("b.ns.svc") == "*.ns.svc"
    assert chosen(".ns.svc") == "*svc"
    assert chosen("svc") == "*"
    assert chosen("a.ns.x") == "a.ns.*"
    assert chosen("a.x") == "a.*"
    assert chosen("a.") == "*"
    assert chosen("[a.ns.svc:1]") == "*"
    del hosts[-1]
    assert chosen("x") is None


def test_weights_are_walked_in_order() -> None:
    clusters = (WeightedCluster("a", 2), WeightedCluster("none", 0), WeightedCluster("b", 1))
    assert [pick_cluster(clusters, n) for n in (0, 1, 2, 3, 2**64 - 1)] == ["a", "a", "b", "a", "a"]


def test_local_replies() -> None:
    view = rules(
        {"match": {"path": "/r"}, "redirect": {"host_redirect": "b", "response_code": 4}},
        {"match": {"path": "/d"}, "direct_response": {"status": 418}},
        {"match": {"path": "/gone"}, "route": {"cluster": "gone"}},
        domains=("a",),
    )
    for path, action, status, reason in (
        ("/r", "redirect", 308, Reason.ACTION_REDIRECT),
        ("/d", "direct_response", 418, Reason.ACTION_DIRECT_RESPONSE),
        ("/gone", "forward", 503, Reason.CLUSTER_MISSING),
        ("/x#y", "bad_request", 400, Reason.PATH_NORMALIZATION),
    ):
        found = ask(view, path)
        assert (found.action, found.status, found.reason) == (action, status, reason)
    found = ask(view, host="b")
    assert (found.action, found.status, found.reason) == ("no_route", 404, Reason.NO_VIRTUAL_HOST)


def test_the_first_undecided_route_ends_the_kernels_walk_but_not_envoys() -> None:
    view = rules({"match": {"safe_regex": {"regex": "/never"}}}, {"match": {"path": "/a"}})
    found = ask(view, "/a")
    assert (found.cluster, found.route_index, found.reason) == ("hit", 1, Reason.MATCH_REGEX)


def test_what_nobody_can_tell_is_unknown() -> None:
    view = rules({"match": {"prefix": "/a", "runtime_fraction": {"default_value": {"numerator": 1}}}})
    assert ask(view, "/a").action == "unknown"
    assert ask(view, "/a").reason is Reason.MATCH_RUNTIME_FRACTION
    assert ask(view, "/b").cluster == "miss"
    assert ask(rules({"match": {"connect_matcher": {}}})).action == "unknown"


def test_listeners_are_found_by_address_then_port_then_any() -> None:
    def listener(name: str, address: str, port: int, kind: ListenerKind, bound: bool = False) -> ListenerRule:
        reason = Reason.LISTENER_TCP if kind is ListenerKind.ENVOY else Reason.NONE
        return ListenerRule(name, address, port, kind, reason=reason, bound=bound, cluster=name)

    view = ViewRules(
        (
            listener("own", "10.0.0.1", 80, ListenerKind.ENVOY),
            listener("port", "0.0.0.0", 80, ListenerKind.ENVOY),
            listener("any", "0.0.0.0", 0, ListenerKind.DIRECT),
            listener("bound", "127.0.0.1", 90, ListenerKind.ENVOY, bound=True),
        )
    )

    def met(address: str, port: int) -> tuple[str | None, str, str]:
        found = decide(view, Request("GET", "a", "/", (), (address, port)))
        return found.listener, found.action, found.carried_by

    assert met("10.0.0.1", 80) == ("own", "tcp", "envoy")
    assert met("::ffff:10.0.0.1", 80) == ("own", "tcp", "envoy")
    assert met("10.0.0.2", 80) == ("port", "tcp", "envoy")
    assert met("10.0.0.2", 81) == ("any", "passthrough", "kernel")
    assert met("127.0.0.1", 90) == ("bound", "tcp", "envoy")
    assert met("fd00::1", 80) == (None, "passthrough", "kernel")


def test_json_has_the_promised_keys() -> None:
    found = ask(rules()).as_json()
    promised = "virtual_host route virtual_service action cluster path_upstream host_upstream status carried_by reason"
    assert set(promised.split()) <= found.keys()
    assert (found["carried_by"], found["reason"], found["action"]) == ("kernel", "NONE", "forward")
