"""BPF programs by descriptor, and running one with BPF_PROG_TEST_RUN."""

from __future__ import annotations

import ctypes
import os
from ctypes import byref
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from bpf.libbpf import ProgInfo, ProgramKind, TestRunOpts, check, info, libbpf


@dataclass(frozen=True, slots=True)
class ProgramFacts:
    """What the kernel tells about a loaded program; name has at most 15 characters, tag is 8 bytes."""

    id: int
    name: str
    kind: ProgramKind
    tag: bytes
    verified_instructions: int


class Program:
    """An open program.  Every method raises BpfError if the kernel refuses.  Not for several threads at once."""

    def __init__(self, fd: int, what: str = "program") -> None:
        """Takes over the descriptor; `what` names it in errors."""
        self._fd = fd
        self._what = f"run {what}"
        self._run = libbpf().bpf_prog_test_run_opts
        # Kept, so that the keeper's many calls cost no more than they must.
        self._options = TestRunOpts(sz=ctypes.sizeof(TestRunOpts))
        self._pointer = byref(self._options)

    @classmethod
    def open(cls, path: Path) -> Self:
        """A pinned program.  Raises BpfError."""
        return cls(check(libbpf().bpf_obj_get(bytes(path)), f"open {path}"), path.name.removeprefix("prog_"))

    @classmethod
    def from_id(cls, number: int) -> Self:
        """A program by its id.  Raises BpfError."""
        return cls(check(libbpf().bpf_prog_get_fd_by_id(number), f"open program {number}"), f"program {number}")

    @property
    def fd(self) -> int:
        """The descriptor.  Raises ValueError after close()."""
        if self._fd < 0:
            raise ValueError(f"{self._what}: it is closed")
        return self._fd

    def run(self, context: bytearray | ctypes.Structure) -> int:
        """Run a SEC("syscall") program once; the context is changed in place.  Returns what it returned, signed."""
        options = self._options
        if isinstance(context, bytearray):
            size = len(context)
            view = (ctypes.c_char * size).from_buffer(context)
            options.ctx_in = ctypes.addressof(view)
        else:
            size = ctypes.sizeof(context)
            options.ctx_in = ctypes.addressof(context)
        # ctx_out must stay NULL: for these programs the kernel copies back into ctx_in (bpf_prog_test_run_syscall).
        options.ctx_size_in = size
        options.retval = 0
        result = self._run(self.fd, self._pointer)
        if result < 0:
            check(result, self._what)
        return ctypes.c_int32(options.retval).value

    def test_run(
        self, data_in: bytes, data_out_size: int = 0, repeat: int = 1, *, context: bytes = b""
    ) -> tuple[int, bytes, int]:
        """Run a program of another type on data.

        :param data_out_size: room for the data as the program leaves it; too little is ENOSPC
        :param context: for those types that take one
        :returns: what the program returned (unsigned), the data, mean duration of a run in ns
        """
        data = ctypes.create_string_buffer(data_in, len(data_in)) if data_in else None
        output = ctypes.create_string_buffer(data_out_size) if data_out_size else None
        given = ctypes.create_string_buffer(context, len(context)) if context else None
        options = TestRunOpts(
            sz=ctypes.sizeof(TestRunOpts),
            data_in=ctypes.addressof(data) if data is not None else None,
            data_size_in=len(data_in),
            data_out=ctypes.addressof(output) if output is not None else None,
            data_size_out=data_out_size,
            ctx_in=ctypes.addressof(given) if given is not None else None,
            ctx_size_in=len(context),
            repeat=repeat,
        )
        check(self._run(self.fd, byref(options)), self._what)
        left = output.raw[: options.data_size_out] if output is not None else b""
        return options.retval, left, options.duration

    def facts(self) -> ProgramFacts:
        """What the kernel tells about it.  Raises BpfError."""
        found = ProgInfo()
        info(self.fd, found, "read program info")
        return ProgramFacts(
            found.id, found.name.decode(), ProgramKind(found.type), bytes(found.tag), found.verified_insns
        )

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
