"""The identity sent to istiod, against the identities that real captures were made with."""

from __future__ import annotations

from pathlib import Path

import pytest

from xds_server.captures import read_node
from xds_server.node import (
    ControlPlane,
    Identity,
    Locality,
    Workload,
    control_plane,
    control_plane_identifier,
    identity,
    node_for,
    node_id,
)

SCENARIOS = Path(__file__).parents[1] / "data" / "scenarios"
CAPTURED = sorted(SCENARIOS.glob("bookinfo-*/*/node.json"))


def workload(**changes: object) -> Workload:
    values: dict[str, object] = {"name": "reviews-v2", "ip": "127.1.3.2", "labels": {"app": "reviews"}}
    return Workload(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, "sidecar~127.1.3.2~reviews-v2.default~default.svc.cluster.local"),
        ({"namespace": "shop"}, "sidecar~127.1.3.2~reviews-v2.shop~shop.svc.cluster.local"),
        ({"pod": "reviews-v2-7d9f"}, "sidecar~127.1.3.2~reviews-v2-7d9f.default~default.svc.cluster.local"),
        ({"ip": "fd00::7"}, "sidecar~fd00::7~reviews-v2.default~default.svc.cluster.local"),
        ({"domain": "mesh.test"}, "sidecar~127.1.3.2~reviews-v2.default~default.svc.mesh.test"),
    ],
)
def test_the_id_has_istios_four_parts(changes: dict[str, object], wanted: str) -> None:
    assert node_id(workload(**changes)) == wanted


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"name": ""}, "name"),
        ({"name": "a~b"}, "name"),
        ({"namespace": "a.b"}, "namespace"),
        ({"namespace": ""}, "namespace"),
        ({"pod": "x~y"}, "pod"),
        ({"ip": "reviews.local"}, "ip"),
        ({"more_ips": ("::1", "nine")}, "nine"),
    ],
)
def test_an_identity_that_istiod_would_misread_is_refused(changes: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        workload(**changes)


@pytest.mark.parametrize("path", CAPTURED, ids=lambda p: f"{p.parents[1].name}/{p.parent.name}")
def test_our_metadata_is_what_the_captures_sent(path: Path) -> None:
    captured = read_node(path)
    metadata = captured.metadata
    ours = node_for(
        Workload(
            name=metadata["WORKLOAD_NAME"],
            pod=metadata["NAME"],
            ip=metadata["INSTANCE_IPS"],
            namespace=metadata["NAMESPACE"],
            labels=dict(metadata["LABELS"].items()),
            service_account=metadata["SERVICE_ACCOUNT"],
            node_name=metadata["NODE_NAME"],
            interception_mode=metadata["INTERCEPTION_MODE"],
            generator=metadata["GENERATOR"] if "GENERATOR" in metadata else "",
        )
    )
    if captured.id.startswith("router~"):
        return
    assert ours.id == captured.id
    assert ours.cluster == captured.cluster
    for key in ours.metadata.fields:
        assert ours.metadata.fields[key] == metadata.fields[key], key
    # Ports of a sidecar's own servers, which we do not run, and what istiod only uses to find itself.
    assert set(metadata.fields) - set(ours.metadata.fields) <= {
        "ENVOY_STATUS_PORT",
        "ENVOY_PROMETHEUS_PORT",
        "PILOT_SAN",
        "DNS_CAPTURE",
    }


def test_locality_addresses_and_extra_metadata() -> None:
    node = node_for(
        workload(locality=Locality("eu", "eu-1"), more_ips=("fd00::7",), extra={"DNS_CAPTURE": "true", "NAME": "over"})
    )
    assert (node.locality.region, node.locality.zone, node.locality.sub_zone) == ("eu", "eu-1", "")
    assert node.metadata["INSTANCE_IPS"] == "127.1.3.2,fd00::7"
    assert node.metadata["DNS_CAPTURE"] == "true"
    assert node.metadata["NAME"] == "over"
    assert not node_for(workload()).HasField("locality")


def test_identity_reads_back_what_node_for_wrote() -> None:
    node = node_for(workload(namespace="shop", generator="grpc"))
    assert identity(node) == Identity("sidecar", "reviews-v2", "shop", "reviews", "grpc")


def test_identity_of_a_node_without_metadata() -> None:
    node = node_for(workload(namespace="shop"))
    node.ClearField("metadata")
    assert identity(node) == Identity("sidecar", "", "shop", "", "")
    node.id = "not istio's"
    assert identity(node) == Identity("", "", "", "", "")


@pytest.mark.parametrize(
    ("identifier", "wanted"),
    [
        (
            '{"Component":"istiod","ID":"istiod-1","Info":{"version":"1.32"}}',
            ("istiod", "istiod-1", '{"version": "1.32"}'),
        ),
        ('{"Component":"xlb-replay","ID":"reviews-v2","Info":"same-app"}', ("xlb-replay", "reviews-v2", "same-app")),
        ("plain text", ("", "plain text", "")),
        ("[1]", ("", "[1]", "")),
        ("", ("", "", "")),
    ],
)
def test_control_plane_identifier(identifier: str, wanted: tuple[str, str, str]) -> None:
    assert control_plane(identifier) == ControlPlane(*wanted)


def test_control_plane_identifier_round_trip() -> None:
    plane = ControlPlane("xlb-replay", "productpage-v1", "exact")
    assert control_plane(control_plane_identifier(plane)) == plane
