"""`xlb explain`: the request that a URL stands for, and where a host is dialled."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.captured import load_snapshot
from translator.from_xds import translate
from translator.model import ListenerKind, ListenerRule, ViewRules
from xlb import tables
from xlb.explain import ExplainError, destination, explain, request_of


@pytest.fixture
def rules(scenarios: Path) -> ViewRules:
    return translate(load_snapshot(scenarios / "bookinfo-all-v1" / "productpage-v1"))


def test_host_and_target_are_what_curl_sends(rules: ViewRules) -> None:
    made = request_of(rules, "GET", "http://reviews:9080/reviews/0?a=b#c", [("end-user", "jason")])
    assert (made.host, made.path, made.headers) == ("reviews:9080", "/reviews/0?a=b", (("end-user", "jason"),))
    assert made.to == ("127.2.0.4", 9080)


@pytest.mark.parametrize(
    ("url", "host", "path", "port"),
    [
        ("http://a", "a", "/", 80),
        ("http://a:80/", "a", "/", 80),
        ("http://a?x", "a", "/?x", 80),
        ("http://A:81/b/../c", "a:81", "/b/../c", 81),
        ("http://[fd00::1]:81/", "[fd00::1]:81", "/", 81),
    ],
)
def test_urls(rules: ViewRules, url: str, host: str, path: str, port: int) -> None:
    made = request_of(rules, "GET", url)
    assert (made.host, made.path, made.to[1]) == (host, path, port)


def test_a_host_header_overrules_the_url(rules: ViewRules) -> None:
    made = request_of(rules, "GET", "http://127.2.0.4:9080/", [("Host", "other")])
    assert (made.host, made.headers, made.to) == ("other", (), ("127.2.0.4", 9080))


@pytest.mark.parametrize(
    ("method", "url"),
    [
        ("GET", "reviews:9080"),
        ("GET", "https://a/"),
        ("GET", "http:///x"),
        ("GET", "http://a:b/"),
        ("G T", "http://a/"),
    ],
)
def test_questions_that_are_none(rules: ViewRules, method: str, url: str) -> None:
    with pytest.raises(ExplainError):
        request_of(rules, method, url)


def test_names_that_the_configuration_does_not_have(rules: ViewRules) -> None:
    assert destination(rules, "unknown.example", 9080) == "0.0.0.0"


def test_a_tcp_service_is_found_by_its_cluster() -> None:
    listener = ListenerRule(
        "l", "10.0.0.5", 3306, ListenerKind.ENVOY, cluster="outbound|3306||mysql.default.svc.cluster.local"
    )
    rules = ViewRules(listeners=(listener,))
    assert destination(rules, "mysql", 3306) == "10.0.0.5"
    assert destination(rules, "mysql.default.svc.cluster.local", 3306) == "10.0.0.5"
    assert destination(rules, "my", 3306) == "0.0.0.0"


def test_what_is_told(scenarios: Path) -> None:
    rules = translate(load_snapshot(scenarios / "bookinfo-reviews-50-v3" / "productpage-v1"))
    told = explain(rules, request_of(rules, "GET", "http://reviews:9080/reviews/0"))
    assert told["virtual_service"] == "default/reviews"
    assert [one["weight"] for one in told["clusters"]] == [50, 50]
    assert (told["carried_by"], told["reason"], told["to"]) == ("kernel", "NONE", "127.2.0.4:9080")
    lines = tables.explanation(told).splitlines()
    assert "carried by      the kernel" in lines
    assert any(
        line.startswith("cluster         outbound|9080|v1|reviews") and "one of: 50 x " in line for line in lines
    )


def test_reasons_in_words() -> None:
    assert tables.words("ACTION_FAULT") == "action: fault"
    assert tables.words("POOL_EMPTY") == "pool empty"
    assert tables.carried("NONE") == "by the kernel"
