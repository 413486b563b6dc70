"""Small random checkpoints, made once for the tests of the torch families that need them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Family -> its checkpoint. One thread: in tiny networks more only wait for each other."""
    import torch

    from tests.engine import checkpoints

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield {
        "cogview4": checkpoints.cogview4(tmp_path_factory.mktemp("cogview4") / "checkpoint"),
        "qwen_image": checkpoints.qwen_image(tmp_path_factory.mktemp("qwen") / "checkpoint"),
    }
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def families(folders: dict[str, Path]) -> dict[str, Any]:
    """Family -> it, loaded on the CPU in float32."""
    from tests.engine.torch_families import FAMILIES

    return {name: FAMILIES[name].load(folders[name]) for name in FAMILIES}


@pytest.fixture(scope="session")
def pipelines(folders: dict[str, Path]) -> dict[str, Any]:
    """Family -> diffusers' pipeline of the same checkpoint."""
    from tests.engine.torch_families import PIPELINES

    found = {name: PIPELINES[name].from_pretrained(folders[name]) for name in PIPELINES}
    for pipeline in found.values():
        pipeline.set_progress_bar_config(disable=True)
    return found


@pytest.fixture(scope="session")
def pipeline_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """A kind of pipeline -> its checkpoint."""
    import torch

    from tests.engine.pipeline_checkpoints import MAKERS

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("pipelines")
    yield {kind: make(folder / kind) for kind, make in MAKERS.items()}
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def pipeline_families(pipeline_folders: dict[str, Path]) -> dict[str, Any]:
    """A kind of pipeline -> the family over its checkpoint, on the CPU in float32."""
    from danqing.engine.families.diffusers_pipeline import DiffusersPipeline

    return {
        kind: DiffusersPipeline.load(path, pipeline=kind) for kind, path in pipeline_folders.items()
    }
