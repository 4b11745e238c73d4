"""Each part of XLB dies, one at a time, under traffic; what that may cost, and nothing else, is lost."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time

from tests.e2e.wire import Answer, Wire, payload, request
from tests.e2e.world import FAST, Traffic, World, slow, until

_JASON = [("end-user", "jason")]
_OLD, _NEW = "bookinfo-all-v1", "bookinfo-reviews-test-v2-jason"
_REVIEWS = ("details-v1", "reviews-v1", "reviews-v2")


def agent_killed() -> None:
    """kill -9 of the agent, twice: no request is lost; the next agent takes over, and rules can be switched."""
    with World(_OLD, _REVIEWS) as world:
        world.warm()
        keeper, envoy = world.pid("keeper"), world.pid("envoy")
        with Traffic(world, ["/length/100", slow("/length/50")], 4) as traffic:
            traffic.flow()
            for _ in range(2):
                world.mesh.kill_agent()
                traffic.flow(100)
                fresh = world.dial()
                assert fresh.ask("/length/9").status == 200, "a new connection while there is no agent"
                fresh.close()
                world.mesh.start_agent()
                traffic.flow(100)
            _wait_in_force(world)
            traffic.flow()
        assert not traffic.lost, traffic.lost
        assert all(word.startswith("200 ") for word in traffic.answers), traffic.answers
        assert (world.pid("keeper"), world.pid("envoy")) == (keeper, envoy), "keeper or Envoy was started again"
        assert _reviewer(world) == "reviews-v1"
        world.mesh.switch(_NEW)
        assert _reviewer(world) == "reviews-v2"


def agent_replaced() -> None:
    """SIGHUP ends the agent alone, for an upgrade: no request is lost, and the old process does end."""
    with World() as world:
        world.warm()
        agent = world.pid("agent")
        with Traffic(world, ["/length/100", slow("/length/50")], 4) as traffic:
            traffic.flow()
            os.kill(agent, signal.SIGHUP)
            until("the end of the old agent", lambda: not _is_running(agent), 10.0)
            world.mesh.kill_agent()
            traffic.flow(100)
            world.mesh.start_agent()
            _wait_in_force(world)
            traffic.flow(100)
        assert not traffic.lost, traffic.lost


def keeper_killed() -> None:
    """kill -9 of the keeper: meanwhile connections reach what they dial, within 2 s they are carried again."""
    with World() as world:
        world.warm()
        held = [world.dial() for _ in range(5)]
        for wire in held:
            assert world.get(wire, "/length/10").status == 200
        with _Original():
            keeper = world.kill("keeper")
            start = time.monotonic()
            seen: list[str] = []

            def carried() -> bool:
                before = world.counters()[FAST]
                with world.dial(timeout=2.0) as wire:
                    answer = wire.ask("/length/10")
                assert answer.status == 200, answer
                seen.append(answer.headers.get("x-pod", "?"))
                return world.counters()[FAST] > before

            until("a request carried by the kernel", carried, 4.0)
            took = time.monotonic() - start
        print(f"{took:.2f} s, answered by", seen)
        assert took < 2.0, f"it took {took:.2f} s; answered by {seen}"
        assert world.pid("keeper") not in (0, keeper)
        for wire in held:
            _ends(wire)
        with world.dial() as wire:
            for _ in range(20):
                assert world.get(wire, "/length/10").status == 200
                assert world.get(wire, slow("/length/10")).by_envoy
                assert world.get(wire, "/length/10", method="POST", body=payload(1000)).status == 200


def keeper_killed_under_load() -> None:
    """Four times under traffic: what was in flight is lost, nothing hangs, nothing is answered wrongly."""
    with World() as world:
        world.warm()
        with Traffic(world, ["/length/100", slow("/length/50")], 4) as traffic:
            for _ in range(3):
                traffic.flow(60)
                keeper = world.kill("keeper")
                world.wait_part("keeper", keeper)
                until("answers", lambda: traffic.total() and not _grows(traffic.lost), 5.0)
            lost = len(traffic.lost)
            traffic.flow(200)
            assert len(traffic.lost) == lost, traffic.lost[lost:]
        print(dict(traffic.answers), len(traffic.lost), "lost")
        assert all(word.startswith("200 ") for word in traffic.answers), traffic.answers
        assert not [why for why in traffic.lost if "TimeoutError" in why or "Assertion" in why], traffic.lost
        world.warm()


def envoy_killed() -> None:
    """kill -9 of Envoy: the kernel's requests do not notice; the others get 503 until it is back."""
    with World() as world:
        world.warm()
        wire = world.dial()
        assert world.get(wire, slow("/length/10")).by_envoy
        with Traffic(world, ["/length/100"], 4) as traffic:
            traffic.flow()
            envoy = world.kill("envoy")
            answers: list[Answer] = []

            def again() -> bool:
                nonlocal wire
                answers.append(wire.ask(slow("/length/10")))
                if answers[-1].closes:
                    assert wire.at_end()
                    wire = world.dial()
                return answers[-1].status == 200

            until("an answer by Envoy", again, 10.0)
            traffic.flow(100)
        print([answer.status for answer in answers[:20]], len(answers))
        assert {answer.status for answer in answers} <= {200, 503}
        assert all(answer.by_envoy for answer in answers), "a 503 that does not look like Envoy's"
        assert not traffic.lost, traffic.lost
        assert all(word.startswith("200 ") for word in traffic.answers), traffic.answers
        world.wait_part("envoy", envoy)
        for _ in range(20):
            assert world.get(wire, slow("/length/10")).by_envoy
            assert world.get(wire, "/length/10").status == 200


def envoy_killed_with_requests_in_flight() -> None:
    """A slow request that Envoy took with it is answered 503 or ends; a fast one beside it is whole."""
    with World() as world:
        world.warm()
        slow_one, fast_one, relayed = world.dial(), world.dial(), world.dial()
        world.get(slow_one, slow("/length/1"))
        slow_one.send(request(slow("/length/10?delay=1500")))
        fast_one.send(request("/length/10?delay=1500"))
        relayed.send(request("/length/1?delay=1500") + request("/length/2"))  # pipelined: by the relay
        until("three requests at the backend", lambda: world.stats()["requests"] >= 5)
        world.kill("envoy")
        assert fast_one.answer().status == 200
        assert slow_one.answer().status == 503
        _ends_or_503(relayed)
        with world.dial() as wire:
            until("Envoy's answer", lambda: wire.ask(slow("/length/10")).status == 200, 10.0)


def envoy_hangs() -> None:
    """SIGSTOP of Envoy: fast requests, also on new connections, go on; after SIGCONT the slow ones are answered."""
    with World() as world:
        world.warm()
        envoy = world.pid("envoy")
        waiting = world.dial(timeout=8.0)
        world.get(waiting, slow("/length/1"))
        os.kill(envoy, signal.SIGSTOP)
        try:
            name = world.new_id()
            waiting.send(request(slow("/length/10"), headers=[("x-id", name)]))
            for _ in range(60):
                with world.dial() as wire:
                    assert world.get(wire, "/length/10").status == 200
        finally:
            os.kill(envoy, signal.SIGCONT)
        assert waiting.answer().headers["x-id"] == name


def ads_server_lost() -> None:
    """Without its ADS server the agent keeps the rules and says so; when it is back, switches work."""
    with World(_OLD, _REVIEWS) as world:
        world.warm()
        with Traffic(world, ["/length/100", slow("/length/50")], 2) as traffic:
            traffic.flow()
            world.mesh.stop_replay()
            until("the loss in the status", lambda: world.status()["source"]["phase"] != "connected")
            source = world.status()["source"]
            assert source["error"], source
            assert _reviewer(world) == "reviews-v1"
            told = world.lab.run(world.mesh.command("status"))
            assert "127.0.0.1:15010" in told, told
            traffic.flow(100)
            world.mesh.start_replay(_OLD)
            until("the connection", lambda: world.status()["source"]["phase"] == "connected", 15.0)
            traffic.flow()
            world.mesh.switch(_NEW)
            traffic.flow()
        assert _reviewer(world) == "reviews-v2"
        assert not traffic.lost, traffic.lost


def _reviewer(world: World) -> str:
    """Who answers jason's request for reviews; that is the same thrice, on connections old and new."""
    pods = set()
    with world.dial("reviews") as wire:
        for _ in range(3):
            pods.add(world.get(wire, "/reviews/0", headers=_JASON).headers["x-pod"])
    assert len(pods) == 1, pods
    return pods.pop()


def _wait_in_force(world: World) -> None:
    until("the configuration", lambda: all(view["connected"] for view in world.status()["views"]), 10.0)


def _grows(lost: list[str]) -> bool:
    before = len(lost)
    time.sleep(0.2)
    return len(lost) > before


def _ends(wire: Wire) -> None:
    try:
        assert wire.at_end(), "bytes from nowhere"
    except ConnectionResetError:
        return


def _ends_or_503(wire: Wire) -> None:
    try:
        while not wire.at_end():
            wire.exactly(len(wire.pending))
    except ConnectionResetError:
        return


def _is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


class _Original:
    """Somebody at the virtual address itself, who is reached only when nothing is captured."""

    def __enter__(self) -> None:
        self._listener = socket.create_server(("127.2.0.2", 9080))
        self._listener.settimeout(0.1)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while not self._stop.is_set():
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            with connection:
                connection.settimeout(1.0)
                connection.recv(4096)
                connection.sendall(
                    b"HTTP/1.1 200 OK\r\nx-pod: original\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
                )
