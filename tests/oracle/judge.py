"""Whether what we did is what Envoy did: pure comparison of answers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from tests.oracle.differences import Side, forgiven
from tests.oracle.scenario import Answer, Case, Headers, Upstream
from tests.oracle.statistics import implausible

# Left out of the recordings, or (the last line) made by our own backend and connection.
_NOT_RECORDED: Final[Mapping[Side, frozenset[str]]] = {
    Side.REQUEST: frozenset({"x-request-id", "x-forwarded-proto", "x-envoy-decorator-operation"}),
    Side.RESPONSE: frozenset(
        {"date", "x-envoy-upstream-service-time", "x-request-id", "vary", "x-envoy-decorator-operation"}
        | {"x-echo-backend", "content-type", "content-length", "transfer-encoding", "connection", "keep-alive"}
    ),
}
# What is left of a timeout, in milliseconds, with or without a unit: retries wait a random time.
_TIME_LEFT: Final = frozenset({"grpc-timeout", "x-envoy-expected-rq-timeout-ms"})
_TIME_LEFT_SLACK_MS: Final = 250
# Envoy makes up the value of a cookie for consistent hashing.
_MADE_UP_COOKIE: Final = re.compile(r'="[0-9a-f]{16}"')
_SLACK_S: Final = 0.5
_SLACK_SHARE: Final = 0.25


class Peers(Protocol):
    """Which backends a request may reach in place of one another: those of one cluster of its route."""

    def interchangeable(self, recorded: str, seen: str) -> bool: ...

    def also_reached(self, recorded: str, seen: str) -> bool:
        """The same for all that a request reached, mirrors included."""
        ...


@dataclass(frozen=True, slots=True)
class Attempt:
    """One request of ours: its answer, and whether the kernel carried it."""

    answer: Answer
    by_kernel: bool


def judge_answer(recorded: Answer, attempt: Attempt, peers: Peers) -> tuple[str, ...]:
    """Every way in which an answer differs from the recorded one; empty if it does not."""
    seen = attempt.answer
    found: list[str] = []
    if seen.status != recorded.status:
        said = f" ({seen.body})" if seen.body else ""
        return (f"status {seen.status}{said}, expected {recorded.status}",)
    if not _same_backend(recorded.served, seen.served, peers.interchangeable):
        found.append(f"answered by {seen.served or 'nobody'}, expected {recorded.served or 'nobody'}")
    if recorded.status and recorded.served is None and seen.body != recorded.body:
        found.append(f"body {seen.body!r}, expected {recorded.body!r}")
    found += _judge_upstream(recorded.upstream, attempt)
    found += _judge_headers(
        Side.RESPONSE, recorded.response_headers, seen.response_headers, forgive=attempt.by_kernel, what="response"
    )
    if (
        recorded.reached is not None
        and seen.reached is not None
        and not _same_set(recorded.reached, seen.reached, peers)
    ):
        found.append(f"backends reached {_list(seen.reached)}, expected {_list(recorded.reached)}")
    if abs(seen.elapsed_s - recorded.elapsed_s) > _SLACK_S + _SLACK_SHARE * recorded.elapsed_s:
        found.append(f"took {seen.elapsed_s:.2f} s, expected {recorded.elapsed_s:.2f} s")
    return tuple(found)


def judge_counts(case: Case, outcomes: Sequence[str]) -> tuple[str, ...]:
    """Whether a distribution fits the recorded one (`statistics`)."""
    if case.counts is None:
        raise ValueError("not a case with counts")
    if len(outcomes) != case.count:
        return (f"{len(outcomes)} answers to {case.count} requests",)
    # A few connections were lost while recording (status 0 among answers): that is no behaviour to copy.
    kept = {outcome: count for outcome, count in case.counts.items() if not outcome.startswith("0 ")}
    why = implausible(kept or case.counts, Counter(outcomes))
    return (why,) if why else ()


def judge_keys(case: Case, outcomes: Mapping[str, frozenset[str]]) -> tuple[str, ...]:
    """Whether each key met exactly the recorded outcomes: a hash decides, nothing is left to chance."""
    if case.by_key is None:
        raise ValueError("not a case with keys")
    return tuple(
        f"key {key}: {_list(sorted(outcomes.get(key, frozenset())))}, expected {_list(sorted(expected))}"
        for key, expected in case.by_key.items()
        if outcomes.get(key) != expected
    )


def _judge_upstream(recorded: Upstream | None, attempt: Attempt) -> list[str]:
    seen = attempt.answer.upstream
    if recorded is None:
        return []
    if seen is None:
        return ["no backend saw the request"]
    found = []
    if seen.method != recorded.method:
        found.append(f"method upstream {seen.method}, expected {recorded.method}")
    if seen.path != recorded.path:
        found.append(f"path upstream {seen.path!r}, expected {recorded.path!r}")
    return found + _judge_headers(
        Side.REQUEST, recorded.headers, seen.headers, forgive=attempt.by_kernel, what="request"
    )


def _judge_headers(side: Side, recorded: Headers, seen: Headers, *, forgive: bool, what: str) -> list[str]:
    """Same names with the same values in the same order; the order of different names has no meaning."""
    ignored = _NOT_RECORDED[side]
    expected, got = _by_name(recorded, ignored), _by_name(seen, ignored)
    if forgive:
        # May be absent, but if it is there it has to be right.
        expected = {name: values for name, values in expected.items() if name not in forgiven(side) or name in got}
    return [
        f"{what} header {name}: {_list(got.get(name, ()))}, expected {_list(expected.get(name, ()))}"
        for name in sorted(expected.keys() | got.keys())
        if not _same_values(name, expected.get(name, ()), got.get(name, ()))
    ]


def _same_values(name: str, expected: Sequence[str], got: Sequence[str]) -> bool:
    if name in _TIME_LEFT and len(expected) == len(got) == 1:
        return abs(_milliseconds(expected[0]) - _milliseconds(got[0])) <= _TIME_LEFT_SLACK_MS
    if name == "set-cookie":
        return [_MADE_UP_COOKIE.sub("=*", v) for v in expected] == [_MADE_UP_COOKIE.sub("=*", v) for v in got]
    return expected == got


def _milliseconds(value: str) -> int:
    return int(value.removesuffix("m"))


def _by_name(headers: Headers, ignored: frozenset[str]) -> dict[str, tuple[str, ...]]:
    names = {name.lower() for name, _ in headers} - ignored
    return {name: tuple(value for n, value in headers if n.lower() == name) for name in names}


def _same_backend(recorded: str | None, seen: str | None, same: Callable[[str, str], bool]) -> bool:
    if recorded is None or seen is None:
        return recorded is seen
    return recorded == seen or same(recorded, seen)


def _same_set(recorded: Sequence[str], seen: Sequence[str], peers: Peers) -> bool:
    """Whether the two can be paired one to one.

    Exact pairs first; being interchangeable is then near enough an equivalence for a greedy pairing to be right.
    """
    left, rest = Counter(recorded) - Counter(seen), Counter(seen) - Counter(recorded)
    if left.total() != rest.total():
        return False
    unpaired = list(rest.elements())
    for backend in left.elements():
        match = next((other for other in unpaired if peers.also_reached(backend, other)), None)
        if match is None:
            return False
        unpaired.remove(match)
    return True


def _list(items: Iterable[str]) -> str:
    return ", ".join(items) or "none"
