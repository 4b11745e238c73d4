"""Requests that are nearly plain HTTP/1.1, from a seed: put together of odd parts, then damaged here and there."""

from __future__ import annotations

import random
import string
from collections.abc import Iterator, Sequence
from typing import Final


def _words(text: str, *long: bytes) -> tuple[bytes, ...]:
    """Words between blanks, with Python's escapes, \\s for a blank and \\e for nothing; and long ones."""
    escaped = (word.replace(r"\s", r"\x20").removeprefix(r"\e") for word in text.split())
    return (*(word.encode().decode("unicode_escape").encode("latin-1") for word in escaped), *long)


_TOKEN: Final = (string.ascii_letters + string.digits + "!#$%&'*+-.^_`|~").encode()
_PATH: Final = (string.ascii_letters + string.digits + "-_.~!$&'()*+,;=:@/").encode()
_QUERY: Final = bytes(byte for byte in range(0x21, 0x7F) if byte != ord("#"))
_HOST: Final = (string.ascii_letters + string.digits + ".-_").encode()
_VALUE: Final = bytes((9, *range(0x20, 0x7F), *range(0x80, 0x100)))

_METHODS: Final = _words(
    r"""
    GET GET POST POST PUT DELETE HEAD OPTIONS PATCH TRACE CONNECT PRI PROPFIND PURGE REPORT M-SEARCH LIST GETX G Get get
    GET\t G'T POST\s
    """
)
_TARGETS: Final = _words(
    r"""
    / /a/b?c=d /index.html /a?b?c /? /a;b=c /a:80/ /@ // /a/../b /%2e%2e/ * http://a/b a:80 /a#b /a?# /a\sb /a?b\sc
    /\xc3\xa9 /?q="<>^`{|}\\ /..a/.b /a?/../b// /a?http://b/ /a,b /a/. /...
    """,
    b"/" + b"a" * 700,
    b"/?" + b"a=b&" * 300,
)
_HOSTS: Final = _words(
    r"""
    a a.b.c:80 10.0.0.1:9080 A_b-c. . - _ a:0 a:99999 a:000080 a: :80 1 1.2.3.4.5 a..b u@a [::1]:80 a,b a\sb \e 0x7f.1
    a:1111111111111111111111111111111111111111
    """,
    b"h" * 300,
)
_NAMES: Final = _words(
    r"""
    x X-Y accept cookie Content-Type user-agent x-forwarded-for x-forwarded-proto forwarded via keep-alive trailer
    content-encoding content-md5 range if-match a_b authorization x-request-id x-envoy-a te expect upgrade
    http2-settings proxy-connection content-lengt content_length transfer_encoding transfer-encodin transfer-encoding2
    status method path authority scheme protocol connectio hos hostt x-host date age early-data grpc-timeout origin
    referer x-client-trace-id x-ot-span-context ! | ~'* x-forwarded-host x-original-host x-forwarded-port
    x-forwarded-client-cert x-b3-traceid 0 access-control-request-method cache-control proxy-authorization proxy-status
    content-location
    """
)
_VALUES: Final = _words(
    r"""
    \e a a\sb a,b a;b " "a\\"b" close keep-alive chunked 5 0 -1 trailers application/grpc application/json gzip
    100-continue h2c \xff caf\xc3\xa9 a\tb , : a\xa0b \x80 http/1.1 a=b;\sc=d identity \xa0 \x85 http https ftp
    """,
    b"x" * 300,
)
_CONNECTIONS: Final = _words(
    r"""
    close keep-alive Close keep-alive,\sclose close,close \e , te upgrade x closed close\s,\skeep-alive keep-alive,,
    \tclose content-length transfer-encoding host proxy-connection
    """
)
_LENGTHS: Final = _words(
    r"""
    5 0 00 005 5\s \t5 +5 -5 5,5 5; 0x5 5.0 5\s5 \e 1e1 \xb5 0000000000000000005 00000000000000000005
    4611686018427387904 4611686018427387905 9223372036854775808 6 4 18446744073709551615 18446744073709551621
    99999999999999999999 2147483648 4294967301
    """
)
_CODINGS: Final = _words(
    r"""
    chunked Chunked CHUNKED \tchunked chunked\s chunked\t \schunked xchunked chunkedx gzip,\schunked chunked,\schunked
    identity chunked, ,chunked chunked;q=1 "chunked" \e gzip chunked\x0b chunked\xa0 chun\xadked chunked,\sidentity
    identity,\schunked \xefchunked
    """
)
_SIZES: Final = _words(
    r"""
    %x %x %x %X 0%x 000000000%x %016x %017x %x\s %x\t \s%x 0x%x +%x %x; %x;a=b %x;a="b" %x;a="b;c\\"" %x\s;a %x;\sa
    %x;a\tb %x;\xff %xg %x, %x\xb2 %x;a=b;c=d %x;; %x;= %x\s\s\t\s;a %x\sa %x;a=" %x;a\x0bb 1%016x
    """,
    b"%x;" + b"e" * 300,
)
_TRAILERS: Final = _words(
    r"""
    t:\su\r\n t:\r\n T:\su\r\nv:\sw\r\n content-length:\s3\r\n transfer-encoding:\schunked\r\n host:\sb\r\n t\s:\su\r\n
    \st:\su\r\n :\su\r\n t\r\n t:\su\n t:\s\xff\r\n t:\su\r\n\sv\r\n \xfft:\su\r\n t:\s\x00\r\n connection:\sclose\r\n
    expect:\s100-continue\r\n a_b:\sc\r\n
    """,
    b"x" * 40 + b": " + b"y" * 500 + b"\r\n",
)
_STATUS_LINES: Final = tuple(
    b"HTTP/1.1 " + status
    for status in _words(
        r"""
        200 200\s 299\sa\sb 600\sx 999\s 404\s\xe9\t! 101\sx 100\s 199\s 099\s 20\s 2000\s \s200\s \t200\s +20\s 205\sa
        """
    )
) + _words(r"HTTP/1.0\s200\sOK HTTP/1.2\s200\s http/1.1\s200\s HTTP/1.1\t200\s ICY\s200\s HTTP/2\s200\s")
_INTERIM: Final = _words(
    r"""
    HTTP/1.1\s100\sContinue\r\n\r\n HTTP/1.1\s103\sHints\r\nlink:\sx\r\n\r\n HTTP/1.1\s102\r\ncontent-length:\s9\r\n\r\n
    """
)
_SPECIAL: Final = _words(
    r"""
    \r \n \r\n \x00 \s \t : , ; \x0b \x0c \x7f \x80 \xff " ' \\ / . ? # % @ [ = 0 + - _ \x1f \x85 \xa0 \r\n\s
    """
)


class Mutator:
    """Endless, and the same for the same seed and corpus."""

    def __init__(self, seed: int, corpus: Sequence[bytes]) -> None:
        self._random = random.Random(seed)
        self._corpus = tuple(corpus)

    def requests(self) -> Iterator[bytes]:
        """Requests, most of them well-formed."""
        chance = self._random.random
        while True:
            made = self._random.choice(self._corpus) if self._corpus and chance() < 0.25 else self._composed()
            while made and chance() < 0.45:
                made = self._damaged(made)
            if made:
                yield made

    def responses(self) -> Iterator[bytes]:
        """Responses, most of them well-formed."""
        chance = self._random.random
        while True:
            made = self._random.choice(self._corpus) if self._corpus and chance() < 0.25 else self._response()
            while made and chance() < 0.4:
                made = self._damaged(made)
            if made:
                yield made

    def _response(self) -> bytes:
        pick = self._random
        lines = [self._line(pick.choice(_NAMES), pick.choice(_VALUES)) for _ in range(pick.randint(0, 4))]
        if pick.random() < 0.2:
            lines.append(self._line(b"connection", pick.choice(_CONNECTIONS)))
        body = self._body(lines)
        pick.shuffle(lines)
        first = self._either(b"HTTP/1.1 %d OK" % pick.choice((200, 200, 204, 304, 404, 503)), _STATUS_LINES, 0.2)
        interim = pick.choice(_INTERIM) if pick.random() < 0.1 else b""
        return interim + first + b"\r\n" + b"".join(lines) + b"\r\n" + body

    def _some(self, characters: bytes, most: int) -> bytes:
        return bytes(self._random.choices(characters, k=self._random.randint(1, most)))

    def _either(self, usual: bytes, odd: Sequence[bytes], chance: float = 0.35) -> bytes:
        return self._random.choice(odd) if self._random.random() < chance else usual

    def _composed(self) -> bytes:
        pick = self._random
        target = self._either(b"/" + self._some(_PATH, 30), _TARGETS)
        if pick.random() < 0.3:
            target += b"?" + self._some(_QUERY, 30)
        method = self._either(pick.choice((b"GET", b"POST", b"PUT", b"DELETE")), _METHODS)
        if pick.random() < 0.02:
            method = self._some(_TOKEN, 40)
        host = self._either(b"a.example:80", _HOSTS)
        if pick.random() < 0.2:
            host = self._some(_HOST, 40) + pick.choice((b"", b":%d" % pick.randint(0, 70000)))
        lines = [self._line(b"host", host)]
        for _ in range(pick.randint(0, 5)):
            name = pick.choice(_NAMES) if pick.random() < 0.7 else self._some(_TOKEN, 40)
            value = pick.choice(_VALUES) if pick.random() < 0.6 else self._some(_VALUE, 60)
            lines.append(self._line(name, value))
        if pick.random() < 0.2:
            lines.append(self._line(b"connection", pick.choice(_CONNECTIONS)))
        body = self._body(lines)
        if pick.random() < 0.3:
            pick.shuffle(lines)
        if pick.random() < 0.03:
            lines += [self._line(b"h%d" % i, b"v" * pick.randint(0, 130)) for i in range(pick.randint(50, 70))]
        return method + b" " + target + b" HTTP/1.1\r\n" + b"".join(lines) + b"\r\n" + body

    def _line(self, name: bytes, value: bytes) -> bytes:
        pick = self._random
        if pick.random() < 0.3:
            name = bytes(pick.choice((byte, ord(chr(byte).upper()))) if byte < 128 else byte for byte in name)
        before = self._either(b" ", (b"", b"\t", b"  ", b" \t ", b" " * 40), 0.2)
        after = self._either(b"", (b" ", b"\t", b" \t" * 10), 0.1)
        return name + b":" + before + value + after + b"\r\n"

    def _body(self, lines: list[bytes]) -> bytes:
        pick = self._random
        how = pick.random()
        if how < 0.4:
            return b""
        content = self._some(bytes(range(256)), 20)
        if how < 0.65:
            lines.append(self._line(b"content-length", self._either(b"%d" % len(content), _LENGTHS, 0.4)))
            return content
        lines.append(self._line(b"transfer-encoding", self._either(b"chunked", _CODINGS, 0.25)))
        if pick.random() < 0.05:
            lines.append(self._line(b"content-length", pick.choice(_LENGTHS)))
        body = b""
        for _ in range(pick.randint(0, 3)):
            content = self._some(bytes(range(256)), 40)
            body += self._either(b"%x", _SIZES) % len(content) + b"\r\n" + content + b"\r\n"
        body += self._either(b"%x", _SIZES, 0.2) % 0 + b"\r\n"
        for _ in range(pick.choice((0, 0, 0, 1, 2))):
            body += pick.choice(_TRAILERS)
        return body + b"\r\n"

    def _place(self, data: bytes) -> int:
        """Anywhere, or where something begins or ends."""
        at = self._random.randint(0, len(data))
        if self._random.random() < 0.6:
            while at < len(data) and data[at] not in b" :\r\n,;/.?":
                at += 1
        return min(at + self._random.choice((0, 0, 1, 2)), len(data))

    def _damaged(self, data: bytes) -> bytes:
        pick = self._random
        at = self._place(data)
        match pick.randint(0, 5):
            case 0:
                return data[:at] + pick.choice(_SPECIAL) + data[at:]
            case 1:
                return data[:at] + pick.choice(_SPECIAL) + data[at + 1 :]
            case 2:
                return data[:at] + data[at + pick.choice((1, 1, 2, 10)) :]
            case 3:
                return data[:at] + bytes([pick.randint(0, 255)]) + data[at + pick.choice((0, 1)) :]
            case 4:
                lines = data.split(b"\r\n")
                lines.insert(pick.randint(1, len(lines)), pick.choice(lines))
                return b"\r\n".join(lines)
            case _:
                lines = data.split(b"\r\n")
                del lines[pick.randint(0, len(lines) - 1)]
                return b"\r\n".join(lines)
