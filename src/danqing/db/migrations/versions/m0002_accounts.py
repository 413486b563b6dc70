"""Waivers with their history, token limits, idempotency keys, blocked users, the audit log, the outbox."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"

_COLUMNS = {
    "accounts": (
        "suspended_reason TEXT",
        "is_admin BOOLEAN NOT NULL DEFAULT false",
        "password_hash TEXT",
        "price_permille INTEGER NOT NULL DEFAULT 1000",
        "address_mac VARCHAR(64)",
        "low_balance BIGINT",
        "low_balance_told BOOLEAN NOT NULL DEFAULT false",
        "webhook_url TEXT",
        "deleted_ms BIGINT",
    ),
    "tokens": (
        "kind VARCHAR(7) NOT NULL DEFAULT 'key'",
        "scopes TEXT NOT NULL DEFAULT 'draw'",
        "models JSON",
        "networks JSON",
        "budget_day BIGINT",
        "budget_month BIGINT",
        "budget_total BIGINT",
        "concurrency_max INTEGER",
        "rate_per_minute INTEGER",
        "last_used_ms BIGINT",
    ),
    "tasks": (
        "client_key VARCHAR(64)",
        "fingerprint VARCHAR(64)",
        "background BOOLEAN NOT NULL DEFAULT false",
        "draws INTEGER NOT NULL DEFAULT 1",
        "cancel_ms BIGINT",
    ),
    "redeem_codes": (
        "kind VARCHAR(6) NOT NULL DEFAULT 'credit'",
        "expires_ms BIGINT",
        "created_by TEXT",
    ),
}

_TABLES = (
    """CREATE TABLE installation (
        name VARCHAR(32) NOT NULL PRIMARY KEY,
        value TEXT NOT NULL
    )""",
    "DROP INDEX transfers_account",
    "CREATE INDEX transfers_account ON transfers (account_id, created_ms, id)",
    "CREATE INDEX accounts_address ON accounts (address_mac, created_ms)",
    "CREATE INDEX tasks_token ON tasks (token_id)",
    "CREATE INDEX tasks_open_account ON tasks (account_id) WHERE state IN ('queued', 'running')",
    "CREATE INDEX tasks_open_token ON tasks (token_id) WHERE state IN ('queued', 'running')",
    "CREATE UNIQUE INDEX tasks_client_key ON tasks (client_key) WHERE client_key IS NOT NULL",
    "CREATE INDEX images_account ON images (account_id, id)",
    "DROP INDEX ix_images_expires_ms",
    "CREATE INDEX images_expiring ON images (expires_ms) WHERE deleted_ms IS NULL",
    """CREATE TABLE waivers (
        id VARCHAR(36) NOT NULL PRIMARY KEY,
        account_id VARCHAR(36) NOT NULL REFERENCES accounts (id),
        version TEXT NOT NULL,
        text TEXT NOT NULL,
        signer TEXT NOT NULL,
        signed_ms BIGINT NOT NULL,
        revoked_ms BIGINT
    )""",
    "CREATE INDEX ix_waivers_account_id ON waivers (account_id)",
    # Until now one waiver per account, signed by nobody's name: the account's own. An account has
    # one at most, so that its id serves as the waiver's.
    """INSERT INTO waivers (id, account_id, version, text, signer, signed_ms)
       SELECT id, id, COALESCE(waiver_version, ''), COALESCE(waiver_text, ''), name, waiver_ms
       FROM accounts WHERE waiver_ms IS NOT NULL""",
    "ALTER TABLE accounts DROP COLUMN waiver_version",
    "ALTER TABLE accounts DROP COLUMN waiver_text",
    "ALTER TABLE accounts DROP COLUMN waiver_ms",
    # The first account of every installation is its administrator's.
    "UPDATE accounts SET is_admin = true WHERE name = 'operator'",
    # Only the token that the installation began with: others may be in anybody's hands.
    """UPDATE tokens SET scopes = 'draw account admin' WHERE name = 'first'
       AND account_id IN (SELECT id FROM accounts WHERE name = 'operator')""",
    """CREATE TABLE token_spending (
        token_id VARCHAR(32) NOT NULL REFERENCES tokens (id),
        "window" VARCHAR(10) NOT NULL,
        characters BIGINT NOT NULL,
        PRIMARY KEY (token_id, "window"),
        CONSTRAINT token_spending_not_negative CHECK (characters >= 0)
    )""",
    """CREATE TABLE blocked_users (
        scope VARCHAR(36) NOT NULL,
        end_user TEXT NOT NULL,
        reason TEXT NOT NULL,
        created_by TEXT NOT NULL,
        created_ms BIGINT NOT NULL,
        PRIMARY KEY (scope, end_user)
    )""",
    """CREATE TABLE audit_log (
        seq BIGINT NOT NULL PRIMARY KEY,
        at_ms BIGINT NOT NULL,
        actor TEXT NOT NULL,
        deed TEXT NOT NULL,
        subject TEXT NOT NULL,
        detail JSON NOT NULL,
        mac VARCHAR(64) NOT NULL
    )""",
    "CREATE INDEX audit_log_subject ON audit_log (subject, seq)",
    """CREATE TABLE outbox (
        id VARCHAR(36) NOT NULL PRIMARY KEY,
        account_id VARCHAR(36) NOT NULL REFERENCES accounts (id),
        url TEXT NOT NULL,
        event TEXT NOT NULL,
        payload JSON NOT NULL,
        attempts INTEGER NOT NULL,
        created_ms BIGINT NOT NULL,
        next_ms BIGINT NOT NULL,
        delivered_ms BIGINT,
        failed_ms BIGINT,
        note TEXT
    )""",
    """CREATE INDEX outbox_waiting ON outbox (next_ms)
       WHERE delivered_ms IS NULL AND failed_ms IS NULL""",
)


def upgrade() -> None:
    for table, columns in _COLUMNS.items():
        for column in columns:
            op.execute(f"ALTER TABLE {table} ADD COLUMN {column}")
    for statement in _TABLES:
        op.execute(statement)
    _make_immutable()


def _make_immutable() -> None:
    if op.get_bind().dialect.name == "sqlite":
        for deed in ("UPDATE", "DELETE"):  # transfers have these
            op.execute(
                f"CREATE TRIGGER audit_log_no_{deed.lower()} BEFORE {deed} ON audit_log "
                "BEGIN SELECT RAISE(ABORT, 'audit_log are immutable'); END"
            )
        for name, same in (
            ("transfers", "id = NEW.id OR hold_id = NEW.hold_id"),
            ("audit_log", "seq = NEW.seq"),
        ):
            op.execute(
                f"CREATE TRIGGER {name}_no_replace BEFORE INSERT ON {name} "  # noqa: S608 - our own names
                f"WHEN EXISTS (SELECT 1 FROM {name} WHERE {same}) "
                f"BEGIN SELECT RAISE(ABORT, '{name} are immutable'); END"
            )
        return
    for name in ("audit_log", "transfers"):  # version 0.1.0 knew SQLite only
        op.execute(
            f"CREATE OR REPLACE FUNCTION {name}_immutable() RETURNS trigger LANGUAGE plpgsql "
            f"AS $$ BEGIN RAISE EXCEPTION '{name} are immutable'; END $$"
        )
        op.execute(
            f"CREATE TRIGGER {name}_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON {name} "
            f"FOR EACH STATEMENT EXECUTE FUNCTION {name}_immutable()"
        )
