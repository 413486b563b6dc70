"""Checkpoints for `diffusers_pipeline` that cannot be used: each fault is named before a weight is read. Needs no torch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from danqing.domain.pipelines import PIPELINES, PipelineFacts
from danqing.engine.families.load import LoadError, Plan, batch_max, check_family
from danqing.engine.families.weights import CheckpointError, find_pipeline, measure
from tests.engine.test_weights import safetensors


def checkpoint(folder: Path, facts: PipelineFacts) -> Path:
    """Every part that the pipeline has, of the least that passes for one."""
    index: dict[str, Any] = {"_class_name": facts.text_to_image, "_diffusers_version": "0.42.1"}
    for name in facts.parts:
        part = folder / name
        part.mkdir(parents=True)
        (part / "config.json").write_text("{}")
        (part / "model.safetensors").write_bytes(safetensors({"a": [3, 5], "b": [7]}))
        library = "transformers" if name.startswith("text_encoder") else "diffusers"
        index[name] = [library, "SomeModel"]
    for name in (*facts.tokenizers, "scheduler"):
        (folder / name).mkdir()
        (folder / name / "vocab.json").write_text("{}")
        index[name] = ["diffusers" if name == "scheduler" else "transformers", "Some"]
    (folder / "scheduler" / "scheduler_config.json").write_text("{}")
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def change(folder: Path, **fields: Any) -> None:
    path = folder / "model_index.json"
    index = json.loads(path.read_text("utf-8")) | fields
    path.write_text(json.dumps({key: value for key, value in index.items() if value != "gone"}))


@pytest.mark.parametrize("kind", PIPELINES)
def test_a_whole_one_is_found_and_measured(kind: str, tmp_path: Path) -> None:
    facts = PIPELINES[kind]
    folder = checkpoint(tmp_path / kind, facts)
    assert find_pipeline(folder, facts)["_class_name"] == facts.text_to_image
    assert {part.name: part.parameters for part in measure(folder, facts.parts)} == dict.fromkeys(
        facts.parts, 22
    )


def pickled(folder: Path) -> None:
    (folder / "unet" / "model.safetensors").rename(folder / "unet" / "model.bin")


def copies(folder: Path) -> None:
    (folder / "unet" / "model.safetensors").rename(folder / "unet" / "model.fp16.safetensors")


FAULTS: list[tuple[Callable[[Path], Any], str]] = [
    (shutil.rmtree, "is no folder"),
    (lambda f: (f / "model_index.json").unlink(), "model_index.json is missing"),
    (lambda f: (f / "model_index.json").write_text("["), "model_index.json cannot be read"),
    (lambda f: change(f, _class_name="FluxPipeline"), "holds a FluxPipeline, not a StableDiffusionPipeline"),
    (lambda f: change(f, _class_name=["pipeline", "Mine"]), "holds a pipeline with code of its own, not a StableDiffusionPipeline"),
    (lambda f: change(f, unet=["my_code", "MyUNet"]), "the unet is ['my_code', 'MyUNet'], no class of diffusers or transformers"),
    (lambda f: change(f, unet=["diffusers", 7]), "the unet is ['diffusers', 7], no class"),
    (lambda f: change(f, controlnet=["diffusers", "ControlNetModel"]), "a StableDiffusionPipeline has no controlnet"),
    (lambda f: change(f, text_encoder=[None, None]), "the text_encoder is left out"),
    (lambda f: change(f, vae="gone"), "model_index.json names no vae"),
    (lambda f: change(f, tokenizer="gone"), "model_index.json names no tokenizer"),
    (lambda f: shutil.rmtree(f / "vae"), "vae is missing"),
    (lambda f: shutil.rmtree(f / "tokenizer"), "tokenizer is missing"),
    (lambda f: (f / "scheduler" / "scheduler_config.json").unlink(), "scheduler_config.json is missing"),
    (lambda f: (f / "unet" / "config.json").unlink(), "config.json is missing"),
    (pickled, "unet holds pickled weights: only safetensors are loaded"),
    (copies, "unet holds only *.fp16*"),
    (lambda f: (f / "unet" / "model.safetensors").write_bytes(b"no"), "no whole safetensors file"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "message"), FAULTS, ids=[message for _, message in FAULTS])
def test_a_spoilt_one_is_refused_by_name(
    spoil: Callable[[Path], Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("danqing.engine.families.load.find_spec", lambda name: name)
    folder = checkpoint(tmp_path / "sd", PIPELINES["sd"])
    check_family(Plan("diffusers_pipeline", str(folder), "sd"))
    spoil(folder)
    with pytest.raises(LoadError) as caught:
        check_family(Plan("diffusers_pipeline", str(folder), "sd"))
    assert str(caught.value).startswith("checkpoint: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_second_copy_of_the_weights_is_not_counted(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "sd", PIPELINES["sd"])
    for word in ("fp16", "non_ema"):
        (folder / "unet" / f"model.{word}.safetensors").write_bytes(safetensors({"a": [99]}))
    (folder / "unet" / "model.fp16.safetensors.index.json").write_text(
        '{"weight_map": {"a": "model-00001-of-00002.fp16.safetensors"}}'
    )
    find_pipeline(folder, PIPELINES["sd"])
    assert measure(folder, ("unet",))[0].parameters == 22


def test_parts_that_may_lack_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("danqing.engine.families.load.find_spec", lambda name: name)
    folder = checkpoint(tmp_path / "sd3", PIPELINES["sd3"])
    assert len(check_family(Plan("diffusers_pipeline", str(folder), "sd3"))) == 5
    shutil.rmtree(folder / "text_encoder_3")
    change(folder, text_encoder_3=[None, None], tokenizer_3=[None, None])
    names = [part.name for part in check_family(Plan("diffusers_pipeline", str(folder), "sd3"))]
    assert names == ["transformer", "vae", "text_encoder", "text_encoder_2"]


def test_a_safety_checker_may_be_there_and_is_not_loaded(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "sd", PIPELINES["sd"])
    change(folder, safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    find_pipeline(folder, PIPELINES["sd"])


def test_a_pipeline_is_drawn_one_image_at_a_time() -> None:
    assert batch_max("diffusers_pipeline", 8) == 1
    assert batch_max("cogview4", 8) == batch_max("pocket", 8) == 8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "entry", "message"),
    [
        ("unet", ["diffusers", "FancyUNet"], "the unet is a FancyUNet, which diffusers has not"),
        ("unet", ["diffusers", "DiffusionPipeline"], "the unet is a DiffusionPipeline, which"),
        ("text_encoder", ["transformers", "pipeline"], "the text_encoder is a pipeline, which"),
        ("tokenizer", ["transformers", "CLIPTextModel"], "the tokenizer is a CLIPTextModel, which"),
        ("scheduler", ["diffusers", "UNet2DModel"], "the scheduler is a UNet2DModel, which"),
        ("unet", ["diffusers", "UNet2DModel"], "unet: "),
    ],
)
def test_only_the_libraries_own_classes_are_loaded(
    part: str, entry: list[str], message: str, pipeline_folders: dict[str, Path], tmp_path: Path
) -> None:
    pytest.importorskip("torch", reason="the engine extra: make install-engine")
    from danqing.engine.families.diffusers_pipeline import DiffusersPipeline

    folder = tmp_path / "sd"
    shutil.copytree(pipeline_folders["sd"], folder)
    change(folder, **{part: entry})
    with pytest.raises(CheckpointError) as caught:
        DiffusersPipeline.load(folder, pipeline="sd")
    assert message in str(caught.value)


@pytest.mark.slow
def test_code_in_a_checkpoint_is_not_run(pipeline_folders: dict[str, Path], tmp_path: Path) -> None:
    """Neither a module beside the weights nor one that a config names is imported."""
    pytest.importorskip("torch", reason="the engine extra: make install-engine")
    from danqing.engine.families.diffusers_pipeline import DiffusersPipeline

    folder, mark = tmp_path / "z", tmp_path / "ran"
    shutil.copytree(pipeline_folders["z_image"], folder)
    code = f"from pathlib import Path\nPath({str(mark)!r}).touch()\nclass Mine: ...\n"
    for part in ("", "transformer", "text_encoder", "tokenizer", "scheduler"):
        for name in ("pipeline.py", "mine.py"):
            (folder / part / name).write_text(code)
    for path in ("text_encoder/config.json", "tokenizer/tokenizer_config.json"):
        fields = json.loads((folder / path).read_text("utf-8"))
        fields["auto_map"] = {"AutoModel": "mine.Mine", "AutoTokenizer": ["mine.Mine", None]}
        (folder / path).write_text(json.dumps(fields))
    DiffusersPipeline.load(folder, pipeline="z_image")
    assert not mark.exists()
