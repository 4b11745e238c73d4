"""The server's side of the protocol: what is sent, in which order, and what counts as in force."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.config.route.v3.route_pb2 import RouteConfiguration
from envoy.service.discovery.v3.discovery_pb2 import DiscoveryRequest, DiscoveryResponse
from google.protobuf.message import Message

from tests.unit.xds_builders import CDS, EDS, LDS, RDS, cluster, endpoints, listener, resource_set, routes
from xds_server.resources import TypeUrl, wire_name
from xds_server.stream import Nack, ResourceSet, ServerStream


@dataclass(frozen=True)
class Out:
    """A response without version and nonce."""

    type_url: str
    names: tuple[str, ...]


class Peer:
    """A client that answers when told to, around one ServerStream."""

    def __init__(self, resources: ResourceSet, *, ordered: bool = True) -> None:
        self.stream = ServerStream(resources, ordered=ordered)
        self.last: dict[str, DiscoveryResponse] = {}
        self.names: dict[str, tuple[str, ...]] = {}
        self.version: dict[str, str] = {}

    def _saw(self, responses: list[DiscoveryResponse]) -> list[Out]:
        for r in responses:
            self.last[r.type_url] = r
        return [Out(r.type_url, tuple(sorted(wire_name(a.value) or "" for a in r.resources))) for r in responses]

    def ask(self, type_url: TypeUrl, *names: str) -> list[Out]:
        """Subscribe, or change the names, without answering what came last."""
        self.names[type_url] = names
        last = self.last.get(type_url)
        request = DiscoveryRequest(
            type_url=type_url,
            resource_names=names,
            version_info=self.version.get(type_url, ""),
            response_nonce="" if last is None else last.nonce,
        )
        return self._saw(self.stream.request(request))

    def ack(self, type_url: TypeUrl, nonce: str | None = None) -> list[Out]:
        last = self.last[type_url]
        self.version[type_url] = last.version_info
        request = DiscoveryRequest(
            type_url=type_url,
            resource_names=self.names[type_url],
            version_info=last.version_info,
            response_nonce=last.nonce if nonce is None else nonce,
        )
        return self._saw(self.stream.request(request))

    def nack(self, type_url: TypeUrl, why: str, nonce: str | None = None) -> list[Out]:
        request = DiscoveryRequest(
            type_url=type_url,
            resource_names=self.names[type_url],
            version_info=self.version.get(type_url, ""),
            response_nonce=self.last[type_url].nonce if nonce is None else nonce,
        )
        request.error_detail.message = why
        return self._saw(self.stream.request(request))

    def publish(self, resources: ResourceSet) -> list[Out]:
        return self._saw(self.stream.publish(resources))

    def in_force(self) -> bool:
        return self.stream.in_force

    def refusal(self) -> Nack | None:
        return self.stream.nack

    def drain(self, out: list[Out]) -> list[Out]:
        """ACK everything that comes until nothing comes; returns all that came."""
        seen = list(out)
        while out:
            out = [more for r in out for more in self.ack(TypeUrl(r.type_url))]
            seen += out
        return seen


ONE = resource_set(
    1,
    {
        CDS: [cluster("a"), cluster("b")],
        EDS: [endpoints("a"), endpoints("b")],
        LDS: [listener("l", "80")],
        RDS: [routes("80", "a", "b")],
    },
)
# Cluster b gives way to c.
TWO = resource_set(
    2,
    {
        CDS: [cluster("a"), cluster("c")],
        EDS: [endpoints("a"), endpoints("c")],
        LDS: [listener("l", "80")],
        RDS: [routes("80", "a", "c")],
    },
)


def connected(resources: ResourceSet = ONE, *, ordered: bool = True) -> Peer:
    peer = Peer(resources, ordered=ordered)
    peer.drain(peer.ask(CDS))
    peer.drain(peer.ask(EDS, "a", "b"))
    peer.drain(peer.ask(LDS))
    peer.drain(peer.ask(RDS, "80"))
    assert peer.in_force()
    return peer


def test_each_type_is_answered_as_it_is_asked_for() -> None:
    peer = Peer(ONE)
    assert peer.ask(CDS) == [Out(CDS, ("a", "b"))]
    assert peer.ask(EDS, "a") == [Out(EDS, ("a",))]
    assert peer.ack(CDS) == []
    assert peer.ask(EDS, "a", "b") == [Out(EDS, ("b",))]
    assert peer.ask(LDS) == [Out(LDS, ("l",))]
    assert peer.ask(RDS, "80") == [Out(RDS, ("80",))]


def test_responses_carry_version_and_a_nonce_of_their_own() -> None:
    peer = Peer(ONE, ordered=False)
    peer.ask(CDS)
    peer.ask(LDS)
    assert {peer.last[CDS].version_info, peer.last[LDS].version_info} == {"v1"}
    assert peer.last[CDS].nonce != peer.last[LDS].nonce


def test_names_that_are_added_are_answered_alone() -> None:
    peer = connected()
    assert peer.ask(EDS) == []
    assert peer.ask(EDS, "a") == [Out(EDS, ("a",))]
    assert peer.ask(EDS, "a", "b") == [Out(EDS, ("b",))]
    assert peer.ask(EDS, "b") == []


def test_an_empty_wildcard_is_answered_and_an_unknown_name_is_not() -> None:
    peer = Peer(resource_set(1, {}))
    assert peer.ask(CDS) == [Out(CDS, ())]
    assert peer.ask(LDS) == [Out(LDS, ())]
    assert peer.ask(EDS, "nobody") == []
    assert peer.ask(RDS) == []


def test_unknown_names_are_filled_in_like_istiod_does() -> None:
    peer = Peer(resource_set(1, {}, fill_missing=True))
    assert peer.ask(EDS, "e") == [Out(EDS, ("e",))]
    assert peer.ask(RDS, "r") == [Out(RDS, ("r",))]
    assert ClusterLoadAssignment.FromString(peer.last[EDS].resources[0].value) == ClusterLoadAssignment(
        cluster_name="e"
    )
    assert RouteConfiguration.FromString(peer.last[RDS].resources[0].value) == RouteConfiguration(name="r")
    assert peer.ask(CDS, "c") == []


def test_named_clusters_and_listeners_are_answered_with_those_only() -> None:
    peer = Peer(ONE, ordered=False)
    assert peer.ask(CDS, "b") == [Out(CDS, ("b",))]
    assert peer.ask(LDS, "nobody") == []
    assert peer.ask(CDS, "a", "b") == [Out(CDS, ("a", "b"))]  # state of the world: all that is asked for
    assert peer.ask(LDS, "*") == [Out(LDS, ("l",))]


def test_a_type_nobody_serves_is_not_answered() -> None:
    stream = ServerStream(ONE, ordered=True)
    assert stream.request(DiscoveryRequest(type_url="type.googleapis.com/istio.networking.nds.v1.NameTable")) == []
    assert stream.types == ()


def test_a_subscription_with_an_empty_nonce_begins_anew() -> None:
    peer = connected()
    peer.last.clear()
    assert peer.ask(CDS) == [Out(CDS, ("a", "b")), Out(EDS, ("a", "b"))]


def test_an_old_nonce_changes_no_names() -> None:
    peer = connected()
    old = peer.last[EDS].nonce
    peer.drain(peer.publish(resource_set(2, {**_messages(), EDS: [endpoints("a", 1), endpoints("b")]})))
    peer.names[EDS] = ("a",)
    assert peer.ack(EDS, nonce=old) == []
    assert peer.ack(EDS, nonce="never sent") == []
    assert peer.publish(resource_set(3, {**_messages(), EDS: [endpoints("a", 1), endpoints("b", 2)]})) == [
        Out(EDS, ("b",))
    ]


def _messages() -> dict[TypeUrl, list[Message]]:
    return {
        CDS: [cluster("a"), cluster("b")],
        EDS: [endpoints("a"), endpoints("b")],
        LDS: [listener("l", "80")],
        RDS: [routes("80", "a", "b")],
    }


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize(
    ("changed", "wanted"),
    [
        ({}, []),
        ({EDS: [endpoints("a"), endpoints("b", 1)]}, [Out(EDS, ("b",))]),
        ({RDS: [routes("80", "a")]}, [Out(RDS, ("80",))]),
        # A changed cluster or listener warms anew: what it refers to is sent again.
        ({CDS: [cluster("a"), cluster("b", timeout=1)]}, [Out(CDS, ("a", "b")), Out(EDS, ("b",))]),
        ({LDS: [listener("l", "80", port=81)]}, [Out(LDS, ("l",)), Out(RDS, ("80",))]),
    ],
    ids=["nothing", "endpoints", "routes", "cluster", "listener"],
)
def test_an_update_sends_what_changed(ordered: bool, changed: dict[TypeUrl, list[Message]], wanted: list[Out]) -> None:
    peer = connected(ordered=ordered)
    update = resource_set(2, {**_messages(), **changed})
    assert peer.drain(peer.publish(update)) == wanted
    assert peer.in_force()
    assert peer.stream.target is update


def test_an_ordered_update_makes_before_it_breaks() -> None:
    peer = connected()
    # The new cluster beside the old ones; nothing else yet.
    assert peer.publish(TWO) == [Out(CDS, ("a", "b", "c"))]
    assert peer.ack(CDS) == []
    # Its endpoints are asked for; routes follow only when they have been taken.
    assert peer.ask(EDS, "a", "b", "c") == [Out(EDS, ("c",))]
    assert not peer.in_force()
    assert peer.ack(EDS) == [Out(RDS, ("80",))]
    assert not peer.in_force()
    # Only when no route uses it any more, the old cluster goes.
    assert peer.ack(RDS) == [Out(CDS, ("a", "c"))]
    assert peer.in_force()
    assert peer.ack(CDS) == []
    assert peer.ask(EDS, "a", "c") == []
    assert peer.in_force()


def test_an_unordered_update_goes_out_at_once() -> None:
    peer = connected(ordered=False)
    assert peer.publish(TWO) == [Out(CDS, ("a", "c")), Out(RDS, ("80",))]
    assert peer.ask(EDS, "a", "c") == [Out(EDS, ("c",))]
    assert not peer.in_force()
    for type_url in (CDS, EDS, RDS):
        assert peer.ack(type_url) == []
    assert peer.in_force()


def test_routes_asked_for_during_an_update_are_still_the_old_ones() -> None:
    peer = Peer(ONE)
    peer.drain(peer.ask(CDS))
    peer.drain(peer.ask(EDS, "a", "b"))
    peer.drain(peer.ask(LDS))
    peer.publish(TWO)
    assert peer.ask(RDS, "80") == [Out(RDS, ("80",))]
    assert peer.last[RDS].version_info == "v1"


def test_an_update_overtaken_by_another_ends_with_the_last() -> None:
    peer = connected()
    peer.publish(TWO)
    three = resource_set(3, {**_messages(), CDS: [cluster("d")], EDS: [endpoints("d")], RDS: [routes("80", "d")]})
    # What routes in force may still use stays: those of ONE.  None of TWO ever were.
    assert peer.publish(three) == [Out(CDS, ("a", "b", "d"))]
    peer.ack(CDS)
    assert peer.ask(EDS, "d") == [Out(EDS, ("d",))]
    assert peer.ack(EDS) == [Out(RDS, ("80",))]
    assert peer.last[RDS].version_info == "v3"
    assert peer.ack(RDS) == [Out(CDS, ("d",))]


def test_a_refusal_is_reported_holds_the_rest_back_and_is_not_repeated() -> None:
    peer = connected()
    peer.publish(TWO)
    assert peer.nack(CDS, "no such thing") == []
    assert peer.refusal() == Nack(CDS, "no such thing")
    assert not peer.in_force()
    # The client keeps its old clusters; routes to new ones do not come.
    assert peer.ask(EDS, "a", "b") == []


def test_after_a_refusal_the_next_set_is_sent_whole() -> None:
    peer = connected()
    peer.publish(TWO)
    peer.nack(CDS, "no such thing")
    out = peer.publish(resource_set(3, _messages()))
    assert out == [Out(CDS, ("a", "b")), Out(EDS, ("a", "b"))]
    assert peer.refusal() is None
    peer.drain(out)
    assert peer.in_force()


def test_a_cluster_refused_at_the_start_does_not_come_again_with_its_successor() -> None:
    peer = Peer(resource_set(1, {CDS: [cluster("bad")], EDS: [endpoints("bad")], LDS: [], RDS: []}))
    peer.ask(CDS)
    peer.nack(CDS, "bad")
    peer.drain(peer.ask(LDS))
    assert peer.drain(peer.publish(resource_set(2, {CDS: [cluster("good", service="bad")]}))) == [Out(CDS, ("good",))]
    assert peer.in_force()


def test_refused_endpoints_are_sent_again_with_the_next_set() -> None:
    peer = connected()
    peer.publish(resource_set(2, {**_messages(), EDS: [endpoints("a", 1), endpoints("b")]}))
    peer.nack(EDS, "bad port")
    assert peer.refusal() == Nack(EDS, "bad port")
    again = resource_set(3, {**_messages(), EDS: [endpoints("a", 1), endpoints("b")]})
    assert peer.publish(again) == [Out(EDS, ("a",))]
    peer.ack(EDS)
    assert peer.refusal() is None
    assert peer.in_force()


def test_a_refusal_of_an_overtaken_response_counts_for_what_was_only_in_that() -> None:
    peer = connected()
    peer.publish(resource_set(2, {**_messages(), EDS: [endpoints("a", 1), endpoints("b")]}))
    first = peer.last[EDS].nonce
    peer.publish(resource_set(3, {**_messages(), EDS: [endpoints("a", 1), endpoints("b", 2)]}))
    peer.nack(EDS, "bad port", nonce=first)
    assert peer.refusal() == Nack(EDS, "bad port")
    peer.ack(EDS)
    assert peer.refusal() == Nack(EDS, "bad port"), "a is still not in force"


def test_a_refusal_of_what_was_replaced_since_does_not_count() -> None:
    peer = connected()
    peer.publish(resource_set(2, {**_messages(), RDS: [routes("80", "a")]}))
    first = peer.last[RDS].nonce
    peer.publish(resource_set(3, {**_messages(), RDS: [routes("80", "b")]}))
    peer.nack(RDS, "bad", nonce=first)
    assert peer.refusal() is None
    peer.ack(RDS)
    assert peer.in_force()


def test_an_ack_after_a_refusal_of_the_same_response_takes_it_back() -> None:
    peer = connected()
    peer.publish(resource_set(2, {**_messages(), RDS: [routes("80", "a")]}))
    peer.nack(RDS, "no memory")
    assert peer.refusal() is not None
    peer.ack(RDS)
    assert peer.refusal() is None
    assert peer.in_force()


def test_a_change_of_names_with_the_old_version_is_no_ack() -> None:
    peer = connected()
    peer.publish(resource_set(2, {**_messages(), EDS: [endpoints("a", 1), endpoints("b")]}))
    peer.ask(EDS, "a", "b", "unknown")
    assert not peer.in_force()
    peer.ack(EDS)
    assert peer.in_force()


def test_a_client_that_connects_again_gets_routes_after_the_clusters_and_endpoints_they_need() -> None:
    peer = Peer(TWO)
    assert peer.ask(CDS) == [Out(CDS, ("a", "c"))]
    # It asks for all it had, before it knows of the new cluster.
    assert peer.ask(EDS, "a", "b") == [Out(EDS, ("a",))]
    assert peer.ask(LDS) == []
    assert peer.ask(RDS, "80") == []
    assert peer.ask(EDS, "a", "c") == [Out(EDS, ("c",)), Out(LDS, ("l",)), Out(RDS, ("80",))]


def test_a_refused_cluster_does_not_hold_up_the_first_listeners() -> None:
    peer = Peer(ONE)
    peer.ask(CDS)
    assert peer.ask(LDS) == []
    assert peer.nack(CDS, "bad") == [Out(LDS, ("l",))]


def test_nothing_is_in_force_before_all_has_been_asked_for() -> None:
    peer = Peer(ONE, ordered=False)
    peer.drain(peer.ask(CDS))
    peer.drain(peer.ask(EDS, "a"))
    peer.drain(peer.ask(LDS))
    assert not peer.in_force()
    peer.drain(peer.ask(RDS, "80"))
    assert not peer.in_force()
    peer.drain(peer.ask(EDS, "a", "b"))
    assert peer.in_force()
