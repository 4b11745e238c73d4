"""The order in which the kernel's parser looks at a head, and what it finds there."""

from __future__ import annotations

import pytest

from translator.limits import Limits
from translator.reasons import Reason
from translator.request import Request, canonical_path, head_reason

LIMITS = Limits()
NAMES = frozenset({"x-user"})


def reason(path: str = "/", host: str = "a", method: str = "GET", headers: tuple[tuple[str, str], ...] = ()) -> Reason:
    return head_reason(Request(method, host, path, headers), NAMES, LIMITS)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/", Reason.NONE),
        ("/a/b.c/..d/...?x=%2F//../[]{}|\"'", Reason.NONE),
        ("/-_.~!$&'()*+,=:@/Az09", Reason.NONE),
        ("/a;b", Reason.PATH_NORMALIZATION),
        ("/..;b", Reason.PATH_NORMALIZATION),
        ("/a?;", Reason.NONE),
        ("/?", Reason.NONE),
        ("//", Reason.PATH_NORMALIZATION),
        ("/a//b", Reason.PATH_NORMALIZATION),
        ("/a/../b", Reason.PATH_NORMALIZATION),
        ("/a/.", Reason.PATH_NORMALIZATION),
        ("/.", Reason.PATH_NORMALIZATION),
        ("/%41", Reason.PATH_NORMALIZATION),
        ("/a\\b", Reason.PATH_NORMALIZATION),
        ("/a^b", Reason.PATH_NORMALIZATION),
        ("/caf\xe9", Reason.PATH_NORMALIZATION),
        ("/a#b", Reason.PATH_NORMALIZATION),
        ("/a?b#c", Reason.PATH_NORMALIZATION),
        ("/a?b c", Reason.PATH_NORMALIZATION),
        ("/a?caf\xe9", Reason.PATH_NORMALIZATION),
        ("*", Reason.TARGET_FORM),
        ("", Reason.TARGET_FORM),
        ("http://a/b", Reason.TARGET_FORM),
    ],
)
def test_targets(target: str, expected: Reason) -> None:
    assert reason(target) is expected


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("a", Reason.NONE),
        ("A-b_c.d:80", Reason.NONE),
        ("10.0.0.1:9080", Reason.NONE),
        (" a ", Reason.NONE),
        ("", Reason.HOST_HEADER),
        ("a:", Reason.HOST_HEADER),
        ("a:80x", Reason.HOST_HEADER),
        ("a:b:80", Reason.HOST_HEADER),
        ("u@a", Reason.HOST_HEADER),
        ("[::1]:80", Reason.HOST_HEADER),
        ("caf\xe9", Reason.HOST_HEADER),
    ],
)
def test_hosts(host: str, expected: Reason) -> None:
    assert reason(host=host) is expected


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ((("Connection", "Close"),), Reason.NONE),
        ((("connection", "keep-alive ,, close"),), Reason.NONE),
        ((("connection", "keep-alive, x-hop"),), Reason.HOP_BY_HOP_HEADER),
        ((("connection", "upgrade"), ("upgrade", "websocket")), Reason.HOP_BY_HOP_HEADER),
        ((("upgrade", "websocket"), ("connection", "upgrade")), Reason.UPGRADE),
        ((("TE", "trailers"),), Reason.HOP_BY_HOP_HEADER),
        ((("proxy-connection", "close"),), Reason.HOP_BY_HOP_HEADER),
        ((("Expect", "100-continue"),), Reason.EXPECT),
        ((("X-Envoy-Max-Retries", "1"),), Reason.X_ENVOY_HEADER),
        ((("x-envoy", "1"),), Reason.NONE),
        ((("X-Forwarded-Client-Cert", "x"),), Reason.X_ENVOY_HEADER),
        ((("x-forwarded-proto", " "),), Reason.X_ENVOY_HEADER),
        ((("x-forwarded-proto", "https"),), Reason.NONE),
        ((("content-type", "application/grpc-web+proto"),), Reason.GRPC),
        ((("content-type", "application/json"),), Reason.NONE),
        ((("x-user", "a"), ("x-other", "a"), ("x-other", "a")), Reason.NONE),
        ((("x-user", "a"), ("X-User", "a")), Reason.REPEATED_HEADER),
        ((("x-user", "a"), ("x-user", "a"), ("te", "")), Reason.REPEATED_HEADER),
        ((("te", ""), ("x-user", "a"), ("x-user", "a")), Reason.HOP_BY_HOP_HEADER),
        ((("host", "a"),), Reason.HOST_HEADER),
        ((("host", "b"), ("te", "")), Reason.HOP_BY_HOP_HEADER),
        ((("host", "["), ("te", "")), Reason.HOST_HEADER),
        ((("content-length", "10"),), Reason.NONE),
        ((("content-length", "10"), ("content-length", "10")), Reason.AMBIGUOUS_FRAMING),
        ((("content-length", "10, 10"),), Reason.AMBIGUOUS_FRAMING),
        ((("content-length", "+1"),), Reason.AMBIGUOUS_FRAMING),
        ((("content-length", ""),), Reason.AMBIGUOUS_FRAMING),
        ((("content-length", "1"), ("transfer-encoding", "gzip")), Reason.AMBIGUOUS_FRAMING),
        ((("transfer-encoding", "Chunked"),), Reason.NONE),
        ((("transfer-encoding", "gzip, chunked"),), Reason.TRANSFER_CODING),
        ((("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")), Reason.TRANSFER_CODING),
        ((("content-length", "x"), ("host", "b")), Reason.HOST_HEADER),
        ((("content-length", "x"), ("expect", "")), Reason.EXPECT),
    ],
)
def test_header_lines(headers: tuple[tuple[str, str], ...], expected: Reason) -> None:
    assert reason(headers=headers) is expected


@pytest.mark.parametrize("method", ["TRACE", "get", "GE", "GETS", "OPTIONSX", "PROPFIND"])
def test_other_methods(method: str) -> None:
    assert reason(method=method) is Reason.METHOD


def test_the_request_line_comes_first() -> None:
    assert reason("//", method="FOO") is Reason.METHOD
    assert reason("a:443", method="CONNECT", headers=(("te", ""),)) is Reason.UPGRADE
    assert reason("//", headers=(("te", ""),)) is Reason.PATH_NORMALIZATION


def test_size() -> None:
    lines = tuple((f"h{i}", "v") for i in range(LIMITS.headers - 1))
    assert reason(headers=lines) is Reason.NONE
    assert reason(headers=(*lines, ("te", ""))) is Reason.TOO_MANY_HEADERS
    frame = len("GET / HTTP/1.1\r\nhost: a\r\nh: \r\n\r\n")
    assert reason(headers=(("h", "v" * (LIMITS.head - frame)),)) is Reason.NONE
    assert reason(headers=(("h", "v" * (LIMITS.head - frame + 1)),)) is Reason.HEAD_TOO_LONG
    assert reason(headers=(("te", ""), ("h", "v" * LIMITS.head))) is Reason.HOP_BY_HOP_HEADER


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/a//b/../c", "/a//c"),  # these five as a real Envoy was seen to do
        ("/prefix/../exact", "/exact"),
        ("/%65xact", "/exact"),
        ("/prefix%2Fx", "/prefix%2Fx"),
        ("//exact", "//exact"),
        ("/../..", "/"),
        ("/a/b/..", "/a/"),
        ("/a/.", "/a/"),
        ("/a/%2E%2e/b", "/b"),
        ("/a..b/.c/..d", "/a..b/.c/..d"),
        ("/a\\b", "/a/b"),
        ("/a b", "/a%20b"),
        ("/100%", "/100%"),
        ("/a/..;b/c", "/c"),  # the rest as well
        ("/.;a", "/"),
        ("/a/.;..;/b", "/a/b"),
        ("/a/;../b", "/a/;../b"),
        ("/a/...;b", "/a/...;b"),
        ("/a/..;b\\c/d", "/d"),
        ("/a\\..;b", "/a/..;b"),
        ("/a/%2e.;b/c", "/a/..;b/c"),
    ],
)
def test_normalisation(path: str, expected: str) -> None:
    assert canonical_path(path) == expected
