"""What bench/scheduler.py claims, on short traces: small images are quick beside large ones, and nothing is lost by it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from bench import scheduler as bench


@pytest.mark.parametrize("load", [0.8, 1.0])
@pytest.mark.parametrize("seed", [11, 12])
def test_small_images_are_three_times_as_quick_and_throughput_is_no_lower(
    load: float, seed: int
) -> None:
    trace = bench.make_trace(seed, 1.0, load)
    ours, one, batched = (
        policy(trace) for policy in (bench.ours, bench.first_come, bench.first_come_batched)
    )
    assert ours.images == one.images == batched.images == len(trace)
    for other in (one, batched):
        assert ours.percentile_s(bench.SMALL, 95) <= other.percentile_s(bench.SMALL, 95) / 3
    assert ours.busy_s <= one.busy_s
    assert ours.ended_s <= 1.01 * one.ended_s  # the last arrival decides most of it
    # What small images' haste costs, beside one that batches all by step: bench/results/scheduler.md
    assert ours.busy_s <= 1.05 * batched.busy_s
    assert ours.ended_s <= 1.02 * batched.ended_s


@pytest.mark.parametrize("seed", [3, 4])
def test_a_backlog_is_done_sooner_than_one_at_a_time_and_about_when_full_batches_are(
    seed: int,
) -> None:
    trace = [replace(arrival, at_s=0.0) for arrival in bench.make_trace(seed, 0.5, 1.0)]
    ended_s = bench.ours(trace).ended_s
    assert ended_s < 0.95 * bench.first_come(trace).ended_s
    assert ended_s < 1.007 * bench.first_come_batched(trace).ended_s


def test_step_times_are_the_published_ones() -> None:
    assert bench.step_s(512, 4) == 0.240
    assert bench.step_s(512, 6) == pytest.approx((0.240 + 0.425) / 2)
    assert bench.step_s(1024, 8) == pytest.approx(0.711 * 8 / 3)
    alone = [bench.step_s(side, 1) for side in bench.STEP_S]
    assert alone == sorted(alone)
