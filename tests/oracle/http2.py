"""The HTTP/2 half of a backend (prior knowledge): requests are answered when they are complete, side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import h2.config
import h2.connection
import h2.events

from tests.oracle.echo import Response, Seen

_READ: Final = 1 << 16


async def converse(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    begun: bytes,
    answer: Callable[[Seen], Awaitable[Response]],
) -> None:
    """Serve one connection until the client closes it; `begun` is what was already read."""
    protocol = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
    protocol.initiate_connection()
    requests: dict[int, Seen] = {}

    async def flush() -> None:
        writer.write(protocol.data_to_send())
        await writer.drain()

    async def respond(stream: int, seen: Seen) -> None:
        response = await answer(seen)
        bare = seen.method == "HEAD" or not response.body
        protocol.send_headers(stream, [(":status", str(response.status)), *response.headers], end_stream=bare)
        if not bare:  # far below the initial window of 64 KB
            protocol.send_data(stream, response.body, end_stream=True)
        await flush()

    async with asyncio.TaskGroup() as answers:
        data = begun
        while data:
            for event in protocol.receive_data(data):
                if isinstance(event, h2.events.RequestReceived):
                    requests[event.stream_id] = _seen(event.headers or ())
                elif isinstance(event, h2.events.DataReceived):
                    protocol.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id)
                elif isinstance(event, h2.events.StreamEnded):
                    answers.create_task(respond(event.stream_id, requests.pop(event.stream_id)))
            await flush()
            data = await reader.read(_READ)


def _seen(fields: object) -> Seen:
    pairs = [(str(name), str(value)) for name, value in fields]  # type: ignore[attr-defined]
    pseudo = {name: value for name, value in pairs if name.startswith(":")}
    headers = [("host", pseudo.get(":authority", ""))]
    headers += [(name, value) for name, value in pairs if not name.startswith(":")]
    return Seen(pseudo.get(":method", ""), pseudo.get(":path", ""), tuple(headers))
