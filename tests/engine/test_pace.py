"""Batch sizes learned from measured step times."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from danqing.engine.pace import GROWTH_MAX, KEYS_MAX, RETRY_EVERY, Pace


def measure(pace: Pace, cost: Callable[[int], float], demand: int, rounds: int) -> list[int]:
    """Feed a pace with what a device of this cost would show; the sizes it asked for."""
    sizes: list[int] = []
    for _ in range(rounds):
        sizes.append(pace.batch_size("k"))
        size = min(demand, sizes[-1])
        pace.learn("k", size, cost(size))
    return sizes


H200_512 = {1: 0.167, 2: 0.183, 4: 0.240, 8: 0.425, 16: 0.832}
"""Seconds per step by batch size, as published for SGLang on an H200 at 512 x 512."""


@pytest.mark.parametrize(
    ("cost", "best"),
    [
        (lambda size: 0.1 * size, 1),  # a processor: batching buys nothing
        (lambda size: 0.1, 16),
        (lambda size: H200_512[size], 8),  # 16 would cost as much per image
        (lambda size: 0.1 * (1 + (size - 1) * 0.9), 2),
    ],
)
def test_batch_size_is_the_cheapest_per_image(cost: Callable[[int], float], best: int) -> None:
    pace = Pace(16)
    sizes = measure(pace, cost, 16, RETRY_EVERY - 1)
    assert sizes[0] == 1
    assert sizes[-1] == best
    assert pace.image_step_s("k") == pytest.approx(cost(best) / best)
    assert cost(best) <= GROWTH_MAX * cost(1)


def test_a_long_step_is_not_bought_at_any_price() -> None:
    pace = Pace(64)
    sizes = measure(pace, lambda size: 0.1 * size**0.8, 64, RETRY_EVERY - 1)
    assert sizes[-1] == 4
    assert 0.1 * sizes[-1] ** 0.8 <= GROWTH_MAX * 0.1


def test_a_first_slow_call_is_not_held_against_a_size() -> None:
    pace = Pace(2)
    times = iter([0.1, 0.1, 0.1, 9.0, *[0.1] * 100])
    sizes = measure(pace, lambda size: next(times), 2, 20)
    assert sizes[-1] == 2


def test_a_larger_size_is_tried_again_now_and_then() -> None:
    pace = Pace(2)
    measure(pace, lambda size: 0.1 * size, 2, RETRY_EVERY - 1)
    sizes = measure(pace, lambda size: 0.1, 2, 12 * RETRY_EVERY)
    assert sizes[0] == 2
    assert sizes[-1] == 2


def test_a_size_that_did_not_fit_is_not_asked_for_again_soon() -> None:
    pace = Pace(8)
    measure(pace, lambda size: 0.1, 8, 40)
    pace.limit("k", 8)
    assert set(measure(pace, lambda size: 0.1, 8, RETRY_EVERY - 1)) == {4}
    pace.limit("k", 1)
    assert pace.batch_size("k") == 1


def test_a_moment_s_shortage_of_memory_is_forgotten_size_by_size() -> None:
    pace = Pace(8)
    measure(pace, lambda size: 0.1, 8, 40)
    pace.limit("k", 2)
    sizes = measure(pace, lambda size: 0.1, 8, 3 * RETRY_EVERY)
    assert (
        sizes
        == [size for size in (1, 2, 4, 8) for _ in range(RETRY_EVERY)][1 : 3 * RETRY_EVERY + 1]
    )
    assert set(measure(pace, lambda size: 0.1, 8, 10 * RETRY_EVERY)) == {8}


def test_a_lasting_shortage_of_memory_costs_fewer_and_fewer_tries() -> None:
    pace = Pace(8)
    tries: list[int] = []
    for batch in range(100 * RETRY_EVERY):
        size = pace.batch_size("k")
        if size > 2:  # tried again half by half
            tries.append(batch)
            pace.limit("k", 4)
            size = 2
        pace.learn("k", size, 0.1)
    gaps = [later - earlier for earlier, later in itertools.pairwise(tries)]
    assert gaps == sorted(gaps)
    assert 5 < len(tries) < 10
    assert set(measure(pace, lambda size: 0.1, 8, 300 * RETRY_EVERY)[-RETRY_EVERY:]) == {8}


def test_step_times_are_remembered_for_a_bounded_number_of_keys() -> None:
    pace = Pace(4)
    for key in range(3 * KEYS_MAX):
        pace.learn(key, 1, 0.2)
    assert len(pace._keys) == KEYS_MAX
    assert pace.step_s("never seen") == pytest.approx(0.2)
