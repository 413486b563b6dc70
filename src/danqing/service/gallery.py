"""Looking up what was drawn: stored images and tasks. Knows the database and the blobs; draws and charges nothing."""

from __future__ import annotations

import time
from dataclasses import dataclass

from danqing.db.tables import ImageRow, TaskRow
from danqing.domain.errors import NotFound
from danqing.service.ledger import Ledger
from danqing.service.links import LinkSigner
from danqing.storage.blobs import Blobs

MEDIA_TYPE = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}


@dataclass(frozen=True, slots=True)
class StoredFile:
    """An image as it is served."""

    blob_key: str
    media_type: str
    bytes_count: int
    sha256: str
    expires_s: int


class Gallery:
    """Reads images by signed link, and tasks by their owner."""

    def __init__(self, ledger: Ledger, blobs: Blobs, signer: LinkSigner) -> None:
        self._ledger = ledger
        self._blobs = blobs
        self._signer = signer

    async def by_link(self, image_id: str, ext: str, expires: str, signature: str) -> StoredFile:
        """The image behind a signed link. Raises NotFound for a wrong, old or altered one, all alike."""
        gone = NotFound("No such image, or its link has expired.")
        if not self._signer.verify(image_id, ext, expires, signature, now=time.time()):
            raise gone
        row = await self._ledger.image(image_id)
        if row is None or row.deleted_ms is not None or row.format != ext:
            raise gone
        return StoredFile(
            blob_key=row.blob_key,
            media_type=MEDIA_TYPE[row.format],
            bytes_count=row.bytes,
            sha256=row.sha256,
            expires_s=int(expires),
        )

    def link(self, image: ImageRow, base_url: str) -> str:
        """A link to an image's row, good as long as the image is kept."""
        return base_url + self._signer.sign(image.id, image.format, image.expires_ms // 1000)

    async def read(self, file: StoredFile, start: int, end: int) -> bytes:
        """Bytes [start, end) of an image."""
        return await self._blobs.get(file.blob_key, range=(start, end))

    async def task(self, task_id: str, account_id: str) -> tuple[TaskRow, list[ImageRow]]:
        """A task's row and its images' rows. Raises NotFound, also for somebody else's task."""
        row = await self._ledger.task(task_id)
        if row is None or row.account_id != account_id:
            raise NotFound("No such task.", "task_id")
        return row, await self._ledger.images(task_id)
