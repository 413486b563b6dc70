"""/v1/images/tasks/{id}: what became of a task, with fresh links; cancelling one. Only for its own account."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from fastapi import APIRouter, Request

from danqing.api.callers import drawer
from danqing.api.context import context_of
from danqing.api.requests import link_base
from danqing.api.schemas import STORED_TASK, answers
from danqing.db.rows import ImageRow, TaskRow
from danqing.service.gallery import LISTED_LINK_S
from danqing.service.records import StoredResult

CANCEL_S_MAX = 10.0

router = APIRouter(tags=["tasks"])


@router.get("/images/tasks/{task_id}", openapi_extra=answers(STORED_TASK))
async def get_task(request: Request, task_id: str) -> dict[str, Any]:
    """State, charge and images of a task."""
    context = context_of(request)
    principal = await drawer(request)
    row, images = await context.gallery.task(task_id, principal.account_id)
    return _shown(request, row, images)


@router.delete("/images/tasks/{task_id}", openapi_extra=answers(STORED_TASK))
async def cancel_task(request: Request, task_id: str) -> dict[str, Any]:
    """Cancel a task: free while it is queued, then charged by the model's rule. One that is over stays as it is.

    Answers when it is settled; after 10 s (another server draws it) as it is then.
    """
    context = context_of(request)
    principal = await drawer(request)
    row, images = await context.gallery.task(task_id, principal.account_id)
    if row.is_open:
        await context.pipeline.cancel(row.id)
    give_up_s = time.monotonic() + CANCEL_S_MAX
    while row.is_open and time.monotonic() < give_up_s:
        await asyncio.sleep(0.1)
        row, images = await context.gallery.task(task_id, principal.account_id)
    return _shown(request, row, images)


def _shown(request: Request, row: TaskRow, images: list[ImageRow]) -> dict[str, Any]:
    context = context_of(request)
    base_url = link_base(request, context.settings)
    result = StoredResult.of_json(row.result)
    upstream = result.upstream
    link_s: int = row.request.get("link_ttl_s", LISTED_LINK_S)
    return {
        "id": row.id,
        "object": "image.task",
        "model": row.model,
        "status": row.state,
        "created": row.created_ms // 1000,
        "finished": row.finished_ms and row.finished_ms // 1000,
        "charged": row.charged,
        "revised_prompt": result.revised_prompt,
        "extension": result.extension,
        "error": row.error and {name: row.error[name] for name in ("code", "message")},
        "data": [
            {
                **context.gallery.links(image, base_url, link_s),
                "size": f"{image.width}x{image.height}",
                "seed": image.seed if upstream.seeded else None,
            }
            for image in images
        ]
        + [
            {
                "url": link.url,
                "size": str(link.size),
                "seed": link.seed if upstream.seeded else None,
            }
            for link in upstream.links.values()
        ],
    }
