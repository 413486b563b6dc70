"""What a diffusers pipeline is made of: its parts, loaded one by one from safetensors, and the pipeline around them. Knows torch.

Only classes of diffusers and transformers themselves are loaded, by name; code in a checkpoint is never run.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from danqing.domain.pipelines import PipelineFacts
from danqing.engine.families.base import PromptTooLong
from danqing.engine.families.checkpoint import Checkpoint
from danqing.engine.families.weights import CheckpointError, one_line

TEXTS_BYTES_MAX = 256 * 2**20
"""Of the embeddings kept."""
WITHOUT_HEADS = {"Qwen3ForCausalLM": "Qwen3Model"}
"""The text encoders of which only hidden states are read: the head over the vocabulary is left out."""


def load_parts(
    folder: Path, facts: PipelineFacts, *, device: str, dtype: str, text_device: str | None,
    compiled: bool,
) -> dict[str, Any]:  # fmt: skip
    """The arguments of the pipeline's class: networks on their devices, tokenizers, scheduler, settings. Raises CheckpointError."""
    found = Checkpoint.open(folder, facts, device=device, dtype=dtype, text_device=text_device)
    parts: dict[str, Any] = {}
    for name, entry in found.index.items():
        if name.startswith("_"):
            continue
        if not isinstance(entry, list):
            parts[name] = entry
        elif entry == [None, None]:
            parts[name] = None
        elif name in facts.parts:
            parts[name] = _network(found, name, *entry)
        elif name.startswith("tokenizer"):
            parts[name] = _tokenizer(found, name, *entry)
        elif name == "scheduler":
            parts[name] = _scheduler(found, *entry)
        else:
            parts[name] = None  # a safety checker and what it reads: moderation is the server's
    if compiled:
        _compile(folder, parts["unet" if "unet" in facts.parts else "transformer"])
    return parts


def _network(found: Checkpoint, name: str, library: str, kind: str) -> Any:
    kind = WITHOUT_HEADS.get(kind, kind)
    base = {"diffusers": "ModelMixin", "transformers": "PreTrainedModel"}[library]
    model = found.load(name, _class(found, name, library, kind, base))
    if name.startswith("text_encoder") and found.text_device != found.device:
        _reads_elsewhere(model, found.text_device, found.device)
    return model


def _tokenizer(found: Checkpoint, name: str, library: str, kind: str) -> Any:
    known = _class(found, name, library, kind, "PreTrainedTokenizerBase")
    try:
        return known.from_pretrained(found.folder / name, local_files_only=True)
    except Exception as error:  # whatever the library raises, the tokenizer is unusable
        raise CheckpointError(f"{found.folder / name}: {one_line(error)}") from error


def _scheduler(found: Checkpoint, library: str, kind: str) -> Any:
    known = _class(found, "scheduler", library, kind, "SchedulerMixin")
    try:
        return known.from_pretrained(found.folder / "scheduler", local_files_only=True)
    except Exception as error:
        raise CheckpointError(f"{found.folder / 'scheduler'}: {one_line(error)}") from error


def _class(found: Checkpoint, name: str, library: str, kind: str, base: str) -> Any:
    """A class of the library's own, and of the sort that the part is. Raises CheckpointError."""
    module = importlib.import_module(library)
    known = getattr(module, kind, None)
    if not (isinstance(known, type) and issubclass(known, getattr(module, base))):
        raise CheckpointError(f"{found.folder}: the {name} is a {kind}, which {library} has not")
    return known


def _compile(folder: Path, network: Any) -> None:
    """Its repeated blocks, once for all sizes."""
    try:
        network.compile_repeated_blocks(fullgraph=True, dynamic=True)
    except ValueError as error:
        raise CheckpointError(f"{folder}: it cannot be compiled: {one_line(error)}") from None


def _moved(value: Any, device: torch.device) -> Any:
    """Whatever a network takes or gives, its tensors on the device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):  # transformers' outputs among them
        return type(value)(**{name: _moved(each, device) for name, each in value.items()})
    if isinstance(value, list | tuple):
        return type(value)(_moved(each, device) for each in value)
    return value


def _reads_elsewhere(model: Any, place: torch.device, back: torch.device) -> None:
    """What it is given goes to its device, what it gives comes back: the pipeline needs not know."""
    model.register_forward_pre_hook(
        lambda _, args, kwargs: (_moved(args, place), _moved(kwargs, place)), with_kwargs=True
    )
    model.register_forward_hook(lambda _, args, found: _moved(found, back))


class Limits:
    """How many tokens a prompt has and may have. Its tokenizers refuse from now on what they would cut off.

    Any thread may measure: the engine's reads while the service's counts, and a tokenizer in use by two raises.
    """

    def __init__(self, parts: Mapping[str, Any], facts: PipelineFacts) -> None:
        self._lock = threading.Lock()
        self._write = WRITERS.get(facts.text_to_image, lambda tokenizer, prompt: prompt)
        there = {
            name: part for name, part in parts.items() if name.startswith("tokenizer") and part
        }
        binding = [there[name] for name in facts.tokenizers if name in there]
        self._tokens_max = facts.tokens_max
        if not binding:
            binding = list(there.values())
            self._tokens_max = min(tokenizer.model_max_length for tokenizer in binding)
        self._dropped = 0
        if (
            facts.text_to_image == "SanaPipeline"
        ):  # its limit is without its instruction, but for two
            self._dropped = self._count(binding[0], "") - 2
        self._tokenizers = binding
        for tokenizer in binding:
            self._refuse(tokenizer)

    def measure(self, prompt: str) -> tuple[int, int]:
        """(tokens, tokens at most) by the tokenizer that makes the most of it."""
        return max(
            self._count(each, prompt) for each in self._tokenizers
        ) - self._dropped, self._tokens_max

    def _count(self, tokenizer: Any, prompt: str) -> int:
        with self._lock:
            return len(tokenizer(self._write(tokenizer, prompt)).input_ids)

    def _refuse(self, tokenizer: Any) -> None:
        kind = type(tokenizer)
        lock, dropped, tokens_max = self._lock, self._dropped, self._tokens_max

        def call(self: Any, text: Any = None, *args: Any, **kwargs: Any) -> Any:
            limit = kwargs.get("max_length")
            if not kwargs.get("truncation") or limit is None:
                return kind.__call__(self, text, *args, **kwargs)
            special = kwargs.get("add_special_tokens", True)
            with lock:
                for each in [text] if isinstance(text, str) else text:
                    tokens = len(kind.__call__(self, each, add_special_tokens=special).input_ids)
                    if tokens > limit:  # a negative prompt goes without the instruction
                        off = dropped if limit > tokens_max else 0
                        raise PromptTooLong(tokens - off, limit - off)
                return kind.__call__(self, text, *args, **kwargs)

        space = {"__call__": call, "__module__": kind.__module__}
        tokenizer.__class__ = type(kind.__name__, (kind,), space)


def _chat(tokenizer: Any, prompt: str, *, thinking: bool) -> str:
    said = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(
        said, tokenize=False, add_generation_prompt=True, enable_thinking=thinking
    )


def _instructed(tokenizer: Any, prompt: str) -> str:
    """With the instruction that Sana's pipeline puts before every prompt."""
    diffusers: Any = importlib.import_module("diffusers")
    called = inspect.signature(diffusers.SanaPipeline.__call__).parameters
    return "\n".join(called["complex_human_instruction"].default) + prompt.lower().strip()


WRITERS: Mapping[str, Callable[[Any, str], str]] = {
    "Flux2KleinPipeline": functools.partial(_chat, thinking=False),
    "ZImagePipeline": functools.partial(_chat, thinking=True),
    "PixArtSigmaPipeline": lambda tokenizer, prompt: prompt.lower().strip(),
    "SanaPipeline": _instructed,
}
"""What a pipeline makes of a prompt before its tokenizer sees it."""


class Texts:
    """What `encode_prompt` made of its arguments, the latest ones."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[Any, int]] = OrderedDict()

    def get(self, kind: str, arguments: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """Arguments that hold tensors are not kept."""
        if not _plain(arguments):
            return make()
        key = f"{kind} {arguments!r}"
        if key not in self._kept:
            made = make()
            self._kept[key] = made, _bytes(made)
            while len(self._kept) > 1 and sum(n for _, n in self._kept.values()) > TEXTS_BYTES_MAX:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return _fresh(self._kept[key][0])


def _plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_plain(each) for each in value.values())
    if isinstance(value, list | tuple):
        return all(_plain(each) for each in value)
    return value is None or isinstance(value, str | int | float | torch.device | torch.dtype)


def _bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.nbytes
    return sum(map(_bytes, value)) if isinstance(value, list | tuple) else 0


def _fresh(value: Any) -> Any:
    """The same tensors in lists of their own: a pipeline may change those."""
    if isinstance(value, list | tuple):
        return type(value)(_fresh(each) for each in value)
    return value


class _NoBar:
    """Where a pipeline would show its progress."""

    def __enter__(self) -> _NoBar:
        return self

    def __exit__(self, *args: object) -> None: ...

    def update(self, n: int = 1) -> None: ...


def driven(name: str, parts: Mapping[str, Any], device: torch.device, texts: Texts) -> Any:
    """diffusers' pipeline `name` over the parts. It runs on `device` wherever its text encoder is, keeps what it has read,
    and calls its `on_begin` with the number of its steps before the first one."""
    kind: Any = getattr(importlib.import_module("diffusers"), name)

    def begin(self: Any, iterable: Any = None, total: int | None = None) -> _NoBar:
        self.on_begin(getattr(self, "_num_timesteps", None) or total)
        return _NoBar()

    def encode_prompt(self: Any, *args: Any, **kwargs: Any) -> Any:
        make = lambda: kind.encode_prompt(self, *args, **kwargs)  # noqa: E731
        return texts.get(name, (args, kwargs), make)

    here = property(lambda self: device)
    space = {
        "__module__": kind.__module__, "__init__": kind.__init__, "progress_bar": begin,
        "encode_prompt": encode_prompt, "_execution_device": here, "device": here,
    }  # fmt: skip
    known = set(inspect.signature(kind.__init__).parameters)
    own = {key: value for key, value in parts.items() if key in known}
    # What a sibling has no default for, a checkpoint's own pipeline may lack.
    own |= {key: None for key in ("safety_checker", "feature_extractor") if key in known}
    if "requires_safety_checker" in known:
        own["requires_safety_checker"] = False
    return type(name, (kind,), space)(**own)


def takes(pipeline: Any, name: str) -> bool:
    """Whether the pipeline's call has an argument of this name."""
    return name in inspect.signature(type(pipeline).__call__).parameters
