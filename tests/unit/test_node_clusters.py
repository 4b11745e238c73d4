"""Clusters and endpoints on their way to the node Envoy: whom it can reach, and what becomes of the others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.core.v3.base_pb2 import TransportSocket
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.extensions.transport_sockets.raw_buffer.v3.raw_buffer_pb2 import RawBuffer
from envoy.extensions.transport_sockets.tls.v3.tls_pb2 import UpstreamTlsContext

from tests.unit.node_builders import get, made, snapshot, told
from tests.unit.xds_builders import CDS, EDS, cluster, static_cluster
from translator.envoy import EnvoyOptions, MtlsEndpoints

PLAINTEXT = EnvoyOptions(mtls_endpoints=MtlsEndpoints.PLAINTEXT)


def raw() -> TransportSocket:
    socket = TransportSocket(name="envoy.transport_sockets.raw_buffer")
    socket.typed_config.Pack(RawBuffer())
    return socket


def tls(*secrets: str, file: str = "") -> TransportSocket:
    context = UpstreamTlsContext(sni="x")
    for secret in secrets:
        validation = context.common_tls_context.combined_validation_context
        validation.validation_context_sds_secret_config.name = secret
    if file:
        context.common_tls_context.validation_context.trusted_ca.filename = file
    socket = TransportSocket(name="envoy.transport_sockets.tls")
    socket.typed_config.Pack(context)
    return socket


def auto_mtls(name: str) -> Cluster:
    """mTLS for endpoints labelled so, plain bytes for the others: what istiod sends by default."""
    found = cluster(name)
    mesh = found.transport_socket_matches.add(name="tlsMode-istio", transport_socket=tls("ROOTCA"))
    mesh.match["tlsMode"] = "istio"
    found.transport_socket_matches.add(name="tlsMode-disabled", transport_socket=raw()).match.SetInParent()
    return found


def labelled(name: str, *modes: str | None) -> ClusterLoadAssignment:
    """One endpoint for each mode, in one locality each, by port."""
    found = ClusterLoadAssignment(cluster_name=name)
    for index, mode in enumerate(modes):
        group = found.endpoints.add(priority=index)
        candidate = group.lb_endpoints.add()
        candidate.endpoint.address.socket_address.address = "127.0.0.9"
        candidate.endpoint.address.socket_address.port_value = index + 1
        if mode is not None:
            candidate.metadata.filter_metadata["envoy.transport_socket_match"]["tlsMode"] = mode
    return found


def ports(assignment: Any) -> list[list[int]]:
    return [[e.endpoint.address.socket_address.port_value for e in g.lb_endpoints] for g in assignment.endpoints]


def test_endpoints_that_want_mesh_mtls_are_left_out() -> None:
    result = made(
        snapshot(clusters=(auto_mtls("c"),), assignments=(labelled("c", "istio", None, "istio", "disabled"),))
    )
    assert ports(get(result, EDS, "v~c")) == [[], [2], [], [4]], "priorities stay what they were"
    assert [m.name for m in get(result, CDS, "v~c").transport_socket_matches] == ["tlsMode-disabled"]
    assert told(result, "mtls_endpoints: refuse") == ["c (2 of 4)"]


def test_endpoints_that_want_mesh_mtls_get_plain_bytes_if_so_decided() -> None:
    view = snapshot(clusters=(auto_mtls("c"),), assignments=(labelled("c", "istio", None),))
    result = made(view, PLAINTEXT)
    assert ports(get(result, EDS, "v~c")) == [[1], [2]]
    sockets = [m.transport_socket.name for m in get(result, CDS, "v~c").transport_socket_matches]
    assert sockets == ["envoy.transport_sockets.raw_buffer"] * 2
    assert told(result, "mtls_endpoints: plaintext") == ["c (1 of 2)"]


def test_labels_of_the_locality_count_where_the_endpoint_has_none() -> None:
    assignment = labelled("c", None)
    assignment.endpoints[0].metadata.filter_metadata["envoy.transport_socket_match"]["tlsMode"] = "istio"
    assert ports(get(made(snapshot(clusters=(auto_mtls("c"),), assignments=(assignment,))), EDS, "v~c")) == [[]]


def test_labels_do_not_matter_to_a_cluster_without_matches() -> None:
    result = made(snapshot(clusters=(cluster("c"),), assignments=(labelled("c", "istio"),)))
    assert ports(get(result, EDS, "v~c")) == [[1]]


@pytest.mark.parametrize(
    ("socket", "why"),
    [
        (tls("ROOTCA"), "mesh mTLS"),
        (tls("file-root:/etc/ca.pem"), "nobody serves the secret file-root:/etc/ca.pem"),
        (tls("file-root:system"), "nobody serves the secret file-root:system"),
        (tls(file="/etc/ca.pem"), "trusted_ca: is in a file of the workload, /etc/ca.pem"),
        (TransportSocket(name="acme"), "transport socket acme"),
    ],
    ids=["mesh", "file-secret", "system-secret", "file", "unknown"],
)
def test_a_cluster_that_would_warm_for_ever_answers_503_instead(socket: TransportSocket, why: str) -> None:
    found = cluster("c")
    found.transport_socket.CopyFrom(socket)
    result = made(snapshot(clusters=(found, cluster("d")), assignments=(labelled("c", None), labelled("d", None))))
    replaced = get(result, CDS, "v~c")
    assert replaced.type == Cluster.STATIC
    assert not replaced.HasField("transport_socket")
    assert not replaced.HasField("load_assignment")
    assert list(result.resources[EDS]) == ["v~d"]
    assert told(result, why) == ["c"]
    assert any("c" in line and "503" in line for line in result.warnings)


def test_tls_that_needs_nothing_stays() -> None:
    found = cluster("c")
    found.transport_socket.CopyFrom(tls())
    result = made(snapshot(clusters=(found,), assignments=(labelled("c", None),)))
    assert get(result, CDS, "v~c").transport_socket == found.transport_socket
    assert result.changes == ()


def test_the_systems_authorities_are_those_of_the_node() -> None:
    found = cluster("c")
    found.transport_socket.CopyFrom(tls("file-root:system"))
    view = snapshot(clusters=(found,), assignments=(labelled("c", None),))
    result = made(view, EnvoyOptions(system_ca="/etc/ssl/certs/ca-certificates.crt"))
    context = UpstreamTlsContext.FromString(get(result, CDS, "v~c").transport_socket.typed_config.value)
    validation = context.common_tls_context.validation_context
    assert validation.trusted_ca.filename == "/etc/ssl/certs/ca-certificates.crt"
    assert context.sni == "x"


def test_plain_bytes_are_only_for_the_mesh() -> None:
    found = cluster("c")
    found.transport_socket.CopyFrom(tls("file-root:/etc/ca.pem"))
    result = made(snapshot(clusters=(found,), assignments=(labelled("c", None),)), PLAINTEXT)
    assert get(result, CDS, "v~c").type == Cluster.STATIC


def test_a_whole_cluster_of_the_mesh_gets_plain_bytes_if_so_decided() -> None:
    found = cluster("c")
    found.transport_socket.CopyFrom(tls("default"))
    result = made(snapshot(clusters=(found,), assignments=(labelled("c", None, None),)), PLAINTEXT)
    assert get(result, CDS, "v~c").transport_socket.name == "envoy.transport_sockets.raw_buffer"
    assert told(result, "mtls_endpoints: plaintext") == ["c (2 of 2)"]


def test_a_cluster_of_names_holds_up_nothing() -> None:
    found = Cluster(name="c", type=Cluster.STRICT_DNS)
    found.load_assignment.cluster_name = "c"
    got = get(made(snapshot(clusters=(found,))), CDS, "v~c")
    assert got.HasField("wait_for_warm_on_init")
    assert not got.wait_for_warm_on_init.value
    assert got.load_assignment.cluster_name == "v~c"


def test_an_assignment_that_two_clusters_share_is_judged_for_each() -> None:
    one, two = auto_mtls("one"), cluster("two", service="one")
    result = made(snapshot(clusters=(one, two), assignments=(labelled("one", "istio"),)))
    assert ports(get(result, EDS, "v~one")) == [[]]
    assert ports(get(result, EDS, "v~two")) == [[1]]
    assert get(result, CDS, "v~two").eds_cluster_config.service_name == "v~two"


def test_a_filter_that_is_not_known_takes_the_cluster_out_of_service() -> None:
    found = cluster("c")
    found.filters.add(name="guard").typed_config.type_url = "type.googleapis.com/acme.Guard"
    result = made(snapshot(clusters=(found,), assignments=(labelled("c", None),)))
    assert get(result, CDS, "v~c").type == Cluster.STATIC
    assert told(result, "acme.Guard") == ["c"]


def test_endpoints_behind_a_listener_of_a_sidecar_are_left_out() -> None:
    assignment = labelled("c", None)
    assignment.endpoints[0].lb_endpoints.add().endpoint.address.envoy_internal_address.server_listener_name = "x"
    result = made(snapshot(clusters=(cluster("c"),), assignments=(assignment,)))
    assert ports(get(result, EDS, "v~c")) == [[1]]
    assert told(result, "HBONE") == ["c (1 of 2)"]


def test_what_can_be_felt_is_told_first() -> None:
    result = made(
        snapshot(clusters=(static_cluster("inbound|80||"), auto_mtls("c")), assignments=(labelled("c", "istio"),))
    )
    first, *rest = result.warnings
    assert "mtls_endpoints" in first
    assert rest
    many = replace(result.changes[0], resources=tuple(f"r{i}" for i in range(10)))
    assert str(many).endswith("r0, r1, r2, r3 and 6 more")
