"""What tests of the admin and account APIs share: making accounts and tokens, reading errors."""

from __future__ import annotations

from typing import Any

import httpx2

from tests.conftest import LiveServer


def made(live: LiveServer, name: str, **fields: Any) -> dict[str, Any]:
    answer = live.client.post("/admin/v1/accounts", json={"name": name, **fields})
    assert answer.status_code == 201, answer.text
    return answer.json()


def token_of(live: LiveServer, account: str, **fields: Any) -> dict[str, Any]:
    answer = live.client.post("/admin/v1/tokens", json={"account": account, **fields})
    assert answer.status_code == 201, answer.text
    return answer.json()


def refused(answer: httpx2.Response, status: int, param: str | None = None) -> dict[str, Any]:
    """The error of an answer, in OpenAI's shape."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    if param is not None:
        assert error["param"] == param, error
    assert answer.headers["x-request-id"]
    return error
