"""A LoRA's matrices, and how a product takes them in: beside the weight, which stays as it is. Knows torch, no one model.

Beside it and not merged into it: what else the network draws needs the weight unchanged, and merging and taking out again
would round it each time in bfloat16. It costs rank x (in + out) multiplications beside in x out: 4 % at rank 64 and width 3072.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from danqing.engine.families.lora import Fit

Added = tuple[Tensor, Tensor] | None
"""(down: rank x in, up: out x rank, scaled); None = nothing."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A LoRA in memory."""

    name: str
    shift: float | None
    added: Mapping[str, tuple[Tensor, Tensor]]
    """By the network's weight, without its `.weight`."""


def load(fit: Fit, device: torch.device, dtype: torch.dtype) -> Loaded:
    added: dict[str, tuple[Tensor, Tensor]] = {}
    with safe_open(str(fit.file), framework="pt", device="cpu") as file:
        for module, pair in fit.pairs.items():
            factor = pair.factor
            if pair.alpha is not None:
                factor *= float(file.get_tensor(pair.alpha)) / pair.rank
            up = file.get_tensor(pair.up).float() * factor
            down = file.get_tensor(pair.down)
            added[module] = (down.to(device, dtype), up.to(device, dtype))
    return Loaded(fit.lora.name, fit.lora.shift, added)


def plus(out: Tensor, x: Tensor, added: Added) -> Tensor:
    """A product `out` of `x`, with what is added to its weight."""
    return out if added is None else out + F.linear(F.linear(x, added[0]), added[1])
