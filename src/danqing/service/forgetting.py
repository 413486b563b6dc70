"""Forgetting what people wrote: the prompts of tasks that ended long ago. Their books and images stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from danqing.db import queries, task_queries
from danqing.db.rows import Json
from danqing.db.session import Connection, Database
from danqing.observability.logging import get_logger
from danqing.service.ledger import wall_clock_ms

log = get_logger(__name__)

FACT = "prompts_forgotten"
"""Under this name the database keeps the id up to which tasks have been gone through."""
_BATCH = 200
_DAY_MS = 86_400_000


class Forgetting:
    """Blanks the prompt, the negative prompt and the extended prompt of old tasks, and providers' words on them."""

    def __init__(
        self, db: Database, days: int, clock_ms: Callable[[], int] = wall_clock_ms
    ) -> None:
        """`days`: how long prompts are kept; 0 = for good."""
        self._db = db
        self._days = days
        self._clock_ms = clock_ms

    async def sweep(self, *, dry_run: bool = False) -> int:
        """Forget what is old enough; how many tasks that were (with `dry_run`: would be)."""
        if not self._days:
            return 0
        before_id = task_queries.first_id(self._clock_ms() - self._days * _DAY_MS)
        count, after = 0, await self._db.read(lambda conn: queries.fact(conn, FACT)) or ""
        while True:
            work = self._looked_at if dry_run else self._forgotten
            done, last = await self._run(work, after, before_id, dry_run)
            count += done
            if last is None:
                break
            after = last
        if count and not dry_run:
            log.info("prompts_forgotten", tasks=count)
        return count

    async def _run(
        self,
        work: Callable[[Connection, str, str], tuple[int, str | None]],
        after: str,
        before_id: str,
        dry_run: bool,
    ) -> tuple[int, str | None]:
        if dry_run:
            return await self._db.read(lambda conn: work(conn, after, before_id))
        return await self._db.write(lambda conn: work(conn, after, before_id))

    @staticmethod
    def _looked_at(conn: Connection, after: str, before_id: str) -> tuple[int, str | None]:
        rows = task_queries.told(conn, after, before_id, _BATCH)
        count = sum(1 for row in rows if row.is_over and has_words(row.request, row.result))
        return count, rows[-1].id if rows else None

    @staticmethod
    def _forgotten(conn: Connection, after: str, before_id: str) -> tuple[int, str | None]:
        count, last = 0, None
        for row in task_queries.told(conn, after, before_id, _BATCH):
            if not row.is_over:  # it may be drawn yet: the next sweep begins with it
                return count, None
            if has_words(row.request, row.result):
                request, result = without_words(row.request, row.result)
                task_queries.retell(conn, row.id, request, result)
                count += 1
            last = row.id
            queries.set_fact(conn, FACT, last)
        return count, last


def has_words(request: Json, result: Json | None) -> bool:
    """Whether a task's row still says what somebody wrote."""
    return without_words(request, result) != (request, result)


def without_words(request: Json, result: Json | None) -> tuple[Json, Json | None]:
    """A task's row without what somebody wrote; all else stays."""
    task: Json = request.get("task", {})
    kept: dict[str, Any] = {**request, "task": {**task, "prompt": "", "negative_prompt": ""}}
    if not task:
        kept = dict(request)
    if result is None:
        return kept, None
    told: dict[str, Any] = {**result}
    if "revised_prompt" in told:
        told["revised_prompt"] = None
    upstream: Json = told.get("upstream") or {}
    if upstream.get("requests"):
        requests = [
            {name: value for name, value in one.items() if name != "refusal"}
            for one in upstream["requests"]
        ]
        told["upstream"] = {**upstream, "requests": requests}
    return kept, told
