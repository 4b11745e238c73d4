"""`python -m demo.bookinfo SERVICE --version v1 --listen IP:PORT`: one server process of bookinfo."""

from __future__ import annotations

import argparse
import signal
import sys

from demo.bookinfo.http import make_server
from demo.bookinfo.services import handle_for
from demo.bookinfo.topology import SERVICE_ADDRESSES, service_address


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is not IP:PORT")
    return host, int(port)


def _service(text: str) -> tuple[str, tuple[str, int]]:
    name, equals, address = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=IP:PORT")
    return name, _address(address)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m demo.bookinfo", description=__doc__)
    parser.add_argument("service", choices=[name for name, _ in SERVICE_ADDRESSES])
    parser.add_argument("--version", default="v1")
    parser.add_argument("--listen", type=_address, required=True, metavar="IP:PORT")
    parser.add_argument(
        "--service",
        dest="services",
        type=_service,
        action="append",
        default=[],
        metavar="NAME=IP:PORT",
        help="where another service is (default: its virtual address in the captured configuration)",
    )
    arguments = parser.parse_args()
    pod = f"{arguments.service}-{arguments.version}"
    addresses = {name: service_address(name) for name, _ in SERVICE_ADDRESSES} | dict(arguments.services)
    try:
        server = make_server(arguments.listen, pod, handle_for(arguments.service, arguments.version), addresses)
    except OSError as error:
        sys.stderr.write(f"{pod}: cannot listen on {arguments.listen[0]}:{arguments.listen[1]}: {error.strerror}\n")
        return 1
    # serve_forever runs in this thread, so `shutdown` would wait for itself: leave by an exception.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
