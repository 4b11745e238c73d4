"""Programs that people use, as clients: each checks all that it gets and ends with an error at the first oddity."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Final

from demo.bookinfo.topology import service_address
from tests.bench.lab import need
from tests.bench.load import parse_wrk, wrk_command
from tests.bench.mesh import difference
from tests.e2e.wire import Wire, digest, payload
from tests.e2e.world import FAST, World, check_answer, slow

_CLIENTS: Final = Path(__file__).parents[1] / "clients"
_ADDRESS: Final = service_address("details")
_URL: Final = f"http://{_ADDRESS[0]}:{_ADDRESS[1]}"
_HOST: Final = "Host: details:9080"
_PROXY: Final = ("127.0.0.1", 8088)


def curl(world: World) -> None:
    """Forty downloads on one connection, fast and slow, then uploads with and without `Expect`."""
    world.warm()
    home = world.lab.directory / "curl"
    home.mkdir()
    paths = [f"/length/{size * size * 100}" for size in range(20)]
    words: list[str] = []
    for number, path in enumerate([*paths, *map(slow, paths)]):
        words += ["-o", str(home / str(number)), _URL + path]
    common = ("curl", "-sS", "--fail", "--path-as-is", "-H", _HOST, "--max-time", "10")
    told = world.run_client(*common, "-w", "%{num_connects} ", *words)
    assert sum(map(int, told.split())) == 1, f"connections made for each: {told}"
    for number, path in enumerate([*paths, *paths]):
        body = (home / str(number)).read_bytes()
        assert body == payload(int(path.rpartition("/")[2])), f"{path}: {len(body)} bytes of another body"
    upload = home / "upload"
    for size in (1, 1000, 100_000, 3_000_000):  # curl never ends the chunks of an empty body that it expects 100 for
        upload.write_bytes(payload(size))
        for expect in ("Expect:", "Expect: 100-continue"):
            for chunked in ((), ("-H", "Transfer-Encoding: chunked")):
                head = world.run_client(
                    *(*common, "-D", "-", "-o", "/dev/null", "-H", expect, *chunked),
                    *("-X", "POST", "--data-binary", f"@{upload}", f"{_URL}/length/3"),
                )
                assert f"x-sha256: {digest(payload(size))}" in head, f"{size} bytes, {expect} {chunked}: {head}"


def python_http_client(world: World) -> None:
    """http.client, which sends head and body of a request apart."""
    program = f"""
import http.client, hashlib, random
from tests.e2e.wire import payload
connection = http.client.HTTPConnection({_ADDRESS[0]!r}, {_ADDRESS[1]}, timeout=5)
rng = random.Random(11)
for n in range(300):
    size, body = rng.choice((0, 10, 5000, 200_000)), payload(rng.choice((0, 10, 5000, 100_000)), str(n))
    path = f"/length/{{size}}" if rng.random() < 0.5 else f"/a/../length/{{size}}"
    connection.request(rng.choice(("POST", "PUT")), path, body, {{"Host": "details:9080", "x-id": str(n)}})
    response = connection.getresponse()
    assert response.read() == payload(size, str(n)), path
    assert response.headers["x-id"] == str(n) and response.status == 200
    assert response.headers["x-sha256"] == hashlib.sha256(body).hexdigest(), len(body)
print("done")
"""
    _plays(world, program_of_python=program)


def node(world: World) -> None:
    """Node's http with a keep-alive agent, 8 sockets at once."""
    need("node")
    _plays(world, "node", str(_CLIENTS / "client.mjs"), _URL)


def go(world: World) -> None:
    """net/http with 8 goroutines; heads of more than 4 KB leave in two writes."""
    need("go")
    binary = world.lab.directory / "client"
    # The first time, the standard library is compiled too.
    world.lab.run(["go", "build", "-o", binary, _CLIENTS / "client.go"], timeout=180)
    world.warm()
    before = world.counters()
    told = world.run_client(binary, _URL)
    assert told.strip() == "done", told
    counted = difference(before, world.counters())
    assert counted[FAST] > 500, f"of 1,600 requests: {dict(counted)}"


def java(world: World) -> None:
    """HttpClient, whose sockets are AF_INET6 and reach IPv4 as mapped addresses."""
    need("java")
    _plays(world, "java", str(_CLIENTS / "Client.java"), _URL)


def _plays(world: World, *argv: str, program_of_python: str = "") -> None:
    world.warm()
    before = world.counters()
    told = world.run_client(*(argv or (sys.executable, "-c", program_of_python)))
    assert told.strip() == "done", told
    counted = difference(before, world.counters())
    assert counted[FAST] > 100, f"of 300 requests or more: {dict(counted)}"


def mapped_ip6_sockets(world: World) -> None:
    """An AF_INET6 socket that reaches the virtual address as ::ffff:a.b.c.d, and sees it as its peer."""
    world.warm()
    wire = world.dial(ip6=True)
    assert wire.socket.getpeername()[:2] == (f"::ffff:{_ADDRESS[0]}", _ADDRESS[1])
    before = world.counters()
    for _ in range(20):
        assert world.get(wire, "/length/100").status == 200
        assert world.get(wire, slow("/length/100")).by_envoy
    assert difference(before, world.counters())[FAST] == 20
    assert world.dial().socket.getpeername() == _ADDRESS


def nginx_as_client(world: World) -> None:
    """nginx as a proxy with upstream keep-alive, buffered and not."""
    need("nginx")
    world.warm()
    home = world.lab.directory / "nginx"
    home.mkdir()
    (home / "nginx.conf").write_text(_nginx(home))
    nginx = world.lab.start("nginx", [*world.as_client(), "nginx", "-p", str(home), "-c", str(home / "nginx.conf")])
    world.lab.wait_listening("nginx", *_PROXY)
    before = world.counters()
    with Wire(socket.create_connection(_PROXY, 5.0)) as wire:
        for number in range(300):
            size = (0, 100, 4096, 70_000, 1_000_000)[number % 5]
            path = f"{('/buffered', '/direct')[number % 2]}/length/{size}"
            body, name = payload((0, 10, 20_000)[number % 3], str(number)), f"n{number}"
            answer = wire.ask(path, method="POST", headers=[("x-id", name)], body=body)
            check_answer(answer, name, path, body)
            assert answer.body == payload(size, name), f"{path}: {len(answer.body)} bytes of another body"
    counted = difference(before, world.counters())
    world.lab.stop(nginx)  # it keeps its connections
    assert counted[FAST] > 250, f"of 300 requests: {dict(counted)}"


def _nginx(home: Path) -> str:
    upstream = "proxy_pass http://details/; proxy_http_version 1.1; proxy_set_header Connection ''; "
    upstream += "proxy_set_header Host details:9080; proxy_request_buffering off; client_max_body_size 0;"
    temporary = "".join(
        f"{kind}_temp_path {home}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""\
daemon off;
worker_processes 1;
pid {home}/nginx.pid;
error_log {home}/error.log warn;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    {temporary}
    upstream details {{ server {_ADDRESS[0]}:{_ADDRESS[1]}; keepalive 8; }}
    server {{
        listen {_PROXY[0]}:{_PROXY[1]};
        location /buffered/ {{ {upstream} }}
        location /direct/ {{ {upstream} proxy_buffering off; }}
    }}
}}
"""


def wrk(world: World) -> None:
    """One second of load on 8 connections, fast and then slow: no error of any kind."""
    need("wrk")
    world.warm()
    for path in ("/length/70", slow("/length/70")):
        before = world.counters()
        sample = parse_wrk(world.run_client(*wrk_command(_URL + path, 1, 8)))
        assert sample.errors == 0, sample
        counted = difference(before, world.counters())
        print(path, sample, dict(counted))


def hey_without_keep_alive(world: World) -> None:
    """800 connections of one request each, 16 at a time."""
    need("hey")
    world.warm()
    words = ("-disable-keepalive", "-n", "800", "-c", "16", "-host", "details:9080", f"{_URL}/length/70")
    told = world.run_client("hey", *words)
    assert "[200]\t800 responses" in told, told
    assert "Error distribution" not in told, told
