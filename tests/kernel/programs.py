"""The kernel's parser, matcher and framer as functions: bpf/build/xlb_test.bpf.o, run by BPF_PROG_TEST_RUN."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any, Final, Self

from bpf.layout import Layouts, load
from bpf.maps import F_INNER_MAP, F_MMAPABLE, Map, MapKind, create_map
from bpf.objects import load_object
from tests.conftest import REPOSITORY
from translator.image import CELL
from translator.reasons import Reason
from translator.request import Request

OBJECT: Final = REPOSITORY / "bpf" / "build" / "xlb_test.bpf.o"
SEED: Final = 0x1234_5678_9ABC_DEF0
_SLOT: Final = 0
# Short rounds, so that some of them are not interrupted.
_REPEAT: Final = 1000
_ROUNDS: Final = 100


@dataclass(frozen=True, slots=True)
class Line:
    """A header line as the parser has cut it out."""

    name: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class Head:
    """`struct xlb_head`, texts instead of offsets; `reason_line` is None for the request line."""

    reason: Reason
    reason_line: int | None
    relay: bool
    complete: bool
    more: bool
    head_len: int
    method: bytes
    target: bytes
    path: bytes
    host: bytes
    host_name: bytes
    close_at: int
    close: bool
    chunked: bool
    length: int | None
    is_head: bool
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Decided:
    """`struct xlb_decision`: `route` and `cluster` are RouteRule.index and the position in the sorted names."""

    reason: Reason
    route: int | None
    cluster: int | None


@dataclass(frozen=True, slots=True)
class Frame:
    """`struct xlb_frame`: where in a message a framer is; `phase` and `flags` by their names without the prefix."""

    phase: str
    flags: frozenset[str]
    status: int
    rest: int


class Programs:
    """The loaded object.  Not for several threads at once: there is one scratch memory."""

    def __init__(self) -> None:
        self.layouts: Layouts = load(OBJECT)
        self._object = load_object(OBJECT)
        self._programs = {name: self._object.program(name) for name in self._object.programs}
        # Views keep the mapped memory alive.
        self._scratch: Any = self._mapped("xlb_test_scratch", "xlb_scratch")
        self._framer: Any = self._mapped("xlb_test_framer", "xlb_frame")
        self._images = self._object.map("xlb_test_images")
        self._image: bytes = b""
        self._phases = {number: name for name, number in self.layouts.enum("xlb_phase").items()}
        self._flags = self.layouts.enum("xlb_frame_flags")

    def _mapped(self, name: str, struct: str) -> Any:
        with self._object.map(name) as opened:
            return self.layouts.struct(struct).from_buffer(opened.mmap(writable=True))

    def _run(self, name: str, **inputs: int) -> Any:
        context: Any = self.layouts.struct("xlb_test")(slot=_SLOT, **inputs)
        result = self._programs[name].run(context)
        assert result == 0, f"{name} returned {result}"
        return context

    def verified_instructions(self) -> dict[str, int]:
        """What the verifier needed for each program, subprograms that it checks by themselves included."""
        return {name: program.facts().verified_instructions for name, program in self._programs.items()}

    # ---- parser

    def put(self, data: bytes, size: int | None = None) -> None:
        """Write bytes where the programs read; `size` of them count, the others are what an earlier message left."""
        maximum = self.layouts.constants()["XLB_MAX_HEAD"]
        ctypes.memmove(self._scratch.buf, data, min(len(data), maximum))
        self._scratch.size = min(len(data) if size is None else size, maximum)

    def head(self, data: bytes, size: int | None = None, seed: int = SEED) -> Head:
        """What xlb_parse_head makes of a message that begins with these bytes."""
        self.put(data, size)
        self._scratch.seed = seed
        self._run("xlb_test_head")
        return self._read_head(data)

    def _read_head(self, data: bytes) -> Head:
        head = self._scratch.head
        return Head(
            reason=Reason(head.reason),
            reason_line=None if head.reason_line == 0xFFFFFFFF else head.reason_line,
            relay=bool(head.relay),
            complete=bool(head.complete),
            more=bool(head.more),
            head_len=head.head_len,
            method=data[: head.method_len],
            target=data[head.target : head.target + head.target_len],
            path=data[head.target : head.target + head.path_len],
            host=data[head.host : head.host + head.host_len],
            host_name=data[head.host : head.host + head.host_name_len],
            close_at=head.close_at,
            close=bool(head.close),
            chunked=bool(head.chunked),
            length=head.length if head.has_length else None,
            is_head=bool(head.is_head),
            lines=tuple(
                Line(
                    data[line.name : line.name + line.name_len],
                    data[line.value : line.value + line.value_len],
                )
                for line in self._scratch.line[: head.nlines]
            ),
        )

    def path_hash(self, length: int) -> int:
        """The running hash of the path of the last head, after its first bytes."""
        return int(self._scratch.path_hash[length])

    # ---- matcher

    def use(self, image: bytes) -> None:
        """Put an image in force."""
        with create_map(
            MapKind.ARRAY, "xlb_test_image", 4, CELL, len(image) // CELL, F_INNER_MAP | F_MMAPABLE
        ) as inner:
            with inner.mmap(writable=True) as cells:
                cells[: len(image)] = image
            self._replace(inner)
        self._image = image

    def _replace(self, inner: Map) -> None:
        self._images.update(_SLOT.to_bytes(4, "little"), inner.fd.to_bytes(4, "little"))

    def match(self, data: bytes, random: int = 0) -> Decided:
        """What the kernel does with a request: its head is parsed, then matched over the image in force."""
        header = self._cell("xlb_image_header", 0)
        self.head(data, seed=header.seed)
        decision = self._run("xlb_test_match", random=random).decision
        cluster = self._cell("xlb_cluster", decision.cluster).index if decision.cluster else None
        route = None if decision.route == 0xFFFFFFFF else decision.route
        return Decided(Reason(decision.reason), route, cluster)

    def _cell(self, struct: str, number: int) -> Any:
        return self.layouts.struct(struct).from_buffer_copy(self._image, number * CELL)

    # ---- framer

    def begin_response(self) -> None:
        """The next bytes fed begin a response."""
        ctypes.memset(ctypes.addressof(self._framer), 0, ctypes.sizeof(self._framer))

    def begin_body(self, length: int | None) -> None:
        """The next bytes fed are the body of a request: of a length, or chunked."""
        self.begin_response()
        name = "XLB_PHASE_CHUNK_SIZE" if length is None else "XLB_PHASE_BODY"
        self._framer.phase = self.layouts.enum("xlb_phase")[name]
        self._framer.rest = length or 0

    def feed(self, piece: bytes, *, response: bool = True, to_head: bool = False) -> int:
        """How many bytes of a piece the framer takes."""
        self.put(piece)
        context = self._run("xlb_test_frame", len=len(piece), response=response, head_request=to_head)
        return int(context.consumed)

    def skip(self, count: int) -> int:
        """How many of these bytes the framer lets pass without a look."""
        return int(self._run("xlb_test_frame", skip=count).skip)

    def frame(self) -> Frame:
        """Where the framer is."""
        found = self._framer
        return Frame(
            self._phases[found.phase].removeprefix("XLB_PHASE_"),
            frozenset(name.removeprefix("XLB_FRAME_") for name, bit in self._flags.items() if found.flags & bit),
            found.status,
            found.rest,
        )

    # ---- measurements: time of a run in ns, the best of several means

    def head_ns(self, data: bytes) -> float:
        """Parsing the head of a request."""
        self.head(data)
        return self._best("xlb_test_head_ns")

    def match_ns(self, data: bytes) -> float:
        """Matching a request, once its head is parsed, over the image in force."""
        self.match(data)
        return self._best("xlb_test_match_ns")

    def frame_ns(self, data: bytes) -> float:
        """Framing a response in one piece."""
        self.put(data)
        return self._best("xlb_test_frame_ns", len=len(data))

    def _best(self, name: str, **inputs: int) -> float:
        return min(float(self._run(name, repeat=_REPEAT, **inputs).ns) for _ in range(_ROUNDS)) / _REPEAT

    def close(self) -> None:
        for program in self._programs.values():
            program.close()
        self._images.close()
        self._object.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def raw(request: Request) -> bytes:
    """A request on the wire; values as they are, with the blanks around them."""
    lines = [("host", request.host), *request.headers]
    text = "".join(f"{name}: {value}\r\n" for name, value in lines)
    return f"{request.method} {request.path} HTTP/1.1\r\n{text}\r\n".encode("latin-1")
