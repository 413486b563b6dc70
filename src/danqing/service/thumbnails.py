"""Small copies of stored images for galleries: made when first asked for, then kept beside their image. Knows no link, no HTTP.

A copy lies under its image's key with its size behind, "20261121/<task>/0-<image>-w256.webp", and goes with it. What
labels the image carries its copy carries too: the visible one is part of the picture, the text is taken over.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Awaitable, Callable

from danqing.domain.errors import DanqingError, NotFound, Unavailable
from danqing.observability.logging import get_logger
from danqing.storage import codecs
from danqing.storage.blobs import BlobExists, Blobs

log = get_logger(__name__)

SIZES_PX = (256, 512)
"""A copy fits into a square of this side. No others are made: each is stored."""
MEDIA_TYPE = "image/webp"
_COPY = re.compile(r"(.+)-w(?:256|512)\.webp")


def copy_key(blob_key: str, side_px: int) -> str:
    """Where an image's copy lies."""
    return f"{blob_key.rpartition('.')[0]}-w{side_px}.webp"


def copies_of(blob_key: str) -> list[str]:
    """Every key that a copy of this image may have."""
    return [copy_key(blob_key, side_px) for side_px in SIZES_PX]


def is_copy(blob_key: str) -> bool:
    return _COPY.fullmatch(blob_key) is not None


def stem_of(blob_key: str) -> str:
    """What an image's key and its copies' have in common."""
    copy = _COPY.fullmatch(blob_key)
    return blob_key.rpartition(".")[0] if copy is None else copy[1]


class Thumbnails:
    """Safe in several servers at once: who comes second takes what the first has stored."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._making: dict[str, asyncio.Lock] = {}
        # Each holds a decoded image: more than cores would only hold more memory.
        self._cores = asyncio.Semaphore(len(os.sched_getaffinity(0)))

    async def get(
        self, blob_key: str, side_px: int, still_there: Callable[[], Awaitable[bool]]
    ) -> bytes:
        """The copy of an image, made if need be. Raises NotFound where the image is gone, Unavailable.

        `still_there` is asked once a new copy is stored: an image that was deleted meanwhile leaves none.
        """
        assert side_px in SIZES_PX
        key = copy_key(blob_key, side_px)
        found = await self._stored(key)
        if found is not None:
            return found
        lock = self._making.setdefault(key, asyncio.Lock())
        try:
            async with lock:  # one gallery shows an image to many at once
                found = await self._stored(key)
                return found or await self._make(blob_key, key, side_px, still_there)
        finally:
            if not lock.locked():
                self._making.pop(key, None)

    async def _stored(self, key: str) -> bytes | None:
        try:
            # A file may be empty after a power cut: its name was on the disk before its bytes.
            return await self._blobs.get(key) or None
        except NotFound:
            return None

    async def _make(
        self,
        blob_key: str,
        key: str,
        side_px: int,
        still_there: Callable[[], Awaitable[bool]],
    ) -> bytes:
        async with self._cores:
            data = await self._blobs.get(blob_key)
            try:
                small = await asyncio.to_thread(codecs.thumbnail, data, side_px)
            except (OSError, ValueError) as error:
                raise Unavailable("The stored image cannot be read.") from error
        try:
            await self._blobs.put(key, small)
        except BlobExists:
            return small
        except DanqingError as error:  # it can be shown all the same
            log.warning("thumbnail_not_kept", key=key, code=error.code)
            return small
        if not await still_there():
            await self._blobs.delete(key)
            raise NotFound("The image is gone.")
        return small
