"""GET /files/{id}.{ext}: stored images by signed link, whole, in part, or as a thumbnail. Knows HTTP; the gallery knows images."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from danqing.api.context import context_of
from danqing.api.ranges import disposition, http_date, is_unchanged, span
from danqing.domain.errors import DanqingError, InvalidField, NotFound
from danqing.service import thumbnails
from danqing.service.gallery import Gallery, StoredFile
from danqing.service.links import LinkRefused

CHUNK_BYTES = 4_000_000
"""More than this is read and sent piece by piece."""
FRESH_S_MAX = 86_400
"""A browser may show a copy for this long without asking, and never longer than the link is good."""

router = APIRouter(tags=["files"])

_TEXT = {"type": "string"}
_IMAGES = {
    f"image/{kind}": {"schema": {"type": "string", "format": "binary"}}
    for kind in ("png", "jpeg", "webp")
}
_FAULT = {
    "application/json": {
        "schema": {
            "type": "object",
            "properties": {
                "error": {
                    "type": "object",
                    "properties": {"code": _TEXT, "message": _TEXT},
                    "required": ["code", "message"],
                    "additionalProperties": False,
                }
            },
            "required": ["error"],
            "additionalProperties": False,
        }
    }
}
ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "The image.", "content": _IMAGES},
    206: {"description": "The part that `Range` asks for.", "content": _IMAGES},
    304: {"description": "The copy that you have is good (`If-None-Match`, `If-Modified-Since`)."},
    400: {"description": "`w` is no width of a thumbnail.", "content": _FAULT},
    403: {"description": "The link is not ours, changed, expired or revoked.", "content": _FAULT},
    404: {"description": "The image is kept no longer.", "content": _FAULT},
    416: {"description": "`Range` begins behind the image's end."},
    503: {"description": "The image store does not answer.", "content": _FAULT},
}
QUERY = [
    {"name": name, "in": "query", "required": needed, "schema": schema, "description": text}
    for name, needed, schema, text in (
        ("x-expires", True, _TEXT, "Of the link: when it ends."),
        ("x-signature", True, _TEXT, "Of the link."),
        ("w", False, {"enum": [str(px) for px in thumbnails.SIZES_PX]}, "A thumbnail's width."),
        ("download", False, _TEXT, "The name to save it by."),
    )
]


@router.head("/files/{name}", include_in_schema=False)
@router.get(
    "/files/{name}",
    response_class=Response,
    responses=ANSWERS,
    openapi_extra={"parameters": QUERY, "security": []},
)
async def get_file(request: Request, name: str) -> Response:
    """The image's bytes. `w=256` or `w=512`: a copy that fits into such a square, a WebP. `download=NAME`: to be saved so.

    403 for a link that is not ours, was changed, has expired or was revoked; 404 where the image is kept no longer.
    """
    gallery = context_of(request).gallery
    image_id, _, ext = name.partition(".")
    query = request.query_params
    try:
        file = await gallery.by_link(
            image_id, ext, query.get("x-expires", ""), query.get("x-signature", "")
        )
        if "w" in query:
            return await _serve_thumbnail(request, gallery, file, _side_px(query["w"]))
        return await _serve(request, gallery, file, ext)
    except LinkRefused as error:
        return _failed(403, f"link_{error.reason}", error)
    except InvalidField as error:
        return _failed(400, error.code, error)
    except NotFound as error:
        return _failed(404, error.code, error)
    except DanqingError as error:
        return _failed(503, error.code, error)


def _failed(status: int, code: str, error: DanqingError) -> Response:
    headers = {"cache-control": "no-store"} | ({"retry-after": "5"} if status == 503 else {})
    body = {"error": {"code": code, "message": error.message}}
    return JSONResponse(body, status_code=status, headers=headers)


def _side_px(text: str) -> int:
    if text not in [str(side_px) for side_px in thumbnails.SIZES_PX]:
        known = " or ".join(str(side_px) for side_px in thumbnails.SIZES_PX)
        raise InvalidField(f"'w' must be {known}.", "w")
    return int(text)


def _headers(request: Request, file: StoredFile, etag: str, ext: str) -> dict[str, str]:
    fresh_s = max(0, min(FRESH_S_MAX, file.expires_s - int(time.time())))
    return {
        "etag": etag,
        "last-modified": http_date(file.created_s),
        "accept-ranges": "bytes",
        "cache-control": f"private, max-age={fresh_s}, immutable",
        "content-disposition": disposition(
            request.query_params.get("download"), file.image_id, ext
        ),
        "x-content-type-options": "nosniff",
        "content-security-policy": "default-src 'none'; sandbox",
        "cross-origin-resource-policy": "cross-origin",
    }


async def _serve(request: Request, gallery: Gallery, file: StoredFile, ext: str) -> Response:
    etag = f'"{file.sha256[:32]}"'
    headers = _headers(request, file, etag, ext)
    if is_unchanged(request.headers, etag, file.created_s):
        return Response(status_code=304, headers=headers)
    status, start, end = span(request.headers, file.bytes_count, etag, file.created_s)
    if status == 416:
        return _unsatisfiable(headers, file.bytes_count)
    if status == 206:
        headers["content-range"] = f"bytes {start}-{end - 1}/{file.bytes_count}"
    headers["content-length"] = str(end - start)
    kind = file.media_type
    if request.method == "HEAD":
        if not await gallery.is_stored(file):
            raise NotFound("The image is gone.")
        return Response(b"", status_code=status, headers=headers, media_type=kind)
    first = await gallery.read(file, start, min(end, start + CHUNK_BYTES))
    if start + len(first) >= end:
        return Response(first, status_code=status, headers=headers, media_type=kind)
    body = _pieces(gallery, file, first, start, end)
    return StreamingResponse(body, status_code=status, headers=headers, media_type=kind)


async def _pieces(
    gallery: Gallery, file: StoredFile, first: bytes, start: int, end: int
) -> AsyncIterator[bytes]:
    yield first
    at = start + len(first)
    while at < end:
        piece = await gallery.read(file, at, min(end, at + CHUNK_BYTES))
        if not piece:  # shorter than its row says: the connection ends before what was promised
            raise NotFound("The image is gone.")
        yield piece
        at += len(piece)


async def _serve_thumbnail(
    request: Request, gallery: Gallery, file: StoredFile, side_px: int
) -> Response:
    etag = f'"{file.sha256[:32]}-{side_px}"'
    headers = _headers(request, file, etag, "webp")
    if is_unchanged(request.headers, etag, file.created_s):
        return Response(status_code=304, headers=headers)
    data = await gallery.thumbnail(file, side_px)
    status, start, end = span(request.headers, len(data), etag, file.created_s)
    if status == 416:
        return _unsatisfiable(headers, len(data))
    if status == 206:
        headers["content-range"] = f"bytes {start}-{end - 1}/{len(data)}"
    headers["content-length"] = str(end - start)
    body = b"" if request.method == "HEAD" else data[start:end]
    return Response(body, status_code=status, headers=headers, media_type=thumbnails.MEDIA_TYPE)


def _unsatisfiable(headers: dict[str, str], size: int) -> Response:
    kept = {name: value for name, value in headers.items() if name != "content-disposition"}
    return Response(status_code=416, headers=kept | {"content-range": f"bytes */{size}"})
