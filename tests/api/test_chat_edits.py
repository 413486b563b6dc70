"""Editing in a chat, with the real model: pictures as parts, our own links, follow-ups, streams."""

from __future__ import annotations

import base64
import io
import re

import httpx2
import numpy as np
import openai
import pytest
from PIL import Image

from tests.api.sse import all_events
from tests.conftest import LiveServer

PATH = "/v1/chat/completions"
MARKDOWN = re.compile(r"!\[image\]\((.*?)\)")
MODEL = "gpt-image-1"


@pytest.fixture(scope="module")
def drawn(server: LiveServer) -> str:
    """The link of a picture that a chat has drawn: a wide one."""
    answer = ask(server, [{"role": "user", "content": "a red cat"}], size="1536x1024", seed=5)
    return MARKDOWN.findall(answer.json()["choices"][0]["message"]["content"])[0]


def ask(server: LiveServer, messages: list[dict], **fields) -> httpx2.Response:
    answer = server.client.post(PATH, json={"model": MODEL, "messages": messages} | fields)
    assert answer.status_code == 200, answer.text
    return answer


def shown(answer: httpx2.Response) -> Image.Image:
    (url,) = MARKDOWN.findall(answer.json()["choices"][0]["message"]["content"])
    return fetched(url)


def fetched(url: str) -> Image.Image:
    if url.startswith("data:"):
        return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    return Image.open(io.BytesIO(httpx2.get(url).content))


def alike(one: Image.Image, other: Image.Image) -> float:
    """Correlation of two pictures of the same size, small and in grey."""
    small = [
        np.asarray(image.convert("L").resize((48, 32)), float).ravel() for image in (one, other)
    ]
    return float(np.corrcoef(*small)[0, 1])


def part(url: str) -> dict:
    return {"type": "image_url", "image_url": {"url": url, "detail": "auto"}}


def small_picture(url: str) -> str:
    buffer = io.BytesIO()
    fetched(url).convert("RGB").resize((384, 256)).save(buffer, "JPEG")
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.parametrize("kind", ["link", "data"])
def test_a_picture_in_the_message_is_edited(server: LiveServer, drawn: str, kind: str) -> None:
    """By our own signed link (which is of a loopback address) and as bytes; in the picture's shape."""
    url = drawn if kind == "link" else small_picture(drawn)
    words = {"type": "text", "text": "make it blue"}
    answer = ask(server, [{"role": "user", "content": [words, part(url)]}], seed=6)
    edited = shown(answer)
    assert edited.size == (1536, 1024)
    fresh = shown(
        ask(server, [{"role": "user", "content": "make it blue"}], size="1536x1024", seed=6)
    )
    assert alike(edited, fetched(drawn)) > alike(fresh, fetched(drawn)) + 0.1


def test_a_follow_up_where_asked(server: LiveServer, drawn: str) -> None:
    turns = [
        {"role": "user", "content": "a red cat"},
        {"role": "assistant", "content": f"![image]({drawn})"},
        {"role": "user", "content": "make it blue"},
    ]
    edited = ask(server, turns, seed=6, edit_last_image=True)
    assert shown(edited).size == (1536, 1024)
    fresh = ask(server, turns, seed=6)
    assert shown(fresh).size == (1024, 1024)
    both = [shown(answer).resize((1024, 1024)) for answer in (edited, fresh)]
    before = fetched(drawn).resize((1024, 1024))
    assert alike(both[0], before) > alike(both[1], before)


def test_a_picture_without_words_is_varied(server: LiveServer, drawn: str) -> None:
    answer = ask(server, [{"role": "user", "content": [part(drawn)]}], seed=6)
    varied = shown(answer)
    assert varied.size == (1536, 1024)
    assert alike(varied, fetched(drawn)) > 0.5


def test_an_edit_streams(server: LiveServer, drawn: str) -> None:
    words = {"type": "text", "text": "make it blue"}
    client = openai.OpenAI(api_key=server.token, base_url=f"{server.url}/v1", max_retries=0)
    chunks = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": [words, part(drawn)]}],
        stream=True,
        extra_body={"response_format": "b64_json"},
    )
    content = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    (url,) = MARKDOWN.findall(content)
    assert fetched(url).size == (1536, 1024)


@pytest.mark.parametrize("stream", [False, True])
def test_a_picture_that_is_none(server: LiveServer, stream: bool) -> None:
    """Refused by its path, plainly, and for nothing, though it was to be a stream."""
    before = server.balance("operator")
    text = base64.b64encode(b"GIF89a no picture").decode()
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": [part(f"data:image/png;base64,{text}")]}],
        "stream": stream,
    }
    answer = server.client.post(PATH, json=body)
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/json")
    assert answer.json()["error"]["code"] == "invalid_image_file"
    assert answer.json()["error"]["param"] == "messages[0].content[0].image_url.url"
    inward = body | {"messages": [{"role": "user", "content": [part(f"{server.url}/healthz")]}]}
    answer = server.client.post(PATH, json=inward)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_image_file")
    assert server.balance("operator") == before


def test_a_stream_of_edits_is_charged_as_edits(server: LiveServer, drawn: str) -> None:
    words = {"type": "text", "text": "a hat"}
    answer = ask(server, [{"role": "user", "content": [words, part(drawn)]}], stream=True)
    names = [event.data for event in all_events(answer)]
    assert names[-1] == "[DONE]"
    task = server.client.get(f"/v1/images/tasks/{answer.headers['x-danqing-task']}").json()
    assert (task["status"], task["charged"]) == ("succeeded", 5_000)
