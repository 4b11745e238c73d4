"""What the oracle lets pass and what it does not: the judge has to be trusted before the judged."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.oracle import differences
from tests.oracle.judge import Attempt, judge_answer, judge_counts, judge_keys
from tests.oracle.peers import RoutePeers
from tests.oracle.scenario import Answer, Case, Request, Upstream
from tests.oracle.statistics import SIGNIFICANCE, implausible, tail

PEERS = RoutePeers([frozenset({"reviews-v1-0", "reviews-v1-1"})])
NOBODY = RoutePeers([])
REQUEST = Request(("127.2.0.4", 9080), host="reviews:9080")
RECORDED = Answer(
    status=200,
    served="reviews-v1-0",
    body="",
    response_headers=(("server", "envoy"),),
    elapsed_s=0.0,
    upstream=Upstream("GET", "/", (("host", "reviews:9080"), ("x-envoy-attempt-count", "1"))),
    reached=("reviews-v1-0",),
)
LOCAL_REPLY = Answer(503, None, "no healthy upstream", (("server", "envoy"),), 0.0, reached=())
NOT_REWRITTEN = replace(RECORDED, response_headers=(), upstream=Upstream("GET", "/", (("Host", "reviews:9080"),)))


def by_envoy(answer: Answer) -> Attempt:
    return Attempt(answer, by_kernel=False)


def by_kernel(answer: Answer) -> Attempt:
    return Attempt(answer, by_kernel=True)


def upstream(*headers: tuple[str, str], method: str = "GET", path: str = "/") -> Answer:
    return replace(RECORDED, upstream=Upstream(method, path, headers))


RIGHT: dict[str, tuple[Answer, Attempt]] = {
    "the same": (RECORDED, by_envoy(RECORDED)),
    "another backend of the cluster": (
        RECORDED,
        by_envoy(replace(RECORDED, served="reviews-v1-1", reached=("reviews-v1-1",))),
    ),
    "the kernel rewrites nothing": (RECORDED, by_kernel(NOT_REWRITTEN)),
    "headers that are not recorded": (
        RECORDED,
        by_envoy(
            replace(
                upstream(("x-request-id", "1"), ("host", "reviews:9080"), ("x-envoy-attempt-count", "1")),
                response_headers=(("Server", "envoy"), ("date", "now"), ("x-envoy-upstream-service-time", "1")),
            )
        ),
    ),
    "Envoy's own answer": (LOCAL_REPLY, by_envoy(LOCAL_REPLY)),
    "the text of a lost connection": (
        Answer(0, None, "ConnectionResetError(104)", (), 0.0),
        by_envoy(Answer(0, None, "RemoteDisconnected: bye", (), 0.0)),
    ),
    "retries in another order": (
        replace(RECORDED, reached=("reviews-v1-0", "reviews-v1-0", "reviews-v1-1")),
        by_envoy(replace(RECORDED, reached=("reviews-v1-1", "reviews-v1-1", "reviews-v1-1"))),
    ),
    "a cookie that Envoy makes up": (
        replace(RECORDED, response_headers=(("set-cookie", 'sid="6473336719176c41"; HttpOnly'),)),
        by_envoy(replace(RECORDED, response_headers=(("set-cookie", 'sid="05a41dbd3d89a3a3"; HttpOnly'),))),
    ),
    "what is left of a timeout": (upstream(("grpc-timeout", "1949m")), by_envoy(upstream(("grpc-timeout", "1973m")))),
    "about the same delay": (replace(RECORDED, elapsed_s=7.0), by_envoy(replace(RECORDED, elapsed_s=7.2))),
}

WRONG: dict[str, tuple[Answer, Attempt, str]] = {
    "status": (RECORDED, by_envoy(replace(RECORDED, status=404)), "status 404"),
    "no answer": (RECORDED, by_envoy(Answer(0, None, "timed out", (), 30.0)), r"status 0 \(timed out\)"),
    "a backend of another cluster": (RECORDED, by_envoy(replace(RECORDED, served="reviews-v2")), "answered by"),
    "a backend instead of Envoy": (
        LOCAL_REPLY,
        by_envoy(replace(LOCAL_REPLY, served="reviews-v1-0")),
        "expected nobody",
    ),
    "body of Envoy's own answer": (LOCAL_REPLY, by_envoy(replace(LOCAL_REPLY, body="oops")), "body 'oops'"),
    "method": (RECORDED, by_envoy(upstream(*NOT_REWRITTEN.response_headers, method="POST")), "method upstream"),
    "path": (RECORDED, by_kernel(upstream(("host", "reviews:9080"), path="/x")), "path upstream '/x'"),
    "host, by the kernel": (RECORDED, by_kernel(upstream(("host", "other"))), "request header host: other"),
    "a header too many, by the kernel": (
        RECORDED,
        by_kernel(upstream(("host", "reviews:9080"), ("x-other", "1"))),
        "request header x-other: 1, expected none",
    ),
    "a wrong header that may be absent": (
        RECORDED,
        by_kernel(upstream(("host", "reviews:9080"), ("x-envoy-attempt-count", "2"))),
        "x-envoy-attempt-count: 2, expected 1",
    ),
    "what Envoy adds is missing, by Envoy": (RECORDED, by_envoy(NOT_REWRITTEN), "x-envoy-attempt-count: none"),
    "a header twice": (
        RECORDED,
        by_kernel(upstream(("host", "reviews:9080"), ("host", "reviews:9080"))),
        "request header host",
    ),
    "another cookie": (
        replace(RECORDED, response_headers=(("set-cookie", 'sid="6473336719176c41"; HttpOnly'),)),
        by_envoy(replace(RECORDED, response_headers=(("set-cookie", 'aff="6473336719176c41"; HttpOnly'),))),
        "set-cookie",
    ),
    "another timeout": (
        upstream(("grpc-timeout", "1949m")),
        by_envoy(upstream(("grpc-timeout", "949m"))),
        "grpc-timeout: 949m, expected 1949m",
    ),
    "one attempt too many": (
        RECORDED,
        by_envoy(replace(RECORDED, reached=("reviews-v1-0", "reviews-v1-0"))),
        "backends reached",
    ),
    "a mirror that never came": (replace(RECORDED, reached=("reviews-v1-0", "m")), by_envoy(RECORDED), "reached"),
    "no delay": (replace(RECORDED, elapsed_s=7.0), by_envoy(RECORDED), "took 0.00 s, expected 7.00 s"),
    "slow": (RECORDED, by_envoy(replace(RECORDED, elapsed_s=1.0)), "took 1.00 s"),
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_passes(name: str) -> None:
    recorded, attempt = RIGHT[name]
    assert judge_answer(recorded, attempt, PEERS) == ()


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_pass(name: str) -> None:
    recorded, attempt, why = WRONG[name]
    found = judge_answer(recorded, attempt, PEERS)
    assert found
    with pytest.raises(AssertionError, match=why):
        raise AssertionError("\n".join(found))


def test_only_the_routes_own_clusters_are_interchangeable() -> None:
    seen = by_envoy(replace(RECORDED, served="reviews-v1-1"))
    assert judge_answer(RECORDED, seen, NOBODY)


def counts(**recorded: int) -> Case:
    return Case(1, REQUEST, counts={f"200 {name}": n for name, n in recorded.items()})


def times(**seen: int) -> list[str]:
    return [f"200 {name}" for name, n in seen.items() for _ in range(n)]


@pytest.mark.parametrize(
    ("recorded", "seen"),
    [
        (counts(a=1000), times(a=1000)),
        (counts(a=518, b=482), times(a=500, b=500)),
        (counts(a=518, b=482), times(a=440, b=560)),
        (counts(a=997, b=3), times(a=1000)),  # so rare that it need not come
        (counts(a=5, b=5), times(a=1, b=9)),  # too few to tell
    ],
)
def test_plausible_distributions(recorded: Case, seen: list[str]) -> None:
    assert judge_counts(recorded, seen) == ()


@pytest.mark.parametrize(
    ("recorded", "seen", "why"),
    [
        (counts(a=1000), times(a=999, b=1), "never"),
        (counts(a=518, b=482), times(a=800, b=200), "probability"),
        (counts(a=518, b=482), times(a=1000), "probability"),
        (counts(a=900, b=100), times(a=990, b=10), "probability"),
        (counts(a=20), ["0 -", *times(a=19)], "never"),
        (counts(a=20), [], "0 answers"),
    ],
)
def test_implausible_distributions(recorded: Case, seen: list[str], why: str) -> None:
    found = judge_counts(recorded, seen)
    assert found
    with pytest.raises(AssertionError, match=why):
        raise AssertionError(found[0])


def test_connections_lost_while_recording_are_no_behaviour() -> None:
    case = Case(1, REQUEST, counts={"0 RemoteDisconnected": 7, "200 a": 993})
    assert judge_counts(case, times(a=1000)) == ()
    assert judge_counts(case, ["0 RemoteDisconnected", *times(a=999)])


def test_keys_are_exact() -> None:
    case = Case(1, REQUEST, by_key={"k0": frozenset({"200 a"}), "k1": frozenset({"200 b"})})
    assert judge_keys(case, {"k0": frozenset({"200 a"}), "k1": frozenset({"200 b"})}) == ()
    assert judge_keys(case, {"k0": frozenset({"200 a"}), "k1": frozenset({"200 a", "200 b"})}) != ()
    assert judge_keys(case, {"k0": frozenset({"200 a"})}) != ()


@pytest.mark.parametrize(
    ("marked_drawn", "expected"),
    [(0, 1 / 70), (1, 17 / 70), (2, 53 / 70), (4, 1 / 70)],  # the lady tasting tea: 4 of 8 cups
)
def test_tail_is_fishers(marked_drawn: int, expected: float) -> None:
    assert tail(marked_drawn, 4, 4, 8) == pytest.approx(expected)


def test_the_rule_tells_half_from_three_fifths() -> None:
    assert implausible({"a": 500, "b": 500}, {"a": 620, "b": 380}) is not None
    assert implausible({"a": 500, "b": 500}, {"a": 560, "b": 440}) is None
    assert SIGNIFICANCE <= 1e-6


def test_the_document_of_differences_is_up_to_date() -> None:
    assert differences.DOCUMENT.read_text(encoding="utf-8") == differences.document(), (
        "run: python -m tests.oracle.differences"
    )
