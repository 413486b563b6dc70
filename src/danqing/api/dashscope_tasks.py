"""DashScope's tasks under /api/v1, and the headers that say whether a route waits. Only for their own account."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from danqing.api.answers import extended, respond
from danqing.api.callers import drawer
from danqing.api.context import Context, context_of
from danqing.api.requests import link_base
from danqing.api.schemas import DASHSCOPE_CANCELLED, DASHSCOPE_TASK, DASHSCOPE_TASKS, answers
from danqing.api.tasks import CANCEL_S_MAX
from danqing.db.rows import TaskRow, TaskSummary
from danqing.db.task_queries import TaskFilter
from danqing.dialects import dashscope_native
from danqing.dialects.base import Reply
from danqing.dialects.dashscope_native import NOT_ASYNCHRONOUS, NOT_SYNCHRONOUS, STATUS, TASK_LIFE_S
from danqing.dialects.hints import meant
from danqing.domain.errors import (
    InvalidField,
    ModelNotFound,
    NotFound,
    PermissionDenied,
    UnknownField,
    UnsupportedField,
)

MESSAGES, SYNTHESIS = "dashscope_native", "dashscope_synthesis"
ASYNC, SSE = "X-DashScope-Async", "X-DashScope-SSE"
PAGE_SIZE_MAX = 100
_PARAMETERS = frozenset(
    {"page_no", "page_size", "start_time", "end_time", "model_name", "status", "api_key_id"}
)

router = APIRouter(tags=["tasks"])


def synchronous(request: Request) -> bool:
    """The manner of a route without tasks. Raises UnsupportedField for a stream, PermissionDenied."""
    if _asks(request, ASYNC):
        raise PermissionDenied(NOT_ASYNCHRONOUS)
    return False


def asynchronous(request: Request) -> bool:
    """The manner of a route with tasks only: the header must say so. Raises as `synchronous`."""
    if not _asks(request, ASYNC):
        raise PermissionDenied(NOT_SYNCHRONOUS)
    return True


def _asks(request: Request, header: str) -> bool:
    if request.headers.get(SSE, "").lower() == "enable":
        raise UnsupportedField(f"'{SSE}' is not supported: images come whole.", SSE)
    return request.headers.get(header, "").lower() == "enable"


# The SDK's Aio classes end these paths with a slash.
@router.get("/tasks/{task_id}/", include_in_schema=False)
@router.get("/tasks/{task_id}", openapi_extra=answers(DASHSCOPE_TASK))
async def get_task(request: Request, task_id: str) -> Response:
    """How a task stands, and its images once they are there. UNKNOWN: not there, not yours, or a day past its end."""
    context, request_id = context_of(request), _request_id(request)
    principal = await drawer(request)
    try:
        row, _ = await context.gallery.task(task_id, principal.account_id)
        headers = extended((row.result or {}).get("extension"))
        return respond(await _standing(request, context, row, request_id), headers)
    except NotFound:
        return respond(dashscope_native.encode_unknown(task_id, request_id))


@router.post("/tasks/{task_id}/cancel/", include_in_schema=False)
@router.post("/tasks/{task_id}/cancel", openapi_extra=answers(DASHSCOPE_CANCELLED))
async def cancel_task(request: Request, task_id: str) -> Response:
    """Cancel a task that is PENDING; it costs nothing."""
    context, request_id = context_of(request), _request_id(request)
    principal = await drawer(request)
    try:
        row, _ = await context.gallery.task(task_id, principal.account_id)
    except NotFound:
        return respond(dashscope_native.encode_not_pending(request_id))
    if row.state == "queued":
        row = await _cancelled(context, row, principal.account_id)
        if row.state == "cancelled":
            return respond(Reply(200, {"request_id": request_id}))
    return respond(dashscope_native.encode_not_pending(request_id))


@router.get("/tasks/", include_in_schema=False)
@router.get("/tasks", openapi_extra=answers(DASHSCOPE_TASKS))
async def list_tasks(request: Request) -> Response:
    """The tasks of the last day, the newest first; filtered, a page at a time."""
    context = context_of(request)
    principal = await drawer(request)
    asked = dict(request.query_params)
    page_no = _whole(asked, "page_no", 1, 1_000_000)
    page_size = _whole(asked, "page_size", 10, PAGE_SIZE_MAX)
    wanted = _filter(context, principal.account_id, asked)
    total, rows = 0, []
    if wanted is not None:
        total, rows = await context.gallery.tasks(wanted, (page_no - 1) * page_size, page_size)
    body = {
        "request_id": _request_id(request),
        "data": [_summary(row, principal.account_id) for row in rows],
        "page_no": page_no,
        "page_size": page_size,
        "total": total,
        "total_page": math.ceil(total / page_size),
    }
    return respond(Reply(200, body))


async def _standing(request: Request, context: Context, row: TaskRow, request_id: str) -> Reply:
    ended_ms = row.finished_ms
    if ended_ms is not None and ended_ms < (time.time() - TASK_LIFE_S) * 1000:
        raise NotFound("This task is no longer kept.", "task_id")
    report = await context.gallery.report(row, link_base(request, context.settings))
    dialect = context.dialects[MESSAGES if row.dialect == MESSAGES else SYNTHESIS]
    return dialect.encode_task(report, request_id)


async def _cancelled(context: Context, row: TaskRow, account_id: str) -> TaskRow:
    """The row once its cancellation is settled; after CANCEL_S_MAX as it is then."""
    await context.pipeline.cancel(row.id)
    give_up_s = time.monotonic() + CANCEL_S_MAX
    while row.is_open and time.monotonic() < give_up_s:
        await asyncio.sleep(0.1)
        row, _ = await context.gallery.task(row.id, account_id)
    return row


def _filter(context: Context, account_id: str, asked: Mapping[str, str]) -> TaskFilter | None:
    """What a list asks for; None where nothing can match. Raises RequestError."""
    if unknown := sorted(set(asked) - _PARAMETERS):
        if unknown[0] == "region":
            raise UnsupportedField("'region' is not supported: there is one.", "region")
        raise UnknownField(unknown[0][:100], meant(unknown[0], _PARAMETERS))
    now_ms = round(time.time() * 1000)
    start_ms, end_ms = now_ms - TASK_LIFE_S * 1000, now_ms
    if "start_time" in asked:
        start_ms = max(start_ms, dashscope_native.read_time(asked["start_time"], "start_time"))
    if "end_time" in asked:
        end_ms = min(end_ms, dashscope_native.read_time(asked["end_time"], "end_time") + 999)
    states = {word: state for state, word in STATUS.items()}
    status = asked.get("status")
    if status is not None and status not in states and status not in ("UNKNOWN", "SUSPENDED"):
        words = ", ".join(f"'{word}'" for word in states)
        raise InvalidField(f"'status' must be one of {words}.", "status")
    try:
        model = asked.get("model_name")
        model = None if model is None else context.catalog.find(model, SYNTHESIS).name
    except ModelNotFound:
        return None
    if status is not None and status not in states:
        return None  # no task of ours is ever in these
    return TaskFilter(
        account_id=account_id,
        dialects=(MESSAGES, SYNTHESIS),
        from_ms=start_ms,
        to_ms=end_ms,
        model=model,
        states=None if status is None else (states[status],),
        token_id=asked.get("api_key_id"),
    )


def _whole(asked: Mapping[str, str], param: str, default: int, most: int) -> int:
    """A number of the query. Raises InvalidField."""
    text = asked.get(param, str(default))
    value = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
    if not 1 <= value <= most:
        raise InvalidField(f"'{param}' must be a whole number from 1 to {most}.", param)
    return value


def _summary(row: TaskSummary, account_id: str) -> dict[str, Any]:
    times = {"gmt_create": row.created_ms, "start_time": row.created_ms}
    if row.finished_ms is not None:
        times["end_time"] = row.finished_ms
    return {
        "task_id": row.id,
        "request_id": row.id,
        "api_key_id": row.token_id,
        "caller_uid": account_id,
        "model_name": row.model,
        "status": STATUS[row.state],
        **times,
    }


def _request_id(request: Request) -> str:
    return request.scope["danqing.request_id"]
