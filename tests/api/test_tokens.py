"""Tokens over HTTP: none, wrong, revoked and expired ones, in each dialect's shape."""

from __future__ import annotations

import time

import pytest

from tests.conftest import LiveServer

ROUTES = {
    "openai": ("/v1/images/generations", {"prompt": "x"}),
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
    "draw": ("/v1/chat/completions", {"prompt": "x", "model": "draw"}),
    "zhipu": ("/api/paas/v4/images/generations", {"prompt": "x", "model": "cogview-4"}),
    "ark": ("/api/v3/images/generations", {"prompt": "x"}),
    "qwen": ("/v1/images/generations", {"model": "qwen-image", "input": {"prompt": "x"}}),
}
BAD = {
    "none": {"authorization": ""},
    "wrong": {"authorization": "Bearer sk-wrong.wrong"},
    "not bearer": {"authorization": "Basic abc"},
    "huge": {"authorization": "Bearer " + "x" * 10_000},
}


@pytest.mark.parametrize("dialect", ROUTES)
@pytest.mark.parametrize("kind", BAD)
def test_bad_tokens(server: LiveServer, dialect: str, kind: str) -> None:
    path, body = ROUTES[dialect]
    answer = server.client.post(path, json=body, headers=BAD[kind])
    if dialect == "draw":
        assert answer.status_code == 200
        assert answer.json()["codes"] == 900
        assert answer.json()["data"] == "token"
        assert answer.json()["mess"].startswith("密钥错误或已过期")
    elif dialect == "zhipu":
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] in {"1000", "1001", "1002"}
    elif dialect == "ark":
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == answer.headers["x-error-code"]
        assert answer.json()["error"]["code"] == "AuthenticationError"
    else:
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"
    assert "wrong.wrong" not in answer.text


def test_revoked_and_expired_tokens(server: LiveServer) -> None:
    token = server.account("revoked-account")
    headers = {"authorization": f"Bearer {token}"}
    assert server.client.get("/v1/models", headers=headers).status_code == 200
    server.books(lambda books: books.tokens.revoke(token, by="test"))
    deadline = time.time() + 60  # facts are cached for 5 seconds
    while server.client.get("/v1/models", headers=headers).status_code == 200:
        assert time.time() < deadline
        time.sleep(0.3)
    answer = server.client.post("/v1/images/generations", json={"prompt": "x"}, headers=headers)
    assert answer.status_code == 401


def test_no_token_in_any_log_line(server: LiveServer) -> None:
    server.client.get(f"/v1/models?key={server.token}")
    secret = server.token.split(".")[1]
    assert server.lines
    assert not [line for line in server.lines if secret in str(line)]


def test_the_first_token_is_in_a_private_file(server: LiveServer) -> None:
    path = server.data_dir / "first-token"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text().strip() == server.token
