"""Many clients at once."""

from __future__ import annotations

from tests.bench.mesh import difference
from tests.e2e.wire import request
from tests.e2e.world import FAST, World, check_answer, slow


def burst_with_empty_pools() -> None:
    """300 new clients ask at the same moment, when there is not one pooled connection: all are answered."""
    _burst("/length/200")


def burst_by_envoy() -> None:
    """The same with requests that are Envoy's."""
    _burst(slow("/length/200"))


def _burst(path: str) -> None:
    with World() as world:
        before = world.counters()
        for turn in range(3):
            wires = [(world.dial(timeout=10.0), world.new_id()) for _ in range(300)]
            for wire, name in wires:
                wire.send(request(path, headers=[("x-id", name)]))
            for wire, name in wires:
                answer = wire.answer()
                check_answer(answer, name, f"turn {turn}")
                assert answer.status == 200, answer
                assert len(answer.body) == 200
            for wire, _ in wires:
                wire.close()
        print(path, dict(difference(before, world.counters())))
        wire = world.dial()
        world.warm(wire)
        before = world.counters()
        for _ in range(20):
            world.get(wire, "/length/10")
        assert difference(before, world.counters()) == {FAST: 20}
