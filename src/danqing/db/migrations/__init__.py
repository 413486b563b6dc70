"""Steps from one version of the tables to the next, run by alembic. Knows SQL only, nothing of the code of today."""
