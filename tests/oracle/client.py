"""The client of the cases: `python -m tests.oracle.client`, run in the captured workload by `xlb exec`.

Reads one JSON object a line on standard input and answers with one a line on standard output:

    {"to": [ip, port], "method", "host", "path", "headers": [[name, value]...], "tcp": false,
     "count": n, "reuse": false, "timeout": seconds}

Sends the request `count` times, each on a new connection, or with `reuse` all on the one that the previous order left
open.  The answer is a list with an object for each request: `status` (0: no response, and `body` says why), `served`,
`body`, `headers` of the response, `elapsed_s`, and what the backend `saw`.  For `tcp`, some bytes are sent and `served`
is what came back.
"""

from __future__ import annotations

import http.client
import json
import socket
import sys
import time
from typing import Any, Final

from tests.oracle.echo import ECHO_HEADER

# http.client does the same: RFC 9110 section 8.6 wants a length where the method gives a body a meaning.
_LENGTH_EXPECTED: Final = frozenset({"POST", "PUT", "PATCH"})
_TCP_HELLO: Final = b"\x00oracle\n"


def main() -> int:
    """Answer orders until standard input ends.  Returns the exit code."""
    open_connection: http.client.HTTPConnection | None = None
    for line in sys.stdin:
        order = json.loads(line)
        answers = []
        for _ in range(order["count"]):
            if order["tcp"]:
                answers.append(_tcp(order))
                continue
            if open_connection is None or not order["reuse"]:
                if open_connection is not None:
                    open_connection.close()
                address, port = order["to"]
                open_connection = http.client.HTTPConnection(address, port, timeout=order["timeout"])
            answers.append(_http(open_connection, order))
        print(json.dumps(answers), flush=True)
    return 0


def _http(connection: http.client.HTTPConnection, order: dict[str, Any]) -> dict[str, Any]:
    start = time.monotonic()
    try:
        connection.putrequest(order["method"], order["path"], skip_host=True, skip_accept_encoding=True)
        connection.putheader("Host", order["host"])
        for name, value in order["headers"]:
            connection.putheader(name, value)
        if order["method"] in _LENGTH_EXPECTED:
            connection.putheader("Content-Length", "0")
        connection.endheaders()
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        return _failed(start, error)
    served = response.headers.get(ECHO_HEADER)
    return {
        "status": response.status,
        "served": served,
        "body": body.decode(errors="replace") if served is None else "",
        "headers": response.headers.items(),
        "elapsed_s": time.monotonic() - start,
        "saw": json.loads(body) if served is not None and body else None,
    }


def _tcp(order: dict[str, Any]) -> dict[str, Any]:
    start = time.monotonic()
    address, port = order["to"]
    try:
        with socket.create_connection((address, port), timeout=order["timeout"]) as connection:
            connection.sendall(_TCP_HELLO)
            said = connection.makefile("rb").readline()
    except OSError as error:
        return _failed(start, error)
    served = said.decode(errors="replace").strip() or None
    elapsed = time.monotonic() - start
    return {"status": 0, "served": served, "body": "", "headers": [], "elapsed_s": elapsed, "saw": None}


def _failed(start: float, error: Exception) -> dict[str, Any]:
    said = f"{type(error).__name__}: {error}"
    return {
        "status": 0,
        "served": None,
        "body": said,
        "headers": [],
        "elapsed_s": time.monotonic() - start,
        "saw": None,
    }


if __name__ == "__main__":
    sys.exit(main())
