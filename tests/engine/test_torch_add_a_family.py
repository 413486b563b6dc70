"""docs/add-a-family.md: its file is loaded as a backend loads one, and draws what diffusers' pipeline draws, in company too."""

from __future__ import annotations

import re
import sys
import threading
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the engine extra: make install-engine")
diffusers = pytest.importorskip("diffusers", reason="the engine extra: make install-engine")

from danqing.engine.core import EngineCore  # noqa: E402
from danqing.engine.families import load  # noqa: E402
from danqing.engine.families.base import PromptTooLong  # noqa: E402
from danqing.engine.messages import (  # noqa: E402
    Job,
    JobDrawn,
    JobEvent,
    JobFailed,
    JobPreview,
    Submit,
)
from tests.conftest import ROOT  # noqa: E402
from tests.engine.pipeline_checkpoints import pixart_sigma  # noqa: E402
from tests.engine.torch_families import make_job  # noqa: E402

pytestmark = pytest.mark.slow

PAGE = (ROOT / "docs" / "add-a-family.md").read_text("utf-8")
MODULE = "danqing.engine.families.pixart_sigma"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pixart_sigma(tmp_path_factory.mktemp("pixart") / "checkpoint")


@pytest.fixture
def family(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The page's two blocks where it says that they belong."""
    file, line = (
        re.sub(r"^   ", "", block, flags=re.MULTILINE) if block.startswith("   ") else block
        for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    )
    path = tmp_path / "pixart_sigma.py"
    path.write_text(file, "utf-8")
    spec = spec_from_file_location(MODULE, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, MODULE, module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(load, "TORCH", dict(load.TORCH))
    exec(line, vars(load))
    return load.load_family("pixart_sigma", threads=1, checkpoint=str(folder))


def drawn(family: Any, *jobs: Job) -> tuple[dict[str, Any], list[JobPreview]]:
    """Every job's pixels, drawn by the engine at once, and the looks before."""
    core = EngineCore(lambda: family, warm_up=None)
    ends: dict[str, Any] = {}
    looks: list[JobPreview] = []
    told = threading.Condition()

    def listen(event: JobEvent) -> None:
        with told:
            if isinstance(event, JobPreview):
                looks.append(event)
            if isinstance(event, JobDrawn | JobFailed):
                assert isinstance(event, JobDrawn), event
                ends[event.job_id] = event.pixels
            told.notify_all()

    core.listen(listen)
    core.start()
    core.loaded.result(60)
    core.submit(Submit(jobs))
    with told:
        assert told.wait_for(lambda: len(ends) == len(jobs), 120)
    core.stop()
    return ends, looks


JOBS = [
    ("red cat", 6, 4.5, "", 64, 64),
    ("a dog", 3, 3.0, "blue", 64, 64),
    ("Two Houses by the sea ", 5, 6.0, "ugly", 64, 64),
    ("grass", 4, 1.0, "", 64, 64),
    ("a star", 4, 4.5, "", 88, 48),
]


def jobs() -> list[Job]:
    return [
        make_job(
            id=f"job-{i}", task_id=f"job-{i}", prompt=prompt, steps=steps, guidance=guidance,
            negative_prompt=negative, width=width, height=height, seed=40 + i, previews=2,
        )
        for i, (prompt, steps, guidance, negative, width, height) in enumerate(JOBS)
    ]  # fmt: skip


def test_a_mixed_company_is_drawn_as_diffusers_draws_each(family: Any, folder: Path) -> None:
    sizes: list[int] = []
    step = family.step
    family.step = lambda states: (sizes.append(len(states)), step(states))
    ends, looks = drawn(family, *jobs())
    assert max(sizes) > 1, "nobody shared a step"
    assert {look.job_id for look in looks} == {job.id for job in jobs()}
    pipeline = diffusers.PixArtSigmaPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    for job in jobs():
        rows, columns = -(-job.height // 16) * 2, -(-job.width // 16) * 2
        generator = torch.Generator().manual_seed(job.seed)
        theirs = pipeline(
            job.prompt, job.negative_prompt, num_inference_steps=job.steps,
            guidance_scale=job.guidance, latents=torch.randn((1, 4, rows, columns), generator=generator),
            height=rows * 8, width=columns * 8, use_resolution_binning=False, clean_caption=False,
            output_type="np",
        ).images[0]  # fmt: skip
        wanted = theirs[: job.height, : job.width] * 255
        assert ends[job.id].shape == (job.height, job.width, 3)
        assert np.ptp(wanted) > 10, "nothing to be seen"
        assert np.abs(ends[job.id] - wanted).max() <= 1, job


def test_a_decoder_whose_numbers_overflow_is_an_error(family: Any) -> None:
    (job, *_) = jobs()
    state = family.start(job, family.encode([job])[0])
    family.pictures._vae.decoder.conv_out.bias.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError):
        family.decode([state])


def test_what_is_too_long_is_told_with_both_numbers(family: Any) -> None:
    words = "cat " * 400
    counted, most = family.measure(words)
    assert counted > most == 300
    with pytest.raises(PromptTooLong, match=f"{counted} tokens, at most 300"):
        family.encode([make_job(prompt=words)])


def test_a_step_that_raises_leaves_every_state_as_it_was(family: Any) -> None:
    states = [family.start(job, family.encode([job])[0]) for job in jobs()[:3]]
    before = [state.latents.clone() for state in states]
    network = family.network

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("no room. None.")

    family.network = full
    with pytest.raises(MemoryError):
        family.step(states)
    family.network = network
    for state, latents in zip(states, before, strict=True):
        assert state.step == 0
        assert torch.equal(state.latents, latents)
