"""Numbers that outlive a configuration: stable, and not reused while they may still mean something."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from translator.model import EndpointRule
from xlb.numbering import FIRST_PORT, Numbering, Sizes
from xlb.numbers import Numbers, OutOfNumbers
from xlb.state import State


def numbers(last: int = 3, rest: float = 10.0) -> Numbers[str]:
    return Numbers("thing", 1, last, rest=rest)


def test_a_key_keeps_its_number() -> None:
    some = numbers()
    assert [some.take("a", 0), some.take("b", 0), some.take("a", 5)] == [1, 2, 1]


def test_what_comes_back_gets_the_number_that_it_had() -> None:
    some = numbers()
    some.take("a", 0)
    some.take("b", 0)
    assert some.free(["a", "unknown"], 1) == {"a": 1}
    assert some.get("a") is None
    assert some.take("a", 2) == 1


def test_a_freed_number_rests_while_there_are_fresh_ones() -> None:
    some = numbers()
    some.take("a", 0)
    some.free(["a"], 1)
    assert some.take("b", 2) == 2
    assert some.take("c", 11) == 1  # rested long enough


def test_without_fresh_ones_it_rests_a_little() -> None:
    some = numbers(last=1)
    some.take("a", 0)
    some.free(["a"], 1)
    with pytest.raises(OutOfNumbers, match="no thing is left: 0 are in use, 1 rest"):
        some.take("b", 2)
    assert some.take("b", 3) == 1


def test_revision_tells_whether_anything_has_changed() -> None:
    some = numbers()
    some.take("a", 0)
    before = some.revision
    some.take("a", 0)
    some.free(["b"], 0)
    assert some.revision == before
    some.free(["a"], 0)
    assert some.revision != before


def test_a_successor_gives_out_none_that_may_be_in_use() -> None:
    some = numbers(last=9)
    some.restore({"c": 3, "e": 5}, now=0)
    assert some.take("c", 0) == 3
    assert [some.take(key, 1) for key in "xyz"] == [6, 7, 8]
    assert some.take("w", 11) == 1


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abcdefgh"), st.integers(0, 3))))
def test_no_two_keys_have_one_number(steps: list[tuple[bool, str, int]]) -> None:
    some = numbers(last=6, rest=4)
    now = 0.0
    for takes, key, pause in steps:
        now += pause
        if takes:
            try:
                some.take(key, now)
            except OutOfNumbers:
                assert len(some.taken) <= 6
        else:
            some.free([key], now)
        given_out = [*some.taken.values()]
        assert len(set(given_out)) == len(given_out)
        assert all(1 <= number <= 6 for number in given_out)


def test_everything_is_the_same_for_the_next_agent() -> None:
    first = Numbering(Sizes(views=10, images=10, pools=10, cursors=10))
    first.views.take("key", 0)
    slot = first.images.take(("v", "80"), 0)
    port = first.ports.take(("v", "0.0.0.0_80"), 0)
    ids = first.ids("v", 0)
    endpoint = EndpointRule("fd00::1", 80)
    pool, cursor = ids.pool(endpoint), ids.round_robin("c|d")
    assert port == FIRST_PORT
    assert ids.new_pools == {("fd00::1", 80): pool}
    saved = first.save("127.64.0.1", ())
    second = Numbering(Sizes(views=10, images=10, pools=10, cursors=10))
    second.restore(State(**{name: getattr(saved, name) for name in State.__slots__}), 0)
    again = second.ids("v", 0)
    assert second.images.get(("v", "80")) == slot
    assert (again.pool(endpoint), again.round_robin("c|d")) == (pool, cursor)
    assert again.new_pools == {}


def test_what_a_view_does_not_name_any_more_is_taken_back() -> None:
    some = Numbering(Sizes(views=10, images=10, pools=10, cursors=10))
    for name in ("80", "81"):
        some.images.take(("v", name), 0)
    some.images.take(("other", "80"), 0)
    some.pools.take(("10.0.0.1", 80), 0)
    some.pools.take(("10.0.0.2", 80), 0)
    assert some.free_but("v", 1, images=["81"], ports=[], cursors=[]) == [1]
    assert some.images.get(("other", "80")) == 3
    assert some.unused_pools([("10.0.0.2", 80)], 1) == [1]


def test_views_that_do_not_come_back_give_all_back() -> None:
    some = Numbering(Sizes(views=10, images=10, pools=10, cursors=10))
    for key, name in (("kept", "v-1"), ("gone", "w-2")):
        some.views.take(key, 0)
        for numbers in (some.images, some.ports, some.cursors):
            numbers.take((name, "x"), 0)
    assert some.free_strangers(["kept"], {"v-1"}, 1) == [2]
    assert [*some.views.taken] == ["kept"]
    assert all([*numbers.taken] == [("v-1", "x")] for numbers in (some.images, some.ports, some.cursors))
