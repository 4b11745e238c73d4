"""The HTTP/1.1 half that all four services share: a keep-alive server and a keep-alive client."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

JSON_TYPE: Final = "application/json"
HTML_TYPE: Final = "text/html; charset=utf-8"

# What a service hands on to the services it calls, so that rules on these headers hold for the whole chain.
FORWARDED_HEADERS: Final = ("end-user", "x-request-id", "x-demo-id", "traceparent", "tracestate")

_UPSTREAM_TIMEOUT_S: Final = 15.0


@dataclass(frozen=True, slots=True)
class Answer:
    """One response: status, body and its media type."""

    status: int
    body: bytes
    content_type: str = JSON_TYPE

    @classmethod
    def json(cls, value: object, status: int = 200) -> Answer:
        return cls(status, json.dumps(value).encode() + b"\n")


@dataclass(frozen=True, slots=True)
class Upstream:
    """What another service answered; `status` 0 means that no answer came, and `error` says why."""

    status: int
    value: Mapping[str, Any]
    error: str = ""


class Calls:
    """Keep-alive connections to other services, owned by one downstream connection (and so by one thread).

    Nothing is repeated: a call that fails is reported as it is, because a hidden second try would hide lost requests.
    """

    def __init__(self, addresses: Mapping[str, tuple[str, int]]) -> None:
        self._addresses = addresses
        self._connections: dict[str, http.client.HTTPConnection] = {}

    def get(self, service: str, path: str, headers: Mapping[str, str]) -> Upstream:
        """GET `path` from `service`, with `Host: SERVICE:PORT`, by the service's virtual address."""
        address, port = self._addresses[service]
        connection = self._connections.get(service)
        if connection is None:
            connection = http.client.HTTPConnection(address, port, timeout=_UPSTREAM_TIMEOUT_S)
            self._connections[service] = connection
        try:
            connection.request("GET", path, headers={"Host": f"{service}:{port}", **headers})
            response = connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            return Upstream(0, {}, f"{type(error).__name__}: {error}")
        if response.status != 200:
            return Upstream(response.status, {}, body.decode(errors="replace").strip())
        return Upstream(response.status, json.loads(body))

    def close(self) -> None:
        for connection in self._connections.values():
            connection.close()


Handle = Callable[[str, Mapping[str, str], Calls], Answer]
"""A service: (path, headers to hand on, calls) -> answer."""


class _Server(ThreadingHTTPServer):
    request_queue_size = 1024
    allow_reuse_address = True


def make_server(
    listen: tuple[str, int], pod: str, handle: Handle, addresses: Mapping[str, tuple[str, int]]
) -> ThreadingHTTPServer:
    """A server bound to `listen`; call `serve_forever`.  Raises OSError when the address cannot be bound."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        server_version = f"bookinfo/{pod}"
        sys_version = ""
        # Head and body leave in one write: two small writes would meet Nagle and the peer's delayed ACK.
        wbufsize = -1
        disable_nagle_algorithm = True

        def setup(self) -> None:
            super().setup()
            self._calls = Calls(addresses)

        def finish(self) -> None:
            self._calls.close()
            super().finish()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            headers = {name: self.headers[name] for name in FORWARDED_HEADERS if name in self.headers}
            answer = Answer.json({"status": "healthy"}) if path == "/health" else handle(path, headers, self._calls)
            self.send_response(answer.status)
            self.send_header("content-type", answer.content_type)
            self.send_header("content-length", str(len(answer.body)))
            self.send_header("x-bookinfo-pod", pod)
            if "x-demo-id" in headers:
                self.send_header("x-demo-id", headers["x-demo-id"])
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing per request: the demonstration prints what the client saw."""

    return _Server(listen, Handler)
