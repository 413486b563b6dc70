"""The tables of version 0.1.0."""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None

_TABLES = (
    """CREATE TABLE accounts (
        id VARCHAR(36) NOT NULL PRIMARY KEY,
        name VARCHAR(64) NOT NULL UNIQUE,
        balance BIGINT NOT NULL,
        suspended BOOLEAN NOT NULL,
        created_ms BIGINT NOT NULL,
        waiver_version TEXT,
        waiver_text TEXT,
        waiver_ms BIGINT,
        CONSTRAINT accounts_balance_not_negative CHECK (balance >= 0),
        CONSTRAINT accounts_name_length CHECK (length(name) BETWEEN 1 AND 64)
    )""",
    """CREATE TABLE tokens (
        id VARCHAR(32) NOT NULL PRIMARY KEY,
        account_id VARCHAR(36) NOT NULL REFERENCES accounts (id),
        key_version INTEGER NOT NULL,
        name TEXT,
        created_ms BIGINT NOT NULL,
        expires_ms BIGINT,
        revoked_ms BIGINT
    )""",
    "CREATE INDEX ix_tokens_account_id ON tokens (account_id)",
    """CREATE TABLE transfers (
        id VARCHAR(36) NOT NULL PRIMARY KEY,
        account_id VARCHAR(36) NOT NULL REFERENCES accounts (id),
        kind VARCHAR(6) NOT NULL,
        amount BIGINT NOT NULL,
        hold_id VARCHAR(36) UNIQUE REFERENCES transfers (id),
        task_id VARCHAR(36),
        reason TEXT,
        created_ms BIGINT NOT NULL,
        CONSTRAINT transfers_kind
            CHECK (kind IN ('grant', 'adjust', 'hold', 'post', 'void', 'expire')),
        CONSTRAINT transfers_amount
            CHECK (amount BETWEEN -1000000000000000 AND 1000000000000000
                   AND (amount > 0 OR (kind = 'adjust' AND amount <> 0))),
        CONSTRAINT transfers_resolve
            CHECK ((kind IN ('post', 'void', 'expire')) = (hold_id IS NOT NULL)),
        CONSTRAINT transfers_task CHECK ((kind IN ('grant', 'adjust')) = (task_id IS NULL))
    )""",
    "CREATE INDEX transfers_account ON transfers (account_id, id)",
    """CREATE TABLE tasks (
        id VARCHAR(36) NOT NULL PRIMARY KEY,
        account_id VARCHAR(36) NOT NULL REFERENCES accounts (id),
        token_id VARCHAR(32) REFERENCES tokens (id),
        dialect TEXT NOT NULL,
        model TEXT NOT NULL,
        state VARCHAR(9) NOT NULL,
        hold_id VARCHAR(36) UNIQUE REFERENCES transfers (id),
        epoch INTEGER NOT NULL,
        lease_until_ms BIGINT NOT NULL,
        request JSON NOT NULL,
        result JSON,
        error JSON,
        end_user TEXT,
        charged BIGINT NOT NULL,
        created_ms BIGINT NOT NULL,
        finished_ms BIGINT,
        CONSTRAINT tasks_state
            CHECK (state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')),
        CONSTRAINT tasks_finished
            CHECK ((state IN ('queued', 'running')) = (finished_ms IS NULL)),
        CONSTRAINT tasks_charged CHECK (charged >= 0)
    )""",
    "CREATE INDEX tasks_account ON tasks (account_id, id)",
    "CREATE INDEX tasks_open ON tasks (lease_until_ms) WHERE state IN ('queued', 'running')",
    """CREATE TABLE images (
        id VARCHAR(36) NOT NULL PRIMARY KEY,
        task_id VARCHAR(36) NOT NULL REFERENCES tasks (id),
        account_id VARCHAR(36) NOT NULL REFERENCES accounts (id),
        idx INTEGER NOT NULL,
        format VARCHAR(4) NOT NULL,
        width INTEGER NOT NULL,
        height INTEGER NOT NULL,
        bytes BIGINT NOT NULL,
        sha256 VARCHAR(64) NOT NULL,
        seed BIGINT NOT NULL,
        blob_key TEXT NOT NULL,
        label_visible BOOLEAN NOT NULL,
        label_metadata BOOLEAN NOT NULL,
        created_ms BIGINT NOT NULL,
        expires_ms BIGINT NOT NULL,
        deleted_ms BIGINT,
        UNIQUE (task_id, idx)
    )""",
    "CREATE INDEX ix_images_expires_ms ON images (expires_ms)",
    """CREATE TABLE redeem_codes (
        digest VARCHAR(64) NOT NULL PRIMARY KEY,
        characters BIGINT NOT NULL,
        created_ms BIGINT NOT NULL,
        account_id VARCHAR(36) REFERENCES accounts (id),
        used_ms BIGINT,
        CONSTRAINT redeem_codes_characters CHECK (characters BETWEEN 1 AND 1000000000000000),
        CONSTRAINT redeem_codes_used CHECK ((account_id IS NULL) = (used_ms IS NULL))
    )""",
)


def upgrade() -> None:
    for statement in _TABLES:
        op.execute(statement)
    if op.get_bind().dialect.name == "sqlite":
        for deed in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER transfers_no_{deed.lower()} BEFORE {deed} ON transfers "
                "BEGIN SELECT RAISE(ABORT, 'transfers are immutable'); END"
            )
