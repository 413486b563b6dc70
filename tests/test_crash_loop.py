"""Twenty crashes under load on each database, and the books balance: bench/crash.py does it as often as one likes."""

from __future__ import annotations

import os

import pytest
from bench import crash

from tests.conftest import missing
from tests.postgres import find_binaries

CRASHES = int(os.environ.get("CRASHES", "20"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_crash_loop(database: str) -> None:
    if database == "postgresql" and find_binaries() is None:
        missing("PostgreSQL", "postgresql")
    faults, tally = crash.run(CRASHES, database, servers=2, seed=CRASHES)
    assert faults == []
    assert sum(tally.crashes.values()) == CRASHES
    assert len(tally.answers) > CRASHES  # there was load
