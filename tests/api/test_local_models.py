"""A model of the torch families behind a real server: a small random checkpoint, drawn in a process of its own on the CPU."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from danqing.catalog import load
from danqing.settings import Settings
from tests.api.test_engine_process import engine_pid, until
from tests.conftest import LiveServer, clean_environment, cli, start_server, stop_server

pytest.importorskip("torch", reason="the engine extra: make install-engine")
pytest.importorskip("diffusers", reason="the engine extra: make install-engine")

pytestmark = pytest.mark.slow

CATALOG = """
[backends.ours]
family = "cogview4"
checkpoint = "{folder}"
device = "cpu"
dtype = "float32"

[backends.ours-qwen]
family = "qwen_image"
checkpoint = "{qwen}"
device = "cpu"
dtype = "float32"

[models.cogview-4-250304]
backend = "ours"

[models.house]
like = "pocket"
backend = "ours"

[models.qwen-image]
backend = "ours-qwen"
size_default = "96x64"
sizes = ["96x64", "99968x512"]
references_max = 0

[models.doubao-seedream-4-0-250828]
backend = "ours"
"""
WAIT_S = 240


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from tests.engine import checkpoints

    return {
        "cogview4": checkpoints.cogview4(tmp_path_factory.mktemp("cogview4") / "checkpoint"),
        "qwen_image": checkpoints.qwen_image(tmp_path_factory.mktemp("qwen") / "checkpoint"),
    }


@pytest.fixture(scope="module")
def server(
    checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("local")
    catalog = folder / "catalog.toml"
    catalog.write_text(
        CATALOG.format(folder=checkpoints["cogview4"], qwen=checkpoints["qwen_image"]), "utf-8"
    )
    live = start_server(folder / "data", DANQING_CATALOG_FILE=str(catalog))
    yield live
    assert stop_server(live) == 0


def pixels(server: LiveServer, url: str) -> np.ndarray:
    data = server.client.get(url).content
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def drawn_alone(kind: str, folder: Path, **fields: Any) -> np.ndarray:
    from tests.engine.torch_families import FAMILIES, make_job

    family = FAMILIES[kind].load(folder)
    job = make_job(**fields)
    state = family.start(job, family.encode([job])[0])
    for _ in range(job.steps):
        family.step([state])
    return family.decode([state])[0]


def test_health_tells_of_each_engine(server: LiveServer) -> None:
    reply = server.client.get("/healthz")
    assert reply.status_code == 200
    engines = reply.json()["engines"]
    assert {"pocket", "ours", "ours-qwen"} <= set(engines)
    assert all(engine["ok"] and engine["alive"] for engine in engines.values())


def test_openais_route_draws_with_it(server: LiveServer, checkpoints: dict[str, Path]) -> None:
    before, steps = server.balance("operator"), server.metric("danqing_engine_steps_total")
    reply = server.client.post(
        "/v1/images/generations",
        json={"model": "house", "prompt": "a red apple", "seed": 11, "size": "96x80"},
    )
    assert reply.status_code == 200, reply.text
    assert reply.headers["x-danqing-model"] == "ours"
    assert before - server.balance("operator") == 5000
    assert server.metric("danqing_engine_steps_total") - steps == 30
    shown = pixels(server, reply.json()["data"][0]["url"])
    read = reply.json()["data"][0].get("revised_prompt") or "a red apple"
    fields = {"prompt": read, "seed": 11, "width": 96, "height": 80}
    alone = drawn_alone("cogview4", checkpoints["cogview4"], steps=30, guidance=3.5, **fields)
    assert np.abs(shown.astype(int) - alone).max() <= 1


def test_without_a_negative_prompt_qwen_image_is_guided_all_the_same(
    server: LiveServer, checkpoints: dict[str, Path]
) -> None:
    reply = server.client.post(
        "/v1/images/generations",
        json={
            "model": "qwen-image",
            "input": {"messages": [{"role": "user", "content": [{"text": "a cat"}]}]},
            "parameters": {"seed": 5, "size": "96*64", "prompt_extend": False},
        },
    )
    assert reply.status_code == 200, reply.text
    shown = pixels(server, reply.json()["data"][0]["url"])
    fields = {"prompt": "a cat", "negative_prompt": " ", "seed": 5, "width": 96, "height": 64}
    alone = drawn_alone("qwen_image", checkpoints["qwen_image"], steps=30, guidance=4.0, **fields)
    assert np.abs(shown.astype(int) - alone).max() <= 1


def test_openais_route_edits_with_it(server: LiveServer) -> None:
    reference = np.random.default_rng(1).integers(0, 256, (64, 96, 3), np.uint8)
    mask = np.full((64, 96, 4), 255, np.uint8)
    mask[20:50, 30:80, 3] = 0  # repainted
    files = {}
    for name, picture in (("image", reference), ("mask", mask)):
        data = io.BytesIO()
        Image.fromarray(picture).save(data, "PNG")
        files[name] = (f"{name}.png", data.getvalue(), "image/png")
    before = server.balance("operator")
    reply = server.client.post(
        "/v1/images/edits",
        data={"model": "house", "prompt": "a cat", "size": "96x64"},
        files=files,
        timeout=WAIT_S,
    )
    assert reply.status_code == 200, reply.text
    assert before - server.balance("operator") == 5000
    shown = pixels(server, reply.json()["data"][0]["url"])
    kept = mask[:, :, 3] == 255
    np.testing.assert_array_equal(shown[kept], reference[kept])
    assert np.abs(shown[~kept].astype(int) - reference[~kept]).mean() > 4


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
def test_a_text_over_the_encoders_limit_is_refused_before_it_is_paid_for(
    field: str, server: LiveServer
) -> None:
    before = server.balance("operator")
    reply = server.client.post(
        "/api/paas/v4/images/generations",
        json={"model": "cogview-4-250304", "size": "512x512", "prompt": "x", field: "马" * 400},
    )
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"] == {
        "code": "1214",
        "message": f"'{field}' is too long: 1202 tokens, at most 1024 are allowed.",
    }
    assert server.balance("operator") == before


def qwen_body(size: str) -> dict[str, Any]:
    return {
        "model": "qwen-image",
        "input": {"messages": [{"role": "user", "content": [{"text": "a cat"}]}]},
        "parameters": {"size": size},
    }


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/images/generations", {"model": "house", "prompt": "x", "size": "1040x512"}),
        ("/v1/images/generations", {"model": "house", "prompt": "x", "size": "512x1040", "n": 2}),
        ("/api/paas/v4/images/generations", {"model": "cogview-4-250304", "prompt": "x", "size": "1040x512"}),
        ("/api/v3/images/generations", {"model": "doubao-seedream-4-0-250828", "prompt": "x", "size": "2K"}),
        ("/v1/images/generations", qwen_body("99968*512")),
        ("/api/v1/services/aigc/multimodal-generation/generation", qwen_body("99968*512")),
    ],
    ids=lambda value: value if isinstance(value, str) else value["model"],
)  # fmt: skip
def test_a_size_that_the_family_cannot_draw_is_refused_before_it_is_paid_for(
    path: str, body: dict[str, Any], server: LiveServer
) -> None:
    """The card takes it, as its provider would; the network that draws here tells no places so far apart (this one 1024 pixels)."""
    before, steps = server.balance("operator"), server.metric("danqing_engine_steps_total")
    reply = server.client.post(path, json=body)
    assert reply.status_code == 400, reply.text
    assert "'size' is too large" in reply.text
    assert "knows positions for" in reply.text
    assert server.balance("operator") == before
    assert server.metric("danqing_engine_steps_total") == steps


@pytest.mark.parametrize("size", ["1024x16", "1000x40", "16x16"])
def test_other_sizes_are_drawn_whatever_their_multiple(
    size: str, checkpoints: dict[str, Path]
) -> None:
    width, height = map(int, size.split("x"))
    fields = {"prompt": "x", "width": width, "height": height, "steps": 1}
    for name in checkpoints:
        assert drawn_alone(name, checkpoints[name], **fields).shape == (height, width, 3)


def test_zhipus_route_draws_with_it_labelled(server: LiveServer, tmp_path: Path) -> None:
    before = server.balance("operator")
    reply = server.client.post(
        "/api/paas/v4/images/generations",
        json={"model": "cogView-4-250304", "prompt": "一只红色的苹果", "size": "512x512"},
    )
    assert reply.status_code == 200, reply.text
    assert before - server.balance("operator") == 5000
    path = tmp_path / "image.png"
    path.write_bytes(server.client.get(reply.json()["data"][0]["url"]).content)
    facts = json.loads(cli("inspect", str(path), "--json").stdout)
    assert facts["metadata"]["Label"] == "1"


def test_a_killed_process_draws_the_image_again(server: LiveServer) -> None:
    def ours() -> dict[str, Any]:
        return server.client.get("/healthz").json()["engines"]["ours"]

    before, steps = server.balance("operator"), ours()["steps_total"]
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(
            server.client.post,
            "/api/paas/v4/images/generations",
            json={"model": "cogview-4-250304", "prompt": "x", "size": "512x512", "quality": "hd"},
            timeout=WAIT_S,
        )
        until(lambda: ours()["steps_total"] > steps and ours()["live"])
        os.kill(engine_pid(server, 0, of=2), signal.SIGKILL)
        reply = asked.result(WAIT_S)
    assert reply.status_code == 200, reply.text
    assert server.client.get(reply.json()["data"][0]["url"]).status_code == 200
    assert before - server.balance("operator") == 10_000
    until(lambda: server.client.get("/healthz").status_code == 200)
    assert ours()["restarts"] == 1


def test_models_check_looks_before_it_loads(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    catalog = tmp_path / "catalog.toml"
    catalog.write_text(
        CATALOG.format(folder=checkpoints["cogview4"], qwen=tmp_path / "none"), "utf-8"
    )
    done = cli(
        *("models", "check", "--json"),
        check=False,
        env=clean_environment(DANQING_CATALOG_FILE=str(catalog)),
    )
    rows = {row["backend"]: row for row in json.loads(done.stdout)}
    assert done.returncode == 1
    assert rows["ours"]["loads"] is True
    assert 0 < rows["ours"]["needs_mib"] < rows["ours"]["free_mib"]
    assert rows["ours-qwen"]["fault"] == f"checkpoint: {tmp_path / 'none'} is no folder"


def start(catalog: Path, folder: Path) -> str:
    """What `danqing serve` says when it refuses to start."""
    done = cli(
        *("serve", "--port", "0", "--data-dir", str(folder / "data")),
        check=False,
        env=clean_environment(DANQING_CATALOG_FILE=str(catalog)),
    )
    assert done.returncode == 1, done.stderr
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("checkpoint", "/nowhere/at/all", "backends.ours.checkpoint: /nowhere/at/all is no folder"),
        ("device", "cuda:9", "backends.ours.device: there is no cuda:9 here"),
        ("revision", "abc1234", "backends.ours.revision: there is no danqing.json that says which"),
    ],
)
def test_what_cannot_run_refuses_to_start_naming_the_field(
    field: str, value: str, message: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    rows = {"family": "cogview4", "checkpoint": str(checkpoints["cogview4"])} | {field: value}
    table = "".join(f"{key} = {json.dumps(value)}\n" for key, value in rows.items())
    catalog = tmp_path / "catalog.toml"
    catalog.write_text(
        f'[backends.ours]\n{table}[models.house]\nlike = "pocket"\nbackend = "ours"\n', "utf-8"
    )
    assert load(Settings(catalog_file=catalog)).families["ours"].family == "cogview4"
    assert message in start(catalog, tmp_path)
