"""Relays end to end: a live server that asks another one of ours, and one that asks a provider gone wrong. The ledger is asserted."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

from danqing.storage import codecs, metadata
from tests.api.sse import all_events
from tests.conftest import (
    LiveServer,
    clean_environment,
    cli,
    shared_server,
    start_server,
    stop_server,
)
from tests.net.servers import Received, answer, serving
from tests.providers.provider_server import bomb, cut, endless, error, inline, picture, says, silent

PRICE = 5000
BOMB = bomb()
ASKED = {"model": "odd", "prompt": "fine", "size": "1024x1024"}


CUT_OUT = codecs.encode(
    np.dstack(
        [np.full((256, 256, 3), 150, np.uint8), np.repeat([[0, 255]], 256, 0).repeat(128, 1)]
    ).astype(np.uint8),
    "png",
)
"""Transparent on the left, grey on the right."""


def of(*pictures: bytes) -> Any:
    return says({"data": [{"b64_json": base64.b64encode(one).decode()} for one in pictures]})


class OddProvider:
    """A provider in a thread of its own, which does what the prompt says."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.fetched: Counter[str] = Counter()
        self.keys: list[str] = []
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(60)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(10)

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        async with serving(self._handle) as server:
            self.url = server.url
            self._ready.set()
            await self._over.wait()

    async def _handle(self, got: Received, writer: asyncio.StreamWriter) -> None:
        if got.line.startswith("GET"):
            await self._image(got, writer)
            return
        body = json.loads(got.body)
        prompt = body["prompt"]
        self.asked[prompt] += 1
        self.keys.append(got.headers.get("authorization", ""))
        linked = says({"data": [{"url": f"{self.url}/{prompt.replace(' ', '-')}.png"}]})
        answers: dict[str, Any] = {
            "fine": inline(*range(1, body["n"] + 1), usage={"total_tokens": 3}, id="up-1"),
            "html": says(b"<html>hello</html>"),
            "empty list": says({"data": []}),
            "error in 200": says({"error": {"message": "odd", "code": "odd"}}),
            "refused": error(400, "content_policy_violation", message="violence"),
            "no money": error(429, "insufficient_quota"),
            "size": error(400, "invalid_value", param="size", message="Not this size."),
            "limited": error(429, "rate_limit_exceeded", "Retry-After: 2"),
            "fault": error(500, "server_error"),
            "overloaded": error(503, "server_is_overloaded"),
            "fewer": inline(1),
            "one and bombs": of(picture(1), *[BOMB] * (body["n"] - 1)),
            "a bomb": of(*[BOMB] * body["n"]),
            "cut": cut,
            "silent": silent,
            "endless": endless,
            "half": linked if self.asked[prompt] == 1 else silent,
            "cut out": says({"data": [{"b64_json": base64.b64encode(CUT_OUT).decode()}]}),
            "unseen": error(404, "model_not_found", param="model"),
        }
        await answers.get(prompt, linked)(got, writer)

    async def _image(self, got: Received, writer: asyncio.StreamWriter) -> None:
        name = got.line.split()[1][1:].removesuffix(".png")
        self.fetched[name] += 1
        answers: dict[str, Any] = {
            "never": answer(404),
            "private-redirect": answer(302, b"", ["Location: http://127.0.0.1:1/x.png"]),
        }
        if name == "third-try" and self.fetched[name] < 3:
            await answer(404)(got, writer)
        else:
            await answers.get(name, answer(200, picture()))(got, writer)


CATALOG = """
[backends.odd]
dialect = "openai"
base_url = "{odd}/v1"
key_env = "ODD_KEY"
timeout_s = 60
fetch_timeout_s = 5

[backends.cutting]
dialect = "openai"
base_url = "{odd}/v1"
extras = ["background"]

[backends.impatient]
dialect = "openai"
base_url = "{odd}/v1"
timeout_s = 2

[backends.broken-off]
dialect = "openai"
base_url = "{odd}/v1"

[backends.endless]
dialect = "openai"
base_url = "{odd}/v1"

[backends.passing]
dialect = "openai"
base_url = "{odd}/v1"
rehost = false
labels = "provider"

[backends.passing-one]
dialect = "openai"
base_url = "{odd}/v1"
rehost = false
labels = "provider"
n_max = 1

[backends.second]
dialect = "openai"
base_url = "{second}/v1"
key_file = "{key}"
extras = ["response_format", "seed", "negative_prompt", "style"]

[models.odd]
like = "dall-e-3"
backend = "odd"
features = ["response_format", "style"]

[models.cutting]
like = "gpt-image-1"
backend = "cutting"
label_visible = true

[models.impatient]
like = "odd"
backend = "impatient"

[models.broken-off]
like = "odd"
backend = "broken-off"

[models.endless]
like = "odd"
backend = "endless"

[models.odd-else]
like = "odd"
fallbacks = ["pocket"]

[models.passing]
like = "odd"
backend = "passing"

[models.passing-void]
like = "dall-e-2"
backend = "passing-one"
cancel = "void"

[models.second]
like = "odd"
backend = "second"
backend_model = "dall-e-3"
label_visible = true
"""


@pytest.fixture(scope="module")
def odd() -> Iterator[OddProvider]:
    provider = OddProvider()
    provider.start()
    yield provider
    provider.stop()


second = shared_server()


@pytest.fixture(scope="module")
def first(
    tmp_path_factory: pytest.TempPathFactory, odd: OddProvider, second: LiveServer
) -> Iterator[LiveServer]:
    """The server under test: it relays to `odd` and to `second`."""
    folder = tmp_path_factory.mktemp("first")
    live = start_relaying(folder, odd, second)
    yield live
    assert stop_server(live) == 0


def start_relaying(
    folder: Path,
    odd: OddProvider,
    second: LiveServer | None,
    catalog: str = CATALOG,
    **environment: str,
) -> LiveServer:
    key = folder / "key"
    key.write_text("none" if second is None else second.token)
    url = "http://127.0.0.1:1" if second is None else second.url
    (folder / "catalog.toml").write_text(
        catalog.format(odd=odd.url, second=url, key=key), encoding="utf-8"
    )
    return start_server(
        folder / "data",
        module="tests.null_server",
        DANQING_CATALOG_FILE=str(folder / "catalog.toml"),
        ODD_KEY="sk-odd-odd-odd",
        **environment,
    )


class Caller:
    """A client with an account of its own on the server."""

    def __init__(self, server: LiveServer, name: str, characters: int = 100_000) -> None:
        self.server, self.name, self.start = server, name, characters
        token = server.account(name, characters)
        headers = {"authorization": f"Bearer {token}"}
        self.http = httpx2.Client(base_url=server.url, headers=headers, timeout=60)

    def post(self, path: str = "/v1/images/generations", **body: Any) -> httpx2.Response:
        return self.http.post(path, json=ASKED | body)

    def paid(self) -> int:
        return self.start - self.server.balance(self.name)


def test_another_server_of_ours_draws(first: LiveServer, second: LiveServer) -> None:
    before = second.balance("operator")
    caller = Caller(first, "anne")
    reply = caller.post(
        model="second", n=2, seed=7, negative_prompt="dogs", response_format="b64_json"
    )
    assert reply.status_code == 200, reply.text
    assert reply.headers["x-danqing-model"] == "second"
    assert "x-danqing-fallback" not in reply.headers
    assert reply.headers["x-danqing-seed"] == "7,8"
    assert "upstream" in reply.headers["x-danqing-timing"]
    assert len(reply.json()["data"]) == 2
    assert (caller.paid(), before - second.balance("operator")) == (2 * PRICE, 2 * PRICE)
    # It is ours now: our link, our label, our metadata.
    link = caller.post(model="second").json()["data"][0]["url"]
    assert link.startswith(first.url)
    pixels = codecs.decode(httpx2.get(link).content)
    assert pixels.shape == (1024, 1024, 3)
    assert len({tuple(pixel) for pixel in pixels[-100:, -300:].reshape(-1, 3)}) > 2, "no label"


def test_every_dialect_reaches_a_relay(first: LiveServer) -> None:
    caller = Caller(first, "bert")
    messages = [{"role": "user", "content": "fine"}]
    chat = caller.http.post("/v1/chat/completions", json={"model": "odd", "messages": messages})
    assert chat.status_code == 200
    assert first.url in chat.json()["choices"][0]["message"]["content"]
    zhipu = caller.http.post(
        "/api/paas/v4/images/generations", json={"model": "odd", "prompt": "fine"}
    )
    assert zhipu.json()["data"][0]["url"].startswith(first.url)
    assert caller.paid() == 2 * PRICE


@pytest.mark.parametrize("format", ["png", "webp"])
def test_what_has_no_background_is_labelled_and_stays_so(first: LiveServer, format: str) -> None:
    caller = Caller(first, f"cutter-{format}")
    body = {"model": "cutting", "prompt": "cut out", "background": "transparent"}
    reply = caller.post(**body, output_format=format)
    assert reply.status_code == 200, reply.text
    assert reply.json()["background"] == "transparent"
    data = base64.b64decode(reply.json()["data"][0]["b64_json"])
    with Image.open(io.BytesIO(data)) as image:
        assert (image.mode, image.format) == ("RGBA", format.upper())
        pixels = np.asarray(image)
    assert (pixels[:, :120, 3].max(), pixels[:, 136:, 3].min()) == (0, 255)
    assert len(np.unique(pixels[-40:, 136:, 0])) > 2, "no label"
    assert metadata.read(data).xmp is not None
    refused = caller.post(**body | {"model": "second"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "background")
    assert caller.paid() == PRICE


CHAT = {"model": "odd", "size": "1024x1024", "stream": True}


def test_a_relay_streams(first: LiveServer) -> None:
    """Each image as it is fetched and stored; looks there are none."""
    caller = Caller(first, "streamer")
    body = CHAT | {"messages": [{"role": "user", "content": "fine"}], "n": 2}
    sent = all_events(caller.http.post("/v1/chat/completions", json=body))
    deltas = [event.data["choices"][0]["delta"] for event in sent[:-1]]
    assert [delta.get("content", "")[:13] for delta in deltas] == [
        *("", "![image](http", "![image](http", "")
    ]
    assert sent[-1].data == "[DONE]"
    assert caller.paid() == 2 * PRICE


@pytest.mark.parametrize(
    ("prompt", "status", "code"),
    [
        ("refused", 400, "content_policy_violation"),
        ("size", 400, "invalid_value"),
        ("html", 502, "provider_failed"),
    ],
)
def test_what_a_provider_refuses_is_plain(
    first: LiveServer, prompt: str, status: int, code: str
) -> None:
    caller = Caller(first, f"streamer-{prompt}")
    body = CHAT | {"size": "512x512", "messages": [{"role": "user", "content": prompt}]}
    reply = caller.http.post("/v1/chat/completions", json=body)
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
    assert caller.paid() == 0


def test_a_provider_without_seeds_is_not_said_to_have_used_them(first: LiveServer) -> None:
    caller = Caller(first, "carl")
    reply = caller.post()
    assert reply.status_code == 200
    assert "x-danqing-seed" not in reply.headers
    task = caller.http.get(f"/v1/images/tasks/{reply.headers['x-danqing-task']}").json()
    assert task["data"][0]["seed"] is None
    refused = caller.post(seed=5)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "seed")
    assert caller.paid() == PRICE


TALK = "/v1/chat/completions"
BODIES: dict[str, tuple[str, Any]] = {
    "openai": ("/v1/images/generations", lambda body: body),
    "zhipu": ("/api/paas/v4/images/generations", lambda body: body),
    "dashscope": (
        "/api/v1/services/aigc/multimodal-generation/generation",
        lambda body: {
            "model": body["model"],
            "input": {"messages": [{"role": "user", "content": [{"text": body["prompt"]}]}]},
            "parameters": {"size": body["size"].replace("x", "*"), "prompt_extend": False},
        },
    ),
    "ark": ("/api/v3/images/generations", lambda body: body),
    "chat": (
        TALK,
        lambda body: {
            "model": body["model"],
            "size": body["size"],
            "messages": [{"role": "user", "content": body["prompt"]}],
        },
    ),
    "draw": (TALK, lambda body: body),
}
"""Each API's own request of a model, a prompt and a size."""
TOLD = {
    "failed": {
        "openai": (502, "provider_failed"),
        "zhipu": (500, "500"),
        "dashscope": (500, "InternalError.Algo"),
        "ark": (500, "InternalServiceError"),
        "chat": (502, "provider_failed"),
        "draw": (200, "provider_failed"),
    },
    "refused": {
        "openai": (400, "content_policy_violation"),
        "zhipu": (400, "1301"),
        "dashscope": (400, "DataInspectionFailed"),
        "ark": (400, "InputTextSensitiveContentDetected"),
        "chat": (400, "content_policy_violation"),
        "draw": (200, "content_policy_violation"),
    },
    "size": {
        "openai": (400, "invalid_value"),
        "zhipu": (400, "1214"),
        "dashscope": (400, "InvalidParameter"),
        "ark": (400, "InvalidParameter"),
        "chat": (400, "invalid_value"),
        "draw": (200, "invalid_value"),
    },
}
"""Status and code by what is wrong and by who asks."""


@pytest.mark.parametrize(
    ("prompt", "model", "told"),
    [
        ("html", "odd", "failed"),
        ("empty list", "odd", "failed"),
        ("error in 200", "odd", "failed"),
        ("a bomb", "odd", "failed"),
        ("refused", "odd", "refused"),
        ("size", "odd", "size"),
        ("cut", "broken-off", "failed"),
        ("endless", "endless", "failed"),
        ("silent", "impatient", "failed"),
        ("never", "odd", "failed"),
        ("private redirect", "odd", "failed"),
        ("unseen", "odd", "failed"),
    ],
)
def test_a_provider_gone_wrong_costs_the_caller_nothing(
    first: LiveServer, odd: OddProvider, prompt: str, model: str, told: str
) -> None:
    """Whichever API the caller speaks: the exact status and code of its own, one request there, and no charge."""
    caller = Caller(first, f"wrong-{prompt.replace(' ', '-')}")
    before = odd.asked[prompt]
    # An endless answer is 44 MB until it is cut off. A backend is left alone after five answers cut short: no sixth caller.
    names = {
        "endless": ["openai", "ark"],
        "cut": [name for name in BODIES if name != "openai"],
        "silent": [name for name in BODIES if name != "draw"],
    }.get(prompt, list(BODIES))

    def ask(name: str) -> httpx2.Response:
        path, body_of = BODIES[name]
        size = "512x512"  # not the card's default: that would be the operator's word
        return caller.http.post(
            path, json=body_of({"model": model, "prompt": prompt, "size": size})
        )

    with ThreadPoolExecutor(len(names)) as pool:
        replies = dict(zip(names, pool.map(ask, names), strict=True))
    codes = {name: (reply.status_code, code_of(reply.json())) for name, reply in replies.items()}
    assert codes == {name: TOLD[told][name] for name in names}
    assert odd.asked[prompt] == before + len(names)
    assert caller.paid() == 0


def code_of(body: dict[str, Any]) -> str:
    """DashScope's stands at the top."""
    return body["code"] if "code" in body else body["error"]["code"]


@pytest.mark.parametrize("prompt", ["fewer", "one and bombs"])
def test_only_what_came_is_paid_for(first: LiveServer, prompt: str) -> None:
    caller = Caller(first, f"dora-{prompt}")
    reply = caller.post(prompt=prompt, n=3)
    assert reply.status_code == 200
    assert len(reply.json()["data"]) == 1
    assert reply.headers["x-danqing-charged"] == str(PRICE)
    assert caller.paid() == PRICE


@pytest.mark.parametrize("prompt", ["fewer", "one and bombs"])
def test_a_dashscope_task_has_each_failure_in_its_place(first: LiveServer, prompt: str) -> None:
    caller = Caller(first, f"dave-{prompt}")
    begun = caller.http.post(
        "/api/v1/services/aigc/text2image/image-synthesis",
        json={
            "model": "odd",
            "input": {"prompt": prompt},
            "parameters": {"n": 3, "size": "1024*1024", "prompt_extend": False},
        },
        headers={"x-dashscope-async": "enable"},
    )
    where = f"/api/v1/tasks/{begun.json()['output']['task_id']}"
    while (output := caller.http.get(where).json()["output"])["task_status"] in (
        "PENDING",
        "RUNNING",
    ):
        time.sleep(0.1)
    assert output["task_status"] == "SUCCEEDED"
    assert output["task_metrics"] == {"TOTAL": 3, "SUCCEEDED": 1, "FAILED": 2}
    came, *missing = output["results"]
    assert httpx2.get(came["url"]).status_code == 200
    assert [set(one) for one in missing] == [{"code", "message"}] * 2
    assert {one["code"] for one in missing} == {"InternalError.Algo"}
    assert caller.paid() == PRICE


def test_a_link_that_works_at_the_third_try(first: LiveServer, odd: OddProvider) -> None:
    caller = Caller(first, "emil")
    assert caller.post(prompt="third try").status_code == 200
    assert odd.fetched["third-try"] == 3
    assert (odd.asked["third try"], caller.paid()) == (1, PRICE)


def test_links_that_are_passed_on(first: LiveServer, odd: OddProvider) -> None:
    caller = Caller(first, "finn")
    headers = {"idempotency-key": "finn-1"}
    body = ASKED | {"model": "passing", "prompt": "elsewhere"}
    reply = caller.http.post("/v1/images/generations", json=body, headers=headers)
    link = f"{odd.url}/elsewhere.png"
    assert reply.json()["data"] == [{"url": link}]
    assert odd.fetched["elsewhere"] == 0
    assert caller.paid() == PRICE
    again = caller.http.post("/v1/images/generations", json=body, headers=headers)
    assert again.headers["idempotent-replayed"] == "true"
    assert again.json()["data"] == [{"url": link}]
    task = caller.http.get(f"/v1/images/tasks/{reply.headers['x-danqing-task']}").json()
    assert task["data"] == [{"url": link, "size": "1024x1024", "seed": None}]
    # Who wants bytes gets bytes.
    inline = caller.post(model="passing", prompt="elsewhere", response_format="b64_json").json()
    assert codecs.decode(base64.b64decode(inline["data"][0]["b64_json"])).shape == (48, 64, 3)
    assert (odd.fetched["elsewhere"], caller.paid()) == (1, 2 * PRICE)


def test_links_of_a_cancelled_task_that_costs_nothing_are_not_told(
    first: LiveServer, odd: OddProvider
) -> None:
    caller = Caller(first, "fred")
    body = ASKED | {"model": "passing-void", "prompt": "half", "n": 2}
    reply = caller.http.post(
        "/v1/images/generations", json=body, headers={"prefer": "respond-async"}
    )
    route = f"/v1/images/tasks/{reply.json()['id']}"
    while odd.asked["half"] < 2:
        time.sleep(0.1)
    time.sleep(0.5)  # the first link is here
    ended = caller.http.delete(route).json()
    assert (ended["status"], ended["charged"], ended["data"]) == ("cancelled", 0, [])
    assert caller.http.get(route).json()["data"] == []
    assert caller.paid() == 0


def test_a_fallback_steps_in_where_nothing_was_paid(first: LiveServer, odd: OddProvider) -> None:
    caller = Caller(first, "gina")
    reply = caller.post(model="odd-else", prompt="unseen")
    assert reply.status_code == 200
    assert reply.headers["x-danqing-model"] == "pocket"
    assert reply.headers["x-danqing-fallback"] == "for odd"
    assert "x-danqing-seed" in reply.headers
    for prompt in ("refused", "fault", "html"):  # a refusal, and what may have been paid
        assert caller.post(model="odd-else", prompt=prompt).status_code in (400, 502)
    assert caller.paid() == PRICE


def test_what_the_provider_said_is_there_for_operators(first: LiveServer) -> None:
    caller = Caller(first, "hugo")
    task = caller.post().headers["x-danqing-task"]
    shown = first.client.get(f"/admin/v1/tasks/{task}").json()
    assert shown["upstream"] == [
        {"backend": "odd", "upstream_id": "up-1", "usage": {"total_tokens": 3}}
    ]
    assert (shown["charged"], shown["status"]) == (PRICE, "succeeded")
    assert caller.http.get(f"/admin/v1/tasks/{task}").status_code == 403
    reply = caller.http.post(
        "/v1/images/generations",
        json=ASKED | {"prompt": "refused"},
        headers={"prefer": "respond-async"},
    )
    task = reply.headers["x-danqing-task"]
    while first.client.get(f"/admin/v1/tasks/{task}").json()["finished"] is None:
        time.sleep(0.1)
    shown = first.client.get(f"/admin/v1/tasks/{task}").json()
    assert "violence" in shown["upstream"][0]["refusal"]
    assert (shown["error"]["code"], shown["charged"]) == ("content_refused", 0)


def test_health_and_metrics_know_the_backends_and_no_secret(
    first: LiveServer, odd: OddProvider
) -> None:
    health = first.client.get("/healthz")
    assert health.json()["backends"]["odd"]["keys"] == 1
    assert health.json()["backends"]["passing"]["dialect"] == "openai"
    models = {row["id"]: row["danqing"] for row in first.client.get("/v1/models").json()["data"]}
    assert (models["odd-else"]["relay"], models["odd-else"]["fallbacks"]) == ("openai", ["pocket"])
    assert first.metric("danqing_upstream_requests_total") > 0
    everything = health.text + first.client.get("/metrics").text + json.dumps(first.lines)
    assert "sk-odd-odd-odd" not in everything
    assert set(odd.keys) <= {"Bearer sk-odd-odd-odd", ""}


def test_limits_at_the_provider_are_a_busy_server_to_the_caller(
    tmp_path: Path, odd: OddProvider
) -> None:
    live = start_relaying(tmp_path, odd, None)
    try:
        caller = Caller(live, "ida")
        reply = caller.post(prompt="limited")
        assert (reply.status_code, reply.headers["retry-after"] in ("1", "2")) == (429, True)
        assert reply.json()["error"]["code"] == "rate_limit_exceeded"
        # Our money at the provider is not the caller's quota.
        while (reply := caller.post(prompt="no money")).status_code == 429:
            time.sleep(0.5)
        assert (reply.status_code, reply.json()["error"]["code"]) == (502, "provider_failed")
        assert caller.paid() == 0
    finally:
        assert stop_server(live) == 0


def test_a_provider_that_may_have_been_paid_is_not_asked_by_the_next_server(
    tmp_path: Path, odd: OddProvider
) -> None:
    live = start_relaying(tmp_path, odd, None, DANQING_TASK_LEASE_S="1")
    caller = Caller(live, "jane")
    before = odd.asked["silent"]
    body = ASKED | {"prompt": "silent"}
    reply = caller.http.post(
        "/v1/images/generations", json=body, headers={"prefer": "respond-async"}
    )
    task = reply.headers["location"]
    while odd.asked["silent"] == before:
        time.sleep(0.05)
    live.process.kill()
    live.process.wait()
    live.client.close()
    again = start_relaying(tmp_path, odd, None, DANQING_TASK_LEASE_S="1")
    try:
        caller.http = httpx2.Client(base_url=again.url, headers=caller.http.headers, timeout=60)
        caller.server = again
        while (shown := caller.http.get(task).json())["status"] in ("queued", "running"):
            time.sleep(0.1)
        assert shown["status"] == "failed"
        assert (odd.asked["silent"], caller.paid()) == (before + 1, 0)
    finally:
        assert stop_server(again) == 0


def test_a_client_that_leaves_pays_once_the_provider_has_the_request(
    first: LiveServer, odd: OddProvider
) -> None:
    caller = Caller(first, "kate")
    before = odd.asked["silent"]
    reply = caller.http.post(
        "/v1/images/generations",
        json=ASKED | {"prompt": "silent", "n": 2},
        headers={"prefer": "respond-async"},
    )
    while odd.asked["silent"] == before:
        time.sleep(0.02)
    shown = caller.http.delete(reply.headers["location"]).json()
    assert (shown["status"], shown["charged"]) == ("cancelled", 2 * PRICE)
    assert caller.paid() == 2 * PRICE


def test_a_client_that_leaves_the_queue_pays_nothing(tmp_path: Path, odd: OddProvider) -> None:
    narrow = CATALOG.replace("timeout_s = 60\n", "timeout_s = 60\nconcurrency_max = 1\n", 1)
    live = start_relaying(tmp_path, odd, None, catalog=narrow)
    try:
        caller = Caller(live, "lars")
        before = odd.asked["silent"]
        tasks = []
        for _ in range(2):
            reply = caller.http.post(
                "/v1/images/generations",
                json=ASKED | {"prompt": "silent"},
                headers={"prefer": "respond-async"},
            )
            tasks.append(reply.headers["location"])
            while odd.asked["silent"] == before:
                time.sleep(0.02)
        while live.client.get("/healthz").json()["backends"]["odd"]["waiting"] != 1:
            time.sleep(0.02)
        assert caller.http.delete(tasks[1]).json()["charged"] == 0
        assert caller.http.delete(tasks[0]).json()["charged"] == PRICE
        assert (odd.asked["silent"], caller.paid()) == (before + 1, PRICE)
    finally:
        assert stop_server(live) == 0


def test_the_command_line_draws_by_a_relay(tmp_path: Path, odd: OddProvider) -> None:
    file = tmp_path / "catalog.toml"
    file.write_text(CATALOG.format(odd=odd.url, second="http://127.0.0.1:1", key=file), "utf-8")
    env = clean_environment(DANQING_CATALOG_FILE=str(file), ODD_KEY="sk-odd-odd-odd")
    path = tmp_path / "out.png"
    cli("draw", "fine", "--model", "odd", "--output", str(path), env=env)
    assert codecs.decode(path.read_bytes()).shape == (48, 64, 3)
    refused = cli("draw", "refused", "--model", "odd", env=env, check=False)
    assert refused.returncode != 0
    assert "safety system" in refused.stderr
    del env["ODD_KEY"]
    missing = cli("draw", "fine", "--model", "odd", env=env, check=False)
    assert "backends.odd.key_env" in missing.stderr


def test_a_default_that_the_provider_refuses_is_not_the_callers_fault(
    first: LiveServer, odd: OddProvider
) -> None:
    caller = Caller(first, "faultless")
    answers = {
        path: caller.http.post(path, json=body)
        for path, body in {
            "/v1/images/generations": {"model": "odd", "prompt": "size"},
            "/api/paas/v4/images/generations": {"model": "odd", "prompt": "size"},
            "/api/v3/images/generations": {"model": "odd", "prompt": "size"},
            "/api/v1/services/aigc/multimodal-generation/generation": {
                "model": "odd",
                "input": {"messages": [{"role": "user", "content": [{"text": "size"}]}]},
                "parameters": {"prompt_extend": False},
            },
        }.items()
    }
    said = "refuses what this server's configuration adds"
    assert all(said in answer.text for answer in answers.values())
    assert [answer.status_code for answer in answers.values()] == [502, 500, 500, 500]
    assert caller.paid() == 0
