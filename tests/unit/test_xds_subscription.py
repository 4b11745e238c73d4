"""The client's side of the protocol as tables: what happens, and exactly what is sent for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from envoy.service.discovery.v3.discovery_pb2 import DiscoveryRequest, DiscoveryResponse

from xds_server.node import Workload, node_for
from xds_server.resources import TypeUrl
from xds_server.subscription import MAX_NACK_CHARS, Receipt, Subscription, nack_reason

CDS, EDS, LDS, RDS = TypeUrl


@dataclass(frozen=True)
class Sent:
    """A request, without its node."""

    type_url: str
    names: tuple[str, ...] = ()
    version: str = ""
    nonce: str = ""
    error: str | None = None


def sent(requests: list[DiscoveryRequest]) -> list[Sent]:
    return [
        Sent(
            r.type_url,
            tuple(r.resource_names),
            r.version_info,
            r.response_nonce,
            r.error_detail.message if r.HasField("error_detail") else None,
        )
        for r in requests
    ]


def new() -> Subscription:
    return Subscription(node_for(Workload(name="w", ip="127.0.0.1")))


def response(type_url: str, version: str, nonce: str) -> DiscoveryResponse:
    return DiscoveryResponse(type_url=type_url, version_info=version, nonce=nonce)


def got(subscription: Subscription, type_url: str, version: str, nonce: str) -> Receipt:
    receipt = subscription.receive(response(type_url, version, nonce))
    assert receipt is not None
    return receipt


def test_a_stream_begins_with_the_wildcards_and_the_node_in_the_first_request_only() -> None:
    requests = new().open()
    assert sent(requests) == [Sent(CDS), Sent(LDS)]
    assert [r.HasField("node") for r in requests] == [True, False]
    assert requests[0].node.id.startswith("sidecar~127.0.0.1~w.default~")


Step = Callable[[Subscription], list[DiscoveryRequest]]


def want(type_url: TypeUrl, *names: str) -> Step:
    return lambda s: s.want(type_url, names)


def ack(type_url: TypeUrl, version: str, nonce: str) -> Step:
    return lambda s: s.ack(got(s, type_url, version, nonce))


def nack(type_url: TypeUrl, version: str, nonce: str, why: str) -> Step:
    return lambda s: s.nack(got(s, type_url, version, nonce), why)


def receive(type_url: TypeUrl, version: str, nonce: str) -> Step:
    def step(s: Subscription) -> list[DiscoveryRequest]:
        got(s, type_url, version, nonce)
        return []

    return step


CASES: dict[str, list[tuple[Step, list[Sent]]]] = {
    "an ACK repeats names and takes the version": [
        (want(EDS, "b", "a"), [Sent(EDS, ("a", "b"))]),
        (ack(EDS, "v1", "n1"), [Sent(EDS, ("a", "b"), "v1", "n1")]),
        (ack(EDS, "v2", "n2"), [Sent(EDS, ("a", "b"), "v2", "n2")]),
    ],
    "a NACK keeps the version last accepted": [
        (ack(CDS, "v1", "n1"), [Sent(CDS, (), "v1", "n1")]),
        (nack(CDS, "v2", "n2", "bad"), [Sent(CDS, (), "v1", "n2", "bad")]),
        (ack(CDS, "v3", "n3"), [Sent(CDS, (), "v3", "n3")]),
    ],
    "a NACK before anything was accepted has an empty version": [
        (nack(CDS, "v1", "n1", "bad"), [Sent(CDS, (), "", "n1", "bad")]),
    ],
    "types do not share versions or nonces": [
        (ack(CDS, "v1", "n1"), [Sent(CDS, (), "v1", "n1")]),
        (nack(LDS, "v1", "n2", "bad"), [Sent(LDS, (), "", "n2", "bad")]),
    ],
    "names change while a response is unanswered: newest nonce, old version": [
        (want(EDS, "a"), [Sent(EDS, ("a",))]),
        (ack(EDS, "v1", "n1"), [Sent(EDS, ("a",), "v1", "n1")]),
        (receive(EDS, "v2", "n2"), []),
        (want(EDS, "a", "b"), [Sent(EDS, ("a", "b"), "v1", "n2")]),
    ],
    "names change before the first response: an empty nonce": [
        (want(RDS, "80"), [Sent(RDS, ("80",))]),
        (want(RDS, "80", "90"), [Sent(RDS, ("80", "90"))]),
    ],
    "the same names are not asked for twice": [
        (want(RDS, "80", "90"), [Sent(RDS, ("80", "90"))]),
        (want(RDS, "90", "80"), []),
    ],
    "no names were ever wanted: nothing is sent": [
        (want(EDS), []),
    ],
    "no names any more: an empty list unsubscribes": [
        (want(EDS, "a"), [Sent(EDS, ("a",))]),
        (want(EDS), [Sent(EDS)]),
        (want(EDS, "b"), [Sent(EDS, ("b",))]),
    ],
    "CDS can be asked for by name, and by wildcard again": [
        (want(CDS, "one"), [Sent(CDS, ("one",))]),
        (lambda s: s.want(CDS, None), [Sent(CDS)]),
    ],
}


@pytest.mark.parametrize("steps", CASES.values(), ids=CASES.keys())
def test_protocol(steps: list[tuple[Step, list[Sent]]]) -> None:
    subscription = new()
    subscription.open()
    for step, wanted in steps:
        assert sent(step(subscription)) == wanted


def test_only_the_newest_response_of_a_type_is_answered() -> None:
    subscription = new()
    subscription.open()
    old = got(subscription, CDS, "v1", "n1")
    newer = got(subscription, CDS, "v2", "n2")
    assert subscription.ack(old) == []
    assert subscription.nack(old, "bad") == []
    assert sent(subscription.ack(newer)) == [Sent(CDS, (), "v2", "n2")]
    assert subscription.accepted_version(CDS) == "v2"


def test_the_same_answer_is_not_given_twice_but_may_change() -> None:
    subscription = new()
    subscription.open()
    receipt = got(subscription, CDS, "v1", "n1")
    assert len(subscription.nack(receipt, "no memory")) == 1
    assert subscription.nack(receipt, "no memory") == []
    assert sent(subscription.ack(receipt)) == [Sent(CDS, (), "v1", "n1")]
    assert subscription.ack(receipt) == []


def test_a_nack_has_the_code_and_a_bounded_reason() -> None:
    subscription = new()
    subscription.open()
    (request,) = subscription.nack(got(subscription, CDS, "v1", "n1"), "x" * 100_000)
    assert request.error_detail.code == 3  # INVALID_ARGUMENT
    assert len(request.error_detail.message) == MAX_NACK_CHARS


def test_a_response_nobody_asked_for_gets_no_answer() -> None:
    subscription = new()
    subscription.open()
    assert subscription.receive(response(EDS, "v1", "n1")) is None
    assert subscription.receive(response("type.googleapis.com/other.Type", "v1", "n1")) is None


def test_a_new_stream_keeps_names_and_versions_and_forgets_nonces() -> None:
    subscription = new()
    subscription.open()
    subscription.want(EDS, ["a"])
    subscription.ack(got(subscription, CDS, "v1", "n1"))
    subscription.ack(got(subscription, EDS, "v1", "n2"))
    late = got(subscription, LDS, "v1", "n3")
    subscription.close()
    assert subscription.want(RDS, ["80"]) == []
    assert subscription.ack(late) == []
    requests = subscription.open()
    assert sent(requests) == [Sent(CDS, (), "v1"), Sent(EDS, ("a",), "v1"), Sent(LDS), Sent(RDS, ("80",))]
    assert [r.HasField("node") for r in requests] == [True, False, False, False]
    # Nonces may come again on another stream: a receipt of the old one is still void.
    assert got(subscription, LDS, "v2", "n3") != late
    assert subscription.ack(late) == []


def test_nack_reason_counts() -> None:
    assert nack_reason(["CDS 'a': bad"]) == "1 resource rejected: CDS 'a': bad"
    assert nack_reason(["x", "y"]) == "2 resources rejected: x; y"
