"""Qwen-Image with LoRAs against diffusers' pipeline with the same file; what is drawn without one does not notice."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="the engine extra: make install-engine")
pytest.importorskip("diffusers", reason="the engine extra: make install-engine")
pytest.importorskip("peft", reason="diffusers loads LoRAs by it: make install-engine")

from diffusers import FlowMatchEulerDiscreteScheduler, QwenImagePipeline  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from danqing.engine import samplers  # noqa: E402
from danqing.engine.families.load import LoadError, Plan, check_family, load_family  # noqa: E402
from danqing.engine.families.lora import Lora, fit_loras  # noqa: E402
from danqing.engine.families.qwen_image import QwenImage  # noqa: E402
from danqing.engine.messages import Job, JobDrawn  # noqa: E402
from tests.engine.test_torch_batching import SEED_LAW, Watched, draw_all  # noqa: E402
from tests.engine.test_torch_families import TOLERANCE, reference  # noqa: E402
from tests.engine.torch_families import alone, make_job  # noqa: E402

pytestmark = pytest.mark.slow

BLOCK = [
    *(f"attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")),
    *(f"attn.{name}" for name in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")),
    *(f"{stream}_mlp.net.{place}" for stream in ("img", "txt") for place in ("0.proj", "2")),
]
"""What Qwen-Image-Lightning changes in each block."""
REST = [
    *("transformer_blocks.0.img_mod.1", "transformer_blocks.1.txt_mod.1", "img_in", "txt_in"),
    *("proj_out", "norm_out.linear", "time_text_embed.timestep_embedder.linear_1"),
    "time_text_embed.timestep_embedder.linear_2",
]
SHIFT = 3.0
SCHEDULER = {
    "base_image_seq_len": 256, "base_shift": math.log(3), "max_image_seq_len": 8192,
    "max_shift": math.log(3), "num_train_timesteps": 1000, "shift": 1.0, "shift_terminal": None,
    "time_shift_type": "exponential", "use_dynamic_shifting": True,
}  # fmt: skip
"""What Lightning's own script gives diffusers (ModelTC/Qwen-Image-Lightning, generate_with_diffusers.py)."""
JOB = {"guidance": 1.0, "steps": 4, "width": 48, "height": 64, "lora": "lightning-4"}


def write_lora(path: Path, model: Any, names: list[str], seed: int, style: str) -> Path:
    """Random matrices, large enough to show, as `style` of file has them."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Any] = {}
    for index, name in enumerate(names):
        out, width = model.get_submodule(name).weight.shape
        rank = 4 if style == "lightning" else 2 + index % 3
        down = torch.randn((rank, width), generator=generator) * width**-0.5
        up = torch.randn((out, rank), generator=generator) * 0.2
        if style == "diffusers":
            tensors |= {
                f"transformer.{name}.lora_A.weight": down,
                f"transformer.{name}.lora_B.weight": up,
            }
        else:
            alpha = torch.tensor(float(rank) * 1.5 if index % 2 else 8.0)
            key = f"lora_unet_{name.replace('.', '_')}" if style == "kohya" else name
            tensors |= {
                f"{key}.lora_down.weight": down,
                f"{key}.lora_up.weight": up,
                f"{key}.alpha": alpha,
            }
    save_file(tensors, path)
    return path


@pytest.fixture(scope="module")
def files(pipelines: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    model = pipelines["qwen_image"].transformer
    blocks = [f"transformer_blocks.{index}.{name}" for index in range(2) for name in BLOCK]
    folder = tmp_path_factory.mktemp("loras")
    return {
        "lightning": write_lora(folder / "l.safetensors", model, blocks, 1, "lightning"),
        "kohya": write_lora(folder / "k.safetensors", model, blocks, 2, "kohya"),
        "diffusers": write_lora(folder / "d.safetensors", model, [*blocks, *REST], 3, "diffusers"),
    }


@pytest.fixture(scope="module")
def loras(files: dict[str, Path]) -> list[Lora]:
    return [
        Lora("lightning-4", str(files["lightning"]), shift=SHIFT),
        Lora("kohya", str(files["kohya"])),
        Lora("all", str(files["diffusers"]), scale=0.5),
    ]


@pytest.fixture(scope="module")
def family(folders: dict[str, Path], loras: list[Lora]) -> QwenImage:
    folder = folders["qwen_image"]
    return QwenImage.load(folder, loras=fit_loras(folder, loras))


def theirs(folder: Path, file: Path, job: Job, scale: float = 1.0, **scheduler: Any) -> Any:
    pipeline = QwenImagePipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    if scheduler:
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler.from_config(scheduler)
    pipeline.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name="one")
    pipeline.set_adapters(["one"], [scale])
    return reference(pipeline, job)


CASES = [
    ("lightning-4", "lightning", 1.0, SCHEDULER),
    ("kohya", "kohya", 1.0, {}),
    ("all", "diffusers", 0.5, {}),
]


@pytest.mark.parametrize(
    ("name", "file", "scale", "scheduler"), CASES, ids=lambda value: str(value)[:12]
)
def test_every_step_is_the_pipelines(
    name: str, file: str, scale: float, scheduler: dict[str, Any], family: QwenImage,
    files: dict[str, Path], folders: dict[str, Path],
) -> None:  # fmt: skip
    plain = alone(family, make_job(**JOB | {"lora": ""}))
    for changes in ({}, {"guidance": 4.0, "negative_prompt": "blue", "steps": 3, "prompt": "猫"}):
        job = make_job(**JOB | {"lora": name} | changes)
        wanted, picture = theirs(folders["qwen_image"], files[file], job, scale, **scheduler)
        ours = alone(family, job)
        assert len(ours) == len(wanted) == job.steps
        for mine, other in zip(ours, wanted, strict=True):
            assert (mine - other).abs().max() <= TOLERANCE
        state = family.start(job, family.encode([job])[0])
        state.latents = ours[-1]
        shown = family.decode([state])[0].astype(int)
        assert np.abs(shown - (picture * 255).round().astype(int)).max() <= 1
        if not changes:
            assert (ours[-1] - plain[-1]).abs().max() > 100 * TOLERANCE, "the LoRA does nothing"


@pytest.mark.parametrize("steps", [4, 8])
@pytest.mark.parametrize("tokens", [16, 4096, 6889])
def test_lightnings_schedule_is_its_scripts(steps: int, tokens: int, family: QwenImage) -> None:
    ours = family.schedule(steps, tokens, "lightning-4")
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(SCHEDULER)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=math.log(3))
    np.testing.assert_allclose(ours.sigmas, scheduler.sigmas.numpy(), rtol=0, atol=1e-6)
    np.testing.assert_allclose(ours.timesteps, scheduler.timesteps.numpy(), rtol=1e-6)
    assert family.schedule(steps, tokens) == samplers.qwen_image(family._sampling, steps, tokens)


def test_who_asks_for_none_does_not_notice(family: QwenImage, families: Any) -> None:
    job = make_job(negative_prompt=" ")
    alone(family, make_job(**JOB))
    for mine, other in zip(alone(family, job), alone(families["qwen_image"], job), strict=True):
        assert torch.equal(mine, other)
    ours = dict(family.denoiser._model.named_parameters())
    for name, weight in families["qwen_image"].denoiser._model.named_parameters():
        assert torch.equal(ours[name], weight)


def test_a_text_is_read_once_for_all_that_read_it_alike(
    family: QwenImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text encoder is the same with every LoRA; only one that changes how a text is taken in has rows of its own."""
    read: list[str] = []
    real = family._read
    monkeypatch.setattr(family, "_read", lambda text: read.append(text) or real(text))
    for lora in ("", "lightning-4", "kohya", "", "all", "all"):
        job = make_job(prompt="a text of this test", guidance=1.0, lora=lora)
        found = family.encode([job])[0]
        fresh = family.adapted[lora] if lora else family.denoiser
        with torch.inference_mode():
            assert torch.equal(found.text, fresh.project(real(job.prompt)))
    assert read == ["a text of this test"] * 2


def test_compiled_blocks_draw_the_same(
    family: QwenImage, folders: dict[str, Path], loras: list[Lora]
) -> None:
    folder = folders["qwen_image"]
    compiled = QwenImage.load(folder, compiled=True, loras=fit_loras(folder, loras))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for name, side in (("lightning-4", 48), ("", 48), ("lightning-4", 64)):
        job = make_job(**JOB | {"steps": 1, "lora": name, "width": side})
        assert (alone(compiled, job)[-1] - alone(family, job)[-1]).abs().max() <= 1e-5
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs == 4, "sizes share what was compiled"


MIXED = st.builds(
    make_job,
    prompt=st.sampled_from(["x", "一只红色的苹果放在木桌上", "a cat and a dog " * 6]),
    width=st.sampled_from([32, 48]),
    height=st.just(32),
    steps=st.integers(1, 4),
    guidance=st.sampled_from([1.0, 3.0]),
    negative_prompt=st.sampled_from(["", "blue"]),
    seed=st.integers(0, 2**31 - 1),
    account_id=st.sampled_from(["a", "b"]),
    lora=st.sampled_from(["", "lightning-4", "kohya", "all"]),
)


class Minded(Watched):
    """It also keeps which LoRAs were in a batch together."""

    def step(self, states: Any) -> None:
        assert len({state.job.lora for state in states}) == 1
        super().step(states)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(jobs=st.lists(MIXED, min_size=2, max_size=7), cut=st.integers(1, 6), batch=st.integers(2, 8))
def test_the_seed_law_with_mixed_loras(
    jobs: list[Job], cut: int, batch: int, family: QwenImage
) -> None:
    from dataclasses import replace

    jobs = [replace(job, id=f"job-{i}", task_id=f"task-{i}") for i, job in enumerate(jobs)]
    edges = [0, *([cut] if cut < len(jobs) else []), len(jobs)]
    watched = Minded(family)
    bursts = [jobs[start:end] for start, end in itertools.pairwise(edges)]
    ends = draw_all(watched, bursts, batch)
    assert all(isinstance(end, JobDrawn) for end in ends)
    for job in jobs:
        assert (watched.latents[job.id] - alone(family, job)[-1]).abs().max() <= SEED_LAW


def test_one_that_fits_another_model_is_named_before_anything_is_loaded(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    file = tmp_path / "flux.safetensors"
    save_file({"transformer.single_blocks.0.proj_mlp.lora_A.weight": torch.ones(2, 8)}, file)
    options = {
        "checkpoint": str(folders["qwen_image"]), "device": "cpu", "dtype": "float32",
        "loras": {"style": {"path": str(file)}},
    }  # fmt: skip
    for attempt in (
        lambda: check_family(Plan.of(name="qwen_image", **options)),
        lambda: load_family("qwen_image", threads=1, **options),
    ):
        with pytest.raises(
            LoadError, match=r"^loras\.style: .*flux\.safetensors: .*fits no weight"
        ):
            attempt()


def test_its_memory_counts(folders: dict[str, Path], loras: list[Lora]) -> None:
    plan = Plan(
        "qwen_image", str(folders["qwen_image"]), device="cpu", dtype="float32", loras=tuple(loras)
    )
    parts = {part.name: part.parameters for part in check_family(plan)}
    assert {"lora lightning-4", "lora kohya", "lora all"} < set(parts)
    assert 0 < parts["lora kohya"] < parts["lora all"]
