"""A pipeline of diffusers behind a real server: drawn, edited and streamed over HTTP in a process of its own, and refused before the hold."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import LiveServer, clean_environment, cli, start_server, stop_server

pytest.importorskip("torch", reason="the engine extra: make install-engine")
pytest.importorskip("diffusers", reason="the engine extra: make install-engine")

from tests.api.test_local_models import pixels

pytestmark = pytest.mark.slow

CATALOG = """
[backends.turbo]
family = "diffusers_pipeline"
pipeline = "sd_turbo"
checkpoint = "{sd}"
device = "cpu"
dtype = "float32"

[backends.klein]
family = "diffusers_pipeline"
pipeline = "flux2_klein"
checkpoint = "{klein}"
device = "cpu"
dtype = "float32"

[models.house]
like = "pocket"
backend = "turbo"
qualities = {{ standard = "fine", hd = "fine" }}

[models.garden]
like = "qwen-image"
backend = "klein"
size_default = "96x64"
sizes = ["96x64"]
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from tests.engine import pipeline_checkpoints as made

    folder = tmp_path_factory.mktemp("pipelines")
    return {"sd": made.sd(folder / "sd"), "klein": made.flux2_klein(folder / "klein")}


@pytest.fixture(scope="module")
def server(
    folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("served")
    catalog = folder / "catalog.toml"
    catalog.write_text(CATALOG.format(**folders), "utf-8")
    live = start_server(folder / "data", DANQING_CATALOG_FILE=str(catalog))
    yield live
    assert stop_server(live) == 0


def alone(folder: Path, pipeline: str, **fields: Any) -> np.ndarray:
    from danqing.engine.families.diffusers_pipeline import DiffusersPipeline
    from tests.engine.torch_pipelines import draw, job_of

    return draw(DiffusersPipeline.load(folder, pipeline=pipeline), job_of("sd", **fields))[1]


def png(picture: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "PNG")
    return out.getvalue()


def test_openais_route_draws_with_it(server: LiveServer, folders: dict[str, Path]) -> None:
    before, steps = server.balance("operator"), server.metric("danqing_engine_steps_total")
    reply = server.client.post(
        "/v1/images/generations",
        json={"model": "house", "prompt": "red cat", "seed": 11, "size": "96x80", "n": 2},
    )
    assert reply.status_code == 200, reply.text
    assert reply.headers["x-danqing-model"] == "turbo"
    assert before - server.balance("operator") == 2 * 5000
    assert server.metric("danqing_engine_steps_total") - steps == 2 * 4
    for index, image in enumerate(reply.json()["data"]):
        read = image.get("revised_prompt") or "red cat"
        fields = {"prompt": read, "seed": 11 + index, "width": 96, "height": 80}
        expected = alone(folders["sd"], "sd_turbo", steps=4, guidance=0.0, **fields)
        assert np.abs(pixels(server, image["url"]).astype(int) - expected).max() <= 1


def test_a_stream_looks_at_it_step_by_step(server: LiveServer) -> None:
    asked = {
        "model": "house",
        "prompt": "a cat",
        "size": "64x64",
        "stream": True,
        "partial_images": 2,
    }
    kinds = []
    with server.client.stream("POST", "/v1/images/generations", json=asked) as reply:
        assert reply.status_code == 200
        for line in reply.iter_lines():
            if line.startswith("data: ") and line != "data: [DONE]":
                event = json.loads(line.removeprefix("data: "))
                kinds.append(event["type"])
                shown = Image.open(io.BytesIO(base64.b64decode(event["b64_json"])))
                assert shown.size == (64, 64)
    # So few and short steps may be over before the last look is packed.
    assert kinds[:1] == ["image_generation.partial_image"]
    assert kinds in (kinds[:1] * 2 + kinds[-1:], kinds[:1] + kinds[-1:])
    assert kinds[-1] == "image_generation.completed"


def test_an_edit_keeps_what_its_mask_keeps(server: LiveServer) -> None:
    reference = np.random.default_rng(1).integers(0, 256, (64, 96, 3), np.uint8)
    mask = np.full((64, 96, 4), 255, np.uint8)
    mask[20:50, 30:80, 3] = 0  # repainted
    reply = server.client.post(
        "/v1/images/edits",
        data={"model": "house", "prompt": "a cat", "size": "96x64", "strength": "0.9"},
        files={
            "image": ("image.png", png(reference), "image/png"),
            "mask": ("mask.png", png(mask), "image/png"),
        },
    )
    assert reply.status_code == 200, reply.text
    shown = pixels(server, reply.json()["data"][0]["url"])
    kept = mask[:, :, 3] == 255
    np.testing.assert_array_equal(shown[kept], reference[kept])
    assert np.abs(shown[~kept].astype(int) - reference[~kept]).mean() > 4


def dashscope(**parameters: Any) -> dict[str, Any]:
    said = [{"role": "user", "content": [{"text": parameters.pop("text", "a cat")}]}]
    model = parameters.pop("model", "garden")
    extra = {"prompt_extend": False, **parameters}
    return {"model": model, "input": {"messages": said}, "parameters": extra}


def test_dashscopes_route_draws_with_it(server: LiveServer, folders: dict[str, Path]) -> None:
    reply = server.client.post("/v1/images/generations", json=dashscope(seed=5, size="96*64"))
    assert reply.status_code == 200, reply.text
    fields = {"prompt": "a cat", "seed": 5, "width": 96, "height": 64, "steps": 4, "guidance": 1.0}
    expected = alone(folders["klein"], "flux2_klein", **fields)
    shown = pixels(server, reply.json()["data"][0]["url"])
    assert np.abs(shown.astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    ("path", "asked", "words"),
    [
        ("/v1/images/generations", dashscope(negative_prompt="blue"), ["negative_prompt"]),
        (
            "/v1/images/generations",
            {"model": "house", "prompt": "q " * 100, "size": "64x64"},
            ["prompt", "102 tokens", "77"],
        ),
    ],
    ids=["negative prompt", "long prompt"],
)
def test_what_it_has_no_place_for_is_refused_before_the_hold(
    server: LiveServer, path: str, asked: dict[str, Any], words: list[str]
) -> None:
    before = server.balance("operator")
    reply = server.client.post(path, json=asked)
    assert reply.status_code == 400, reply.text
    assert all(word in reply.text for word in words), reply.text
    assert server.balance("operator") == before


def test_models_check_looks_at_it(folders: dict[str, Path], tmp_path: Path) -> None:
    catalog = tmp_path / "catalog.toml"
    catalog.write_text(CATALOG.format(sd=folders["sd"], klein=folders["sd"]), "utf-8")
    done = cli(
        *("models", "check", "--json"),
        check=False,
        env=clean_environment(DANQING_CATALOG_FILE=str(catalog)),
    )
    rows = {row["backend"]: row for row in json.loads(done.stdout)}
    assert done.returncode == 1
    assert rows["turbo"]["loads"] is True
    assert 0 < rows["turbo"]["needs_mib"] < rows["turbo"]["free_mib"]
    assert "holds a StableDiffusionPipeline, not a Flux2KleinPipeline" in rows["klein"]["fault"]
