"""The resource cache: the rules of the state-of-the-world protocol, rejections, and every bookinfo capture."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from envoy.service.discovery.v3.discovery_pb2 import DiscoveryResponse

from tests.unit.xds_builders import (
    CDS,
    EDS,
    LDS,
    RDS,
    cluster,
    endpoints,
    listener,
    response,
    routes,
    static_cluster,
)
from xds_server.cache import ResourceCache, Snapshot, inconsistencies
from xds_server.captures import FILES, read_response, response_file

SCENARIOS = Path(__file__).parents[1] / "data" / "scenarios"
CAPTURED = sorted(path.parent for path in SCENARIOS.glob("bookinfo-*/*/node.json"))


def filled() -> ResourceCache:
    cache = ResourceCache()
    for update in (
        response(CDS, cluster("a"), cluster("b", service="b-endpoints"), static_cluster("s")),
        response(EDS, endpoints("a"), endpoints("b-endpoints")),
        response(LDS, listener("l", "80")),
        response(RDS, routes("80", "a", "b")),
    ):
        assert not cache.update(update).rejected
    return cache


def snapshot_of(cache: ResourceCache) -> Snapshot:
    snapshot = cache.snapshot()
    assert snapshot is not None
    return snapshot


def rejected_names(cache: ResourceCache) -> list[str]:
    return [rejected.name for rejected in cache.rejected]


def test_a_snapshot_waits_for_all_that_is_referenced() -> None:
    cache = ResourceCache()
    assert cache.snapshot() is None
    cache.update(response(CDS, cluster("a"), static_cluster("s")))
    assert cache.names(EDS) == {"a"}
    cache.update(response(EDS, endpoints("a")))
    assert cache.snapshot() is None  # no listeners have arrived, not even none
    cache.update(response(LDS, listener("l", "80")))
    assert cache.names(RDS) == {"80"}
    assert [str(m) for m in cache.missing()] == ["RDS 80 (wanted by l)"]
    assert cache.snapshot() is None
    cache.update(response(RDS, routes("80", "a")))
    snapshot = snapshot_of(cache)
    assert (set(snapshot.clusters), set(snapshot.endpoints)) == ({"a", "s"}, {"a"})
    assert (set(snapshot.listeners), set(snapshot.routes)) == ({"l"}, {"80"})
    assert not list(inconsistencies(snapshot))


def test_nothing_at_all_is_consistent() -> None:
    cache = ResourceCache()
    cache.update(response(CDS))
    cache.update(response(LDS))
    assert snapshot_of(cache).clusters == {}


def test_inconsistencies_name_what_is_missing_and_who_wants_it() -> None:
    snapshot = Snapshot("v", clusters={"c": cluster("c")}, listeners={"l": listener("l", "80", "90")})
    assert [str(m) for m in inconsistencies(snapshot)] == [
        "EDS c (wanted by c)",
        "RDS 80 (wanted by l)",
        "RDS 90 (wanted by l)",
    ]


def test_what_a_partial_reply_leaves_out_stays() -> None:
    cache = filled()
    before = snapshot_of(cache)
    result = cache.update(response(EDS, endpoints("a", port=9999), version="v2"))
    assert result.changed == {"a"}
    assert not result.removed
    after = snapshot_of(cache)
    assert after.endpoints["a"] != before.endpoints["a"]
    assert after.endpoints["b-endpoints"] == before.endpoints["b-endpoints"]
    assert cache.update(response(EDS)).removed == frozenset()
    assert cache.update(response(RDS)).removed == frozenset()
    assert snapshot_of(cache).routes == before.routes


def test_listeners_are_the_state_of_the_world() -> None:
    cache = filled()
    result = cache.update(response(LDS, listener("other", "90")))
    assert result.changed == {"other"}
    assert result.removed == {"l"}
    assert cache.names(RDS) == {"90"}
    assert cache.snapshot() is None
    cache.update(response(RDS, routes("90", "a")))
    assert set(snapshot_of(cache).routes) == {"90"}


def test_clusters_that_go_stay_in_snapshots_until_the_cache_is_settled() -> None:
    cache = filled()
    result = cache.update(response(CDS, cluster("a"), version="v2"))
    assert result.removed == {"b", "s"}
    assert cache.leaving == {"b", "s"}
    assert set(snapshot_of(cache).clusters) == {"a", "b", "s"}
    assert cache.names(EDS) == {"a", "b-endpoints"}
    version = snapshot_of(cache).version
    assert cache.settle() == {"b", "s"}
    snapshot = snapshot_of(cache)
    assert (set(snapshot.clusters), set(snapshot.endpoints)) == ({"a"}, {"a"})
    assert cache.names(EDS) == {"a"}
    assert snapshot.version != version
    assert cache.settle() == frozenset()
    assert snapshot_of(cache).version == snapshot.version


def test_a_cluster_that_comes_back_in_time_never_left() -> None:
    cache = filled()
    cache.update(response(CDS, cluster("a")))
    cache.update(response(CDS, cluster("a"), cluster("b", service="b-endpoints")))
    assert cache.leaving == {"s"}
    cache.settle()
    assert set(snapshot_of(cache).clusters) == {"a", "b"}


def test_a_cluster_that_comes_back_malformed_keeps_its_last_good_version() -> None:
    cache = filled()
    cache.update(response(CDS, cluster("a")))
    cache.update(response(CDS, cluster("a"), cluster("b", timeout=0)))
    cache.settle()
    assert snapshot_of(cache).clusters["b"].connect_timeout.seconds == 10


def test_the_version_changes_with_the_content_and_only_then() -> None:
    cache = filled()
    version = snapshot_of(cache).version
    cache.update(response(CDS, cluster("a"), cluster("b", service="b-endpoints"), static_cluster("s"), version="v9"))
    cache.update(response(RDS, routes("80", "a", "b"), version="v9"))
    assert snapshot_of(cache).version == version
    cache.update(response(RDS, routes("80", "a"), version="v9"))
    assert snapshot_of(cache).version != version


def test_a_snapshot_does_not_change_with_the_cache() -> None:
    cache = filled()
    snapshot = snapshot_of(cache)
    cache.update(response(CDS, version="v2"))
    cache.settle()
    assert set(snapshot.clusters) == {"a", "b", "s"}
    with pytest.raises(TypeError):
        snapshot.clusters["x"] = cluster("x")  # type: ignore[index]


def test_a_malformed_resource_is_rejected_alone_and_its_last_good_version_stays() -> None:
    cache = filled()
    result = cache.update(response(CDS, cluster("a", timeout=0), cluster("b", timeout=7, service="b-endpoints")))
    assert result.changed == {"b"}
    (rejected,) = result.rejected
    assert (rejected.type_url, rejected.name, rejected.field) == (CDS, "a", "connect_timeout")
    assert rejected.why == "is 0s, must be greater than 0s"
    assert cache.rejected == (rejected,)
    snapshot = snapshot_of(cache)
    assert snapshot.clusters["a"].connect_timeout.seconds == 10
    assert snapshot.clusters["b"].connect_timeout.seconds == 7


def test_a_rejection_stands_until_the_resource_is_good_or_gone() -> None:
    cache = filled()
    cache.update(response(RDS, routes("80")))
    bad = routes("80", "a", "a")
    cache.update(response(RDS, bad))
    cache.update(response(RDS, routes("another")))
    assert rejected_names(cache) == ["80"]
    cache.update(response(RDS, routes("80", "a")))
    assert rejected_names(cache) == []
    cache.update(response(RDS, bad))
    cache.update(response(LDS, listener("l", "90")))
    assert rejected_names(cache) == []
    cache.update(response(CDS, cluster("a", timeout=0)))
    assert rejected_names(cache) == ["a"]
    cache.update(response(CDS))
    assert rejected_names(cache) == []


def test_a_resource_that_was_never_good_does_not_hold_up_the_rest() -> None:
    cache = ResourceCache()
    cache.update(response(CDS, cluster("a"), cluster("b")))
    cache.update(response(LDS))
    bad = endpoints("a", port=70_000)
    cache.update(response(EDS, bad, endpoints("b")))
    assert rejected_names(cache) == ["a"]
    assert set(snapshot_of(cache).endpoints) == {"b"}
    cache.update(response(EDS, endpoints("a")))
    assert set(snapshot_of(cache).endpoints) == {"a", "b"}


def test_bytes_that_cannot_be_parsed_are_rejected_by_name() -> None:
    cache = filled()
    broken = response(CDS, cluster("a"), cluster("b"))
    broken.resources[0].value += b"\xff\xff"
    result = cache.update(broken)
    (rejected,) = result.rejected
    assert rejected.name == "a"
    assert rejected.why.startswith("is not a valid Cluster message")
    assert result.removed == {"s"}


def test_while_a_name_is_unreadable_nothing_is_taken_for_removed() -> None:
    cache = filled()
    broken = response(CDS, cluster("a"))
    broken.resources.add(type_url=CDS, value=b"\xff\xff")
    result = cache.update(broken)
    assert result.removed == frozenset()
    assert [r.name for r in result.rejected] == ["(resource 1, without a name)"]
    assert set(snapshot_of(cache).clusters) == {"a", "b", "s"}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda r: r.resources.add(type_url=LDS, value=cluster("a").SerializeToString()), "is a '.*Listener' in a"),
        (lambda r: r.resources.add().CopyFrom(r.resources[0]), "is in the response twice"),
    ],
)
def test_resources_that_have_no_place_in_a_response(change: object, why: str) -> None:
    update = response(CDS, cluster("a"))
    change(update)  # type: ignore[operator]
    result = ResourceCache().update(update)
    assert [r.name for r in result.rejected] == ["a"]
    assert re.match(why, result.rejected[0].why)


def test_a_resource_above_the_limit_is_rejected() -> None:
    cache = ResourceCache(max_resource_bytes=64)
    result = cache.update(response(CDS, cluster("a"), cluster("b" * 64)))
    assert result.changed == {"a"}
    assert [r.name for r in result.rejected] == ["b" * 64]


def test_other_types_are_refused() -> None:
    with pytest.raises(ValueError, match="NameTable"):
        ResourceCache().update(DiscoveryResponse(type_url="type.googleapis.com/istio.networking.nds.v1.NameTable"))


@pytest.mark.parametrize("folder", CAPTURED, ids=lambda p: f"{p.parent.name}/{p.name}")
@pytest.mark.parametrize("order", [("cds", "eds", "lds", "rds"), ("lds", "rds", "cds", "eds")], ids=["push", "other"])
def test_every_bookinfo_capture_is_taken_whole(folder: Path, order: tuple[str, ...]) -> None:
    cache = ResourceCache()
    for kind in order:
        file = response_file(folder, kind)
        assert file is not None
        captured = read_response(file)
        result = cache.update(captured)
        assert result.rejected == ()
        assert len(result.changed) == len(captured.resources)
        assert result.type_url is FILES[kind]
    snapshot = snapshot_of(cache)
    assert not list(inconsistencies(snapshot))
    assert cache.names(EDS) == set(snapshot.endpoints)
    assert cache.names(RDS) == set(snapshot.routes)


@pytest.mark.parametrize("kind", list(FILES))
def test_a_capture_taken_twice_changes_nothing(kind: str) -> None:
    cache = ResourceCache()
    file = response_file(CAPTURED[0], kind)
    assert file is not None
    cache.update(read_response(file))
    result = cache.update(read_response(file))
    assert (result.changed, result.removed, result.rejected) == (frozenset(), frozenset(), ())
