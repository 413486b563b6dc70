"""Reading a drawing request's body, JSON or form, within its route's bounds. Knows HTTP; nothing of any dialect."""

from __future__ import annotations

from asyncio import to_thread
from dataclasses import dataclass
from typing import NamedTuple

from fastapi import Request

from danqing.api.requests import read_body
from danqing.api.uploads import FormLimits, boundary_of, read_form
from danqing.dialects.base import parse_json
from danqing.domain.errors import InvalidBody
from danqing.service.budget import Share
from danqing.settings import Settings

LARGE_BYTES = 32_000
JSON_COPIES = 3
"""How often a large JSON body is in memory at once when it is there: its bytes, its text, its values."""
FILES_MAX = 17
"""OpenAI's sixteen images and a mask."""


@dataclass(frozen=True, slots=True)
class Bodies:
    """What a route takes. `pictures`: its JSON may hold some, so it may be as large as a form."""

    json: bool = True
    form: bool = False
    pictures: bool = False


TEXT = Bodies()
PICTURES = Bodies(pictures=True)
EDITS = Bodies(form=True, pictures=True)
FORM = Bodies(json=False, form=True)


class Payload(NamedTuple):
    """`is_large`: working on it takes a while, which is not for the event loop."""

    body: dict[str, object]
    is_large: bool


async def read_payload(
    request: Request, bodies: Bodies, settings: Settings, share: Share
) -> Payload:
    """The request's body. Bytes of pictures are counted with `share`.

    Raises InvalidBody, BodyTooLarge, BodyTooSlow, InvalidImage, Cancelled, Busy.
    """
    boundary = boundary_of(request)
    if boundary is not None:
        if not bodies.form:
            raise InvalidBody("This route takes application/json, not multipart/form-data.")
        limits = FormLimits(
            bytes_max=settings.uploads.request_bytes_max,
            file_bytes_max=settings.uploads.image_bytes_max,
            text_bytes_max=settings.body_bytes_max,
            files_max=FILES_MAX,
        )
        return Payload(await read_form(request, boundary, limits, share), True)
    if not bodies.json:
        raise InvalidBody("This route takes multipart/form-data alone.")
    text_max = settings.body_bytes_max
    bytes_max = max(text_max, settings.uploads.request_bytes_max) if bodies.pictures else text_max

    def counted(bytes_count: int) -> None:
        if bytes_count > text_max:
            share.add(bytes_count - share.bytes_count)

    raw = await read_body(request, bytes_max, counted=counted if bodies.pictures else None)
    if share.bytes_count:
        share.add(len(raw) * JSON_COPIES - share.bytes_count, whole=True)
    if len(raw) < LARGE_BYTES:
        return Payload(parse_json(raw), False)
    return Payload(await to_thread(parse_json, raw), True)
