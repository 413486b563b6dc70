"""Each lossless trick against the same work without it, by itself. The rows of bench/lossless.py say which test holds which."""

from __future__ import annotations

import copy
import gc
import weakref
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the engine extra: make install-engine")
pytest.importorskip("diffusers", reason="the engine extra: make install-engine")

from bench import lossless  # noqa: E402
from bench._without import halves_apart, whole_glm, whole_qwen, without_tables  # noqa: E402

from danqing.engine.families.cogview4 import CogView4Text  # noqa: E402
from danqing.engine.families.flow import FlowFamily  # noqa: E402
from danqing.engine.families.qwen_image import (  # noqa: E402
    TEMPLATE,
    TEMPLATE_TOKENS,
    QwenImage,
    QwenText,
)
from tests.engine.torch_families import FAMILIES, alone, make_job  # noqa: E402

pytestmark = pytest.mark.slow

SAME = 1e-5
"""Of float32 numbers of about 1: other orders of the same sums."""
PROMPTS = ["", "x", "一只猫", "a red apple on a wooden table, a cat beside it " * 6]


def forbidden(*_: Any, **__: Any) -> None:
    raise AssertionError("this part is not needed")


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt_is_read_the_same_without_head_and_vision_tower(
    prompt: str, pipelines: Any
) -> None:
    pipeline = pipelines["qwen_image"]
    ids = pipeline.tokenizer(TEMPLATE.format(prompt), return_tensors="pt").input_ids
    part = copy.deepcopy(pipeline.text_encoder)
    for name in ("lm_head", "model.visual"):
        part.get_submodule(name).register_forward_pre_hook(forbidden)
    with torch.inference_mode():
        with pytest.raises(AssertionError, match="not needed"):
            part(input_ids=ids)
        ours = QwenText(pipeline.tokenizer, part)(prompt)
        whole = whole_qwen(pipeline.text_encoder, ids)
    assert ours.shape == whole[TEMPLATE_TOKENS:].shape
    assert (ours - whole[TEMPLATE_TOKENS:]).abs().max() <= SAME


def test_head_and_vision_tower_are_not_kept(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would take 2.5 GB of the published checkpoint's 16.6."""
    from danqing.engine.families.checkpoint import Checkpoint

    left: list[weakref.ref[Any]] = []
    real = Checkpoint.text_encoder

    def watched(self: Checkpoint, kinds: Any) -> Any:
        model = real(self, kinds)
        left.extend(weakref.ref(part) for part in (model.lm_head, model.model.visual))
        return model

    monkeypatch.setattr(Checkpoint, "text_encoder", watched)
    family = QwenImage.load(folders["qwen_image"])
    gc.collect()
    assert [part() for part in left] == [None, None]
    assert family._read("x").isfinite().all()


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt_is_read_the_same_without_the_last_layer(prompt: str, pipelines: Any) -> None:
    pipeline = pipelines["cogview4"]
    part = copy.deepcopy(pipeline.text_encoder)
    part.layers[-1].register_forward_pre_hook(forbidden)
    part.norm.register_forward_pre_hook(forbidden)
    ids = pipeline.tokenizer(prompt).input_ids
    padded = torch.tensor([[pipeline.tokenizer.pad_token_id] * (-len(ids) % 16) + ids])
    with torch.inference_mode():
        with pytest.raises(AssertionError, match="not needed"):
            part(input_ids=padded)
        ours = CogView4Text(pipeline.tokenizer, part)(prompt)
        whole = whole_glm(pipeline.text_encoder, padded)
    assert ours.shape == whole.shape
    assert (ours - whole).abs().max() <= SAME


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    "case",
    [
        {"negative_prompt": "blue"},
        {"negative_prompt": "a cat, a dog and a horse " * 5, "prompt": "x", "guidance": 6.0},
        {"negative_prompt": " ", "prompt": "猫 " * 30, "width": 96, "height": 48, "steps": 3},
    ],
    ids=["like lengths", "a longer negative prompt", "a shorter one"],
)
def test_both_guidance_halves_in_one_forward_are_two_forwards(
    case: dict[str, Any], name: str, families: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    family: FlowFamily = families[name]
    forwards: list[int] = []
    velocity = type(family.denoiser).velocity

    def counted(self: Any, latents: Any, *rest: Any) -> Any:
        forwards.append(len(latents))
        return velocity(self, latents, *rest)

    monkeypatch.setattr(type(family.denoiser), "velocity", counted)
    job = make_job(**case)
    together = alone(family, job)
    assert forwards == [2] * job.steps
    forwards.clear()
    with halves_apart(family):
        apart = alone(family, job)
    assert forwards == [1, 1] * job.steps
    for mine, other in zip(together, apart, strict=True):
        assert (mine - other).abs().max() <= SAME
    unguided = alone(family, make_job(**case | {"guidance": 1.0}))
    assert (together[-1] - unguided[-1]).abs().max() > 1e-2, "guidance does nothing"


@pytest.mark.parametrize("name", FAMILIES)
def test_a_table_of_modulation_is_what_each_step_would_compute(name: str, families: Any) -> None:
    family: FlowFamily = families[name]
    job = make_job(negative_prompt=" ", steps=5)
    kept = alone(family, job)
    with without_tables():
        assert family.start(job, family.encode([job])[0]).table is None
        anew = alone(family, job)
    for mine, other in zip(kept, anew, strict=True):
        assert (mine - other).abs().max() <= SAME


def test_every_row_of_the_bench_is_measured_and_held_by_a_test() -> None:
    """On tiny networks: what a row compares agrees, and the test that it names is there."""
    with lossless.small():
        rows = list(lossless.measure(rounds=1))
    names = [row.name for row in rows]
    assert len(set(names)) == len(names)
    for row in rows:
        assert row.error <= 5 * SAME, row  # of the result's spread
        file, _, test = row.test.partition("::")
        assert f"def {test}(" in Path(__file__).with_name(file).read_text("utf-8"), row
    for name in FAMILIES:
        assert {f"AdaLN table, {name}", f"batched CFG, {name}", f"no recompiles, {name}"} <= {
            *names
        }
    assert {"folded VAE", "no LM head, no vision tower", "no last layer", "strips"} <= {*names}
