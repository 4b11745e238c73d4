"""The loader: the real data path in a cgroup of the test's, and what it does about leftovers, with a small object."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bpf.layout import INSTALLED
from bpf.libbpf import BpfError, ProgramKind, check, libbpf
from bpf.loader import BPFFS, DataPath, LoadError, pin_folder, remove
from bpf.objects import BpfObject
from bpf.probes import probe
from bpf.program import Program
from tests.kernel.small_object import REFUSED, SMALL, WITH_DATA, compile_small

PROGRAMS = {
    "xlb_connect4": ProgramKind.CGROUP_SOCK_ADDR,
    "xlb_connect6": ProgramKind.CGROUP_SOCK_ADDR,
    "xlb_peername4": ProgramKind.CGROUP_SOCK_ADDR,
    "xlb_peername6": ProgramKind.CGROUP_SOCK_ADDR,
    "xlb_sockopt": ProgramKind.CGROUP_SOCKOPT,
    "xlb_sockops": ProgramKind.SOCK_OPS,
    "xlb_msg": ProgramKind.SK_MSG,
    "xlb_control": ProgramKind.SYSCALL,
}
VERIFIER_LIMIT = 1_000_000  # BPF_COMPLEXITY_LIMIT_INSNS


@pytest.fixture
def instance() -> Iterator[str]:
    name = f"test-loader-{os.getpid()}"
    yield name
    remove(name)


@pytest.fixture
def cgroup(instance: str) -> Iterator[Path]:
    yield from _made(f"xlb-{instance}")


@pytest.fixture
def other_cgroup(instance: str) -> Iterator[Path]:
    yield from _made(f"xlb-{instance}-other")


def _made(name: str) -> Iterator[Path]:
    made = _cgroup2() / name
    made.mkdir()
    yield made
    if made.exists():
        made.rmdir()


def _cgroup2() -> Path:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(where)
    pytest.skip("needs cgroup2")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_small(tmp_path_factory.mktemp("small"), "small", SMALL)


def _ids(path: DataPath) -> dict[str, int]:
    """Ids of all programs: the same ones mean that nothing was loaded again."""
    return {name: path.program(name).facts().id for name, _, _ in path.programs()}


def _until(condition: Callable[[], bool], deadline: float = 5.0) -> None:
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        time.sleep(0.01)


def _is_loaded(program: int) -> bool:
    try:
        Program.from_id(program).close()
    except BpfError:
        return False
    return True


def test_the_kernel_has_all_that_is_needed() -> None:
    assert probe() == ()


def test_the_real_data_path(instance: str, cgroup: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not INSTALLED.exists():
        pytest.skip("needs the BPF objects: make build")
    with DataPath.load(instance, cgroup) as path:
        with capsys.disabled():  # for whoever reads the test run: a jump in these is a finding
            for name, kind, count in path.programs():
                print(f"\n{name} ({kind.name.lower()}): {count} verified instructions", end="")
        assert {name: kind for name, kind, _ in path.programs()} == PROGRAMS
        assert all(0 < count < VERIFIER_LIMIT for _, _, count in path.programs())

        with BpfObject(INSTALLED) as compiled:
            maps = set(compiled.maps)
        pins = {entry.name for entry in path.pin_folder.iterdir() if not entry.name.startswith("object_")}
        links = {f"link_{name}" for name, kind in PROGRAMS.items() if kind.name.startswith(("CGROUP", "SOCK_OPS"))}
        assert pins == maps | {f"prog_{name}" for name in PROGRAMS} | links

        constants = path.layouts.constants()
        assert len(list(path.map("xlb_pools").items())) == constants["XLB_DESTINATIONS"]
        before = _ids(path)
        with DataPath.load(instance, cgroup) as again:
            assert _ids(again) == before
        with DataPath.open(instance) as opened:
            assert _ids(opened) == before
        path.remove()
        path.remove()
    assert not pin_folder(instance).exists()
    _until(lambda: not any(_is_loaded(program) for program in before.values()))


def test_taken_over_without_loading(instance: str, cgroup: Path, small: Path, tmp_path: Path) -> None:
    stamp = tmp_path / "bpf.stamp"
    with DataPath.load(instance, cgroup, obj=small, stamp=stamp) as path:
        path.map("xlb_numbers").update((7).to_bytes(8, "little"), (8).to_bytes(4, "little"))
        before = _ids(path)
    assert len(stamp.read_text().strip()) == 64
    with DataPath.load(instance, cgroup, obj=small) as path:
        assert _ids(path) == before
        assert path.map("xlb_numbers").lookup((7).to_bytes(8, "little")) == (8).to_bytes(4, "little")


def test_another_object_replaces_it(instance: str, cgroup: Path, small: Path, tmp_path: Path) -> None:
    with DataPath.load(instance, cgroup, obj=small) as path:
        before = _ids(path)
    changed = compile_small(tmp_path, "changed", SMALL.replace("r->arg += 7", "r->arg += 8"))
    with DataPath.load(instance, cgroup, obj=changed) as path:
        assert not set(_ids(path).values()) & set(before.values())
    _until(lambda: not any(_is_loaded(program) for program in before.values()))


def test_a_refused_object_costs_nothing_that_works(instance: str, cgroup: Path, small: Path, tmp_path: Path) -> None:
    refused = compile_small(tmp_path, "refused", REFUSED)
    with DataPath.load(instance, cgroup, obj=small) as path:
        before = _ids(path)
        with pytest.raises(LoadError, match=r"xlb_control: R1 invalid mem access 'scalar' at .* in `") as caught:
            DataPath.load(instance, cgroup, obj=refused)
        assert "\n" not in str(caught.value)
    with DataPath.open(instance, obj=small) as path:
        assert _ids(path) == before


def test_a_refused_object_leaves_nothing(instance: str, cgroup: Path, tmp_path: Path) -> None:
    refused = compile_small(tmp_path, "refused", REFUSED)
    with pytest.raises(LoadError):
        DataPath.load(instance, cgroup, obj=refused)
    assert not pin_folder(instance).exists()


@pytest.mark.parametrize("pin", ["link_xlb_connect4", "prog_xlb_control", "xlb_numbers", "object_*"])
def test_incomplete_leftovers_are_replaced(instance: str, cgroup: Path, small: Path, pin: str) -> None:
    DataPath.load(instance, cgroup, obj=small).close()
    (lost,) = pin_folder(instance).glob(pin)
    lost.rmdir() if lost.is_dir() else lost.unlink()
    DataPath.load(instance, cgroup, obj=small).close()
    assert list(pin_folder(instance).glob(pin)) == [lost]


def test_another_layout_version_is_replaced(instance: str, cgroup: Path, small: Path) -> None:
    with DataPath.load(instance, cgroup, obj=small) as path:
        size = path.map("xlb_config").value_size
        path.map("xlb_config").update(bytes(4), (9999).to_bytes(4, "little") + bytes(size - 4))
    with pytest.raises(LoadError, match="has layout 9999"):
        DataPath.open(instance, obj=small)
    with DataPath.load(instance, cgroup, obj=small):
        DataPath.open(instance, obj=small).close()


def test_links_follow_the_cgroup(instance: str, cgroup: Path, other_cgroup: Path, small: Path) -> None:
    with DataPath.load(instance, cgroup, obj=small) as path:
        before = _ids(path)
    with DataPath.load(instance, other_cgroup, obj=small) as path:
        assert _ids(path) != before
        before = _ids(path)
    other_cgroup.rmdir()  # takes the programs off it
    other_cgroup.mkdir()
    with DataPath.load(instance, other_cgroup, obj=small) as path:
        assert _ids(path) != before


def test_nothing_is_attached_after_remove(instance: str, cgroup: Path, small: Path) -> None:
    """Even while somebody holds a link: the keeper may live on."""
    path = DataPath.load(instance, cgroup, obj=small)
    held = check(libbpf().bpf_obj_get(bytes(path.pin_folder / "link_xlb_connect4")), "open link")
    try:
        path.remove()
        assert not pin_folder(instance).exists()
        with DataPath.load(instance, cgroup, obj=small) as anew:
            assert anew.pin_folder.exists()
    finally:
        os.close(held)


def test_programs_of_unknown_types_are_refused(instance: str, cgroup: Path, tmp_path: Path) -> None:
    unknown = compile_small(tmp_path, "unknown", WITH_DATA)
    with pytest.raises(LoadError, match="xlb_data: the loader attaches no programs of type SCHED_CLS"):
        DataPath.load(instance, cgroup, obj=unknown)
    assert not pin_folder(instance).exists()


def test_root_cgroup_is_refused(instance: str, small: Path, tmp_path: Path) -> None:
    for wrong in (_cgroup2(), tmp_path, BPFFS, _cgroup2() / "xlb-does-not-exist"):
        with pytest.raises(LoadError, match="is not a cgroup below"):
            DataPath.load(instance, wrong, obj=small)
    assert not pin_folder(instance).exists()


def test_open_without_an_agent(instance: str, small: Path) -> None:
    with pytest.raises(LoadError, match="start the agent"):
        DataPath.open(instance, obj=small)
