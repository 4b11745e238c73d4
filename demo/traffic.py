"""The client of the demonstration: `python -m demo.traffic`, run as a workload by `xlb exec`.

It is driven by JSON lines on standard input and answers each with one JSON line on standard output:

    {"do": "burst", "kind": NAME, "count": N}    N requests one after the other -> {"windows": [...], "lost": [...]}
    {"do": "start", "connections": N}            continuous traffic of all kinds on N threads -> {}
    {"do": "report"}                             what happened since the last one -> {"windows": [...], "lost": [...]}
    {"do": "stop"}                               end the continuous traffic -> {}

A window is [start, kind, status, backends, carried by Envoy, count, latency sum]; `start` is CLOCK_MONOTONIC in
seconds, cut to WINDOW_S, of the moment at which the request was sent.  It ends when standard input ends.
"""

from __future__ import annotations

import http.client
import itertools
import json
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from demo.kinds import KINDS, Kind, kind_named

WINDOW_S: Final = 0.005
_TIMEOUT_S: Final = 10.0
# Background traffic is there to notice losses, not to load the machine on which the benchmark runs.
_PAUSE_S: Final = 0.002


@dataclass(frozen=True, slots=True)
class Seen:
    """One checked answer."""

    kind: str
    status: int
    backends: str  # "reviews-v2", or for the whole page "details-v1 reviews-v2 ratings-v1"
    by_envoy: bool  # the answer bears Envoy's headers


class LostRequest(Exception):
    """A request that got no answer, or one that is not an answer to it."""


def check(kind: Kind, demo_id: str, status: int, headers: Mapping[str, str], body: bytes) -> Seen:
    """Judge one answer.  Raises LostRequest when it does not belong to the request or is not whole."""
    by_envoy = headers.get("server") == "envoy" or "x-envoy-upstream-service-time" in headers
    if "x-bookinfo-pod" not in headers:
        # A reply that no backend made.  Only an injected fault is one that was asked for.
        if status == 500 and body == b"fault filter abort":
            return Seen(kind.name, status, "(fault: 500)", by_envoy)
        raise LostRequest(f"{kind.name}: status {status}, not from a backend: {body[:80]!r}")
    if headers.get("x-demo-id") != demo_id:
        raise LostRequest(f"{kind.name}: answer to {headers.get('x-demo-id')!r}, asked {demo_id!r}")
    if status != 200:
        raise LostRequest(f"{kind.name}: status {status} from {headers['x-bookinfo-pod']}: {body[:80]!r}")
    try:
        answer = json.loads(body)
    except ValueError as error:
        raise LostRequest(f"{kind.name}: body is not whole: {error}") from error
    if answer["pod"] != headers["x-bookinfo-pod"] or not answer["pod"].startswith(kind.service):
        raise LostRequest(f"{kind.name}: head says {headers['x-bookinfo-pod']}, body says {answer['pod']}")
    return Seen(kind.name, status, _backends(kind, answer), by_envoy)


def _backends(kind: Kind, answer: Mapping[str, Any]) -> str:
    if "calls" not in answer:
        return str(answer["pod"])
    names = []
    for service, call in answer["calls"].items():
        # A fault injected between reviews and ratings is the rule at work; anything else missing is a loss.
        if call["status"] == 200:
            names.append(str(call["pod"]))
        elif call["status"] == 500 and call.get("error") == "fault filter abort":
            names.append(f"{service}:500")
        else:
            raise LostRequest(f"{kind.name}: call to {service}: status {call['status']} {call.get('error', '')}")
    return " ".join(names)


class Client:
    """Keep-alive connections of one thread, one per virtual address: kernel and Envoy answers mix on each."""

    def __init__(self, ids: Iterator[int]) -> None:
        self._ids = ids
        self._connections: dict[tuple[str, int], http.client.HTTPConnection] = {}

    def get(self, kind: Kind) -> Seen:
        """Send one request.  Nothing is repeated.  Raises LostRequest."""
        connection = self._connections.get(kind.to)
        if connection is None:
            connection = http.client.HTTPConnection(*kind.to, timeout=_TIMEOUT_S)
            self._connections[kind.to] = connection
        demo_id = f"d{next(self._ids)}"
        try:
            connection.request(
                "GET", kind.path, headers={"host": kind.host, "x-demo-id": demo_id, **dict(kind.headers)}
            )
            response = connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise LostRequest(f"{kind.name}: {type(error).__name__}: {error}") from error
        headers = {name.lower(): value for name, value in response.getheaders()}
        return check(kind, demo_id, response.status, headers, body)

    def close(self) -> None:
        for connection in self._connections.values():
            connection.close()


class Log:
    """What was seen since the last report.  Used by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[float, Seen]] = Counter()
        self._latency: defaultdict[tuple[float, Seen], float] = defaultdict(float)
        self._lost: list[tuple[float, str]] = []

    def send(self, client: Client, kind: Kind) -> None:
        start = time.monotonic()
        try:
            seen = client.get(kind)
        except LostRequest as error:
            with self._lock:
                self._lost.append((start, str(error)))
            return
        key = (round(start // WINDOW_S * WINDOW_S, 3), seen)
        with self._lock:
            self._counts[key] += 1
            self._latency[key] += time.monotonic() - start

    def take(self) -> dict[str, object]:
        with self._lock:
            counts, latency, lost = self._counts, self._latency, self._lost
            self._counts, self._latency, self._lost = Counter(), defaultdict(float), []
        windows = [
            [start, seen.kind, seen.status, seen.backends, seen.by_envoy, count, latency[start, seen]]
            for (start, seen), count in sorted(counts.items(), key=lambda item: item[0][0])
        ]
        return {"windows": windows, "lost": lost}


class Background:
    """Continuous traffic of all kinds on a few threads."""

    def __init__(self, log: Log, ids: Iterator[int], connections: int) -> None:
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(log, Client(ids), offset)) for offset in range(connections)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, log: Log, client: Client, offset: int) -> None:
        for kind in itertools.islice(itertools.cycle(KINDS), offset, None):
            if self._stop.is_set():
                break
            log.send(client, kind)
            time.sleep(_PAUSE_S)
        client.close()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def main() -> int:
    ids = itertools.count(1)  # next() on it is atomic
    bursts, background_log = Log(), Log()
    client = Client(ids)
    background: Background | None = None
    for line in sys.stdin:
        order = json.loads(line)
        reply: dict[str, object] = {}
        match order["do"]:
            case "burst":
                for _ in range(order["count"]):
                    bursts.send(client, kind_named(order["kind"]))
                reply = bursts.take()
            case "start":
                background = Background(background_log, ids, order["connections"])
            case "report":
                reply = background_log.take()
            case "stop" if background is not None:
                background.stop()
                background = None
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()
    if background is not None:
        background.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
