"""Loads a family by its name. Knows their files and packages; imports only the one that is asked for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from danqing.engine.families import weights
from danqing.engine.families.base import Family

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "safetensors")
"""What the torch families need: the extra `engine`."""


@dataclass(frozen=True, slots=True)
class _Torch:
    """A family on torch: its class, and the pipeline whose checkpoints it takes."""

    module: str
    kind: str
    pipeline: str


TORCH = {
    "cogview4": _Torch("danqing.engine.families.cogview4", "CogView4", "CogView4Pipeline"),
    "qwen_image": _Torch("danqing.engine.families.qwen_image", "QwenImage", "QwenImagePipeline"),
}


class LoadError(Exception):
    """A family that cannot be loaded as its backend says: `FIELD: what is wrong with it`."""

    def __init__(self, field: str, fault: str) -> None:
        super().__init__(f"{field}: {fault}")


def check_family(name: str, checkpoint: Path | None) -> None:
    """Are the packages and the whole checkpoint there? Loads nothing. Raises LoadError."""
    family = TORCH.get(name)
    if family is None:
        return
    if missing := [package for package in PACKAGES if find_spec(package) is None]:
        fault = (
            f"{name} needs {', '.join(missing)}, not installed here: pip install 'danqing[engine]'"
        )
        raise LoadError("family", fault)
    assert checkpoint is not None
    try:
        weights.find(checkpoint, family.pipeline)
        weights.measure(checkpoint)
    except weights.CheckpointError as error:
        raise LoadError("checkpoint", str(error)) from None


def load_family(
    name: str,
    threads: int = 0,
    checkpoint: str | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    compiled: bool = False,
) -> Family:
    """A family with its weights. `threads`: of the CPU; 0 = one per core.

    Raises ValueError for an unknown name, LoadError naming what cannot be had.
    """
    threads = threads or len(os.sched_getaffinity(0))
    if name == "pocket":
        from danqing.engine.families.pocket import Pocket  # loads onnxruntime

        return Pocket(threads=threads)
    if name not in TORCH:
        raise ValueError(f"unknown family {name}")
    folder = None if checkpoint is None else Path(checkpoint)
    check_family(name, folder)
    import torch

    if (
        device.startswith("cuda")
        and int(device.partition(":")[2] or 0) >= torch.cuda.device_count()
    ):
        raise LoadError("device", f"there is no {device} here ({torch.cuda.device_count()} cards)")
    if device == "cpu":
        torch.set_num_threads(threads)
    kind: Any = getattr(import_module(TORCH[name].module), TORCH[name].kind)
    try:
        return kind.load(folder, device=device, dtype=dtype, compiled=compiled)
    except weights.CheckpointError as error:
        raise LoadError("checkpoint", str(error)) from error
    except torch.OutOfMemoryError as error:
        fault = f"{device} has no room for the weights: {weights.one_line(error)}"
        raise LoadError("device", fault) from None
