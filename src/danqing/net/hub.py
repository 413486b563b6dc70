"""Checkpoints from a model hub into a folder, by huggingface_hub, which does its own HTTP. For the operator's command line alone.

What is asked for is pinned to its commit first, which is recorded beside it and changes only by who says so. A connection that
breaks is taken up again where it was; after a run that failed, the files that came whole stay, one in part begins anew, and the next goes on at the same commit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from danqing.domain.pulled import RECORD, Record

HUB = "https://huggingface.co"
PARTS = ("transformer", "unet", "text_encoder", "text_encoder_2", "text_encoder_3", "vae",
         "tokenizer", "tokenizer_2", "tokenizer_3", "scheduler")  # fmt: skip
KINDS = ("*.json", "*.safetensors", "*.txt", "*.jinja", "*.model")
WANTED = ["model_index.json", "README.md", "LICENSE*", *(f"{part}/{kind}" for part in PARTS for kind in KINDS)]  # fmt: skip
UNWANTED = ["*.fp16*", "*.bf16*", "*.non_ema*"]
"""Second copies of the same weights."""

_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
_FILE = re.compile(r"[\w.+/ -]{1,300}\.safetensors")
_REVISION = re.compile(r"[\w./-]{1,200}")


class PullError(Exception):
    """Nothing, or not all, came; the message says why."""


@dataclass(frozen=True, slots=True)
class Place:
    """A repository of a hub."""

    endpoint: str
    id: str
    revision: str
    file: str | None = None
    """One file alone: a LoRA."""
    is_modelscope: bool = False
    is_named: bool = field(default=False, compare=False)
    """Somebody said which revision, so what is here may become that."""


@dataclass(frozen=True, slots=True)
class Pulled:
    """A whole checkpoint's folder and its commit."""

    folder: Path
    commit: str
    kind: str
    """The pipeline's class."""


def place_of(text: str, revision: str | None, endpoint: str = HUB) -> Place:
    """`ORG/NAME`, with `/FILE.safetensors` for one file alone, or the address of a page, which may name a revision. Raises PullError.

    A page below `/models` is ModelScope's.
    """
    name, named, file, is_modelscope = text.strip(), None, None, False
    if "://" in name:
        url = urlsplit(name)
        if url.scheme not in ("http", "https") or not url.hostname or url.username:
            raise PullError(f"not the address of a model: {text}")
        endpoint = f"{url.scheme}://{url.netloc}"
        parts = [part for part in url.path.split("/") if part]
        is_modelscope = parts[:1] == ["models"]
        parts = parts[1:] if is_modelscope else parts
        name, rest = "/".join(parts[:2]), parts[2:]
        if rest[:1] == ["tree"] and len(rest) > 1:
            named = "/".join(rest[1:])
        elif rest[:1] == ["blob"] and len(rest) > 2 and _FILE.fullmatch("/".join(rest[2:])):
            named, file = rest[1], "/".join(rest[2:])
        elif rest and not (is_modelscope and rest in (["summary"], ["files"])):
            raise PullError(f"not the address of a model's page: {text}")
    elif _FILE.fullmatch(name) and name.count("/") > 1:
        first, second, file = name.split("/", 2)
        name = f"{first}/{second}"
    if revision and named and revision != named:
        raise PullError(f"the address names the revision {named}, --revision {revision}")
    wanted = revision or named or ("master" if is_modelscope else "main")
    if not _ID.fullmatch(name) or any(part.strip(".") == "" for part in name.split("/")):
        raise PullError(f"not ORG/NAME or the address of a model: {text}")
    if not _REVISION.fullmatch(wanted):
        raise PullError(f"not a revision: {wanted}")
    if file is not None and any(part.strip(".") == "" for part in file.split("/")):
        raise PullError(f"not a file: {file}")
    is_named = bool(revision or named)
    return Place(endpoint, name, wanted, file, is_modelscope, is_named)


class Mark:
    """The record of what a folder, or one file, was pulled from."""

    def __init__(self, place: Place, folder: Path) -> None:
        self._place = place
        name = RECORD if place.file is None else f"{place.file}.{RECORD}"
        self._path = folder / name
        self._there: Record | None = None
        with suppress(OSError, ValueError):
            self._there = Record.of(self._path.read_text("utf-8"))

    def place(self) -> Place:
        """Where to pull from: a run that did not end goes on at its commit."""
        there, place = self._there, self._place
        if there is None or there.is_whole or place.is_named or there.endpoint != place.endpoint:
            return place
        return replace(place, revision=there.commit)

    def check(self, commit: str) -> None:
        """Raises PullError where another commit is here and nobody asked for this one."""
        there, place = self._there, self._place
        fault = there and there.change_to(place.endpoint, commit, place.revision)
        if fault and not place.is_named:
            raise PullError(fault)

    def begin(self, commit: str, files: Mapping[str, str] | None = None) -> None:
        """What comes from now on is of this commit."""
        place = self._place
        self._write(Record(place.endpoint, place.id, commit, False, files or {}))

    def end(self) -> None:
        """All of it is here."""
        assert self._there is not None
        self._write(replace(self._there, is_whole=True))

    def _write(self, record: Record) -> None:
        self._there = record
        self._path.parent.mkdir(parents=True, exist_ok=True)
        aside = self._path.with_name(self._path.name + ".part")
        aside.write_text(record.text(), "utf-8")
        aside.replace(self._path)


def is_installed() -> bool:
    return find_spec("huggingface_hub") is not None


def pull(place: Place, folder: Path, kinds: frozenset[str], *, workers: int = 4) -> Pulled:
    """Download what draws into `folder`, with bars on stderr; what is there already is not fetched again.

    `kinds`: the pipelines' classes that are of use, looked for before anything large comes. Raises PullError.
    """
    import huggingface_hub as hub

    mark = Mark(place, folder)
    place = mark.place()
    try:
        commit = (
            hub.HfApi(endpoint=place.endpoint).model_info(place.id, revision=place.revision).sha
        )
        if commit is None:
            raise PullError(f"{place.endpoint} names no commit for {place.id}")
        mark.check(commit)
        if place.file is not None:
            mark.begin(commit)
            hub.hf_hub_download(
                place.id, place.file, revision=commit, local_dir=folder, endpoint=place.endpoint
            )
            mark.end()
            return Pulled(folder, commit, "")
        kind = _kind_of(place, commit)
        if kind not in kinds:
            raise PullError(f"{place.id} is a {kind}, and none of {', '.join(sorted(kinds))}")
        mark.begin(commit)
        hub.snapshot_download(
            place.id,
            revision=commit,
            local_dir=folder,
            endpoint=place.endpoint,
            allow_patterns=WANTED,
            ignore_patterns=UNWANTED,
            max_workers=workers,
        )
        mark.end()
    except PullError:
        raise
    except Exception as error:  # the library's own, httpx's, the disk's
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:400]
        raise PullError(f"{place.id} at {place.revision}: {reason}") from error
    return Pulled(folder, commit, kind)


def _kind_of(place: Place, commit: str) -> Any:
    """The pipeline's class by its model_index.json, the one file that is fetched to look at."""
    import tempfile

    import huggingface_hub as hub

    with tempfile.TemporaryDirectory() as aside:
        path = hub.hf_hub_download(
            place.id, "model_index.json", revision=commit, local_dir=aside, endpoint=place.endpoint
        )
        index = json.loads(Path(path).read_text("utf-8"))
    return index.get("_class_name") if isinstance(index, dict) else None
