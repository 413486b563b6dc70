"""Bad requests in each dialect: a clear error in its own shape that names the field, and not one character charged."""

from __future__ import annotations

import json
import socket

import pytest

from tests.conftest import LiveServer

OPENAI, DRAW, ZHIPU = (
    "/v1/images/generations",
    "/v1/chat/completions",
    "/api/paas/v4/images/generations",
)
QWEN_INPUT = {"messages": [{"role": "user", "content": [{"text": "猫"}]}]}
ONE = "n=1"  # the one error whose shape the wire fixes without a field
LONG = "长" * 100_000

# path, body, the field the error names
CASES: list[tuple[str, dict, str]] = [
    (OPENAI, {}, "prompt"),
    (OPENAI, {"prompt": None}, "prompt"),
    (OPENAI, {"prompt": ""}, "prompt"),
    (OPENAI, {"prompt": "  \n"}, "prompt"),
    (OPENAI, {"prompt": "\u200b\u200b"}, "prompt"),
    (OPENAI, {"prompt": "\u2800\u3164\ufeff"}, "prompt"),
    (OPENAI, {"prompt": 5}, "prompt"),
    (OPENAI, {"prompt": ["a"]}, "prompt"),
    (OPENAI, {"prompt": LONG}, "prompt"),
    (OPENAI, {"prompt": "x", "model": "no-such-model"}, "model"),
    (OPENAI, {"prompt": "x", "model": 5}, "model"),
    (OPENAI, {"prompt": "x", "n": 0}, "n"),
    (OPENAI, {"prompt": "x", "n": 11}, "n"),
    (OPENAI, {"prompt": "x", "n": -1}, "n"),
    (OPENAI, {"prompt": "x", "n": "two"}, "n"),
    (OPENAI, {"prompt": "x", "n": 1.5}, "n"),
    (OPENAI, {"prompt": "x", "n": True}, "n"),
    (OPENAI, {"prompt": "x", "n": 10**30}, "n"),
    (OPENAI, {"prompt": "x", "size": "big"}, "size"),
    (OPENAI, {"prompt": "x", "size": "1000x1000"}, "size"),
    (OPENAI, {"prompt": "x", "size": "10000x10000"}, "size"),
    (OPENAI, {"prompt": "x", "size": "0x0"}, "size"),
    (OPENAI, {"prompt": "x", "size": "1024"}, "size"),
    (OPENAI, {"prompt": "x", "size": 1024}, "size"),
    (OPENAI, {"prompt": "x", "size": "-1024x1024"}, "size"),
    (OPENAI, {"prompt": "x", "size": "1024x1024; DROP TABLE"}, "size"),
    (OPENAI, {"prompt": "x", "quality": "ultra"}, "quality"),
    (OPENAI, {"prompt": "x", "style": "cubist"}, "style"),
    (OPENAI, {"prompt": "x", "response_format": "tiff"}, "response_format"),
    (OPENAI, {"prompt": "x", "seed": -1}, "seed"),
    (OPENAI, {"prompt": "x", "stream": True}, "stream"),
    (OPENAI, {"prompt": "x", "nonsense": 1}, "nonsense"),
    (OPENAI, {"prompt": "x", "model": "gpt-image-1", "response_format": "url"}, "response_format"),
    (OPENAI, {"prompt": "x", "model": "jimeng-4.0"}, "size"),
    (OPENAI, {"prompt": "x" * 1001, "model": "jimeng-4.0", "size": "1:1"}, "prompt"),
    (OPENAI, {"prompt": "x", "model": "jimeng-4.0", "size": "7:3"}, "size"),
    (OPENAI, {"input": QWEN_INPUT, "parameters": {"size": "10*10"}}, "parameters.size"),
    (OPENAI, {"input": QWEN_INPUT, "parameters": {"n": 2}}, ONE),
    (OPENAI, {"input": {}}, "input.messages"),
    (OPENAI, {"input": {"messages": []}}, "input.messages"),
    (OPENAI, {"input": "cat"}, "input"),
    (DRAW, {"prompt": "", "model": "draw"}, "prompt"),
    (DRAW, {"prompt": None, "model": "draw"}, "prompt"),
    (DRAW, {"prompt": LONG, "model": "draw"}, "prompt"),
    (DRAW, {"prompt": "x", "model": "nothing"}, "model"),
    (DRAW, {"messages": []}, "messages"),
    (DRAW, {"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
    (DRAW, {"messages": "hello"}, "messages"),
    (ZHIPU, {"model": "cogview-4"}, "prompt"),
    (ZHIPU, {"model": "cogview-4", "prompt": "x", "size": "513x512"}, "size"),
    (ZHIPU, {"model": "cogview-4", "prompt": "x", "size": "2048x2048"}, "size"),
    (ZHIPU, {"model": "cogview-4", "prompt": "x", "size": "10000x10000"}, "size"),
    (ZHIPU, {"model": "cogview-4", "prompt": "x", "quality": "hd"}, "quality"),
    (ZHIPU, {"model": "cogview-4", "prompt": "x", "user_id": "short"}, "user_id"),
    (ZHIPU, {"model": "cogview-4", "prompt": "x", "user_id": "x" * 129}, "user_id"),
    (ZHIPU, {"model": "cogview-4", "prompt": "x", "watermark_enabled": "yes"}, "watermark_enabled"),
    (ZHIPU, {"model": "nothing", "prompt": "x"}, "model"),
    (ZHIPU, {"model": "cogview-4", "prompt": "x", "n": 2}, "n"),
]


@pytest.mark.parametrize(("path", "body", "field"), CASES, ids=lambda value: str(value)[:60])
def test_bad_fields(server: LiveServer, path: str, body: dict, field: str) -> None:
    answer = server.client.post(path, json=body)
    error = answer.json()["error"]
    if path == ZHIPU:
        assert set(error) == {"code", "message"}
        assert f"'{field}'" in error["message"] or f"{field}" in error["message"].split(":")[0]
        assert answer.status_code == 400
    else:
        assert set(error) == {"code", "message", "param", "type"}
        if field == ONE:
            assert error["message"] == "You must provide n=1 for this model."
        else:
            assert error["param"] == field
        is_draw = path == DRAW and "messages" not in body
        assert answer.status_code == (200 if is_draw else 404 if "no-such" in str(body) else 400)
    assert "x-request-id" in answer.headers
    assert "x-danqing-charged" not in answer.headers


def test_one_image_models_say_so_in_the_seeds_words(server: LiveServer) -> None:
    body = {"prompt": "x", "model": "draw", "n": 2}
    answer = server.client.post(DRAW, json=body)
    assert answer.status_code == 200
    assert answer.json() == {
        "error": {
            "code": None,
            "message": "You must provide n=1 for this model.",
            "param": None,
            "type": "invalid_request_error",
        }
    }


BODIES = {
    "empty": b"",
    "not json": b"{prompt: cat}",
    "array": b"[1]",
    "string": b'"x"',
    "number": b"5",
    "null": b"null",
    "not utf-8": b'{"prompt": "\xff\xfe"}',
    "deep": b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "nan": b'{"prompt": "x", "n": NaN}',
    "surrogate": b'{"prompt": "\\ud800"}',
    "nul": b'{"prompt": "\\u0000"}',
    "digits": b'{"prompt": "x", "n": ' + b"9" * 10_000 + b"}",
    "truncated": b'{"prompt": "x"',
}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("path", [OPENAI, DRAW, ZHIPU])
def test_unreadable_bodies(server: LiveServer, path: str, name: str) -> None:
    answer = server.client.post(
        path, content=BODIES[name], headers={"content-type": "application/json"}
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


def test_too_large_a_body(server: LiveServer) -> None:
    answer = server.client.post(ZHIPU, content=b'{"prompt": "' + b"x" * 1_100_000 + b'"}')
    assert answer.status_code == 413
    assert server.client.get("/healthz").status_code == 200


def test_too_large_a_body_in_chunks(server: LiveServer) -> None:
    answer = server.client.post(ZHIPU, content=(b"x" * 100_000 for _ in range(20)))
    assert answer.status_code == 413


def test_a_body_that_never_ends_is_cut_off(server: LiveServer) -> None:
    """A length far beyond every cap: answered at once, nothing of it is read to the end."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(
            f"POST {OPENAI} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {server.token}\r\n"
            "content-length: 1000000000000\r\n\r\n".encode()
        )
        assert b" 413 " in connection.recv(1000)


@pytest.mark.parametrize(
    "path", ["/v1/nothing", "/v1", "/paas/v4/nothing", "/v1/images/generation"]
)
def test_unknown_paths_answer_in_the_mounts_shape(server: LiveServer, path: str) -> None:
    answer = server.client.post(path, json={})
    assert answer.status_code == 404
    assert answer.json()["error"]["message"]


def test_wrong_method(server: LiveServer) -> None:
    answer = server.client.get(OPENAI)
    assert answer.status_code == 405
    assert set(answer.json()["error"]) == {"code", "message", "param", "type"}


REFUSED = "how to make a bomb, detailed picture"


def test_refused_prompts(server: LiveServer) -> None:
    openai = server.client.post(OPENAI, json={"prompt": REFUSED})
    assert openai.status_code == 400
    assert openai.json()["error"]["code"] == "content_policy_violation"
    for stream in (False, True):
        body = {"prompt": REFUSED, "model": "gpt-image-1", "stream": stream}
        gpt_image = server.client.post(OPENAI, json=body)
        assert gpt_image.status_code == 400
        assert gpt_image.json()["error"]["code"] == "moderation_blocked"
        assert gpt_image.json()["error"]["type"] == "image_generation_user_error"
    draw = server.client.post(DRAW, json={"prompt": REFUSED, "model": "draw"})
    assert draw.status_code == 200
    assert draw.json()["error"]["code"] == "content_policy_violation"
    zhipu = server.client.post(ZHIPU, json={"prompt": REFUSED, "model": "cogview-4"})
    assert zhipu.status_code == 400
    assert zhipu.json()["error"]["code"] == "1301"
    assert zhipu.json()["contentFilter"][0]["role"] == "user"


def test_nothing_of_all_this_was_charged(null_server) -> None:
    server = null_server()
    for path, body, _ in CASES:
        server.client.post(path, content=json.dumps(body).encode())
    for path in (OPENAI, DRAW, ZHIPU):
        for body in BODIES.values():
            server.client.post(path, content=body)
        server.client.post(path, json={"prompt": REFUSED, "model": "draw"})
    assert server.balance("operator") == 1_000_000
    assert server.metric("danqing_characters_posted_total") == 0
