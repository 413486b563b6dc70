"""The shipped weights as a start for the next version's networks. Knows ONNX files and the networks, no training.

Rows of things and scenes that the shipped version does not have are made from their renders, by the linear
map that takes the renders of those that it has to their trained rows.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from training.pocket.networks import Basis, Decoder, Denoiser

PACKAGE = Path(__file__).resolve().parents[2] / "src/danqing/engine/families/pocket_weights"
RIDGE = 1e-3  # of the mean square of what is mapped from


def weights(path: Path) -> dict[str, Tensor]:
    """A network's weights by their torch names, widened to float32."""
    model = onnx.load(str(path))
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    wide: dict[str, np.ndarray] = {}
    for name, values in stored.items():
        if name.endswith("_int8"):
            plain = name.removesuffix("_int8")
            wide[plain] = values.astype(np.float32) * stored[f"{plain}_scale"]
        elif name.endswith("_fp16"):
            wide[name.removesuffix("_fp16")] = values.astype(np.float32)
        elif not name.endswith("_scale"):
            wide[name] = values
    biased = {
        name: node for node in model.graph.node if node.op_type == "Add" for name in node.input
    }
    for node in model.graph.node:
        # A linear layer's matrix has lost its name; the bias that is added next has not.
        if node.op_type == "MatMul" and node.input[1] in wide:
            after = biased[node.output[0]].input if node.output[0] in biased else ()
            bias = next((name for name in after if name.endswith(".bias")), None)
            if bias is None:
                continue
            wide[bias.removesuffix(".bias") + ".weight"] = wide.pop(node.input[1]).T.copy()
    return {name: torch.from_numpy(np.array(values)) for name, values in wide.items()}


def basis_of(folder: Path = PACKAGE) -> Basis:
    """The shipped basis."""
    basis = Basis()
    encoder, decoder = weights(folder / "encoder.onnx"), weights(folder / "decoder.onnx")

    def matrix(found: dict[str, Tensor], rows: int, columns: int) -> Tensor:
        shape = (rows, columns, 1, 1)
        return next(w for n, w in found.items() if w.shape == shape and n.startswith("onnx::"))[
            :, :, 0, 0
        ]

    channels, values = basis.analysis.shape
    basis.mean.copy_(encoder["basis.mean"])
    basis.analysis.copy_(matrix(encoder, channels, values))
    basis.synthesis.copy_(matrix(decoder, values, channels))
    return basis.eval()


@torch.no_grad()
def start_decoder(decoder: Decoder, folder: Path = PACKAGE) -> None:
    """Give the decoder the shipped weights."""
    found = {
        n: w
        for n, w in weights(folder / "decoder.onnx").items()
        if not n.startswith(("onnx::", "basis."))
    }
    missing, unknown = decoder.load_state_dict(found, strict=False)
    assert not unknown, unknown
    assert all(name.startswith("basis.") for name in missing), missing


@torch.no_grad()
def _extended(table: nn.Embedding, known: Tensor, first: int, renders: Tensor) -> None:
    """Fill a codebook: its known rows, then the rest from their renders. `renders` begin at row `first`."""
    ones = torch.ones(len(renders), 1)
    x = torch.cat([renders, ones], dim=1).double()
    fitted, target = x[: len(known) - first], known[first:].double()
    gram = fitted.T @ fitted
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram))
    mapped = (x @ torch.linalg.solve(gram, fitted.T @ target)).float()
    table.weight[: len(known)] = known
    table.weight[len(known) :] = mapped[len(known) - first :]


@torch.no_grad()
def start_denoiser(
    model: Denoiser, things: Tensor, grounds: Tensor, folder: Path = PACKAGE
) -> None:
    """Give the denoiser the shipped weights. `things`, `grounds`: renders of all rows (codebook.py)."""
    found = weights(folder / "denoiser.onnx")
    assert len(json.loads((folder / "pocket.json").read_text())["things"]) > 1
    _extended(model.content, found.pop("content.weight"), 2, things)
    _extended(model.ground, found.pop("ground.weight"), 1, grounds)
    for name in ("scene", "variant"):
        table, known = getattr(model, name).weight, found.pop(f"{name}.weight")
        table[: len(known) - 1], table[-1] = known[:-1], known[-1]  # the last: dropped
    model.air.weight[0] = 0.0
    model.air_in.bias.zero_()
    own = dict(model.named_parameters())
    for name, values in found.items():
        own.pop(name).copy_(values)
    left = set(own) - {"content.weight", "ground.weight", "scene.weight", "variant.weight"}
    assert left <= {
        "air.weight",
        "air_in.weight",
        "air_in.bias",
        "hour.weight",
        "weather.weight",
    }, left


@torch.no_grad()
def start_text(network: nn.Module, folder: Path = PACKAGE) -> list[str]:
    """Give the text network what the shipped one knows; answers that are new start as they are.

    Returns the names of what was not found.
    """
    stored = weights(folder / "text.onnx")
    found = {name.removeprefix("network."): values for name, values in stored.items()}
    found["queries"] = next(w[0] for n, w in stored.items() if n.startswith("onnx::Expand"))
    missing: list[str] = []
    for name, own in network.named_parameters():
        values = found.get(name)
        if values is None or values.shape[1:] != own.shape[1:]:
            missing.append(name)
        else:
            own[: len(values)] = values
    return missing
