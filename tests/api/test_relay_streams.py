"""Looks at unfinished images through two servers of ours, and through a provider whose stream breaks. Both ledgers are asserted."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
from PIL import Image

from danqing.storage import metadata
from tests.api.sse import all_events, events
from tests.api.test_relays import Caller, OddProvider, start_relaying
from tests.api.test_streams import until_over
from tests.conftest import LiveServer, start_server, stop_server
from tests.net.servers import Received
from tests.providers.test_relay_streams import CUT, STAYS, event, look, streaming

PRICE = 5000
PATH = "/v1/images/generations"
BODY = {"prompt": "a cat", "stream": True, "partial_images": 2}

CATALOG = """
[backends.far]
dialect = "openai"
base_url = "{second}/v1"
key_file = "{key}"
extras = ["stream", "output_format"]

[backends.broken]
dialect = "openai"
base_url = "{odd}/v1"
extras = ["stream"]

[backends.still]
dialect = "openai"
base_url = "{odd}/v1"
extras = ["stream"]
idle_timeout_s = 1

[models.far]
like = "gpt-image-1"
backend = "far"
backend_model = "gpt-image-1"
label_visible = true

[models.far-void]
like = "far"
backend = "far"
backend_model = "gpt-image-1"
cancel = "void"

[models.broken]
like = "gpt-image-1"
backend = "broken"

[models.still]
like = "gpt-image-1"
backend = "still"
"""
REFUSED = {"message": "no", "type": "x", "code": "moderation_blocked"}


class Broken(OddProvider):
    """Streams that come to nothing."""

    async def _handle(self, got: Received, writer: asyncio.StreamWriter) -> None:
        prompt = json.loads(got.body)["prompt"]
        self.asked[prompt] += 1
        answers = {
            "cut": streaming(look(0, 1), end=CUT),
            "lies": streaming(look(0, 1), b"data: {]\n\n"),
            "no end": streaming(look(0, 1)),
            "stands still": streaming(look(0, 1), end=STAYS),
            "refused late": streaming(look(0, 1), event("error", error=REFUSED)),
            "refused early": streaming(event("error", error=REFUSED)),
            "nothing": streaming(),
        }
        await answers[prompt](got, writer)


@pytest.fixture(scope="module")
def broken() -> Iterator[Broken]:
    provider = Broken()
    provider.start()
    yield provider
    provider.stop()


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("far") / "data"
    live = start_server(folder, module="tests.null_server", NULL_STEP_S="0.2")
    yield live
    assert stop_server(live) == 0


@pytest.fixture(scope="module")
def near(
    tmp_path_factory: pytest.TempPathFactory, broken: Broken, far: LiveServer
) -> Iterator[tuple[LiveServer, Path]]:
    folder = tmp_path_factory.mktemp("near")
    live = start_relaying(folder, broken, far, CATALOG)
    yield live, folder / "data"
    assert stop_server(live) == 0


def picture_of(sent: dict[str, Any]) -> tuple[np.ndarray, bytes]:
    data = base64.b64decode(sent["b64_json"])
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == sent["output_format"].upper()
        return np.asarray(image.convert("RGB")), data


def test_looks_pass_through_two_servers(near: tuple[LiveServer, Path], far: LiveServer) -> None:
    server, folder = near
    caller, before = Caller(server, "anne"), far.balance("operator")
    answer = caller.http.post(PATH, json=BODY | {"model": "far", "output_format": "webp"})
    sent = all_events(answer)
    assert [one.name.partition(".")[2] for one in sent] == [
        *("partial_image", "partial_image", "completed")
    ]
    assert [one.data["partial_image_index"] for one in sent[:2]] == [0, 1]
    seen = [picture_of(one.data) for one in sent]
    assert [pixels.shape for pixels, _ in seen] == [(512, 512, 3), (512, 512, 3), (1024, 1024, 3)]
    for pixels, data in seen:
        corner = pixels[-len(pixels) // 8 :, -len(pixels) // 3 :]
        assert len(np.unique(corner)) > 10, "no label"
        assert metadata.read(data).xmp is not None
    # The null family's looks become brighter with each step.
    shades = [int(pixels[0, 0].mean()) for pixels, _ in seen[:2]]
    assert shades[0] != shades[1]
    assert (caller.paid(), before - far.balance("operator")) == (PRICE, PRICE)
    task = until_over(server, answer.headers["x-danqing-task"], caller_token(caller))
    assert len(task["data"]) == 1
    stored = [path for path in folder.rglob("*.webp") if task["id"] in str(path)]
    assert len(stored) == 1, "looks are not kept"


def caller_token(caller: Caller) -> str:
    return caller.http.headers["authorization"].removeprefix("Bearer ")


def test_an_edit_shows_looks_to_the_official_client(
    near: tuple[LiveServer, Path], far: LiveServer
) -> None:
    caller = Caller(near[0], "bert")
    client = openai.OpenAI(
        api_key=caller_token(caller), base_url=f"{near[0].url}/v1", max_retries=0
    )
    out = io.BytesIO()
    Image.new("RGB", (256, 256), "teal").save(out, "PNG")
    stream = client.images.edit(
        model="far",
        prompt="a cat",
        image=("cat.png", out.getvalue()),
        stream=True,
        partial_images=1,
    )
    assert [one.type for one in stream] == ["image_edit.partial_image", "image_edit.completed"]
    assert caller.paid() == PRICE


def test_who_leaves_pays_for_what_was_shown(near: tuple[LiveServer, Path], far: LiveServer) -> None:
    """The card says `cancel = "void"`: but an image of which a look has left is charged, here and there."""
    server = near[0]
    caller, before = Caller(server, "leaver"), far.balance("operator")
    with caller.http.stream("POST", PATH, json=BODY | {"model": "far-void"}) as answer:
        task_id = answer.headers["x-danqing-task"]
        assert next(events(answer.iter_lines())).name == "image_generation.partial_image"
    task = until_over(server, task_id, caller_token(caller))
    assert (task["status"], task["data"]) == ("cancelled", [])
    assert (task["charged"], caller.paid()) == (PRICE, PRICE)
    give_up_s = time.monotonic() + 60
    while not (told := [line for line in far.lines if line["event"] == "task_cancelled"]):
        assert time.monotonic() < give_up_s
        time.sleep(0.05)
    assert told[0]["charged"] == before - far.balance("operator") == PRICE


@pytest.mark.parametrize(
    ("prompt", "code"),
    [
        *((name, "provider_failed") for name in ("cut", "lies", "no end", "stands still")),
        ("refused late", "moderation_blocked"),
    ],
)
def test_a_stream_that_breaks_ends_in_an_error_and_costs_nothing(
    near: tuple[LiveServer, Path], broken: Broken, prompt: str, code: str
) -> None:
    caller = Caller(near[0], f"broken-{prompt.replace(' ', '-')}")
    model = "still" if prompt == "stands still" else "broken"
    sent = all_events(caller.http.post(PATH, json=BODY | {"model": model, "prompt": prompt}))
    # What follows at once may come before the look is labelled.
    looks = [one.name for one in sent[:-1]]
    assert looks in ([], ["image_generation.partial_image"])
    assert looks or prompt != "stands still"
    assert (sent[-1].name, sent[-1].data["error"]["code"]) == ("error", code)
    assert (broken.asked[prompt], caller.paid()) == (1, 0)


@pytest.mark.parametrize(
    ("prompt", "status", "code"),
    [("refused early", 400, "moderation_blocked"), ("nothing", 502, "provider_failed")],
)
def test_what_fails_before_a_look_is_a_plain_error(
    near: tuple[LiveServer, Path], prompt: str, status: int, code: str
) -> None:
    caller = Caller(near[0], f"plain-{prompt.replace(' ', '-')}")
    answer: httpx2.Response = caller.http.post(
        PATH, json=BODY | {"model": "broken", "prompt": prompt}
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert caller.paid() == 0
