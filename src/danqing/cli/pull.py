"""`danqing models pull`: a checkpoint from a model hub into DATA_DIR/models. Knows the families' names and the hub, no server."""

from __future__ import annotations

import os

from danqing.app import check_checkpoint, pipelines
from danqing.backends import LIGHTNING_SHIFT, lightning_steps
from danqing.cli.progress import FileBars
from danqing.net import hub, modelscope
from danqing.settings import Settings


def run(settings: Settings, model: str, revision: str | None) -> list[str]:
    """Fetch and check it; returns what to tell. Raises PullError, LoadError, OSError."""
    place = hub.place_of(model, revision, os.environ.get("HF_ENDPOINT") or hub.HUB)
    if not place.is_modelscope and not hub.is_installed():
        raise hub.PullError(
            "huggingface_hub is not installed here: pip install 'danqing[engine]', or put a folder there yourself"
        )
    families = pipelines()
    folder = settings.data_dir / "models" / place.id
    folder.mkdir(parents=True, exist_ok=True)
    if place.is_modelscope:
        with FileBars() as bars:
            pulled = modelscope.pull(place, folder, frozenset(families), bars.on_bytes)
    else:
        pulled = hub.pull(place, folder, frozenset(families))
    if place.file is not None:
        return _lora(place, pulled)
    family, pipeline = _likely(families[pulled.kind], place.id)
    check_checkpoint(family, folder, pipeline)
    lines = [
        f"{place.id} at {pulled.commit}",
        f"in {folder.absolute()}",
        "",
        "# for your catalog_file:",
        f"[backends.{place.id.partition('/')[2].lower().replace('.', '-')}]",
        f'family = "{family}"',
        f'checkpoint = "{place.id}"',
    ]
    if pipeline is not None:
        others = [str(name) for _, name in families[pulled.kind] if name != pipeline]
        note = f" # or {', '.join(others)}: by its page" if others else ""
        lines.append(f'pipeline = "{pipeline}"{note}')
    return [*lines, f'revision = "{pulled.commit}"']


def _lora(place: hub.Place, pulled: hub.Pulled) -> list[str]:
    """What to tell of one file. A known one comes under the name that its preset has, with its schedule's shift."""
    assert place.file is not None
    path = pulled.folder / place.file
    name = path.stem.lower().replace(".", "-").replace("_", "-").replace(" ", "-")
    row = f'file = "{place.id}/{place.file}"'
    after = [
        "# with its `shift` if its page names one; a preset draws with it by this name (`lora`)"
    ]
    if steps := lightning_steps(name):
        name = f"lightning-{steps}"
        row += f", shift = {LIGHTNING_SHIFT}"
        after = [
            f'# a quality of a model draws with it by its preset: qualities = {{ standard = "{name}" }}'
        ]
    return [
        f"{place.id}/{place.file} at {pulled.commit}",
        f"in {path.absolute()}",
        "",
        "# for your catalog_file, in the backend that it was trained for:",
        "[backends.BACKEND.loras]",
        f"{name} = {{ {row} }}",
        *after,
    ]


def _likely(ways: list[tuple[str, str | None]], model: str) -> tuple[str, str | None]:
    """Of the ways to draw with a class of pipeline, the one of which most words are in the model's name."""
    said = model.lower()
    return max(ways, key=lambda way: sum(word in said for word in (way[1] or "").split("_")[1:]))
