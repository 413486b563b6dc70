"""What a LoRA file adds to which weight of a network, by the files' headers alone. Knows no torch, no network.

A LoRA (Hu et al. 2021, arXiv:2106.09685) gives a weight W, out x in, two thin matrices: the product becomes
W x + (alpha / rank) up (down x). Names are diffusers' and peft's (`X.lora_A.weight`), the trainers' (`X.lora_down.weight`,
`X.alpha`), and kohya's flat ones (`lora_unet_X_with_underscores`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danqing.engine.families.weights import (
    PICKLES,
    CheckpointError,
    Header,
    matrices,
    read_header,
)

PREFIXES = ("base_model.model.", "transformer.", "diffusion_model.")
FLAT = "lora_unet_"
_PART = re.compile(r"(.+?)\.(?:lora_(A|B|down|up)(?:\.default)?\.weight|(alpha))")
_IS_DOWN = {"A": True, "down": True, "B": False, "up": False}
METADATA = "lora_adapter_metadata"
"""Where diffusers keeps peft's settings in a file."""


class LoraError(CheckpointError):
    """A LoRA that cannot be used; `name` is the catalog's, the message names the file and the fault."""

    def __init__(self, name: str, fault: str) -> None:
        super().__init__(fault)
        self.name = name


@dataclass(frozen=True, slots=True)
class Lora:
    """One of a backend's `loras`."""

    name: str
    path: str
    """The file, or a folder that holds nothing else."""
    scale: float = 1.0
    """How much of it is added."""
    shift: float | None = None
    """The noise schedule's shift that it was trained with, whatever the size; None = the checkpoint's own."""


@dataclass(frozen=True, slots=True)
class Pair:
    """The file's names of what is added to one weight."""

    down: str
    up: str
    alpha: str | None
    """None: `factor` has all."""
    rank: int
    factor: float
    """What `up` is multiplied with, beside alpha / rank where there is an alpha."""


@dataclass(frozen=True, slots=True)
class Fit:
    """A LoRA that fits a network."""

    lora: Lora
    file: Path
    pairs: Mapping[str, Pair]
    """By the network's weight, without its `.weight`."""
    parameters: int


def fit_loras(checkpoint: Path, loras: Sequence[Lora]) -> list[Fit]:
    """Match a backend's LoRAs against its checkpoint's transformer. Raises CheckpointError, LoraError."""
    shapes = matrices(checkpoint / "transformer") if loras else {}
    return [fit(lora, shapes) for lora in loras]


def fit(lora: Lora, shapes: Mapping[str, tuple[int, int]]) -> Fit:
    """Match a file against the network's weights (name without `.weight` -> out, in). Raises LoraError."""
    try:
        file = _file(Path(lora.path))
        header = read_header(file)
        pairs = _pairs(file, header, shapes, lora.scale)
    except LoraError:
        raise
    except CheckpointError as error:
        raise LoraError(lora.name, str(error)) from None
    used = [name for pair in pairs.values() for name in (pair.down, pair.up)]
    return Fit(lora, file, pairs, sum(header.parameters(name) for name in used))


def _file(path: Path) -> Path:
    if path.suffix in PICKLES:
        raise CheckpointError(f"{path} is pickled: only safetensors are loaded")
    if not path.is_dir():
        if not path.is_file():
            raise CheckpointError(f"{path} is no file")
        return path
    found = sorted(path.glob("*.safetensors"))
    if len(found) != 1:
        raise CheckpointError(f"{path} holds {len(found)} safetensors: name the one that is meant")
    return found[0]


def _pairs(
    file: Path, header: Header, shapes: Mapping[str, tuple[int, int]], scale: float
) -> dict[str, Pair]:
    """Raises CheckpointError for whatever is no LoRA of these weights."""
    flat = {name.replace(".", "_"): name for name in shapes}
    parts: dict[str, dict[str, str]] = {}
    for key in header.shapes:
        found = _PART.fullmatch(key)
        if found is None:
            raise CheckpointError(f"{file}: {key} is no part of a LoRA that can be used here")
        module = _module(found[1], flat)
        if module not in shapes:
            raise CheckpointError(f"{file}: {key} fits no weight of the transformer")
        kind = "alpha" if found[3] else "down" if _IS_DOWN[found[2]] else "up"
        if kind in parts.setdefault(module, {}):
            raise CheckpointError(f"{file}: {key} is there twice")
        parts[module][kind] = key
    if not parts:
        raise CheckpointError(f"{file} holds no LoRA")
    alpha = _alpha(file, header)
    return {
        module: _pair(file, header, module, shapes[module], found, alpha, scale)
        for module, found in parts.items()
    }


def _module(name: str, flat: Mapping[str, str]) -> str:
    if name.startswith(FLAT):
        return flat.get(name.removeprefix(FLAT), name)
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _pair(
    file: Path, header: Header, module: str, shape: tuple[int, int], parts: Mapping[str, str],
    alpha: float | None, scale: float,
) -> Pair:  # fmt: skip
    if lacking := {"down", "up"} - parts.keys():
        raise CheckpointError(f"{file}: {module} has no {min(lacking)} matrix")
    down, up = header.shapes[parts["down"]], header.shapes[parts["up"]]
    out, width = shape
    if len(down) != 2 or len(up) != 2 or (up[0], down[1]) != shape or down[0] != up[1]:
        raise CheckpointError(
            f"{file}: {module} is {out} x {width} in the transformer, the LoRA has {list(up)} and {list(down)}"
        )
    rank = down[0]
    factor = scale if alpha is None else scale * alpha / rank
    return Pair(parts["down"], parts["up"], parts.get("alpha"), rank, factor)


def _alpha(file: Path, header: Header) -> float | None:
    """peft's alpha, where the file keeps peft's settings; None = alpha is the rank, or stands beside each matrix."""
    text = header.metadata.get(METADATA)
    if text is None:
        return None
    try:
        found: dict[str, Any] = json.loads(text)
        settings = {key.rpartition("transformer.")[2]: value for key, value in found.items()}
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{file}: its metadata cannot be read: {error}") from None
    for name in ("use_dora", "use_rslora", "alpha_pattern", "lora_bias"):
        if settings.get(name):
            raise CheckpointError(f"{file}: {name} is not supported")
    alpha = settings.get("lora_alpha")
    return None if alpha is None else float(alpha)
