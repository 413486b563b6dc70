"""LoRA files against a network's weights, by headers alone: what fits is found under every trainer's names, the rest is named."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from danqing.engine.families.lora import METADATA, Lora, LoraError, Pair, fit, fit_loras

SHAPES = {"blocks.0.attn.to_q": (6, 4), "blocks.0.ff.net.0.proj": (8, 4), "proj_out": (4, 6)}


def write(
    path: Path, tensors: dict[str, tuple[int, ...]], metadata: dict[str, str] | None = None
) -> Path:
    """A safetensors file of ones."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    at = 0
    for name, shape in tensors.items():
        size = 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    data = np.ones(at // 4, np.float32).tobytes()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def pair(name: str, rank: int = 2, down: str = "lora_A.weight", up: str = "lora_B.weight") -> dict:
    module = name.removeprefix("transformer.").removeprefix("diffusion_model.")
    out, width = SHAPES.get(module, (6, 4))
    return {f"{name}.{down}": (rank, width), f"{name}.{up}": (out, rank)}


@pytest.mark.parametrize(
    ("name", "down", "up"),
    [
        ("transformer.blocks.0.attn.to_q", "lora_A.weight", "lora_B.weight"),
        ("blocks.0.attn.to_q", "lora_down.weight", "lora_up.weight"),
        ("diffusion_model.blocks.0.attn.to_q", "lora_A.default.weight", "lora_B.default.weight"),
        ("base_model.model.blocks.0.attn.to_q", "lora_A.weight", "lora_B.weight"),
        ("lora_unet_blocks_0_attn_to_q", "lora_down.weight", "lora_up.weight"),
    ],
)
def test_every_way_of_naming_finds_its_weight(
    name: str, down: str, up: str, tmp_path: Path
) -> None:
    tensors = {f"{name}.{down}": (2, 4), f"{name}.{up}": (6, 2), f"{name}.alpha": ()}
    file = write(tmp_path / "x.safetensors", tensors)
    found = fit(Lora("style", str(file), scale=0.5), SHAPES)
    names = Pair(f"{name}.{down}", f"{name}.{up}", f"{name}.alpha", 2, 0.5)
    assert found.pairs == {"blocks.0.attn.to_q": names}
    assert found.parameters == 20


def test_pefts_alpha_is_read_from_the_metadata(tmp_path: Path) -> None:
    told = {METADATA: json.dumps({"transformer.lora_alpha": 6, "transformer.r": 2})}
    file = write(tmp_path / "x.safetensors", pair("transformer.proj_out"), told)
    assert fit(Lora("style", str(file)), SHAPES).pairs["proj_out"].factor == 3.0


def test_a_folder_is_as_good_as_its_one_file(tmp_path: Path) -> None:
    write(tmp_path / "x.safetensors", pair("proj_out"))
    assert fit(Lora("style", str(tmp_path)), SHAPES).file.name == "x.safetensors"


BAD: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {
    "another model's": (
        pair("transformer.single_blocks.3.linear1"),
        "transformer.single_blocks.3.linear1.lora_A.weight fits no weight of the transformer",
    ),
    "a text encoder's": (
        pair("text_encoder.layers.0.mlp"),
        "text_encoder.layers.0.mlp.lora_A.weight fits no weight of the transformer",
    ),
    "a larger model's": (
        {"proj_out.lora_A.weight": (2, 60), "proj_out.lora_B.weight": (4, 2)},
        "proj_out is 4 x 6 in the transformer, the LoRA has [4, 2] and [2, 60]",
    ),
    "of two ranks": (
        {"proj_out.lora_A.weight": (2, 6), "proj_out.lora_B.weight": (4, 3)},
        "proj_out is 4 x 6 in the transformer, the LoRA has [4, 3] and [2, 6]",
    ),
    "half a pair": ({"proj_out.lora_A.weight": (2, 6)}, "proj_out has no up matrix"),
    "twice": (
        pair("proj_out") | pair("transformer.proj_out"),
        "transformer.proj_out.lora_A.weight is there twice",
    ),
    "no LoRA": ({"proj_out.weight": (4, 6)}, "proj_out.weight is no part of a LoRA"),
    "LoKr": ({"proj_out.lokr_w1": (2, 2)}, "proj_out.lokr_w1 is no part of a LoRA"),
    "DoRA": (
        pair("proj_out") | {"proj_out.dora_scale": (4, 1)},
        "proj_out.dora_scale is no part of a LoRA",
    ),
    "empty": ({}, "holds no LoRA"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_does_not_fit_is_named(kind: str, tmp_path: Path) -> None:
    tensors, message = BAD[kind]
    file = write(tmp_path / "x.safetensors", tensors)
    with pytest.raises(LoraError) as told:
        fit(Lora("style", str(file)), SHAPES)
    assert told.value.name == "style"
    assert message in str(told.value)
    assert str(file) in str(told.value)


@pytest.mark.parametrize("setting", ["use_dora", "use_rslora", "alpha_pattern", "lora_bias"])
def test_what_peft_can_and_this_cannot_is_refused(setting: str, tmp_path: Path) -> None:
    told = {METADATA: json.dumps({f"transformer.{setting}": {"x": 1}})}
    file = write(tmp_path / "x.safetensors", pair("proj_out"), told)
    with pytest.raises(LoraError, match=f"{setting} is not supported"):
        fit(Lora("style", str(file)), SHAPES)


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{}")
    (tmp_path / "old.pt").write_bytes(b"\x80\x04.")
    folder = tmp_path / "two"
    folder.mkdir()
    write(folder / "a.safetensors", pair("proj_out"))
    write(folder / "b.safetensors", pair("proj_out"))
    for path, message in [
        (tmp_path / "none.safetensors", "is no file"),
        (tmp_path / "cut.safetensors", "is no whole safetensors file"),
        (tmp_path / "old.pt", "is pickled"),
        (folder, "holds 2 safetensors: name the one that is meant"),
    ]:
        with pytest.raises(LoraError, match=message):
            fit(Lora("style", str(path)), SHAPES)


def test_the_networks_weights_are_read_from_its_headers(tmp_path: Path) -> None:
    folder = tmp_path / "transformer"
    folder.mkdir()
    write(folder / "1.safetensors", {"proj_out.weight": (4, 6), "proj_out.bias": (4,)})
    write(folder / "2.safetensors", {"norm.weight": (6,), "conv.weight": (1, 1, 3, 3)})
    file = write(tmp_path / "x.safetensors", pair("proj_out"))
    (found,) = fit_loras(tmp_path, [Lora("style", str(file))])
    assert set(found.pairs) == {"proj_out"}
