"""Alternating rounds: each round measures every peer once, each time in another order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.lab import Lab
from tests.bench.load import Sample, hey_command, parse_hey, parse_wrk, wrk_command
from tests.bench.report import Load, Peer


@dataclass(frozen=True, slots=True)
class Target:
    """How a load generator reaches a peer: the URL, and what to put before the command (`xlb exec ... --`)."""

    url: str
    prefix: tuple[str | Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """`connection_requests` is for one run of one request per connection."""

    rounds: int
    wrk_seconds: int
    connection_requests: int


def schedule(peers: Sequence[Peer], rounds: int) -> Iterator[tuple[Peer, ...]]:
    """The order of each round: rotated, so that nobody always comes first or after the same other."""
    for number in range(rounds):
        start = number % len(peers)
        yield (*peers[start:], *peers[:start])


def measure(
    lab: Lab,
    load: Load,
    targets: Mapping[Peer, Target],
    plan: Plan,
    progress: Callable[[int, Peer], None],
    around: Callable[[Peer], Callable[[], None] | None] | None = None,
) -> dict[Peer, list[Sample]]:
    """Run all rounds of one load.  `around(peer)` is called before a run and what it returns after it.

    Raises LabError when a generator fails.
    """
    samples: dict[Peer, list[Sample]] = {peer: [] for peer in targets}
    for number, order in enumerate(schedule(tuple(targets), plan.rounds), start=1):
        for peer in order:
            progress(number, peer)
            after = around(peer) if around is not None else None
            samples[peer].append(one_run(lab, load, targets[peer], plan))
            if after is not None:
                after()
    return samples


def one_run(lab: Lab, load: Load, target: Target, plan: Plan) -> Sample:
    """One run of the load's generator against one target.  Raises LabError when it fails."""
    if load is Load.CONNECTION_EACH:
        asked = plan.connection_requests
        return parse_hey(lab.run([*target.prefix, *hey_command(target.url, asked)]), asked)
    return parse_wrk(lab.run([*target.prefix, *wrk_command(target.url, plan.wrk_seconds)]))
