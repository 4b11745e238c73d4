"""A compiled object: opened, loaded into the kernel, and what the verifier says if it will not have it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Final, Self

from bpf.libbpf import BpfError, PrintLevel, ProgramKind, check, check_pointer, libbpf, messages
from bpf.maps import Map
from bpf.program import Program

LOG_VARIABLE: Final = "XLB_LOG"
_TOO_LARGE: Final = "BPF program is too large"
_MEANINGFUL: Final = 200  # characters of one line of a message


class LoadError(Exception):
    """The data path cannot be loaded or opened: one line, with what the verifier said last."""


class Log:
    """What libbpf printed while something was loaded; with XLB_LOG=debug it goes to standard error as well."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._all = os.environ.get(LOG_VARIABLE, "").lower() == "debug"

    def show(self, level: PrintLevel, text: str) -> None:
        """Take one message of any number of lines."""
        if self._all:
            sys.stderr.write(text)
        if level is PrintLevel.WARN:
            self._lines.extend(text.splitlines())

    def summary(self) -> str:
        """One line: of a verifier log its last source line, instruction and complaint, else libbpf's last warnings."""
        return summary(self._lines)


def summary(lines: list[str]) -> str:
    """See Log.summary."""
    marks = [at for at, line in enumerate(lines) if "BEGIN PROG LOAD LOG" in line]
    if not marks:
        return "; ".join(line.removeprefix("libbpf: ").strip()[:_MEANINGFUL] for line in lines[-3:])
    # The first program that fails is the last that is tried; its name is in the line before the log.
    named = re.search(r"prog '([^']+)'", lines[marks[-1]])
    log: list[str] = []
    for line in lines[marks[-1] + 1 :]:
        if "END PROG LOAD LOG" in line:
            break
        # The verifier gives up in the middle of a line.
        instructions, too_large, rest = line.partition(_TOO_LARGE)
        log.extend(part.strip() for part in (instructions, too_large + rest))
    source = instruction = complaint = ""
    for line in log:
        if line.startswith(";"):
            source = line.lstrip("; ")
        elif re.match(r"\d+: \([0-9a-f]{2}\)", line):
            instruction = line
        elif line and not _is_noise(line):
            complaint = line
    parts = [f"{named[1]}:" if named else "", complaint[:_MEANINGFUL] or "no complaint in the log"]
    if instruction:
        parts.append(f"at {instruction[:_MEANINGFUL]}")
    if source:
        parts.append(f"in `{source[:_MEANINGFUL]}`")
    return " ".join(part for part in parts if part)


def _is_noise(line: str) -> bool:
    """States, statistics and jumps between paths in a verifier log."""
    return bool(
        re.match(
            r"processed \d+ insns|verification time|stack depth|(from )?\d+( to \d+)?:|R\d+(_w)?=|last_idx|first_idx"
            r"|regs=|parent |mark_precise|propagating|func#|caller:|callee:|returning from|to caller"
            r"|arg#|Validating|Func#|live regs",
            line,
        )
    )


class BpfObject:
    """An object file opened by libbpf.  Maps and programs given by it are the caller's to close."""

    def __init__(self, path: Path) -> None:
        """Open and parse it; nothing gets into the kernel yet.  Raises LoadError."""
        self._library = libbpf()
        self._path = path
        self._loaded = False
        self._handle = 0
        if not path.exists():
            raise LoadError(f"{path} is missing: run `make build`")
        log = Log()
        try:
            with messages(log.show):
                self._handle = check_pointer(
                    self._library.bpf_object__open_file(bytes(path), None), "bpf_object__open_file"
                )
        except BpfError as error:
            raise LoadError(f"{path}: {error.strerror}: {log.summary()}") from error
        self._programs = MappingProxyType(
            {
                self._library.bpf_program__name(program).decode(): program
                for program in self._each(self._library.bpf_object__next_program)
            }
        )
        self._maps = MappingProxyType(
            {
                self._library.bpf_map__name(entry).decode(): entry
                for entry in self._each(self._library.bpf_object__next_map)
                # .rodata, .bss and so on: the programs keep them, nobody opens them
                if not self._library.bpf_map__is_internal(entry)
            }
        )

    def _each(self, following: Callable[[int, int | None], int | None]) -> Iterator[int]:
        entry: int | None = None
        while entry := following(self._handle, entry):
            yield entry

    @property
    def programs(self) -> Mapping[str, ProgramKind]:
        """Names and types of the programs, as in the source.  Raises LoadError for a type that is not in our enum."""
        found = {}
        for name, entry in self._programs.items():
            number = self._library.bpf_program__type(entry)
            try:
                found[name] = ProgramKind(number)
            except ValueError as error:
                raise LoadError(f"program {name}: type {number} is not known to bpf/libbpf.py") from error
        return found

    @property
    def maps(self) -> tuple[str, ...]:
        """Names of the maps."""
        return tuple(self._maps)

    def load(self) -> None:
        """Make the maps and have the programs verified.  Raises LoadError."""
        log = Log()
        with messages(log.show):
            result = self._library.bpf_object__load(self._handle)
        if result < 0:
            debug = f" ({LOG_VARIABLE}=debug shows the whole log)"
            raise LoadError(f"{self._path.name}: {os.strerror(-result)}: {log.summary()}{debug}")
        self._loaded = True

    def map(self, name: str) -> Map:
        """A map of the loaded object.  Raises LoadError if it has none of that name."""
        if name not in self._maps:
            raise LoadError(f"{self._path.name} has no map {name}")
        return Map.duplicate(check(self._library.bpf_map__fd(self._maps[name]), f"map {name}"))

    def program(self, name: str) -> Program:
        """A program of the loaded object.  Raises LoadError if it has none of that name."""
        return Program(os.dup(self.program_fd(name)), name)

    def program_fd(self, name: str) -> int:
        """The descriptor of a program; it stays this object's.  Raises LoadError."""
        if name not in self._programs:
            raise LoadError(f"{self._path.name} has no program {name}")
        return check(self._library.bpf_program__fd(self._programs[name]), f"program {name}")

    def attach_to_cgroup(self, name: str, cgroup_fd: int, pin: Path) -> None:
        """Attach a program by a link that stays as long as its pin.  Raises BpfError."""
        what = f"attach {name}"
        log = Log()
        with messages(log.show):
            link = check_pointer(self._library.bpf_program__attach_cgroup(self._programs[name], cgroup_fd), what)
        try:
            check(self._library.bpf_link__pin(link, bytes(pin)), f"pin {pin}")
        finally:
            self._library.bpf_link__destroy(link)  # frees our handle; what is pinned stays attached

    def close(self) -> None:
        """Let go of all that is neither pinned nor in use; again: nothing."""
        if self._handle:
            self._library.bpf_object__close(self._handle)
            self._handle = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def load_object(path: Path) -> BpfObject:
    """Open and load an object without attaching or pinning anything, for tests.  Raises LoadError."""
    opened = BpfObject(path)
    try:
        opened.load()
    except BaseException:
        opened.close()
        raise
    return opened
