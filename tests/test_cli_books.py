"""The commands on the books, in this process: accounts, tokens, end users, audit, keys, the database's version."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
from pathlib import Path

import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import create_engine
from typer.testing import Result

from danqing.db import schema
from danqing.db.migrations.versions import m0001_first
from tests.commands import invoke, one_line, run


@pytest.fixture
def where(tmp_path: Path) -> tuple[str, str]:
    """Books with the account alice in them."""
    folder = ("--data-dir", str(tmp_path / "data"))
    run("account", "create", "alice", *folder)
    return folder


def shown(where: tuple[str, str], name: str = "alice") -> dict:
    return json.loads(run("account", "show", name, "--json", *where).stdout)


def cells(result: Result) -> list[list[str]]:
    return [line.split("\t") for line in result.stdout.splitlines()]


# Accounts


def test_show_has_the_balance_on_a_line_of_its_own(where: tuple[str, str]) -> None:
    lines = run("account", "show", "alice", *where).stdout.splitlines()
    assert "balance: 15000" in lines
    assert "held: 0" in lines
    assert "waiver: -" in lines


def test_what_is_set_is_shown(where: tuple[str, str]) -> None:
    run("account", "price", "alice", "500", *where)
    run("account", "admin", "alice", *where)
    run("account", "suspend", "alice", "--reason", "unpaid", *where)
    facts = shown(where)
    assert facts["price_permille"] == 500
    assert facts["admin"] is True
    assert (facts["suspended"], facts["suspended_reason"]) == (True, "unpaid")
    assert cells(run("account", "list", *where)) == [["alice", "15000", "suspended"]]
    run("account", "restore", "alice", *where)
    run("account", "admin", "alice", "--revoke", *where)
    facts = shown(where)
    assert (facts["suspended"], facts["admin"]) == (False, False)
    assert "price_permille" in one_line(run("account", "price", "alice", "1000001", *where, code=1))


def test_waiver(where: tuple[str, str]) -> None:
    signed = run("account", "waive", "alice", "--signer", "Li Si", *where).stdout
    assert "without a visible AI label" in signed
    assert shown(where)["waiver"] == "1"
    assert shown(where)["waived"].endswith("Z")
    run("account", "waive", "alice", "--revoke", *where)
    assert shown(where)["waiver"] is None
    one_line(run("account", "waive", "alice", "--revoke", *where, code=1))


def test_adjust_and_statement(where: tuple[str, str]) -> None:
    assert run("grant", "alice", "500", *where).stdout == "balance: 15500\n"
    taken = run("adjust", "alice", "-15000", "--reason", "=1+1", *where)
    assert taken.stdout == "balance: 500\n"
    short = one_line(run("adjust", "alice", "-501", "--reason", "x", *where, code=1))
    assert "alice" in short
    assert "your" not in short
    assert "adjust" in run("grant", "alice", "-5", *where, code=2).stderr
    assert "501" in one_line(run("adjust", "alice", "-501", "--reason", "x", *where, code=1))
    assert "characters" in one_line(run("adjust", "alice", "0", "--reason", "x", *where, code=1))
    run("adjust", "alice", "5", *where, code=2)  # a reason is needed
    rows = cells(run("account", "statement", "alice", *where))
    assert [row[2:4] for row in rows] == [
        ["grant", "15000"],
        ["grant", "500"],
        ["adjust", "-15000"],
    ]
    head, *lines = csv.reader(
        io.StringIO(run("account", "statement", "alice", "--csv", *where).stdout)
    )
    assert head[:4] == ["id", "time", "kind", "characters"]
    assert [line[6] for line in lines] == ["first characters", "grant", "'=1+1"]
    run("ledger", "check", *where)


def test_a_password_is_asked_for(where: tuple[str, str]) -> None:
    def typed(text: str) -> Result:
        return invoke("account", "password", "alice", *where, input=text)

    assert shown(where)["password"] is False
    assert typed("a long enough one\nanother one by far\n").exit_code != 0
    assert "password" in typed("short\nshort\n").stderr
    assert shown(where)["password"] is False
    done = typed("a long enough one\na long enough one\n")
    assert done.exit_code == 0
    assert done.stdout.endswith("password set\n")
    assert "long" not in done.output
    assert shown(where)["password"] is True
    # Never an argument: others could read it in the list of processes.
    run("account", "password", "alice", "a long enough one", *where, code=2)


def test_delete(where: tuple[str, str]) -> None:
    declined = invoke("account", "delete", "alice", *where, input="n\n")
    assert declined.exit_code == 1
    assert shown(where)["name"] == "alice"
    run("account", "delete", "alice", "--yes", *where)
    assert "alice" in one_line(run("account", "show", "alice", *where, code=1))
    assert run("account", "list", *where).stdout == ""
    run("account", "create", "alice", *where)  # the name is free again
    run("ledger", "check", *where)


# Tokens and codes


def test_token_limits(where: tuple[str, str]) -> None:
    token = run(
        *("token", "create", "--account", "alice", "--scope", "draw", "--scope", "account"),
        *("--model", "cogview-4", "--model", "dall-e-3", "--network", "10.0.0.0/8"),
        *("--budget-day", "100", "--concurrency", "2", "--rate", "30", *where),
    ).stdout
    assert token.startswith("sk-")
    assert len(token.split()) == 1
    (row,) = cells(run("token", "list", "--account", "alice", *where))
    assert row[0] == token.split(".")[0]
    assert row[1] == "alice"
    assert row[4:9] == ["never", "active", "key", "draw account", "-"]
    assert (
        row[9] == "model=cogview-4,dall-e-3 network=10.0.0.0/8 budget-day=100 concurrency=2 rate=30"
    )
    run("token", "update", row[0], "--budget-total", "7", "--clear", "model", *where)
    run("token", "update", row[0], "--clear", "rate", "--scope", "draw", *where)
    (row,) = cells(run("token", "list", *where))
    assert row[7] == "draw"
    assert row[9] == "network=10.0.0.0/8 budget-day=100 budget-total=7 concurrency=2"
    run("token", "revoke", row[0], *where)
    assert cells(run("token", "list", *where))[0][5] == "revoked"


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (("--scope", "root"), "scopes"),
        (("--scope", "admin"), "admin"),
        (("--network", "10.0.0.0/99"), "networks"),
        (("--budget-day", "-1"), "budget_day"),
        (("--concurrency", "0"), "concurrency_max"),
        (("--rate", "0"), "rate_per_minute"),
        (("--name", "a\nb"), "name"),
    ],
)
def test_bad_token_limits(where: tuple[str, str], args: tuple[str, ...], word: str) -> None:
    assert word in one_line(run("token", "create", "--account", "alice", *args, *where, code=1))
    assert run("token", "list", *where).stdout == ""


def test_an_unknown_limit_cannot_be_lifted(where: tuple[str, str]) -> None:
    result = run("token", "update", "sk-x", "--clear", "everything", *where, code=2)
    assert "budget-day" in result.stderr


def test_codes_are_listed_without_themselves(where: tuple[str, str]) -> None:
    code = run("redeem", "create", "5", "--expires-days", "3", *where).stdout.strip()
    invite = run("redeem", "create", "7", "--invite", *where).stdout.strip()
    run("redeem", "use", code, "--account", "alice", *where)
    one_line(run("redeem", "use", invite, "--account", "alice", *where, code=1))
    result = run("redeem", "list", *where)
    assert code not in result.stdout
    used, unused = cells(result)
    assert (used[1], used[2], used[6]) == ("credit", "5", "used")
    assert (unused[1], unused[2], unused[5], unused[6]) == ("invite", "7", "never", "unused")


# End users, the trail, keys


def test_blocks(where: tuple[str, str]) -> None:
    run("block", "add", "mallory", "--account", "alice", "--reason", "spam", *where)
    run("block", "add", "eve\x1b[2J", "--reason", "abuse", *where)
    result = run("block", "list", *where)
    assert "\x1b" not in result.stdout
    rows = cells(result)
    assert [row[1:3] for row in rows] == [["alice", "spam"], ["(everywhere)", "abuse"]]
    run("block", "remove", "mallory", "--account", "alice", *where)
    one_line(run("block", "remove", "mallory", *where, code=1))
    assert len(cells(run("block", "list", *where))) == 1


def test_audit(where: tuple[str, str], tmp_path: Path) -> None:
    run("grant", "alice", "5", "--reason", "gift", *where)
    run("account", "create", "bob", *where)
    rows = cells(run("audit", *where))
    assert [row[0] for row in rows] == ["1", "2", "3"]
    assert {row[2] for row in rows} == {"cli"}
    assert json.loads(rows[1][5])["reason"] == "gift"
    assert len(cells(run("audit", "--account", "alice", *where))) == 2
    assert len(cells(run("audit", "--after", "2", *where))) == 1
    assert run("audit", "--verify", *where).stdout == "the audit trail is whole\n"
    # Whoever gets around the triggers is found out.
    with sqlite3.connect(tmp_path / "data" / "danqing.db") as database:
        database.execute("DROP TRIGGER audit_log_no_update")
        database.execute("""UPDATE audit_log SET detail = '{"characters": 6}' WHERE seq = 2""")
    for command in (("audit", "--verify"), ("ledger", "check")):
        result = run(*command, *where, code=1)
        assert "2" in result.stderr
        assert result.stdout == ""


def test_rotating_keys_is_on_the_trail(where: tuple[str, str]) -> None:
    run("token", "create", "--account", "alice", *where)
    assert run("keys", "rotate", *where).stdout == "current key version: 2\n"
    assert cells(run("keys", "list", *where)) == [["1", "older", "1"], ["2", "current", "0"]]
    result = run("keys", "rotate", "--revoke-version", "1", *where)
    assert result.stdout == (
        "key version 1 is revoked, and a new key was made\ncurrent key version: 3\n"
    )
    assert result.stderr == "void with key version 1: 1 tokens and sessions\n"
    assert cells(run("token", "list", *where))[0][5] == "void (key version revoked)"
    assert cells(run("token", "list", *where))[0][-1] == "1"
    assert cells(run("keys", "list", *where)) == [["2", "older", "0"], ["3", "current", "0"]]
    assert run("keys", "rotate", "--revoke-version", "2", *where).stderr == ""
    assert "9" in one_line(run("keys", "rotate", "--revoke-version", "9", *where, code=1))
    deeds = [row[3] for row in cells(run("audit", *where))]
    assert deeds.count("keys.rotate") == 3
    # The trail does not hang on a key that tokens hang on.
    run("audit", "--verify", *where)


def test_who_would_lock_operators_out_is_told_how_they_get_in_again(where: tuple[str, str]) -> None:
    run("account", "admin", "alice", *where)
    run("token", "create", "--account", "alice", "--scope", "admin", *where)
    warned = run("keys", "rotate", "--revoke-version", "1", *where).stderr
    assert "the operator's, alice" in warned
    (command,) = [line for line in warned.splitlines() if "danqing token create" in line]
    words = command.partition("danqing ")[2].split()
    assert run(*words, *where).stdout.startswith("sk-")
    assert [row[5] for row in cells(run("token", "list", *where))][1:] == ["active"]


def test_a_token_is_for_models_that_there_are(where: tuple[str, str]) -> None:
    make = ("token", "create", "--account", "alice", *where)
    for name, hint in (("cogvew-4", "'cogview-4'"), ("nope", "'nope'")):
        assert hint in one_line(run(*make, "--model", name, code=1))
    run(*make, "--model", "CogView-4-250304", "--model", "dall-e-3")
    token_id = cells(run("token", "list", *where))[0][0]
    assert "'nope'" in one_line(run("token", "update", token_id, "--model", "nope", *where, code=1))


# The database


def make_old(path: Path) -> None:
    """A database of version 0.1.0 with an account in it."""
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        with Operations.context(MigrationContext.configure(connection)):
            m0001_first.upgrade()
        connection.exec_driver_sql(
            "INSERT INTO accounts (id, name, balance, suspended, created_ms) "
            "VALUES ('018f0000-0000-7000-8000-000000000000', 'old', 0, 0, 1)"
        )
    engine.dispose()


def test_an_old_database_is_refused_then_upgraded(where: tuple[str, str], tmp_path: Path) -> None:
    path = tmp_path / "data" / "danqing.db"
    for file in path.parent.glob("danqing.db*"):
        file.unlink()
    make_old(path)
    for command in (("account", "list"), ("ledger", "check"), ("serve", "--port", "0")):
        line = one_line(run(*command, *where, code=1))
        assert "danqing database upgrade" in line
    assert run("database", "version", *where).stdout == f"database: 0001\nneeded: {schema.HEAD}\n"
    assert run("database", "upgrade", *where).stdout == f"0001 → {schema.HEAD}\n"
    again = run("database", "upgrade", *where).stdout
    assert again == f"the database has version {schema.HEAD}\n"
    assert cells(run("account", "list", *where)) == [["old", "0", "active"]]
    run("ledger", "check", *where)


def test_a_newer_database_is_refused(where: tuple[str, str], tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "data" / "danqing.db") as database:
        database.execute("UPDATE schema_version SET version_num = '9999'")
    for command in (("account", "list"), ("database", "upgrade"), ("serve", "--port", "0")):
        line = one_line(run(*command, *where, code=1))
        assert "newer" in line
    assert "9999" in run("database", "version", *where).stdout


def test_a_damaged_database_is_one_clear_line(where: tuple[str, str], tmp_path: Path) -> None:
    path = tmp_path / "data" / "danqing.db"
    for file in path.parent.glob("danqing.db-*"):
        file.unlink()
    path.write_bytes(b"this is no database" * 1000)
    for command in (
        ("account", "list"),
        ("database", "version"),
        ("database", "upgrade"),
        ("serve", "--port", "0"),
    ):
        assert "database" in one_line(run(*command, *where, code=1))


@pytest.mark.parametrize("command", ["upgrade", "version"])
def test_database_commands_make_nothing(tmp_path: Path, command: str) -> None:
    line = one_line(run("database", command, "--data-dir", str(tmp_path / "typo"), code=1))
    assert "typo" in line
    assert not list(tmp_path.iterdir())
