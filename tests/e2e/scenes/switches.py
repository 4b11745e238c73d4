"""Rules that change under load."""

from __future__ import annotations

import bisect
import itertools
import threading
import time
from dataclasses import dataclass
from typing import Final

from tests.e2e.wire import Wire
from tests.e2e.world import World, slow, until

_JASON: Final = [("end-user", "jason")]
_BY_RULE: Final = {"bookinfo-all-v1": "reviews-v1", "bookinfo-reviews-test-v2-jason": "reviews-v2"}
_SWITCHES: Final = 30


@dataclass(frozen=True, slots=True)
class _Seen:
    """One answer, with the times at which it was asked for and complete."""

    asked: float
    done: float
    pod: str


def switches_under_load() -> None:
    """30 switches under 8 connections: no request is lost, none answered by a rule that was not in force."""
    with World("bookinfo-all-v1", ("details-v1", "reviews-v1", "reviews-v2")) as world:
        with world.dial("reviews") as wire:
            world.warm(wire)
        stop, lock = threading.Event(), threading.Lock()
        seen: list[_Seen] = []
        lost: list[str] = []

        def ask(number: int) -> None:
            wire = world.dial("reviews")
            for turn in itertools.count():
                if stop.is_set():
                    break
                path = f"/reviews/{turn % 50}"
                try:
                    asked = time.monotonic()
                    answer = world.get(wire, slow(path) if (turn + number) % 4 == 0 else path, headers=_JASON)
                    assert answer.status == 200, answer
                    one = _Seen(asked, time.monotonic(), answer.headers["x-pod"])
                except Exception as problem:
                    with lock:
                        lost.append(f"{path}: {problem!r:.300}")
                    wire.close()
                    wire = world.dial("reviews")
                    continue
                with lock:
                    seen.append(one)
            wire.close()

        threads = [threading.Thread(target=ask, args=(n,), daemon=True) for n in range(8)]
        for thread in threads:
            thread.start()
        until("traffic", lambda: len(seen) > 50)
        # (begun, in force, pod): from `in force` of one to `begun` of the next only that pod may answer.
        switches = [(0.0, 0.0, "reviews-v1")]
        switcher = world.mesh.switcher()
        for scenario in itertools.islice(itertools.cycle(reversed(_BY_RULE)), _SWITCHES):
            begun = time.monotonic()
            switcher.switch(scenario)
            switches.append((begun, time.monotonic(), _BY_RULE[scenario]))
            _wait_for_more(seen)
        switcher.close()
        stop.set()
        for thread in threads:
            thread.join(10.0)
        assert not lost, lost[:10]
        begins = [begun for begun, _, _ in switches]
        for one in seen:
            first = bisect.bisect_right(begins, one.asked) - 1
            last = bisect.bisect_right(begins, one.done) - 1
            allowed = {switches[n][2] for n in range(first, last + 1)}
            if one.asked < switches[first][1]:
                allowed.add(switches[first - 1][2])
            assert one.pod in allowed, (
                f"{one}: allowed were {allowed}, switches {switches[max(first - 1, 0) : last + 1]}"
            )
        print(f"{len(seen)} answers, {_SWITCHES} switches, push p99 {world.mesh.push_p99_ms()} ms")


def switch_keeps_connections() -> None:
    """One connection through all rules of the demonstration: it never ends, and the new rule holds at once."""
    scenarios = ("bookinfo-all-v1", "bookinfo-reviews-test-v2-jason", "bookinfo-ratings-abort", "bookinfo-all-v1")
    with World("bookinfo-all-v1", ("details-v1", "reviews-v1", "reviews-v2", "ratings-v1")) as world:
        reviews, ratings = world.dial("reviews"), world.dial("ratings")
        for scenario in scenarios:
            world.mesh.switch(scenario)
            pods = {"bookinfo-all-v1": "reviews-v1"}
            for _ in range(10):
                assert _pod(world, reviews, "/reviews/0") == pods.get(scenario, "reviews-v2"), scenario
                answer = ratings.ask("/ratings/0", headers=_JASON)
                assert answer.status == (500 if scenario == "bookinfo-ratings-abort" else 200), answer


def _pod(world: World, wire: Wire, path: str) -> str:
    return world.get(wire, path, headers=_JASON).headers["x-pod"]


def _wait_for_more(seen: list[_Seen]) -> None:
    goal = len(seen) + 20
    until("answers under this rule", lambda: len(seen) > goal)
