"""An account's statement, in pages or whole as CSV. Knows transfers' rows; nothing of who asks."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Literal

from fastapi import Query, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from danqing.api import shapes
from danqing.db.rows import TransferRow

PAGE_ROWS = 1000
CSV_COLUMNS = ("id", "time", "kind", "characters", "hold", "task", "reason")

Rows = Callable[[str, int], Awaitable[list[TransferRow]]]
"""The account's transfers behind an id, and how many at most; oldest first."""
Form = Annotated[
    Literal["json", "csv"] | None, Query(description="csv: all of it; so does `Accept: text/csv`.")
]


async def answer(request: Request, rows: Rows, after: str, limit: int, form: Form) -> Response:
    """One page as JSON, or everything behind `after` as CSV, streamed."""
    if form is None:
        form = "csv" if "text/csv" in request.headers.get("accept", "") else "json"
    if form == "json":
        found = await rows(after, limit + 1)
        return JSONResponse(shapes.page(found, limit, lambda row: row.id, shapes.transfer))
    first = await rows(after, PAGE_ROWS)  # before the answer begins: it may fail
    return StreamingResponse(
        _csv(first, rows),
        media_type="text/csv; charset=utf-8",
        headers={"content-disposition": 'attachment; filename="statement.csv"'},
    )


async def _csv(found: list[TransferRow], rows: Rows) -> AsyncIterator[str]:
    yield csv_lines([CSV_COLUMNS])
    while found:
        yield csv_lines(csv_cells(row) for row in found)
        # A page that is not full was the last one, but for what is booked meanwhile.
        found = await rows(found[-1].id, PAGE_ROWS) if len(found) == PAGE_ROWS else []


def csv_cells(row: TransferRow) -> tuple[str, ...]:
    """A transfer's cells under CSV_COLUMNS."""
    time = datetime.fromtimestamp(row.created_ms / 1000, UTC).isoformat(timespec="milliseconds")
    return (
        row.id,
        time.replace("+00:00", "Z"),
        row.kind,
        str(row.amount),
        row.hold_id or "",
        row.task_id or "",
        harmless(row.reason or ""),
    )


def csv_lines(rows: Iterable[Sequence[str]]) -> str:
    """RFC 4180 lines."""
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()


def harmless(text: str) -> str:
    """A cell that no spreadsheet takes for a formula.

    Source: OWASP, "CSV Injection": cells that begin with = + - @, a tab or a carriage return (or
    the full-width forms of those signs) get a single quote before them.
    """
    return (
        f"'{text}"
        if text.startswith(("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠"))
        else text
    )
