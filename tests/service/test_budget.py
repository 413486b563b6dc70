"""The memory of uploads: bounded, given back, and never one account's alone while another wants some."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danqing.domain.errors import Busy
from danqing.service.budget import ByteBudget

MAX = 1000
takings = st.lists(
    st.tuples(st.sampled_from("abcd"), st.sampled_from("12"), st.integers(1, 600), st.booleans()),
    max_size=40,
)


@given(takings)
def test_laws(todo: list[tuple[str, str, int, bool]]) -> None:
    budget = ByteBudget(MAX)
    shares = {(a, r): budget.share(a, r) for a in "abcd" for r in "12"}
    for account, request, count, whole in todo:
        own = sum(share.bytes_count for (name, _), share in shares.items() if name == account)
        others = budget.taken - own
        alone = own == shares[account, request].bytes_count
        fair = own + count <= (MAX - others) // 2 or (alone and (whole or not others))
        if fair and budget.taken + count <= MAX:
            shares[account, request].add(count, whole=whole)
        else:
            with pytest.raises(Busy):
                shares[account, request].add(count, whole=whole)
        assert budget.taken == sum(share.bytes_count for share in shares.values()) <= MAX
    for share in shares.values():
        share.release()
        share.release()
    assert (budget.taken, budget._held) == (0, {})


@given(st.integers(0, MAX), st.lists(st.integers(1, 400), min_size=1, max_size=5))
def test_however_much_comes_in_half_of_what_there_was_is_left(held: int, counts: list[int]) -> None:
    """Bytes that are still coming in: whoever comes next finds room."""
    budget = ByteBudget(MAX)
    budget.share("first", "1").add(held)
    for account in range(6):
        left = MAX - budget.taken
        for number, count in enumerate(counts * 10):
            with suppress(Busy):
                budget.share(str(account), str(number)).add(count)
        assert MAX - budget.taken >= left // 2 or not held


def test_one_request_may_have_it_all() -> None:
    budget = ByteBudget(MAX)
    share = budget.share("a", "1")
    share.add(900)
    share.probe(100)
    budget.share("a", "1").probe(100, whole=True)  # the same request, elsewhere
    with pytest.raises(Busy):
        budget.share("a", "2").probe(100)
    budget.share("b", "3").probe(50)
    with pytest.raises(Busy):
        budget.share("b", "3").probe(51)
    budget.share("b", "3").probe(100, whole=True)
    moved = share.moved()
    share.release()
    assert budget.taken == 900
    moved.release()
    assert budget.taken == 0
