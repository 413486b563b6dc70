"""Whether an image's pixels carry its id: older ones' do not."""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.execute("ALTER TABLE images ADD COLUMN label_pixel BOOLEAN NOT NULL DEFAULT false")
