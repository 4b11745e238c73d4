"""Layouts from BTF: every kind of member a shared struct may have, and what is refused."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bpf import layout
from bpf.build import layouts_header, reasons_header
from bpf.layout import LayoutError, Layouts
from translator.reasons import Reason

SOURCE = """
typedef unsigned char __u8; typedef unsigned short __u16; typedef unsigned int __u32; typedef unsigned long long __u64;
struct address { __u8 b[16]; };
enum kind { KIND_A = 0, KIND_B = 7 };
enum sign { SIGN_MINUS = -3, SIGN_PLUS = 3 };
enum wide { WIDE = 0x100000000ULL };
enum xlb_constants { xlb_constant_LIMIT = 64, xlb_constant_MORE = 65 };
struct outer {
	__u64 number;
	const __u32 words[3];
	enum kind kind;
	struct { __u32 x; __u16 y[2]; } entry[2];
	union { __u32 one; __u8 bytes[4]; };
	char name[5];
	_Bool yes;
	volatile short minus;
	struct address address;
	struct outer *next;
	enum sign sign;
	enum xlb_constants limit;
	enum wide wide;
};
struct bits { __u32 a : 3; __u32 b : 29; };
struct packed { __u8 a; __u32 b; } __attribute__((packed));
int everything(struct outer *a, struct bits *b, struct packed *c) { return a && b && c; }
"""


def _compile(folder: Path, source: str, *options: str) -> Path:
    clang = shutil.which("clang-19")
    if clang is None:
        pytest.skip("needs clang-19: make setup as root")
    written, made = folder / "snippet.c", folder / "snippet.o"
    written.write_text(source)
    subprocess.run([clang, "-O2", "-target", "bpf", *options, "-c", str(written), "-o", str(made)], check=True)
    return made


@pytest.fixture(scope="module")
def snippet(tmp_path_factory: pytest.TempPathFactory) -> Layouts:
    return layout.load(_compile(tmp_path_factory.mktemp("layout"), SOURCE, "-g"))


def test_members_of_every_kind(snippet: Layouts) -> None:
    outer: Any = snippet.struct("outer")
    value = outer(number=1 << 63, kind=7, name=b"abc", yes=True, minus=-2, sign=-3, wide=1 << 32, one=0x01020304)
    value.words[2] = 9
    value.entry[1].y[1] = 5
    value.address.b[15] = 255
    again = outer.from_buffer_copy(bytes(value))
    assert (again.number, again.kind, again.name, again.yes, again.minus) == (1 << 63, 7, b"abc", True, -2)
    assert (list(again.words), again.entry[1].y[1], again.address.b[15]) == ([0, 0, 9], 5, 255)
    assert (sorted(again.bytes), again.sign, again.wide) == ([1, 2, 3, 4], -3, 1 << 32)


def test_places_are_those_of_the_compiler(snippet: Layouts) -> None:
    outer: Any = snippet.struct("outer")
    places = [
        getattr(outer, name).offset for name in ("number", "words", "kind", "entry", "one", "name", "yes", "minus")
    ]
    assert places == [0, 8, 20, 24, 40, 44, 49, 50]
    assert ctypes.sizeof(outer) == 96


def test_a_name_has_one_type(snippet: Layouts) -> None:
    outer: Any = snippet.struct("outer")
    assert snippet.struct("outer") is outer
    assert type(outer().address) is snippet.struct("address")


def test_unknown_fields_are_refused(snippet: Layouts) -> None:
    value: Any = snippet.struct("address")()
    with pytest.raises(AttributeError):
        value.typo = 1


def test_enums(snippet: Layouts) -> None:
    assert dict(snippet.enum("kind")) == {"KIND_A": 0, "KIND_B": 7}
    assert dict(snippet.enum("sign")) == {"SIGN_MINUS": -3, "SIGN_PLUS": 3}
    assert dict(snippet.enum("wide")) == {"WIDE": 1 << 32}
    assert dict(snippet.constants()) == {"LIMIT": 64, "MORE": 65}


@pytest.mark.parametrize(("name", "words"), [("bits", "bit fields"), ("packed", "packed"), ("nothing", "no struct")])
def test_refused_structs(snippet: Layouts, name: str, words: str) -> None:
    with pytest.raises(LayoutError, match=words):
        snippet.struct(name)


def test_unknown_enum(snippet: Layouts) -> None:
    with pytest.raises(LayoutError, match="no enum outer"):
        snippet.enum("outer")


def test_no_object(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match="make build"):
        layout.load(tmp_path / "missing.o")


def test_not_an_object(tmp_path: Path) -> None:
    (tmp_path / "text.o").write_text("text")
    with pytest.raises(LayoutError, match="not a 64-bit ELF"):
        layout.load(tmp_path / "text.o")


def test_object_without_btf(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match="no BTF"):
        layout.load(_compile(tmp_path, SOURCE))


def test_every_shared_type_is_in_the_compiled_object(layouts: Layouts) -> None:
    for name in layouts.structs():
        if name.startswith("xlb_"):
            layouts.struct(name)
    assert ctypes.sizeof(layouts.struct("xlb_image_header")) == layouts.constants()["XLB_CELL"]
    assert {"xlb_request", "xlb_event", "xlb_own", "xlb_destination"} <= set(layouts.structs())
    assert layouts.enum("xlb_op")["XLB_OP_QUEUE"] == 1
    assert dict(layouts.enum("xlb_reason")) == {f"XLB_REASON_{reason.name}": int(reason) for reason in Reason}


def test_header_that_mentions_all_types() -> None:
    header = layouts_header(
        "enum {\n\tXLB_A = 1, /* enum { XLB_NOT = 2 } */\n\tXLB_B,\n};\n"
        "enum xlb_kind {\n\tXLB_KIND_A = 1,\n};\nstruct xlb_one {\n\tstruct xlb_inner {\n\t\tint a;\n\t} b;\n};\n"
    )
    assert "\txlb_constant_XLB_A = XLB_A,\n\txlb_constant_XLB_B = XLB_B,\n};" in header
    assert "\tenum xlb_kind m_enum_xlb_kind;\n\tstruct xlb_one m_struct_xlb_one;\n" in header
    assert "XLB_NOT" not in header


def test_header_of_reasons() -> None:
    assert "\tXLB_REASON_NONE = 0,\n" in reasons_header()
    assert reasons_header().count("XLB_REASON_") == len(Reason)
