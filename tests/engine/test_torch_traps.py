"""Traps of diffusers 0.42.1, each shown to be one and shown to be passed by. When one is gone its test says so.

Held elsewhere: pads that are attended, a mask that adds 0 or 1, template tokens, guidance by a negative prompt, scaling back
(test_torch_families.py); schedulers in company (test_torch_pipelines_core.py: the seed law); compiling anew for each
size (test_torch_families.py: compiled blocks).
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the engine extra: make install-engine")
diffusers = pytest.importorskip("diffusers", reason="the engine extra: make install-engine")

from torch.nn.attention import SDPBackend  # noqa: E402

from danqing.domain.pipelines import PIPELINES  # noqa: E402
from danqing.engine.families import packing  # noqa: E402
from danqing.engine.families.cogview4 import CogView4Denoiser  # noqa: E402
from danqing.engine.families.diffusers_pipeline import DiffusersPipeline  # noqa: E402
from tests.engine.torch_families import alone, make_job  # noqa: E402
from tests.engine.torch_pipelines import draw, job_of  # noqa: E402

pytestmark = pytest.mark.slow


def test_cogview4_cannot_be_compiled_by_diffusers_so_our_own_parts_are(pipelines: Any) -> None:
    """That these draw the same: test_torch_families.py, compiled blocks."""
    model = pipelines["cogview4"].transformer
    with pytest.raises(ValueError, match="_repeated_blocks"):
        model.compile_repeated_blocks()
    ours = CogView4Denoiser(copy.deepcopy(model), compiled=True)
    for part in (ours._before, ours._after):
        assert hasattr(part, "_torchdynamo_orig_callable"), "a part of the block is not compiled"


@pytest.mark.parametrize("name", PIPELINES)
def test_what_diffusers_cannot_compile_by_blocks_is_known(name: str) -> None:
    """The catalog refuses `compile = true` for it, before anything is loaded."""
    facts = PIPELINES[name]
    kind = {
        "sd": "UNet2DConditionModel", "sdxl": "UNet2DConditionModel", "sd3": "SD3Transformer2DModel",
        "flux": "FluxTransformer2DModel", "flux2": "Flux2Transformer2DModel", "z": "ZImageTransformer2DModel",
        "sana": "SanaTransformer2DModel", "pixart": "PixArtTransformer2DModel",
    }[name.split("_")[0]]  # fmt: skip
    assert facts.compiles == bool(getattr(diffusers, kind)._repeated_blocks)


def test_cogview4_has_no_fused_projections_so_ours_are(families: Any, pipelines: Any) -> None:
    model = pipelines["cogview4"].transformer
    assert not hasattr(model, "fuse_qkv_projections"), "diffusers fuses them now"
    x = torch.randn((5, 32), generator=torch.Generator().manual_seed(0))
    blocks = families["cogview4"].denoiser._blocks
    for (fused, _), block in zip(blocks, model.transformer_blocks, strict=True):
        attention = block.attn1
        parts = torch.cat([attention.to_q(x), attention.to_k(x), attention.to_v(x)], -1)
        whole = torch.nn.functional.linear(x, *fused)
        assert (whole - parts).abs().max() <= 1e-5


def test_cogview4_hears_of_no_attention_backend_so_ours_chooses_the_kernel(
    families: Any, pipelines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, part, listens in (("cogview4", "attn1", False), ("qwen_image", "attn", True)):
        model = copy.deepcopy(pipelines[name].transformer)
        model.set_attention_backend("_native_math")
        for block in model.transformer_blocks:
            chosen = getattr(getattr(block, part).processor, "_attention_backend", None)
            assert (chosen is not None) is listens, name
    asked: list[list[SDPBackend]] = []
    real = packing.sdpa_kernel

    def kernel(kernels: list[SDPBackend], *, set_priority: bool) -> Any:
        assert set_priority
        asked.append(kernels)
        return real(kernels, set_priority=set_priority)

    monkeypatch.setattr(packing, "sdpa_kernel", kernel)
    for name, family in families.items():
        asked.clear()
        alone(family, make_job(steps=1, negative_prompt=" "))
        assert len(asked) == 2, name  # blocks
        assert {tuple(each) for each in asked} == {tuple(family.denoiser._backends)}
    cuda, flash = torch.device("cuda:0"), SDPBackend.FLASH_ATTENTION
    assert packing.backends("auto", cuda)[:2] == [SDPBackend.CUDNN_ATTENTION, flash]
    assert packing.backends("flash", cuda)[0] == packing.backends("auto", torch.device("cpu"))[0] == flash  # fmt: skip


def test_schedulers_keep_state_so_every_image_has_its_own(
    families: Any, pipeline_folders: dict[str, Path]
) -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(4)
    four = scheduler.sigmas.clone()
    scheduler.set_timesteps(2)  # somebody else's image
    assert len(scheduler.sigmas) < len(four), "set_timesteps keeps what it had now"
    for family in families.values():
        schedules = [family.schedule(steps, 64) for steps in (4, 2, 4)]
        assert schedules[0] == schedules[2]
        assert [len(each.sigmas) for each in schedules] == [5, 3, 5]
    family = DiffusersPipeline.load(pipeline_folders["z_image"], pipeline="z_image")
    mine, other = job_of("z_image", steps=4), job_of("z_image", steps=2, id="other", seed=8)
    wanted = draw(family, mine)[0]
    before = family._pipelines["ZImagePipeline"].scheduler.sigmas.clone()
    first = family.start(mine, family.encode([mine])[0])
    family.step([first])
    second = family.start(other, family.encode([other])[0])
    for state in (second, first, second, first, first):
        family.step([state])
    assert (first.seen.latents - wanted[-1]).abs().max() <= 1e-5
    assert torch.equal(family._pipelines["ZImagePipeline"].scheduler.sigmas, before)
