"""Opens connections as the workload that it runs in, and hands them over: `python -m tests.e2e.dialer SOCKET`.

A socket belongs to the cgroup of the process that made and connected it, whoever uses it later; so a scene can be a
plain program and still be a client in the mesh.  Orders on the Unix socket (SEQPACKET), one JSON object each:

    {"to": [address, port], "ip6": false, "timeout": seconds, "options": [[level, name, value]...]}

`ip6`: an AF_INET6 socket, which reaches an IPv4 address as ::ffff:a.b.c.d, as Java's do.  The answer is {} with the
connected descriptor, or {"errno": n}.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
from typing import Any, Final

BUFFER: Final = 4096


def main(arguments: list[str]) -> int:
    """Serve one scene until it ends.  Returns the exit code."""
    (path,) = arguments
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen()
        scene, _ = listener.accept()
    os.unlink(path)
    with scene:
        while order := scene.recv(BUFFER):
            _serve(scene, json.loads(order))
    return 0


def _serve(scene: socket.socket, order: dict[str, Any]) -> None:
    address, port = order["to"]
    if order["ip6"] and ":" not in address:
        address = f"::ffff:{address}"
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as connection:
        for level, name, value in order["options"]:
            connection.setsockopt(level, name, value)
        connection.settimeout(order["timeout"])
        try:
            connection.connect((address, port))
        except OSError as error:
            number = errno.ETIMEDOUT if isinstance(error, TimeoutError) else error.errno
            scene.send(json.dumps({"errno": number}).encode())
            return
        socket.send_fds(scene, [b"{}"], [connection.fileno()])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
