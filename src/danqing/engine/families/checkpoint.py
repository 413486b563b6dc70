"""Opens a checkpoint folder in diffusers' layout: looks first, loads after, safetensors only. Knows torch, no network."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from danqing.domain.pipelines import PipelineFacts
from danqing.engine.families.weights import (
    BLOCKS,
    CheckpointError,
    find,
    find_pipeline,
    one_line,
    read_json,
)
from danqing.engine.samplers import FlowMatch

__all__ = ["Checkpoint", "CheckpointError"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder whose parts were found; nothing is loaded yet."""

    folder: Path
    index: Mapping[str, Any]
    """model_index.json: part -> [library, class]."""
    device: torch.device
    dtype: torch.dtype
    text_device: torch.device
    """Where prompts are read."""

    @classmethod
    def open(
        cls, folder: Path, pipeline: str | PipelineFacts, *, device: str, dtype: str,
        text_device: str | None = None,
    ) -> Checkpoint:  # fmt: skip
        """Raises CheckpointError when the folder holds no whole checkpoint of `pipeline`'s class."""
        if dtype not in DTYPES:
            raise CheckpointError(f"the precision is {dtype!r}, not one of {', '.join(DTYPES)}")
        look = find_pipeline if isinstance(pipeline, PipelineFacts) else find
        index = look(folder, pipeline)  # type: ignore[arg-type]
        places = torch.device(device), DTYPES[dtype], torch.device(text_device or device)
        return cls(folder, index, *places)

    def model(self, part: str, kind: str, *, offloaded: bool = False) -> Any:
        """One of diffusers' models with its weights, on the device, in the checkpoint's precision.

        `offloaded`: what is in its repeated blocks stays in main memory.
        """
        self._expect(part, {kind})
        known = getattr(importlib.import_module("diffusers"), kind)
        return self.load(part, known, offloaded=offloaded)

    def text_encoder(self, kinds: Mapping[str, str]) -> Any:
        """The transformers model; `kinds`: class in the checkpoint -> class to load."""
        kind = kinds[self._expect("text_encoder", set(kinds))]
        return self.load("text_encoder", getattr(importlib.import_module("transformers"), kind))

    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(self.folder / "tokenizer", local_files_only=True)
        except Exception as error:  # whatever the library raises, the tokenizer is unusable
            raise CheckpointError(f"{self.folder / 'tokenizer'}: {one_line(error)}") from error

    def sampling(self) -> FlowMatch:
        path = self.folder / "scheduler" / "scheduler_config.json"
        try:
            return FlowMatch.read(read_json(path))
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}") from None

    def _expect(self, part: str, kinds: set[str]) -> str:
        """The class of a part, if it is one that the family knows."""
        entry = self.index.get(part)
        kind = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
        if kind not in kinds:
            wanted = " or ".join(sorted(kinds))
            raise CheckpointError(f"{self.folder}: the {part} is a {kind}, not a {wanted}")
        return str(kind)

    def load(self, part: str, kind: Any, *, offloaded: bool = False) -> Any:
        """A part with its weights, whole, on its device. Raises CheckpointError."""
        try:
            model, info = kind.from_pretrained(
                self.folder / part,
                torch_dtype=self.dtype,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # wrong shapes, a broken file: the libraries raise many things
            raise CheckpointError(f"{self.folder / part}: {one_line(error)}") from error
        missing = sorted(info["missing_keys"])
        if missing:
            raise CheckpointError(
                f"{self.folder / part}: {len(missing)} weights are missing, {missing[0]} first"
            )
        device = self.text_device if part.startswith("text_encoder") else self.device
        model.eval().requires_grad_(False)
        if not offloaded:
            return model.to(device)
        for name, child in model.named_children():
            if name != BLOCKS:
                child.to(device)
        return model
