"""BPF maps by descriptor; keys and values are bytes of the map's sizes (see `bpf.layout` for what is in them)."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Iterator, Sequence
from ctypes import byref, c_uint32
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from bpf.libbpf import BatchOpts, BpfError, MapCreateOpts, MapInfo, MapKind, check, info, libbpf, possible_cpus

__all__ = ["BpfError", "Map", "MapKind", "create_map"]

F_MMAPABLE: Final = 1 << 10  # BPF_F_MMAPABLE
F_INNER_MAP: Final = 1 << 12  # BPF_F_INNER_MAP: arrays of other sizes may be put into the same outer map

_ENOTSUPP: Final = 524  # the kernel's own, which leaks to user space for maps without batch commands
_NO_BATCH: Final = frozenset({_ENOTSUPP, errno.EOPNOTSUPP, errno.EINVAL})
_BATCH: Final = 1024  # entries asked for at once
_KEYLESS: Final = frozenset({MapKind.STACK, MapKind.QUEUE})
_PER_CPU: Final = frozenset({MapKind.PERCPU_ARRAY, MapKind.PERCPU_HASH})


class Map:
    """An open map.  Every method raises BpfError if the kernel refuses, ValueError for bytes of a wrong size."""

    def __init__(self, fd: int) -> None:
        """Takes over the descriptor.  Raises BpfError (the descriptor stays the caller's)."""
        found = MapInfo()
        info(fd, found, "read map info")
        self._fd = fd
        self._library = libbpf()
        self.id: int = found.id
        self.name: str = found.name.decode()
        self.kind = MapKind(found.type)
        self.key_size: int = found.key_size
        self.value_size: int = found.value_size
        self.max_entries: int = found.max_entries
        self.flags: int = found.map_flags

    @classmethod
    def open(cls, path: Path) -> Self:
        """A pinned map.  Raises BpfError."""
        return cls._take(check(libbpf().bpf_obj_get(bytes(path)), f"open {path}"))

    @classmethod
    def from_id(cls, number: int) -> Self:
        """A map by its id, as outer maps give it.  Raises BpfError."""
        return cls._take(check(libbpf().bpf_map_get_fd_by_id(number), f"open map {number}"))

    @classmethod
    def duplicate(cls, fd: int) -> Self:
        """A map by a descriptor that stays the caller's.  Raises BpfError."""
        return cls._take(os.dup(fd))

    @classmethod
    def _take(cls, fd: int) -> Self:
        try:
            return cls(fd)
        except BaseException:
            os.close(fd)
            raise

    @property
    def fd(self) -> int:
        """The descriptor.  Raises ValueError after close()."""
        if self._fd < 0:
            raise ValueError(f"map {self.name} is closed")
        return self._fd

    def _key(self, key: bytes) -> bytes | None:
        if len(key) != self.key_size:
            raise ValueError(f"map {self.name}: key of {len(key)} bytes, not {self.key_size}")
        return key or None

    def _value(self, value: bytes) -> bytes:
        if len(value) != self.value_size:
            raise ValueError(f"map {self.name}: value of {len(value)} bytes, not {self.value_size}")
        return value

    def _what(self, verb: str) -> str:
        return f"{verb} map {self.name}"

    def lookup(self, key: bytes) -> bytes | None:
        """The value, of outer maps the inner map's id (4 bytes); None if there is none.  Not for per-CPU maps."""
        if self.kind in _PER_CPU:
            raise ValueError(f"map {self.name} has a value per CPU: use lookup_percpu")
        value = ctypes.create_string_buffer(self.value_size)
        return value.raw if self._found(self._library.bpf_map_lookup_elem(self.fd, self._key(key), value)) else None

    def lookup_percpu(self, key: bytes) -> list[bytes]:
        """The values of all possible CPUs; empty if the key is not there."""
        step = (self.value_size + 7) & ~7
        values = ctypes.create_string_buffer(step * possible_cpus())
        if not self._found(self._library.bpf_map_lookup_elem(self.fd, self._key(key), values)):
            return []
        raw = values.raw
        return [raw[at : at + self.value_size] for at in range(0, len(raw), step)]

    def pop(self, key: bytes = b"") -> bytes | None:
        """Take a value out (of a stack or queue: without a key); None if there is none."""
        value = ctypes.create_string_buffer(self.value_size)
        result = self._library.bpf_map_lookup_and_delete_elem(self.fd, self._key(key), value)
        return value.raw if self._found(result) else None

    def _found(self, result: int) -> bool:
        if result == -errno.ENOENT:
            return False
        check(result, self._what("look up in"))
        return True

    def update(self, key: bytes, value: bytes, flags: int = 0) -> None:
        """Set a value; onto a stack or queue: push it (key b"").

        :param flags: 0 (any), 1 (BPF_NOEXIST), 2 (BPF_EXIST; for a full stack: drop its oldest)
        """
        result = self._library.bpf_map_update_elem(self.fd, self._key(key), self._value(value), flags)
        if result < 0:
            self._updated(result)

    def _updated(self, result: int) -> None:
        """Raises BpfError for a negative result of an update."""
        if result == -errno.E2BIG:  # "Argument list too long", says strerror
            raise BpfError(errno.E2BIG, f"{self._what('update')}: it is full ({self.max_entries} entries)")
        check(result, self._what("update"))

    def delete(self, key: bytes) -> bool:
        """Whether there was something to remove."""
        result = self._library.bpf_map_delete_elem(self.fd, self._key(key))
        if result == -errno.ENOENT:
            return False
        check(result, self._what("delete from"))
        return True

    def update_batch(self, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
        """Set many values: with one system call where the kernel can, else one by one.

        Neither is all or nothing: after an error, the first ones are set.
        """
        if len(keys) != len(values):
            raise ValueError(f"map {self.name}: {len(keys)} keys for {len(values)} values")
        for key, value in zip(keys, values, strict=True):
            self._key(key)
            self._value(value)
        done = 0
        if keys and self.kind not in _KEYLESS:
            count = c_uint32(len(keys))
            result = self._library.bpf_map_update_batch(
                self.fd, b"".join(keys), b"".join(values), byref(count), byref(_batch_opts())
            )
            if result >= 0:
                return
            if -result not in _NO_BATCH:
                self._updated(result)
            # With EINVAL for a lack of the command the kernel has not touched the count.
            done = count.value if count.value < len(keys) else 0
        for key, value in zip(keys[done:], values[done:], strict=True):
            self.update(key, value)

    def keys(self) -> Iterator[bytes]:
        """All keys; if entries are deleted meanwhile, some may be given twice."""
        following = ctypes.create_string_buffer(self.key_size)
        previous: bytes | None = None
        # A map from which the last key is always taken away starts over each time: end some time.
        for _ in range(2 * self.max_entries):
            result = self._library.bpf_map_get_next_key(self.fd, previous, following)
            if result == -errno.ENOENT:
                return
            check(result, self._what("list"))
            previous = following.raw
            yield previous

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All keys with their values; not for per-CPU maps."""
        if self.kind in _PER_CPU:
            raise ValueError(f"map {self.name} has a value per CPU: use keys and lookup_percpu")
        batches = self._batches()
        first = next(batches, None)
        if first is not None:
            yield from first
            for batch in batches:
                yield from batch
            return
        for key in self.keys():
            value = self.lookup(key)
            if value is not None:
                yield key, value

    def _batches(self) -> Iterator[list[tuple[bytes, bytes]]]:
        """Entries by BPF_MAP_LOOKUP_BATCH; nothing at all if the map has no such command."""
        size = min(_BATCH, self.max_entries)
        position = ctypes.create_string_buffer(max(self.key_size, 8))
        started = False
        while True:
            keys = ctypes.create_string_buffer(size * self.key_size)
            values = ctypes.create_string_buffer(size * self.value_size)
            count = c_uint32(size)
            result = self._library.bpf_map_lookup_batch(
                *(self.fd, position if started else None, position),
                *(keys, values, byref(count), byref(_batch_opts())),
            )
            if result == -errno.ENOSPC and size < self.max_entries:  # a hash bucket with more entries than that
                size = min(2 * size, self.max_entries)
                continue
            if not started and -result in _NO_BATCH:
                return
            if result != -errno.ENOENT:
                check(result, self._what("list"))
            raw_keys, raw_values = keys.raw, values.raw
            started = True
            yield [
                (
                    raw_keys[index * self.key_size : (index + 1) * self.key_size],
                    raw_values[index * self.value_size : (index + 1) * self.value_size],
                )
                for index in range(count.value)
            ]
            if result == -errno.ENOENT:
                return

    def mmap(self, writable: bool) -> mmap.mmap:
        """The values of an array made with F_MMAPABLE, each at a multiple of 8 bytes; lives longer than the map."""
        size = self.max_entries * ((self.value_size + 7) & ~7)
        size = (size + mmap.PAGESIZE - 1) // mmap.PAGESIZE * mmap.PAGESIZE
        access = mmap.PROT_READ | mmap.PROT_WRITE if writable else mmap.PROT_READ
        try:
            return mmap.mmap(self.fd, size, mmap.MAP_SHARED, access)
        except OSError as error:
            raise BpfError(error.errno, f"{self._what('mmap')}: {error.strerror}") from error

    def close(self) -> None:
        """Close the descriptor; again: nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Map {self.name} {self.kind.name} {self.key_size}->{self.value_size} x {self.max_entries}>"


def _batch_opts() -> BatchOpts:
    return BatchOpts(sz=ctypes.sizeof(BatchOpts))


def create_map(
    kind: MapKind,
    name: str,
    key_size: int,
    value_size: int,
    max_entries: int,
    flags: int = 0,
    *,
    inner: Map | None = None,
) -> Map:
    """A new map; it lives until it is closed and neither pinned nor in another map.  Raises BpfError.

    :param name: the kernel keeps 15 characters of it
    :param inner: for outer maps, a template of what may be put in
    """
    options = MapCreateOpts(sz=ctypes.sizeof(MapCreateOpts), map_flags=flags)
    if inner is not None:
        options.inner_map_fd = inner.fd
    created = libbpf().bpf_map_create(kind, name.encode(), key_size, value_size, max_entries, byref(options))
    return Map._take(check(created, f"create map {name}"))
