"""From snapshots to what is put in force: the short way gives the same, refused resources keep their last version."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.route.v3.route_pb2 import RouteConfiguration
from google.protobuf.message import Message

from tests.unit.captured import load_snapshot
from translator.envoy import EnvoyOptions, listener_names, node_resources
from translator.from_xds import translate
from translator.model import Rejected
from xds_server.cache import ResourceCache, Snapshot
from xds_server.captures import FILES, read_response, response_file
from xds_server.resources import TypeUrl
from xlb.effective import blame, without
from xlb.numbering import Numbering, Sizes
from xlb.prepare import Prepared, ViewPlan, prepare

PLAN = ViewPlan("v", "127.64.0.1", EnvoyOptions())
NODES = ("productpage-v1", "reviews-v2")
SCENARIOS = (
    "bookinfo-all-v1",
    "bookinfo-reviews-50-v3",
    "bookinfo-reviews-test-v2-jason",
    "bookinfo-ratings-abort",
    "bookinfo-registry-only",
    "bookinfo-interception-none",
    "bookinfo-plain",
    "bookinfo-all-v1",
)


def numbering() -> Numbering:
    return Numbering(Sizes(views=16, images=64, pools=64, cursors=64))


@pytest.mark.parametrize("node", NODES)
def test_the_short_way_gives_the_same(scenarios: Path, node: str) -> None:
    cache, numbers = ResourceCache(), numbering()
    last: Prepared | None = None
    for scenario in SCENARIOS:
        for kind in FILES:
            file = response_file(scenarios / scenario / node, kind)
            if file is None:
                continue
            cache.update(read_response(file))
            snapshot = cache.snapshot()
            if snapshot is None:
                continue
            made = prepare(PLAN, snapshot, last, numbers, 0.0)
            ports = {name: numbers.ports.get(("v", name)) for name in listener_names(snapshot)}
            assert made.rules == translate(snapshot)
            assert made.ports == ports
            full = node_resources("v", snapshot, made.ports, PLAN.address, PLAN.options)
            assert made.part.resources == full.resources
            assert set(made.part.changes) == set(full.changes)
            last = made
        cache.settle()


def test_only_routes_changed(scenarios: Path) -> None:
    snapshot = load_snapshot(scenarios / "bookinfo-all-v1" / "productpage-v1")
    first = prepare(PLAN, snapshot, None, numbering(), 0.0)
    changed = RouteConfiguration()
    changed.CopyFrom(snapshot.routes["9080"])
    del changed.virtual_hosts[0].routes[:]
    second_snapshot = replace(snapshot, version="2", routes={**snapshot.routes, "9080": changed})
    second = prepare(PLAN, second_snapshot, first, numbering(), 0.0)
    assert second.rules == translate(second_snapshot)
    assert second.rules.clusters["PassthroughCluster"] is first.rules.clusters["PassthroughCluster"]
    clusters = second.part.resources[TypeUrl.CLUSTER]
    assert clusters is first.part.resources[TypeUrl.CLUSTER]
    full = node_resources("v", second_snapshot, second.ports, PLAN.address, PLAN.options)
    assert second.part.resources == full.resources


def with_vhds(snapshot: Snapshot) -> Snapshot:
    """A snapshot with a route configuration that cannot be passed on to Envoy."""
    bad = RouteConfiguration()
    bad.CopyFrom(snapshot.routes["9080"])
    bad.vhds.config_source.ads.SetInParent()
    return replace(snapshot, version="bad", routes={**snapshot.routes, "9080": bad})


def test_a_refused_resource_keeps_its_last_good_version(scenarios: Path) -> None:
    numbers = numbering()
    good = load_snapshot(scenarios / "bookinfo-all-v1" / "productpage-v1")
    first = prepare(PLAN, good, None, numbers, 0.0)
    second = prepare(PLAN, with_vhds(good), first, numbers, 0.0)
    assert [(one.type_url, one.name, one.field) for one in second.rejected] == [(TypeUrl.ROUTE, "9080", "vhds")]
    assert second.snapshot.routes["9080"] is good.routes["9080"]
    assert second.rules == first.rules


def test_without_a_good_version_it_is_left_out_with_what_needs_it(scenarios: Path) -> None:
    good = load_snapshot(scenarios / "bookinfo-all-v1" / "productpage-v1")
    made = prepare(PLAN, with_vhds(good), None, numbering(), 0.0)
    assert {one.name for one in made.rejected} == {"9080", "0.0.0.0_9080"}
    assert "0.0.0.0_9080" not in made.snapshot.listeners
    assert made.routed() == {}


def test_what_envoy_refuses_is_left_out(scenarios: Path) -> None:
    numbers = numbering()
    old = load_snapshot(scenarios / "bookinfo-all-v1" / "productpage-v1")
    new = load_snapshot(scenarios / "bookinfo-reviews-50-v3" / "productpage-v1")
    first = prepare(PLAN, old, None, numbers, 0.0)
    refused = Rejected(TypeUrl.ROUTE, "9080", "", "Envoy refuses it")
    made = prepare(PLAN, new, first, numbers, 0.0, (refused,))
    assert made.snapshot.routes["9080"] is old.routes["9080"]
    assert made.rejected == (refused,)


def test_the_version_that_is_refused_is_not_the_good_one(scenarios: Path) -> None:
    old = load_snapshot(scenarios / "bookinfo-all-v1" / "productpage-v1")
    refused = [Rejected(TypeUrl.LISTENER, "0.0.0.0_9080", "", "")]
    assert "0.0.0.0_9080" not in without(old, refused, old).listeners


def test_blame_finds_whole_names_only() -> None:
    names = ("v~outbound|80||a", "v~outbound|80||a.b", "w~outbound|80||a", "v~x")
    pushed: dict[str, dict[str, Message]] = {TypeUrl.CLUSTER: {name: Cluster(name=name) for name in names}}
    message = "Error adding/updating cluster(s) v~outbound|80||a.b: no; w~outbound|80||a: bad"
    found = blame(TypeUrl.CLUSTER, message, pushed)
    assert {view: [one.name for one in rejected] for view, rejected in found.items()} == {
        "v": ["outbound|80||a.b"],
        "w": ["outbound|80||a"],
    }
    assert blame(TypeUrl.CLUSTER, "something else", pushed) == {}
    assert blame(TypeUrl.ROUTE, message, pushed) == {}
