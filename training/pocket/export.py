"""Checkpoints -> the ONNX files and pocket.json of the package: python -m training.pocket.export --help.

Weights are stored small (int8 by row or fp16) and widened when the session loads, so the
arithmetic stays float32. Every file is written whole, by rename.
"""

from __future__ import annotations

import argparse
import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from training.pocket import data
from training.pocket import vocabulary as v
from training.pocket.networks import LATENT_CHANNELS, Basis, Decoder, Upscaler
from training.pocket.shipped import PACKAGE
from training.pocket.text_network import SLOTS, TextNetwork
from training.pocket.train_denoiser import fitted_basis, new_denoiser
from training.pocket.train_text import slot_sizes

from danqing.engine.families import pocket_layout as layout
from danqing.engine.families.pocket_text import FEATURES_PER_TOKEN

VERSION = 2
SMALLEST = 2048  # tensors with fewer values stay float32


class Encoder(nn.Module):
    """The basis's encoder as a network of its own, for the exporter."""

    def __init__(self, basis: Basis) -> None:
        super().__init__()
        self.basis = basis

    def forward(self, picture: Tensor) -> Tensor:
        return self.basis.encode(picture)


class TextProbabilities(nn.Module):
    """The text network, answering with probabilities."""

    def __init__(self, network: TextNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, tokens: Tensor) -> tuple[Tensor, ...]:
        return tuple(logits.softmax(dim=1) for logits in self.network(tokens))


def _int8(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(int8 values, float32 scales that broadcast), by the axis that loses least."""
    best: tuple[float, np.ndarray, np.ndarray] | None = None
    for axis in {0, values.ndim - 1}:
        others = tuple(i for i in range(values.ndim) if i != axis)
        scale = np.maximum(np.abs(values).max(axis=others, keepdims=True), 1e-8) / 127.0
        small = np.clip(np.round(values / scale), -127, 127)
        error = float(np.square(small * scale - values).mean())
        if best is None or error < best[0]:
            best = (error, small.astype(np.int8), scale.astype(np.float32))
    assert best is not None
    return best[1], best[2]


def compact(model: onnx.ModelProto, kind: str) -> None:
    """Store the large weights as int8 or fp16, each behind the nodes that widen it again."""
    if kind == "float32":
        return
    graph = model.graph
    nodes: list[onnx.NodeProto] = []
    for tensor in list(graph.initializer):
        values = numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.size < SMALLEST:
            continue
        name = tensor.name
        graph.initializer.remove(tensor)
        if kind == "int8" and values.ndim > 1:
            small, scale = _int8(values)
            graph.initializer.append(numpy_helper.from_array(small, f"{name}_int8"))
            graph.initializer.append(numpy_helper.from_array(scale, f"{name}_scale"))
            nodes.append(onnx.helper.make_node(
                "Cast", [f"{name}_int8"], [f"{name}_wide"], to=onnx.TensorProto.FLOAT))  # fmt: skip
            nodes.append(onnx.helper.make_node("Mul", [f"{name}_wide", f"{name}_scale"], [name]))
        else:
            half = values.astype(np.float16)
            graph.initializer.append(numpy_helper.from_array(half, f"{name}_fp16"))
            nodes.append(onnx.helper.make_node(
                "Cast", [f"{name}_fp16"], [name], to=onnx.TensorProto.FLOAT))  # fmt: skip
    kept = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *kept])


def write(path: Path, module: nn.Module, inputs: dict[str, Tensor], outputs: list[str],
          free: dict[str, dict[int, str]], kind: str) -> None:  # fmt: skip
    """Export one network to one file."""
    part = path.with_suffix(".part")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(), tuple(inputs.values()), str(part), dynamo=False, opset_version=18,
            input_names=list(inputs), output_names=outputs, dynamic_axes=free,
        )  # fmt: skip
    model = onnx.load(str(part))
    compact(model, kind)
    onnx.checker.check_model(model)
    onnx.save(model, str(part))
    os.replace(part, path)


def write_text(network: TextNetwork, folder: Path, kind: str = "int8") -> None:
    """text.onnx: hashed tokens -> one probability vector a slot."""
    tokens = torch.ones(2, 7, FEATURES_PER_TOKEN, dtype=torch.long)
    free = {"tokens": {0: "b", 1: "n"}, **{name: {0: "b"} for name in SLOTS}}
    write(
        folder / "text.onnx",
        TextProbabilities(network),
        {"tokens": tokens},
        list(SLOTS),
        free,
        kind,
    )


def write_denoiser(model: nn.Module, folder: Path, kind: str = "int8") -> None:
    """denoiser.onnx: noisy latents and a plan -> clean latents."""
    cells = layout.GRIDS[0][0] * layout.GRIDS[0][1]
    inputs = {
        "latents": torch.randn(2, cells, LATENT_CHANNELS),
        "t": torch.rand(2),
        "contents": torch.zeros(2, cells, dtype=torch.long),
        "grounds": torch.zeros(2, cells, dtype=torch.long),
        "airs": torch.zeros(2, 2, cells, dtype=torch.long),
        "colours": torch.zeros(2, cells, dtype=torch.long),
        "place": torch.zeros(2, 4, dtype=torch.long),
        "positions": torch.from_numpy(layout.positions(0)),
    }
    per_cell = {0: "b", 1: "cells"}
    free = {"latents": per_cell, "t": {0: "b"}, "contents": per_cell,
            "grounds": per_cell, "airs": {0: "b", 2: "cells"}, "colours": per_cell,
            "place": {0: "b"}, "positions": {0: "cells"}, "clean": per_cell}  # fmt: skip
    write(folder / "denoiser.onnx", model, inputs, ["clean"], free, kind)


def write_codec(
    basis: Basis, decoder: Decoder, folder: Path, kinds: tuple[str, str] = ("fp16", "int8")
) -> None:
    """encoder.onnx and decoder.onnx: pictures in -1..1 <-> latents, channels first."""
    grid = {0: "b", 2: "rows", 3: "columns"}
    picture = {0: "b", 2: "height", 3: "width"}
    write(folder / "encoder.onnx", Encoder(basis), {"picture": torch.zeros(1, 3, 256, 256)},
          ["latents"], {"picture": picture, "latents": grid}, kinds[0])  # fmt: skip
    write(folder / "decoder.onnx", decoder, {"latents": torch.zeros(1, LATENT_CHANNELS, 8, 8)},
          ["picture"], {"latents": grid, "picture": picture}, kinds[1])  # fmt: skip


def write_upscaler(model: Upscaler, folder: Path, kind: str = "fp16") -> None:
    """upscaler.onnx: a picture in -1..1 -> the same four times as large."""
    free = {0: "b", 2: "height", 3: "width"}
    write(folder / "upscaler.onnx", model, {"small": torch.zeros(1, 3, 64, 64)},
          ["large"], {"small": free, "large": {0: "b"}}, kind)  # fmt: skip


def description(training: dict[str, Any]) -> dict[str, Any]:
    """pocket.json: what the family needs to know of the weights."""
    return {
        "version": VERSION,
        "channels": LATENT_CHANNELS,
        "cell_px": 32,
        "grids": [list(grid) for grid in layout.GRIDS],
        "slots": list(SLOTS),
        "things": ["none", *(c.key for c in v.concepts())],
        "colours": list(v.COLOUR_KEYS),
        "relations": list(layout.RELATIONS),
        "scenes": [scene.key for scene in v.scenes()],
        "open_air": list(v.open_air()),
        "training": training,
    }


def export(run: Path, folder: Path, seed: int = 1) -> None:
    """Write everything that the run has; what it has not trained yet goes out untrained."""
    folder.mkdir(parents=True, exist_ok=True)
    basis = fitted_basis(run, seed)
    decoder, denoiser, text = Decoder(basis), new_denoiser(), TextNetwork(slot_sizes())
    training: dict[str, Any] = {"seed": seed, "torch": torch.__version__.split("+")[0]}
    state = data.load(run / "decoder.pt")
    if state is not None:
        decoder.load_state_dict(state["model"])
        training["decoder_pictures"] = state["seen"]
    state = data.load(run / "denoiser.pt")
    if state is not None:
        denoiser.load_state_dict(state["average"])
        training["denoiser_samples"] = state["step"] * state["batch"]
        training["denoiser_minutes"] = round(state["used_s"] / 60, 1)
    upscaler = Upscaler()
    state = data.load(run / "upscaler.pt")
    if state is not None:
        upscaler.load_state_dict(state["model"])
        training["upscaler_crops"] = state["seen"]
    state = data.load(run / "text.pt")
    if state is not None:
        text.load_state_dict(state["model"])
        training["captions"] = state["seen"]
    write_codec(basis, decoder, folder)
    write_denoiser(denoiser, folder)
    write_text(text, folder)
    write_upscaler(upscaler, folder)
    part = folder / "pocket.part"
    part.write_text(json.dumps(description(training), ensure_ascii=False, indent=1) + "\n", "utf-8")
    os.replace(part, folder / "pocket.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of checkpoints")
    parser.add_argument("--out", type=Path, default=PACKAGE)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    export(asked.run, asked.out)
    for path in sorted(asked.out.iterdir()):
        print(f"{path.name} {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
