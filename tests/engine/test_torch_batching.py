"""The torch families in company: an image is the same alone and in any batch; faults and full memory stay confined."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="the engine extra: make install-engine")
pytest.importorskip("diffusers", reason="the engine extra: make install-engine")

from danqing.engine.core import EngineCore  # noqa: E402
from danqing.engine.families.base import DeviceLost, PromptTooLong  # noqa: E402
from danqing.engine.families.flow import FlowFamily, FlowState  # noqa: E402
from danqing.engine.messages import (  # noqa: E402
    Job,
    JobCancelled,
    JobDrawn,
    JobEvent,
    JobFailed,
    Submit,
)
from tests.engine.torch_families import FAMILIES, alone, make_job  # noqa: E402

pytestmark = pytest.mark.slow

SEED_LAW = 1e-5
JOBS = st.builds(
    make_job,
    prompt=st.sampled_from(
        ["", "x", "a red apple", "一只红色的苹果放在木桌上", "a cat and a dog " * 6]
    ),
    negative_prompt=st.sampled_from(["", " ", "blue", "a horse beside the sea " * 4]),
    width=st.sampled_from([32, 48]),
    height=st.sampled_from([32, 40]),
    steps=st.integers(1, 5),
    guidance=st.sampled_from([1.0, 2.0, 5.5]),
    seed=st.integers(0, 2**31 - 1),
    account_id=st.sampled_from(["a", "b"]),
    priority=st.sampled_from(["interactive", "background"]),
)


class Watched:
    """A family that keeps the last latents of every image and the size of every batch. Same weights."""

    def __init__(self, family: FlowFamily, fits: int = 8) -> None:
        self._family = family
        self._fits = fits
        self.name = family.name
        self.latents: dict[str, Any] = {}
        self.sizes: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._family, name)

    def step(self, states: Sequence[FlowState]) -> None:
        if len(states) > self._fits:
            raise MemoryError
        self._family.step(states)
        self.sizes.append(len(states))
        for state in states:
            self.latents[state.job.id] = state.latents.clone()


def draw_all(
    family: Watched, bursts: list[list[Job]], batch: int, after: threading.Event | None = None
) -> list[JobEvent]:
    """Through the real core, burst after burst while it runs, those but the first `after` that. Every job's terminal event."""
    core = EngineCore(lambda: family, warm_up=None, live_max=16)
    # Batches as large as may be: what pays on this machine is not what is tested.
    core._scheduler.pace.batch_size = lambda key: batch  # type: ignore[method-assign]
    ends: list[JobEvent] = []
    told = threading.Condition()

    def listen(event: JobEvent) -> None:
        with told:
            if isinstance(event, JobDrawn | JobFailed | JobCancelled):
                ends.append(event)
            told.notify_all()

    core.listen(listen)
    core.start()
    core.loaded.result(60)
    for place, burst in enumerate(bursts):
        if place and after is not None:
            assert after.wait(60)
        core.submit(Submit(tuple(burst)))
    count = sum(len(burst) for burst in bursts)
    with told:
        assert told.wait_for(lambda: len(ends) == count, 120)
    core.stop()
    return ends


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    jobs=st.lists(JOBS, min_size=2, max_size=8),
    cuts=st.sets(st.integers(1, 7)),
    batch=st.integers(2, 8),
    name=st.sampled_from(list(FAMILIES)),
)
def test_the_seed_law(
    jobs: list[Job], cuts: set[int], batch: int, name: str, families: dict[str, Any]
) -> None:
    jobs = [replace(job, id=f"job-{i}", task_id=f"task-{i}") for i, job in enumerate(jobs)]
    edges = [0, *sorted(cut for cut in cuts if cut < len(jobs)), len(jobs)]
    bursts = [jobs[start:end] for start, end in itertools.pairwise(edges)]
    watched = Watched(families[name])
    ends = draw_all(watched, bursts, batch)
    assert all(isinstance(end, JobDrawn) for end in ends)
    for job in jobs:
        difference = watched.latents[job.id] - alone(families[name], job)[-1]
        assert difference.abs().max() <= SEED_LAW


@pytest.mark.parametrize("name", FAMILIES)
def test_unlike_jobs_share_a_forward(name: str, families: dict[str, Any]) -> None:
    """Different steps, prompts, text lengths and guidance scales at once: the batch is really one."""
    jobs = [
        make_job(id=str(i), task_id=str(i), steps=3 + i, guidance=2.0 + i, seed=i, negative_prompt="blue " * (1 + i), prompt="a cat " * (1 + 5 * i))
        for i in range(4)
    ]  # fmt: skip
    assert len({families[name].batch_key(job) for job in jobs}) == 1
    watched = Watched(families[name])
    draw_all(watched, [jobs], 8)
    assert watched.sizes == [4, 4, 4, 3, 2, 1]
    for job in jobs:
        assert (watched.latents[job.id] - alone(families[name], job)[-1]).abs().max() <= SEED_LAW


def test_what_does_not_fit_is_split_and_drawn(families: dict[str, Any]) -> None:
    jobs = [make_job(id=str(i), task_id=str(i), seed=i) for i in range(4)]
    watched = Watched(families["cogview4"], fits=2)
    ends = draw_all(watched, [jobs], 8)
    assert all(isinstance(end, JobDrawn) for end in ends)
    assert max(watched.sizes) == 2
    for job in jobs:
        assert (
            watched.latents[job.id] - alone(families["cogview4"], job)[-1]
        ).abs().max() <= SEED_LAW


@pytest.mark.parametrize("name", FAMILIES)
def test_an_image_is_drawn_while_another_is_decoded_and_a_third_read(
    name: str, families: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Proved by order: neither the decoding nor the reading ends before the second image has done its steps."""
    family: FlowFamily = families[name]
    jobs = [make_job(id=i, task_id=i, account_id=i, prompt=f"a {i} apple") for i in "abc"]
    expected = {job.id: alone(family, job)[-1] for job in jobs}
    family._embeddings.clear()
    stepped, decoding = threading.Event(), threading.Event()
    watched = Watched(family)
    step, decode, read = watched.step, family.pictures.decode, family._read

    def stepping(states: Sequence[FlowState]) -> None:
        step(states)
        if any(state.job.id == "b" and state.step == 4 for state in states):
            stepped.set()

    def slowly(latents: Any) -> Any:
        decoding.set()
        assert stepped.wait(60)
        return decode(latents)

    def reading(prompt: str) -> Any:
        assert "c" not in prompt.split() or stepped.wait(60)
        return read(prompt)

    monkeypatch.setattr(watched, "step", stepping)
    monkeypatch.setattr(family.pictures, "decode", slowly)
    monkeypatch.setattr(family, "_read", reading)
    first, *others = jobs
    ends = draw_all(watched, [[first], others], 1, after=decoding)
    assert {end.job_id for end in ends if isinstance(end, JobDrawn)} == {"a", "b", "c"}
    for job in jobs:
        assert (watched.latents[job.id] - expected[job.id]).abs().max() <= SEED_LAW


@pytest.mark.parametrize("name", FAMILIES)
def test_full_memory_is_a_memory_error_and_changes_nothing(
    name: str, families: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    family: FlowFamily = families[name]
    job = make_job()
    state = family.start(job, family.encode([job])[0])
    before = state.latents.clone()

    def full(*args: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.")

    with monkeypatch.context() as patch:
        patch.setattr(family.denoiser, "velocity", full)
        with pytest.raises(MemoryError, match="CUDA out of memory"):
            family.step([state])
    assert state.step == 0
    assert torch.equal(state.latents, before)
    family.step([state])
    assert state.step == 1


@pytest.mark.parametrize("name", FAMILIES)
def test_numbers_that_overflow_are_told_of_their_image_alone(
    name: str, families: dict[str, Any]
) -> None:
    family: FlowFamily = families[name]
    states = []
    for i in range(3):
        job = make_job(seed=i)
        states.append(family.start(job, family.encode([job])[0]))
    states[1].latents = torch.full_like(states[1].latents, float("nan"))
    family.step(states)
    assert [family.is_finite(state) for state in states] == [True, False, True]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_decoder_whose_numbers_overflow_is_an_error_and_no_black_picture(
    name: str, families: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    family: FlowFamily = families[name]
    job = make_job(steps=1)
    state = family.start(job, family.encode([job])[0])
    family.step([state])
    with monkeypatch.context() as patch:
        bias = family.pictures._vae.decoder.conv_out.bias  # type: ignore[attr-defined]
        patch.setattr(bias, "data", torch.full_like(bias, float("nan")))
        assert family.is_finite(state)
        with pytest.raises(FloatingPointError):
            family.decode([state])
    assert family.decode([state])[0].shape == (64, 64, 3)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_device_in_error_ends_the_engine(
    name: str, families: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    family: FlowFamily = families[name]
    job = make_job()
    state = family.start(job, family.encode([job])[0])

    def broken(*args: Any) -> Any:
        raise torch.AcceleratorError("CUDA error: an illegal memory access\nmore")

    monkeypatch.setattr(family.denoiser, "velocity", broken)
    with pytest.raises(DeviceLost, match=r"^CUDA error: an illegal memory access$"):
        family.step([state])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prompt_that_is_too_long_is_told_as_that(name: str, families: dict[str, Any]) -> None:
    jobs = [make_job(id="long", task_id="long", prompt="马" * 1500), make_job(id="x", task_id="x")]
    ends = {end.job_id: end for end in draw_all(Watched(families[name]), [jobs], 8)}
    assert isinstance(ends["x"], JobDrawn)
    failed = ends["long"]
    assert isinstance(failed, JobFailed)
    assert failed.message.endswith(" tokens, at most 1024 are read.")


LIMITS = {"cogview4": 1024, "qwen_image": 1024}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prompts_length_is_what_is_read_of_it(name: str, families: dict[str, Any]) -> None:
    """The limit counts what the tokenizer and a template put around a prompt; diffusers cuts there without a word."""
    family: FlowFamily = families[name]
    length = family.measure("马")
    assert length[1] == LIMITS[name]
    around, fits = length[0] - 3, (LIMITS[name] - length[0] + 3) // 3  # three bytes, three tokens
    assert family.measure("马" * fits) == (around + 3 * fits, LIMITS[name])
    family.encode([make_job(prompt="马" * fits)])
    with pytest.raises(PromptTooLong, match=f"{around + 3 * fits + 3} tokens, at most 1024"):
        family.encode([make_job(prompt="马" * (fits + 1))])


@pytest.mark.parametrize("name", FAMILIES)
def test_prompts_are_measured_while_others_are_read(name: str, families: dict[str, Any]) -> None:
    family: FlowFamily = families[name]
    texts = [f"a {'cat ' * i}" for i in range(60)]
    alone = [family.measure(text) for text in texts]
    with ThreadPoolExecutor(2) as pool:
        measured = pool.submit(lambda: [family.measure(text) for text in texts])
        for text in texts:
            family._read(text)
        assert measured.result(60) == alone
