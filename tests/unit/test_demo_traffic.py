"""What the demonstration's client counts as an answer and what as a lost request."""

from __future__ import annotations

import json

import pytest

from demo.kinds import kind_named
from demo.traffic import LostRequest, check

REVIEWS = kind_named("reviews")
PAGE = kind_named("whole page")


def head(pod: str, demo_id: str = "d1", **more: str) -> dict[str, str]:
    return {"x-bookinfo-pod": pod, "x-demo-id": demo_id, "server": "bookinfo", **more}


def test_an_answer_by_the_kernel_and_one_by_envoy() -> None:
    body = json.dumps({"pod": "reviews-v2"}).encode()
    assert check(REVIEWS, "d1", 200, head("reviews-v2"), body).by_envoy is False
    seen = check(REVIEWS, "d1", 200, head("reviews-v2") | {"server": "envoy"}, body)
    assert (seen.backends, seen.by_envoy) == ("reviews-v2", True)


def test_an_injected_fault_is_an_answer() -> None:
    seen = check(kind_named("ratings, jason"), "d1", 500, {"server": "envoy"}, b"fault filter abort")
    assert (seen.status, seen.backends) == (500, "(fault: 500)")


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        (200, head("reviews-v2", "d2"), b'{"pod": "reviews-v2"}'),
        (200, head("reviews-v2"), b'{"pod": "revi'),
        (200, head("details-v1"), b'{"pod": "details-v1"}'),
        (200, head("reviews-v2"), b'{"pod": "reviews-v3"}'),
        (404, head("reviews-v2"), b'{"pod": "reviews-v2"}'),
        (503, {"server": "envoy"}, b"no healthy upstream"),
        (200, {}, b"{}"),
    ],
    ids=["other request's", "cut", "other service's", "head and body differ", "404", "503", "nobody's"],
)
def test_what_is_lost(status: int, headers: dict[str, str], body: bytes) -> None:
    with pytest.raises(LostRequest):
        check(REVIEWS, "d1", status, headers, body)


def test_a_page_names_all_that_answered() -> None:
    calls = {
        "details": {"status": 200, "pod": "details-v1"},
        "reviews": {"status": 200, "pod": "reviews-v2"},
        "ratings": {"status": 500, "pod": "", "error": "fault filter abort"},
    }
    body = json.dumps({"pod": "productpage-v1", "calls": calls}).encode()
    assert check(PAGE, "d1", 200, head("productpage-v1"), body).backends == "details-v1 reviews-v2 ratings:500"


def test_a_page_with_a_failed_call_is_lost() -> None:
    calls = {"details": {"status": 0, "pod": "", "error": "ConnectionResetError"}}
    body = json.dumps({"pod": "productpage-v1", "calls": calls}).encode()
    with pytest.raises(LostRequest, match="ConnectionResetError"):
        check(PAGE, "d1", 200, head("productpage-v1"), body)
