"""The matrix: each API's own request, relayed by one live server to another over each wire that a relay speaks.

Whatever the two are: the answer comes back in the caller's own shape, with as many images as asked for, kept and
labelled here; each ledger has its own price; and what goes wrong there is the caller's dialect's error, and costs nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest
from PIL import Image

from danqing.api import schemas
from tests.api.matrix import EDITS, INBOUND, SECOND, STREAMS, WIRES, fetched, table_of
from tests.api.sse import all_events
from tests.conftest import LiveServer, start_server, stop_server

pytestmark = pytest.mark.slow

PRICE = 5000
REFUSED_PROMPT = "lolicon"
"""A term of the bundled list. The first server lets it pass."""


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("second")
    (folder / "catalog.toml").write_text(SECOND)
    live = start_server(
        folder / "data",
        module="tests.null_server",
        DANQING_CATALOG_FILE=str(folder / "catalog.toml"),
    )
    yield live
    assert stop_server(live) == 0


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, second: LiveServer) -> Iterator[LiveServer]:
    """Every wire to the other server three times: with a good key, with a poor one, and where nobody is."""
    folder = tmp_path_factory.mktemp("first")
    poor = second.account("poor-relay", 1)
    # We label what comes, so theirs is left off: for that the account there has signed.
    for name in ("operator", "poor-relay"):
        second.cli("account", "waive", name)
    tables: list[str] = []
    for suffix, token, url in (
        ("", second.token, second.url),
        ("-poor", poor, second.url),
        ("-down", second.token, "http://127.0.0.1:1"),
    ):
        key = folder / f"key{suffix}"
        key.write_text(token)
        tables += [table_of(f"by-{name}{suffix}", wire, url, key) for name, wire in WIRES.items()]
    (folder / "catalog.toml").write_text("".join(tables), encoding="utf-8")
    live = start_server(
        folder / "data",
        module="tests.null_server",
        DANQING_CATALOG_FILE=str(folder / "catalog.toml"),
        DANQING_MODERATION__BLOCK_LEVEL="-1",
    )
    yield live
    assert stop_server(live) == 0


class Ledgers:
    """What two servers' operators have spent since this was made."""

    def __init__(self, *servers: LiveServer) -> None:
        self._servers = servers
        self._before = [server.balance("operator") for server in servers]

    def spent(self) -> list[int]:
        """By server; `balance` checks every invariant of its ledger on the way."""
        now = [server.balance("operator") for server in self._servers]
        return [before - after for before, after in zip(self._before, now, strict=True)]


def check_kept_and_labelled(link: str, first: LiveServer) -> None:
    """The link is ours, and so is the label: our id in the metadata, a visible mark on the one colour drawn there."""
    assert link.startswith(first.url)
    image = fetched(link)
    check_labelled(image)
    assert link.split("/files/")[1].split(".")[0] in image.info["XML:com.adobe.xmp"]


def check_labelled(image: Image.Image) -> None:
    image.load()
    assert image.size == (1024, 1024)
    assert "AIGC" in image.info["XML:com.adobe.xmp"]
    darkest, lightest = image.convert("L").crop((512, 870, 1024, 1024)).getextrema()
    assert lightest - darkest > 20


def follows(schema: schemas.Schema, body: Any) -> None:
    jsonschema_rs.validator_for(schema).validate(body)


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("inbound", INBOUND)
def test_a_drawing_comes_back_natively(
    first: LiveServer, second: LiveServer, inbound: str, wire: str
) -> None:
    one, ledgers = INBOUND[inbound], Ledgers(first, second)
    answer = first.client.post(one.path, json=one.body(f"by-{wire}", "a cat"))
    assert answer.status_code == 200, answer.text
    follows(schemas.ANSWERS[one.dialect], answer.json())
    found = one.links(answer.json())
    assert len(found) == one.n
    for link in found:
        check_kept_and_labelled(link, first)
    assert answer.headers["x-danqing-charged"] == str(one.n * PRICE)
    assert ledgers.spent() == [one.n * PRICE, one.n * PRICE]


@pytest.mark.parametrize("wire", WIRES)
def test_a_task_comes_back_natively(first: LiveServer, second: LiveServer, wire: str) -> None:
    """Zhipu's and DashScope's asynchronous routes, and ours by `Prefer`."""
    ledgers = Ledgers(first, second)
    prefix, headers = "/api/v1", {"x-dashscope-async": "enable"}
    begun = [
        first.client.post(
            "/api/paas/v4/async/images/generations", json={"model": f"by-{wire}", "prompt": "a cat"}
        ),
        first.client.post(
            f"{prefix}/services/aigc/text2image/image-synthesis",
            json={
                "model": f"by-{wire}",
                "input": {"prompt": "a cat"},
                "parameters": {"prompt_extend": False},
            },
            headers=headers,
        ),
        first.client.post(
            "/v1/images/generations",
            json={"model": f"by-{wire}", "prompt": "a cat"},
            headers={"prefer": "respond-async"},
        ),
    ]
    assert [answer.status_code for answer in begun] == [200, 200, 202], [a.text for a in begun]
    zhipu = _ended(first, f"/api/paas/v4/async-result/{begun[0].json()['id']}", "task_status")
    assert zhipu["task_status"] == "SUCCESS"
    synthesis = _ended(first, f"{prefix}/tasks/{begun[1].json()['output']['task_id']}", "output")
    ours = _ended(first, begun[2].headers["location"], "status")
    found = [zhipu["image_result"][0]["url"], synthesis["output"]["results"][0]["url"]]
    for link in [*found, ours["data"][0]["url"]]:
        check_kept_and_labelled(link, first)
    assert ledgers.spent() == [3 * PRICE, 3 * PRICE]


def _ended(first: LiveServer, path: str, key: str) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while True:
        body = first.client.get(path).json()
        state = body[key]["task_status"] if key == "output" else body[key]
        if state in ("SUCCESS", "SUCCEEDED", "FAIL", "FAILED", "succeeded", "failed"):
            return body
        assert time.monotonic() < deadline, body
        time.sleep(0.2)


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("inbound", EDITS)
def test_an_edit_comes_back_natively_or_is_refused_by_name(
    first: LiveServer, second: LiveServer, inbound: str, wire: str
) -> None:
    (one, _), ledgers = EDITS[inbound], Ledgers(first, second)
    answer = first.client.post(one.path, json=one.body(f"by-{wire}", "make it blue"))
    if WIRES[wire].edits:
        assert answer.status_code == 200, answer.text
        follows(schemas.ANSWERS[one.dialect], answer.json())
        (link,) = one.links(answer.json())
        check_kept_and_labelled(link, first)
        assert ledgers.spent() == [PRICE, PRICE]
    else:
        assert answer.status_code == 400, answer.text
        follows(schemas.ERRORS[one.dialect], answer.json())
        assert "image" in answer.text
        assert ledgers.spent() == [0, 0]


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("inbound", STREAMS)
def test_a_stream_comes_natively(
    first: LiveServer, second: LiveServer, inbound: str, wire: str
) -> None:
    one, ledgers = INBOUND[inbound], Ledgers(first, second)
    asked = one.body(f"by-{wire}", "a cat") | {"stream": True, "n": 1}
    if inbound == "ark":
        del asked["n"]
    answer = first.client.post(one.path, json=asked)
    (image,) = STREAMS[inbound](all_events(answer))
    check_labelled(image)
    assert ledgers.spent() == [PRICE, PRICE]


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("inbound", STREAMS)
def test_a_stream_that_is_refused_there_says_so(
    first: LiveServer, second: LiveServer, inbound: str, wire: str
) -> None:
    """The refusal comes after the stream has begun, or before: either way it is the caller's own error."""
    one, ledgers = INBOUND[inbound], Ledgers(first, second)
    asked = one.body(f"by-{wire}", REFUSED_PROMPT) | {"stream": True}
    answer = first.client.post(one.path, json=asked)
    if answer.status_code == 200:
        bodies = [one.data for one in all_events(answer) if one.data != "[DONE]"]
        error = next(body["error"] for body in bodies if "error" in body)
    else:
        error = answer.json()["error"]
    assert error["code"] in REFUSED_CODES
    assert ledgers.spent() == [0, 0]


FAULTS = ("refused", "poor", "down")


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("inbound", INBOUND)
def test_what_goes_wrong_there_is_told_natively_and_costs_nothing(
    first: LiveServer, second: LiveServer, inbound: str, wire: str, fault: str
) -> None:
    one, ledgers = INBOUND[inbound], Ledgers(first, second)
    model = f"by-{wire}" if fault == "refused" else f"by-{wire}-{fault}"
    prompt = REFUSED_PROMPT if fault == "refused" else "a cat"
    answer = first.client.post(one.path, json=one.body(model, prompt))
    body = answer.json()
    if one.dialect == "draw":
        assert answer.status_code == 200
        assert "error" in body
        follows(schemas.DRAW, body)
    else:
        assert answer.status_code == 400 if fault == "refused" else answer.status_code >= 429, body
        follows(schemas.ERRORS[one.dialect], body)
    if fault == "refused":
        code = body.get("code") or body["error"]["code"]
        assert code in REFUSED_CODES, body
    assert "x-danqing-charged" not in answer.headers
    assert ledgers.spent() == [0, 0]


REFUSED_CODES = frozenset(
    {
        "content_policy_violation",
        "1301",
        "DataInspectionFailed",
        "InputTextSensitiveContentDetected",
    }
)
