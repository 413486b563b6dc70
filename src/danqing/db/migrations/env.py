"""What alembic runs: the steps on the connection that schema.py hands over. Knows no URL and no logging."""

from __future__ import annotations

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    version_table="schema_version",
    transactional_ddl=True,
    transaction_per_migration=False,
)
# The transaction is the caller's: all steps, or none.
context.run_migrations()
