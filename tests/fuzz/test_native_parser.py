"""The kernel's parser built for user space: with sanitizers, against a second reading, and against a real Envoy."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from tests.fuzz.campaign import (
    REQUESTS,
    Compared,
    compare_requests,
    compare_responses,
    corpus,
    corpus_cases,
    corpus_replies,
    mutated_cases,
    mutated_replies,
    run_libfuzzer,
)
from tests.fuzz.differential import prepare
from tests.fuzz.echo import decode_head
from tests.fuzz.mutations import Mutator
from tests.fuzz.reading import Reader, missing
from translator.limits import Limits
from translator.reasons import Reason
from translator.request import Request, head_reason

_WHY_NOT = missing()
pytestmark = pytest.mark.skipif(_WHY_NOT is not None, reason=_WHY_NOT or "")

SEED = 20261124
SECONDS = 15
MUTATIONS = 3000
RESPONSES = 1000

# Not the parser's to find: of an image's header names, of the connection's state, and of the data path's queues.
_NOT_IN_A_HEAD = {Reason.REPEATED_HEADER, Reason.PIPELINED, Reason.BODY_TOO_LARGE}
_LIMITS = Limits()


@pytest.fixture(scope="module")
def reader() -> Reader:
    return Reader()


@pytest.fixture(scope="module")
def reached(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs with which libFuzzer has reached something new."""
    return tmp_path_factory.mktemp("reached")


@pytest.mark.parametrize("file", corpus(*REQUESTS), ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_corpus_is_read_as_its_name_says(reader: Reader, file: Path) -> None:
    reading = reader.request(file.read_bytes())
    assert (reading.folder, reading.reason) == (file.parent.name, Reason(int(file.name[:2])))


@pytest.mark.parametrize("file", corpus("responses"), ids=lambda file: file.stem)
def test_responses_are_framed_as_their_name_says(reader: Reader, file: Path) -> None:
    phase = reader.response(file.read_bytes()).phase
    assert file.name.startswith(phase.lower().replace("_", "-") + "-")


def test_corpus_has_every_reason_of_a_head() -> None:
    there = {Reason(int(file.name[:2])) for file in corpus(*REQUESTS)}
    assert there >= {reason for reason in Reason if reason < 50} - _NOT_IN_A_HEAD


def _mutations(count: int) -> Iterator[bytes]:
    return islice(Mutator(SEED, [file.read_bytes() for file in corpus(*REQUESTS)]).requests(), count)


def test_the_evaluator_finds_the_same_reasons(reader: Reader) -> None:
    compared = 0
    for data in (*(file.read_bytes() for file in corpus(*REQUESTS)), *_mutations(10_000)):
        reading = reader.request(data)
        if reading.relay:
            continue
        method, target, headers = decode_head(data[: reading.head_len])
        lines = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]
        if not lines or lines[0][0] != "host":
            continue
        request = Request(method.decode(), lines[0][1], target.decode("latin-1"), tuple(lines[1:]))
        assert head_reason(request, frozenset(), _LIMITS) is reading.reason, data
        compared += 1
    assert compared > 1000


def test_what_is_cut_off_can_be_completed(reader: Reader) -> None:
    """The comparison with Envoy stands on this: it needs whole requests that end where the parser says."""
    for data in (file.read_bytes() for file in corpus("carried", "pooled")):
        case = prepare(reader, "", data)
        assert case is not None
        if case.whole:
            again = reader.request(case.data + b"GET / HTTP/1.1\r\n")
            assert (again.phase, again.end) == ("DONE", len(case.data))
            assert reader.completed(case.data[: case.reading.head_len]) is not None


def test_nothing_breaks_the_parser(reached: Path, capsys: pytest.CaptureFixture[str]) -> None:
    executed = run_libfuzzer(SECONDS, SEED, reached)
    with capsys.disabled():
        print(f"\n{executed}")
    assert executed.crash is None, f"{executed.crash!r}\n{executed.output[-4000:]}"
    assert executed.runs > 1000


def _show(compared: Compared, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\n{compared}")
    assert not compared.found, "\n".join(what for what, _ in compared.found[:20])


@pytest.mark.needs_envoy
def test_envoy_reads_the_corpus_alike(
    reader: Reader, reached: Path, envoy_binary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [*corpus(*REQUESTS), *sorted(reached.iterdir())]
    _show(asyncio.run(compare_requests(envoy_binary, corpus_cases(reader, files))), capsys)


@pytest.mark.needs_envoy
def test_envoy_reads_random_requests_alike(
    reader: Reader, envoy_binary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = list(islice(mutated_cases(reader, SEED), MUTATIONS))
    _show(asyncio.run(compare_requests(envoy_binary, cases)), capsys)


@pytest.mark.needs_envoy
def test_envoy_frames_responses_alike(
    reader: Reader, reached: Path, envoy_binary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replies = corpus_replies(reader, [*corpus("responses"), *sorted(reached.iterdir())])
    replies += islice(mutated_replies(reader, SEED), RESPONSES)
    _show(asyncio.run(compare_responses(envoy_binary, replies)), capsys)
