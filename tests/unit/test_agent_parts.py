"""The small pure parts of the agent: identities, state, cgroup mounts, addresses, timings."""

from __future__ import annotations

import ipaddress
import json
import socket
from pathlib import Path

import pytest

from xds_server.client import UpdateTiming
from xlb import addresses, state
from xlb.cgroups import CgroupError, Mount, find_mount
from xlb.identity import Identity, IdentityError, folder_name, from_document, wanted
from xlb.state import State, StateError, WorkloadState
from xlb.timings import Timings


def test_what_is_not_said_is_decided_by_what_is_registered() -> None:
    registered = Identity("w", "ns", (("app", "a"),), "sa", "10.0.0.1")
    assert wanted("w", "ns").fits(registered)
    assert wanted("w", "ns", {"app": "a"}, "sa", "10.0.0.1").fits(registered)
    assert not wanted("w", "ns", {"app": "b"}).fits(registered)
    assert not wanted("w", "ns", ip="10.0.0.2").fits(registered)
    assert not wanted("w").fits(registered)
    assert wanted("w").identity() == Identity("w", "default", (), "default", "127.0.0.1")


@pytest.mark.parametrize(
    "document",
    [
        [],
        {},
        {"name": "a/b"},
        {"name": "a~b"},
        {"name": "../a"},
        {"name": "w", "namespace": "a.b"},
        {"name": "w", "labels": {"a": 1}},
        {"name": "w", "labels": ["a"]},
        {"name": "w", "ip": "10.0.0"},
        {"name": 3},
    ],
)
def test_identities_that_are_none(document: object) -> None:
    with pytest.raises(IdentityError):
        from_document(document)


def test_identities_of_one_name_have_cgroups_of_their_own() -> None:
    one, other = Identity("w"), Identity("w", ip="10.0.0.1")
    assert folder_name(one, []) == "default.w"
    assert folder_name(other, ["default.w"]) == "default.w+2"
    assert one.key != other.key


def test_state_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    assert state.load(path) is None
    saved = State(
        "127.64.0.1",
        (WorkloadState("w", "ns", {"app": "a"}, "sa", "10.0.0.1", "ns.w", 3),),
        views={"key": 1},
        images={"v": {"80": 2}},
        ports={"v": {"l": 15100}},
        cursors={"v": {"c": 4}},
        pools={"10.0.0.1 80": 5},
    )
    state.save(path, saved)
    assert state.load(path) == saved
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 99}', '{"format": 1}', '{"format": 1, "address": 1, "w'])
def test_state_that_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "state.json"
    path.write_text(text)
    with pytest.raises(StateError, match=str(path)):
        state.load(path)


def test_state_of_another_version(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    state.save(path, State(""))
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "format": 0}))
    with pytest.raises(StateError, match="another version"):
        state.load(path)


MOUNTS = """\
30 23 0:26 / /sys/fs/cgroup rw,relatime shared:9 - tmpfs tmpfs rw
31 30 0:27 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
32 23 0:27 /pods/one /mnt/with\\040blank rw,relatime shared:1 - cgroup2 none rw
"""


def test_the_mount_that_sees_most() -> None:
    assert find_mount(MOUNTS) == Mount(Path("/sys/fs/cgroup/unified"), 0)
    assert find_mount(MOUNTS.splitlines()[2]) == Mount(Path("/mnt/with blank"), 2)
    with pytest.raises(CgroupError, match="cgroup v2 is not mounted"):
        find_mount(MOUNTS.splitlines()[0])


def test_addresses_are_an_instance_s_own() -> None:
    some = [*addresses.candidates("one")]
    assert some == [*addresses.candidates("one")]
    assert some[0] != next(addresses.candidates("two"))
    assert all(address in ipaddress.ip_network("127.64.0.0/10") for address in some)


def test_an_address_that_is_taken_is_passed_over() -> None:
    first, second, *_ = addresses.candidates("passed-over")
    with socket.socket() as taken:
        taken.bind((str(first), 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert addresses.choose("passed-over", port) == second
        with pytest.raises(addresses.AddressError, match="is in use: end what listens there"):
            addresses.choose("passed-over", port, first)


def test_percentiles_of_the_last_updates() -> None:
    some = Timings(kept=4)
    assert (some.count, some.percentile_ms(50)) == (0, None)
    for milliseconds in (900, 1, 2, 3, 4):
        some.add(UpdateTiming("v", 10.0, 10.0 + milliseconds / 1000))
    assert some.count == 5
    assert (some.percentile_ms(50), some.percentile_ms(99)) == (2.0, 4.0)
