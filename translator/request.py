"""A request as the evaluator takes it, and the reasons the kernel finds in its head alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from translator.limits import Limits
from translator.reasons import Reason


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP/1.1 request with a well-formed head.

    `path` is the request target, query included.  `host` is the first Host line and the first line of all; further
    Host lines are in `headers`, whose values may have blanks around them.  `to` is the address dialled.  Text stands
    for bytes as in latin-1.
    """

    method: str
    host: str
    path: str
    headers: tuple[tuple[str, str], ...] = ()
    to: tuple[str, int] = ("0.0.0.0", 0)

    def lines(self) -> Iterator[tuple[str, str]]:
        """The header lines in order: names in lower case, values without the blanks around them."""
        yield "host", self.host.strip(" \t")
        for name, value in self.headers:
            yield name.lower(), value.strip(" \t")


_USUAL_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_SAFE_PATH: Final = re.compile(r"[A-Za-z0-9\-_.~!$&'()*+,=:@/]*")
_SAFE_QUERY: Final = re.compile(r"[\x21-\x22\x24-\x7e]*")
_HOST: Final = re.compile(r"[A-Za-z0-9.\-_]+(:[0-9]+)?")
_LONGEST_BODY: Final = 1 << 62
_CONNECTION_OPTIONS: Final = frozenset({"", "close", "keep-alive"})
_HOP_BY_HOP: Final = frozenset({"te", "proxy-connection"})


def head_reason(request: Request, names: frozenset[str], limits: Limits) -> Reason:
    """Why the kernel cannot carry the request, from its head alone; NONE if the rules decide.

    The head is read once, front to back, and the first thing found decides; the C parser keeps to the same order:

    1. The request line.  Method CONNECT: UPGRADE.  A method other than GET, HEAD, POST, PUT, PATCH, DELETE and
       OPTIONS: METHOD.  A target that does not begin with "/": TARGET_FORM.  A path (before "?") with a byte outside
       `A-Za-z0-9-_.~!$&'()*+,=:@/`, with "//" or a segment "." or "..", a query with a byte outside 0x21-0x7e, or "#"
       anywhere: PATH_NORMALIZATION.  (";" is outside because Envoy takes "..;x" for "..".)  (Then the version, which a
       `Request` has not: NOT_HTTP11.)
    2. Each header line in order, its name compared without regard to case.  More than `limits.headers` lines:
       TOO_MANY_HEADERS; a line that ends beyond `limits.head` bytes: HEAD_TOO_LONG; then, by name:
       `x-envoy-*`, `x-forwarded-client-cert`, `x-forwarded-proto` without a value: X_ENVOY_HEADER.  `te`,
       `proxy-connection`: HOP_BY_HOP_HEADER.  `connection` with an option (comma separated, blanks and empty ones
       ignored, any case) other than close and keep-alive: HOP_BY_HOP_HEADER.
       `upgrade`: UPGRADE.  `expect`: EXPECT.  `content-type` whose value begins with "application/grpc" (in this
       case: Envoy's isGrpcRequestHeaders): GRPC.  `host` that is not NAME or NAME:DIGITS with NAME of `A-Za-z0-9.-_`:
       HOST_HEADER.  After that, a name in `names` for the second time: REPEATED_HEADER.
    3. After the last line: not exactly one Host: HOST_HEADER.  Then framing: `content-length` more than once, not
       1 to 19 digits, above 2^62 or along with transfer-encoding: AMBIGUOUS_FRAMING; `transfer-encoding` more than
       once or other than "chunked" (any case): TRANSFER_CODING.

    :param names: header names (lower case) that routes of the image look at
    """
    reason = _request_line_reason(request)
    if reason:
        return reason
    size = len(request.method) + len(request.path) + len("  HTTP/1.1\r\n")
    seen: set[str] = set()
    hosts = 0
    lengths: list[str] = []
    codings: list[str] = []
    for count, (name, value) in enumerate(request.lines(), 1):
        if count > limits.headers:
            return Reason.TOO_MANY_HEADERS
        size += len(name) + len(value) + len(": \r\n")
        if size + len("\r\n") > limits.head:
            return Reason.HEAD_TOO_LONG
        reason = _line_reason(name, value)
        if not reason and name in names and name in seen:
            reason = Reason.REPEATED_HEADER
        if reason:
            return reason
        seen.add(name)
        hosts += name == "host"
        if name == "content-length":
            lengths.append(value)
        elif name == "transfer-encoding":
            codings.append(value)
    if hosts != 1:
        return Reason.HOST_HEADER
    if len(lengths) > 1 or (lengths and codings) or any(not _is_length(n) for n in lengths):
        return Reason.AMBIGUOUS_FRAMING
    if len(codings) > 1 or any(coding.lower() != "chunked" for coding in codings):
        return Reason.TRANSFER_CODING
    return Reason.NONE


def _is_length(value: str) -> bool:
    return re.fullmatch("[0-9]{1,19}", value) is not None and int(value) <= _LONGEST_BODY


def _request_line_reason(request: Request) -> Reason:
    if request.method == "CONNECT":
        return Reason.UPGRADE
    if request.method not in _USUAL_METHODS:
        return Reason.METHOD
    if not request.path.startswith("/"):
        return Reason.TARGET_FORM
    path, _, query = request.path.partition("?")
    if not _SAFE_PATH.fullmatch(path) or not _SAFE_QUERY.fullmatch(query):
        return Reason.PATH_NORMALIZATION
    if "//" in path or any(segment in (".", "..") for segment in path.split("/")):
        return Reason.PATH_NORMALIZATION
    return Reason.NONE


def _line_reason(name: str, value: str) -> Reason:
    if name.startswith("x-envoy-") or name == "x-forwarded-client-cert" or (name == "x-forwarded-proto" and not value):
        return Reason.X_ENVOY_HEADER
    if name in _HOP_BY_HOP:
        return Reason.HOP_BY_HOP_HEADER
    if name == "connection" and any(
        option.strip(" \t").lower() not in _CONNECTION_OPTIONS for option in value.split(",")
    ):
        return Reason.HOP_BY_HOP_HEADER
    if name == "upgrade":
        return Reason.UPGRADE
    if name == "expect":
        return Reason.EXPECT
    if name == "content-type" and value.startswith("application/grpc"):
        return Reason.GRPC
    if name == "host" and not _HOST.fullmatch(value):
        return Reason.HOST_HEADER
    return Reason.NONE


def canonical_path(path: str) -> str:
    """A path (without query) as Envoy's normalisation leaves it: RFC 3986 by way of Chromium's URL parser.

    Dot segments go, backslashes become slashes, escapes of unreserved characters are undone and what may not stand
    in a path is escaped; "//" and "%2F" stay.  Source: googleurl `url_canon_path.cc`.  Before that, Envoy takes the
    parameters off dot segments as they are written, so that "..;x" is one too (CVE-2026-73551).
    """
    path = _DOT_PARAMETERS.sub(r"\1", path)
    out: list[str] = []
    i = 0
    while i < len(path):
        char = path[i]
        if char in "/\\":
            out.append("/")
            i += 1
        elif out and out[-1] == "/" and (width := _dot(path, i)):
            i += width
            if _ends_segment(path, i):
                i += 1
            elif (second := _dot(path, i)) and _ends_segment(path, i + second):
                i += second + 1
                _back_up(out)
            else:
                out.append(".")
        elif char == "%" and (escape := _ESCAPE.match(path, i)):
            plain = chr(int(escape[1], 16))
            out.append(plain if _UNRESERVED.fullmatch(plain) else escape[0])
            i += 3
        else:
            out.append(f"%{ord(char):02X}" if char in _MUST_ESCAPE or not "!" <= char <= "~" else char)
            i += 1
    return "".join(out)


_DOT_PARAMETERS: Final = re.compile(r"(/\.\.?);[^/]*")
_ESCAPE: Final = re.compile(r"%([0-9A-Fa-f]{2})")
_UNRESERVED: Final = re.compile(r"[A-Za-z0-9\-._~]")
_MUST_ESCAPE: Final = frozenset('"#<>?`{}|^')


def _dot(path: str, i: int) -> int:
    """How many characters a dot takes at `i`: 1, 3 for "%2e", 0 for none."""
    if path.startswith(".", i):
        return 1
    return 3 if path[i : i + 3].lower() == "%2e" else 0


def _ends_segment(path: str, i: int) -> bool:
    return i >= len(path) or path[i] in "/\\"


def _back_up(out: list[str]) -> None:
    """Remove the last segment of a path that ends with a slash; the root stays."""
    if len(out) > 1:
        out.pop()
        while out[-1] != "/":
            out.pop()
