"""Prepared statements say and find what SQLAlchemy's own execution does, on both databases."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import bindparam, insert, select, update
from sqlalchemy.exc import IntegrityError

from danqing.db.prepared import Prepared
from danqing.db.tables import accounts, tokens
from tests.ledger.plain import open_plain

NEW = insert(tokens)
FIND = select(tokens.c.id, tokens.c.models, accounts.c.suspended.label("stopped")).join(
    accounts, accounts.c.id == tokens.c.account_id
).where(tokens.c.id.in_(bindparam("ids", expanding=True)), tokens.c.key_version >= 1).order_by(
    tokens.c.id
)  # fmt: skip
RENAME = update(tokens).where(tokens.c.id == bindparam("token_id")).values(name=bindparam("new"))


def row(token_id: str, account_id: str, models: object) -> dict[str, object]:
    return {
        "id": token_id,
        "account_id": account_id,
        "key_version": 1,
        "created_ms": 5,
        "models": models,
    }


def test_as_sqlalchemy_has_it(database_url: str) -> None:
    made, find, rename = Prepared(NEW), Prepared(FIND), Prepared(RENAME)
    kept: list[object] = [None, [], ["画", "b'"], ["a", "b"]]

    async def main() -> None:
        async with open_plain(database_url) as books:
            account_id = await books.account(1)

            def work(conn) -> None:
                rows = [row(f"t{at}", account_id, models) for at, models in enumerate(kept)]
                made.count(conn, rows[:1])
                made.count(conn, rows[1:])
                for ids in (["t0"], ["t1", "t3"], ["t9"], ["t0", "t1", "t2", "t3"], ["t2"]):
                    theirs = [dict(one) for one in conn.execute(FIND, {"ids": ids}).mappings()]
                    assert find.rows(conn, {"ids": ids}) == theirs
                found = find.rows(conn, {"ids": ["t0", "t1", "t2", "t3"]})
                assert [one["models"] for one in found] == kept
                assert {one["stopped"] for one in found} == {False}
                names = [{"token_id": f"t{at}", "new": f"n{at}"} for at in range(6)]
                assert rename.count(conn, names) == 4
                assert rename.count(conn, names[5:]) == 0

            await books.db.write(work)
            assert await books.db.read(lambda conn: len(find.rows(conn, {"ids": ["t0"]}))) == 1

    asyncio.run(main())


@pytest.mark.parametrize("count", [1, 2])
def test_errors_are_sqlalchemys(database_url: str, count: int) -> None:
    made = Prepared(NEW)

    async def main() -> None:
        async with open_plain(database_url) as books:
            rows = [row("t", "nobody", None)] * count
            with pytest.raises(IntegrityError):
                await books.db.write(lambda conn: made.count(conn, rows))
            assert await books.account(1)  # the writer goes on

    asyncio.run(main())
