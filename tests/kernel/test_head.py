"""The kernel's parser of request heads against `head_reason`, and what it makes of bytes that are no HTTP/1.1."""

from __future__ import annotations

import string
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.kernel.programs import SEED, Head, Programs, raw
from translator.hash_table import key_hash
from translator.limits import Limits
from translator.reasons import Reason
from translator.request import Request, head_reason

LIMITS = Limits()
NOBODY: frozenset[str] = frozenset()
# Reasons that leave no doubt where the message ends: such a request may go to a pooled connection of Envoy.
HARMLESS = frozenset(
    {
        *(Reason.NONE, Reason.X_ENVOY_HEADER, Reason.GRPC, Reason.PATH_NORMALIZATION, Reason.HOST_HEADER),
        *(Reason.TARGET_FORM, Reason.HOP_BY_HOP_HEADER, Reason.METHOD),
    }
)
HEAD = b"GET /a HTTP/1.1\r\nhost: a\r\n\r\n"


@pytest.fixture(scope="module")
def programs() -> Iterator[Programs]:
    with Programs() as loaded:
        yield loaded


def agree(programs: Programs, request: Request, trailing: bytes = b"") -> Head:
    """The kernel's reading of a request, which must be `head_reason`'s."""
    data = raw(request)
    head = programs.head(data + trailing)
    assert head.reason is head_reason(request, NOBODY, LIMITS)
    if head.reason not in HARMLESS:
        assert head.relay
    if head.reason is Reason.NONE:
        assert not head.relay
    if head.relay:
        return head
    assert head.complete
    assert head.head_len == len(data)
    assert head.method == request.method.encode()
    assert head.target == request.path.encode("latin-1")
    assert [(line.name.lower().decode("latin-1"), line.value.decode("latin-1")) for line in head.lines] == list(
        request.lines()
    )
    if head.reason is Reason.NONE:
        path = request.path.partition("?")[0].encode("latin-1")
        assert head.path == path
        assert head.host.decode() == request.host.strip(" \t")
        assert head.host_name.decode() == request.host.strip(" \t").partition(":")[0]
        assert head.is_head == (request.method == "HEAD")
        for length in {0, 1, len(path) // 2, min(len(path), LIMITS.key)}:
            if length <= len(path):
                # The last step of a hash, with kind and scope 0.
                final = (programs.path_hash(length) * 0x9E3779B97F4A7C15) % 2**64
                assert final == key_hash(SEED, 0, 0, path[:length])
    return head


# ---- each reason

TARGETS = (
    *(
        "/",
        "/a/b.c/..d/...?x=%2F//../[]{}|\"'",
        "/-_.~!$&'()*+,;=:@/Az09",
        "/?",
        "//",
        "/a//b",
        "/a/../b",
        "/a/.",
        "/.",
        "/a;b",
        "/..;b",
    ),
    *("/a/..", "/..", "/../", "/./", "/.a", "/a.", "/a..", "/...", "/a/.../b", "/a/..b", "/%41", "/a\\b", "/a^b"),
    *("/caf\xe9", "/a#b", "/a?b#c", "/a?caf\xe9", "/a?" + "b" * 300 + "#", "/" + "a" * 700 + "//", "/a" * 300),
    *("*", "http://a/b", "a:443", "?", "http://a/b\xe9?#", "/" + "x" * 488, "/" + "x" * 487, "/" + "x" * 489),
    *("/" + "x" * n for n in range(25, 40)),
    *("/?" + "x" * n for n in range(120, 140)),
    *("/" + "x" * n + "/.." for n in range(25, 34)),
)
HOSTS = (
    *("a", "A-b_c.d:80", "10.0.0.1:9080", " a ", "\ta:1\t ", "a:", "a:80x", "a:b:80", "u@a", "[::1]:80", "caf\xe9", ""),
    *(":80", " ", "a b", "a:80 ", "a :80", "a:0123456789012345678901234567890123456789", "h" * 600, "h" * 600 + ":1"),
    *("h" * n + ":80" for n in range(28, 36)),
    *("a:" + "1" * n for n in range(5, 20)),
    *("a:" + "1" * n + "x" for n in range(5, 20)),
)
LINES: tuple[tuple[tuple[str, str], ...], ...] = (
    (("Connection", "Close"),),
    (("connection", "keep-alive ,, close"),),
    (("connection", "keep-alive, x-hop"),),
    (("connection", "Keep-Alive"),),
    (("connection", ""),),
    (("connection", " , ,\t"),),
    (("connection", "close close"),),
    (("connection", "clos e"),),
    (("connection", "closed"),),
    (("connection", "xclose"),),
    (("connection", "keep-alivex"),),
    (("connection", "xkeep-alive"),),
    (("connection", "aaaaaaaaaaaaaaakeep-alive"),),
    (("connection", "upgrade"), ("upgrade", "websocket")),
    (("upgrade", "websocket"), ("connection", "upgrade")),
    (("TE", "trailers"),),
    (("tf", "trailers"),),
    (("proxy-connection", "close"),),
    (("proxy-connectiox", "close"),),
    (("Expect", "100-continue"),),
    (("expecu", "100-continue"),),
    (("X-Envoy-Max-Retries", "1"),),
    (("x-envoy-", ""),),
    *(((f"x-envoy-{'x' * n}", ""),) for n in range(12)),
    (("x-envoy", "1"),),
    (("x-forwarded-client-cert", "Subject=x"),),
    (("X-Forwarded-Client-Cert", ""),),
    (("x-forwarded-client-cerx", ""),),
    (("x-forwarded-proto", ""),),
    (("X-Forwarded-Proto", " "),),
    (("x-forwarded-proto", "http"),),
    (("x-forwarded-protx", ""),),
    (("content-type", "application/grpc-web+proto"),),
    (("content-type", "application/grpc"),),
    (("content-type", "application/grp"),),
    (("content-type", "Application/grpc"),),
    (("content-type", "application/json"),),
    (("content-typo", "application/grpc"),),
    (("host", "a"),),
    (("host", "b"), ("te", "")),
    (("host", "["), ("te", "")),
    (("content-length", "10"),),
    (("content-length", "0"),),
    (("Content-Length", " 4611686018427387904 "),),
    (("content-length", "10"), ("content-length", "10")),
    (("content-length", "10, 10"),),
    (("content-length", "+1"),),
    (("content-length", "1x"),),
    (("content-length", "0x1"),),
    (("content-length", ""),),
    (("content-lengtx", ""),),
    (("content-length", "1"), ("transfer-encoding", "gzip")),
    (("transfer-encoding", "Chunked"),),
    (("transfer-encoding", ""),),
    (("transfer-encoding", "chunkex"),),
    (("transfer-encodinx", "chunkex"),),
    (("transfer-encoding", "chunked,"),),
    (("transfer-encoding", "gzip, chunked"),),
    (("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")),
    (("content-length", "x"), ("host", "b")),
    (("content-length", "x"), ("expect", "")),
    (("a", "b\tc\xe9"), ("b", " \t "), ("c", "x" * 1000), ("d" * 200, "y" * 128), ("e", "\t" * 300 + "x" + " " * 300)),
    *((("n" * n, "v" * 3),) for n in range(29, 36)),
    *((("n", "v" * n),) for n in range(120, 136)),
)


@pytest.mark.parametrize("target", TARGETS)
def test_targets(programs: Programs, target: str) -> None:
    agree(programs, Request("GET", "a", target))


@pytest.mark.parametrize("host", HOSTS)
def test_hosts(programs: Programs, host: str) -> None:
    agree(programs, Request("GET", host, "/"))


@pytest.mark.parametrize("lines", LINES)
def test_lines(programs: Programs, lines: tuple[tuple[str, str], ...]) -> None:
    agree(programs, Request("GET", "a", "/", lines))
    agree(programs, Request("GET", "a", "//", (*lines, ("te", ""))), trailing=b"GET / HTTP/1.1\r\n")


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PATCH", "CONNECT", "CONNECTED", "HEA", "HEADS", "M" * 31])
def test_methods(programs: Programs, method: str) -> None:
    agree(programs, Request(method, "a", "/"))


def test_how_the_body_is_framed(programs: Programs) -> None:
    def head(*lines: tuple[str, str]) -> Head:
        return agree(programs, Request("POST", "a", "/", lines))

    assert (head().length, head().chunked) == (None, False)
    assert head(("content-length", "0")).length == 0
    assert head(("content-length", "007")).length == 7
    assert head(("content-length", str(2**62))).length == 2**62
    assert head(("transfer-encoding", "CHUNKED")).chunked


def test_a_body_beyond_what_can_be_counted_is_ambiguous(programs: Programs) -> None:
    for digits in (str(2**62 + 1), "9" * 19, "9" * 20, "9" * 40):
        head = programs.head(raw(Request("POST", "a", "/", (("content-length", digits),))))
        assert (head.reason, head.relay) == (Reason.AMBIGUOUS_FRAMING, True)


def test_close_is_found_where_it_stands(programs: Programs) -> None:
    for value in ("close", "CLOSE", "keep-alive, close", ",,\tClose , keep-alive", "close,close"):
        data = raw(Request("GET", "a", "/", (("connection", value),)))
        head = programs.head(data)
        assert head.close
        assert head.close_at == data.lower().index(b"close", data.index(b"connection"))
    for value in ("", "keep-alive", "keep-alive, ,"):
        head = programs.head(raw(Request("GET", "a", "/", (("connection", value),))))
        assert (head.close, head.close_at, head.reason) == (False, 0, Reason.NONE)


def test_framing_is_read_behind_a_harmless_reason(programs: Programs) -> None:
    doubtful = (("content-length", "1"), ("transfer-encoding", "chunked"))
    for lines, reason in (
        ((("te", ""), *doubtful), Reason.HOP_BY_HOP_HEADER),
        ((("x-envoy-a", ""), ("expect", "")), Reason.X_ENVOY_HEADER),
        ((("content-type", "application/grpc"), ("upgrade", "")), Reason.GRPC),
        ((("host", "b"), *doubtful), Reason.HOST_HEADER),
    ):
        head = agree(programs, Request("GET", "a", "/", lines))
        assert (head.reason, head.relay) == (reason, True)
    assert agree(programs, Request("GET", "a", "//", doubtful)).relay
    assert not agree(programs, Request("GET", "a", "//", doubtful[:1])).relay


def test_lines_say_where_something_was_found(programs: Programs) -> None:
    def line(*lines: tuple[str, str], path: str = "/") -> int | None:
        return agree(programs, Request("GET", "a", path, lines)).reason_line

    assert line(path="//") is None
    assert line(("te", "")) == 1
    assert line(("a", ""), ("connection", "x")) == 2
    assert line(("a", ""), ("host", "x")) == 3
    assert line(("a", ""), ("host", "[")) == 2
    assert line(("content-length", "x")) == 2


# ---- sizes


def test_number_of_lines(programs: Programs) -> None:
    lines = tuple((f"h{i}", "v") for i in range(LIMITS.headers - 1))
    assert agree(programs, Request("GET", "a", "/", lines)).reason is Reason.NONE
    head = agree(programs, Request("GET", "a", "/", (*lines, ("te", ""))))
    assert (head.reason, head.reason_line, head.relay) == (Reason.TOO_MANY_HEADERS, LIMITS.headers, True)


@pytest.mark.parametrize("more", range(-3, 6))
def test_size_of_the_head(programs: Programs, more: int) -> None:
    room = LIMITS.head - len("GET / HTTP/1.1\r\nhost: a\r\nh: \r\n\r\n")
    agree(programs, Request("GET", "a", "/", (("h", "v" * (room + more)),)))
    # A reason of the line that is too long does not count.
    agree(programs, Request("GET", "a", "/", (("te", "v" * (room - 1 + more)),)))
    agree(programs, Request("GET", "a", "/", (("te", ""), ("h", "v" * (room + more)))))
    # An end of line where the buffer ends, with something behind it.
    head = raw(Request("GET", "a", "/", (("h", "v" * (room + more)),)))[:-2]
    assert programs.head(head + b"te: x\r\n\r\n").reason is Reason.HEAD_TOO_LONG


def test_a_request_line_that_fills_the_buffer(programs: Programs) -> None:
    for target in ("/" + "a" * 9000, "/?" + "a" * 9000, "x" * 9000):
        head = programs.head(raw(Request("GET", "a", target)))
        assert head.relay
        assert not head.more
        assert head.reason is (Reason.TARGET_FORM if target[0] == "x" else Reason.HEAD_TOO_LONG)


@pytest.mark.parametrize(
    "request_",
    [
        Request(
            "GET", "a.b.c:80", "/a/b?c", (("Connection", "keep-alive, close"), ("x", "y"), ("content-length", "3"))
        ),
        Request("POST", "a", "/", (("transfer-encoding", "chunked"), ("cookie", "x" * 200), ("y" * 40, "  z  "))),
        Request("GET", "a", "*", (("te", "x"),)),
    ],
)
def test_a_head_cut_anywhere_is_incomplete(programs: Programs, request_: Request) -> None:
    data = raw(request_)
    whole = programs.head(data)
    assert whole.complete
    for size in range(1, len(data)):
        # What the last message left in the buffer goes on exactly as this one would.
        head = programs.head(data, size)
        assert not head.complete
        assert head.more
        assert head.relay
        assert head.reason in (Reason.HEAD_INCOMPLETE, whole.reason)
    for trailing in (b"x", b"\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\0" * 50, b"z" * 9000):
        assert programs.head(data + trailing) == whole


# ---- bytes that are no HTTP/1.1

BAD: tuple[tuple[bytes, Reason], ...] = (
    (b"\r\n" + HEAD, Reason.NOT_HTTP11),
    (b"\n" + HEAD, Reason.NOT_HTTP11),
    (b" " + HEAD, Reason.NOT_HTTP11),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01", Reason.NOT_HTTP11),
    (b"get / HTTP/1.1\r\nhost: a\r\n\r\n", Reason.NOT_HTTP11),
    (b"\0", Reason.NOT_HTTP11),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Reason.NOT_HTTP11),
    (b"GET / HTTP/1.0\r\nhost: a\r\n\r\n", Reason.NOT_HTTP11),
    (b"GET / HTTP/2.0\r\nhost: a\r\n\r\n", Reason.NOT_HTTP11),
    (b"GET / http/1.1\r\nhost: a\r\n\r\n", Reason.NOT_HTTP11),
    (b"GET / HTTP/1.10\r\nhost: a\r\n\r\n", Reason.HEADER_SYNTAX),
    (b"GET / HTTP/1.1\nhost: a\r\n\r\n", Reason.HEADER_SYNTAX),
    (b"GET / HTTP/1.1 \r\nhost: a\r\n\r\n", Reason.HEADER_SYNTAX),
    (b"GET  / HTTP/1.1\r\nhost: a\r\n\r\n", Reason.TARGET_FORM),
    (b"GET  HTTP/1.1\r\nhost: a\r\n\r\n", Reason.TARGET_FORM),
    (b"GET /  HTTP/1.1\r\nhost: a\r\n\r\n", Reason.NOT_HTTP11),
    (b"GET /a b HTTP/1.1\r\nhost: a\r\n\r\n", Reason.NOT_HTTP11),
    (b"GET /\r\nhost: a\r\n\r\n", Reason.NOT_HTTP11),
    (b"GET /\nhost: a\r\n\r\n", Reason.NOT_HTTP11),
    (b"GET\r\nhost: a\r\n\r\n", Reason.HEADER_SYNTAX),
    (b"GET\t/ HTTP/1.1\r\nhost: a\r\n\r\n", Reason.HEADER_SYNTAX),
    (b"G(T / HTTP/1.1\r\nhost: a\r\n\r\n", Reason.HEADER_SYNTAX),
    (b"M" * 40 + b" / HTTP/1.1\r\nhost: a\r\n\r\n", Reason.HEADER_SYNTAX),
    (b"GET /\0 HTTP/1.1\r\nhost: a\r\n\r\n", Reason.PATH_NORMALIZATION),
    (b"GET /\t HTTP/1.1\r\nhost: a\r\n\r\n", Reason.PATH_NORMALIZATION),
    (b"GET /?\x7f HTTP/1.1\r\nhost: a\r\n\r\n", Reason.PATH_NORMALIZATION),
    *(
        (b"GET / HTTP/1.1\r\n" + lines + b"\r\n\r\n", Reason.HEADER_SYNTAX)
        for lines in (
            *(b"host: a\n", b"host: a\nx: y", b"host: a\rx: y", b"host: a\r\r", b"host: a\r\n x", b"host: a\r\n\tx"),
            *(b"host : a", b"host\t: a", b" host: a", b": a", b"host", b"host: a\r\nx", b"ho\0st: a", b"host: \0a"),
            *(b"content\rlength: 1", b"transfer\rencoding: x", b"connection: keep\ralive", b"x\renvoy\rb: c"),
            *(b"host: a\x01", b"host: a\x7f", b"h(st: a", b"h\xe9st: a", b"host: a\r\n\n", b"host: a\n\r", b"x" * 99),
            *(b"host: a\r\n" + b"x" * n + b"\x01: y" for n in range(30, 35)),
            *(b"host: a\r\nx: " + b"y" * n + b"\x01" for n in range(120, 140)),
            *(b"host: a\r\nx:" + b" " * n + b"\x01" for n in range(6, 12)),
        )
    ),
)


@pytest.mark.parametrize(("data", "reason"), BAD)
def test_bad_bytes_go_to_the_relay(programs: Programs, data: bytes, reason: Reason) -> None:
    for trailing in (b"", b"more"):
        head = programs.head(data + trailing)
        assert (head.reason, head.relay, head.complete, head.more) == (reason, True, False, False)


@pytest.mark.parametrize("byte", range(256))
def test_every_byte_in_every_place(programs: Programs, byte: int) -> None:
    char = bytes([byte])
    token = char.decode("latin-1") in string.ascii_letters + string.digits + "!#$%&'*+-.^_`|~"
    name = programs.head(b"GET / HTTP/1.1\r\nhost: a\r\nx" + char + b"y: z\r\n\r\n")
    if char == b":":
        assert name.lines[1].value == b"y: z"
    else:
        assert (name.reason, name.relay) == ((Reason.NONE, False) if token else (Reason.HEADER_SYNTAX, True))
        assert not token or name.lines[1].name == b"x" + char + b"y"
    value = programs.head(b"GET / HTTP/1.1\r\nhost: a\r\nx: abc" + char + b"defghijk\r\n\r\n")
    text = byte == 9 or (byte >= 32 and byte != 127)
    assert (value.reason, value.relay) == ((Reason.NONE, False) if text else (Reason.HEADER_SYNTAX, True))
    for query in (False, True):
        target = "/abc" + ("?" if query else "") + chr(byte) + "defghijkl"
        head = programs.head(raw(Request("GET", "a", target)))
        if byte == 32:
            assert head.reason is Reason.NOT_HTTP11
        elif byte in (10, 13):
            assert (head.reason, head.relay) == (Reason.NOT_HTTP11, True)
        else:
            assert head.reason is head_reason(Request("GET", "a", target), NOBODY, LIMITS)
            assert head.relay == (byte < 32 or byte == 127)
    host = "a" + chr(byte) + "b"
    head = programs.head(raw(Request("GET", host, "/")))
    assert head.reason is (head_reason(Request("GET", host, "/"), NOBODY, LIMITS) if text else Reason.HEADER_SYNTAX)


# ---- random heads

NAMES = st.sampled_from(
    (
        *("connection", "Connection", "te", "TE", "Host", "host", "upgrade", "expect", "proxy-connection", "x-envoy-a"),
        *(
            "content-type",
            "content-length",
            "Content-Length",
            "transfer-encoding",
            "X-Envoy-",
            "x-envoy",
            "a",
            "cookie",
        ),
    )
) | st.text(alphabet=string.ascii_letters + string.digits + "!#$%&'*+-.^_`|~", min_size=1, max_size=70)
TEXT = st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=200)
VALUES = (
    st.sampled_from(
        (
            *("close", "keep-alive", "Close, Keep-Alive", "x", "", " ", "0", "12", "1,2", "chunked", "gzip", "a.b:80"),
            *("application/grpc", "application/json", "trailers", "100-continue", "\t x \t", "y" * 2000),
        )
    )
    | TEXT
)
SAFE = string.ascii_letters + string.digits + "-_.~!$&'()*+,;=:@/"
PATHS = st.text(alphabet=SAFE, max_size=600) | st.text(alphabet="/.a", max_size=12)
TARGETS_ANY = (
    st.tuples(st.sampled_from(("/", "/", "/", "", "x")), PATHS, st.sampled_from(("", "?", "?q=1", "#", "%", "?#"))).map(
        "".join
    )
    | st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=255, exclude_characters="\x7f"), max_size=40)
).filter(lambda target: target != "")
HOSTS_ANY = st.sampled_from(("a", "a.b.c", "10.0.0.1:80", "a:", "", "[::1]")) | st.text(
    alphabet="aA.-_:0", max_size=100
)
REQUESTS = st.builds(
    Request,
    st.sampled_from(
        ("GET", "POST", "HEAD", "CONNECT", "DELETE", "OPTIONS", "PUT", "PATCH", "TRACE", "GE", "GETS", "OPTIONSX", "X")
    ),
    HOSTS_ANY,
    TARGETS_ANY,
    st.lists(st.tuples(NAMES, VALUES), max_size=8).map(tuple),
)


@settings(deadline=None, max_examples=1500, suppress_health_check=[HealthCheck.too_slow])
@given(request_=REQUESTS, trailing=st.sampled_from((b"", b"x", b"\r\n", b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")))
@example(Request("GET", "a", "/", (("connection", ""),)), b"")
def test_random_heads(programs: Programs, request_: Request, trailing: bytes) -> None:
    # Blanks around a value count for the size in one way of writing only; these heads are not that long.
    if any(name.lower() == "content-length" and len(value.strip(" \t")) > 19 for name, value in request_.headers):
        return
    agree(programs, request_, trailing)


@settings(deadline=None, max_examples=1500)
@given(
    request_=REQUESTS,
    position=st.integers(0, 4000),
    byte=st.sampled_from((0, 9, 10, 13, 32, 44, 58, 127, 200)) | st.integers(0, 255),
    how=st.sampled_from(("replace", "insert", "delete")),
)
def test_damaged_heads_are_never_taken_for_what_they_are_not(
    programs: Programs, request_: Request, position: int, byte: int, how: str
) -> None:
    data = bytearray(raw(request_))
    position %= len(data)
    if how == "replace":
        data[position] = byte
    elif how == "insert":
        data.insert(position, byte)
    else:
        del data[position]
    head = programs.head(bytes(data))
    if head.relay:
        return
    # What is not relayed reads the same in the strictest way of reading it.
    first, *lines = bytes(data[: head.head_len]).split(b"\r\n")
    assert lines[-2:] == [b"", b""]
    method, target, version = first.split(b" ")
    assert (method, target, version) == (head.method, head.target, b"HTTP/1.1")
    read = [line.partition(b":") for line in lines[:-2]]
    assert [(name, value.strip(b" \t")) for name, _, value in read] == [(li.name, li.value) for li in head.lines]
    assert not any(b < 32 and b != 9 for line in lines for b in line)
    lengths = [value.strip(b" \t") for name, _, value in read if name.lower() == b"content-length"]
    codings = [value.strip(b" \t") for name, _, value in read if name.lower() == b"transfer-encoding"]
    assert len(lengths) + len(codings) <= 1
    assert [int(n) for n in lengths] == ([] if head.length is None else [head.length])
    assert [c.lower() for c in codings] == ([b"chunked"] if head.chunked else [])


def test_speed(programs: Programs, capsys: pytest.CaptureFixture[str]) -> None:
    """Printed, not judged: machines differ.  What the verifier needs does not, and far beyond is refused."""
    needed = programs.verified_instructions()
    small = raw(Request("GET", "10.0.0.1:9080", "/productpage", (("user-agent", "wrk"), ("accept", "*/*"))))
    large = small[:-2] + b"cookie: " + b"c" * 1000 + b"\r\n\r\n"
    times = [programs.head_ns(data) for data in (small, large)]
    with capsys.disabled():
        print("\nverified instructions:", ", ".join(f"{name} {count}" for name, count in needed.items()))
        print(f"head of {len(small)} bytes: {times[0]:.0f} ns, of {len(large)} bytes: {times[1]:.0f} ns")
    assert max(needed.values()) < 400_000
