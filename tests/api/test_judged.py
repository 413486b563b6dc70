"""A live server with a moderation API for texts and a classifier for images: refusals, charges, previews, failures.

The null family draws grey of the seed's brightness, and the classifier scores brightness: from 203.5 on an image
has level 1 and is refused, from 153 on level 2.
"""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.api.judge_server import JudgeServer
from tests.api.sse import all_events
from tests.conftest import LiveServer, cli, start_server, stop_server
from tests.tiny_onnx import SHEET, write_classifier

FINE, MILD, BAD = 20, 160, 220
JUDGE = SHEET.replace("[0.95, 0.8, 0.6]", "[0.95, 0.798, 0.6]")
OPENAI = "/v1/images/generations"
ZHIPU = "/api/paas/v4/images/generations"
ARK = "/api/v3/images/generations"
SYNTHESIS = "/api/v1/services/aigc/text2image/image-synthesis"
DASHSCOPE = "/api/v1/services/aigc/multimodal-generation/generation"
KEY = "sk-judge-key"


@pytest.fixture(scope="module")
def judge() -> Iterator[JudgeServer]:
    server = JudgeServer()
    yield server
    server.close()


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, judge: JudgeServer) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("judged")
    server = start_server(
        folder / "data",
        module="tests.null_server",
        DANQING_MODERATION__API__BASE_URL=judge.url,
        DANQING_MODERATION__API__KEY=KEY,
        DANQING_MODERATION__API__TIMEOUT_S="3",
        DANQING_MODERATION__IMAGES="classifier",
        DANQING_MODERATION__CLASSIFIER=str(write_classifier(folder, JUDGE)),
        DANQING_EXTENSION__BASE_URL=judge.url,
        DANQING_EXTENSION__KEY=KEY,
        DANQING_EXTENSION__TIMEOUT_S="3",
        DANQING_OPERATOR_CHARACTERS="100000000",
        NULL_STEP_S="0.02",
    )
    yield server
    assert KEY not in json.dumps(server.lines)
    assert stop_server(server) == 0


def openai(seed: int = FINE, prompt: str = "a cat", **more: Any) -> dict[str, Any]:
    return {"model": "dall-e-2", "prompt": prompt, "size": "256x256", "seed": seed} | more


def white(side: int = 512) -> str:
    out = io.BytesIO()
    Image.new("RGB", (side, side), "white").save(out, "PNG")
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


def last_refusal(live: LiveServer) -> dict[str, Any]:
    rows = live.client.get("/admin/v1/refusals?limit=1000").json()["data"]
    return rows[-1]


def blobs(live: LiveServer) -> set[Path]:
    return {path for path in (live.data_dir / "images").rglob("*") if path.is_file()}


def test_the_api_judges_texts(live: LiveServer, judge: JudgeServer) -> None:
    before = live.balance("operator")
    for body in (
        openai(prompt="apibad"),
        openai(prompt="a cat", user="u-9") | {"prompt": "APIbad apibad"},
    ):
        answer = live.client.post(OPENAI, json=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "content_policy_violation"
    row = last_refusal(live)
    assert (row["source"], row["category"], row["level"]) == ("api", "violence", 0)
    assert (row["subject"], row["end_user"]) == ("text", "u-9")
    zhipu = {"model": "cogview-4", "prompt": "apimild", "seed": FINE}
    levels = live.client.post(ZHIPU, json=zhipu).json()["content_filter"]
    assert {"role": "user", "level": 2} in levels
    assert {"role": "assistant", "level": 3} in levels
    assert judge.authorizations == {f"Bearer {KEY}"}
    assert live.balance("operator") == before - 5_000


@pytest.mark.parametrize("word", ["apifail", "apislow"])
def test_without_a_verdict_nothing_is_drawn(live: LiveServer, word: str) -> None:
    before = live.balance("operator")
    answer = live.client.post(OPENAI, json=openai(prompt=f"a secret {word}"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "server_is_overloaded")
    assert "retry-after" in answer.headers
    assert live.balance("operator") == before
    why = "timeout" if word == "apislow" else "status 500"
    lines = live.logged("moderation_failed", lambda lines: why in [line["why"] for line in lines])
    assert {line["outcome"] for line in lines} == {"failed_closed"}
    assert "secret" not in json.dumps(live.lines)


def test_a_refused_image_is_left_out_and_returned(live: LiveServer) -> None:
    """OpenAI's answer has no place for a failed image: as for any that fails."""
    before, kept = live.balance("operator"), blobs(live)
    answer = live.client.post(OPENAI, json=openai(203, n=2))
    assert answer.status_code == 200
    assert len(answer.json()["data"]) == 1
    charged = int(answer.headers["x-danqing-charged"])
    assert "moderate;dur=" in answer.headers["x-danqing-timing"]
    assert live.balance("operator") == before - charged == before - 5_000
    assert len(blobs(live) - kept) == 1  # what was refused is stored nowhere
    row = last_refusal(live)
    assert (row["subject"], row["source"], row["category"]) == ("image", "classifier", "red")
    assert (row["role"], row["level"]) == ("assistant", 1)
    assert row["task_id"] == answer.headers["x-danqing-task"]


def ark(seed: int, n: int = 1) -> dict[str, Any]:
    body = {"model": "doubao-seedream-4-0-250828", "prompt": "a cat", "size": "1K", "seed": seed}
    several = {
        "sequential_image_generation": "auto",
        "sequential_image_generation_options": {"max_images": n},
    }
    return body | (several if n > 1 else {})


def qwen(seed: int, n: int = 1, model: str = "qwen-image-2.0") -> dict[str, Any]:
    content = {"messages": [{"role": "user", "content": [{"text": "a cat"}]}]}
    size = "512*512" if model == "qwen-image-2.0" else "1328*1328"
    return {"model": model, "input": content, "parameters": {"seed": seed, "n": n, "size": size}}


def test_ark_says_it_of_the_image(live: LiveServer) -> None:
    data = live.client.post(ARK, json=ark(203, 2)).json()["data"]
    assert "url" in data[0]
    assert data[1]["error"]["code"] == "OutputImageSensitiveContentDetected"


def test_dashscopes_task_says_it_of_the_image(live: LiveServer) -> None:
    body = {
        "model": "wan2.2-t2i-flash",
        "input": {"prompt": "a cat"},
        "parameters": {"seed": 203, "n": 2, "size": "512*512"},
    }
    begun = live.client.post(SYNTHESIS, json=body, headers={"x-dashscope-async": "enable"}).json()
    deadline = time.monotonic() + 60
    while True:
        output = live.client.get(f"/api/v1/tasks/{begun['output']['task_id']}").json()["output"]
        if output["task_status"] not in ("PENDING", "RUNNING"):
            break
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert output["task_status"] == "SUCCEEDED"
    assert "url" in output["results"][0]
    assert output["results"][1]["code"] == "DataInspectionFailed"


WHOLE = {
    "openai": (OPENAI, openai(BAD), 400, "content_policy_violation"),
    "chat": (
        "/v1/chat/completions",
        {"model": "dall-e-2", "messages": [{"role": "user", "content": "a cat"}], "seed": BAD},
        400,
        "content_policy_violation",
    ),
    "draw": (
        "/v1/chat/completions",
        {"model": "draw", "prompt": "a cat", "seed": BAD},
        200,
        "content_policy_violation",
    ),
    "zhipu": (ZHIPU, {"model": "cogview-4", "prompt": "a cat", "seed": BAD}, 400, "1301"),
    "ark": (ARK, ark(BAD), 400, "OutputImageSensitiveContentDetected"),
    "dashscope": (DASHSCOPE, qwen(BAD), 400, "DataInspectionFailed"),
    "jimeng": (
        OPENAI,
        {"model": "jimeng-4.0", "prompt": "a cat", "size": "1:1", "seed": BAD},
        400,
        "content_policy_violation",
    ),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_call_without_an_image_left_is_refused_whole(live: LiveServer, name: str) -> None:
    path, body, status, code = WHOLE[name]
    before, kept = live.balance("operator"), blobs(live)
    answer = live.client.post(path, json=body)
    assert answer.status_code == status, answer.text
    error = answer.json().get("error", answer.json())
    assert error["code"] == code
    if name == "zhipu":
        assert answer.json()["contentFilter"] == [{"role": "assistant", "level": 1}]
    # draw never refunds what was drawn (its card's `refund`); for all others nothing was delivered.
    assert live.balance("operator") == before - (5_000 if name == "draw" else 0)
    assert blobs(live) == kept


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("/v1/images/edits", {"model": "gpt-image-1", "prompt": "a hat",
                              "images": [{"image_url": white()}]}, "moderation_blocked"),
        (ARK, ark(FINE) | {"image": white()}, "InputImageSensitiveContentDetected"),
        (DASHSCOPE, {"model": "qwen-image-2.0", "parameters": {}, "input": {"messages": [
            {"role": "user", "content": [{"image": white()}, {"text": "a hat"}]}]}},
         "DataInspectionFailed"),
    ],
)  # fmt: skip
def test_a_clients_picture_is_judged_for_nothing(
    live: LiveServer, path: str, body: dict[str, Any], code: str
) -> None:
    before, kept = live.balance("operator"), blobs(live)
    answer = live.client.post(path, json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json().get("error", answer.json())["code"] == code
    assert live.balance("operator") == before
    assert blobs(live) == kept
    row = last_refusal(live)
    assert (row["role"], row["subject"], row["task_id"]) == ("user", "image", None)


@pytest.mark.parametrize(
    ("ground", "opacity", "is_refused"),
    [
        ("black", 0, True),  # white, where it lies on white
        ("white", 0, True),  # white, for whoever takes its opacity away
        ((100, 100, 100), 235, False),
        ((100, 100, 100), 40, True),
    ],
)
def test_a_clients_transparent_picture_is_judged_on_every_ground(
    live: LiveServer, ground: Any, opacity: int, is_refused: bool
) -> None:
    out, image = io.BytesIO(), Image.new("RGB", (512, 512), ground)
    image.putalpha(opacity)
    image.save(out, "PNG")
    picture = f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"
    body = {"model": "gpt-image-1", "prompt": "a hat", "images": [{"image_url": picture}]}
    answer = live.client.post("/v1/images/edits", json=body | {"seed": FINE})
    assert answer.status_code == (400 if is_refused else 200), answer.text
    if is_refused:
        assert answer.json()["error"]["code"] == "moderation_blocked"


@pytest.mark.parametrize(
    ("seed", "transparent", "is_refused"),
    # The null family's opacity is its grey: a dark one is nearly white on white.
    [(FINE, False, False), (FINE, True, True), (MILD, True, False), (BAD, True, True)],
)
def test_a_transparent_drawing_is_judged_on_every_ground(
    live: LiveServer, seed: int, transparent: bool, is_refused: bool
) -> None:
    body = openai(seed) | {"model": "gpt-image-1", "size": "1024x1024", "output_format": "webp"}
    before, kept = live.balance("operator"), blobs(live)
    body |= {"background": "transparent"} if transparent else {}
    answer = live.client.post(OPENAI, json=body)
    assert answer.status_code == (400 if is_refused else 200), answer.text
    if is_refused:
        assert answer.json()["error"]["code"] == "moderation_blocked"
        assert (live.balance("operator"), blobs(live)) == (before, kept)
        assert last_refusal(live)["subject"] == "image"
    else:
        data = base64.b64decode(answer.json()["data"][0]["b64_json"])
        assert Image.open(io.BytesIO(data)).mode == ("RGBA" if transparent else "RGB")


def brightness(b64: str) -> int:
    image = Image.open(io.BytesIO(base64.b64decode(b64))).convert("RGB")
    return image.getpixel((image.width // 2, image.height // 3))[0]


def test_no_refused_preview_leaves(live: LiveServer) -> None:
    body = {"model": "gpt-image-1", "prompt": "a cat", "stream": True, "partial_images": 3}

    def looks(seed: int) -> list[int]:
        sent = all_events(live.client.post(OPENAI, json=body | {"seed": seed}))
        assert sent[-1].name == "image_generation.completed"
        return [brightness(one.data["b64_json"]) for one in sent[:-1]]

    assert len(looks(FINE)) == 3
    bright = looks(200)  # each look is brighter than the image itself will be
    assert len(bright) < 3
    assert all(value < 204 for value in bright)


def dalle(prompt: str) -> dict[str, Any]:
    return {"model": "dall-e-3", "prompt": prompt, "seed": FINE, "style": "natural"}


def test_a_chat_model_extends_prompts(live: LiveServer, judge: JudgeServer) -> None:
    answer = live.client.post(OPENAI, json=dalle("a brown otter"))
    revised = answer.json()["data"][0]["revised_prompt"]
    assert revised == "a brown otter, in soft morning light"
    assert answer.headers["x-danqing-extension"] == "model"
    judged = [body["input"] for path, body in judge.requests if path == "/v1/moderations"]
    assert judged[-1] == [revised]  # what came of it is moderated again
    native = live.client.post(DASHSCOPE, json=qwen(FINE)).json()
    assert native["output"]["actual_prompt"] == "a cat, in soft morning light"


def test_the_original_is_drawn_where_extension_fails(live: LiveServer, judge: JudgeServer) -> None:
    ways = {
        "original; status 500": lambda _: (500, {}),
        "original; another language": lambda _: "一只水獭",
        "original; too long": lambda _: "an otter" + " a" * 300,  # the null family reads 300 words
        "original; refused": lambda _: "an otter, apibad",
        "original; timeout": lambda _: time.sleep(9) or "an otter",
    }
    kept = judge.chat
    try:
        for how, chat in ways.items():
            judge.chat = chat
            answer = live.client.post(OPENAI, json=dalle("a secretive otter"))
            assert answer.status_code == 200, answer.text
            assert answer.headers["x-danqing-extension"] == how
            assert answer.json()["data"][0]["revised_prompt"] == "a secretive otter"
            task = live.client.get(f"/v1/images/tasks/{answer.headers['x-danqing-task']}").json()
            assert (task["extension"], task["revised_prompt"]) == (how, "a secretive otter")
            if how != "original; timeout":  # one wait is enough
                body = ark(FINE) | {"prompt": "a secretive otter", "stream": True}
                body |= {"optimize_prompt_options": {"mode": "standard"}}
                streamed = live.client.post(ARK, json=body)
                assert streamed.headers["content-type"].startswith("text/event-stream")
                assert streamed.headers["x-danqing-extension"] == how
        judge.chat = ways["original; status 500"]
        headers = {"x-dashscope-async": "enable"}
        asked = {"model": "wan2.2-t2i-flash", "input": {"prompt": "a secretive otter"}}
        asked["parameters"] = {"size": "512*512", "seed": FINE}
        begun = live.client.post(SYNTHESIS, json=asked, headers=headers).json()
        path = f"/api/v1/tasks/{begun['output']['task_id']}"
        deadline = time.monotonic() + 60
        while (shown := live.client.get(path)).json()["output"]["task_status"] != "SUCCEEDED":
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert shown.headers["x-danqing-extension"] == "original; status 500"
        assert live.client.get("/v1/images/tasks/" + path.rpartition("/")[2]).json()["extension"]
    finally:
        judge.chat = kept
    assert "secretive" not in json.dumps(live.lines)
    said = {"timeout", "refused"}
    live.logged("prompt_not_extended", lambda lines: said <= {line["reason"] for line in lines})


def test_a_bad_classifier_refuses_to_start(tmp_path: Path) -> None:
    path = write_classifier(tmp_path, JUDGE.replace("red = ", "pink = "))
    (tmp_path / "c.toml").write_text(
        f'[moderation]\nimages = "classifier"\nclassifier = "{path}"\n'
    )
    where = ("--config", str(tmp_path / "c.toml"), "--port", "0")
    done = cli("serve", "--data-dir", str(tmp_path / "data"), *where, check=False)
    assert done.returncode == 1
    assert "moderation.classifier: " in done.stderr
    assert "levels.pink" in done.stderr
