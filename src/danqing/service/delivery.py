"""From pixels to what the client gets: label, encode, store, link. Knows no engine, no ledger, no HTTP.

A blob's key names its day, task, place and image, so that what a killed server had stored can be
found again: "20261121/<task id>/<index>-<image id>.png".
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from danqing.domain.card import Card, ImageFormat
from danqing.domain.errors import Unavailable
from danqing.domain.sizes import Size
from danqing.domain.task import DeliveredImage, Delivery, Drawn, Pixels
from danqing.service.finishing import Finisher, LabelPlan
from danqing.service.links import LinkSigner
from danqing.storage import codecs
from danqing.storage.blobs import BlobExists, Blobs


@dataclass(frozen=True, slots=True)
class Life:
    """How long an image is kept, and a link to it good at most. Seconds."""

    image_s: int
    link_s: int

    @classmethod
    def of(cls, card: Card, account_days: int | None, days_max: float | None) -> Life:
        """The account's own time goes before the model's; `days_max` bounds both."""
        image_s = card.image_ttl_s or card.link_ttl_s
        if account_days is not None:
            image_s = account_days * DAY_S
        if days_max is not None:
            image_s = min(image_s, round(days_max * DAY_S))
        return cls(image_s, min(card.link_ttl_s, image_s))


@dataclass(frozen=True, slots=True)
class StoredImage:
    """One image in the blob store, with what its row and its link need. Times are Unix seconds."""

    image_id: str
    blob_key: str
    format: ImageFormat
    size: Size
    seed: int
    bytes_count: int
    sha256: str
    plan: LabelPlan
    created_ms: int
    life: Life

    @property
    def expires_ms(self) -> int:
        return self.created_ms + self.life.image_s * 1000


DAY_S = 86_400
_NAME = re.compile(r"([0-9]+)-([0-9a-f]{11})\.([a-z]+)")


def task_folder(task_id: str) -> str:
    """Where a task's blobs are; its day is in its id (UUIDv7)."""
    return f"{day_folder(task_ms(task_id))}/{task_id}"


def task_ms(task_id: str) -> int:
    """When a task's id was made, Unix milliseconds (RFC 9562 section 5.7)."""
    return int(task_id.replace("-", "")[:12], 16)


def day_folder(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y%m%d")


def new_image_id() -> str:
    """44 random bits as 11 hex digits: what the pixel mark can carry, and what the link shows."""
    return f"{secrets.randbits(44):011x}"


class Deliverer:
    """Finishes and stores drawn images and makes their links."""

    def __init__(
        self,
        blobs: Blobs,
        signer: LinkSigner,
        finisher: Finisher,
        is_taken: Callable[[str], Awaitable[bool]],
    ) -> None:
        """`is_taken` says whether an image has this id already."""
        self._blobs = blobs
        self._finisher = finisher
        self._is_taken = is_taken
        self._signer = signer
        # More encoders than cores would only hold more pixels at once.
        self._cores = asyncio.Semaphore(len(os.sched_getaffinity(0)))

    async def store(
        self,
        drawn: Drawn,
        *,
        task_id: str,
        life: Life,
        delivery: Delivery,
        plan: LabelPlan,
        prompt: str,
    ) -> tuple[StoredImage, bytes, dict[str, float]]:
        """Label, encode and store one image; also returns its bytes and stage times in ms.

        Raises Unavailable when the blob store does not take it.
        """
        for _ in range(8):  # an id is 44 bits: a clash is rare
            image_id = new_image_id()
            if await self._is_taken(image_id):
                continue
            started = time.perf_counter()
            async with self._cores:
                data = await asyncio.to_thread(
                    self._finisher.finish,
                    drawn.pixels,
                    image_id=image_id,
                    format=delivery.format,
                    compression=delivery.compression,
                    plan=replace(plan, brand=plan.brand and not drawn.branded),
                    prompt=prompt,
                )
            labelled = time.perf_counter()
            key = f"{task_folder(task_id)}/{drawn.index}-{image_id}.{delivery.format}"
            try:
                await self._blobs.put(key, data)
            except BlobExists:
                continue
            timing_ms = {
                "label": (labelled - started) * 1000,
                "store": (time.perf_counter() - labelled) * 1000,
            }
            height, width = drawn.pixels.shape[:2]
            image = StoredImage(
                image_id=image_id,
                blob_key=key,
                format=delivery.format,
                size=Size(width, height),
                seed=drawn.seed,
                bytes_count=len(data),
                sha256=hashlib.sha256(data).hexdigest(),
                plan=plan,
                created_ms=int(time.time() * 1000),
                life=life,
            )
            return image, data, timing_ms
        raise Unavailable("No free image id was found.")

    async def preview(
        self, pixels: Pixels, *, produce_id: str, delivery: Delivery, plan: LabelPlan, prompt: str
    ) -> tuple[Size, str]:
        """A look at an unfinished image, labelled as the image will be: its size and its bytes in base64.

        It is never stored, so it has no image's id: `produce_id` (its task's) is what its hidden label says, and it
        carries no pixel mark.
        """
        async with self._cores:
            data = await asyncio.to_thread(
                self._finisher.finish,
                pixels,
                image_id=produce_id,
                format=delivery.format,
                compression=delivery.compression,
                plan=replace(plan, pixel=False),
                prompt=prompt,
            )
        height, width = pixels.shape[:2]
        return Size(width, height), base64.b64encode(data).decode("ascii")

    async def discard(self, blob_key: str) -> None:
        """Take back an image whose task did not end well, or that is kept no longer."""
        await self._blobs.delete(blob_key)

    async def found(
        self, task_id: str, *, seeds: Sequence[int], life: Life, plan: LabelPlan
    ) -> dict[int, StoredImage]:
        """What a server stored whole for a task before it was killed, by index; the first where there are two."""
        images: dict[int, StoredImage] = {}
        for key in await self._blobs.list(task_folder(task_id)):
            match = _NAME.fullmatch(key.rpartition("/")[2])
            if match is None or int(match[1]) in images or int(match[1]) >= len(seeds):
                continue
            data = await self._blobs.get(key)
            try:
                format, width, height = await asyncio.to_thread(codecs.measure, data)
            except ValueError:
                continue
            images[int(match[1])] = StoredImage(
                image_id=match[2],
                blob_key=key,
                format=format,
                size=Size(width, height),
                seed=seeds[int(match[1])],
                bytes_count=len(data),
                sha256=hashlib.sha256(data).hexdigest(),
                plan=plan,
                created_ms=int(time.time() * 1000),
                life=life,
            )
        return images

    async def keys(self, task_id: str) -> list[str]:
        """Every blob of a task."""
        return await self._blobs.list(task_folder(task_id))

    def present(
        self, image: StoredImage, data: bytes, delivery: Delivery, base_url: str
    ) -> DeliveredImage:
        """What the answer says of a stored image: its link, or its bytes in base64."""
        inline = delivery.form == "b64_json"
        expires_s = image.created_ms // 1000 + image.life.link_s
        link = self._signer.sign(image.image_id, image.format, expires_s)
        return DeliveredImage(
            image_id=image.image_id,
            size=image.size,
            seed=image.seed,
            format=image.format,
            url=None if inline else base_url + link,
            b64=base64.b64encode(data).decode("ascii") if inline else None,
            blob_key=image.blob_key if inline else None,
        )
