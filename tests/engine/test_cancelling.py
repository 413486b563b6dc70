"""Cancelling pays nothing: whoever leaves during a step, a reading, a look or a decoding is charged for it."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danqing.engine.core import EngineCore
from danqing.engine.messages import Cancel, JobCancelled, JobEvent, Submit
from danqing.engine.ring import Ring
from tests.engine.device import Device, worlds
from tests.engine.null_family import NullFamily, NullState, make_job
from tests.engine.test_scheduler_fairness import Fairness


def cancel_during_steps(device: Device, cancels: Callable[[str], list[str]]) -> None:
    """From now on, for each job of a batch, those that `cancels` names are gone before the step's end is told."""
    update = device.scheduler.update

    def updated(steps: Mapping[str, int], seconds: float) -> list[str]:
        for job_id in steps:
            for gone in cancels(job_id):
                device.scheduler.remove(gone)
        return update(steps, seconds)

    device.scheduler.update = updated  # type: ignore[method-assign]


@pytest.mark.parametrize("jobs", [1, 2])
def test_who_cancels_in_every_step_gets_a_share_and_no_more(jobs: int) -> None:
    """With one job the account itself is forgotten during the step."""
    device = Device(lambda key, size: 0.1 * size, batch_max=1)
    cancel_during_steps(device, lambda job_id: [job_id] * job_id.startswith("quitter"))
    (mine,) = device.add("mine", steps=50)
    while mine not in device.ended_s:
        device.add("quitter", n=jobs, steps=10)
        device.beat()
        assert device.now_s <= 2 * 50 * 0.1 + 0.1 + 1e-9


@settings(max_examples=25, deadline=None)
@given(worlds, st.booleans(), st.sampled_from([0.1, 0.5, 1.0]))
def test_law_accounts_get_the_same_time_whoever_cancels(
    world: dict[str, int], shared: bool, often: float
) -> None:
    fairness = Fairness(world, shared=shared, away=False, deep=False)
    device, random = fairness.device, Random(world["seed"])
    names = fairness.names[::2]

    def cancels(job_id: str) -> list[str]:
        name = device.jobs[job_id].account_id
        if name not in names or random.random() > often:
            return []
        queue = device.scheduler._entries.values()
        mine = [entry.job.id for entry in queue if entry.job.account_id == name]
        return mine if random.random() < 0.5 else [job_id]

    cancel_during_steps(device, cancels)
    fairness.run(200)
    assert fairness.owed <= (5 if shared else 4) + 1e-6


@pytest.mark.parametrize("call", ["encode", "step", "preview", "decode"])
@pytest.mark.parametrize("is_beside", [False, True])
def test_the_engine_charges_all_that_it_did_to_who_cancels(
    monkeypatch: pytest.MonkeyPatch, call: str, is_beside: bool
) -> None:
    now_s = 0.0
    paid_s: dict[Hashable, float] = defaultdict(float)
    family = NullFamily(is_beside=is_beside)
    core = EngineCore(lambda: family, warm_up=None, clock=lambda: now_s)
    step, charge, gone = family.step, Ring.charge, threading.Event()

    def spend(of: str) -> None:
        nonlocal now_s
        now_s += 12.0
        if of == call:
            core.cancel(Cancel(("x",)))

    def step_slowly(states: Sequence[NullState]) -> None:
        spend("step")
        step(states)

    def charged(ring: Ring, name: Hashable, *rest: float) -> None:
        paid_s[name] += rest[0]
        charge(ring, name, *rest)

    def listen(event: JobEvent) -> None:
        if isinstance(event, JobCancelled):
            gone.set()

    family.on_encode, family.step = lambda jobs: spend("encode"), step_slowly  # type: ignore[method-assign]
    family.on_preview, family.on_decode = lambda: spend("preview"), lambda: spend("decode")
    monkeypatch.setattr(Ring, "charge", charged)
    core.listen(listen)
    core.start()
    core.loaded.result(10)
    core.submit(Submit((make_job("x", account_id="quitter", steps=2, previews=1),)))
    assert gone.wait(20)
    assert core.stop(20)
    assert paid_s["quitter"] == pytest.approx(now_s)
    assert now_s >= 12.0 * ["encode", "step", "preview", "decode"].index(call)
