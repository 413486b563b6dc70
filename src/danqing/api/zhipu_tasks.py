"""/async-result/{id}: how a task of Zhipu's asynchronous route stands. Only for its own account."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from danqing.api.answers import extended, respond
from danqing.api.callers import drawer
from danqing.api.context import context_of
from danqing.api.requests import link_base
from danqing.api.schemas import ZHIPU_TASK, answers

router = APIRouter(tags=["tasks"])


@router.get("/async-result/{id}", openapi_extra=answers(ZHIPU_TASK))
async def get_result(request: Request, id: str) -> Response:
    """A task's status, and its image once it is there. Somebody else's task is an unknown one."""
    context = context_of(request)
    principal = await drawer(request)
    row, _ = await context.gallery.task(id, principal.account_id)
    report = await context.gallery.report(row, link_base(request, context.settings))
    request_id: str = request.scope["danqing.request_id"]
    reply = context.dialects["zhipu"].encode_task(report, request_id)
    return respond(reply, extended((row.result or {}).get("extension")))
