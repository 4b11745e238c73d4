"""Client and server of the protocol against each other, without a network: whatever happens, they come together.

Hypothesis chooses resource sets, how long each message is under way, when the client applies, and when the stream
breaks.  In the end the client must hold exactly the last set, every response must be answered, and along the way no
snapshot may be inconsistent.
"""

from __future__ import annotations

from collections import deque

from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.xds_builders import CDS, EDS, LDS, RDS, cluster, endpoints, listener, resource_set, routes
from xds_server.cache import ResourceCache, inconsistencies
from xds_server.node import Workload, node_for
from xds_server.resources import TypeUrl
from xds_server.stream import ResourceSet, ServerStream
from xds_server.subscription import Receipt, Subscription, ask_for_references

NAMES = st.sampled_from(["a", "b", "c", "d"])


@st.composite
def resources(draw: st.DrawFn) -> dict[TypeUrl, list[Message]]:
    """Clusters of a few names with endpoints, listeners with routes to any of them; a cluster may be malformed."""
    names = sorted(draw(st.sets(NAMES)))
    clusters = [cluster(n, timeout=draw(st.sampled_from([1, 2, 3, 0]))) for n in names]
    ports = sorted(draw(st.sets(st.sampled_from(["80", "90"]))))
    return {
        CDS: list(clusters),
        EDS: [endpoints(n, draw(st.integers(1, 3))) for n in names],
        LDS: [listener(f"l{p}", p, port=draw(st.integers(1, 3))) for p in ports],
        RDS: [routes(p, *sorted(draw(st.sets(NAMES)))) for p in ports],
    }


EVENTS = st.lists(
    st.one_of(
        st.sampled_from(["to client", "to client", "to server", "to server", "apply", "settle", "break"]),
        resources(),
    ),
    max_size=40,
)


class World:
    """Both ends, and what is under way between them."""

    def __init__(self, *, ordered: bool) -> None:
        self.ordered = ordered
        self.serial = 0
        self.resources: ResourceSet = resource_set(0, {})
        self.subscription = Subscription(node_for(Workload(name="w", ip="127.0.0.1")))
        self.cache = ResourceCache()
        self.receipts: dict[TypeUrl, Receipt] = {}
        self.connect()

    def connect(self) -> None:
        self.subscription.close()
        self.receipts.clear()
        self.stream = ServerStream(self.resources, ordered=self.ordered, nonce_prefix=f"{self.serial}-")
        self.to_client = deque[object]()
        self.to_server = deque[object](self.subscription.open())

    def publish(self, messages: dict[TypeUrl, list[Message]]) -> None:
        self.serial += 1
        self.resources = resource_set(self.serial, messages, fill_missing=not self.ordered)
        self.to_client.extend(self.stream.publish(self.resources))

    def step(self, event: object) -> None:
        if event == "to server" and self.to_server:
            self.to_client.extend(self.stream.request(self.to_server.popleft()))
        elif event == "to client" and self.to_client:
            self.receive()
        elif event == "apply":
            self.apply()
        elif event == "settle":
            self.cache.settle()
            self.ask()
        elif event == "break":
            self.connect()
        elif isinstance(event, dict):
            self.publish(event)

    def receive(self) -> None:
        response = self.to_client.popleft()
        receipt = self.subscription.receive(response)
        if receipt is not None:
            self.receipts[receipt.type_url] = receipt
            self.cache.update(response)
            self.ask()

    def ask(self) -> None:
        self.to_server.extend(ask_for_references(self.subscription, self.cache))

    def apply(self) -> None:
        snapshot = self.cache.snapshot()
        if snapshot is None:
            return
        assert not [m for m in inconsistencies(snapshot) if (m.type_url, m.name) not in self.rejected()]
        for type_url, receipt in self.receipts.items():
            bad = [r.name for r in self.cache.rejected if r.type_url == type_url]
            answer = self.subscription.nack(receipt, " ".join(bad)) if bad else self.subscription.ack(receipt)
            self.to_server.extend(answer)

    def rejected(self) -> set[tuple[str, str]]:
        return {(r.type_url, r.name) for r in self.cache.rejected}

    def run_dry(self) -> None:
        """Let everything that is under way arrive, and the client answer."""
        for _ in range(1_000):
            if not self.to_client and not self.to_server:
                self.apply()
                if not self.to_server:
                    return
            self.step("to server")
            self.step("to client")
        raise AssertionError("messages go round for ever")


class EnvoyLike(World):
    """A client that puts each response in force and ACKs it as it comes, as Envoy does."""

    def __init__(self) -> None:
        super().__init__(ordered=True)

    def receive(self) -> None:
        super().receive()
        self.cache.settle()  # a cluster that is gone is gone at once
        self.ask()
        for receipt in self.receipts.values():
            self.to_server.extend(self.subscription.ack(receipt))
        self.check()

    def apply(self) -> None:
        pass

    def check(self) -> None:
        """Every route in force leads to a cluster with endpoints."""
        held = {t: self.cache.held(t) for t in TypeUrl}
        for name in self.cache.names(RDS) & held[RDS].keys():
            for host in held[RDS][name].virtual_hosts:  # type: ignore[attr-defined]
                target = host.routes[0].route.cluster
                assert target in held[CDS], f"route {name} leads to cluster {target}, which is gone"
                assert target in held[EDS], f"route {name} leads to cluster {target} before its endpoints are there"


@settings(deadline=None)
@given(sets=st.lists(resources(), max_size=6), data=st.data())
def test_no_route_leads_to_nowhere_on_the_way(sets: list[dict[TypeUrl, list[Message]]], data: st.DataObject) -> None:
    world = EnvoyLike()
    for messages in sets:
        for item in messages[CDS]:
            item.connect_timeout.seconds = max(item.connect_timeout.seconds, 1)  # type: ignore[attr-defined]
        names = [item.name for item in messages[CDS]]  # type: ignore[attr-defined]
        messages[RDS] = [routes(item.name, *names) for item in messages[RDS]]  # type: ignore[attr-defined]
        world.publish(messages)
        for event in data.draw(st.lists(st.sampled_from(["to client", "to server"]), max_size=12)):
            world.step(event)
    world.run_dry()
    assert world.stream.in_force


@settings(deadline=None)
@given(ordered=st.booleans(), events=EVENTS, last=resources())
def test_client_and_server_come_together(
    ordered: bool, events: list[object], last: dict[TypeUrl, list[Message]]
) -> None:
    world = World(ordered=ordered)
    for event in events:
        world.step(event)
    for bad in last[CDS]:
        if bad.connect_timeout.seconds == 0:  # type: ignore[attr-defined]
            bad.connect_timeout.seconds = 9  # type: ignore[attr-defined]
    world.publish(last)
    world.run_dry()
    while world.cache.settle():
        world.ask()
        world.run_dry()

    snapshot = world.cache.snapshot()
    assert snapshot is not None
    assert world.cache.rejected == ()
    held = {t: sorted(m.SerializeToString(deterministic=True) for m in snapshot.by_type(t).values()) for t in TypeUrl}
    wanted = {t: sorted(m.SerializeToString(deterministic=True) for m in last[t]) for t in TypeUrl}
    assert held == wanted
    assert world.stream.nack is None
    assert world.stream.in_force
