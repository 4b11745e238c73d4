"""The keeper's framer is the kernel's: both read the same messages, and one goes on where the other stopped."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.kernel.programs import Programs
from tests.unit.test_keeper_framer import BROKEN, COMPLETE
from xlb.keeper.framer import Flag, Framer, Phase

_NOISE = [
    b"\r\n",
    b"\r",
    b"\n",
    b":",
    b" ",
    b"\t",
    b",",
    b";",
    b"0",
    b"5",
    b"f",
    b"\0",
    b"x",
    b"close",
    b"chunked",
    b"A",
]


@pytest.fixture(scope="module")
def programs() -> Iterator[Programs]:
    with Programs() as loaded:
        yield loaded


def messages(count: int) -> Iterator[tuple[bytes, bool]]:
    """Good and bad messages, many of them changed in some place; and whether they answer HEAD."""
    chance = random.Random(7)
    known = [message for message, _ in COMPLETE.values()] + list(BROKEN.values())
    for message in known:
        yield message + b"HTTP/1.1 200 OK\r\n", False
    for _ in range(count):
        message = chance.choice(known)
        for _ in range(chance.randrange(3)):
            at = chance.randrange(len(message) + 1)
            message = message[:at] + chance.choice(_NOISE) + message[at + chance.randrange(3) :]
        yield message + b"rest", chance.random() < 0.1


def pieces(message: bytes, chance: random.Random) -> Iterator[bytes]:
    at = 0
    while at < len(message):
        size = chance.choice([1, 2, 5, 17, 40, len(message)])
        yield message[at : at + size]
        at += size


def kernel_reads(programs: Programs, piece: bytes, to_head: bool) -> int:
    """As the programs walk over a message: what needs no look is skipped."""
    taken = 0
    while taken < len(piece):
        phase = programs.frame().phase
        if phase in ("DONE", "ERROR"):
            break
        step = 0
        if phase in ("BODY", "CHUNK", "UNTIL_CLOSE", "TUNNEL"):
            step = programs.skip(len(piece) - taken)
        if not step:
            step = programs.feed(piece[taken:], to_head=to_head)
        taken += step
    return taken


def step(programs: Programs, framer: Framer, piece: bytes, to_head: bool) -> None:
    """Both read a piece, and are at the same point then."""
    ours, theirs = framer.feed(piece), kernel_reads(programs, piece, to_head)
    found = programs.frame()
    assert Phase(framer.phase).name == found.phase, piece
    assert {flag.name for flag in Flag if framer.flags & flag} == found.flags, piece
    if found.phase == "ERROR":
        return
    assert ours == theirs, piece
    if found.phase != "DONE":
        assert (framer.status, framer.rest) == (found.status, found.rest), piece


def test_both_read_alike(programs: Programs) -> None:
    chance = random.Random(3)
    for message, to_head in messages(1500):
        programs.begin_response()
        framer = Framer.of_response(programs._framer, to_head)
        for piece in pieces(message, chance):
            step(programs, framer, piece, to_head)
            if framer.is_done or framer.is_broken:
                break


def test_the_keeper_goes_on_where_the_kernel_stopped(programs: Programs) -> None:
    chance = random.Random(5)
    for message, to_head in messages(1500):
        cut = chance.randrange(len(message))
        programs.begin_response()
        for piece in pieces(message[:cut], chance):
            kernel_reads(programs, piece, to_head)
        framer = Framer.of_response(programs._framer, to_head)
        for piece in pieces(message[cut:], chance):
            step(programs, framer, piece, to_head)
            if framer.is_done or framer.is_broken:
                break
