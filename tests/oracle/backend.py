"""One backend: `python -m tests.oracle.backend LOG NAME=ADDRESS:PORT...`.

HTTP/1.1 with keep-alive and HTTP/2 with prior knowledge, answered as `echo` says.  A first byte that begins no HTTP
method is answered with the backend's name and a line end.  Each request adds the backend's name as a line to LOG
(O_APPEND: whole lines).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from http import HTTPStatus
from typing import Final

from tests.oracle.echo import Response, Seen, respond

_MAX_HEAD: Final = 1 << 20
_HTTP2_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\n"


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
        head = first + await reader.readuntil(b"\r\n\r\n")
        if head == _HTTP2_PREFACE:
            from tests.oracle.http2 import converse  # most backends never need it

            await converse(reader, writer, head, self._answer)
            return
        while await self._http1(reader, writer, head):
            head = await reader.readuntil(b"\r\n\r\n")

    async def _http1(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> bool:
        """Answer one request; whether the connection stays open."""
        request, *lines = head.decode("latin-1")[:-4].split("\r\n")
        method, path, _ = request.split(" ", 2)
        headers = tuple((name, value.strip()) for name, _, value in (line.partition(":") for line in lines))
        seen = Seen(method, path, headers)
        await _skip_body(reader, seen)
        response = await self._answer(seen)
        closes = seen.header("connection").lower() == "close"
        writer.write(_http1_response(response, closes=closes, bare=method == "HEAD"))
        await writer.drain()
        return not closes

    async def _answer(self, seen: Seen) -> Response:
        self._note()
        await asyncio.sleep(seen.delay_s)
        return respond(self._name, seen)

    def _note(self) -> None:
        os.write(self._log, self._name.encode() + b"\n")


def _http1_response(response: Response, *, closes: bool, bare: bool) -> bytes:
    lines = [f"HTTP/1.1 {response.status} {_phrase(response.status)}"]
    lines += [f"{name}: {value}" for name, value in response.headers]
    if closes:
        lines.append("connection: close")
    return "\r\n".join([*lines, "", ""]).encode() + (b"" if bare else response.body)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


async def _skip_body(reader: asyncio.StreamReader, seen: Seen) -> None:
    if seen.header("transfer-encoding").lower() == "chunked":
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            await reader.readexactly(size + 2)
        while await reader.readuntil(b"\r\n") != b"\r\n":
            pass
    else:
        await reader.readexactly(int(seen.header("content-length", "0")))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
