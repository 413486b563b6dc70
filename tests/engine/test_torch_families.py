"""CogView4 and Qwen-Image against diffusers' own pipelines, on small random checkpoints in the true layout."""

from __future__ import annotations

import copy
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="the engine extra: make install-engine")
pytest.importorskip("diffusers", reason="the engine extra: make install-engine")

from diffusers import FlowMatchEulerDiscreteScheduler, QwenImagePipeline  # noqa: E402
from diffusers.pipelines.cogview4 import pipeline_cogview4  # noqa: E402
from diffusers.pipelines.qwenimage import pipeline_qwenimage  # noqa: E402

from danqing.engine import samplers  # noqa: E402
from danqing.engine.families import flow, memory  # noqa: E402
from danqing.engine.families.flow import FlowFamily, pack  # noqa: E402
from danqing.engine.families.qwen_image import (  # noqa: E402
    TEMPLATE,
    TEMPLATE_TOKENS,
    QwenPictures,
)
from danqing.engine.messages import Job  # noqa: E402
from tests.engine.torch_families import FAMILIES, alone, make_job  # noqa: E402

pytestmark = pytest.mark.slow

TOLERANCE = 1e-4


def reference(pipeline: Any, job: Job) -> tuple[list[torch.Tensor], np.ndarray]:
    """The same from the pipeline, and its picture in 0..1."""
    seen: list[torch.Tensor] = []

    def look(_: Any, index: int, time: Any, values: dict[str, Any]) -> dict[str, Any]:
        seen.append(values["latents"][0].clone())
        return {}

    common: dict[str, Any] = {
        "prompt": job.prompt, "width": job.width, "height": job.height, "num_inference_steps": job.steps,
        "generator": torch.Generator("cpu").manual_seed(job.seed), "output_type": "np",
        "callback_on_step_end": look,
    }  # fmt: skip
    if isinstance(pipeline, QwenImagePipeline):
        negative = job.negative_prompt or None
        image = pipeline(**common, negative_prompt=negative, true_cfg_scale=job.guidance).images[0]
        return seen, image
    image = pipeline(
        **common, negative_prompt=job.negative_prompt, guidance_scale=job.guidance
    ).images[0]
    return [pack(latents) for latents in seen], image


CASES = [
    {},
    {"width": 96, "height": 48, "negative_prompt": "blue", "steps": 3},
    {"width": 48, "height": 112, "guidance": 1.0, "prompt": "水墨画"},
    {"width": 128, "height": 128, "negative_prompt": " ", "steps": 7, "guidance": 6.0},
    {"prompt": "x", "negative_prompt": "a cat, a dog and a horse beside the sea " * 3},
    {"prompt": "a cat, a dog and a horse beside the sea " * 5, "steps": 2},
    {"prompt": "", "negative_prompt": "", "seed": 2**31 - 1},
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_step_is_the_pipelines(name: str, case: dict[str, Any], families: Any, pipelines: Any) -> None:  # fmt: skip
    job = make_job(**case)
    theirs, picture = reference(pipelines[name], job)
    ours = alone(families[name], job)
    assert len(ours) == len(theirs) == job.steps
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine - other).abs().max() <= TOLERANCE
    state = families[name].start(job, families[name].encode([job])[0])
    state.latents = theirs[-1]
    pixels = families[name].decode([state])[0]
    assert pixels.dtype == np.uint8
    assert pixels.shape == (job.height, job.width, 3)
    assert np.abs(pixels.astype(int) - (picture * 255).round().astype(int)).max() <= 1


@pytest.mark.parametrize("steps", [1, 2, 3, 8, 20, 50])
@pytest.mark.parametrize("tokens", [16, 35, 1024, 4096, 6889])
def test_schedules_are_the_schedulers(steps: int, tokens: int, folders: dict[str, Path]) -> None:
    """CogView4 hears whole, unshifted timesteps beside shifted noise levels; Qwen-Image hears the shifted ones."""
    for name in FAMILIES:
        scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folders[name] / "scheduler")
        config = samplers.FlowMatch.read(
            dict(scheduler.config) | {"_class_name": type(scheduler).__name__}
        )
        if name == "cogview4":
            ours = samplers.cogview4(config, steps, tokens)
            times = np.linspace(1000, 1.0, steps).astype(np.int64).astype(np.float32)
            mu = pipeline_cogview4.calculate_shift(tokens, 256, 0.25, 0.75)
            scheduler.set_timesteps(sigmas=times / 1000, timesteps=times, mu=mu)
        else:
            ours = samplers.qwen_image(config, steps, tokens)
            mu = pipeline_qwenimage.calculate_shift(tokens, 256, 8192, 0.5, 0.9)
            scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
            if steps == 1:  # the scheduler stretches 0 to a length: no number
                assert torch.isnan(scheduler.sigmas[0])
                assert ours.sigmas == (1.0, 0.0)
                continue
        np.testing.assert_allclose(ours.sigmas, scheduler.sigmas.numpy(), rtol=0, atol=1e-6)
        np.testing.assert_allclose(ours.timesteps, scheduler.timesteps.numpy(), rtol=1e-6)


def test_cogview4_attends_its_pads(families: Any, pipelines: Any) -> None:
    family, pipeline = families["cogview4"], pipelines["cogview4"]
    ids = pipeline.tokenizer("x").input_ids
    assert len(ids) < 16
    read = family._read("x")
    assert read.shape[0] == 16
    padded = torch.tensor([[pipeline.tokenizer.pad_token_id] * (16 - len(ids)) + ids])
    with torch.no_grad():
        whole = pipeline.text_encoder(padded, output_hidden_states=True)
    assert torch.allclose(read, whole.hidden_states[-2][0], atol=1e-5)
    job = make_job(prompt="x", guidance=1.0)
    state = family.start(job, family.encode([job])[0])
    family.step([state])
    without = family.start(job, family.encode([job])[0])
    without.texts = (without.texts[0][16 - len(ids) :],)
    family.step([without])
    assert (state.latents - without.latents).abs().max() > 100 * TOLERANCE


def test_cogview4_batches_unequal_texts_without_a_mask(families: Any, pipelines: Any) -> None:
    """The transformer's own attention_mask adds 0 or 1 to the scores: a masked batch is not its members."""
    family, model = families["cogview4"], pipelines["cogview4"].transformer
    texts = [
        family._read(prompt) for prompt in ("x", "a cat, a dog and a horse beside the sea " * 4)
    ]
    long = max(len(text) for text in texts)
    assert len(texts[0]) < long
    padded = torch.stack(
        [torch.nn.functional.pad(text, (0, 0, long - len(text), 0)) for text in texts]
    )
    mask = torch.tensor([[i >= long - len(text) for i in range(long)] for text in texts]).int()
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn((2, 4, 8, 8), generator=generator)
    size = torch.tensor([[64.0, 64.0]])
    with torch.no_grad():
        both = model(latents, padded, torch.full((2,), 500.0), size.expand(2, 2), size.expand(2, 2),
                     torch.zeros(2, 2), attention_mask=mask).sample  # fmt: skip
        solo = model(latents[:1], texts[0][None], torch.full((1,), 500.0), size, size,
                     torch.zeros(1, 2)).sample  # fmt: skip
    assert (both[:1] - solo).abs().max() > 1e-3, "diffusers' mask works now: this trap is gone"
    jobs = [
        make_job(prompt="x"),
        make_job(prompt="a cat, a dog and a horse beside the sea " * 4, seed=8),
    ]
    states = [family.start(job, family.encode([job])[0]) for job in jobs]
    family.step(states)
    for job, state in zip(jobs, states, strict=True):
        assert (state.latents - alone(family, job)[0]).abs().max() <= 1e-5


def test_qwen_drops_the_templates_tokens(families: Any, pipelines: Any) -> None:
    family, pipeline = families["qwen_image"], pipelines["qwen_image"]
    tokens = pipeline.tokenizer(TEMPLATE.format("一只猫"), return_tensors="pt")
    with torch.no_grad():
        whole = pipeline.text_encoder(**tokens, output_hidden_states=True).hidden_states[-1][0]
    read = family._read("一只猫")
    assert read.shape == whole[TEMPLATE_TOKENS:].shape
    assert torch.allclose(read, whole[TEMPLATE_TOKENS:], atol=1e-5)


def test_guidance_is_on_where_the_pipelines_have_it(families: Any) -> None:
    for guidance, negative, cogview4, qwen in [
        (1.0, "blue", False, False), (0.0, "", False, False), (1.1, "", True, False),
        (4.0, " ", True, True), (4.0, "blue", True, True),
    ]:  # fmt: skip
        job = make_job(guidance=guidance, negative_prompt=negative)
        assert families["cogview4"].guided(job) is cogview4
        assert families["qwen_image"].guided(job) is qwen
        for family in families.values():
            assert family.batch_key(job)[-2] is family.guided(job)
            assert (family.encode([job])[0].negative is not None) is family.guided(job)


def test_qwen_scales_back_to_the_wanted_length(families: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    wanted, unwanted = torch.randn((2, 3, 5, 16), generator=generator)
    scale = torch.tensor([4.0, 2.0, 7.5]).view(-1, 1, 1)
    found = families["qwen_image"].combine(wanted, unwanted, scale)
    assert torch.allclose(found.norm(dim=-1), wanted.norm(dim=-1), rtol=1e-5)
    plain = unwanted + scale * (wanted - unwanted)
    assert torch.allclose(torch.cosine_similarity(found, plain, -1), torch.ones(3, 5), atol=1e-5)


def test_folded_vae_is_the_whole_one(folders: dict[str, Path], families: Any) -> None:
    from diffusers import AutoencoderKLQwenImage

    whole = QwenPictures(
        AutoencoderKLQwenImage.from_pretrained(folders["qwen_image"] / "vae").eval(), folded=False
    )
    latents = torch.randn((2, 4, 6, 10), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        difference = whole.decode(latents) - families["qwen_image"].pictures.decode(latents)
    assert difference.abs().max() <= 2e-5  # of -1..1; processors sum in other orders
    kinds = {
        type(module).__name__ for module in families["qwen_image"].pictures._vae.decoder.modules()
    }
    assert "QwenImageCausalConv3d" not in kinds


@pytest.mark.parametrize("name", FAMILIES)
def test_compiled_blocks_draw_the_same(name: str, families: Any, folders: dict[str, Path]) -> None:
    compiled = FAMILIES[name].load(folders[name], compiled=True)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for case in (
        {"negative_prompt": " "},
        {"width": 96, "prompt": "x", "negative_prompt": "猫 " * 30},
    ):
        job = make_job(**case, steps=2)
        for mine, other in zip(alone(compiled, job), alone(families[name], job), strict=True):
            assert (mine - other).abs().max() <= 1e-5
    jobs: list[Job] = [
        make_job(seed=i, negative_prompt=" ", prompt="猫 " * 9 * i) for i in range(3)
    ]
    states = [compiled.start(job, compiled.encode([job])[0]) for job in jobs]
    compiled.step(states)
    for job, state in zip(jobs, states, strict=True):
        assert (state.latents - alone(families[name], job)[0]).abs().max() <= 1e-5
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs == 2, "sizes and batches share what was compiled"


class LinearPictures:
    """A decoder that is a linear map of each cell's latents: what a projection can find exactly."""

    channels = 4

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.matrix, self.shift = (
            torch.randn((3, 4), generator=generator) * 0.1,
            torch.tensor([0.1, 0.0, -0.2]),
        )

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        rgb = torch.einsum("rc,bchw->brhw", self.matrix, latents) + self.shift.view(1, 3, 1, 1)
        return torch.nn.functional.interpolate(rgb, scale_factor=8, mode="nearest")


@pytest.mark.parametrize("name", FAMILIES)
def test_previews_show_the_finished_picture_small(name: str, families: Any) -> None:
    family = copy.copy(families[name])
    family.pictures, family._projection = LinearPictures(), None
    job = make_job(width=72, height=40, steps=1)
    state = family.start(job, family.encode([job])[0])
    family.step([state])
    whole = family.decode([state])[0]
    seen = family.preview(state)
    assert seen.shape == whole.shape == (40, 72, 3)
    resized = Image.fromarray(whole[::8, ::8]).resize((72, 40), Image.Resampling.BICUBIC)
    assert np.abs(seen.astype(int) - np.asarray(resized).astype(int)).max() <= 2


@pytest.mark.parametrize("name", FAMILIES)
def test_previews_guess_ahead(name: str, families: Any) -> None:
    """Halfway, a look is the picture that the last velocity leads to, not the noise on it."""
    family: FlowFamily = families[name]
    job = make_job(steps=4)
    state = family.start(job, family.encode([job])[0])
    family.step([state])
    seen = family.preview(state)
    assert state.velocity is not None
    state.latents = state.latents - state.schedule.sigmas[1] * state.velocity
    state.velocity = None
    assert np.array_equal(family.preview(state), seen)


@pytest.mark.parametrize("name", FAMILIES)
def test_kept_texts_and_tables_are_bounded_in_bytes(
    name: str, families: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand tokens are 8 MiB, ten are a hundredth of that: a number of texts would bound nothing."""
    assert flow.EMBEDDINGS_BYTES_MAX + flow.TABLES_BYTES_MAX < memory.ROOM_BYTES
    family: FlowFamily = families[name]
    monkeypatch.setattr(family, "_embeddings", OrderedDict())
    monkeypatch.setattr(family, "_tables", OrderedDict())
    prompts = [f"{'red apple ' * 20}{number}" for number in range(6)]
    jobs = [
        make_job(prompt=prompt, guidance=1.0, steps=index + 2)
        for index, prompt in enumerate(prompts)
    ]
    found = family.encode(jobs[:1])
    family.start(jobs[0], found[0])
    text_bytes = found[0].text.untyped_storage().nbytes()
    monkeypatch.setattr(flow, "EMBEDDINGS_BYTES_MAX", 3 * text_bytes + 1)
    monkeypatch.setattr(flow, "TABLES_BYTES_MAX", 1)
    family.encode([jobs[1], jobs[2], jobs[0], jobs[3]])
    assert [text for text, _ in family._embeddings] == [prompts[2], prompts[0], prompts[3]]
    for job in jobs:
        family.start(job, family.encode([job])[0])
        assert [key[1] for key in family._tables] == [job.steps]  # the newest, whatever its size
    held = sum(each.untyped_storage().nbytes() for each in family._embeddings.values())
    assert held <= 3 * text_bytes + 1
