"""A hostile provider and the database: whatever it says is kept or left out, and never breaks the books. On PostgreSQL, which takes less."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.api.test_relays import Caller, OddProvider
from tests.conftest import LiveServer, start_server, stop_server
from tests.net.servers import Received, answer
from tests.providers.provider_server import picture

pytestmark = pytest.mark.slow

B64 = base64.b64encode(picture()).decode()
DEEP = b'{"data":[{"b64_json":"%s"}],"usage":%s}' % (
    B64.encode(),
    b'{"a":' * 900 + b"1" + b"}" * 900,
)
HUGE = b'{"data":[{"b64_json":"%s"}],"usage":{"n":%s}}' % (B64.encode(), b"9" * 4000)
ENDLESS = b'{"data":[{"b64_json":"%s"}],"usage":{"n":1e999,"m":NaN,"o":-Infinity}}' % B64.encode()
NASTY = "\0 \ud800 \udfff \U0010ffff \u202e"

GOOD: dict[str, Any] = {"data": [{"b64_json": B64}]}
SAID: dict[str, tuple[int, bytes | dict[str, Any]]] = {
    "nasty words": (200, GOOD | {"id": NASTY, "usage": {NASTY: NASTY}}),
    "nasty prompt": (200, {"data": [{"b64_json": B64, "revised_prompt": NASTY * 9000}]}),
    "ids of wrong types": (200, GOOD | {"id": [1, {"a": None}], "created": "x", "usage": [1]}),
    "a number for an id": (200, GOOD | {"id": 10**400, "created": -(10**30), "usage": 7}),
    "a deep usage": (200, DEEP),
    "a huge number": (200, HUGE),
    "numbers that are none": (200, ENDLESS),
    "nulls": (200, {"data": [{"b64_json": B64, "url": None, "revised_prompt": None}], "usage": None}),
    "images of wrong types": (200, {"data": [{"b64_json": 5}, 7, None, {"url": [1]}]}),
    "data of a wrong type": (200, {"data": {"b64_json": B64}}),
    "a nasty link": (200, {"data": [{"url": "http://a\0b\ud800/" + NASTY}]}),
    "a long link": (200, {"data": [{"url": "http://127.0.0.1/" + "a" * 100_000}]}),
    "a nasty refusal": (400, {"error": {"code": "content_policy_violation", "message": NASTY}}),
    "a nasty field": (400, {"error": {"code": "invalid_value", "param": NASTY, "message": NASTY}}),
    "codes of wrong types": (400, {"error": {"code": [NASTY], "param": {}, "message": 5}}),
    "an error that is a text": (400, {"error": NASTY}),
    "a nasty fault": (500, {"error": {"code": "x", "message": NASTY * 90_000}}),
    "bytes that are none": (200, b"\xff\xfe\0\0" * 100),
    "nul in a page": (502, b"<html>\0\xed\xa0\x80</html>"),
    "nothing": (200, b""),
    "a lone surrogate": (200, b'{"data":[{"b64_json":"%s","revised_prompt":"\\ud83d"}]}' % B64.encode()),
}  # fmt: skip


class Hostile(OddProvider):
    async def _handle(self, got: Received, writer: asyncio.StreamWriter) -> None:
        if not got.line.startswith("POST"):
            await answer(404)(got, writer)
            return
        status, said = SAID[json.loads(got.body)["prompt"]]
        body = said if isinstance(said, bytes) else json.dumps(said).encode()
        await answer(status, body, ["X-Request-Id: \xff\xfe' OR 1=1; --"])(got, writer)


@pytest.fixture(scope="module")
def live(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    provider = Hostile()
    provider.start()
    folder = tmp_path_factory.mktemp("hostile")
    catalog = folder / "catalog.toml"
    catalog.write_text(
        f'[backends.odd]\ndialect = "openai"\nbase_url = "{provider.url}/v1"\nfetch_timeout_s = 1\n'
        f'[models.odd]\nlike = "dall-e-3"\nbackend = "odd"\nfeatures = ["response_format"]\n'
    )
    server = start_server(
        folder / "data",
        module="tests.null_server",
        DANQING_CATALOG_FILE=str(catalog),
        DANQING_DATABASE_URL=request.getfixturevalue("postgres").create_database(),
    )
    yield server
    assert stop_server(server) == 0
    provider.stop()


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("prompt", SAID)
def test_whatever_it_says(live: LiveServer, prompt: str, background: bool) -> None:
    caller = Caller(live, f"{prompt.replace(' ', '-')}-{background}".lower())
    seen = len(live.lines)
    headers = {"prefer": "respond-async"} if background else {}
    body = {"model": "odd", "prompt": prompt, "size": "1024x1024"}
    while (
        reply := caller.http.post("/v1/images/generations", json=body, headers=headers)
    ).status_code == 503:  # its breaker is open after the faults before
        time.sleep(1)
    if background:
        where = reply.headers["location"]
        while (shown := caller.http.get(where).json())["status"] in ("queued", "running"):
            time.sleep(0.05)
        came = shown["status"] == "succeeded"
        operators = live.client.get(f"/admin/v1/tasks/{shown['id']}")
        assert operators.status_code == 200, operators.text
    else:
        assert reply.status_code in (200, 400, 502), reply.text
        came = reply.status_code == 200
        assert came or set(reply.json()["error"]) == {"message", "type", "param", "code"}
    assert caller.paid() == (5000 if came else 0)
    crashes = [line for line in live.lines[seen:] if "crash" in str(line.get("event"))]
    assert crashes == []
    if came and not background:
        link = reply.json()["data"][0]["url"]
        assert httpx2.get(link).status_code == 200
