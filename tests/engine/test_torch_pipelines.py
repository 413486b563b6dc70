"""`diffusers_pipeline` against the plain pipelines, on small random checkpoints in the true layout: steps, edits, limits, faults."""

from __future__ import annotations

import inspect
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="the engine extra: make install-engine")
diffusers = pytest.importorskip("diffusers", reason="the engine extra: make install-engine")

from danqing.domain.pipelines import PIPELINES  # noqa: E402
from danqing.domain.sizes import Size  # noqa: E402
from danqing.engine.families import positions  # noqa: E402
from danqing.engine.families.base import DeviceLost, PromptTooLong  # noqa: E402
from danqing.engine.families.diffusers_pipeline import DiffusersPipeline, how_far  # noqa: E402
from tests.engine.torch_pipelines import (  # noqa: E402
    EDITING,
    GUIDED,
    KINDS,
    draw,
    job_of,
    latents_of,
    picture,
    plain,
)

pytestmark = pytest.mark.slow

TOLERANCE = 1e-4


def close(ours: Any, theirs: Any) -> None:
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine - other).abs().max() <= TOLERANCE


@pytest.mark.parametrize("kind", PIPELINES)
def test_the_facts_are_those_of_the_classes(kind: str) -> None:
    facts = PIPELINES[kind]
    made = inspect.signature(getattr(diffusers, facts.text_to_image).__init__).parameters
    assert {*facts.parts, *facts.tokenizers, *facts.optional, "scheduler"} <= set(made)
    for name in (facts.text_to_image, facts.image_to_image, facts.inpaint):
        if name is None:
            continue
        known = getattr(diffusers, name)
        called = inspect.signature(known.__call__).parameters
        assert {"prompt", "num_inference_steps", "guidance_scale", "generator"} <= set(called)
        assert {"callback_on_step_end", "callback"} & set(called)
        assert (facts.negative_above is None) or "negative_prompt" in called
        assert set(inspect.signature(known.__init__).parameters) >= {"scheduler", "vae"}
        assert hasattr(known, "encode_prompt")
    if facts.inpaint:
        inpaints = inspect.signature(getattr(diffusers, facts.inpaint).__call__).parameters
        assert {"image", "mask_image", "strength"} <= set(inpaints)
    if facts.image_to_image:
        edits = inspect.signature(getattr(diffusers, facts.image_to_image).__call__).parameters
        assert "image" in edits
        assert ("strength" in edits) is not facts.reads_references


LONG_PX = 640


@pytest.mark.parametrize("kind", KINDS)
def test_the_smallest_and_the_longest_are_drawn_and_no_longer_one_could_be(
    kind: str, pipeline_families: Any, pipeline_folders: Any
) -> None:
    """What is refused for its size before the hold is what the network cannot do, and all else is drawn."""
    family, side = pipeline_families[kind], positions.side_max(pipeline_folders[kind])
    assert (side is None) == (kind not in ("sd3", "z_image"))
    for width, height in [(16, 16), (side or LONG_PX, 16), (16, side or LONG_PX)]:
        shape = draw(family, job_of(kind, width=width, height=height, steps=1))[1].shape
        assert shape == (height, width, 3)
    if side is not None:
        for width, height in [(side + 1, 16), (16, side + 1)]:
            with pytest.raises((ValueError, IndexError)):
                draw(family, job_of(kind, width=width, height=height, steps=1))


@pytest.mark.parametrize("kind", EDITING)
@pytest.mark.parametrize(("width", "height"), [(16, 16), (48, 64), (64, 64), (512, 64), (64, 520)])
def test_an_edit_is_drawn_at_every_size_that_is_not_refused(
    kind: str, width: int, height: int, pipeline_families: Any
) -> None:
    family, facts = pipeline_families[kind], PIPELINES[kind]
    if kind == "sd3":
        width, height = min(width, 512), min(height, 512)
    job = job_of(kind, width=width, height=height, reference=picture(width, height), steps=2, strength=1.0)  # fmt: skip
    if facts.look_fault(Size(width, height)) is None:
        assert draw(family, job)[1].shape == (height, width, 3)
    else:
        with pytest.raises(ValueError, match=r"too small|too extreme"):
            draw(family, job)
    mask = np.arange(height)[:, None].repeat(width, 1) < height // 2
    assert draw(family, replace(job, mask=mask))[1].shape == (height, width, 3)


CASES: list[dict[str, Any]] = [
    {},
    {"width": 96, "height": 32, "steps": 3, "seed": 2**31 - 1},
    {"guidance": 1.0, "steps": 1, "prompt": ""},
    {"width": 32, "height": 96, "steps": 2, "guidance": 6.0, "prompt": "a cat, red " * 4},
    {"guidance": 0.0, "steps": 3},  # what is distilled is drawn so
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_step_is_the_pipelines(
    kind: str, case: dict[str, Any], pipeline_families: Any, pipeline_folders: Any
) -> None:
    job = job_of(kind, **case)
    size = {"width": job.width, "height": job.height, "num_inference_steps": job.steps}
    theirs, image = plain(pipeline_folders[kind], PIPELINES[kind].text_to_image, job, **size)
    ours, drawn = draw(pipeline_families[kind], job)
    close(ours, theirs)
    assert drawn.dtype == np.uint8
    assert drawn.std() > 5, "a flat picture would agree with anything"
    assert np.abs(drawn - image).max() <= 0.51


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_klein_s_base_is_guided_as_the_pipeline_does(
    guidance: float, pipeline_folders: Any, tmp_path: Path
) -> None:
    """Not distilled: guidance is away from the empty prompt, two forwards a step."""
    folder = tmp_path / "base"
    shutil.copytree(pipeline_folders["flux2_klein"], folder)
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text("utf-8")) | {"is_distilled": False}))
    family = DiffusersPipeline.load(folder, pipeline="flux2_klein_base")
    job = job_of("flux2_klein", guidance=guidance, steps=3)
    size = {"width": 64, "height": 64, "num_inference_steps": 3}
    theirs, _ = plain(folder, "Flux2KleinPipeline", job, **size)
    ours, _ = draw(family, job)
    close(ours, theirs)
    keys = {family.batch_key(replace(job, guidance=scale)) for scale in (0.0, 1.0, 1.5, 4.0)}
    assert len(keys) == 2  # a guided step costs twice


@pytest.mark.parametrize(("kind", "above"), [("z_image", 0.0), ("sd", 1.0)])
def test_what_is_guided_costs_more_and_has_a_key_of_its_own(
    kind: str, above: float, pipeline_families: Any
) -> None:
    family: DiffusersPipeline = pipeline_families[kind]
    none, little, much = (
        family.batch_key(job_of(kind, guidance=guidance)) for guidance in (above, above + 0.5, 9.0)
    )
    assert none != little == much


@pytest.mark.parametrize("kind", GUIDED)
def test_a_negative_prompt_is_the_pipelines(
    kind: str, pipeline_families: Any, pipeline_folders: Any
) -> None:
    job = job_of(kind, negative_prompt="blue", steps=2)
    size = {"width": 64, "height": 64, "num_inference_steps": 2}
    theirs, _ = plain(pipeline_folders[kind], PIPELINES[kind].text_to_image, job, **size)
    ours, _ = draw(pipeline_families[kind], job)
    close(ours, theirs)
    without, _ = draw(pipeline_families[kind], job_of(kind, steps=2))
    assert (ours[-1] - without[-1]).abs().max() > TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
def test_a_negative_prompt_that_would_not_count_is_an_error(
    kind: str, pipeline_families: Any
) -> None:
    guidance = PIPELINES[kind].negative_above or 0.0
    job = job_of(kind, negative_prompt="blue", guidance=guidance)
    with pytest.raises(ValueError, match="no negative prompt at guidance"):
        pipeline_families[kind].encode([job])


@pytest.mark.parametrize(("steps", "strength"), [(4, 0.5), (5, 0.6), (3, 1.0)])
@pytest.mark.parametrize("kind", EDITING)
def test_an_edit_is_the_siblings(
    kind: str, steps: int, strength: float, pipeline_families: Any, pipeline_folders: Any
) -> None:
    facts = PIPELINES[kind]
    strength = 1.0 if facts.reads_references else strength
    job = job_of(kind, width=96, steps=steps, reference=picture(96, 64), strength=strength)
    options: dict[str, Any] = {
        "num_inference_steps": steps,
        "image": Image.fromarray(picture(96, 64)),
    }
    if not facts.reads_references:
        options["strength"] = strength
    if kind not in ("sd", "sdxl"):
        options |= {"width": 96, "height": 64}
    theirs, image = plain(pipeline_folders[kind], str(facts.image_to_image), job, **options)
    ours, drawn = draw(pipeline_families[kind], job)
    close(ours, theirs)
    assert len(ours) == job.steps_drawn
    assert np.abs(drawn - image).max() <= 0.51
    anew, _ = draw(pipeline_families[kind], job_of(kind, width=96, steps=steps))
    assert facts.image_to_image is not None
    if strength < 1 or facts.reads_references:
        assert (ours[-1] - anew[-1]).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize("kind", EDITING)
@pytest.mark.parametrize("size", [(64, 64), (75, 50)])
def test_what_a_mask_keeps_is_the_reference_to_the_pixel(
    kind: str, size: tuple[int, int], pipeline_families: Any
) -> None:
    width, height = size
    mask = np.zeros((height, width), bool)
    mask[height // 3 : height // 3 * 2 + 3, 5 : width // 2] = True
    reference = picture(*size)
    job = job_of(kind, width=width, height=height, reference=reference, mask=mask, strength=1.0)
    family = pipeline_families[kind]
    state = family.start(job, family.encode([job])[0])
    family.step([state])
    look = family.preview(state)
    while state.step < job.steps_drawn:
        family.step([state])
    painted = family.decode([state])[0]
    for shown in (look, painted):
        assert shown.shape == (height, width, 3)
        np.testing.assert_array_equal(shown[~mask], reference[~mask])
    assert np.abs(painted[mask].astype(int) - reference[mask]).mean() > 4


@pytest.mark.parametrize("kind", ["sd", "z_image"])
def test_no_strength_keeps_the_picture(kind: str, pipeline_families: Any) -> None:
    job = job_of(kind, reference=picture(64, 64), strength=0.0)
    np.testing.assert_array_equal(draw(pipeline_families[kind], job)[1], picture(64, 64))


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8, 28, 30, 50, 200])
@pytest.mark.parametrize("strength", [0.0, 0.01, 0.3, 0.5, 0.75, 0.9999, 1.0])
def test_a_strength_makes_the_steps_that_are_told(steps: int, strength: float) -> None:
    job = job_of("sd", steps=steps, strength=strength, reference=picture(8, 8))
    made, found = how_far(job)
    assert 0 < found <= 1
    # By StableDiffusionImg2ImgPipeline.get_timesteps, and by FluxImg2ImgPipeline's.
    first = max(made - min(int(made * found), made), 0)
    second = int(max(made - min(made * found, made), 0))
    assert made - first == made - second == job.steps_drawn
    if strength:
        assert abs(job.steps_drawn / made - strength) <= 0.25, "few steps begin near the strength"
    assert found < 1 or strength > 0.94 or not strength, "a reference that counts is not drawn over"


def test_one_step_still_begins_with_the_reference(pipeline_families: Any) -> None:
    """Else a distilled checkpoint at one step would draw over it whatever the strength is."""
    edit = job_of("sd", steps=1, strength=0.5, reference=picture(64, 64))
    assert how_far(edit) == (2, 0.5)
    ours, _ = draw(pipeline_families["sd"], edit)
    other, _ = draw(
        pipeline_families["sd"], job_of("sd", steps=1, strength=0.5, reference=picture(64, 64, 1))
    )
    assert (ours[-1] - other[-1]).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
def test_odd_sizes_are_drawn_larger_and_cut(kind: str, pipeline_families: Any) -> None:
    job = job_of(kind, width=75, height=50, steps=1)
    family = pipeline_families[kind]
    state = family.start(job, family.encode([job])[0])
    family.step([state])
    assert family.preview(state).shape == (50, 75, 3)
    cut = family.decode([state])[0]
    side = PIPELINES[kind].multiple_px
    whole = job_of(kind, width=-(-75 // side) * side, height=-(-50 // side) * side, steps=1)
    np.testing.assert_array_equal(cut, draw(family, whole)[1][:50, :75])


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_that_would_be_cut_is_refused_with_its_tokens(
    kind: str, pipeline_families: Any
) -> None:
    """What is measured before anything is held is what the pipeline counts, to the token."""
    family: DiffusersPipeline = pipeline_families[kind]
    limit = PIPELINES[kind].tokens_max
    words = 1
    while family.measure("q " * (words + 1))[0] <= limit:
        words += 1
    assert limit - 1 <= family.measure("q " * words)[0] <= limit == family.measure("")[1]
    family.encode([job_of(kind, prompt="q " * words)])
    tokens = family.measure("q " * (words + 1))[0]
    with pytest.raises(PromptTooLong, match=rf"has {tokens} tokens, at most {limit} are read"):
        family.encode([job_of(kind, prompt="q " * (words + 1))])
    if kind in GUIDED:
        with pytest.raises(PromptTooLong):
            family.encode([job_of(kind, negative_prompt="q " * 600)])


def test_without_its_third_encoder_sd3_is_held_to_the_others_limit(tmp_path: Path) -> None:
    from tests.engine.pipeline_checkpoints import sd3

    family = DiffusersPipeline.load(sd3(tmp_path / "sd3", with_t5=False), pipeline="sd3")
    with pytest.raises(PromptTooLong, match="at most 77 are read"):
        family.encode([job_of("sd3", prompt="q " * 100)])
    assert family.measure("q " * 100) == (102, 77)
    assert draw(family, job_of("sd3"))[1].std() > 5


def test_a_scheduler_that_counts_otherwise_ends_with_the_jobs_steps(
    pipeline_folders: Any, pipeline_families: Any
) -> None:
    """PNDM makes a step more than asked for, Heun nearly twice as many: the job's own count holds."""
    for scheduler, loops in ((diffusers.PNDMScheduler(skip_prk_steps=True), 5), (diffusers.HeunDiscreteScheduler(), 7)):  # fmt: skip
        family = DiffusersPipeline.load(pipeline_folders["sd"], pipeline="sd")
        for each in family._pipelines.values():
            each.scheduler = scheduler
        job = job_of("sd", steps=4)
        state = family.start(job, family.encode([job])[0])
        counts = []
        while state.step < 4:
            family.step([state])
            counts.append(state.seen.done)
        assert counts[-1] == state.seen.total == loops
        assert counts == sorted(counts)
        assert family.decode([state])[0].std() > 5


def test_a_guess_ahead_is_what_is_shown(pipeline_families: Any) -> None:
    """The scheduler's own guess at the finished latents; at the last step it is the latents themselves."""
    for kind in KINDS:
        family = pipeline_families[kind]
        job = job_of(kind, steps=4)
        state = family.start(job, family.encode([job])[0])
        family.step([state])
        assert state.seen.clean is not None
        early = state.seen.clean.clone()
        assert (early - latents_of(state)).abs().max() > 0.01
        while state.step < 4:
            family.step([state])
        assert (state.seen.clean - latents_of(state)).abs().max() <= 1e-4, kind


def test_previews_have_the_colours_of_the_picture(
    pipeline_folders: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Learnt from what was drawn: with a decoder that is a linear map, a look at the last step is the picture."""
    generator = torch.Generator().manual_seed(1)
    matrix = torch.randn((3, 16), generator=generator)
    scale: dict[str, float] = {}  # of the first picture, so that none is clipped much

    def decode(latents: Any, **options: Any) -> Any:
        rgb = torch.einsum("rc,bchw->brhw", matrix[:, : latents.shape[1]], latents.float())
        rgb = rgb * scale.setdefault(kind, 0.3 / float(rgb.std()))
        return (torch.nn.functional.interpolate(rgb, scale_factor=8, mode="nearest"),)

    for kind in ("sd", "sd3", "flux2_klein", "z_image"):
        family: DiffusersPipeline = DiffusersPipeline.load(pipeline_folders[kind], pipeline=kind)
        monkeypatch.setattr(family._pipelines[PIPELINES[kind].text_to_image].vae, "decode", decode)
        job = job_of(kind, width=128, height=96, steps=2)
        for seed in range(3):
            draw(family, job_of(kind, width=128, height=128, steps=2, seed=seed))
        state = family.start(job, family.encode([job])[0])
        for _ in range(2):
            family.step([state])
        look, whole = family.preview(state), family.decode([state])[0]
        assert look.shape == whole.shape == (96, 128, 3)
        small = Image.fromarray(whole[::8, ::8]).resize((128, 96), Image.Resampling.BICUBIC)
        assert whole.std() > 5
        assert np.abs(look.astype(int) - np.asarray(small).astype(int)).mean() < 4, kind


def test_numbers_that_overflow_are_an_error_and_no_black_picture(
    pipeline_families: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    family: DiffusersPipeline = pipeline_families["z_image"]
    vae = family._pipelines["ZImagePipeline"].vae
    job = job_of("z_image", steps=2)
    state = family.start(job, family.encode([job])[0])
    family.step([state])
    assert family.is_finite(state)
    with monkeypatch.context() as patch:
        decode = vae.decode
        patch.setattr(vae, "decode", lambda *a, **k: (decode(*a, **k)[0] * math.nan,))
        family.step([state])
        with pytest.raises(FloatingPointError):
            family.decode([state])
    with monkeypatch.context() as patch:
        network = family._pipelines["ZImagePipeline"].transformer
        forward = network.forward
        patch.setattr(
            network, "forward", lambda *a, **k: ([x * math.nan for x in forward(*a, **k)[0]],)
        )
        state = family.start(job, family.encode([job])[0])
        family.step([state])
        assert not family.is_finite(state)


def test_full_memory_and_a_lost_device_are_told_as_that(
    pipeline_families: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    family: DiffusersPipeline = pipeline_families["sd"]
    network = family._pipelines["StableDiffusionPipeline"].unet
    for raised, told in (
        (torch.OutOfMemoryError("CUDA out of memory. Tried."), MemoryError),
        (torch.AcceleratorError("CUDA error: an illegal memory access\nmore"), DeviceLost),
    ):

        def broken(*args: Any, raised: BaseException = raised, **kwargs: Any) -> Any:
            raise raised

        job = job_of("sd")
        state = family.start(job, family.encode([job])[0])
        with monkeypatch.context() as patch:
            patch.setattr(network, "forward", broken)
            with pytest.raises(told):
                family.step([state])
        assert state.step == 0


def test_prompts_may_be_read_elsewhere(pipeline_folders: Any, pipeline_families: Any) -> None:
    """`meta` is a device without numbers: what an encoder on it is given has come there."""
    from danqing.engine.families.diffusers_parts import _reads_elsewhere, load_parts

    for kind in ("sd", "flux2_klein", "z_image", "sd3"):
        parts = load_parts(
            pipeline_folders[kind], PIPELINES[kind], device="meta", dtype="float32",
            text_device="cpu", compiled=False,
        )  # fmt: skip
        assert {name: parts[name].device.type for name in PIPELINES[kind].parts} == {
            name: "cpu" if name.startswith("text_encoder") else "meta"
            for name in PIPELINES[kind].parts
        }
        encoder = parts["text_encoder"].to("meta")  # which takes nothing from elsewhere
        encoder._forward_pre_hooks.clear()
        encoder._forward_hooks.clear()
        ids = torch.ones((1, 8), dtype=torch.long)
        given: list[str] = []
        forward = encoder.forward

        def recorded(
            *args: Any, forward: Any = forward, given: list[str] = given, **kwargs: Any
        ) -> Any:
            given.append(kwargs["input_ids"].device.type)
            return forward(*args, **kwargs)

        encoder.forward = recorded
        _reads_elsewhere(encoder, torch.device("meta"), torch.device("meta"))
        found = encoder(input_ids=ids, output_hidden_states=True)
        assert found.hidden_states[-1].device.type == "meta"
        assert given == ["meta"]


def test_compiled_blocks_draw_the_same(pipeline_folders: Any, pipeline_families: Any) -> None:
    """Also from one thread to the next, as every image has its own, and at another size without compiling anew."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = DiffusersPipeline.load(
        pipeline_folders["flux2_klein"], pipeline="flux2_klein", compiled=True
    )
    graphs = []
    for width in (112, 96, 128):
        job = job_of("flux2_klein", width=width, steps=2, prompt="red cat " * (width // 32))
        close(draw(compiled, job)[0], draw(pipeline_families["flux2_klein"], job)[0])
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert 0 < graphs[0] == graphs[-1]


def test_what_was_read_is_kept_and_the_same(
    pipeline_folders: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in ("sd", "z_image"):
        family = DiffusersPipeline.load(pipeline_folders[kind], pipeline=kind)
        encoder = family._pipelines[PIPELINES[kind].text_to_image].text_encoder
        calls = 0
        forward = encoder.forward

        def counted(*args: Any, forward: Any = forward, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            return forward(*args, **kwargs)

        monkeypatch.setattr(encoder, "forward", counted)
        first, _ = draw(family, job_of(kind))
        read = calls
        again, _ = draw(family, job_of(kind))
        assert calls == read > 0
        close(first, again)
        draw(family, job_of(kind, prompt="another"))
        assert calls > read
