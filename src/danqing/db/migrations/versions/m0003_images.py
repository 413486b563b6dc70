"""How long an account's images are kept, and which of an image's links are void."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.execute("ALTER TABLE accounts ADD COLUMN image_days INTEGER")
    op.execute("ALTER TABLE images ADD COLUMN link_version INTEGER NOT NULL DEFAULT 0")
    op.execute("DROP INDEX images_account")
    op.execute("CREATE INDEX images_account ON images (account_id, task_id, idx)")
