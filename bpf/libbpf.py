"""libbpf.so.1 as typed functions: what the other modules call, and nothing more.

libbpf 1.x returns a negative errno, or NULL with errno set (libbpf_legacy.h, LIBBPF_STRICT_ALL).
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import POINTER, c_char, c_char_p, c_int, c_int32, c_size_t, c_uint8, c_uint32, c_uint64, c_void_p
from enum import IntEnum
from typing import Any, Final

NAME: Final = "libbpf.so.1"


class BpfError(OSError):
    """A bpf(2) command failed: errno and what was tried."""


class MapKind(IntEnum):
    """enum bpf_map_type."""

    HASH = 1
    ARRAY = 2
    PERCPU_HASH = 5
    PERCPU_ARRAY = 6
    LRU_HASH = 9
    LPM_TRIE = 11
    ARRAY_OF_MAPS = 12
    HASH_OF_MAPS = 13
    SOCKMAP = 15
    SOCKHASH = 18
    QUEUE = 22
    STACK = 23
    SK_STORAGE = 24
    RINGBUF = 27


class ProgramKind(IntEnum):
    """enum bpf_prog_type."""

    SOCKET_FILTER = 1
    SCHED_CLS = 3
    XDP = 6
    CGROUP_SKB = 8
    CGROUP_SOCK = 9
    SOCK_OPS = 13
    SK_SKB = 14
    SK_MSG = 16
    CGROUP_SOCK_ADDR = 18
    CGROUP_SOCKOPT = 25
    TRACING = 26
    SYSCALL = 31


class AttachType(IntEnum):
    """enum bpf_attach_type."""

    SK_MSG_VERDICT = 7
    CGROUP_INET4_CONNECT = 10
    CGROUP_INET4_GETPEERNAME = 29


class PrintLevel(IntEnum):
    """enum libbpf_print_level."""

    WARN = 0
    INFO = 1
    DEBUG = 2


class MapCreateOpts(ctypes.Structure):
    """struct bpf_map_create_opts."""

    _fields_ = (
        ("sz", c_size_t),
        ("btf_fd", c_uint32),
        ("btf_key_type_id", c_uint32),
        ("btf_value_type_id", c_uint32),
        ("btf_vmlinux_value_type_id", c_uint32),
        ("inner_map_fd", c_uint32),
        ("map_flags", c_uint32),
        ("map_extra", c_uint64),
        ("numa_node", c_uint32),
        ("map_ifindex", c_uint32),
    )


class ProgLoadOpts(ctypes.Structure):
    """struct bpf_prog_load_opts."""

    _fields_ = (
        ("sz", c_size_t),
        ("attempts", c_int),
        ("expected_attach_type", c_int),
        ("prog_btf_fd", c_uint32),
        ("prog_flags", c_uint32),
        ("prog_ifindex", c_uint32),
        ("kern_version", c_uint32),
        ("attach_btf_id", c_uint32),
        ("attach_prog_fd", c_uint32),
        ("attach_btf_obj_fd", c_uint32),
        ("fd_array", c_void_p),
        ("func_info", c_void_p),
        ("func_info_cnt", c_uint32),
        ("func_info_rec_size", c_uint32),
        ("line_info", c_void_p),
        ("line_info_cnt", c_uint32),
        ("line_info_rec_size", c_uint32),
        ("log_level", c_uint32),
        ("log_size", c_uint32),
        ("log_buf", c_void_p),
    )


class BatchOpts(ctypes.Structure):
    """struct bpf_map_batch_opts."""

    _fields_ = (("sz", c_size_t), ("elem_flags", c_uint64), ("flags", c_uint64))


class TestRunOpts(ctypes.Structure):
    """struct bpf_test_run_opts."""

    __test__ = False  # not a test, whatever pytest thinks of its name
    _fields_ = (
        ("sz", c_size_t),
        ("data_in", c_void_p),
        ("data_out", c_void_p),
        ("data_size_in", c_uint32),
        ("data_size_out", c_uint32),
        ("ctx_in", c_void_p),
        ("ctx_out", c_void_p),
        ("ctx_size_in", c_uint32),
        ("ctx_size_out", c_uint32),
        ("retval", c_uint32),
        ("repeat", c_int),
        ("duration", c_uint32),
        ("flags", c_uint32),
        ("cpu", c_uint32),
        ("batch_size", c_uint32),
    )


class MapInfo(ctypes.Structure):
    """The head of struct bpf_map_info: the kernel fills in as much as there is room for."""

    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("key_size", c_uint32),
        ("value_size", c_uint32),
        ("max_entries", c_uint32),
        ("map_flags", c_uint32),
        ("name", c_char * 16),
    )


class ProgInfo(ctypes.Structure):
    """struct bpf_prog_info up to verified_insns (5.16)."""

    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("tag", c_uint8 * 8),
        ("jited_prog_len", c_uint32),
        ("xlated_prog_len", c_uint32),
        ("jited_prog_insns", c_uint64),
        ("xlated_prog_insns", c_uint64),
        ("load_time", c_uint64),
        ("created_by_uid", c_uint32),
        ("nr_map_ids", c_uint32),
        ("map_ids", c_uint64),
        ("name", c_char * 16),
        ("ifindex", c_uint32),
        ("gpl_compatible", c_uint32),
        ("netns_dev", c_uint64),
        ("netns_ino", c_uint64),
        ("nr_jited_ksyms", c_uint32),
        ("nr_jited_func_lens", c_uint32),
        ("jited_ksyms", c_uint64),
        ("jited_func_lens", c_uint64),
        ("btf_id", c_uint32),
        ("func_info_rec_size", c_uint32),
        ("func_info", c_uint64),
        ("nr_func_info", c_uint32),
        ("nr_line_info", c_uint32),
        ("line_info", c_uint64),
        ("jited_line_info", c_uint64),
        ("nr_jited_line_info", c_uint32),
        ("line_info_rec_size", c_uint32),
        ("jited_line_info_rec_size", c_uint32),
        ("nr_prog_tags", c_uint32),
        ("prog_tags", c_uint64),
        ("run_time_ns", c_uint64),
        ("run_cnt", c_uint64),
        ("recursion_misses", c_uint64),
        ("verified_insns", c_uint32),
    )


class CgroupLinkInfo(ctypes.Structure):
    """struct bpf_link_info of a link to a cgroup."""

    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("prog_id", c_uint32),
        ("pad", c_uint32),
        ("cgroup_id", c_uint64),
        ("attach_type", c_uint32),
        ("pad2", c_uint32),
    )


_PRINT: Final = ctypes.CFUNCTYPE(c_int, c_int, c_char_p, c_void_p)
_Function = Callable[..., Any]


class Libbpf:
    """The functions, named as in libbpf."""

    def __init__(self, library: ctypes.CDLL) -> None:
        def get(name: str, result: Any, *arguments: Any) -> _Function:
            function: Any = getattr(library, name)
            function.restype = result
            function.argtypes = arguments
            found: _Function = function
            return found

        pointer, number = c_void_p, c_int
        self.libbpf_set_print = get("libbpf_set_print", pointer, pointer)
        self.libbpf_num_possible_cpus = get("libbpf_num_possible_cpus", number)
        self.libbpf_probe_bpf_map_type = get("libbpf_probe_bpf_map_type", number, number, pointer)
        self.libbpf_probe_bpf_prog_type = get("libbpf_probe_bpf_prog_type", number, number, pointer)

        self.bpf_obj_get = get("bpf_obj_get", number, c_char_p)
        self.bpf_obj_pin = get("bpf_obj_pin", number, number, c_char_p)
        self.bpf_obj_get_info_by_fd = get("bpf_obj_get_info_by_fd", number, number, pointer, POINTER(c_uint32))
        self.bpf_map_get_fd_by_id = get("bpf_map_get_fd_by_id", number, c_uint32)
        self.bpf_prog_get_fd_by_id = get("bpf_prog_get_fd_by_id", number, c_uint32)
        self.bpf_link_detach = get("bpf_link_detach", number, number)
        self.bpf_prog_attach = get("bpf_prog_attach", number, number, number, number, c_uint32)
        self.bpf_prog_detach2 = get("bpf_prog_detach2", number, number, number, number)
        self.bpf_prog_query = get(
            "bpf_prog_query", number, number, number, c_uint32, pointer, pointer, POINTER(c_uint32)
        )
        self.bpf_prog_load = get("bpf_prog_load", number, number, c_char_p, c_char_p, pointer, c_size_t, pointer)
        self.bpf_prog_test_run_opts = get("bpf_prog_test_run_opts", number, number, pointer)

        self.bpf_map_create = get(
            "bpf_map_create", number, number, c_char_p, c_uint32, c_uint32, c_uint32, POINTER(MapCreateOpts)
        )
        self.bpf_map_lookup_elem = get("bpf_map_lookup_elem", number, number, pointer, pointer)
        self.bpf_map_lookup_and_delete_elem = get("bpf_map_lookup_and_delete_elem", number, number, pointer, pointer)
        self.bpf_map_update_elem = get("bpf_map_update_elem", number, number, pointer, pointer, c_uint64)
        self.bpf_map_delete_elem = get("bpf_map_delete_elem", number, number, pointer)
        self.bpf_map_get_next_key = get("bpf_map_get_next_key", number, number, pointer, pointer)
        self.bpf_map_update_batch = get(
            "bpf_map_update_batch", number, number, pointer, pointer, POINTER(c_uint32), POINTER(BatchOpts)
        )
        self.bpf_map_lookup_batch = get(
            "bpf_map_lookup_batch",
            number,
            *(number, pointer, pointer, pointer, pointer, POINTER(c_uint32), POINTER(BatchOpts)),
        )

        self.bpf_object__open_file = get("bpf_object__open_file", pointer, c_char_p, pointer)
        self.bpf_object__load = get("bpf_object__load", number, pointer)
        self.bpf_object__close = get("bpf_object__close", None, pointer)
        self.bpf_object__next_program = get("bpf_object__next_program", pointer, pointer, pointer)
        self.bpf_object__next_map = get("bpf_object__next_map", pointer, pointer, pointer)
        self.bpf_program__name = get("bpf_program__name", c_char_p, pointer)
        self.bpf_program__fd = get("bpf_program__fd", number, pointer)
        self.bpf_program__type = get("bpf_program__type", number, pointer)
        self.bpf_program__attach_cgroup = get("bpf_program__attach_cgroup", pointer, pointer, number)
        self.bpf_map__name = get("bpf_map__name", c_char_p, pointer)
        self.bpf_map__fd = get("bpf_map__fd", number, pointer)
        self.bpf_map__is_internal = get("bpf_map__is_internal", ctypes.c_bool, pointer)
        self.bpf_link__pin = get("bpf_link__pin", number, pointer, c_char_p)
        self.bpf_link__destroy = get("bpf_link__destroy", number, pointer)

        self.btf__load_vmlinux_btf = get("btf__load_vmlinux_btf", pointer)
        self.btf__find_by_name_kind = get("btf__find_by_name_kind", c_int32, pointer, c_char_p, c_uint32)
        self.btf__free = get("btf__free", None, pointer)


@functools.cache
def libbpf() -> Libbpf:
    """The library.  Raises BpfError if it is not installed."""
    try:
        return Libbpf(ctypes.CDLL(NAME, use_errno=True))
    except (OSError, AttributeError) as error:
        raise BpfError(0, f"{NAME} (libbpf 1.0 or later) is missing: apt-get install libbpf1 ({error})") from error


def check(result: int, what: str) -> int:
    """The result if it is no error.  Raises BpfError with `what` was tried."""
    if result < 0:
        raise BpfError(-result, f"{what}: {os.strerror(-result)}")
    return result


def check_pointer(result: int | None, what: str) -> int:
    """The pointer if it is not NULL.  Raises BpfError."""
    if not result:
        code = ctypes.get_errno()
        raise BpfError(code, f"{what}: {os.strerror(code)}")
    return result


def info(descriptor: int, into: ctypes.Structure, what: str) -> None:
    """Fill in what the kernel knows about a map, program or link.  Raises BpfError."""
    size = c_uint32(ctypes.sizeof(into))
    check(libbpf().bpf_obj_get_info_by_fd(descriptor, ctypes.byref(into), ctypes.byref(size)), what)


@functools.cache
def possible_cpus() -> int:
    """How many values a per-CPU map has for a key."""
    return check(libbpf().libbpf_num_possible_cpus(), "number of possible CPUs")


@contextmanager
def messages(show: Callable[[PrintLevel, str], None]) -> Iterator[None]:
    """Give what libbpf prints, verifier logs among it, to `show` for a while; its setting is one for the process."""
    libc = ctypes.CDLL(None)
    libc.vasprintf.argtypes = (POINTER(c_void_p), c_char_p, c_void_p)
    libc.free.argtypes = (c_void_p,)

    def printed(level: int, text: bytes, arguments: int | None) -> int:
        # va_list is passed by address on the machines we know (an array on x86-64, a copied struct on arm64).
        formatted = c_void_p()
        if libc.vasprintf(ctypes.byref(formatted), text, arguments) >= 0 and formatted.value:
            try:
                show(PrintLevel(level), ctypes.string_at(formatted.value).decode(errors="replace"))
            finally:
                libc.free(formatted)
        return 0

    callback = _PRINT(printed)  # must live as long as libbpf may call it
    library = libbpf()
    before = library.libbpf_set_print(ctypes.cast(callback, c_void_p))
    try:
        yield
    finally:
        library.libbpf_set_print(before)
        del callback
