"""The tables. Times are Unix ms, money is characters; no rules but CHECKs. A change needs a migration (schema.py)."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import (
    DDL,
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    event,
    false,
    text,
)

from danqing.db.rows import CHARACTERS_MAX, PERMILLE

metadata = MetaData()


def immutable_ddl(table: str, keys: Sequence[str]) -> list[tuple[str, str]]:
    """Statements, each with its SQL dialect, that make a table's rows immutable. `keys` are its unique columns."""
    statements = [
        (
            f"CREATE TRIGGER {table}_no_{deed.lower()} BEFORE {deed} ON {table} "
            f"BEGIN SELECT RAISE(ABORT, '{table} are immutable'); END",
            "sqlite",
        )
        for deed in ("UPDATE", "DELETE")
    ]
    # INSERT OR REPLACE deletes without asking the trigger above.
    same = " OR ".join(f"{key} = NEW.{key}" for key in keys)
    statements.append(
        (
            f"CREATE TRIGGER {table}_no_replace BEFORE INSERT ON {table} "  # noqa: S608 - our own names
            f"WHEN EXISTS (SELECT 1 FROM {table} WHERE {same}) "
            f"BEGIN SELECT RAISE(ABORT, '{table} are immutable'); END",
            "sqlite",
        )
    )
    function = (
        f"CREATE OR REPLACE FUNCTION {table}_immutable() RETURNS trigger LANGUAGE plpgsql "
        f"AS $$ BEGIN RAISE EXCEPTION '{table} are immutable'; END $$"
    )
    rows = (
        f"CREATE TRIGGER {table}_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
        f"FOR EACH STATEMENT EXECUTE FUNCTION {table}_immutable()"
    )
    return [*statements, (function, "postgresql"), (rows, "postgresql")]


accounts = Table(
    "accounts",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("balance", BigInteger, nullable=False),
    Column("suspended", Boolean, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("suspended_reason", Text),
    Column("is_admin", Boolean, nullable=False, server_default=false()),
    Column("password_hash", Text),
    Column("price_permille", Integer, nullable=False, server_default=text(str(PERMILLE))),
    Column("address_mac", String(64)),
    Column("low_balance", BigInteger),
    Column("low_balance_told", Boolean, nullable=False, server_default=false()),
    Column("webhook_url", Text),
    Column("deleted_ms", BigInteger),
    Column("image_days", Integer),
    Column("block_level", Integer),
    CheckConstraint("balance >= 0", name="accounts_balance_not_negative"),
    CheckConstraint("length(name) BETWEEN 1 AND 64", name="accounts_name_length"),
    Index("accounts_address", "address_mac", "created_ms"),
)

waivers = Table(
    "waivers",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("account_id", ForeignKey("accounts.id"), nullable=False, index=True),
    Column("version", Text, nullable=False),
    Column("text", Text, nullable=False),
    Column("signer", Text, nullable=False),
    Column("signed_ms", BigInteger, nullable=False),
    Column("revoked_ms", BigInteger),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("account_id", ForeignKey("accounts.id"), nullable=False, index=True),
    Column("key_version", Integer, nullable=False),
    Column("name", Text),
    Column("created_ms", BigInteger, nullable=False),
    Column("expires_ms", BigInteger),
    Column("revoked_ms", BigInteger),
    Column("kind", String(7), nullable=False, server_default="key"),
    Column("scopes", Text, nullable=False, server_default="draw"),
    Column("models", JSON(none_as_null=True)),
    Column("networks", JSON(none_as_null=True)),
    Column("budget_day", BigInteger),
    Column("budget_month", BigInteger),
    Column("budget_total", BigInteger),
    Column("concurrency_max", Integer),
    Column("rate_per_minute", Integer),
    Column("last_used_ms", BigInteger),
)

# What tokens with a budget have held or spent, by window: "total", "2026-11", "2026-11-21" (UTC).
token_spending = Table(
    "token_spending",
    metadata,
    Column("token_id", ForeignKey("tokens.id"), primary_key=True),
    Column("window", String(10), primary_key=True),
    Column("characters", BigInteger, nullable=False),
    CheckConstraint("characters >= 0", name="token_spending_not_negative"),
)

transfers = Table(
    "transfers",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("account_id", ForeignKey("accounts.id"), nullable=False),
    Column("kind", String(6), nullable=False),
    Column("amount", BigInteger, nullable=False),
    # UNIQUE: a hold resolves once.
    Column("hold_id", ForeignKey("transfers.id"), unique=True),
    Column("task_id", String(36)),
    Column("reason", Text),
    Column("created_ms", BigInteger, nullable=False),
    CheckConstraint(
        "kind IN ('grant', 'adjust', 'hold', 'post', 'void', 'expire')", name="transfers_kind"
    ),
    CheckConstraint(
        f"amount BETWEEN -{CHARACTERS_MAX} AND {CHARACTERS_MAX} "
        "AND (amount > 0 OR (kind = 'adjust' AND amount <> 0))",
        name="transfers_amount",
    ),
    CheckConstraint(
        "(kind IN ('post', 'void', 'expire')) = (hold_id IS NOT NULL)", name="transfers_resolve"
    ),
    CheckConstraint("(kind IN ('grant', 'adjust')) = (task_id IS NULL)", name="transfers_task"),
    Index("transfers_account", "account_id", "created_ms", "id"),
)

_OPEN = text("state IN ('queued', 'running')")
_THERE = text("deleted_ms IS NULL")
_KEYED = text("client_key IS NOT NULL")
_WAIVED = text("waiver_id IS NOT NULL")

tasks = Table(
    "tasks",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("account_id", ForeignKey("accounts.id"), nullable=False),
    Column("token_id", ForeignKey("tokens.id")),
    Column("dialect", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("state", String(9), nullable=False),
    # NULL where the price is zero: nothing is held.
    Column("hold_id", ForeignKey("transfers.id"), unique=True),
    Column("epoch", Integer, nullable=False),
    Column("lease_until_ms", BigInteger, nullable=False),
    Column("request", JSON(none_as_null=True), nullable=False),
    Column("result", JSON(none_as_null=True)),
    Column("error", JSON(none_as_null=True)),
    Column("end_user", Text),
    Column("charged", BigInteger, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("finished_ms", BigInteger),
    Column("client_key", String(64)),
    Column("fingerprint", String(64)),
    Column("background", Boolean, nullable=False, server_default=false()),
    Column("draws", Integer, nullable=False, server_default=text("1")),
    Column("cancel_ms", BigInteger),
    # The label waiver that was in force for a task without the AI label; NULL for all others.
    Column("waiver_id", ForeignKey("waivers.id")),
    CheckConstraint(
        "state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')", name="tasks_state"
    ),
    CheckConstraint(
        "(state IN ('queued', 'running')) = (finished_ms IS NULL)", name="tasks_finished"
    ),
    CheckConstraint("charged >= 0", name="tasks_charged"),
    Index("tasks_account", "account_id", "id"),
    # For what a token has spent, and for the foreign key when a session's row is deleted.
    Index("tasks_token", "token_id"),
    # Partial, so that finding overdue and open tasks costs the same in a long book.
    Index("tasks_open", "lease_until_ms", sqlite_where=_OPEN, postgresql_where=_OPEN),
    Index("tasks_open_account", "account_id", sqlite_where=_OPEN, postgresql_where=_OPEN),
    Index("tasks_open_token", "token_id", sqlite_where=_OPEN, postgresql_where=_OPEN),
    Index(
        "tasks_client_key",
        "client_key",
        unique=True,
        sqlite_where=_KEYED,
        postgresql_where=_KEYED,
    ),
    Index("tasks_unlabelled", "id", sqlite_where=_WAIVED, postgresql_where=_WAIVED),
)

images = Table(
    "images",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("task_id", ForeignKey("tasks.id"), nullable=False),
    Column("account_id", ForeignKey("accounts.id"), nullable=False),
    Column("idx", Integer, nullable=False),
    Column("format", String(4), nullable=False),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("blob_key", Text, nullable=False),
    Column("label_visible", Boolean, nullable=False),
    Column("label_metadata", Boolean, nullable=False),
    Column("label_pixel", Boolean, nullable=False, server_default=false()),
    Column("created_ms", BigInteger, nullable=False),
    Column("expires_ms", BigInteger, nullable=False),
    Column("deleted_ms", BigInteger),
    Column("link_version", Integer, nullable=False, server_default=text("0")),
    UniqueConstraint("task_id", "idx"),
    Index("images_account", "account_id", "task_id", "idx"),
    Index("images_expiring", "expires_ms", sqlite_where=_THERE, postgresql_where=_THERE),
)

redeem_codes = Table(
    "redeem_codes",
    metadata,
    # SHA-256 of the code, which is kept nowhere.
    Column("digest", String(64), primary_key=True),
    Column("characters", BigInteger, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("account_id", ForeignKey("accounts.id")),
    Column("used_ms", BigInteger),
    Column("kind", String(6), nullable=False, server_default="credit"),
    Column("expires_ms", BigInteger),
    Column("created_by", Text),
    CheckConstraint(f"characters BETWEEN 1 AND {CHARACTERS_MAX}", name="redeem_codes_characters"),
    CheckConstraint("(account_id IS NULL) = (used_ms IS NULL)", name="redeem_codes_used"),
)

blocked_users = Table(
    "blocked_users",
    metadata,
    # An account's id, or "*": everywhere.
    Column("scope", String(36), primary_key=True),
    Column("end_user", Text, primary_key=True),
    Column("reason", Text, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
)

# What moderation refused: whose, why, never the text or the picture itself.
refusals = Table(
    "refusals",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("account_id", ForeignKey("accounts.id"), nullable=False),
    # NULL where it was refused before there was a task.
    Column("task_id", String(36)),
    Column("dialect", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("end_user", Text),
    Column("role", String(9), nullable=False),
    Column("level", Integer, nullable=False),
    Column("subject", String(5), nullable=False),
    Column("source", Text, nullable=False),
    Column("category", Text),
    Column("created_ms", BigInteger, nullable=False),
    Index("refusals_account", "account_id", "id"),
)

audit_log = Table(
    "audit_log",
    metadata,
    # One above the row before: two writers cannot both append to the same one.
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("actor", Text, nullable=False),
    Column("deed", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("detail", JSON, nullable=False),
    Column("mac", String(64), nullable=False),
    Index("audit_log_subject", "subject", "seq"),
)

_WAITING = text("delivered_ms IS NULL AND failed_ms IS NULL")

outbox = Table(
    "outbox",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("account_id", ForeignKey("accounts.id"), nullable=False),
    Column("url", Text, nullable=False),
    Column("event", Text, nullable=False),
    Column("payload", JSON, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("next_ms", BigInteger, nullable=False),
    Column("delivered_ms", BigInteger),
    Column("failed_ms", BigInteger),
    Column("note", Text),
    Index("outbox_waiting", "next_ms", sqlite_where=_WAITING, postgresql_where=_WAITING),
)

# Facts about this database, e.g. which key file is its own.
installation = Table(
    "installation",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("value", Text, nullable=False),
)

# As alembic keeps it.
schema_version = Table(
    "schema_version", metadata, Column("version_num", String(32), primary_key=True)
)

IMMUTABLE = {"transfers": ("id", "hold_id"), "audit_log": ("seq",)}
"""Tables whose rows never change, and their unique columns."""

for _name, _keys in IMMUTABLE.items():
    for _sql, _dialect in immutable_ddl(_name, _keys):
        event.listen(metadata.tables[_name], "after_create", DDL(_sql).execute_if(dialect=_dialect))
