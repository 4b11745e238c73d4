"""Maps, programs and the ring buffer, on a small object that is loaded and never attached."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bpf import layout
from bpf.libbpf import possible_cpus
from bpf.maps import F_INNER_MAP, F_MMAPABLE, BpfError, Map, MapKind, create_map
from bpf.objects import BpfObject, load_object
from bpf.program import Program
from bpf.ring import RingBuffer
from tests.kernel.small_object import WITH_DATA, compile_small


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_small(tmp_path_factory.mktemp("maps"), "small", WITH_DATA)


@pytest.fixture
def loaded(compiled: Path) -> Iterator[BpfObject]:
    with load_object(compiled) as opened:
        yield opened


@pytest.fixture
def request_type(compiled: Path) -> Any:
    return layout.load(compiled).struct("xlb_request")


def _u32(number: int) -> bytes:
    return number.to_bytes(4, "little")


def _u64(number: int) -> bytes:
    return number.to_bytes(8, "little")


def test_hash(loaded: BpfObject) -> None:
    with loaded.map("xlb_numbers") as numbers:
        assert (numbers.kind, numbers.key_size, numbers.value_size, numbers.max_entries) == (MapKind.HASH, 8, 4, 10000)
        numbers.update(_u64(1), _u32(2))
        assert numbers.lookup(_u64(1)) == _u32(2)
        assert numbers.delete(_u64(1))
        assert not numbers.delete(_u64(1))
        assert numbers.lookup(_u64(1)) is None
        with pytest.raises(BpfError, match="update map xlb_numbers"):
            numbers.update(_u64(1), _u32(2), 2)
        with Map.from_id(numbers.id) as again:
            assert again.name == "xlb_numbers"
    with pytest.raises(ValueError, match="closed"):
        numbers.lookup(_u64(1))


def test_batches(loaded: BpfObject) -> None:
    """More entries than are asked for at once."""
    wanted = {_u64(number): _u32(number) for number in range(5000)}
    with loaded.map("xlb_numbers") as numbers:
        numbers.update_batch(list(wanted), list(wanted.values()))
        listed = list(numbers.items())
        assert len(listed) == len(wanted)
        assert dict(listed) == wanted
        assert set(numbers.keys()) == set(wanted)


def test_batch_is_refused_as_a_whole_for_wrong_sizes(loaded: BpfObject) -> None:
    with loaded.map("xlb_numbers") as numbers:
        with pytest.raises(ValueError, match="value of 8 bytes"):
            numbers.update_batch([_u64(1), _u64(2)], [_u32(1), _u64(2)])
        with pytest.raises(ValueError, match="2 keys for 1 values"):
            numbers.update_batch([_u64(1), _u64(2)], [_u32(1)])
        assert list(numbers.items()) == []


def test_batch_where_there_is_none(loaded: BpfObject) -> None:
    with create_map(MapKind.STACK, "xlb_test_stack", 0, 8, 3) as stack:
        stack.update_batch([b"", b""], [_u64(1), _u64(2)])
        assert [stack.pop(), stack.pop(), stack.pop()] == [_u64(2), _u64(1), None]


def test_batch_over_the_maximum(loaded: BpfObject) -> None:
    with create_map(MapKind.HASH, "xlb_test_full", 8, 8, 2) as small, pytest.raises(BpfError, match="full"):
        small.update_batch([_u64(number) for number in range(3)], [bytes(8)] * 3)


def test_inner_maps(loaded: BpfObject) -> None:
    """Of different sizes, swapped in one batch; the outer map gives ids."""
    with loaded.map("xlb_images") as images:
        first = create_map(MapKind.ARRAY, "xlb_test_a", 4, 64, 3, F_INNER_MAP | F_MMAPABLE)
        second = create_map(MapKind.ARRAY, "xlb_test_b", 4, 64, 500, F_INNER_MAP | F_MMAPABLE)
        with first, second:
            with first.mmap(writable=True) as memory:
                memory[64:128] = b"x" * 64
            assert first.lookup(_u32(1)) == b"x" * 64
            images.update_batch([_u32(0), _u32(4095)], [_u32(first.fd), _u32(second.fd)])
            assert images.lookup(_u32(0)) == _u32(first.id)
            assert dict(images.items()) == {_u32(0): _u32(first.id), _u32(4095): _u32(second.id)}
        with Map.from_id(int.from_bytes(images.lookup(_u32(4095)) or b"", "little")) as kept:
            assert kept.max_entries == 500


def test_mmap(loaded: BpfObject) -> None:
    with loaded.map("xlb_mapped") as mapped, mapped.mmap(writable=True) as memory:
        words = memoryview(memory).cast("Q")
        words[999] = 7
        assert mapped.lookup(_u32(999)) == _u64(7)
        words.release()
    with loaded.map("xlb_numbers") as numbers, pytest.raises(BpfError, match="mmap map xlb_numbers"):
        numbers.mmap(writable=False)


def test_socket_storage(loaded: BpfObject) -> None:
    """User space says which socket by its descriptor."""
    with loaded.map("xlb_stored") as stored, socket.socket() as one:
        key = one.fileno().to_bytes(4, "little")
        assert stored.lookup(key) is None
        stored.update(key, _u64(5))
        assert stored.lookup(key) == _u64(5)
        assert stored.delete(key)


def test_program_and_counters(loaded: BpfObject, request_type: Any) -> None:
    with loaded.program("xlb_control") as control, loaded.map("xlb_per_cpu") as counters:
        context = request_type(op=3, arg=10)
        assert control.run(context) == 0
        assert context.arg == 17
        raw = bytearray(bytes(context))
        assert control.run(raw) == 0
        assert request_type.from_buffer(raw).arg == 24
        values = counters.lookup_percpu(_u32(1))
        assert len(values) == possible_cpus()
        assert sum(int.from_bytes(value, "little") for value in values) == 2
        with pytest.raises(ValueError, match="lookup_percpu"):
            counters.lookup(_u32(1))
        assert control.facts().name == "xlb_control"


def test_run_on_data(loaded: BpfObject) -> None:
    with loaded.program("xlb_data") as program:
        result, data, nanoseconds = program.test_run(b"\x05" + bytes(63), 64, repeat=1)
        assert (result, data) == (6, b"\x06" + bytes(63))
        assert nanoseconds >= 0
        with pytest.raises(BpfError, match="run xlb_data"):
            program.test_run(b"", 0)


def test_ring(loaded: BpfObject, request_type: Any, compiled: Path) -> None:
    """Round and round the ring, with discarded records between."""
    event: Any = layout.load(compiled).struct("xlb_event")
    with loaded.program("xlb_control") as control, loaded.map("xlb_events") as events, RingBuffer(events) as ring:
        poller = select.epoll()
        poller.register(ring.fd, select.EPOLLIN)
        assert list(ring.events()) == []
        for number in range(600):
            assert control.run(request_type(op=1, arg=number, flags=number % 2)) == 0
            if number % 4 == 3:
                assert poller.poll(1.0)
                got = [event.from_buffer_copy(record).arg for record in ring.events()]
                assert got == list(range(number - 3, number + 1))
                assert not poller.poll(0)
        poller.close()


def test_ring_stopped_halfway_goes_on_after_what_was_taken(loaded: BpfObject, request_type: Any) -> None:
    with loaded.program("xlb_control") as control, loaded.map("xlb_events") as events, RingBuffer(events) as ring:
        for number in range(3):
            control.run(request_type(op=1, arg=number))
        next(ring.events())
        assert len(list(ring.events())) == 2


def test_full_ring(loaded: BpfObject, request_type: Any) -> None:
    with loaded.program("xlb_control") as control, loaded.map("xlb_events") as events, RingBuffer(events) as ring:
        results = [control.run(request_type(op=1)) for _ in range(100)]
        assert results[0] == 0
        assert results[-1] < 0  # what the program returned, with its sign
        assert len(list(ring.events())) == results.count(0)


def test_not_a_ring(loaded: BpfObject) -> None:
    with loaded.map("xlb_numbers") as numbers, pytest.raises(ValueError, match="not a ring buffer"):
        RingBuffer(numbers)


def test_pins_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(BpfError, match=r"open .*nothing"):
        Map.open(tmp_path / "nothing")
    with pytest.raises(BpfError, match=r"open .*nothing"):
        Program.open(tmp_path / "nothing")
