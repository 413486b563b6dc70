"""Looks at a checkpoint folder in diffusers' layout without loading it: parts, files, sizes. Knows no torch, no network.

Everything that can be wrong with a folder is said by name before any weight is read.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danqing.domain import pulled
from danqing.domain.pipelines import PipelineFacts

PARTS = ("transformer", "text_encoder", "vae")
"""What has weights."""
BLOCKS = "transformer_blocks"
"""The module of a network's repeated blocks, in diffusers' names."""
LIBRARIES = ("diffusers", "transformers")
"""Whose classes are loaded; a checkpoint's own code is not."""
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
"""Parts that may be there and are not loaded."""
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model")
"""One of them is in a tokenizer's folder."""
SECOND_COPIES = (".fp16", ".bf16", ".non_ema")
"""In the names of files with the same weights once more."""
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
    blocks: int = 0
    """Of the repeated kind, those that can stay in main memory."""
    in_blocks: int = 0
    """Of the parameters."""


def find(folder: Path, pipeline: str) -> Mapping[str, Any]:
    """model_index.json: part -> [library, class].

    Raises CheckpointError when the folder holds no whole checkpoint of `pipeline`'s class.
    """
    index = _index(folder)
    kind = index.get("_class_name")
    if kind != pipeline:
        raise CheckpointError(f"{folder} holds a {kind}, not a {pipeline}")
    for part in ("transformer", "vae", "text_encoder"):
        _check_weights(folder / part)
    _check_rest(folder, ("tokenizer", "scheduler"))
    return index


def find_pipeline(folder: Path, facts: PipelineFacts) -> Mapping[str, Any]:
    """The same for a pipeline whose parts the folder names itself. Raises CheckpointError, also for a class that is neither diffusers' nor transformers'."""
    index = _index(folder)
    kind = index.get("_class_name")
    if kind != facts.text_to_image:
        what = "pipeline with code of its own" if isinstance(kind, list) else kind
        raise CheckpointError(f"{folder} holds a {what}, not a {facts.text_to_image}")
    rest: list[str] = ["scheduler"]
    for name, entry in index.items():
        if not isinstance(entry, list) or name.startswith("_") or name in UNUSED:
            continue
        if entry == [None, None]:
            if name not in facts.optional:
                raise CheckpointError(f"{folder}: the {name} is left out")
        elif len(entry) != 2 or entry[0] not in LIBRARIES or not isinstance(entry[1], str):
            raise CheckpointError(
                f"{folder}: the {name} is {entry}, no class of {' or '.join(LIBRARIES)}"
            )
        elif name in facts.parts:
            _check_weights(folder / name)
        elif name == "scheduler" or name.startswith("tokenizer"):
            rest.append(name)
        else:
            raise CheckpointError(f"{folder}: a {facts.text_to_image} has no {name}")
    needed = {*facts.parts, *facts.tokenizers, "scheduler"} - set(facts.optional)
    if missing := sorted(needed - set(index)):
        raise CheckpointError(f"{folder}: model_index.json names no {missing[0]}")
    _check_rest(folder, rest)
    return index


def _index(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder")
    path = folder / "model_index.json"
    if not path.is_file() and any(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"{path} is missing: the files beside it are of another layout than diffusers', which has a folder for each part"
        )
    return read_json(path)


def _check_rest(folder: Path, names: Sequence[str]) -> None:
    for name in names:
        if not (folder / name).is_dir():
            raise CheckpointError(f"{folder / name} is missing")
        files = [folder / name / file for file in VOCABULARIES]
        if name.startswith("tokenizer") and not any(file.is_file() for file in files):
            raise CheckpointError(
                f"{folder / name} holds no vocabulary: {' or '.join(VOCABULARIES)}"
            )
    read_json(folder / "scheduler" / "scheduler_config.json")


def pulled_from(folder: Path) -> pulled.Record | None:
    """Where the folder came from; None where nothing says so."""
    try:
        return pulled.Record.of((folder / pulled.RECORD).read_text("utf-8"))
    except (OSError, ValueError):
        return None


def measure(folder: Path, parts: Sequence[str] = PARTS) -> tuple[Part, ...]:
    """The parts and their sizes. Raises CheckpointError for a file that is cut off or no safetensors."""
    return tuple(_measured(folder / name) for name in parts)


def _measured(folder: Path) -> Part:
    parameters = file_bytes = in_blocks = 0
    blocks: set[str] = set()
    for path in _files(folder):
        header = read_header(path)
        for name in header.shapes:
            parameters += header.parameters(name)
            if name.startswith(f"{BLOCKS}."):
                in_blocks += header.parameters(name)
                blocks.add(name.split(".")[1])
        file_bytes += path.stat().st_size
    return Part(folder.name, parameters, file_bytes, len(blocks), in_blocks)


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
        for path in _files(folder)
        for name, shape in read_header(path).shapes.items()
        if name.endswith(".weight") and len(shape) == 2
    }


def _files(folder: Path) -> list[Path]:
    """The safetensors that are loaded."""
    return [
        path
        for path in sorted(folder.glob("*.safetensors"))
        if not any(word in path.name for word in SECOND_COPIES)
    ]


def _check_weights(folder: Path) -> None:
    """A config, and whole safetensors beside it. Raises CheckpointError."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is missing")
    if found := read_json(folder / "config.json").get("quantization_config"):
        how = found.get("quant_method") if isinstance(found, dict) else found
        raise CheckpointError(f"{folder} is quantized ({how}): only whole weights are loaded")
    files = list(folder.iterdir())
    if not _files(folder):
        if any(file.suffix == ".safetensors" for file in files):
            copies = " or ".join(f"*{word}*" for word in SECOND_COPIES)
            raise CheckpointError(f"{folder} holds only {copies}: rename them without that word")
        if any(file.suffix in PICKLES for file in files):
            raise CheckpointError(f"{folder} holds pickled weights: only safetensors are loaded")
        raise CheckpointError(f"{folder} holds no safetensors")
    for file in files:
        is_copy = any(word in file.name for word in SECOND_COPIES)
        if file.name.endswith(".safetensors.index.json") and not is_copy:
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
    """Whatever a library raised, short enough for a message: what follows the first sentence is advice for its own callers."""
    return " ".join(f"{type(error).__name__}: {error}".split()).split(". ")[0][:400]
