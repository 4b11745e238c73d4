"""`route.v3.RouteMatch` and its parts -> path, header and query matchers, and whether the kernel can decide them.

Semantics: Envoy's `source/common/router/config_impl.cc` and `source/common/http/header_utility.cc`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import re2

from translator.closed import Malformed, unhandled
from translator.model import HeaderMatch, PathKind, PathMatch, QueryMatch, StringKind
from translator.reasons import Reason

# Headers that Envoy's connection manager may add, change or remove before it looks for a route
# (`ConnectionManagerUtility::mutateRequestHeaders`), and `host`, which it renames to `:authority`: what the client
# sent does not tell whether a matcher on them holds.
_CHANGED_BEFORE_ROUTING: Final = frozenset(
    {
        "connection",
        "forwarded",
        "host",
        "keep-alive",
        "proxy-connection",
        "referer",
        "te",
        "transfer-encoding",
        "upgrade",
        "x-forwarded-client-cert",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-port",
        "x-forwarded-proto",
        "x-request-id",
    }
)
_MATCH: Final = frozenset(
    {"prefix", "path", "safe_regex", "path_separated_prefix", "case_sensitive", "headers", "query_parameters"}
)
_NOT_EVALUATED: Final = frozenset({"runtime_fraction", "grpc", "tls_context", "dynamic_metadata", "filter_state"})
_HEADER: Final = frozenset({"name", "invert_match", "treat_missing_header_as_empty"})
_REGEX: Final = frozenset({"google_re2", "regex"})


@dataclass(frozen=True, slots=True)
class RouteMatch:
    """All matchers of one route; `reason` other than NONE: the kernel cannot decide them together."""

    path: PathMatch
    headers: tuple[HeaderMatch, ...]
    queries: tuple[QueryMatch, ...]
    reason: Reason


@dataclass(frozen=True, slots=True)
class _Text:
    kind: StringKind
    value: str = ""
    ignore_case: bool = False


_UNREADABLE: Final = _Text(StringKind.OTHER)


def read_match(match: Any, field: str) -> RouteMatch:
    """Read one `route.v3.RouteMatch`; `field` is its path, for errors.

    :raises Malformed: for what Envoy would refuse (no path specifier, a regex that RE2 does not take)
    """
    path, path_reason = _path(match, field)
    headers = tuple(_header(h, f"{field}.headers[{i}]") for i, h in enumerate(match.headers))
    queries = tuple(_query(q, f"{field}.query_parameters[{i}]") for i, q in enumerate(match.query_parameters))
    reason = path_reason
    if not reason and not all(_kernel_can(h) for h in headers):
        reason = Reason.MATCH_HEADER_KIND
    if not reason and queries:
        reason = Reason.MATCH_QUERY
    stranger = unhandled(match, _MATCH)
    if stranger:
        # The evaluator must learn of it too, so these win over the reasons it can see past.
        runtime = stranger == "runtime_fraction" and not unhandled(match, _MATCH | {"runtime_fraction"})
        if path.kind is not PathKind.OTHER:
            reason = Reason.MATCH_RUNTIME_FRACTION if runtime else Reason.MATCH_OTHER
    return RouteMatch(path, headers, queries, reason)


def _path(match: Any, field: str) -> tuple[PathMatch, Reason]:
    specifier = match.WhichOneof("path_specifier")
    if specifier is None:
        if unhandled(match, _MATCH | _NOT_EVALUATED):
            return PathMatch(PathKind.OTHER, ""), Reason.MATCH_PATH_KIND
        raise Malformed(field, "has no path specifier")
    sensitive = match.case_sensitive.value if match.HasField("case_sensitive") else True
    if specifier == "safe_regex":
        pattern, readable = _regex(match.safe_regex, f"{field}.safe_regex")
        # case_sensitive says nothing about regexes.
        kind = PathKind.REGEX if readable else PathKind.OTHER
        return PathMatch(kind, pattern), Reason.MATCH_REGEX
    if specifier not in ("path", "prefix", "path_separated_prefix"):
        return PathMatch(PathKind.OTHER, ""), Reason.MATCH_PATH_KIND
    value = str(getattr(match, specifier))
    if specifier == "path_separated_prefix":
        return PathMatch(PathKind.PATH_SEPARATED_PREFIX, value, sensitive), Reason.MATCH_PATH_KIND
    kind = PathKind.EXACT if specifier == "path" else PathKind.PREFIX
    return PathMatch(kind, value, sensitive), Reason.NONE if sensitive else Reason.MATCH_CASE_INSENSITIVE


def _header(header: Any, field: str) -> HeaderMatch:
    name = str(header.name).lower()
    if not name:
        raise Malformed(f"{field}.name", "is empty")
    specifier = header.WhichOneof("header_match_specifier")
    invert = bool(header.invert_match)
    if specifier is None or specifier == "present_match":
        # No specifier at all means presence (header_utility.cc); `present_match: false` means absence.
        text = _Text(StringKind.PRESENT)
        if specifier and not header.present_match:
            invert = not invert
    elif specifier == "string_match":
        text = _string(header.string_match, f"{field}.string_match")
    elif specifier == "safe_regex_match":
        pattern, readable = _regex(header.safe_regex_match, f"{field}.safe_regex_match")
        text = _Text(StringKind.REGEX, pattern) if readable else _UNREADABLE
    elif specifier in ("exact_match", "prefix_match", "suffix_match", "contains_match"):
        text = _Text(StringKind(specifier.removesuffix("_match")), str(getattr(header, specifier)))
    else:
        text = _UNREADABLE
    if unhandled(header, _HEADER | ({specifier} if specifier else frozenset())):
        text = _UNREADABLE
    return HeaderMatch(
        name, text.kind, text.value, invert, bool(header.treat_missing_header_as_empty), text.ignore_case
    )


def _query(query: Any, field: str) -> QueryMatch:
    name = str(query.name)
    if not name:
        raise Malformed(f"{field}.name", "is empty")
    specifier = query.WhichOneof("query_parameter_match_specifier")
    text = _Text(StringKind.PRESENT)
    if specifier == "string_match":
        text = _string(query.string_match, f"{field}.string_match")
    elif specifier == "present_match" and not query.present_match:
        text = _UNREADABLE
    if unhandled(query, frozenset({"name", "string_match", "present_match"})):
        text = _UNREADABLE
    return QueryMatch(name, text.kind, text.value, text.ignore_case)


def _string(matcher: Any, field: str) -> _Text:
    specifier = matcher.WhichOneof("match_pattern")
    if specifier == "safe_regex":
        pattern, readable = _regex(matcher.safe_regex, f"{field}.safe_regex")
        # ignore_case says nothing about regexes (type/matcher/v3/string.proto).
        text = _Text(StringKind.REGEX, pattern) if readable else _UNREADABLE
    elif specifier in ("exact", "prefix", "suffix", "contains"):
        text = _Text(StringKind(specifier), str(getattr(matcher, specifier)), bool(matcher.ignore_case))
    elif specifier is None:
        raise Malformed(field, "has no match pattern")
    else:
        return _UNREADABLE
    return text if unhandled(matcher, frozenset({specifier, "ignore_case"})) is None else _UNREADABLE


def _regex(regex: Any, field: str) -> tuple[str, bool]:
    """The pattern, and whether everything set in the message is known.

    :raises Malformed: if RE2 does not take the pattern, as Envoy would
    """
    pattern = str(regex.regex)
    options = re2.Options()
    options.log_errors = False
    try:
        re2.compile(pattern, options)
    except re2.error as error:
        raise Malformed(f"{field}.regex", f"{pattern!r} is not an RE2 pattern ({error})") from None
    return pattern, unhandled(regex, _REGEX) is None


def _kernel_can(header: HeaderMatch) -> bool:
    if header.name.startswith(":"):
        if header.name != ":method":
            return False
    elif header.name in _CHANGED_BEFORE_ROUTING or header.name.startswith("x-envoy-"):
        return False
    if header.kind is StringKind.PRESENT:
        return not header.treat_missing_as_empty and header.name != ":method"
    if header.kind is not StringKind.EXACT or header.invert or header.ignore_case:
        return False
    return not (header.treat_missing_as_empty and not header.value)
