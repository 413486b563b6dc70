"""`diffusers_pipeline` in the engine: the seed law in any company, progress, previews, cancelling, and faults of one image alone."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="the engine extra: make install-engine")
pytest.importorskip("diffusers", reason="the engine extra: make install-engine")

from danqing.engine.core import EngineCore  # noqa: E402
from danqing.engine.families.diffusers_pipeline import DiffusersPipeline, RunState  # noqa: E402
from danqing.engine.messages import (  # noqa: E402
    Cancel,
    Job,
    JobCancelled,
    JobDrawn,
    JobEvent,
    JobFailed,
    JobPreview,
    JobStepped,
    Submit,
)
from tests.engine.torch_pipelines import draw, job_of, latents_of, picture  # noqa: E402

pytestmark = pytest.mark.slow

SEED_LAW = 1e-5


class Watched:
    """A family that keeps the last latents of every image, and the order of its steps."""

    def __init__(self, family: DiffusersPipeline) -> None:
        self._family = family
        self.latents: dict[str, Any] = {}
        self.order: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._family, name)

    def step(self, states: Sequence[RunState]) -> None:
        self._family.step(states)
        (state,) = states
        self.order.append(state.job.id)
        self.latents[state.job.id] = latents_of(state)


class Run:
    """A core over a family, and all that it tells."""

    def __init__(self, family: Any, batch_max: int = 1) -> None:
        self.core = EngineCore(lambda: family, warm_up=None, live_max=16, batch_max=batch_max)
        self.events: list[JobEvent] = []
        self.told = threading.Condition()
        self.core.listen(self._listen)
        self.core.start()
        self.core.loaded.result(60)

    def _listen(self, event: JobEvent) -> None:
        with self.told:
            self.events.append(event)
            self.told.notify_all()

    def until(self, true: Any) -> None:
        with self.told:
            assert self.told.wait_for(lambda: true(self.events), 120)

    def ends(self, count: int) -> dict[str, JobEvent]:
        over = (JobDrawn, JobFailed, JobCancelled)
        self.until(lambda events: sum(isinstance(event, over) for event in events) == count)
        self.core.stop()
        return {event.job_id: event for event in self.events if isinstance(event, over)}


JOBS = st.builds(
    dict,
    prompt=st.sampled_from(["", "red cat", "a cat and a horse"]),
    width=st.sampled_from([32, 48]),
    height=st.sampled_from([32, 40]),
    steps=st.integers(1, 4),
    seed=st.integers(0, 2**31 - 1),
    account_id=st.sampled_from(["a", "b"]),
    priority=st.sampled_from(["interactive", "background"]),
    edits=st.booleans(),
    strength=st.sampled_from([0.5, 1.0]),
)


def made(kind: str, number: int, fields: dict[str, Any]) -> Job:
    fields = dict(fields)
    if kind == "flux2_klein":  # its references are no smaller
        fields |= {"width": fields["width"] + 32, "height": fields["height"] + 32}
    if fields.pop("edits"):
        fields["reference"] = picture(fields["width"], fields["height"], number)
    return job_of(kind, id=f"job-{number}", task_id=f"task-{number}", **fields)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    fields=st.lists(JOBS, min_size=2, max_size=6),
    cuts=st.sets(st.integers(1, 5)),
    kind=st.sampled_from(["sd", "sdxl", "flux2_klein", "z_image"]),
    batch_max=st.sampled_from([1, 8]),
)
def test_the_seed_law(
    fields: list[dict[str, Any]], cuts: set[int], kind: str, batch_max: int, pipeline_families: Any
) -> None:
    """Images in between each other's steps, each with its own scheduler and noise: as alone."""
    jobs = [made(kind, i, each) for i, each in enumerate(fields)]
    edges = [0, *sorted(cut for cut in cuts if cut < len(jobs)), len(jobs)]
    watched = Watched(pipeline_families[kind])
    run = Run(watched, batch_max)
    for start, end in itertools.pairwise(edges):
        run.core.submit(Submit(tuple(jobs[start:end])))
    ends = run.ends(len(jobs))
    assert all(isinstance(end, JobDrawn) for end in ends.values())
    for job in jobs:
        alone, _ = draw(pipeline_families[kind], job)
        assert (watched.latents[job.id] - alone[-1]).abs().max() <= SEED_LAW


def test_images_are_drawn_between_each_others_steps(pipeline_families: Any) -> None:
    watched = Watched(pipeline_families["sd"])
    run = Run(watched)
    for i in range(2):
        job = job_of("sd", id=str(i), task_id=str(i), account_id=str(i), seed=i, steps=40)
        run.core.submit(Submit((job,)))
    ends = run.ends(2)
    assert {type(end) for end in ends.values()} == {JobDrawn}
    assert watched.order != sorted(watched.order), "one waited until the other was done"


def test_progress_and_previews_come_step_by_step(pipeline_families: Any) -> None:
    run = Run(pipeline_families["flux2_klein"])
    run.core.submit(Submit((job_of("flux2_klein", steps=4, previews=3, width=80, height=48),)))
    end = run.ends(1)["job"]
    assert isinstance(end, JobDrawn)
    assert end.pixels.shape == (48, 80, 3)
    steps = [(e.step, e.steps) for e in run.events if isinstance(e, JobStepped)]
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    looks = [e for e in run.events if isinstance(e, JobPreview)]
    assert [(look.number, look.step) for look in looks] == [(0, 1), (1, 2), (2, 3)]
    assert {look.pixels.shape for look in looks} == {(48, 80, 3)}


def threads_of(job_id: str) -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == f"pipeline-{job_id}"]


def test_a_cancelled_image_stops_between_steps_and_leaves_nothing(pipeline_families: Any) -> None:
    watched = Watched(pipeline_families["sd"])
    run = Run(watched)
    run.core.submit(Submit((job_of("sd", id="gone", task_id="gone", steps=200),)))
    run.until(lambda events: any(isinstance(event, JobStepped) for event in events))
    run.core.cancel(Cancel(("gone",)))
    run.core.submit(Submit((job_of("sd", id="next", task_id="next", steps=2),)))
    ends = run.ends(2)
    assert isinstance(ends["gone"], JobCancelled)
    assert isinstance(ends["next"], JobDrawn)
    assert watched.order.count("gone") < 200
    for thread in threads_of("gone"):
        thread.join(60)
        assert not thread.is_alive()


def test_a_fault_is_its_images_alone(
    pipeline_families: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    family: DiffusersPipeline = pipeline_families["sd"]
    network = family._pipelines["StableDiffusionPipeline"].unet
    forward = network.forward

    def broken(sample: Any, *args: Any, **kwargs: Any) -> Any:
        if sample.shape[-1] == 12:  # the job of 96 pixels
            raise RuntimeError("a fault of its own")
        return forward(sample, *args, **kwargs)

    monkeypatch.setattr(network, "forward", broken)
    run = Run(family)
    jobs = [job_of("sd", id=str(width), task_id=str(width), width=width) for width in (64, 96, 32)]
    for job in jobs:
        run.core.submit(Submit((job,)))
    long = job_of("sd", id="long", task_id="long", prompt="q " * 100)
    run.core.submit(Submit((long,)))
    ends = run.ends(4)
    assert {key: type(end) for key, end in ends.items()} == {
        "64": JobDrawn, "96": JobFailed, "32": JobDrawn, "long": JobFailed,
    }  # fmt: skip
    told = ends["long"]
    assert isinstance(told, JobFailed)
    assert told.message == "The prompt has 102 tokens, at most 77 are read."


def test_a_stopped_engine_leaves_no_thread_behind(pipeline_families: Any) -> None:
    run = Run(pipeline_families["sd"])
    run.core.submit(Submit((job_of("sd", id="left", task_id="left", steps=200),)))
    run.until(lambda events: any(isinstance(event, JobStepped) for event in events))
    assert run.core.stop()
    run.core._works.clear()
    for thread in threads_of("left"):
        thread.join(60)
        assert not thread.is_alive()


def test_the_likeness_of_costs_is_its_key(pipeline_families: Any) -> None:
    family: DiffusersPipeline = pipeline_families["sd"]
    job = job_of("sd")
    assert family.batch_key(job) == family.batch_key(replace(job, seed=9, steps=9, prompt="x"))
    for other in (replace(job, width=128), replace(job, guidance=1.0)):
        assert family.batch_key(job) != family.batch_key(other)
