"""Plays one oracle file, in a network namespace of its own: `python -m tests.oracle.play FILE [--plain-envoy]`.

Prints one JSON object, a `Played`.  `play_apart` runs that as a process and returns the object: the namespace is the
process's, and whatever goes wrong ends with it.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Final

from tests.bench.compare import find_envoy
from tests.bench.lab import Lab, LabError, enter_network_namespace
from tests.bench.mesh import difference
from tests.oracle.judge import judge_answer, judge_counts, judge_keys
from tests.oracle.peers import CapturedRules, RoutePeers
from tests.oracle.scenario import KEY_REQUESTS, Answer, Case, Oracle, ScenarioError, load_oracle
from tests.oracle.stage import KERNEL, Stage
from tests.oracle.subject import PlainEnvoy, Subject, Xlb

_REPOSITORY: Final = Path(__file__).resolve().parents[2]
_PR_SET_PDEATHSIG: Final = 1
_SLOW_S: Final = 1.0
# Half of the tries may go the other way: then all of them do once in a million.
_TRIES: Final = 20
_LOGS: Final = ("agent", "replay", "client")
_LOG_LINES: Final = 15


@dataclass(frozen=True, slots=True)
class Failure:
    """A case that went otherwise than recorded, and every way in which it did."""

    case: int
    request: str
    why: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Played:
    """What became of one oracle file.

    `requests`: how many by reason; "NONE" counts those the kernel carried.  `error`: why it could not be played (to the
    end); the cases that were not reached then count as failed, without a `Failure`.
    """

    title: str
    cases: int
    passed: int = 0
    failures: tuple[Failure, ...] = ()
    requests: Mapping[str, int] = field(default_factory=dict)
    error: str = ""

    @property
    def failed(self) -> int:
        return self.cases - self.passed

    @property
    def by_kernel(self) -> int:
        return self.requests.get(KERNEL, 0)

    @property
    def by_envoy(self) -> int:
        return sum(self.requests.values()) - self.by_kernel


def play_apart(file: Path, *, plain: bool = False) -> Played:
    """Play an oracle file in a process of its own, with `plain` against an unmodified Envoy instead of XLB.

    Raises ScenarioError when it cannot be read.
    """
    title, cases = _glance(file)
    process = subprocess.run(
        [sys.executable, "-m", "tests.oracle.play", str(file.resolve()), *(["--plain-envoy"] if plain else [])],
        cwd=_REPOSITORY,
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        check=False,
        preexec_fn=_die_with_parent,
    )
    try:
        told = json.loads(process.stdout)
    except json.JSONDecodeError:
        return Played(title, cases, error=f"playing it ended with {process.returncode}")
    failures = tuple(Failure(f["case"], f["request"], tuple(f["why"])) for f in told.pop("failures"))
    return Played(failures=failures, **told)


def _glance(file: Path) -> tuple[str, int]:
    oracle = load_oracle(file)
    return oracle.title, len(oracle.cases)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def play(oracle: Oracle, envoy: Path, *, plain: bool = False) -> Played:
    """Play an oracle in the network namespace of this process."""
    rules = CapturedRules.load(oracle)
    passed, failures, requests, error = 0, list[Failure](), Counter[str](), ""
    with Lab("xlb-oracle") as lab:
        subject: Subject = PlainEnvoy(lab, envoy) if plain else Xlb(lab, f"oracle-{os.getpid()}", envoy)
        stage = Stage(lab, subject, oracle)
        try:
            stage.start()
            before = subject.counters()
            for case in oracle.cases:
                why = _play_case(stage, case, rules.peers(case.request))
                if why:
                    failures.append(Failure(case.number, str(case.request), why))
                else:
                    passed += 1
            requests = difference(before, subject.counters())
        except (LabError, ScenarioError) as problem:
            logs = (f"--- {name}\n{tail}" for name in _LOGS if (tail := lab.tail(name, _LOG_LINES)))
            error = "\n".join((str(problem), *logs))
        finally:
            subject.stop()
    if left := subject.leftovers():
        error = f"{error}\nleft behind: {', '.join(left)}".strip()
        passed = 0
    return Played(oracle.title, len(oracle.cases), passed, tuple(failures), dict(requests), error)


def _play_case(stage: Stage, case: Case, peers: RoutePeers) -> tuple[str, ...]:
    if case.by_key is not None:
        outcomes = {key: frozenset(stage.outcomes(case.request.with_key(key), KEY_REQUESTS)) for key in case.by_key}
        return judge_keys(case, outcomes)
    if case.answer is None:
        return judge_counts(case, stage.outcomes(case.request, case.count))
    # Thrice: a new connection (at first with an empty pool, so by Envoy), again on it, and another new one.
    reuses = (False,) if case.answer.elapsed_s > _SLOW_S else (False, True, False)
    return tuple(said for reuse in reuses for said in _play_once(stage, case, case.answer, peers, reuse))


def _play_once(stage: Stage, case: Case, recorded: Answer, peers: RoutePeers, reuse: bool) -> tuple[str, ...]:
    """One request, or where chance decides, as many as it takes until one meets the recorded answer."""
    why: tuple[str, ...] = ()
    for _ in range(_TRIES if peers.chance else 1):
        attempt = stage.send(case.request, reuse=reuse, expect_reached=len(recorded.reached or ()))
        how = f"({'kernel' if attempt.by_kernel else 'Envoy'}, {'same' if reuse else 'new'} connection)"
        why = tuple(f"{said} {how}" for said in judge_answer(recorded, attempt, peers))
        if not why:
            break
    return why


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(1)


def main(arguments: list[str]) -> int:
    """See the module's docstring.  Returns 0 if the file could be read, whatever the cases say."""
    file, *options = arguments
    signal.signal(signal.SIGTERM, _stop)  # so that everything started is ended
    try:
        oracle = load_oracle(Path(file))
        try:
            envoy = find_envoy()
            enter_network_namespace()
            played = play(oracle, envoy, plain="--plain-envoy" in options)
        except LabError as problem:
            played = Played(oracle.title, len(oracle.cases), error=str(problem))
    except ScenarioError as problem:
        print(problem, file=sys.stderr)
        return 1
    print(json.dumps(asdict(played)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
