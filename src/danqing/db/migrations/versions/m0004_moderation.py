"""From which level on an account's content is refused, and what was refused of whom."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.execute("ALTER TABLE accounts ADD COLUMN block_level INTEGER")
    op.execute(
        """CREATE TABLE refusals (
            id VARCHAR(36) NOT NULL PRIMARY KEY,
            account_id VARCHAR(36) NOT NULL REFERENCES accounts (id),
            task_id VARCHAR(36),
            dialect TEXT NOT NULL,
            model TEXT NOT NULL,
            end_user TEXT,
            role VARCHAR(9) NOT NULL,
            level INTEGER NOT NULL,
            subject VARCHAR(5) NOT NULL,
            source TEXT NOT NULL,
            category TEXT,
            created_ms BIGINT NOT NULL
        )"""
    )
    op.execute("CREATE INDEX refusals_account ON refusals (account_id, id)")
