"""The two ways of fuzzing the parser, for the test that runs them shortly and for `make fuzz`, which runs them long.

The corpus (`tests/fuzz/corpus`) holds requests by what becomes of them: `carried` by the kernel alone, `pooled` (moved
by the kernel to a pooled connection of Envoy), `relayed` as plain bytes; each file's name begins with the number of the
reason that the parser finds.  `responses` begin with where the framer is at their end.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.fuzz.answers import Answers, Reply, prepare_reply
from tests.fuzz.differential import Case, Differential, prepare
from tests.fuzz.echo import Echo
from tests.fuzz.mutations import Mutator
from tests.fuzz.reading import BUILD, NATIVE, Reader, build_target
from tests.fuzz.stock import stock_envoy

CORPUS: Final = Path(__file__).parent / "corpus"
REQUESTS: Final = ("carried", "pooled", "relayed")
_MAX_SIZE: Final = 9000


def corpus(*folders: str) -> list[Path]:
    """The files of some of its folders, in order."""
    return sorted(file for folder in folders for file in (CORPUS / folder).glob("*.http"))


@dataclass(frozen=True, slots=True)
class Executed:
    """A run of libFuzzer.  `crash` is the input that broke an invariant, else None."""

    runs: int
    seconds: float
    output: str
    crash: bytes | None

    def __str__(self) -> str:
        return f"libFuzzer: {self.runs} inputs in {self.seconds:.0f} s, {self.runs / self.seconds:.0f}/s"


def run_libfuzzer(seconds: int, seed: int, found: Path) -> Executed:
    """Run the sanitized target on our corpus; inputs that reach something new are written to a folder, `found`."""
    found.mkdir(parents=True, exist_ok=True)
    artifacts = BUILD / "crashes"
    artifacts.mkdir(parents=True, exist_ok=True)
    command = [
        *("nice", "-n", "10", str(build_target())),
        *(
            f"-max_total_time={seconds}",
            f"-seed={seed}",
            f"-max_len={_MAX_SIZE}",
            "-timeout=10",
            "-print_final_stats=1",
        ),
        *(f"-dict={NATIVE / 'http.dict'}", f"-artifact_prefix={artifacts}/", str(found)),
        *(str(CORPUS / folder) for folder in (*REQUESTS, "responses")),
    ]
    start = time.monotonic()
    result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    seconds_taken = time.monotonic() - start
    output = result.stderr
    runs = re.search(r"stat::number_of_executed_units: (\d+)", output) or re.search(r"^#(\d+)\t", output, re.MULTILINE)
    crash = None
    if result.returncode != 0:
        artifact = re.search(r"Test unit written to (\S+)", output)
        crash = Path(artifact[1]).read_bytes() if artifact else b""
    return Executed(int(runs[1]) if runs else 0, seconds_taken, output, crash)


@dataclass(frozen=True, slots=True)
class Compared:
    """A run against Envoy.  `what` was compared; `found` holds what was read otherwise, with its bytes."""

    what: str
    count: int
    seconds: float
    found: tuple[tuple[str, bytes], ...]

    def __str__(self) -> str:
        rate = self.count / max(self.seconds, 0.001)
        return f"Envoy: {self.count} {self.what} in {self.seconds:.1f} s, {rate:.0f}/s: {len(self.found)} findings"


def corpus_cases(reader: Reader, files: Iterable[Path]) -> list[Case]:
    """What the parser forwards of some files."""
    made = (prepare(reader, file.name, file.read_bytes()) for file in files)
    return [case for case in made if case is not None]


def mutated_cases(reader: Reader, seed: int) -> Iterator[Case]:
    """Endless: what the parser forwards of random requests."""
    mutator = Mutator(seed, [file.read_bytes() for file in corpus(*REQUESTS)])
    for number, data in enumerate(mutator.requests()):
        case = prepare(reader, f"seed {seed}, request {number}", data)
        if case is not None:
            yield case


def corpus_replies(reader: Reader, files: Iterable[Path]) -> list[Reply]:
    """The whole responses in some files, to GET and to HEAD."""
    made = (prepare_reply(reader, f.name, f.read_bytes(), to_head=head) for f in files for head in (False, True))
    return [reply for reply in made if reply is not None]


def mutated_replies(reader: Reader, seed: int) -> Iterator[Reply]:
    """Endless: whole responses."""
    mutator = Mutator(seed, [file.read_bytes() for file in corpus("responses")])
    for number, data in enumerate(mutator.responses()):
        reply = prepare_reply(reader, f"seed {seed}, response {number}", data, to_head=number % 5 == 0)
        if reply is not None:
            yield reply


async def compare_requests(envoy: Path, cases: Sequence[Case]) -> Compared:
    """All cases against an Envoy of their own."""
    async with Echo() as echo, stock_envoy(envoy, echo.port) as port:
        start = time.monotonic()
        found = await Differential(port, echo).check(cases)
        seconds = time.monotonic() - start
    carried = sum(case.reading.carried for case in cases)
    what = f"requests that the kernel forwards ({carried} of them carried)"
    return Compared(what, len(cases), seconds, tuple((str(one), one.case.data) for one in found))


async def compare_responses(envoy: Path, replies: Sequence[Reply]) -> Compared:
    """All replies against an Envoy of their own."""
    async with Echo() as echo, stock_envoy(envoy, echo.port) as port:
        start = time.monotonic()
        found = await Answers(port, echo).check(replies)
        seconds = time.monotonic() - start
    return Compared("responses", len(replies), seconds, tuple((str(one), one.reply.data) for one in found))
