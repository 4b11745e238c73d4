"""The kernel's parser and framer compiled as ordinary code, and called in bulk: what they make of any bytes."""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bpf.build import reasons_header
from tests.conftest import REPOSITORY
from translator.reasons import Reason

NATIVE: Final = Path(__file__).parent / "native"
HEADERS: Final = REPOSITORY / "bpf" / "include"
BUILD: Final = REPOSITORY / "build" / "fuzz"
_MAX_FILLER: Final = 1 << 16

# Unaligned words are loaded on purpose, as on the machines that BPF runs on.  Comparisons are not traced: that takes
# two thirds of the time, and the mutator knows the words.
_SANITIZERS: Final = (
    *("-fsanitize=fuzzer,address,undefined", "-fno-sanitize=alignment", "-fno-sanitize-recover=all"),
    "-fno-sanitize-coverage=trace-cmp",
)


class NativeError(Exception):
    """The compiler is missing or refuses; the message says what to do."""


def missing() -> str | None:
    """What is not there for a build with the sanitizers, as a reason to skip; None if all is."""
    clang = shutil.which("clang-19")
    if clang is None:
        return "needs clang-19: make setup"
    runtime = subprocess.run(
        [clang, "-print-file-name=libclang_rt.fuzzer.a"], capture_output=True, text=True, check=True
    ).stdout.strip()
    folder = subprocess.run([clang, "-print-runtime-dir"], capture_output=True, text=True, check=True).stdout.strip()
    if Path(runtime).is_absolute() or list(Path(folder).parent.glob("*/libclang_rt.fuzzer*.a")):
        return None
    return "needs libclang-rt-19-dev: make setup"


def build_reader(headers: Path = HEADERS) -> Path:
    """The shared library that `Reader` loads.  Raises NativeError."""
    return _compile("reading.c", "reading.so", ("-O2", "-fPIC", "-shared"), headers)


def build_target(headers: Path = HEADERS) -> Path:
    """The libFuzzer program, with AddressSanitizer and UBSan.  Raises NativeError."""
    return _compile("target.c", "target", ("-O2", "-g", *_SANITIZERS), headers)


def _compile(source: str, name: str, options: tuple[str, ...], headers: Path) -> Path:
    clang = shutil.which("clang-19")
    if clang is None:
        raise NativeError("clang-19 is missing: run `make setup` as root once")
    reasons = reasons_header()
    inputs = (*sorted(headers.glob("*.h")), *sorted(NATIVE.glob("*.[ch]")))
    command = [
        *(clang, "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-Wno-sign-compare"),
        *("-fno-strict-aliasing", *options),
    ]
    digest = hashlib.sha256("\0".join([*command, reasons, *(file.read_text() for file in inputs)]).encode()).hexdigest()
    # In a folder of its own for all that it is made of, so that builds at the same time do not disturb each other.
    folder = BUILD / digest[:16]
    made = folder / name
    if made.exists():
        return made
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "xlb_reasons.h").write_text(reasons)
    part = folder / f"{name}.part"
    result = subprocess.run(
        [*command, f"-I{headers}", f"-I{folder}", f"-I{NATIVE}", str(NATIVE / source), "-o", str(part)],
        *(),
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        raise NativeError(f"{source} does not compile:\n{result.stderr}")
    return part.replace(made)


@dataclass(frozen=True, slots=True)
class Reading:
    """A request as the data path reads it: `struct xlb_head`, and where the framer is behind its last byte.

    `end`: offset behind the last byte that belongs to the request, as far as the bytes go.
    """

    reason: Reason
    relay: bool
    complete: bool
    more: bool
    head_len: int
    method: bytes
    target: bytes
    host: bytes
    chunked: bool
    length: int | None
    is_head: bool
    close: bool
    close_at: int
    phase: str
    rest: int
    end: int

    @property
    def forwarded(self) -> bool:
        """The kernel moves it to a pooled connection, of a backend or (with a reason) of Envoy."""
        return not self.relay and self.phase != "ERROR"

    @property
    def carried(self) -> bool:
        """The kernel alone decides about it."""
        return self.forwarded and self.reason is Reason.NONE

    @property
    def folder(self) -> str:
        """Where the corpus keeps such a request."""
        if self.carried:
            return "carried"
        return "pooled" if self.forwarded else "relayed"


@dataclass(frozen=True, slots=True)
class Response:
    """A response as the framer reads it."""

    phase: str
    status: int
    rest: int
    end: int


class Reader:
    """The library.  Not for several threads at once."""

    def __init__(self, library: Path | None = None) -> None:
        self._library: Any = ctypes.CDLL(str(library or build_reader()))
        names = ctypes.c_char_p(ctypes.addressof(ctypes.c_char.in_dll(self._library, "xlb_reading_fields"))).value
        assert names is not None
        self._struct: Any = type(
            "Fields", (ctypes.Structure,), {"_fields_": [(name, ctypes.c_uint64) for name in names.decode().split()]}
        )
        count = ctypes.c_uint64.in_dll(self._library, "xlb_reading_phases_n").value
        phases = (ctypes.c_char_p * count).in_dll(self._library, "xlb_reading_phases")
        self._phases = tuple((phase or b"").decode() for phase in phases)
        self._library.xlb_read_request.restype = None
        self._library.xlb_read_response.restype = None

    def request(self, data: bytes) -> Reading:
        """What the data path makes of a request that comes in one piece, `data` not being empty."""
        out = self._struct()
        self._library.xlb_read_request(data, ctypes.c_uint64(len(data)), ctypes.byref(out))
        return Reading(
            reason=Reason(out.reason),
            relay=bool(out.relay),
            complete=bool(out.complete),
            more=bool(out.more),
            head_len=out.head_len,
            method=data[: out.method_len],
            target=data[out.target : out.target + out.target_len],
            host=data[out.host : out.host + out.host_len],
            chunked=bool(out.chunked),
            length=out.length if out.has_length else None,
            is_head=bool(out.is_head),
            close=bool(out.close),
            close_at=out.close_at,
            phase=self._phases[out.phase],
            rest=out.rest,
            end=out.end,
        )

    def response(self, data: bytes, *, to_head: bool = False) -> Response:
        """Where the first response in these bytes ends."""
        out = self._struct()
        self._library.xlb_read_response(data, ctypes.c_uint64(len(data)), ctypes.c_int(to_head), ctypes.byref(out))
        return Response(self._phases[out.phase], out.status, out.rest, out.end)

    def completed(self, data: bytes) -> bytes | None:
        """A request that is forwarded, cut where it ends, or with the rest of its body; None if that is too large."""
        reading = self.request(data)
        data = data[: reading.end]
        for _ in range(8):
            if reading.phase == "DONE":
                return data
            filler = b"x" * min(reading.rest, _MAX_FILLER)
            endings: tuple[bytes, ...] = (b"\n", b"\r\n", b"\r\n" + filler, b"\n" + filler, b"0\r\n\r\n", b":\r\n\r\n")
            if reading.phase == "BODY":
                endings = (filler,)
            elif reading.phase == "CHUNK":
                endings = (filler[:-2] + b"\r\n0\r\n\r\n", b"\r\n0\r\n\r\n", b"\n0\r\n\r\n")
            for ending in endings:
                after = self.request(data + ending)
                if after.phase != "ERROR" and after.end == len(data) + len(ending):
                    data, reading = data + ending, after
                    break
            else:
                return None
            if reading.rest > _MAX_FILLER:
                return None
        return None
