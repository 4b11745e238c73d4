"""Reading protobuf messages as a closed world: a field nobody handles must become a reason, never be overlooked.

Every reader of this package states the fields it handles; `unhandled` names the first one that is set and not among
them, fields that this version's message definitions do not even know included.
"""

from __future__ import annotations

from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

_M = TypeVar("_M", bound=Message)


class Malformed(Exception):
    """A resource that cannot be taken; `field` is a path inside it."""

    def __init__(self, field: str, why: str) -> None:
        super().__init__(f"{field}: {why}" if field else why)
        self.field = field
        self.why = why


def unhandled(message: Message, handled: frozenset[str]) -> str | None:
    """The name of a set field outside `handled`, or "field N" for one that the definitions lack; None if all are known.

    "Set" is protobuf's: a scalar without presence counts only when it differs from its default.
    """
    for descriptor, _ in message.ListFields():
        if descriptor.name not in handled:
            return str(descriptor.name)
    strangers: Any = UnknownFieldSet(message)
    return f"field {strangers[0].field_number}" if len(strangers) else None


def is_empty(message: Message) -> bool:
    """Whether nothing at all is set, unknown fields included."""
    return unhandled(message, frozenset()) is None


def type_name(packed: Any) -> str:
    """The message name an Any holds; for a TypedStruct (of `udpa` or `xds`) the name of what it stands for."""
    name = str(packed.type_url).rpartition("/")[2]
    if name in ("udpa.type.v1.TypedStruct", "xds.type.v3.TypedStruct"):
        # Both have type_url as field 1; Istio sends its own filters' settings in this form.
        from udpa.type.v1.typed_struct_pb2 import TypedStruct

        return str(unpack(packed, TypedStruct, "").type_url).rpartition("/")[2]
    return name


def unpack(packed: Any, kind: type[_M], path: str) -> _M:
    """The message in an Any whose type the caller has checked.

    :raises Malformed: if the bytes are no such message
    """
    try:
        return kind.FromString(packed.value)
    except DecodeError as error:
        raise Malformed(path, f"is not a valid {kind.DESCRIPTOR.name} ({error})") from None
