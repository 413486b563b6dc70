"""Looks at a checkpoint folder in diffusers' layout without loading it: parts, files, sizes. Knows no torch, no network.

Everything that can be wrong with a folder is said by name before any weight is read.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PARTS = ("transformer", "text_encoder", "vae")
"""What has weights."""
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle")
HEADER_BYTES_MAX = 100_000_000
"""Of a safetensors file, by its format."""


class CheckpointError(Exception):
    """A checkpoint that cannot be used; the message names the file and the fault."""


@dataclass(frozen=True, slots=True)
class Part:
    """One network of a checkpoint, by its files' headers."""

    name: str
    parameters: int
    file_bytes: int


def find(folder: Path, pipeline: str) -> Mapping[str, Any]:
    """model_index.json: part -> [library, class].

    Raises CheckpointError when the folder holds no whole checkpoint of `pipeline`'s class.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder")
    index = read_json(folder / "model_index.json")
    kind = index.get("_class_name")
    if kind != pipeline:
        raise CheckpointError(f"{folder} holds a {kind}, not a {pipeline}")
    for part in ("transformer", "vae", "text_encoder"):
        _check_weights(folder / part)
    for part in ("tokenizer", "scheduler"):
        if not (folder / part).is_dir():
            raise CheckpointError(f"{folder / part} is missing")
    read_json(folder / "scheduler" / "scheduler_config.json")
    return index


def measure(folder: Path) -> tuple[Part, ...]:
    """The parts and their sizes. Raises CheckpointError for a file that is cut off or no safetensors."""
    return tuple(_measured(folder / name) for name in PARTS)


def _measured(folder: Path) -> Part:
    parameters = file_bytes = 0
    for path in sorted(folder.glob("*.safetensors")):
        header = read_header(path)
        parameters += sum(map(header.parameters, header.shapes))
        file_bytes += path.stat().st_size
    return Part(folder.name, parameters, file_bytes)


@dataclass(frozen=True, slots=True)
class Header:
    """What a safetensors file says of itself."""

    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]

    def parameters(self, name: str) -> int:
        return math.prod(self.shapes[name])


def read_header(path: Path) -> Header:
    """8 bytes with the header's length, the header in JSON, then the data. Raises CheckpointError for a file that is not whole."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = struct.unpack("<Q", file.read(8))[0]
            if length > min(HEADER_BYTES_MAX, size - 8):
                raise ValueError("its header is longer than the file")
            header: dict[str, Any] = json.loads(file.read(length))
        metadata = dict(header.pop("__metadata__", {}))
        data_bytes = max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
        if size != 8 + length + data_bytes:
            raise ValueError(f"it has {size} bytes and should have {8 + length + data_bytes}")
        return Header({name: tuple(entry["shape"]) for name, entry in header.items()}, metadata)
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is no whole safetensors file: {one_line(error)}") from None


def matrices(folder: Path) -> dict[str, tuple[int, int]]:
    """The two-dimensional weights of a part, without their `.weight`: (out, in). Raises CheckpointError."""
    return {
        name.removesuffix(".weight"): (shape[0], shape[1])
        for path in sorted(folder.glob("*.safetensors"))
        for name, shape in read_header(path).shapes.items()
        if name.endswith(".weight") and len(shape) == 2
    }


def _check_weights(folder: Path) -> None:
    """A config, and whole safetensors beside it. Raises CheckpointError."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is missing")
    read_json(folder / "config.json")
    files = list(folder.iterdir())
    if not any(file.suffix == ".safetensors" for file in files):
        if any(file.suffix in PICKLES for file in files):
            raise CheckpointError(f"{folder} holds pickled weights: only safetensors are loaded")
        raise CheckpointError(f"{folder} holds no safetensors")
    for file in files:
        if file.name.endswith(".safetensors.index.json"):
            shards = set(read_json(file).get("weight_map", {}).values())
            lacking = sorted(name for name in shards if not (folder / name).is_file())
            if lacking:
                raise CheckpointError(f"{folder}: {lacking[0]} is missing")


def read_json(path: Path) -> dict[str, Any]:
    """Raises CheckpointError."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {one_line(error)}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} is no JSON object")
    return found


def one_line(error: BaseException) -> str:
    """Whatever a library raised, short enough for a message."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:400]
