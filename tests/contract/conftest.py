"""What the contract tests share: one fast server, its clients, and a caller for every kind of trouble."""

from __future__ import annotations

import base64
import io
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import httpx2
import pytest
from PIL import Image
from sqlalchemy import text

from danqing.service.tokens import TokenLimits
from tests.api.test_relays import OddProvider, start_relaying
from tests.conftest import LiveServer, shared_server, stop_server
from tests.contract.sdk import Sdk, start_sdk

REFUSED_PROMPT = "lolicon"
"""A term of the bundled list, level 0."""
CRASHING_PROMPT = "fail@1"
"""Makes the null family's second step fail."""


@dataclass(frozen=True)
class Callers:
    """Tokens that get into trouble."""

    house: LiveServer
    stranger: str
    poor: str
    """Of an account with one character."""
    hasty: str
    """None of a minute's requests is left, nor of the next one's: at its turn one more would pass."""
    narrow: str
    """May draw with pocket alone."""
    reader: str
    """May not draw."""

    @cached_property
    def spent_key(self) -> str:
        """An Idempotency-Key of the operator's that another body was sent with."""
        key = str(uuid.uuid4())
        answer = self.house.client.post(
            "/v1/images/generations",
            json={"prompt": "x", "size": "256x256"},
            headers={"idempotency-key": key},
        )
        assert answer.status_code == 200, answer.text
        return key


house = shared_server("session")
"""A server that draws one colour, fast."""


@pytest.fixture(scope="session")
def callers(house: LiveServer) -> Callers:
    async def make(books: Any) -> list[str]:
        await books.accounts.create("hasty", 1_000_000)
        kinds = (
            TokenLimits(rate_per_minute=1),
            TokenLimits(models=["pocket"]),
            TokenLimits(scopes=["account"]),
        )
        tokens = [await books.tokens.create("hasty", limits=limits, by="test") for limits in kinds]
        none_left = text("UPDATE tokens SET rate_per_minute = 0 WHERE rate_per_minute = 1")
        await books.db.write(lambda conn: conn.execute(none_left))
        return tokens

    return Callers(house, "sk-no.no", house.account("poor", 1), *house.books(make))


@pytest.fixture(scope="session")
def start(
    house: LiveServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Sdk]]:
    """Starts a client, once a session, with the operator's token at the fast server."""
    started: dict[str, Sdk] = {}
    folder = tmp_path_factory.mktemp("sdks")

    def get(name: str) -> Sdk:
        if name not in started:
            log = folder / f"{name}.log"
            started[name] = start_sdk(name, log, url=house.url, token=house.token)
        return started[name]

    yield get
    for sdk in started.values():
        sdk.end()


full_house = shared_server("session", NULL_STEP_S="1", DANQING_ENGINE__QUEUE_MAX="1")
"""A slow server with room for one image."""


@contextmanager
def occupied(server: LiveServer) -> Iterator[None]:
    """While this lasts (20 s at most), the one place is taken."""
    host, port = server.url.removeprefix("http://").split(":")
    body = b'{"prompt": "x", "model": "pocket", "size": "256x256", "quality": "hd"}'
    with socket.create_connection((host, int(port))) as guest:
        guest.sendall(
            f"POST /v1/images/generations HTTP/1.1\r\nhost: {host}\r\n"
            f"authorization: Bearer {server.token}\r\n"
            f"content-length: {len(body)}\r\n\r\n".encode()
            + body
        )
        _wait_live(server, 1)
        yield
    _wait_live(server, 0)  # who hangs up is let go of within a step


def _wait_live(server: LiveServer, images: int) -> None:
    deadline = time.monotonic() + 60
    while server.metric("danqing_engine_live") != images:
        assert time.monotonic() < deadline
        time.sleep(0.05)


RELAYED = """
[backends.odd]
dialect = "openai"
base_url = "{odd}/v1"

[backends.down]
dialect = "openai"
base_url = "{odd}/v1"

[models.failing]
like = "dall-e-3"
features = ["response_format", "style"]
backend = "odd"

[models.down]
like = "dall-e-3"
features = ["response_format", "style"]
backend = "down"
"""
PROVIDER_TROUBLES = {"failing": "fault", "down": "overloaded"}
"""Models of the relaying server → the prompt at which their provider answers 500 or 503."""


@pytest.fixture(scope="session")
def relaying_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    provider = OddProvider()
    provider.start()
    live = start_relaying(tmp_path_factory.mktemp("relaying"), provider, None, RELAYED)
    yield live
    assert stop_server(live) == 0
    provider.stop()


@pytest.fixture
def relaying(relaying_server: LiveServer) -> LiveServer:
    """A server whose model `failing` has just been drawn well, so that it is not yet left alone."""
    asked = {"model": "failing", "prompt": "fine"}
    answer = relaying_server.client.post("/v1/images/generations", json=asked)
    assert answer.status_code == 200, answer.text
    return relaying_server


@pytest.fixture
def busy(full_house: LiveServer) -> Iterator[LiveServer]:
    """A server that is busy while the test runs."""
    with occupied(full_house):
        yield full_house


@pytest.fixture
def busy_queue(null_server: Callable[..., LiveServer]) -> Iterator[LiveServer]:
    """A slow server that draws one image at a time; while the test runs another is first."""
    live = null_server(NULL_STEP_S="1", DANQING_ENGINE__LIVE_MAX="1")
    with occupied(live):
        yield live


def picture(url: str | None = None, b64: str | None = None) -> Image.Image:
    """The image behind a link, fetched without a token, or in base64."""
    if url is not None:
        answer = httpx2.get(url)
        assert answer.status_code == 200, answer.text
        data = answer.content
    else:
        data = base64.b64decode(b64 or "")
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def png(size: tuple[int, int] = (256, 256), colour: str = "red") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "PNG")
    return stream.getvalue()
