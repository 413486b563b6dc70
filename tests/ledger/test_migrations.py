"""A database of version 0.1.0 with data in every table, moved to this version: nothing is lost, and it is as if made new."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
import subprocess
import sys
import zipfile
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import JSON, Boolean, Connection, MetaData, inspect, text

from danqing.db import migrations, queries, schema
from danqing.db.engines import Engines
from danqing.db.session import Database
from danqing.domain.errors import Unavailable
from tests.ledger.plain import is_sqlite, open_plain, raw, rows

ROOT = Path(__file__).parents[2]
DUMP = (Path(__file__).parent / "version_0_1_0.sql").read_text("utf-8")
NEW_SINCE_0001 = {
    "accounts": {
        "suspended_reason": None,
        "is_admin": False,
        "password_hash": None,
        "price_permille": 1000,
        "address_mac": None,
        "low_balance": None,
        "low_balance_told": False,
        "webhook_url": None,
        "deleted_ms": None,
        "image_days": None,
        "block_level": None,
    },
    "tokens": {"kind": "key", "scopes": "draw", "models": None, "budget_total": None},
    "tasks": {
        "client_key": None,
        "fingerprint": None,
        "background": False,
        "draws": 1,
        "waiver_id": None,
    },
    "redeem_codes": {"kind": "credit", "expires_ms": None, "created_by": None},
    "images": {"link_version": 0, "label_pixel": False},
}


def engines(url: str) -> Engines:
    return Engines(url, synchronous="NORMAL", busy_timeout_ms=1000)


def in_transaction(url: str, work: Any) -> Any:
    opened = engines(url)
    try:
        with opened.writer.begin() as connection:
            return work(connection)
    finally:
        opened.dispose()


def as_dicts(connection: Connection) -> dict[str, list[dict[str, Any]]]:
    """All rows by table, as the tables are now."""
    metadata = MetaData()
    metadata.reflect(connection)
    return {
        name: [
            dict(row)
            for row in connection.execute(table.select().order_by(*table.primary_key)).mappings()
        ]
        for name, table in metadata.tables.items()
    }


def of_version_0_1_0() -> dict[str, list[dict[str, Any]]]:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(DUMP)
        connection.row_factory = sqlite3.Row
        tables = connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table'"
        ).fetchall()
        return {
            name: [dict(row) for row in connection.execute(f"SELECT * FROM {name}")]
            for (name,) in tables
        }


def fill(connection: Connection) -> None:
    """Put the dump's rows into tables that alembic made."""
    metadata = MetaData()
    metadata.reflect(connection)
    old = of_version_0_1_0()
    for table in metadata.sorted_tables:
        for row in old.get(table.name, []):
            for column in table.columns:
                if isinstance(column.type, JSON) and row[column.name] is not None:
                    row[column.name] = json.loads(row[column.name])
                if isinstance(column.type, Boolean):
                    row[column.name] = bool(row[column.name])
            connection.execute(table.insert(), row)


@pytest.fixture(params=["sqlite as it was made", "sqlite", "postgresql"])
def old_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database of version 0.1.0 with its data. It kept no version number itself."""
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres_url")
    else:
        url = f"sqlite:///{tmp_path / 'old.db'}"
    if request.param == "sqlite as it was made":
        with closing(sqlite3.connect(tmp_path / "old.db")) as connection:
            connection.executescript(DUMP)
    else:
        in_transaction(url, lambda connection: schema.migrate(connection, None, "0001"))
        in_transaction(url, fill)
    return url


def plain(sql: object) -> str:
    """SQL without what is only spelling."""
    words = str(sql).lower().replace("false", "0").replace("true", "1")
    words = re.sub(r"::[a-z ]+(\[\])?", "", words)
    return re.sub(r"[\s\"'()]+", "", words)


def shape(url: str) -> dict[str, Any]:
    """Everything about the tables but the order of their columns."""

    def look(connection: Connection) -> dict[str, Any]:
        found = inspect(connection)
        return {
            table: {
                "columns": {
                    column["name"]: (
                        str(column["type"]),
                        column["nullable"],
                        column["default"] and plain(column["default"]),
                    )
                    for column in found.get_columns(table)
                },
                "key": found.get_pk_constraint(table)["constrained_columns"],
                "unique": unique_constraints(connection, table),
                "references": sorted(
                    (one["constrained_columns"], one["referred_table"], one["referred_columns"])
                    for one in found.get_foreign_keys(table)
                ),
                "checks": sorted(
                    (one["name"], plain(one["sqltext"]))
                    for one in found.get_check_constraints(table)
                ),
                "indexes": sorted(
                    (
                        one["name"],
                        one["column_names"],
                        bool(one["unique"]),
                        plain([str(where) for where in one.get("dialect_options", {}).values()]),
                    )
                    for one in found.get_indexes(table)
                ),
            }
            for table in found.get_table_names()
        } | {"triggers": triggers(connection)}

    return in_transaction(url, look)


def unique_constraints(connection: Connection, table: str) -> list[list[str]]:
    if connection.dialect.name != "sqlite":
        found = inspect(connection).get_unique_constraints(table)
        return sorted(one["column_names"] for one in found)
    # SQLAlchemy reads them out of the CREATE TABLE, and overlooks some.
    found = connection.execute(text(f"PRAGMA index_list({table})")).mappings()
    names = [one["name"] for one in found if one["origin"] == "u"]
    return sorted(
        [row[2] for row in connection.execute(text(f"PRAGMA index_info({name})"))] for name in names
    )


def triggers(connection: Connection) -> list[str]:
    if connection.dialect.name == "sqlite":
        statement = "SELECT sql FROM sqlite_master WHERE type = 'trigger' ORDER BY name"
    else:
        statement = (
            "SELECT pg_get_triggerdef(t.oid) || p.prosrc FROM pg_trigger t "
            "JOIN pg_proc p ON p.oid = t.tgfoid WHERE NOT t.tgisinternal ORDER BY t.tgname"
        )
    return [plain(one) for one in connection.execute(text(statement)).scalars()]


def expected_now(before: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """The old rows with what was added to them; waivers have gone elsewhere."""
    (operator,) = [one["id"] for one in before["accounts"] if one["name"] == "operator"]
    expected = {}
    for table, old_rows in before.items():
        expected[table] = [
            {name: value for name, value in row.items() if not name.startswith("waiver_")}
            | NEW_SINCE_0001.get(table, {})
            for row in old_rows
        ]
    for row in expected["accounts"]:
        row["is_admin"] = row["id"] == operator
    for row in expected["tokens"]:
        row["scopes"] = "draw account admin" if row["account_id"] == operator else "draw"
    return expected


def test_nothing_is_lost(old_url: str) -> None:
    before = in_transaction(old_url, as_dicts)
    before.pop("schema_version", None)
    assert before.keys() == of_version_0_1_0().keys()
    assert all(before.values())
    assert schema.upgrade(old_url) == ("0001", schema.HEAD)
    after = in_transaction(old_url, as_dicts)
    for table, rows_expected in expected_now(before).items():
        found = [
            {name: row[name] for name in expected}
            for row, expected in zip(after[table], rows_expected, strict=True)
        ]
        assert found == rows_expected
    assert after["schema_version"] == [{"version_num": schema.HEAD}]
    for table in ("audit_log", "outbox", "token_spending", "blocked_users"):
        assert after[table] == []


def test_waivers_are_moved(old_url: str) -> None:
    (signed,) = [one for one in of_version_0_1_0()["accounts"] if one["waiver_ms"]]
    schema.upgrade(old_url)

    async def main() -> None:
        async with open_plain(old_url) as books:
            for account in await books.db.read(lambda conn: queries.accounts_after(conn, "", 99)):
                waivers = await books.db.read(
                    lambda conn, one=account.id: queries.waivers_of(conn, one)
                )
                told = [
                    (one.version, one.text, one.signer, one.signed_ms, one.revoked_ms)
                    for one in waivers
                ]
                expected = (
                    signed["waiver_version"],
                    signed["waiver_text"],
                    "ann",
                    signed["waiver_ms"],
                    None,
                )
                assert told == ([expected] if account.name == "ann" else [])
            token_id = next(
                one["id"]
                for one in of_version_0_1_0()["tokens"]
                if one["account_id"] == signed["id"]
            )
            facts = await books.db.read(lambda conn: queries.token_facts(conn, token_id))
            assert facts is not None
            assert facts.waiver_id is not None
            assert (facts.scopes, facts.price_permille) == ("draw", 1000)

    asyncio.run(main())


def test_older_tasks_without_a_label_find_their_waiver(old_url: str) -> None:
    """Also one that is older than the account's only waiver, and nobody's task of an account without one."""

    def ask(connection: Connection) -> None:
        for number, found in enumerate(connection.execute(text("SELECT id FROM tasks")).scalars()):
            label = "true" if number == 0 else "false"
            request = f'{{"task": {{"prompt": "", "ai_label": {label}}}}}'
            values = {"id": found, "request": request}
            connection.execute(text("UPDATE tasks SET request = :request WHERE id = :id"), values)

    in_transaction(old_url, ask)
    schema.upgrade(old_url)
    after = in_transaction(old_url, as_dicts)
    waivers = {row["account_id"]: row["id"] for row in after["waivers"]}
    assert len(waivers) == 1
    unlabelled = [row for row in after["tasks"] if not row["request"]["task"]["ai_label"]]
    assert 2 < len(unlabelled) == len(after["tasks"]) - 1
    for row in after["tasks"]:
        expected = waivers.get(row["account_id"]) if row in unlabelled else None
        assert row["waiver_id"] == expected
    assert {row["waiver_id"] is None for row in unlabelled} == {True, False}


def test_the_books_go_on(old_url: str) -> None:
    schema.upgrade(old_url)
    tasks = {one["id"]: one for one in of_version_0_1_0()["tasks"]}
    still = [one for one in tasks.values() if one["finished_ms"] is None]
    assert len(still) == 3

    async def main() -> None:
        async with open_plain(old_url) as books:
            assert await books.ledger.check() == []
            assert (await books.ledger.open_holds()).count == 2
            overdue = await books.ledger.overdue()
            assert {one.id for one in overdue} == {one["id"] for one in still}
            running = next(one for one in overdue if one.state == "running")
            await books.settle(running.id, running.epoch, post=1500, state="succeeded")
            assert len(await books.expire_overdue()) == 2
            accounts = {
                one.name: one
                for one in await books.db.read(lambda conn: queries.accounts_after(conn, "", 99))
            }
            assert accounts["ann"].balance == 15_000 - 1000 - 4000 - 1500
            assert accounts["鲍勃"].balance == 100 + 500
            held = await books.hold(accounts["ann"].id, 8500)
            await books.settle(held, 1, post=8500, state="succeeded")
            assert await books.ledger.balance(accounts["ann"].id) == 0
            assert await books.ledger.check() == []

    asyncio.run(main())


def test_it_is_as_if_made_new(old_url: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if is_sqlite(old_url):
        new_url = f"sqlite:///{tmp_path / 'new.db'}"
    else:
        new_url = request.getfixturevalue("postgres").create_database()
    asyncio.run(Database.open(new_url).close())
    schema.upgrade(old_url)
    upgraded, made = shape(old_url), shape(new_url)
    assert upgraded.keys() == made.keys()
    for table in made:
        assert upgraded[table] == made[table], table


def test_upgrading_twice_does_nothing(old_url: str) -> None:
    schema.upgrade(old_url)
    before = rows(old_url), shape(old_url)
    assert schema.upgrade(old_url) == (schema.HEAD, schema.HEAD)
    assert (rows(old_url), shape(old_url)) == before


def test_an_empty_database_is_made_new(database_url: str) -> None:
    assert schema.upgrade(database_url) == (None, schema.HEAD)
    asyncio.run(Database.open(database_url).close())


def test_a_failing_step_leaves_everything_as_it_was(old_url: str) -> None:
    with raw(old_url) as connection:
        connection.execute("CREATE TABLE outbox (in_the_way INTEGER)")
    before = rows(old_url), shape(old_url)
    with pytest.raises(Exception, match="outbox"):
        schema.upgrade(old_url)
    assert (rows(old_url), shape(old_url)) == before
    with raw(old_url) as connection:
        connection.execute("DROP TABLE outbox")
    assert schema.upgrade(old_url) == ("0001", schema.HEAD)


def test_an_old_one_does_not_start_and_is_told_what_to_do(old_url: str) -> None:
    before = rows(old_url), shape(old_url)
    with pytest.raises(schema.OldSchema, match=r"version 0001.*`danqing database upgrade`"):
        Database.open(old_url)
    assert (rows(old_url), shape(old_url)) == before


def test_a_newer_one_does_not_start(database_url: str) -> None:
    asyncio.run(Database.open(database_url).close())
    with raw(database_url) as connection:
        connection.execute("UPDATE schema_version SET version_num = '9999'")
    for deed in (Database.open, schema.upgrade):
        with pytest.raises(schema.OldSchema, match=r"newer Danqing \(version 9999"):
            deed(database_url)


def test_a_foreign_file_is_not_upgraded(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_bytes(b"this is a text file, not a database" * 100)
    with pytest.raises(Exception, match="not a database"):
        schema.upgrade(f"sqlite:///{tmp_path / 'a.db'}")
    with pytest.raises(Unavailable):
        Database.open(f"sqlite:///{tmp_path / 'a.db'}")


def test_head_is_the_newest_step() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    script = ScriptDirectory.from_config(config)
    assert script.get_heads() == [schema.HEAD]
    steps = [one.revision for one in script.walk_revisions()]
    assert steps == sorted(steps, reverse=True)  # OldSchema compares them as text


def test_the_steps_are_in_the_wheel(tmp_path: Path) -> None:
    build = "import sys; from hatchling.build import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, tmp_path], cwd=ROOT, check=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    folder = ROOT / "src"
    steps = {
        str(path.relative_to(folder)) for path in (folder / "danqing/db/migrations").rglob("*.py")
    }
    assert len(steps) >= 5
    assert steps <= packed
