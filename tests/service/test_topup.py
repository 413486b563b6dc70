"""Payments: each is granted once, however often it comes, and only from who has the secret."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path

import pytest
from tests.ledger.books import Books, open_books, with_books

from danqing.db.rows import CHARACTERS_MAX
from danqing.domain.errors import (
    DanqingError,
    IdempotencyConflict,
    InvalidBody,
    InvalidField,
    MissingField,
    NotFound,
)
from danqing.service.webhooks import InvalidSignature, sign

SECRET = b"thirty-two bytes of a test secret"
SHOWN = "whsec_" + base64.b64encode(SECRET).decode()
PAYMENT = {"payment_id": "pay_1", "account": "a", "characters": 500, "provider": "shop"}


def webhook(
    now_ms: int, content: object = PAYMENT, secret: bytes = SECRET, message_id: str = "msg_1"
) -> tuple[dict[str, str], bytes]:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    headers = {
        "webhook-id": message_id,
        "webhook-timestamp": str(now_ms // 1000),
        "webhook-signature": sign(secret, message_id, now_ms // 1000, body),
    }
    return headers, body


def test_granted_once_however_often_and_wherever_it_comes(
    tmp_path: Path, database_url: str
) -> None:
    async def main() -> None:
        async with (
            open_books(tmp_path, url=database_url, payments_secret=SHOWN) as books,
            open_books(tmp_path, url=database_url, payments_secret=SHOWN) as others,
        ):
            account = await books.accounts.create("a", 0)
            answers = await asyncio.gather(
                *(
                    each.topup.receive(*webhook(books.clock.now_ms, message_id=f"msg_{n}"))
                    for n in range(5)
                    for each in (books, others)
                )
            )
            await books.accounts.grant("a", 7, "gift", by="t")
            books.clock.now_ms += 86_400_000
            late = await books.topup.receive(*webhook(books.clock.now_ms))
            assert answers == [late] * 10
            assert late["account"] == "a"
            assert await books.ledger.balance(account.id) == 507
            rows = await books.accounts.statement(account.id)
            assert sorted((row.amount, row.reason) for row in rows) == [
                (7, "gift"), (500, "shop pay_1")
            ]  # fmt: skip
            (row,) = [row for row in await books.trail.rows() if row.deed == "account.top_up"]
            assert row.actor == "payment:shop"
            assert await books.ledger.check() == []

    asyncio.run(main())


def test_other_payments_are_others(tmp_path: Path) -> None:
    async def deed(books: Books) -> None:
        await books.accounts.create("a", 0)
        await books.accounts.create("b", 0)
        now_ms = books.clock.now_ms
        await books.topup.receive(*webhook(now_ms))
        for changes in ({"payment_id": "pay_2"}, {"provider": "bank"}):
            await books.topup.receive(*webhook(now_ms, PAYMENT | changes))
        for changes in ({"characters": 501}, {"account": "b"}):
            with pytest.raises(IdempotencyConflict):
                await books.topup.receive(*webhook(now_ms, PAYMENT | changes))
        balances = [(await books.accounts.get(name)).balance for name in ("a", "b")]
        assert balances == [1500, 0]

    with_books(tmp_path, deed, payments_secret=SHOWN)


def test_a_payment_for_a_name_that_is_anothers_now(tmp_path: Path) -> None:
    async def deed(books: Books) -> None:
        first = await books.accounts.create("a", 0)
        await books.topup.receive(*webhook(books.clock.now_ms))
        await books.accounts.delete(first.id, by="t")
        with pytest.raises(NotFound):
            await books.topup.receive(*webhook(books.clock.now_ms))
        await books.accounts.create("a", 0)
        with pytest.raises(IdempotencyConflict):
            await books.topup.receive(*webhook(books.clock.now_ms))
        assert (await books.accounts.get("a")).balance == 0

    with_books(tmp_path, deed, payments_secret=SHOWN)


def test_forged_stale_or_altered(tmp_path: Path) -> None:
    async def deed(books: Books) -> None:
        account = await books.accounts.create("a", 0)
        now_ms = books.clock.now_ms
        headers, body = webhook(now_ms)
        for bad_headers, bad_body in (
            webhook(now_ms, secret=b"another secret of enough bytes"),
            webhook(now_ms - 301_000),
            webhook(now_ms + 302_000),
            (headers, body.replace(b"500", b"900")),
            (headers | {"webhook-id": "msg_2"}, body),
            (headers | {"webhook-timestamp": str(now_ms // 1000 + 1)}, body),
            (headers | {"webhook-signature": "v1,"}, body),
            ({}, body),
        ):
            with pytest.raises(InvalidSignature):
                await books.topup.receive(bad_headers, bad_body)
        assert await books.ledger.balance(account.id) == 0

    with_books(tmp_path, deed, payments_secret=SHOWN)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", InvalidBody),
        (b"[" * 100_000, InvalidBody),
        (b"\xff", InvalidBody),
        ([PAYMENT], InvalidBody),
        ({}, MissingField),
        (PAYMENT | {"payment_id": 5}, InvalidField),
        (PAYMENT | {"payment_id": ""}, InvalidField),
        (PAYMENT | {"payment_id": "a\0"}, InvalidField),
        (PAYMENT | {"payment_id": "x" * 201}, InvalidField),
        (PAYMENT | {"provider": None}, InvalidField),
        (PAYMENT | {"account": "nobody"}, NotFound),
        (PAYMENT | {"account": "\ud800"}, InvalidField),
        (PAYMENT | {"characters": -5}, InvalidField),
        (PAYMENT | {"characters": 0}, InvalidField),
        (PAYMENT | {"characters": 5.0}, InvalidField),
        (PAYMENT | {"characters": "5"}, InvalidField),
        (PAYMENT | {"characters": True}, InvalidField),
        (PAYMENT | {"characters": None}, InvalidField),
        (PAYMENT | {"characters": CHARACTERS_MAX + 1}, InvalidField),
        (b'{"payment_id":"p","account":"a","characters":' + b"9" * 5000 + b"}", InvalidBody),
    ],
)
def test_bad_bodies(tmp_path: Path, content: object, error: type[DanqingError]) -> None:
    async def deed(books: Books) -> None:
        account = await books.accounts.create("a", 0)
        with pytest.raises(error):
            await books.topup.receive(*webhook(books.clock.now_ms, content))
        assert await books.ledger.balance(account.id) == 0

    with_books(tmp_path, deed, payments_secret=SHOWN)


def test_without_a_secret_no_payments_are_taken(tmp_path: Path) -> None:
    async def deed(books: Books) -> None:
        with pytest.raises(NotFound):
            await books.topup.receive(*webhook(books.clock.now_ms))

    with_books(tmp_path, deed)
