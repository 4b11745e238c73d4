"""What the data path needs of the kernel, found out by trying: distributions backport, so versions say little."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bpf.libbpf import AttachType, BpfError, MapKind, ProgLoadOpts, ProgramKind, check, check_pointer, libbpf, messages
from bpf.maps import F_INNER_MAP, F_MMAPABLE, create_map

_BTF_KIND_STRUCT: Final = 4
_BTF_KIND_FUNC: Final = 12
_KERNEL_BTF: Final = Path("/sys/kernel/btf/vmlinux")
_LOG_SIZE: Final = 65536
_NO_HELPER: Final = ("invalid func ", "unknown func ", "cannot use helper")

# enum bpf_func_id
_MSG_REDIRECT_HASH: Final = 71
_SK_LOOKUP_TCP: Final = 84
_SK_STORAGE_GET: Final = 107
_GET_CURRENT_ANCESTOR_CGROUP_ID: Final = 123
_SKC_TO_TCP_SOCK: Final = 137
_LOOP: Final = 181

# Instructions (struct bpf_insn): opcode, registers, offset, immediate.
_MOV_R0: Final = 0xB7, 0
_MOV_R1: Final = 0xB7, 1
_MOV_R2: Final = 0xB7, 2
_CALL: Final = 0x85, 0
_CALL_KERNEL: Final = 0x85, 2 << 4  # BPF_PSEUDO_KFUNC_CALL
_EXIT: Final = 0x95, 0


@dataclass(frozen=True, slots=True)
class Missing:
    """A feature that is not there, the mainline version that has it, and what trying it gave."""

    feature: str
    since: str
    why: str


@dataclass(frozen=True, slots=True)
class _Probe:
    """`test` raises BpfError if the feature is missing."""

    feature: str
    since: str
    test: Callable[[], None]


def probe() -> tuple[Missing, ...]:
    """What is missing; nothing: the data path can be loaded.  Needs root; takes a few hundred milliseconds at most."""
    try:
        libbpf()
    except BpfError as error:
        return (Missing("libbpf", "libbpf 1.0", error.strerror or ""),)
    with messages(lambda level, text: None):  # what fails here is told by us
        return _run(_PROBES)


def _run(probes: Sequence[_Probe]) -> tuple[Missing, ...]:
    missing = []
    for one in probes:
        try:
            one.test()
        except BpfError as error:
            if error.errno == errno.EPERM:
                return (Missing("permission to use BPF", "5.8", "not permitted: run as root (CAP_BPF, CAP_NET_ADMIN)"),)
            missing.append(Missing(one.feature, one.since, error.strerror or ""))
    return tuple(missing)


def _answer(result: int, what: str) -> None:
    """Of libbpf_probe_*: 1 there, 0 not there, negative: cannot be told."""
    if check(result, what) == 0:
        raise BpfError(errno.ENOTSUP, f"the kernel has no {what}")


def _needs_permission() -> None:
    with create_map(MapKind.HASH, "xlb_probe", 4, 4, 1):
        pass


def _needs_cgroup2() -> None:
    lines = Path("/proc/self/mounts").read_text().splitlines()
    if not any(line.split()[2] == "cgroup2" for line in lines):
        raise BpfError(errno.ENOENT, "cgroup2 is not mounted: mount -t cgroup2 none /sys/fs/cgroup/unified")


def _needs_btf() -> None:
    if not _KERNEL_BTF.exists():
        raise BpfError(errno.ENOENT, f"no {_KERNEL_BTF}: the kernel was built without CONFIG_DEBUG_INFO_BTF")


def _needs_bpffs() -> None:
    if "\tbpf" not in Path("/proc/filesystems").read_text():
        raise BpfError(errno.ENODEV, "the kernel has no bpf file system")


def _helper(kind: ProgramKind, number: int) -> Callable[[], None]:
    def test() -> None:
        attach = AttachType.CGROUP_INET4_CONNECT if kind is ProgramKind.CGROUP_SOCK_ADDR else 0
        code, log = _verify(kind, _code((_CALL, number), (_EXIT, 0)), attach)
        # Without arguments every call is refused; what counts is what for.  (libbpf_probe_bpf_helper of libbpf before
        # 1.4 does not know the message that kernels from 6.8 on give.)
        if code < 0 and (not log or any(words in log for words in _NO_HELPER)):
            raise BpfError(-code if not log else errno.ENOTSUP, f"no helper {number} for {kind.name} programs")

    return test


def _map(kind: MapKind) -> Callable[[], None]:
    def test() -> None:
        _answer(libbpf().libbpf_probe_bpf_map_type(kind, None), f"map type {kind.name}")

    return test


def _program(kind: ProgramKind) -> Callable[[], None]:
    def test() -> None:
        _answer(libbpf().libbpf_probe_bpf_prog_type(kind, None), f"program type {kind.name}")

    return test


def _array(flags: int) -> Callable[[], None]:
    def test() -> None:
        with create_map(MapKind.ARRAY, "xlb_probe", 4, 64, 1, flags):
            pass

    return test


def _code(*instructions: tuple[tuple[int, int], int]) -> bytes:
    return b"".join(struct.pack("=BBhi", code, registers, 0, value) for (code, registers), value in instructions)


def _verify(kind: ProgramKind, code: bytes, attach_type: int) -> tuple[int, str]:
    """Have the verifier look at a program: 0 or a negative errno, and its log."""
    log = ctypes.create_string_buffer(_LOG_SIZE)
    options = ProgLoadOpts(
        sz=ctypes.sizeof(ProgLoadOpts),
        expected_attach_type=attach_type,
        log_level=1,
        log_size=_LOG_SIZE,
        log_buf=ctypes.addressof(log),
    )
    instructions = ctypes.create_string_buffer(code, len(code))
    count = len(code) // 8
    result: int = libbpf().bpf_prog_load(kind, b"xlb_probe", b"GPL", instructions, count, ctypes.byref(options))
    if result >= 0:
        os.close(result)
    return min(result, 0), log.value.decode(errors="replace")


def _load(kind: ProgramKind, code: bytes, what: str, attach_type: int = 0) -> None:
    """Raises BpfError if the verifier refuses the program."""
    check(_verify(kind, code, attach_type)[0], what)


def _needs_getpeername() -> None:
    code = _code((_MOV_R0, 1), (_EXIT, 0))
    kind, attach = ProgramKind.CGROUP_SOCK_ADDR, AttachType.CGROUP_INET4_GETPEERNAME
    _load(kind, code, "load a program for cgroup/getpeername4", attach)


def _needs_rdonly_cast() -> None:
    library = libbpf()
    types = check_pointer(library.btf__load_vmlinux_btf(), "read the kernel's BTF")
    try:
        function = library.btf__find_by_name_kind(types, b"bpf_rdonly_cast", _BTF_KIND_FUNC)
        check(function, "find bpf_rdonly_cast in the kernel's BTF")
        wanted = check(library.btf__find_by_name_kind(types, b"tcp_sock", _BTF_KIND_STRUCT), "find struct tcp_sock")
    finally:
        library.btf__free(types)
    code = _code((_MOV_R1, 0), (_MOV_R2, wanted), (_CALL_KERNEL, function), (_MOV_R0, 0), (_EXIT, 0))
    _load(ProgramKind.SK_MSG, code, "load a program that calls bpf_rdonly_cast")


_PROBES: Final = (
    _Probe("permission to use BPF", "5.8", _needs_permission),
    _Probe("cgroup2", "4.5", _needs_cgroup2),
    _Probe("bpffs", "4.4", _needs_bpffs),
    _Probe("BTF of the kernel", "5.4", _needs_btf),
    _Probe("socket hash", "4.18", _map(MapKind.SOCKHASH)),
    _Probe("sk_msg redirect", "4.20", _helper(ProgramKind.SK_MSG, _MSG_REDIRECT_HASH)),
    _Probe("bpf_sk_lookup_tcp in cgroup hooks", "4.20", _helper(ProgramKind.CGROUP_SOCK_ADDR, _SK_LOOKUP_TCP)),
    _Probe("cgroup getsockopt hook", "5.3", _program(ProgramKind.CGROUP_SOCKOPT)),
    _Probe("mmap of arrays", "5.5", _array(F_MMAPABLE)),
    _Probe(
        "bpf_get_current_ancestor_cgroup_id in cgroup hooks",
        "5.7",
        _helper(ProgramKind.CGROUP_SOCK_ADDR, _GET_CURRENT_ANCESTOR_CGROUP_ID),
    ),
    _Probe("socket storage in sk_msg", "5.8", _helper(ProgramKind.SK_MSG, _SK_STORAGE_GET)),
    _Probe("cgroup getpeername hooks", "5.8", _needs_getpeername),
    _Probe("ring buffer", "5.8", _map(MapKind.RINGBUF)),
    _Probe("bpf_skc_to_tcp_sock", "5.9", _helper(ProgramKind.SK_MSG, _SKC_TO_TCP_SOCK)),
    _Probe("inner arrays of different sizes", "5.10", _array(F_INNER_MAP | F_MMAPABLE)),
    _Probe("syscall programs", "5.14", _program(ProgramKind.SYSCALL)),
    _Probe("bpf_loop", "5.17", _helper(ProgramKind.SK_MSG, _LOOP)),
    _Probe("bpf_rdonly_cast", "6.2", _needs_rdonly_cast),
)
