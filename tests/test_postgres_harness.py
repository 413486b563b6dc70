"""The tests' own PostgreSQL: that it keeps what was committed through a kill, and that databases are apart."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import psycopg
import pytest

from tests import conftest
from tests.postgres import PostgresServer


def write(url: str, text: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS notes (text text)")
        connection.execute("INSERT INTO notes VALUES (%s)", (text,))


def notes(url: str) -> list[str]:
    with psycopg.connect(url) as connection:
        return [row[0] for row in connection.execute("SELECT text FROM notes ORDER BY text")]


def test_it_is_as_durable_as_a_real_one(postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as connection:
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            assert connection.execute(f"SHOW {setting}").fetchone() == ("on",)
        assert connection.info.encoding == "utf-8"


def test_what_was_committed_survives_a_kill(postgres: PostgresServer, postgres_url: str) -> None:
    write(postgres_url, "kept")
    open_work = psycopg.connect(postgres_url)
    open_work.execute("INSERT INTO notes VALUES ('not committed')")
    family = psutil.Process(postgres.process.pid).children(recursive=True)
    postgres.kill()
    assert not postgres.running
    assert len(family) > 1
    assert not any(
        process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in family
    )
    with pytest.raises(psycopg.OperationalError):
        open_work.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(postgres_url, connect_timeout=5)
    postgres.start()
    assert "was interrupted" in postgres.log()
    assert notes(postgres_url) == ["kept"]


@pytest.mark.slow
def test_many_kills(postgres: PostgresServer, postgres_url: str) -> None:
    for turn in range(10):
        write(postgres_url, str(turn))
        postgres.kill()
        postgres.restart()
    assert notes(postgres_url) == [str(turn) for turn in range(10)]


def test_stop_and_restart(postgres: PostgresServer, postgres_url: str) -> None:
    write(postgres_url, "kept")
    process = postgres.process
    postgres.start()  # it runs: nothing happens
    assert postgres.process is process
    postgres.stop()
    assert not postgres.running
    assert process.returncode == 0
    postgres.restart()
    assert notes(postgres_url) == ["kept"]
    postgres.kill()  # the next test's database does not mind


def test_databases_are_apart_and_empty(postgres: PostgresServer, postgres_url: str) -> None:
    other = postgres.create_database()
    write(postgres_url, "mine")
    write(other, "theirs")
    assert (notes(postgres_url), notes(other)) == (["mine"], ["theirs"])
    with psycopg.connect(other):  # a forgotten connection does not keep it
        postgres.drop_database(other)
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        psycopg.connect(other)


def test_two_servers_live_beside_each_other(postgres: PostgresServer, postgres_url: str) -> None:
    with PostgresServer(postgres.binaries, fsync=False) as other:
        url = other.create_database()
        write(url, "elsewhere")
        with psycopg.connect(url) as connection:
            assert connection.execute("SHOW fsync").fetchone() == ("off",)
        folder, process = other.folder, other.process
    assert not folder.exists()
    assert process.returncode is not None
    write(postgres_url, "here")
    assert notes(postgres_url) == ["here"]


def test_a_server_that_cannot_start_says_why(postgres: PostgresServer, postgres_url: str) -> None:
    second = PostgresServer(postgres.binaries)
    second.port = postgres.port
    with pytest.raises(RuntimeError, match="already in use"), second:
        pass
    assert not second.running
    assert not second.folder.exists()
    assert postgres.running


def test_only_its_own_user_gets_in_by_the_socket(postgres: PostgresServer) -> None:
    owner = psutil.Process(postgres.process.pid).uids().effective
    assert owner != 0
    assert os.stat(postgres.folder).st_uid == owner
    assert os.stat(postgres.folder).st_mode & 0o077 == 0


def test_database_url_is_a_fresh_one(database_url: str) -> None:
    scheme, _, rest = database_url.partition("://")
    if scheme == "sqlite":
        path = Path(rest.removeprefix("/"))
        assert path.parent.is_dir()
        assert not path.exists()
    else:
        with psycopg.connect(database_url) as connection:
            tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
            assert connection.execute(tables).fetchone() == (0,)


@pytest.mark.parametrize(("ci", "outcome"), [("", pytest.skip), ("true", pytest.fail)])
def test_a_missing_program_fails_in_ci_only(
    ci: str, outcome: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome.Exception, match="apt-get install postgresql"):
        conftest.missing("PostgreSQL", "postgresql")
