"""Stored images: an account's own under /v1/images/files, anybody's under /admin/v1/images. Knows the services; no rule."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from danqing.api import shapes
from danqing.api.callers import Admin, Drawer, actor
from danqing.api.context import context_of
from danqing.api.desk import named
from danqing.api.requests import link_base
from danqing.api.schemas import STORED_IMAGE, STORED_IMAGES, answers
from danqing.api.shapes import After, Limit
from danqing.db.rows import ImageRow

own = APIRouter(tags=["images"])
anybodys = APIRouter(tags=["admin: images"])


@own.get("/images/files", openapi_extra=answers(STORED_IMAGES))
async def list_images(
    request: Request, caller: Drawer, after: After = "", limit: Limit = 100
) -> dict[str, Any]:
    """The account's images that are kept, the newest first, with links that are good for an hour."""
    rows = await context_of(request).books.images.page(caller.account_id, after, limit + 1)
    return shapes.page(rows, limit, lambda row: row.id, lambda row: _shown(request, row))


@own.get("/images/files/{image_id}", openapi_extra=answers(STORED_IMAGE))
async def get_image(request: Request, caller: Drawer, image_id: str) -> dict[str, Any]:
    """One image of the account, with fresh links."""
    images = context_of(request).books.images
    return _shown(request, await images.get(image_id, caller.account_id))


@own.delete("/images/files/{image_id}", status_code=204)
async def delete_image(request: Request, caller: Drawer, image_id: str) -> Response:
    """Delete an image: its links are dead at once. What it cost is not given back."""
    return await _deleted(request, image_id, caller.account_id, actor(caller))


@own.post("/images/files/{image_id}/revoke", openapi_extra=answers(STORED_IMAGE))
async def revoke_image(request: Request, caller: Drawer, image_id: str) -> dict[str, Any]:
    """Void every link to an image that was given out until now; the answer has fresh ones."""
    images = context_of(request).books.images
    await images.revoke_links(image_id, caller.account_id, by=actor(caller))
    return _shown(request, await images.get(image_id, caller.account_id))


@anybodys.get("/images/{image_id}")
async def get_anybodys(request: Request, caller: Admin, image_id: str) -> dict[str, Any]:
    """Anybody's image: whose it is, of which task, and links that are good for an hour."""
    return _shown(request, await context_of(request).books.images.get(image_id))


@anybodys.delete("/images/{image_id}", status_code=204)
async def delete_anybodys(request: Request, caller: Admin, image_id: str) -> Response:
    """Delete anybody's image: its links are dead at once."""
    return await _deleted(request, image_id, None, actor(caller))


@anybodys.post("/images/{image_id}/revoke")
async def revoke_anybodys(request: Request, caller: Admin, image_id: str) -> dict[str, Any]:
    """Void every link to an image that was given out until now."""
    images = context_of(request).books.images
    await images.revoke_links(image_id, by=actor(caller))
    return _shown(request, await images.get(image_id))


@anybodys.post("/accounts/{account:path}/revoke-links")
async def revoke_account(request: Request, caller: Admin, account: str) -> dict[str, Any]:
    """Void every link to an account's images that was given out until now."""
    row = await named(request, account)
    count = await context_of(request).books.images.revoke_links_of(row.id, by=actor(caller))
    return {"object": "account", "id": row.id, "images": count}


async def _deleted(request: Request, image_id: str, account_id: str | None, by: str) -> Response:
    context = context_of(request)
    blob_key = await context.books.images.delete(image_id, account_id, by=by)
    await context.gallery.delete_blobs([blob_key])
    return Response(status_code=204)


def _shown(request: Request, row: ImageRow) -> dict[str, Any]:
    context = context_of(request)
    links = context.gallery.links(row, link_base(request, context.settings))
    return shapes.image(row) | links
