"""One backend: `python -m tests.oracle.backend LOG NAME=ADDRESS:PORT...`.

HTTP/1.1 with keep-alive.  Each response tells what was seen, as JSON in the body (`method`, `path`, `headers` as
pairs), and who saw it, in `x-echo-backend`; there is no `server` header, so that one added on the way shows.  Request
headers that matter:

    x-test-sleep: SECONDS       answer that much later
    x-test-status: STATUS       answer with it, for the first `x-test-fail-n` attempts (all, without that header)

Which attempt it is, Envoy tells in `x-envoy-attempt-count`.  A first byte that begins no HTTP method is answered with
the backend's name and a line end.  Each request adds the backend's name as a line to LOG (O_APPEND: whole lines).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

ECHO_HEADER: Final = "x-echo-backend"

_MAX_HEAD: Final = 1 << 20
_NO_BODY: Final = frozenset({204, 304})


def main(arguments: list[str]) -> int:
    """See the module's docstring.  Returns the exit code."""
    if len(arguments) < 2:
        print("usage: python -m tests.oracle.backend LOG NAME=ADDRESS:PORT...", file=sys.stderr)
        return 2
    listens = []
    for word in arguments[1:]:
        name, _, listen = word.partition("=")
        address, _, port = listen.rpartition(":")
        listens.append((name, address, int(port)))
    log = os.open(arguments[0], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(log, listens))
    return 0


async def _serve(log: int, listens: list[tuple[str, str, int]]) -> None:
    async with contextlib.AsyncExitStack() as servers:
        for name, address, port in listens:
            backend = _Backend(log, name)
            server = await asyncio.start_server(backend.connection, address, port, limit=_MAX_HEAD, backlog=1024)
            await servers.enter_async_context(server)
        await asyncio.get_running_loop().create_future()


class _Backend:
    """What one listener answers."""

    def __init__(self, log: int, name: str) -> None:
        self._log = log
        self._name = name

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._converse(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return  # the client went away, or sent what is no request: nothing to answer
        finally:
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = await reader.readexactly(1)
        if not first.isupper():
            self._note()
            writer.write(self._name.encode() + b"\n")
            await writer.drain()
            return
        while True:
            head = first + await reader.readuntil(b"\r\n\r\n")
            request, *lines = head.decode("latin-1")[:-4].split("\r\n")
            method, path, _ = request.split(" ", 2)
            headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
            by_name = {name.lower(): value for name, value in headers}
            await _skip_body(reader, by_name)
            self._note()
            await asyncio.sleep(float(by_name.get("x-test-sleep", "0")))
            closes = by_name.get("connection", "").lower() == "close"
            writer.write(self._response(method, path, headers, by_name, closes))
            await writer.drain()
            if closes:
                return
            first = b""

    def _note(self) -> None:
        os.write(self._log, self._name.encode() + b"\n")

    def _response(
        self, method: str, path: str, headers: list[tuple[str, str]], by_name: Mapping[str, str], closes: bool
    ) -> bytes:
        status = _status(by_name)
        body = json.dumps({"method": method, "path": path, "headers": headers}).encode()
        head = [f"HTTP/1.1 {status} {_phrase(status)}", f"{ECHO_HEADER}: {self._name}"]
        if status in _NO_BODY:
            body = b""
        else:
            head += ["content-type: application/json", f"content-length: {len(body)}"]
        if closes:
            head.append("connection: close")
        if method == "HEAD":
            body = b""
        return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def _status(headers: Mapping[str, str]) -> int:
    """What to answer with."""
    failing = int(headers.get("x-test-fail-n", sys.maxsize))
    attempt = int(headers.get("x-envoy-attempt-count", "1"))
    return int(headers.get("x-test-status", "200")) if attempt <= failing else 200


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


async def _skip_body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> None:
    if headers.get("transfer-encoding", "").lower() == "chunked":
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            await reader.readexactly(size + 2)
        while await reader.readuntil(b"\r\n") != b"\r\n":
            pass
    else:
        await reader.readexactly(int(headers.get("content-length", "0")))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
