"""POST /v1/images/inspect: which AI labels a picture carries. Any token may ask, and pays nothing. Knows HTTP; no label."""

from __future__ import annotations

import asyncio
import binascii
import re
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request

from danqing.api.callers import drawer
from danqing.api.context import context_of
from danqing.api.payload import EDITS, read_payload
from danqing.api.reference import bodies_of
from danqing.api.schemas import INSPECTION, answers
from danqing.dialects.base import Upload
from danqing.domain.errors import InvalidField, InvalidImage, MissingField, UnknownField

_DATA_URL = re.compile(r"data:image/[a-z0-9.+-]{1,20};base64,", re.ASCII | re.IGNORECASE)
_BODIES = {
    "application/json": [
        {
            "title": "Inspection",
            "type": "object",
            "properties": {"image": {"type": "string", "description": "base64, or a data: URL"}},
            "required": ["image"],
        }
    ],
    "multipart/form-data": [
        {
            "title": "Inspection",
            "type": "object",
            "properties": {"image": {"type": "string", "format": "binary"}},
            "required": ["image"],
        }
    ],
}

router = APIRouter(tags=["labels"])


@router.post("/images/inspect", openapi_extra=bodies_of(_BODIES) | answers(INSPECTION))
async def inspect_image(request: Request) -> dict[str, Any]:
    """Which labels a picture carries, whether they are ours, which image it is, whether its pixels changed since."""
    context = context_of(request)
    account_id = (await drawer(request)).account_id
    uploads = context.settings.uploads
    with context.uploads.share(account_id, request.scope["danqing.request_id"]) as share:
        payload = await read_payload(request, EDITS, context.settings, share)
        data = await asyncio.to_thread(_picture, payload.body)
        if len(data) > uploads.image_bytes_max:
            raise InvalidImage(f"'image' has more than {uploads.image_bytes_max} bytes.", "image")
        try:
            found = await context.inspections.inspect(
                data, account_id, pixels_max=uploads.pixels_max
            )
        except ValueError as error:
            raise InvalidImage(f"'image' cannot be inspected: {error}.", "image") from None
    return {"object": "image.inspection", **asdict(found)}


def _picture(body: dict[str, object]) -> bytes:
    """Raises MissingField, UnknownField, InvalidField, InvalidImage."""
    for name in body:
        if name != "image":
            raise UnknownField(name[:100])
    image = body.get("image")
    if image is None:
        raise MissingField("image")
    if isinstance(image, Upload):
        return image.data
    if not isinstance(image, str):
        raise InvalidField("'image' must be one file, or a string of base64.", "image")
    prefix = _DATA_URL.match(image)
    try:
        return binascii.a2b_base64(image[prefix.end() :] if prefix else image, strict_mode=True)
    except (binascii.Error, ValueError):
        raise InvalidImage(
            "'image' must be a file, a 'data:image/...;base64,' URL or base64.", "image"
        ) from None
