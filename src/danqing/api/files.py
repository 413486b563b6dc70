"""GET /files/{id}.{ext}: stored images by signed link, with range and cache headers."""

from __future__ import annotations

import re
import time

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from danqing.api.context import context_of
from danqing.domain.errors import DanqingError, NotFound
from danqing.service.gallery import Gallery, StoredFile

router = APIRouter(tags=["files"])

_RANGE = re.compile(r"bytes=(\d{0,15})-(\d{0,15})")


@router.head("/files/{name}", include_in_schema=False)
@router.get("/files/{name}")
async def get_file(request: Request, name: str) -> Response:
    """The image's bytes; 404 for a wrong, altered or expired link."""
    gallery = context_of(request).gallery
    image_id, _, ext = name.partition(".")
    query = request.query_params
    try:
        file = await gallery.by_link(
            image_id, ext, query.get("x-expires", ""), query.get("x-signature", "")
        )
        return await _serve(request, gallery, file, name)
    except NotFound as error:
        return _failed(404, error)
    except DanqingError as error:
        return _failed(503, error)


def _failed(status: int, error: DanqingError) -> Response:
    headers = {"retry-after": "5"} if status == 503 else {}
    body = {"error": {"code": error.code, "message": error.message}}
    return JSONResponse(body, status_code=status, headers=headers)


async def _serve(request: Request, gallery: Gallery, file: StoredFile, name: str) -> Response:
    etag = f'"{file.sha256[:32]}"'
    headers = {
        "etag": etag,
        "accept-ranges": "bytes",
        "cache-control": f"private, max-age={max(0, file.expires_s - int(time.time()))}, immutable",
        "content-disposition": f'inline; filename="{name}"',
        "x-content-type-options": "nosniff",
        "access-control-allow-origin": "*",  # the signature is the permission, not the origin
    }
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    status, start, end = _span(request, file.bytes_count, etag)
    if status == 416:
        headers["content-range"] = f"bytes */{file.bytes_count}"
        return Response(status_code=416, headers=headers)
    if status == 206:
        headers["content-range"] = f"bytes {start}-{end - 1}/{file.bytes_count}"
    headers["content-length"] = str(end - start)
    body = b"" if request.method == "HEAD" else await gallery.read(file, start, end)
    return Response(body, status_code=status, headers=headers, media_type=file.media_type)


def _span(request: Request, size: int, etag: str) -> tuple[int, int, int]:
    """Status and half-open byte span for the Range header; anything odd gets the whole file."""
    match = _RANGE.fullmatch(request.headers.get("range", "").strip())
    if match is None or match[0] == "bytes=-":
        return 200, 0, size
    if request.headers.get("if-range", etag) != etag:
        return 200, 0, size
    first, last = match.groups()
    if first == "":
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(size, int(last) + 1 if last else size)
    if start >= size or start >= end:
        return 416, 0, 0
    return 206, start, end
