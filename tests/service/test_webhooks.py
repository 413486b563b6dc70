"""Webhooks: the specification's own vector, every way a signature can be wrong, and sending to real receivers."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import inspect
import json
import re
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import ROOT
from tests.net.servers import Names, Received, Wire, answer, serving

from danqing.db.rows import OutboxRow
from danqing.domain.errors import InvalidField, InvalidToken
from danqing.net.outbound import Outbound
from danqing.service.webhooks import (
    LEASE_MS,
    RETRY_S,
    InvalidSignature,
    WebhookSender,
    account_secret,
    check_url,
    parse_secret,
    shown,
    sign,
    verify,
)

# Of the specification's libraries: the test "sign function works".
SECRET = parse_secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
MESSAGE_ID, TIMESTAMP_S = "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330
BODY = b'{"test": 2432232314}'
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="

KEY = b"k" * 32
T0 = 1_790_000_000_000


def headers(**changes: str | None) -> dict[str, str]:
    good = {"id": MESSAGE_ID, "timestamp": str(TIMESTAMP_S), "signature": SIGNATURE}
    return {f"webhook-{k}": v for k, v in (good | changes).items() if v is not None}


def test_the_specifications_vector() -> None:
    assert sign(SECRET, MESSAGE_ID, TIMESTAMP_S, BODY) == SIGNATURE
    assert verify(SECRET, headers(), BODY, TIMESTAMP_S) == MESSAGE_ID


def test_headers_of_any_case_and_one_good_signature_among_several() -> None:
    sent = {name.title(): value for name, value in headers().items()}
    assert verify(SECRET, sent, BODY, TIMESTAMP_S) == MESSAGE_ID
    several = f"v1a,{SIGNATURE[3:]} v1,bm90aGlz  {SIGNATURE} v2,x"
    assert verify(SECRET, headers(signature=several), BODY, TIMESTAMP_S) == MESSAGE_ID


@pytest.mark.parametrize(
    "changes",
    [
        {"id": None},
        {"id": ""},
        {"id": "msg_other"},
        {"id": f"{MESSAGE_ID}.{TIMESTAMP_S}"},
        {"id": f"{MESSAGE_ID}\n"},
        {"id": "信"},
        {"timestamp": None},
        {"timestamp": "now"},
        {"timestamp": str(TIMESTAMP_S + 1)},
        {"timestamp": f"{TIMESTAMP_S}.0"},
        {"timestamp": f"0{TIMESTAMP_S}"},
        {"timestamp": f" {TIMESTAMP_S}"},
        {"timestamp": f"-{TIMESTAMP_S}"},
        {"timestamp": "١٦١٤٢٦٥٣٣٠"},
        {"timestamp": "9" * 5000},
        {"signature": None},
        {"signature": ""},
        {"signature": "v1,"},
        {"signature": SIGNATURE[3:]},
        {"signature": SIGNATURE.replace("v1,", "v1a,")},
        {"signature": SIGNATURE.replace("v1,", "v2,")},
        {"signature": SIGNATURE.lower()},
        {"signature": SIGNATURE[:-1]},
        {"signature": SIGNATURE + "="},
        {"signature": "信" * 3000},
        {"signature": "\udcff"},
        {"signature": "v1,x " * 5000 + SIGNATURE},
    ],
)
def test_wrong_headers(changes: dict[str, str | None]) -> None:
    with pytest.raises(InvalidSignature) as caught:
        verify(SECRET, headers(**changes), BODY, TIMESTAMP_S)
    assert isinstance(caught.value, InvalidToken)
    assert SIGNATURE not in caught.value.message


def test_fields_cannot_grow_into_each_other() -> None:
    """`a.1.2.x` may be id `a`, time 1 and body `2.x`, but not id `a.1`, time 2 and body `x`."""
    signature = sign(SECRET, "a", TIMESTAMP_S, b"%d.x" % TIMESTAMP_S)
    sent = headers(id=f"a.{TIMESTAMP_S}", signature=signature)
    with pytest.raises(InvalidSignature):
        verify(SECRET, sent, b"x", TIMESTAMP_S)


@pytest.mark.parametrize("off_s", [-(10**9), -301, 301, 10**9])
def test_stale_and_future(off_s: int) -> None:
    with pytest.raises(InvalidSignature, match="timestamp"):
        verify(SECRET, headers(), BODY, TIMESTAMP_S + off_s)


@pytest.mark.parametrize("off_s", [-300, -1, 0, 300])
def test_within_the_tolerance(off_s: int) -> None:
    assert verify(SECRET, headers(), BODY, TIMESTAMP_S + off_s) == MESSAGE_ID


@given(st.binary(min_size=24, max_size=64), st.binary(max_size=200), st.data())
def test_no_other_body_and_no_other_secret(secret: bytes, body: bytes, data: st.DataObject) -> None:
    sent = headers(signature=sign(secret, MESSAGE_ID, TIMESTAMP_S, body))
    assert verify(secret, sent, body, TIMESTAMP_S) == MESSAGE_ID
    other_body = data.draw(st.binary(max_size=200).filter(lambda other: other != body))
    other_secret = data.draw(st.binary(min_size=24, max_size=64).filter(lambda s: s != secret))
    for bad_secret, bad_body in ((secret, other_body), (other_secret, body)):
        # HMAC pads a key of up to 64 bytes with zeros: those two are one.
        if bad_secret.rstrip(b"\0") == secret.rstrip(b"\0") and bad_body == body:
            continue
        with pytest.raises(InvalidSignature):
            verify(bad_secret, sent, bad_body, TIMESTAMP_S)


def test_secrets() -> None:
    secret = account_secret(KEY, "account-1")
    assert len(secret) == 32
    assert secret == account_secret(KEY, "account-1")
    assert (
        len({secret, account_secret(KEY, "account-2"), account_secret(b"x" * 32, "account-1")}) == 3
    )
    assert shown(secret).startswith("whsec_")
    assert parse_secret(shown(secret)) == secret
    assert KEY not in secret


@pytest.mark.parametrize(
    "text", ["", "whsec_", "whsec_c2hvcnQ=", "whsec_***", shown(KEY)[6:], "信"]
)
def test_what_is_no_secret(text: str) -> None:
    with pytest.raises(ValueError, match="webhook secret") as caught:
        parse_secret(text)
    assert not text or text == "whsec_" or text not in str(caught.value)


def test_an_empty_secret_signs_nothing_and_checks_nothing() -> None:
    with pytest.raises(ValueError, match="24 bytes"):
        sign(b"", MESSAGE_ID, TIMESTAMP_S, BODY)
    with pytest.raises(ValueError, match="24 bytes"):
        verify(b"", headers(), BODY, TIMESTAMP_S)


def test_check_url() -> None:
    check_url("https://example.com/hook")
    check_url("http://127.0.0.1:9000/", hosts=["127.0.0.1"])
    for url in (
        "http://127.0.0.1:9000/",
        "https://user:pass@example.com/",
        "ftp://example.com/",
        "not a url",
        "https://example.com/" + "a" * 2048,
    ):
        with pytest.raises(InvalidField) as caught:
            check_url(url)
        assert caught.value.param == "webhook_url"


class Outbox:
    """An outbox in memory that behaves as the one in the database."""

    def __init__(self) -> None:
        self.rows: dict[str, OutboxRow] = {}
        self.next_ms: dict[str, int] = {}
        self.attempts: dict[str, int] = {}
        self.done: dict[str, str] = {}
        self.notes: dict[str, str] = {}

    def add(self, url: str, n: int = 1, account_id: str = "a") -> list[str]:
        ids = [f"{account_id}-{len(self.rows) + k}" for k in range(n)]
        for row_id in ids:
            payload = {"task": "t", "提示": "一只猫"}
            self.rows[row_id] = OutboxRow(
                row_id, account_id, url, "task.succeeded", payload, 0, T0 + 5
            )
            self.next_ms[row_id], self.attempts[row_id] = T0, 0
        return ids

    async def claim(
        self, now_ms: int, until_ms: int, rows_max: int, busy: Collection[str]
    ) -> list[OutboxRow]:
        due = [
            row
            for row in self.rows.values()
            if row.id not in self.done
            and self.next_ms[row.id] <= now_ms
            and row.account_id not in busy
        ]
        due = sorted(due, key=lambda row: self.next_ms[row.id])[:rows_max]
        claimed = []
        for row in due:
            claimed.append(
                OutboxRow(
                    row.id,
                    row.account_id,
                    row.url,
                    row.event,
                    row.payload,
                    self.attempts[row.id],
                    row.created_ms,
                )
            )
            self.attempts[row.id] += 1
            self.next_ms[row.id] = until_ms
        return claimed

    async def delivered(self, row_id: str, now_ms: int) -> None:
        self.done[row_id] = "delivered"

    async def failed(self, row_id: str, now_ms: int, retry_at_ms: int | None, note: str) -> None:
        self.notes[row_id] = note
        if retry_at_ms is None:
            self.done[row_id] = "given up"
        else:
            self.next_ms[row_id] = retry_at_ms


class Clock:
    def __init__(self) -> None:
        self.now_ms = T0

    def __call__(self) -> int:
        return self.now_ms


def sender(outbox: Outbox, clock: Clock, outbound: Outbound | None = None, **options):
    options = {"hosts": ["127.0.0.1"], "timeout_s": 60.0} | options
    return WebhookSender(outbox, outbound or Outbound(), KEY, clock_ms=clock, **options)


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(test())


def checked(request: Received, account_id: str = "a") -> dict:
    """The body of a request, once its signature is checked as a receiver's library does it."""
    secret = base64.b64decode(shown(account_secret(KEY, account_id)).removeprefix("whsec_"))
    at = request.headers["webhook-timestamp"]
    content = f"{request.headers['webhook-id']}.{at}.".encode() + request.body
    digest = hmac.new(secret, content, hashlib.sha256).digest()
    assert request.headers["webhook-signature"] == f"v1,{base64.b64encode(digest).decode()}"
    assert request.headers["content-type"] == "application/json"
    return json.loads(request.body)


def test_delivery() -> None:
    async def test() -> None:
        outbox, clock = Outbox(), Clock()
        async with serving(answer(204)) as receiver:
            (row_id,) = outbox.add(f"{receiver.url}/hook?x=1")
            assert await sender(outbox, clock).run_once() == 1
            assert await sender(outbox, clock).run_once() == 0
        assert outbox.done == {row_id: "delivered"}
        (request,) = receiver.requests
        assert request.line == "POST /hook?x=1 HTTP/1.1"
        assert checked(request) == {
            "type": "task.succeeded",
            "timestamp": "2026-09-21T14:13:20.005Z",
            "data": {"task": "t", "提示": "一只猫"},
        }
        assert verify(account_secret(KEY, "a"), request.headers, request.body, T0 // 1000) == row_id
        with pytest.raises(InvalidSignature):
            verify(account_secret(KEY, "b"), request.headers, request.body, T0 // 1000)

    run(test)


def test_retries_by_the_schedule_then_given_up() -> None:
    async def test() -> None:
        outbox, clock = Outbox(), Clock()
        async with serving(answer(500)) as receiver:
            (row_id,) = outbox.add(receiver.url)
            work = sender(outbox, clock)
            for delay_s in RETRY_S:
                assert await work.run_once() == 1
                waits_ms = outbox.next_ms[row_id] - clock.now_ms
                assert delay_s * 1000 <= waits_ms <= delay_s * 1200
                clock.now_ms = outbox.next_ms[row_id] - 1
                assert await work.run_once() == 0
                clock.now_ms += 1
            assert await work.run_once() == 1
        assert outbox.done == {row_id: "given up"}
        assert outbox.notes[row_id] == "The receiver answered 500."
        assert len(receiver.requests) == len(RETRY_S) + 1
        bodies = {request.body for request in receiver.requests}
        ids = {request.headers["webhook-id"] for request in receiver.requests}
        times = {request.headers["webhook-timestamp"] for request in receiver.requests}
        assert (len(bodies), ids, len(times)) == (1, {row_id}, len(RETRY_S) + 1)
        for request in receiver.requests:
            checked(request)

    run(test)


def test_retries_do_not_march_in_step() -> None:
    async def test() -> None:
        outbox, clock = Outbox(), Clock()
        async with serving(answer(503)) as receiver:
            outbox.add(receiver.url, 20)
            work = sender(outbox, clock)
            while await work.run_once():
                pass
        assert len(receiver.requests) == 20
        assert len(set(outbox.next_ms.values())) > 10

    run(test)


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (200, "delivered"),
        (299, "delivered"),
        (410, "given up"),
        (302, None),
        (404, None),
        (429, None),
        (500, None),
    ],
)
def test_status(status: int, outcome: str | None) -> None:
    async def test() -> None:
        outbox, clock = Outbox(), Clock()
        async with serving(answer()) as elsewhere:
            said = answer(status, headers=[f"Location: {elsewhere.url}"])
            async with serving(said) as receiver:
                (row_id,) = outbox.add(receiver.url)
                await sender(outbox, clock).run_once()
            assert outbox.done.get(row_id) == outcome
            assert elsewhere.connections == 0, "redirects are not followed"
            assert (outbox.notes.get(row_id) is None) == (outcome == "delivered")

    run(test)


def test_the_answers_body_does_not_matter() -> None:
    async def endless(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"400\r\n" + b"a" * 0x400 + b"\r\n")
            await writer.drain()

    async def test() -> None:
        outbox, clock = Outbox(), Clock()
        async with serving(endless) as receiver:
            (row_id,) = outbox.add(receiver.url)
            await sender(outbox, clock).run_once()
        assert outbox.done == {row_id: "delivered"}

    run(test)


def test_urls_into_the_house_are_not_called() -> None:
    async def test() -> None:
        outbox, clock = Outbox(), Clock()
        async with serving(answer()) as inside:
            rows = outbox.add(f"http://127.0.0.1:{inside.port}/") + outbox.add("http://in.example/")
            wire = Wire({"10.0.0.1": inside})
            outbound = Outbound(resolve=Names(in_example=[["10.0.0.1"]]), dialer=wire)
            await sender(outbox, clock, outbound, hosts=[]).run_once()
            assert inside.connections == 0
            assert wire.dialed == []
        assert set(outbox.notes) == set(rows)
        assert "not a public host" in outbox.notes[rows[1]]
        assert "10.0.0.1" not in outbox.notes[rows[1]]

    run(test)


async def never(_: Received, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


def test_a_receiver_that_hangs_does_not_hold_up_the_others() -> None:
    async def test() -> None:
        outbox, clock = Outbox(), Clock()
        async with serving(never) as slow, serving(answer()) as quick:
            outbox.add(slow.url, 100, account_id="slow")
            good = outbox.add(quick.url, 60, account_id="quick")
            work = sender(outbox, clock, sending_max=12, timeout_s=600.0)
            running = asyncio.create_task(work.run())
            await _until(lambda: set(good) <= set(outbox.done))
            assert outbox.notes == {}, "before the first slow one has timed out"
            assert 1 <= slow.connections <= 7
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    run(test)


def test_no_more_at_a_time_than_allowed() -> None:
    async def test() -> None:
        outbox, clock = Outbox(), Clock()
        now = most = 0
        met = asyncio.Event()

        async def count(request: Received, writer: asyncio.StreamWriter) -> None:
            nonlocal now, most
            now += 1
            most = max(most, now)
            if now == 6:
                met.set()
            await met.wait()
            await asyncio.sleep(0.02)
            now -= 1
            await answer()(request, writer)

        async with serving(count) as receiver:
            for account in range(20):
                outbox.add(receiver.url, 2, account_id=f"account-{account}")
            work = sender(outbox, clock, sending_max=6)
            assert await work.run_once() == 6
            while await work.run_once():
                pass
        assert most == 6
        assert len(outbox.done) == 40
        assert set(outbox.attempts.values()) == {1}

    run(test)


def test_a_database_that_fails_stops_nothing() -> None:
    class Shaky(Outbox):
        failures = 3

        async def claim(self, *args) -> list[OutboxRow]:
            self._shake()
            return await super().claim(*args)

        async def delivered(self, *args) -> None:
            self._shake()
            await super().delivered(*args)

        def _shake(self) -> None:
            if self.failures:
                self.failures -= 1
                raise RuntimeError("the database is gone")

    async def test() -> None:
        outbox, clock = Shaky(), Clock()
        async with serving(answer()) as receiver:
            (row_id,) = outbox.add(receiver.url)
            running = asyncio.create_task(sender(outbox, clock).run(poll_s=0.01))
            async with asyncio.timeout(60):
                while not outbox.done:
                    await asyncio.sleep(0.01)
                    if outbox.attempts[row_id]:
                        clock.now_ms += LEASE_MS  # what could not be noted is due again
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            assert outbox.done == {row_id: "delivered"}
            assert outbox.failures == 0

    run(test)


def test_closing_waits_for_what_is_under_way() -> None:
    async def test() -> None:
        outbox, clock = Outbox(), Clock()
        go_on = asyncio.Event()

        async def slowly(request: Received, writer: asyncio.StreamWriter) -> None:
            await go_on.wait()
            await answer()(request, writer)

        async with serving(slowly) as receiver:
            (row_id,) = outbox.add(receiver.url)
            work = sender(outbox, clock)
            running = asyncio.create_task(work.run(poll_s=0.01))
            await _until(lambda: receiver.requests)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            assert outbox.done == {}
            asyncio.get_running_loop().call_later(0.1, go_on.set)
            await work.aclose()
            assert outbox.done == {row_id: "delivered"}

    run(test)


async def _until(happened: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not happened():
            await asyncio.sleep(0.01)


PAGE = (ROOT / "docs" / "accounts.md").read_text("utf-8")


def test_the_page_checks_a_signature_as_it_says() -> None:
    """Its code, run as it stands."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    secret, body, now_s = bytes(range(32)), '{"type":"猫"}'.encode(), int(time.time())
    signed = {
        "webhook-id": "m-1",
        "webhook-timestamp": str(now_s),
        "webhook-signature": "v1,AAAA " + sign(secret, "m-1", now_s, body),
    }
    text = shown(secret)
    assert names["is_genuine"](text, signed, body)
    assert not names["is_genuine"](text, signed, body + b" ")
    assert not names["is_genuine"](shown(secret[::-1]), signed, body)
    late = str(now_s - 400)
    old = signed | {
        "webhook-timestamp": late,
        "webhook-signature": sign(secret, "m-1", int(late), body),
    }
    assert not names["is_genuine"](text, old, body)


def test_the_page_has_the_schedule() -> None:
    units = {"s": 1, "min": 60, "h": 3600}
    (row,) = re.findall(r"^\| 2, 3, 4, 5, 6, 7 \| (.*?) after", PAGE, re.MULTILINE)
    said = [int(count) * units[unit] for count, unit in re.findall(r"(\d+) (s|min|h)\b", row)]
    assert tuple(said) == RETRY_S
    timeout = inspect.signature(WebhookSender).parameters["timeout_s"].default
    assert f"no answer within {timeout:.0f} s" in PAGE
