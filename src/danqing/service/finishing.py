"""From pixels to a labelled file: brand mark, visible label, pixel mark, encoder, the hidden label with its seal. Knows no store, no task."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from danqing.domain.card import Card, ImageFormat
from danqing.domain.task import ImageTask, Pixels
from danqing.service import hidden_label, labels
from danqing.service.brand import BrandMark
from danqing.service.hidden_label import Sealer
from danqing.service.keys import KeyFile
from danqing.service.pixel_mark import PixelMarker
from danqing.settings import LabelSettings
from danqing.storage import codecs, containers

PROVIDERS_CORNER = "bottom-right"
"""Where DashScope draws its own mark (Model Studio's qwen-image page, `watermark`)."""


@dataclass(frozen=True, slots=True)
class LabelPlan:
    """Which labels and marks one image gets. Decided before drawing, so that it can be checked and recorded."""

    visible: bool
    metadata: bool
    producer: str
    pixel: bool = False
    brand: bool = False
    """The brand mark too, unless a provider has put its own on."""

    @classmethod
    def of(cls, card: Card, task: ImageTask, waived: bool, settings: LabelSettings) -> LabelPlan:
        """The task's `ai_label` False drops the visible label and the pixel mark; the caller has checked the waiver (`waived`)."""
        visible = (card.label.visible and not card.comes_labelled) or settings.policy == "cn"
        metadata = card.label.metadata
        pixel = settings.pixel_mark
        if not task.ai_label and waived:
            visible = pixel = False
            metadata = metadata and not settings.waiver_drops_metadata
        return cls(visible, metadata, settings.producer, pixel, task.brand_mark)

    def covers_others(self, card: Card, settings: LabelSettings) -> bool:
        """Our visible label would stand where providers put their brand marks: ours is to be drawn instead."""
        return self.visible and settings.corner == PROVIDERS_CORNER and not card.may_pass_links


@dataclass(frozen=True, slots=True)
class Secrets:
    """What marks and seals are made with. Derived of the key file's root: labels outlive every rotation."""

    marker: PixelMarker
    sealer: Sealer

    @classmethod
    def of(cls, keys: KeyFile) -> Secrets:
        return cls(PixelMarker(keys.derive("pixel mark")), Sealer(keys.derive("label seal")))


class Finisher:
    """Labels and encodes images."""

    def __init__(
        self, settings: LabelSettings, secrets: Secrets | None, brand: BrandMark | None = None
    ) -> None:
        """Without `secrets` (a drawing without a server) there are no pixel marks and no seals."""
        self._settings = settings
        self._place = labels.Place(settings.corner, settings.margin_share)
        self._secrets = secrets
        self._brand = brand

    def finish(
        self,
        pixels: Pixels,
        *,
        image_id: str,
        format: ImageFormat,
        compression: int | None,
        plan: LabelPlan,
        prompt: str,
    ) -> bytes:
        """Label and encode one image (H x W x 3 or 4, uint8). CPU-bound: call it from a worker thread.

        The mark goes on last, over the visible label, so that it carries what is seen.
        """
        text = labels.wording(prompt, self._settings) if plan.visible else None
        if plan.brand and self._brand is not None:
            height, width = pixels.shape[:2]
            label = None if text is None else labels.area(text, width, height, self._place)
            pixels = self._brand.draw(pixels, label)
        if text is not None:
            pixels = labels.draw_visible(pixels, text, self._place)
        if plan.pixel and self._secrets is not None:
            colours = np.ascontiguousarray(pixels[..., :3])
            if pixels.shape[2] == 4 and format == "webp":
                colours = _unseen_plain(colours, pixels[..., 3])
            colours = self._secrets.marker.mark(colours, image_id)
            pixels = _with_colours(pixels, colours)
        data = codecs.encode(pixels, format, compression=compression)
        if not plan.metadata:
            return data
        fields = hidden_label.label_fields(producer=plan.producer, produce_id=image_id)
        if self._secrets is not None:
            method, digest = containers.digest(data, pixels if format == "png" else None)
            fields["ReservedCode1"] = self._secrets.sealer.seal(fields, method, digest)
        return containers.with_xmp(data, hidden_label.xmp(fields))


def _with_colours(pixels: Pixels, colours: Pixels) -> Pixels:
    return colours if pixels.shape[2] == 3 else np.dstack((colours, pixels[..., 3]))


def _unseen_plain(colours: Pixels, opacity: npt.NDArray[np.uint8]) -> Pixels:
    """The colours, one and the same where nothing is seen of them: a lossy file then keeps the mark there for a few bytes."""
    seen = opacity > 0
    if seen.all() or not seen.any():
        return colours
    plain = np.rint(colours[seen].mean(axis=0)).astype(np.uint8)
    return np.where(seen[..., None], colours, plain)
