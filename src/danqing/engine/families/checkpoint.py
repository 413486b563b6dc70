"""Opens a checkpoint folder in diffusers' layout: looks first, loads after, safetensors only. Knows torch, no network.

Everything that can be wrong with a folder is said by name before any weight is read.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from danqing.engine.samplers import FlowMatch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle")


class CheckpointError(Exception):
    """A checkpoint that cannot be used; the message names the file and the fault."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder whose parts were found; nothing is loaded yet."""

    folder: Path
    index: Mapping[str, Any]
    """model_index.json: part -> [library, class]."""
    device: torch.device
    dtype: torch.dtype

    @classmethod
    def open(cls, folder: Path, pipeline: str, *, device: str, dtype: str) -> Checkpoint:
        """Raises CheckpointError when the folder holds no whole checkpoint of `pipeline`'s class."""
        if dtype not in DTYPES:
            raise CheckpointError(f"the precision is {dtype!r}, not one of {', '.join(DTYPES)}")
        if not folder.is_dir():
            raise CheckpointError(f"{folder} is no folder")
        index = _json(folder / "model_index.json")
        kind = index.get("_class_name")
        if kind != pipeline:
            raise CheckpointError(f"{folder} holds a {kind}, not a {pipeline}")
        for part in ("transformer", "vae", "text_encoder"):
            _check_weights(folder / part)
        for part in ("tokenizer", "scheduler"):
            if not (folder / part).is_dir():
                raise CheckpointError(f"{folder / part} is missing")
        _json(folder / "scheduler" / "scheduler_config.json")
        return cls(folder, index, torch.device(device), DTYPES[dtype])

    def model(self, part: str, kind: str) -> Any:
        """One of diffusers' models with its weights, on the device, in the checkpoint's precision."""
        self._expect(part, {kind})
        return self._load(part, getattr(importlib.import_module("diffusers"), kind))

    def text_encoder(self, kinds: Mapping[str, str]) -> Any:
        """The transformers model; `kinds`: class in the checkpoint -> class to load."""
        kind = kinds[self._expect("text_encoder", set(kinds))]
        return self._load("text_encoder", getattr(importlib.import_module("transformers"), kind))

    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(self.folder / "tokenizer", local_files_only=True)
        except Exception as error:  # whatever the library raises, the tokenizer is unusable
            raise CheckpointError(f"{self.folder / 'tokenizer'}: {_line(error)}") from error

    def sampling(self) -> FlowMatch:
        path = self.folder / "scheduler" / "scheduler_config.json"
        try:
            return FlowMatch.read(_json(path))
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

    def _load(self, part: str, kind: Any) -> Any:
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
            raise CheckpointError(f"{self.folder / part}: {_line(error)}") from error
        missing = sorted(info["missing_keys"])
        if missing:
            raise CheckpointError(
                f"{self.folder / part}: {len(missing)} weights are missing, {missing[0]} first"
            )
        return model.to(self.device).eval().requires_grad_(False)


def _check_weights(folder: Path) -> None:
    """A config, and whole safetensors beside it. Raises CheckpointError."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is missing")
    _json(folder / "config.json")
    files = list(folder.iterdir())
    if not any(file.suffix == ".safetensors" for file in files):
        if any(file.suffix in PICKLES for file in files):
            raise CheckpointError(f"{folder} holds pickled weights: only safetensors are loaded")
        raise CheckpointError(f"{folder} holds no safetensors")
    for file in files:
        if file.name.endswith(".safetensors.index.json"):
            shards = set(_json(file).get("weight_map", {}).values())
            lacking = sorted(name for name in shards if not (folder / name).is_file())
            if lacking:
                raise CheckpointError(f"{folder}: {lacking[0]} is missing")


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {_line(error)}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} is no JSON object")
    return found


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:400]
