"""Under which waiver a task was drawn without the AI label; those of older tasks are looked up."""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"

_UNLABELLED = {
    "sqlite": "json_extract(request, '$.task.ai_label') = 0",
    "postgresql": "request -> 'task' ->> 'ai_label' = 'false'",
}
_WAIVER = "SELECT id FROM waivers WHERE waivers.account_id = tasks.account_id"
_LAST = "ORDER BY signed_ms DESC, id DESC LIMIT 1"


def upgrade() -> None:
    op.execute("ALTER TABLE tasks ADD COLUMN waiver_id VARCHAR(36) REFERENCES waivers (id)")
    op.execute("CREATE INDEX tasks_unlabelled ON tasks (id) WHERE waiver_id IS NOT NULL")
    # The waiver that was in force then; where that cannot be told any more, the account's last one.
    op.execute(
        "UPDATE tasks SET waiver_id = COALESCE("  # noqa: S608 - our own words
        f"({_WAIVER} AND signed_ms <= tasks.created_ms "
        f"AND (revoked_ms IS NULL OR revoked_ms >= tasks.created_ms) {_LAST}), "
        f"({_WAIVER} {_LAST})) "
        f"WHERE {_UNLABELLED[op.get_bind().dialect.name]}"
    )
