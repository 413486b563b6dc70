"""What bench/scheduler.py claims, on short traces: small images are quick beside large ones, and nothing is lost by it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from bench import scheduler as bench


@pytest.mark.parametrize("load", [0.8, 1.0])
@pytest.mark.parametrize(("seed", "profile"), [(11, bench.PUBLISHED), (12, bench.MEASURED)])
def test_small_images_are_three_times_as_quick_and_throughput_is_no_lower(
    load: float, seed: int, profile: bench.Profile
) -> None:
    trace = bench.make_trace(seed, 1.0, load, profile)
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
    step_s = bench.PUBLISHED.step_s
    assert step_s(512, 4) == 0.240
    assert step_s(512, 6) == pytest.approx((0.240 + 0.425) / 2)
    assert step_s(1024, 8) == pytest.approx(0.711 * 8 / 3)
    for profile in bench.PROFILES:
        alone = [profile.step_s(side, 1) for side in profile.known_s]
        assert alone == sorted(alone)


def test_the_verdicts_are_those_of_the_run() -> None:
    def outcome(small_s: float, large_s: float, hours: float) -> bench.Outcome:
        waits_s = {kind: [large_s] * 3 for kind in bench.NAMES} | {bench.SMALL: [small_s] * 3}
        return bench.Outcome(waits_s, ended_s=hours * 3600, images=100)

    fifo = {bench.ONE: outcome(90, 90, 1.0), bench.BATCHED: outcome(60, 60, 1.0)}
    good, slow, dear = (
        bench.verdicts({"Load": fifo | {bench.OURS: ours}})[2]
        for ours in (outcome(20, 60, 1.0), outcome(21, 60, 1.0), outcome(9, 61, 1.1))
    )
    assert good == "| Load | 0.222 / 0.333: holds | +0.0% / +0.0%: holds | nobody |"
    assert "0.350: missed | +0.0% / +0.0%: holds" in slow
    assert "-9.1%: missed" in dear
    assert [kind in dear for kind in bench.NAMES] == [False, True, True, True, True]
