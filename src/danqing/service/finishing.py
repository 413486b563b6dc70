"""From pixels to a labelled file: the visible label, the pixel mark, the encoder, the hidden label with its seal. Knows no store, no task."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from danqing.domain.card import Card, ImageFormat
from danqing.domain.task import Pixels
from danqing.service import hidden_label, labels
from danqing.service.hidden_label import Sealer
from danqing.service.keys import KeyFile
from danqing.service.pixel_mark import PixelMarker
from danqing.settings import LabelSettings
from danqing.storage import codecs, containers


@dataclass(frozen=True, slots=True)
class LabelPlan:
    """Which labels one image gets. Decided before drawing, so that it can be checked and recorded."""

    visible: bool
    metadata: bool
    producer: str
    pixel: bool = False

    @classmethod
    def of(cls, card: Card, wanted: bool, waived: bool, settings: LabelSettings) -> LabelPlan:
        """`wanted` False drops the visible label and the pixel mark; the caller has checked the waiver (`waived`)."""
        visible = (card.label.visible and not card.comes_labelled) or settings.policy == "cn"
        metadata = card.label.metadata
        pixel = settings.pixel_mark
        if not wanted and waived:
            visible = pixel = False
            metadata = metadata and not settings.waiver_drops_metadata
        return cls(visible, metadata, settings.producer, pixel)


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

    def __init__(self, settings: LabelSettings, secrets: Secrets | None) -> None:
        """Without `secrets` (a drawing without a server) there are no pixel marks and no seals."""
        self._settings = settings
        self._secrets = secrets

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
        if plan.visible:
            pixels = self._with_visible(pixels, prompt)
        if plan.pixel and self._secrets is not None:
            colours = self._secrets.marker.mark(np.ascontiguousarray(pixels[..., :3]), image_id)
            pixels = _with_colours(pixels, colours)
        data = codecs.encode(pixels, format, compression=compression)
        if not plan.metadata:
            return data
        fields = hidden_label.label_fields(producer=plan.producer, produce_id=image_id)
        if self._secrets is not None:
            method, digest = containers.digest(data, pixels if format == "png" else None)
            fields["ReservedCode1"] = self._secrets.sealer.seal(fields, method, digest)
        return containers.with_xmp(data, hidden_label.xmp(fields))

    def _with_visible(self, pixels: Pixels, prompt: str) -> Pixels:
        text = labels.wording(prompt, self._settings)
        colours = np.ascontiguousarray(pixels[..., :3])
        place = labels.Place(self._settings.corner, self._settings.margin_share)
        marked = labels.draw_visible(colours, text, place)
        if pixels.shape[2] == 4:
            # What was transparent shows the label too.
            opacity = np.where((marked != colours).any(axis=2), 255, pixels[..., 3])
            return np.dstack((marked, opacity.astype(np.uint8)))
        return marked


def _with_colours(pixels: Pixels, colours: Pixels) -> Pixels:
    return colours if pixels.shape[2] == 3 else np.dstack((colours, pixels[..., 3]))
