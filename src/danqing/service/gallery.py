"""Looking up what was drawn: stored images, tasks, and a task's answer again. Draws and charges nothing."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import cast

from danqing.db.rows import ImageRow, TaskRow, TaskSummary
from danqing.db.task_queries import TaskFilter
from danqing.domain.card import ImageFormat
from danqing.domain.errors import DanqingError, EngineFailed, NotFound
from danqing.domain.sizes import Size
from danqing.domain.task import DeliveredImage, ImageResult, TaskReport
from danqing.observability.logging import get_logger
from danqing.service.calls import Outcome
from danqing.service.ledger import Ledger
from danqing.service.links import LinkRefused, LinkSigner
from danqing.service.records import StoredRequest, StoredResult, error_of_json
from danqing.service.thumbnails import SIZES_PX, Thumbnails, copies_of
from danqing.service.upstream import passed_on
from danqing.storage.blobs import Blobs

log = get_logger(__name__)

_LINK = re.compile(
    r"/files/([0-9a-f]{11})\.([a-z]+)\?x-expires=([0-9]+)&x-signature=([A-Za-z0-9_.-]+)(?:&|$)"
)
_ID = re.compile(r"[0-9a-f-]{36}")
LISTED_LINK_S = 3600
"""How long links in lists of images are good: whoever looks again gets fresh ones."""
MEDIA_TYPE = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}


@dataclass(frozen=True, slots=True)
class StoredFile:
    """An image as it is served. Times are Unix seconds; the link ends at `expires_s`."""

    image_id: str
    blob_key: str
    media_type: str
    bytes_count: int
    sha256: str
    created_s: int
    expires_s: int


class Gallery:
    """Reads images by signed link, and tasks by their owner."""

    def __init__(self, ledger: Ledger, blobs: Blobs, signer: LinkSigner) -> None:
        self._ledger = ledger
        self._blobs = blobs
        self._signer = signer
        self._thumbnails = Thumbnails(blobs)

    async def by_link(self, image_id: str, ext: str, expires: str, signature: str) -> StoredFile:
        """The image behind a signed link. Raises LinkRefused; NotFound where the image is kept no longer."""
        version = self._signer.verify(image_id, ext, expires, signature, now=time.time())
        row = await self._ledger.image(image_id)
        if row is None or row.format != ext or not _is_there(row):
            raise NotFound("The image is kept no longer.")
        if row.link_version != version:
            raise LinkRefused("revoked")
        return StoredFile(
            image_id=image_id,
            blob_key=row.blob_key,
            media_type=MEDIA_TYPE[row.format],
            bytes_count=row.bytes,
            sha256=row.sha256,
            created_s=row.created_ms // 1000,
            expires_s=int(expires),
        )

    async def behind(self, url: str) -> bytes | None:
        """The image behind a link of ours, whatever host it names; None for any other URL, or a dead link.

        So that a client can edit what it was given where this server could not fetch from itself.
        """
        found = _LINK.search(url)
        if found is None:
            return None
        try:
            file = await self.by_link(*found.groups())
        except (LinkRefused, NotFound):
            return None
        return await self.read(file, 0, file.bytes_count)

    def link(self, image: ImageRow, base_url: str, link_s: int) -> str:
        """A fresh link to an image, good for so many seconds, and no longer than the image is kept."""
        expires_s = min(int(time.time()) + link_s, image.expires_ms // 1000)
        return base_url + self._signer.sign(image.id, image.format, expires_s, image.link_version)

    def links(self, image: ImageRow, base_url: str, link_s: int = LISTED_LINK_S) -> dict[str, str]:
        """Fresh addresses of an image and of its copy for galleries."""
        url = self.link(image, base_url, link_s)
        return {"url": url, "thumbnail_url": f"{url}&w={SIZES_PX[0]}"}

    async def read(self, file: StoredFile, start: int, end: int) -> bytes:
        """Bytes [start, end) of an image."""
        return await self._blobs.get(file.blob_key, range=(start, end))

    async def is_stored(self, file: StoredFile) -> bool:
        """Whether its bytes are really there."""
        return await self._blobs.size(file.blob_key) is not None

    async def thumbnail(self, file: StoredFile, side_px: int) -> bytes:
        """A small copy of an image, a WebP. Raises NotFound, Unavailable."""

        async def still_there() -> bool:
            row = await self._ledger.image(file.image_id)
            return row is not None and _is_there(row)

        return await self._thumbnails.get(file.blob_key, side_px, still_there)

    async def answers(self, seconds: float) -> bool:
        """Whether images can be kept now, as far as it can be known within this time."""
        return await self._blobs.answers(seconds)

    async def delete_blobs(self, blob_keys: Iterable[str]) -> None:
        """Delete now what images past their time were in, which housekeeping would do; what cannot be is logged."""
        gone: list[str] = []
        for blob_key in (key for one in blob_keys for key in (*copies_of(one), one)):
            try:
                await self._blobs.delete(blob_key)
                gone.append(blob_key)
            except DanqingError as error:
                log.error("blob_left_behind", key=blob_key, code=error.code)
        try:
            await self._ledger.mark_deleted(gone)
        except DanqingError as error:  # housekeeping finds the rows
            log.error("deletion_not_noted", code=error.code)

    async def task(self, task_id: str, account_id: str) -> tuple[TaskRow, list[ImageRow]]:
        """A task's row, and those of its images that are still there. Raises NotFound, also for somebody else's task."""
        row = await self._ledger.task(task_id) if _ID.fullmatch(task_id) else None
        if row is None or row.account_id != account_id:
            raise NotFound("No such task.", "task_id")
        return row, [image for image in await self._ledger.images(row.id) if _is_there(image)]

    async def tasks(
        self, wanted: TaskFilter, skip: int, rows_max: int
    ) -> tuple[int, list[TaskSummary]]:
        """How many background tasks match, and a page of them, the newest first."""
        return await self._ledger.tasks(wanted, skip, rows_max)

    async def anybodys(self, task_id: str) -> TaskRow:
        """A task's row, whosever it is, for operators. Raises NotFound."""
        row = await self._ledger.task(task_id) if _ID.fullmatch(task_id) else None
        if row is None:
            raise NotFound("No such task.", "task_id")
        return row

    async def outcome(self, row: TaskRow, base_url: str, *, aside: bool = False) -> Outcome:
        """The answer of a task that has ended, as it was, with fresh links. `aside` leaves base64 for `filled`.

        Raises the error it ended with; NotFound where none of its images is there any more.
        """
        if row.state != "succeeded":
            raise error_of_json(row.error or {"code": "server_fault", "message": "It failed."})
        try:
            request = StoredRequest.of_json(row.request)
        except ValueError:
            raise NotFound("The answer of this task is no longer kept.") from None
        result = StoredResult.of_json(row.result)
        images: dict[int, DeliveredImage | DanqingError] = dict(result.failed)
        images |= {index: passed_on(link) for index, link in result.upstream.links.items()}
        for image in await self._ledger.images(row.id):
            if _is_there(image):
                images[image.idx] = await self._present(image, request, base_url, aside)
        if not any(isinstance(image, DeliveredImage) for image in images.values()):
            raise NotFound("The images of this task are no longer kept.")
        return Outcome(
            result=ImageResult(
                created=int(request.received_s),
                model=row.model,
                images=tuple(images.get(index, EngineFailed()) for index in range(request.task.n)),
                prompt=request.task.prompt,
                revised_prompt=result.revised_prompt,
                safety=result.safety,
                quality=request.task.quality,
                input_pixels=request.input_pixels,
                transparent=request.task.transparent,
            ),
            task_id=row.id,
            charged=row.charged,
            seeds=request.seeds if result.upstream.seeded else (),
            timing_ms=result.timing_ms,
            replayed=True,
            extension=result.extension,
        )

    async def report(self, row: TaskRow, base_url: str) -> TaskReport:
        """How a task stands, with its answer where it has succeeded.

        Raises NotFound where its answer is no longer kept.
        """
        try:
            request = StoredRequest.of_json(row.request)
        except ValueError:
            raise NotFound("This task is no longer kept.", "task_id") from None
        report = TaskReport(
            task_id=row.id,
            model=row.model,
            state=row.state,
            created_ms=row.created_ms,
            started_ms=_started_ms(row),
            finished_ms=row.finished_ms,
            prompt=request.task.prompt,
            client_request_id=request.task.client_request_id,
            delivery=request.delivery,
        )
        if row.state == "succeeded":
            try:
                return replace(report, result=(await self.outcome(row, base_url)).result)
            except NotFound as error:
                raise NotFound(error.message, "task_id") from None
        return report if row.error is None else replace(report, error=error_of_json(row.error))

    async def filled(self, image: DeliveredImage) -> DeliveredImage:
        """An image whose base64 was left aside, with it. Raises NotFound, Unavailable."""
        assert image.blob_key is not None
        data = await self._blobs.get(image.blob_key)
        return replace(image, b64=base64.b64encode(data).decode("ascii"))

    async def _present(
        self, image: ImageRow, request: StoredRequest, base_url: str, aside: bool
    ) -> DeliveredImage:
        inline = request.delivery.form == "b64_json"
        shown = DeliveredImage(
            image_id=image.id,
            size=Size(image.width, image.height),
            seed=image.seed,
            format=cast("ImageFormat", image.format),
            url=None if inline else self.link(image, base_url, request.life.link_s),
            blob_key=image.blob_key if inline else None,
        )
        return await self.filled(shown) if inline and not aside else shown


def _started_ms(row: TaskRow) -> int | None:
    """When a task that has ended left the queue, by what its drawing took down; else unknown."""
    if row.finished_ms is None or row.result is None:
        return None
    queue_ms = StoredResult.of_json(row.result).timing_ms.get("queue", 0.0)
    return min(row.created_ms + round(queue_ms), row.finished_ms)


def _is_there(image: ImageRow) -> bool:
    return image.deleted_ms is None and image.expires_ms > time.time() * 1000
