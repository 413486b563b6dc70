"""Checkpoint folders that cannot be used: each fault is named before a weight is read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the engine extra: make install-engine")
pytest.importorskip("diffusers", reason="the engine extra: make install-engine")

from danqing.engine.families import load  # noqa: E402
from danqing.engine.families.checkpoint import Checkpoint, CheckpointError  # noqa: E402
from danqing.engine.families.cogview4 import CogView4  # noqa: E402
from danqing.engine.families.load import Plan  # noqa: E402
from tests.engine.torch_families import FAMILIES, make_job  # noqa: E402

pytestmark = pytest.mark.slow


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | fields), "utf-8")


def pickled(folder: Path) -> None:
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))


def missing_weight(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    del weights["proj_out.bias"]
    save_file(weights, path, metadata={"format": "pt"})


def lost_shard(folder: Path) -> None:
    index = {"weight_map": {"proj_out.bias": "diffusion_pytorch_model-00002-of-00002.safetensors"}}
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    path.write_text(json.dumps(index), "utf-8")


KINDS = {
    "cogview4": ("CogView4Pipeline", "AutoencoderKL", "GlmForCausalLM or GlmModel"),
    "qwen_image": ("QwenImagePipeline", "AutoencoderKLQwenImage", "Qwen2_5_VLForConditionalGeneration"),
}  # fmt: skip
"""Family -> what it takes for a pipeline, a vae and a text encoder."""
FAULTS: list[tuple[Callable[[Path], Any], str]] = [
    (shutil.rmtree, "is no folder"),
    (lambda f: (f / "model_index.json").unlink(), "model_index.json is missing"),
    (lambda f: (f / "model_index.json").write_text("[1]"), "is no JSON object"),
    (lambda f: (f / "model_index.json").write_text("{"), "cannot be read"),
    (lambda f: change(f / "model_index.json", _class_name="FluxPipeline"), "holds a FluxPipeline, not a {pipeline}"),
    (lambda f: change(f / "model_index.json", vae=["diffusers", "AutoencoderTiny"]), "the vae is a AutoencoderTiny, not a {vae}"),
    (lambda f: change(f / "model_index.json", text_encoder=None), "the text_encoder is a None, not a {text_encoder}"),
    (lambda f: shutil.rmtree(f / "vae"), "vae is missing"),
    (lambda f: shutil.rmtree(f / "tokenizer"), "tokenizer is missing"),
    (lambda f: (f / "tokenizer" / "tokenizer.json").write_text("no"), "tokenizer"),
    (lambda f: (f / "transformer" / "config.json").unlink(), "config.json is missing"),
    (lambda f: (f / "scheduler" / "scheduler_config.json").unlink(), "scheduler_config.json is missing"),
    (lambda f: change(f / "scheduler" / "scheduler_config.json", _class_name="DDIMScheduler"), "the scheduler is a DDIMScheduler"),
    (lambda f: change(f / "scheduler" / "scheduler_config.json", use_karras_sigmas=True), "use_karras_sigmas is not supported"),
    (pickled, "only safetensors are loaded"),
    (missing_weight, "1 weights are missing, proj_out.bias first"),
    (lost_shard, "00002-of-00002.safetensors is missing"),
    (lambda f: change(f / "transformer" / "config.json", attention_head_dim=24), "transformer: "),
    (lambda f: (f / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"no"), "vae: "),
]  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("spoil", "message"), FAULTS, ids=[message for _, message in FAULTS])
def test_a_spoilt_checkpoint_is_refused_by_name(
    spoil: Callable[[Path], Any], message: str, name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(folders[name], folder)
    spoil(folder)
    with pytest.raises(CheckpointError) as caught:
        FAMILIES[name].load(folder)
    pipeline, vae, text_encoder = KINDS[name]
    assert message.format(pipeline=pipeline, vae=vae, text_encoder=text_encoder) in str(caught.value)  # fmt: skip
    assert "\n" not in str(caught.value)


def test_precisions_and_pipelines_are_checked(folders: dict[str, Path]) -> None:
    with pytest.raises(CheckpointError, match="the precision is 'float16'"):
        CogView4.load(folders["cogview4"], dtype="float16")
    with pytest.raises(CheckpointError, match="holds a QwenImagePipeline, not a CogView4Pipeline"):
        CogView4.load(folders["qwen_image"])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prompt_beyond_the_encoders_limit_is_refused(name: str, families: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="at most 1024 are read"):
        families[name]._read("猫 " * 1100)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_does_not_fit_is_refused_before_loading(
    name: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"checkpoint": str(folders[name]), "device": "cpu", "dtype": "float32"}
    monkeypatch.setattr("danqing.engine.families.memory.free_here", lambda: 1000)
    with pytest.raises(load.LoadError, match=r"^device: cpu has 0\.0 GiB free, but the weights"):
        load.load_family(name, **options)


@pytest.mark.parametrize("name", FAMILIES)
def test_prompts_may_be_read_elsewhere(name: str, folders: dict[str, Path]) -> None:
    """`meta` is a device that holds no numbers: only the text encoder must be there."""
    found = Checkpoint.open(
        folders[name], f"{FAMILIES[name].__name__}Pipeline", device="meta", dtype="float32", text_device="cpu"
    )  # fmt: skip
    kinds = {kind: kind for kind in ("GlmModel", "Qwen2_5_VLForConditionalGeneration")}
    assert found.text_encoder(kinds).device.type == "cpu"
    family: Any = FAMILIES[name].load(folders[name], device="meta", text_device="cpu")
    read = family._read("a red apple")
    assert read.device.type == "cpu"
    assert torch.isfinite(read).all()
    (conditioning,) = family.encode([make_job(negative_prompt="blue")])
    assert {conditioning.text.device.type, conditioning.negative.device.type} == {"meta"}


def test_a_card_is_measured_by_what_is_free_on_it(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And main memory by what stays there."""
    asked: list[int] = []
    card_bytes, main_bytes = 2**30, 2**30

    def mem_get_info(index: int) -> tuple[int, int]:
        asked.append(index)
        return card_bytes, 2**40

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", mem_get_info)
    monkeypatch.setattr("danqing.engine.families.memory.free_here", lambda: main_bytes)

    def fit(**options: Any) -> load.Fit:
        plan = Plan.of(
            name="cogview4", checkpoint=str(folders["cogview4"]), dtype="bfloat16", **options
        )
        return load.check_fit(plan)

    assert fit(device="cuda:1").free_bytes == fit(device="cuda:0").free_bytes == 2**30
    assert asked == [1, 0]
    with pytest.raises(
        load.LoadError, match=r"^device: there is no cuda:2 here \(2 graphics cards\)"
    ):
        fit(device="cuda:2")
    whole = fit(device="cuda:0").need
    apart = fit(device="cuda:0", text_encoder_device="cpu").need
    assert whole.beside_bytes == 0 < apart.beside_bytes
    card_bytes = whole.device_bytes - 1
    with pytest.raises(load.LoadError, match=r"^device: cuda:0 has 0\.0 GiB free, but the weights"):
        fit(device="cuda:0")
    assert not fit(device="cuda:0", text_encoder_device="cpu").overlaps
    card_bytes = 2**30
    assert fit(device="cuda:0").overlaps
    assert not fit(device="cuda:0", overlap=False).overlaps
    card_bytes = whole.device_bytes - 1
    main_bytes = apart.beside_bytes - 1
    for options, field in (({}, "text_encoder_device"), ({"offload": True}, "offload")):
        with pytest.raises(load.LoadError, match=rf"^{field}: what stays in main memory takes"):
            fit(device="cuda:0", text_encoder_device="cpu", **options)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_knows_the_largest_picture_that_there_is_memory_for(
    name: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the arithmetic of its own weights and of what was free before they came."""
    options = {"checkpoint": str(folders[name]), "device": "cpu", "dtype": "float32"}
    assert load.load_family(name, **options).pixels_max is None  # its work is no more than itself
    monkeypatch.setattr("danqing.engine.families.memory.free_here", lambda: 7 * 2**30)
    monkeypatch.setattr(
        "danqing.engine.families.memory.pixels_max",
        lambda family, parts, dtype, there, **_: (family, len(parts) > 2, dtype, there),
    )
    found: Any = load.load_family(name, **options).pixels_max
    assert found == (name, True, "float32", 7 * 2**30)
