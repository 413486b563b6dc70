"""From pixels to what the client gets: label, encode, store, link. Knows no engine, no ledger, no HTTP."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import secrets
import time
from dataclasses import dataclass

from danqing.domain.card import Card, ImageFormat
from danqing.domain.errors import Unavailable
from danqing.domain.sizes import Size
from danqing.domain.task import DeliveredImage, Delivery, Drawn, Pixels
from danqing.service import labels
from danqing.service.links import LinkSigner
from danqing.settings import LabelSettings
from danqing.storage import codecs
from danqing.storage.blobs import BlobExists, Blobs


@dataclass(frozen=True, slots=True)
class LabelPlan:
    """Which labels one image gets. Decided before drawing, so that it can be checked and recorded."""

    visible: bool
    metadata: bool
    producer: str

    @classmethod
    def of(cls, card: Card, wanted: bool, waived: bool, settings: LabelSettings) -> LabelPlan:
        """`wanted` False drops the visible label; the caller has checked the waiver (`waived`)."""
        visible = card.label.visible or settings.policy == "cn"
        metadata = card.label.metadata
        if not wanted and waived:
            visible = False
            metadata = metadata and not settings.waiver_drops_metadata
        return cls(visible, metadata, settings.producer)


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
    expires_s: int


def new_image_id() -> str:
    """44 random bits as 11 hex digits: what the pixel mark can carry, and what the link shows."""
    return f"{secrets.randbits(44):011x}"


def finish(
    pixels: Pixels,
    *,
    image_id: str,
    format: ImageFormat,
    compression: int | None,
    plan: LabelPlan,
    prompt: str,
) -> bytes:
    """Label and encode one image (H x W x 3, uint8). CPU-bound: call it from a worker thread."""
    if plan.visible:
        pixels = labels.draw_visible(pixels, labels.wording(prompt))
    xmp = labels.xmp(producer=plan.producer, produce_id=image_id) if plan.metadata else None
    return codecs.encode(pixels, format, xmp=xmp, compression=compression)


class Deliverer:
    """Finishes and stores drawn images and makes their links."""

    def __init__(self, blobs: Blobs, signer: LinkSigner) -> None:
        self._blobs = blobs
        self._signer = signer
        # More encoders than cores would only hold more pixels at once.
        self._cores = asyncio.Semaphore(len(os.sched_getaffinity(0)))

    async def store(
        self, drawn: Drawn, *, card: Card, delivery: Delivery, plan: LabelPlan, prompt: str
    ) -> tuple[StoredImage, bytes, dict[str, float]]:
        """Label, encode and store one image; also returns its bytes and stage times in ms.

        Raises Unavailable when the blob store does not take it.
        """
        for _ in range(8):  # an id is 44 bits: a clash is rare, and the store refuses to overwrite
            image_id = new_image_id()
            started = time.perf_counter()
            async with self._cores:
                data = await asyncio.to_thread(
                    finish,
                    drawn.pixels,
                    image_id=image_id,
                    format=delivery.format,
                    compression=delivery.compression,
                    plan=plan,
                    prompt=prompt,
                )
            labelled = time.perf_counter()
            key = f"{image_id[:2]}/{image_id}.{delivery.format}"
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
                expires_s=int(time.time()) + card.link_ttl_s,
            )
            return image, data, timing_ms
        raise Unavailable("No free image id was found.")

    async def discard(self, image: StoredImage) -> None:
        """Take back an image whose task did not end well."""
        await self._blobs.delete(image.blob_key)

    def link(self, image_id: str, format: ImageFormat, expires_s: int, base_url: str) -> str:
        """The signed address of an image, for as long as it lives."""
        return base_url + self._signer.sign(image_id, format, expires_s)

    def present(
        self, image: StoredImage, data: bytes, delivery: Delivery, base_url: str
    ) -> DeliveredImage:
        """What the answer says of a stored image: its link, or its bytes in base64."""
        inline = delivery.form == "b64_json"
        return DeliveredImage(
            image_id=image.image_id,
            size=image.size,
            seed=image.seed,
            format=image.format,
            url=None
            if inline
            else self.link(image.image_id, image.format, image.expires_s, base_url),
            b64=base64.b64encode(data).decode("ascii") if inline else None,
        )
