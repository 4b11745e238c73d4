"""Layouts of the C structs, as ctypes types, from the BTF of a compiled object: nothing is written twice.

BTF (Documentation/bpf/btf.rst in the kernel's tree) is a list of types that refer to each other by number, and their
names.  `bpf.build` sees to it that all types of xlb_types.h are in it.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

INSTALLED: Final = Path(__file__).resolve().parent / "build" / "xlb.bpf.o"
CONSTANTS: Final = "xlb_constants"  # the enum that repeats the anonymous ones, each name with the prefix
CONSTANT_PREFIX: Final = "xlb_constant_"

_ELF64_MAGIC: Final = b"\x7fELF\x02"
_BTF_MAGIC: Final = 0xEB9F


class LayoutError(Exception):
    """The object is not there, has no BTF, or lacks what was asked for; the message says what to do."""


class _Kind(IntEnum):
    VOID = 0
    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


# Bytes after the 12 that all types have: fixed ones, and those of each of the `count` members.
_FIXED: Final = MappingProxyType({_Kind.INT: 4, _Kind.ARRAY: 12, _Kind.VAR: 4, _Kind.DECL_TAG: 4})
_PER_MEMBER: Final = MappingProxyType(
    {
        _Kind.STRUCT: 12,
        _Kind.UNION: 12,
        _Kind.ENUM: 8,
        _Kind.FUNC_PROTO: 8,
        _Kind.DATASEC: 12,
        _Kind.ENUM64: 12,
    }
)
_ALIASES: Final = frozenset({_Kind.TYPEDEF, _Kind.VOLATILE, _Kind.CONST, _Kind.RESTRICT, _Kind.TYPE_TAG})
_SIGNED: Final = 1  # BTF_INT_SIGNED
_CHAR: Final = 2  # BTF_INT_CHAR: clang does not set it, so the name counts too
_BOOL: Final = 4  # BTF_INT_BOOL
_INTEGERS: Final = MappingProxyType(
    {
        (1, False): ctypes.c_uint8,
        (2, False): ctypes.c_uint16,
        (4, False): ctypes.c_uint32,
        (8, False): ctypes.c_uint64,
        (1, True): ctypes.c_int8,
        (2, True): ctypes.c_int16,
        (4, True): ctypes.c_int32,
        (8, True): ctypes.c_int64,
    }
)


@dataclass(frozen=True, slots=True)
class _Type:
    kind: _Kind
    name: str
    flag: bool  # of a struct: it has bit fields; of an enum: its values are signed
    count: int
    size: int  # bytes; of those that refer to one other type: its number
    rest: bytes  # what follows the common 12 bytes


@dataclass(frozen=True, slots=True)
class _Member:
    name: str
    number: int  # of its type
    bit_offset: int
    bit_size: int  # 0: not a bit field


def _btf_section(data: bytes, path: Path) -> bytes:
    """Content of the ELF section .BTF.  Raises LayoutError."""
    if not data.startswith(_ELF64_MAGIC):
        raise LayoutError(f"{path} is not a 64-bit ELF object: run `make build`")
    (table,) = struct.unpack_from("=Q", data, 40)
    entry_size, count, names_index = struct.unpack_from("=HHH", data, 58)
    # sh_name, sh_type, sh_flags, sh_addr, sh_offset, sh_size
    sections = [struct.unpack_from("=IIQQQQ", data, table + index * entry_size) for index in range(count)]
    names = sections[names_index][4]
    for name, _, _, _, offset, size in sections:
        if data[names + name : data.index(0, names + name)] == b".BTF":
            return data[offset : offset + size]
    raise LayoutError(f"{path} has no BTF: compile it with `make build`")


class _Btf:
    """The types of one .BTF section by number; number 0 is void."""

    def __init__(self, data: bytes, path: Path) -> None:
        """Raises LayoutError."""
        # magic, version, flags, hdr_len, type_off, type_len, str_off, str_len
        magic, _, _, header, types, types_size, strings, _ = struct.unpack_from("=HBBIIIII", data)
        if magic != _BTF_MAGIC:
            raise LayoutError(f"{path} has BTF of another byte order: compile it on this machine with `make build`")
        self._data = data
        self._strings = header + strings
        self.types = [_Type(_Kind.VOID, "", False, 0, 0, b"")]
        at, end = header + types, header + types + types_size
        while at < end:
            name, info, size = struct.unpack_from("=III", data, at)
            try:
                kind = _Kind(info >> 24 & 0x1F)
            except ValueError as error:
                raise LayoutError(f"{path} has BTF of an unknown kind ({error}): add it to bpf/layout.py") from error
            count = info & 0xFFFF
            rest = data[at + 12 : at + 12 + _FIXED.get(kind, 0) + count * _PER_MEMBER.get(kind, 0)]
            self.types.append(_Type(kind, self._text(name), bool(info >> 31), count, size, rest))
            at += 12 + len(rest)

    def _text(self, offset: int) -> str:
        start = self._strings + offset
        return self._data[start : self._data.index(0, start)].decode()

    def resolve(self, number: int) -> _Type:
        """The type itself, without typedefs and qualifiers."""
        found = self.types[number]
        while found.kind in _ALIASES:
            found = self.types[found.size]
        return found

    def members(self, of: _Type) -> Iterator[_Member]:
        """Members of a struct or union in order."""
        for name, number, offset in struct.iter_unpack("=III", of.rest):
            # With bit fields in the struct, the offset of every member has its bit size in the top byte.
            bits = offset >> 24 if of.flag else 0
            yield _Member(self._text(name), number, offset & 0xFFFFFF if of.flag else offset, bits)

    def values(self, of: _Type) -> dict[str, int]:
        """Enumerators of an enum in order."""
        if of.kind is _Kind.ENUM:
            return {self._text(name): value for name, value in struct.iter_unpack("=Ii" if of.flag else "=II", of.rest)}
        found = {}
        for name, low, high in struct.iter_unpack("=III", of.rest):
            value = high << 32 | low
            found[self._text(name)] = value - (1 << 64) if of.flag and high >> 31 else value
        return found


class Layouts:
    """The structs and enums of one object."""

    def __init__(self, path: Path, btf: _Btf) -> None:
        self._path = path
        self._btf = btf
        self._structs = {t.name: t for t in btf.types if t.kind in (_Kind.STRUCT, _Kind.UNION) and t.name}
        self._enums = {
            t.name: MappingProxyType(btf.values(t))
            for t in btf.types
            if t.kind in (_Kind.ENUM, _Kind.ENUM64) and t.name and t.name != CONSTANTS
        }
        anonymous: dict[str, int] = {}
        for found in btf.types:
            if found.kind in (_Kind.ENUM, _Kind.ENUM64) and found.name in ("", CONSTANTS):
                anonymous |= {name.removeprefix(CONSTANT_PREFIX): n for name, n in btf.values(found).items()}
        self._constants = MappingProxyType(anonymous)
        self._made: dict[_Type, Any] = {}

    def struct(self, name: str) -> type[ctypes.Structure]:
        """The ctypes type of a C struct; the same one for the same name.  Raises LayoutError."""
        found = self._structs.get(name)
        if found is None or found.kind is not _Kind.STRUCT:
            raise LayoutError(f"{self._path} has no struct {name}: run `make build`")
        made: type[ctypes.Structure] = self._make(found)
        return made

    def enum(self, name: str) -> Mapping[str, int]:
        """Names and values of a named C enum.  Raises LayoutError."""
        if name not in self._enums:
            raise LayoutError(f"{self._path} has no enum {name}: run `make build`")
        return self._enums[name]

    def constants(self) -> Mapping[str, int]:
        """Names and values of all anonymous enums: the limits."""
        return self._constants

    def structs(self) -> tuple[str, ...]:
        """Names of all structs, sorted."""
        return tuple(sorted(name for name, found in self._structs.items() if found.kind is _Kind.STRUCT))

    def _ctype(self, number: int) -> Any:
        """The ctypes type of a BTF type.  Raises LayoutError."""
        found = self._btf.resolve(number)
        if found.kind is _Kind.INT:
            encoding = struct.unpack("=I", found.rest)[0] >> 24 & 0xF
            if encoding & _BOOL:
                return ctypes.c_bool
            if found.name == "char" or encoding & _CHAR:
                return ctypes.c_char
            if (found.size, bool(encoding & _SIGNED)) in _INTEGERS:
                return _INTEGERS[found.size, bool(encoding & _SIGNED)]
        if found.kind in (_Kind.ENUM, _Kind.ENUM64):
            return _INTEGERS[found.size, found.flag]
        if found.kind is _Kind.PTR:
            return ctypes.c_uint64  # BPF pointers are 64 bit
        if found.kind is _Kind.ARRAY:
            element, _, length = struct.unpack("=III", found.rest)
            return self._ctype(element) * length
        if found.kind in (_Kind.STRUCT, _Kind.UNION):
            return self._make(found)
        raise LayoutError(f"{self._path}: no ctypes type for BTF kind {found.kind.name} {found.name!r}")

    def _make(self, found: _Type) -> Any:
        """The ctypes struct or union; checks that ctypes places its fields where clang did.  Raises LayoutError."""
        if found in self._made:
            return self._made[found]
        members = tuple(self._btf.members(found))
        if any(member.bit_size for member in members):
            raise LayoutError(f"{self._path}: {found.name} has bit fields: use whole integers in shared structs")
        names = [member.name or f"anonymous{index}" for index, member in enumerate(members)]
        body: dict[str, Any] = {
            "__slots__": (),
            "_anonymous_": tuple(name for name in names if name.startswith("anonymous")),
            "_fields_": [(name, self._ctype(member.number)) for name, member in zip(names, members, strict=True)],
        }
        base = ctypes.Structure if found.kind is _Kind.STRUCT else ctypes.Union
        made: Any = type(found.name or "anonymous", (base,), body)
        for name, member in zip(names, members, strict=True):
            if getattr(made, name).offset * 8 != member.bit_offset:
                raise LayoutError(f"{self._path}: {found.name}.{name} is packed: give shared structs natural alignment")
        if ctypes.sizeof(made) != found.size:
            raise LayoutError(f"{self._path}: {found.name} has {found.size} bytes, ctypes makes it another size")
        self._made[found] = made
        return made


def load(path: Path) -> Layouts:
    """Read the BTF of a compiled object.  Raises LayoutError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LayoutError(f"{path}: {error.strerror}: run `make build`") from error
    return Layouts(path, _Btf(_btf_section(data, path), path))


@functools.cache
def installed() -> Layouts:
    """Layouts of the object that comes with this package.  Raises LayoutError."""
    return load(INSTALLED)
