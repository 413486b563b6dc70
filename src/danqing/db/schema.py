"""Which version of the tables a database has; making them in an empty one, and moving an old one up. No rows."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, Engine, inspect, select, text
from sqlalchemy.exc import DBAPIError

from danqing.db.engines import Engines, patient
from danqing.db.tables import metadata, schema_version
from danqing.domain.errors import ServerFault, Unavailable

HEAD = "0006"
"""What tables.py says. The newest file in migrations/versions has this revision; a test compares."""
_FIRST = "0001"
"""Version 0.1.0 of the product, which kept no number."""
_LOCK = 0x44616E71
"""Of two processes that open an empty PostgreSQL at once, one makes the tables."""


class OldSchema(ServerFault):
    """The database was made by another version."""

    retryable = False


def version(connection: Connection) -> str | None:
    """The version of the tables; None where there are none."""
    there = set(inspect(connection).get_table_names())
    if schema_version.name in there:
        return connection.execute(select(schema_version.c.version_num)).scalar_one_or_none()
    return _FIRST if "accounts" in there else None


def prepare(engine: Engine) -> None:
    """Make the tables where there are none. Raises OldSchema where there are others."""
    with engine.begin() as connection:
        _lock(connection)
        found = version(connection)
        if found is None:
            metadata.create_all(connection)
            connection.execute(schema_version.insert(), {"version_num": HEAD})
        elif found < HEAD:
            raise OldSchema(
                f"The database has the tables of an older Danqing (version {found}, this one "
                f"needs {HEAD}). Stop every server, back the database up, then run "
                "`danqing database upgrade`."
            )
        elif found > HEAD:
            raise OldSchema(
                f"The database has the tables of a newer Danqing (version {found}, this one "
                f"knows {HEAD})."
            )


def found(url: str) -> str | None:
    """The version of the tables in a database, which stays as it is; None where there are none.

    Raises what Engines raises, Unavailable.
    """
    with _opened(url) as engines, engines.reader.begin() as connection:
        return version(connection)


def upgrade(url: str) -> tuple[str | None, str]:
    """Move a database to HEAD, whole or not at all; the versions before and after.

    Raises what Engines raises, Unavailable, OldSchema where it is newer than we are.
    """
    with _opened(url) as engines:
        with engines.writer.begin() as connection:
            patient(connection)
            _lock(connection)
            found = version(connection)
            if found is not None and found < HEAD:
                migrate(connection, found)
        prepare(engines.writer)
        return found, HEAD


@contextmanager
def _opened(url: str) -> Generator[Engines]:
    engines = Engines(url, synchronous="FULL", busy_timeout_ms=15_000)
    try:
        yield engines
    except DBAPIError as error:
        why = " ".join(str(error.orig).split())
        raise Unavailable(f"The database {engines.shown} cannot be used: {why}") from error
    finally:
        engines.dispose()


def migrate(connection: Connection, found: str | None, target: str = HEAD) -> None:
    """Run the steps from one version to another in the caller's transaction."""
    # Only here: nothing else needs alembic, and it takes a while to load.
    from alembic import command
    from alembic.config import Config

    config = Config()
    migrations = str(Path(__file__).parent / "migrations").replace("%", "%%")
    config.set_main_option("script_location", migrations)
    config.attributes["connection"] = connection
    if found is not None and schema_version.name not in inspect(connection).get_table_names():
        command.stamp(config, found)
    command.upgrade(config, target)


def _lock(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:id)"), {"id": _LOCK})
