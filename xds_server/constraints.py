"""The constraints that the xDS .proto files themselves state (protoc-gen-validate), checked as Envoy checks them.

Envoy refuses a message that breaks the `(validate.rules)` of its fields.  `xds-protos` carries these rules as field
options, so they are read from the descriptors rather than copied.  Rules of each message type are compiled once,
at its first use, into a list of closures.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, Final, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from validate import validate_pb2

# A check yields (field path below the message, what is wrong).
Violation = tuple[str, str]
_Check = Callable[[Any], Iterator[Violation]]

_NUMBERS: Final = frozenset({"float", "double", "int32", "int64", "uint32", "uint64"})
# envoyproxy/protoc-gen-validate, templates/goshared/known.go; `strict: false` only excludes NUL, CR and LF.
_HEADER_NAME: Final = re.compile(r"^:?[0-9a-zA-Z!#$%&'*+\-.^_|~`]+$")
_HEADER_VALUE: Final = re.compile(r"^[^\x00-\x08\x0a-\x1f\x7f]*$")
_HEADER_LOOSE: Final = re.compile(r"^[^\x00\r\n]*$")


class Constraints:
    """Compiled rules, kept per message type."""

    def __init__(self) -> None:
        self._plans: dict[str, _Plan] = {}

    def first_violation(self, message: Message) -> Violation | None:
        """The first broken constraint in a message, at any depth, as (field path, reason); None if it keeps all.

        Messages packed in an `Any` are not looked into.
        """
        return next(self._violations(message), None)

    def _violations(self, message: Message) -> Iterator[Violation]:
        plan = self._plan(cast(Descriptor, message.DESCRIPTOR))
        for check in plan.checks:
            yield from check(message)
        for name, kind in plan.nested:
            if kind == "one":
                if message.HasField(name):
                    yield from self._below(name, getattr(message, name))
            elif kind == "many":
                for index, item in enumerate(getattr(message, name)):
                    yield from self._below(f"{name}[{index}]", item)
            else:
                for key, item in getattr(message, name).items():
                    yield from self._below(f"{name}[{key!r}]", item)

    def _below(self, path: str, message: Message) -> Iterator[Violation]:
        for inner, why in self._violations(message):
            yield (f"{path}.{inner}" if inner else path), why

    def _plan(self, descriptor: Descriptor) -> _Plan:
        plan = self._plans.get(descriptor.full_name)
        if plan is None:
            # Stored before it is filled: message types refer to themselves.
            plan = self._plans[descriptor.full_name] = _Plan()
            _compile(descriptor, plan)
        return plan


class _Plan:
    __slots__ = ("checks", "nested")

    def __init__(self) -> None:
        self.checks: list[_Check] = []
        self.nested: list[tuple[str, str]] = []  # field, "one" | "many" | "map"


def _compile(descriptor: Descriptor, plan: _Plan) -> None:
    options = descriptor.GetOptions()
    if options.HasExtension(validate_pb2.disabled) and options.Extensions[validate_pb2.disabled]:
        return
    for oneof in descriptor.oneofs:
        if oneof.GetOptions().Extensions[validate_pb2.required]:
            plan.checks.append(_oneof_check(oneof.name))
    for field in descriptor.fields:
        rules = field.GetOptions().Extensions[validate_pb2.rules]
        if not rules.message.skip:
            _descend(field, plan)
        kind = rules.WhichOneof("type")
        required = rules.message.required or (kind in ("duration", "any") and getattr(rules, kind).required)
        # A member of a oneof is checked when it is the one that is set, and then it is there.
        if required and field.containing_oneof is None:
            plan.checks.append(_required_check(field.name))
        if kind is None or (kind == "message"):
            continue
        check = _field_check(field, kind, getattr(rules, kind))
        if check is not None:
            plan.checks.append(check)


def _descend(field: FieldDescriptor, plan: _Plan) -> None:
    target = field.message_type
    if target is None:
        return
    if target.GetOptions().map_entry:
        value = target.fields_by_name["value"].message_type
        if value is not None and _is_ours(value):
            plan.nested.append((field.name, "map"))
    elif _is_ours(target):
        plan.nested.append((field.name, "many" if field.is_repeated else "one"))


def _is_ours(descriptor: Descriptor) -> bool:
    # google.protobuf wrappers, Struct, Any have no rules of their own; Struct may be deep.
    return not descriptor.full_name.startswith("google.protobuf.")


def _oneof_check(name: str) -> _Check:
    def check(message: Any) -> Iterator[Violation]:
        if message.WhichOneof(name) is None:
            yield name, "is required"

    return check


def _required_check(name: str) -> _Check:
    def check(message: Any) -> Iterator[Violation]:
        if not message.HasField(name):
            yield name, "is required"

    return check


def _field_check(field: FieldDescriptor, kind: str, rules: Any) -> _Check | None:
    name = field.name
    if kind == "repeated":
        return _repeated_check(name, rules)
    if kind == "map":
        return _map_check(name, rules)
    test = _value_test(kind, rules, field)
    if test is None:
        return None
    wrapped = field.message_type is not None and kind != "duration"  # google.protobuf.UInt32Value and its kind
    optional = field.has_presence

    def check(message: Any) -> Iterator[Violation]:
        if optional and not message.HasField(name):
            return
        value = getattr(message, name)
        why = test(value.value if wrapped else value)
        if why:
            yield name, why

    return check


def _repeated_check(name: str, rules: Any) -> _Check:
    least, most, unique = rules.min_items, rules.max_items, rules.unique
    item_kind = rules.items.WhichOneof("type")
    test = None if item_kind is None else _value_test(item_kind, getattr(rules.items, item_kind), None)

    def check(message: Any) -> Iterator[Violation]:
        items = getattr(message, name)
        if len(items) < least:
            yield name, f"needs at least {least} item{'s' if least > 1 else ''}"
        elif most and len(items) > most:
            yield name, f"has more than {most} items"
        elif unique and len(set(items)) != len(items):
            yield name, "has an item twice"
        elif test is not None:
            for index, item in enumerate(items):
                why = test(item)
                if why:
                    yield f"{name}[{index}]", why

    return check


def _map_check(name: str, rules: Any) -> _Check:
    least = rules.min_pairs
    key_kind = rules.keys.WhichOneof("type")
    test = None if key_kind is None else _value_test(key_kind, getattr(rules.keys, key_kind), None)

    def check(message: Any) -> Iterator[Violation]:
        entries = getattr(message, name)
        if len(entries) < least:
            yield name, f"needs at least {least} entries"
        elif test is not None:
            for key in entries:
                why = test(key)
                if why:
                    yield f"{name}[{key!r}]", f"key {why}"

    return check


def _value_test(kind: str, rules: Any, field: FieldDescriptor | None) -> Callable[[Any], str | None] | None:
    if kind == "string":
        return _string_test(rules)
    if kind == "bytes":
        return _length_test(rules)
    if kind in _NUMBERS:
        return _range_test(rules, lambda value: value, str)
    if kind == "duration":
        # Durations compare as (seconds, nanos); both carry the same sign.
        return _range_test(rules, lambda d: (d.seconds, d.nanos), lambda d: f"{d.seconds + d.nanos / 1e9:g}s")
    if kind == "enum":
        kinds = None if field is None else field.enum_type
        defined = frozenset(kinds.values_by_number) if kinds is not None and rules.defined_only else None
        refused = frozenset(rules.not_in)

        def enum_test(value: int) -> str | None:
            bad = (defined is not None and value not in defined) or value in refused
            return f"has the unknown or refused value {value}" if bad else None

        return enum_test
    if kind == "bool" and rules.HasField("const"):
        wanted = rules.const
        return lambda value: None if value == wanted else f"must be {wanted}"
    return None


def _range_test(
    rules: Any, key: Callable[[Any], Any], show: Callable[[Any], str]
) -> Callable[[Any], str | None] | None:
    tests: list[tuple[Callable[[Any, Any], bool], Any, str]] = []
    for name, compare, words in (
        ("gt", lambda a, b: a > b, "greater than"),
        ("gte", lambda a, b: a >= b, "at least"),
        ("lt", lambda a, b: a < b, "less than"),
        ("lte", lambda a, b: a <= b, "at most"),
    ):
        if rules.HasField(name):
            bound = getattr(rules, name)
            tests.append((compare, key(bound), f"{words} {show(bound)}"))
    if not tests:
        return None

    def test(value: Any) -> str | None:
        comparable = key(value)
        for compare, bound, words in tests:
            if not compare(comparable, bound):
                return f"is {show(value)}, must be {words}"
        return None

    return test


def _length_test(rules: Any) -> Callable[[str | bytes], str | None]:
    least, most = rules.min_len, rules.max_len

    def test(value: str | bytes) -> str | None:
        if len(value) < least:
            return "is empty" if not value else f"is shorter than {least}"
        return f"is longer than {most}" if most and len(value) > most else None

    return test


def _string_test(rules: Any) -> Callable[[str], str | None]:
    length = _length_test(rules)
    most_bytes = rules.max_bytes
    allowed = frozenset(getattr(rules, "in"))
    well_known = None
    if rules.well_known_regex == validate_pb2.HTTP_HEADER_NAME:
        well_known = _HEADER_NAME if rules.strict else _HEADER_LOOSE
    elif rules.well_known_regex == validate_pb2.HTTP_HEADER_VALUE:
        well_known = _HEADER_VALUE if rules.strict else _HEADER_LOOSE
    # The patterns in the xDS files use nothing in which RE2 and `re` differ.
    pattern = re.compile(rules.pattern) if rules.pattern else None

    def test(value: str) -> str | None:
        if not value and rules.ignore_empty:
            return None
        why = length(value)
        if why:
            return why
        if most_bytes and len(value.encode()) > most_bytes:
            return f"is longer than {most_bytes} bytes"
        if well_known is not None and not well_known.match(value):
            return f"{value!r} is not a valid HTTP header name or value"
        if pattern is not None and not pattern.search(value):
            return f"{value!r} does not match {pattern.pattern}"
        if rules.prefix and not value.startswith(rules.prefix):
            return f"{value!r} does not start with {rules.prefix!r}"
        if rules.suffix and not value.endswith(rules.suffix):
            return f"{value!r} does not end with {rules.suffix!r}"
        if allowed and value not in allowed:
            return f"{value!r} is none of {', '.join(sorted(allowed))}"
        return None

    return test
