"""The consumer's side of a BPF ring buffer (Documentation/bpf/ringbuf.rst), on its pages as they are mapped."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from types import TracebackType
from typing import Final, Self

from bpf.libbpf import BpfError, MapKind
from bpf.maps import Map

_BUSY: Final = 1 << 31  # BPF_RINGBUF_BUSY_BIT: reserved, not yet submitted
_DISCARD: Final = 1 << 30  # BPF_RINGBUF_DISCARD_BIT
_HEADER: Final = 8  # BPF_RINGBUF_HDR_SZ


class RingBuffer:
    """One consumer; two of the same ring would disturb each other.

    The kernel wakes a waiter when a record is submitted that the consumer has caught up with, so after each wake-up
    events() has to be read to its end.  Positions are aligned 64-bit loads and stores of one processor instruction;
    their order with the records' bytes is kept on x86-64 by the processor and elsewhere by the system call
    (epoll_wait) that comes between a submission and its wake-up.
    """

    def __init__(self, ring: Map) -> None:
        """Maps the pages of the ring; the map stays the caller's and may be closed after this one.  Raises BpfError."""
        if ring.kind is not MapKind.RINGBUF:
            raise ValueError(f"map {ring.name} is a {ring.kind.name}, not a ring buffer")
        self._map = ring
        self._size = ring.max_entries
        page = mmap.PAGESIZE
        try:
            # The consumer's page is ours to write; then the producer's page and, twice in a row, the data.
            self._ours = mmap.mmap(ring.fd, page)
            self._theirs = mmap.mmap(ring.fd, page + 2 * self._size, prot=mmap.PROT_READ, offset=page)
        except OSError as error:
            raise BpfError(error.errno, f"mmap ring buffer {ring.name}: {error.strerror}") from error
        self._consumed = memoryview(self._ours).cast("Q")
        self._produced = memoryview(self._theirs).cast("Q")
        self._lengths = memoryview(self._theirs).cast("I")

    @property
    def fd(self) -> int:
        """For epoll: readable when there is a record."""
        return self._map.fd

    def events(self) -> Iterator[bytes]:
        """Copies of the records there are, in order; each is given back to the kernel before it is handed out."""
        consumed, data, page = self._consumed, self._theirs, mmap.PAGESIZE
        mask = self._size - 1
        position = consumed[0]
        while position < self._produced[0]:
            start = page + (position & mask)
            length = self._lengths[start >> 2]
            if length & _BUSY:
                return  # its submission will wake us: we stand right before it
            size = length & ~_DISCARD
            record = None if length & _DISCARD else data[start + _HEADER : start + _HEADER + size]
            position += (_HEADER + size + 7) & ~7
            consumed[0] = position
            if record is not None:
                yield record

    def close(self) -> None:
        """Unmap the pages; again: nothing."""
        for view in (self._consumed, self._produced, self._lengths):
            view.release()
        self._ours.close()
        self._theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
