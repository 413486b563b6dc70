"""GET /v1/images/tasks/{id}: what became of a task, with fresh links. Only its own account may look."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from danqing.api.context import context_of
from danqing.api.requests import link_base

router = APIRouter(tags=["tasks"])


@router.get("/images/tasks/{task_id}")
async def get_task(request: Request, task_id: str) -> dict[str, Any]:
    """State, charge and images of a task."""
    context = context_of(request)
    principal = await context.auth.authenticate(request.headers.get("authorization"))
    row, images = await context.gallery.task(task_id, principal.account_id)
    base_url = link_base(request, context.settings)
    return {
        "id": row.id,
        "object": "image.task",
        "model": row.model,
        "status": row.state,
        "created": row.created_ms // 1000,
        "finished": row.finished_ms and row.finished_ms // 1000,
        "charged": row.charged,
        "error": row.error,
        "data": [
            {
                "url": context.gallery.link(image, base_url),
                "size": f"{image.width}x{image.height}",
                "seed": image.seed,
            }
            for image in images
            if image.deleted_ms is None
        ],
    }
