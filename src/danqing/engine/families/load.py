"""Loads a family by its name. Knows their files and packages; imports only the one that is asked for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from danqing.domain import pulled
from danqing.domain.pipelines import PIPELINES
from danqing.engine.families import memory, positions, weights
from danqing.engine.families.base import Family, LoadError
from danqing.engine.families.lora import Lora, LoraError, fit_loras

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "safetensors")
"""What the torch families need: the extra `engine`."""

CARD_FILES = tuple(map(Path, ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")))
"""One of them is where a card's driver is (NVIDIA's, AMD's, WSL's); looked at first, since importing torch takes seconds."""


@dataclass(frozen=True, slots=True)
class _Torch:
    """A family on torch: its class, and the pipeline whose checkpoints it takes."""

    module: str
    kind: str
    pipeline: str | None = None
    """None = the plan says."""
    batch_max: int | None = None
    """Images that can share a step; None = as many as pay."""


TORCH = {
    "cogview4": _Torch("danqing.engine.families.cogview4", "CogView4", "CogView4Pipeline"),
    "qwen_image": _Torch("danqing.engine.families.qwen_image", "QwenImage", "QwenImagePipeline"),
    "diffusers_pipeline": _Torch(
        "danqing.engine.families.diffusers_pipeline", "DiffusersPipeline", batch_max=1
    ),
}


def pipelines() -> dict[str, list[tuple[str, str | None]]]:
    """diffusers' pipelines whose checkpoints some family takes -> that family, and its `pipeline` where it has several."""
    found: dict[str, list[tuple[str, str | None]]] = {}
    for name, facts in PIPELINES.items():
        found.setdefault(facts.text_to_image, []).append(("diffusers_pipeline", name))
    for name, family in TORCH.items():
        if family.pipeline is not None:
            found[family.pipeline] = [(name, None)]
    return found


def batch_max(name: str, wanted: int) -> int:
    """How many images of a family may share a step, where `wanted` are allowed."""
    family = TORCH.get(name)
    return wanted if family is None or family.batch_max is None else min(wanted, family.batch_max)


@dataclass(frozen=True, slots=True)
class Plan:
    """A family as a backend wants it."""

    name: str
    checkpoint: str | None = None
    pipeline: str | None = None
    """For `diffusers_pipeline`: one of PIPELINES."""
    device: str = "cpu"
    dtype: str = "float32"
    compiled: bool = False
    text_encoder_device: str | None = None
    """None = the device."""
    loras: tuple[Lora, ...] = ()
    revision: str | None = None
    """The commit that the checkpoint must have been pulled at; None = any."""
    offload: bool = False
    """Keep the network's blocks in main memory."""
    overlap: bool = True
    """Read and decode beside the steps, if there is room."""

    @classmethod
    def of(cls, loras: Mapping[str, Mapping[str, Any]] | None = None, **options: Any) -> Plan:
        """`loras`: by name, each the other fields of a Lora."""
        return cls(
            loras=tuple(Lora(name, **fields) for name, fields in (loras or {}).items()), **options
        )

    @property
    def text_on_cpu(self) -> bool:
        return (self.text_encoder_device or self.device) == "cpu" != self.device

    @property
    def folder(self) -> Path:
        return Path(self.checkpoint or "")


@dataclass(frozen=True, slots=True)
class Fit:
    """What a plan needs, and what is there."""

    need: memory.Need
    free_bytes: int | None
    pixels_max: int | None = None
    """Of the largest picture that there is room for; None = any."""
    overlap: bool = True
    """The plan's."""

    @property
    def overlaps(self) -> bool:
        """It is wanted, and there is room, to read and decode beside the steps."""
        if not self.overlap:
            return False
        both = self.need.device_bytes + self.need.overlap_bytes
        return self.free_bytes is None or both <= self.free_bytes


def check_family(plan: Plan) -> tuple[weights.Part, ...]:
    """Are the packages and the whole checkpoint there, and do the LoRAs fit it? Loads nothing. Raises LoadError."""
    name = plan.name
    family = TORCH.get(name)
    if family is None:
        return ()
    if missing := [package for package in PACKAGES if find_spec(package) is None]:
        fault = (
            f"{name} needs {', '.join(missing)}, not installed here: pip install 'danqing[engine]'"
        )
        raise LoadError("family", fault)
    if plan.revision is not None and plan.folder.is_dir():
        fault = pulled.fault(weights.pulled_from(plan.folder), plan.revision)
        if fault:
            raise LoadError("revision", fault)
    try:
        positions.side_max(plan.folder)
        if family.pipeline is None:
            facts = PIPELINES[plan.pipeline or ""]
            index = weights.find_pipeline(plan.folder, facts)
            there = [part for part in facts.parts if index.get(part) not in (None, [None, None])]
            return weights.measure(plan.folder, there)
        weights.find(plan.folder, family.pipeline)
        return (
            *weights.measure(plan.folder),
            *(
                weights.Part(f"lora {fit.lora.name}", fit.parameters, 0)
                for fit in fit_loras(plan.folder, plan.loras)
            ),
        )
    except LoraError as error:
        raise LoadError(f"loras.{error.name}", str(error)) from None
    except weights.CheckpointError as error:
        raise LoadError("checkpoint", str(error)) from None


def side_max(plan: Plan) -> int | None:
    """The longest side that it can draw, pixels; None = any. Loads nothing. Raises LoadError."""
    if plan.name not in TORCH:
        return None
    try:
        return positions.side_max(plan.folder)
    except weights.CheckpointError as error:
        raise LoadError("checkpoint", str(error)) from None


def check_fit(plan: Plan) -> Fit:
    """Could a torch family be loaded here? Loads nothing but torch. Raises LoadError naming what is wrong."""
    parts = check_family(plan)
    import torch

    wanted = memory.need(
        plan.name, parts, plan.dtype, text_on_cpu=plan.text_on_cpu, offload=plan.offload
    )
    here = memory.free_here()
    free = here
    if plan.device != "cpu":
        index, count = int(plan.device.partition(":")[2] or 0), torch.cuda.device_count()
        if index >= count:
            raise LoadError("device", f"there is no {plan.device} here ({count} graphics cards)")
        free = int(torch.cuda.mem_get_info(index)[0])
    if free is not None and (fault := memory.shortage(plan.device, wanted, free)):
        raise LoadError("device", fault)
    if here is not None and wanted.beside_bytes > here:
        field = "offload" if plan.offload else "text_encoder_device"
        fault = f"what stays in main memory takes {wanted.beside_bytes / memory.GIB:.1f} GiB, {here / memory.GIB:.1f} GiB are free"
        raise LoadError(field, fault)
    pixels_max = None
    if free is not None:
        pixels_max = memory.pixels_max(
            plan.name, parts, plan.dtype, free, text_on_cpu=plan.text_on_cpu, offload=plan.offload
        )
    return Fit(wanted, free, pixels_max, plan.overlap)


def cards() -> list[dict[str, str | float]]:
    """What published checkpoints draw on cards of usual sizes, and on the first card here, if there is one."""
    return memory.cards(_card_bytes(), memory.free_here())


def cards_here() -> list[dict[str, str | float]]:
    """What published checkpoints draw on the first card here, beside the main memory that is free; nothing where there is no card."""
    card_bytes = _card_bytes()
    return [] if card_bytes is None else memory.cards_here(card_bytes, memory.free_here())


def _card_bytes() -> int | None:
    """Of the first graphics card; None where there is none, or no torch to draw on it."""
    if find_spec("torch") is None or not any(path.exists() for path in CARD_FILES):
        return None
    import torch

    there = torch.cuda.is_available()
    return torch.cuda.get_device_properties(0).total_memory if there else None


def load_family(name: str, threads: int = 0, **options: Any) -> Family:
    """A family with its weights. `threads`: of the CPU; 0 = one per core. `options`: the rest of a Plan.

    Raises ValueError for an unknown name, LoadError naming what cannot be had.
    """
    threads = threads or len(os.sched_getaffinity(0))
    if name == "pocket":
        from danqing.engine.families.pocket import Pocket  # loads onnxruntime

        return Pocket(threads=threads)
    if name not in TORCH:
        raise ValueError(f"unknown family {name}")
    plan = Plan.of(name=name, **options)
    fit = check_fit(plan)
    import torch

    torch.set_num_threads(threads)
    kind: Any = getattr(import_module(TORCH[name].module), TORCH[name].kind)
    which = {} if plan.pipeline is None else {"pipeline": plan.pipeline}
    try:
        family = kind.load(
            plan.folder,
            device=plan.device,
            dtype=plan.dtype,
            compiled=plan.compiled,
            text_device=plan.text_encoder_device,
            **({"loras": fit_loras(plan.folder, plan.loras)} if plan.loras else {}),
            **({"offloaded": True} if plan.offload else {}),
            **which,
        )
    except weights.CheckpointError as error:
        raise LoadError("checkpoint", str(error)) from error
    except torch.OutOfMemoryError as error:
        fault = f"{plan.device} has no room for the weights: {weights.one_line(error)}"
        raise LoadError("device", fault) from None
    family.overlaps, family.pixels_max = fit.overlaps, fit.pixels_max
    return family
