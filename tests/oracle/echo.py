"""What a backend answers to a request: pure, whatever the protocol.

Each response tells what was seen, as JSON in the body (`method`, `path`, `headers` as pairs), and who saw it, in
`x-echo-backend`; there is no `server` header, so that one added on the way shows.  Request headers that matter:

    x-test-sleep: SECONDS       answer that much later
    x-test-status: STATUS       answer with it, for the first `x-test-fail-n` attempts (all, without that header)
    x-test-grpc: STATUS         likewise, as a gRPC status without a body

Which attempt it is, Envoy tells in `x-envoy-attempt-count`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Final

ECHO_HEADER: Final = "x-echo-backend"

_NO_BODY: Final = frozenset({204, 304})


@dataclass(frozen=True, slots=True)
class Seen:
    """A request as it came; names as written."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...]

    def header(self, name: str, default: str = "") -> str:
        """The last value of a header, by its name in lower case."""
        return next((value for n, value in reversed(self.headers) if n.lower() == name), default)

    @property
    def delay_s(self) -> float:
        return float(self.header("x-test-sleep", "0"))


@dataclass(frozen=True, slots=True)
class Response:
    """Names in lower case.  To HEAD, `body` is not sent, but its length is."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


def respond(backend: str, seen: Seen) -> Response:
    """What the backend of that name answers."""
    who = (ECHO_HEADER, backend)
    failing = int(seen.header("x-envoy-attempt-count", "1")) <= int(seen.header("x-test-fail-n", str(sys.maxsize)))
    if failing and (grpc_status := seen.header("x-test-grpc")):
        return Response(200, (who, ("content-type", "application/grpc"), ("grpc-status", grpc_status)), b"")
    status = int(seen.header("x-test-status", "200")) if failing else 200
    if status in _NO_BODY:
        return Response(status, (who,), b"")
    body = json.dumps({"method": seen.method, "path": seen.path, "headers": seen.headers}).encode()
    return Response(status, (who, ("content-type", "application/json"), ("content-length", str(len(body)))), body)
