"""Having the word lists read again, here and by every other server on the database. Knows no signal and no HTTP."""

from __future__ import annotations

from danqing.db import queries
from danqing.db.session import Database
from danqing.domain.ids import uuid7
from danqing.observability.logging import get_logger
from danqing.service.moderation import TextModerator
from danqing.service.screening import Screen
from danqing.settings import SettingsError

log = get_logger(__name__)

FACT = "word_lists"
"""Under this name the database keeps the id of the last call to read them again."""


async def call_all(db: Database) -> str:
    """Have every server read its lists again; they look every third of a task's lease."""
    call = uuid7()
    await db.write(lambda conn: queries.set_fact(conn, FACT, call))
    return call


class Reloads:
    """One server's part in it."""

    def __init__(self, db: Database, screen: Screen) -> None:
        self._db = db
        self._screen = screen
        self._heard: str | None = None
        self._is_first = True

    async def everywhere(self) -> TextModerator:
        """Read the lists here, at once, and have all others do so. Raises SettingsError; then nobody is asked."""
        lists = await self._screen.reload()
        self._heard = await call_all(self._db)
        self._is_first = False
        return lists

    async def look(self) -> None:
        """Read the lists again if anybody asked for it; ones that cannot be read are logged."""
        call = await self._db.read(lambda conn: queries.fact(conn, FACT))
        is_new = call != self._heard and not self._is_first
        self._heard, self._is_first = call, False
        if is_new:
            try:
                await self._screen.reload()
            except SettingsError:
                log.warning("word_lists_stay_as_they_were")
