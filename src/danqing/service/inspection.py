"""Which AI labels an image file carries, whether they are ours, which image it is and whether its pixels changed. Believes no file."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from danqing.domain.sizes import Size
from danqing.net.turns import Turns
from danqing.service import hidden_label, labels
from danqing.service.finishing import Secrets
from danqing.service.pixel_crop import CutReader
from danqing.settings import LabelSettings
from danqing.storage import containers, inputs, metadata

AT_ONCE = 2
"""Pictures inspected at once by a server: the largest (7056x7072) takes up to 0.9 GB and some five seconds of a core."""
WAITING_MAX = 32
"""Pictures that wait for that at most."""

_IMAGE_ID = re.compile(r"[0-9a-f]{11}")


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was found, as it is shown."""

    image_id: str | None
    """What its pixel mark says, else what its hidden label claims where that is an id of our form."""
    visible: bool
    """The visible label stands where this service puts it."""
    metadata: dict[str, str] | None
    """The hidden label's fields, whoever wrote them."""
    pixel_mark: str | None
    """The id in its pixels. None also where there are no keys to look with."""
    pixels_unchanged: bool | None
    """Since this service sealed its label; None where there is no such label."""
    ours: bool | None
    """Its pixel mark or its hidden label was made under our keys; None where there are no keys."""


class Inspector:
    """Reads labels."""

    def __init__(
        self, settings: LabelSettings, secrets: Secrets | None, sizes: Iterable[Size] = ()
    ) -> None:
        """`sizes`: what pictures have when they are drawn, so that one that was cut can be told by them."""
        self._texts = (settings.text_chinese, settings.text_english)
        self._margin_share = settings.margin_share
        self._secrets = secrets
        self._cut = None if secrets is None else CutReader(secrets.marker, sizes)

    def inspect(self, data: bytes, *, pixels_max: int) -> Inspection:
        """CPU-bound: call it from a worker thread. Raises ValueError, in words for who sent it, where the file is no whole image."""
        found = metadata.read(data, pixels_max=pixels_max)
        fields = None if found.xmp is None else hidden_label.read_xmp(found.xmp)
        if fields is None and found.aigc is not None:
            fields = hidden_label.read_value(found.aigc)
        pixels = inputs.read_any(data, pixels_max=pixels_max)
        mark = None if self._secrets is None else self._secrets.marker.find(pixels)
        if mark is None and self._cut is not None:
            mark = self._cut.find(pixels)
        sealed = hidden_label.Sealed(False, None)
        if self._secrets is not None and fields is not None:
            sealed = self._secrets.sealer.check(fields, *containers.digest(data))
        claimed = (fields or {}).get("ProduceID", "")
        if mark is not None:
            image_id = mark.image_id
        else:
            image_id = claimed if _IMAGE_ID.fullmatch(claimed) else None
        return Inspection(
            image_id=image_id,
            visible=any(labels.shows(pixels, text, self._margin_share) for text in self._texts),
            metadata=fields,
            pixel_mark=None if mark is None else mark.image_id,
            pixels_unchanged=sealed.unchanged,
            ours=None if self._secrets is None else sealed.ours or mark is not None,
        )


class Inspections:
    """A server's inspections: few at a time, and accounts take turns. One event loop's."""

    def __init__(self, inspector: Inspector) -> None:
        self._inspector = inspector
        self._turns = Turns(AT_ONCE, WAITING_MAX)
        # Threads of their own: a hang-up cancels the waiting, not a thread, so their number is what bounds them.
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="danqing-inspect")

    async def inspect(self, data: bytes, account_id: str, *, pixels_max: int) -> Inspection:
        """Raises ValueError as Inspector.inspect, and Busy where the line is full."""
        async with self._turns.take(account_id):
            work = partial(self._inspector.inspect, data, pixels_max=pixels_max)
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
