"""Damaged responses: whatever the bytes, a resource is taken or rejected by name, and the others are untouched."""

from __future__ import annotations

from pathlib import Path

from envoy.service.discovery.v3.discovery_pb2 import DiscoveryResponse
from hypothesis import given, settings
from hypothesis import strategies as st

from xds_server.cache import ResourceCache
from xds_server.captures import FILES, read_response, response_file
from xds_server.resources import MESSAGES, wire_name

CAPTURE = Path(__file__).parents[1] / "data" / "scenarios" / "bookinfo-all-v1" / "productpage-v1"


def captured(kind: str) -> DiscoveryResponse:
    file = response_file(CAPTURE, kind)
    assert file is not None
    return read_response(file)


@settings(deadline=None)
@given(data=st.data(), kind=st.sampled_from(list(FILES)))
def test_a_damaged_resource_harms_no_other(data: st.DataObject, kind: str) -> None:
    response = captured(kind)
    cache = ResourceCache()
    cache.update(response)
    before = cache.held(FILES[kind])
    index = data.draw(st.integers(0, len(response.resources) - 1))
    value = bytearray(response.resources[index].value)
    damaged = wire_name(bytes(value))
    for _ in range(data.draw(st.integers(1, 4))):
        where = data.draw(st.integers(0, len(value) - 1))
        how = data.draw(st.sampled_from(["flip", "cut", "insert"]))
        if how == "flip":
            value[where] ^= data.draw(st.integers(1, 255))
        elif how == "cut" and len(value) > 1:
            del value[where:]
            value = value or bytearray(b"\0")
        else:
            value[where:where] = data.draw(st.binary(min_size=1, max_size=8))
    response.resources[index].value = bytes(value)

    result = cache.update(response)

    assert len(result.changed) <= 1
    assert len(result.rejected) <= 1
    for rejected in result.rejected:
        assert rejected.why
        assert rejected.name == (wire_name(bytes(value)) or f"(resource {index}, without a name)")
    after = cache.held(FILES[kind])
    touched = {wire_name(bytes(value)), damaged, *result.changed}
    assert {n: m for n, m in after.items() if n not in touched} == {n: m for n, m in before.items() if n not in touched}


@settings(deadline=None)
@given(value=st.binary(max_size=64), kind=st.sampled_from(list(FILES)))
def test_the_quick_name_is_the_real_one(value: bytes, kind: str) -> None:
    message = MESSAGES[FILES[kind]]()
    try:
        message.ParseFromString(value)
    except Exception:  # any failure will do: only what parses is compared
        return
    name = wire_name(value)
    field = "cluster_name" if kind == "eds" else "name"
    # A field that comes twice counts by its last value; serialisers do not write such.
    if name is not None and value.count(name.encode()) == 1 and value.count(b"\x0a") == 1:
        assert getattr(message, field) == name
