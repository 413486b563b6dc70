"""Getting a provider's images: fetching their links at once, and decoding what a stranger sent. Knows no dialect."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from contextlib import suppress
from weakref import finalize

from danqing.dialects.client import ProviderImage
from danqing.domain.errors import ProviderFailed
from danqing.domain.sizes import Size
from danqing.domain.task import Pixels
from danqing.engine.pixels import fit
from danqing.net.errors import OutboundError, OutboundRefused, OutboundTooLarge
from danqing.net.outbound import Outbound
from danqing.net.policy import Policy
from danqing.providers.answers import Held
from danqing.storage import inputs

IMAGE_BYTES_MAX = 32 * 2**20
PIXELS_MAX = 2**26
"""Of any image."""
PIXELS_TIMES_MAX = 4
"""A provider that draws at sizes of its own may send so many times the pixels that it was asked for,"""
PIXELS_ALWAYS = 2**24
"""and as many as the largest tier of any of them has (4096x4096), whatever it was asked for."""
PIXEL_BYTES_MAX = 256 * 2**20
"""Of decoded images that nobody has taken yet, of one provider."""
DECODERS = 2
"""Images decoded at once, of one provider: each may need hundreds of megabytes for a moment."""
REDIRECTS_MAX = 3
LOOK_SIDE_MAX = 512
"""As of looks that are drawn here."""
LOOK_PIXELS_MAX = 2**22
"""Of a look as it comes, where the image is to be smaller than that."""
_FIRST_WAIT_S = 0.1
_WAIT_S_MAX = 4.0
_TRY_S_MAX = 30.0


def pixels_allowed(size: Size) -> int:
    """How many pixels an image may have that was asked for at `size`; it is looked at before anything is decoded."""
    return min(max(PIXELS_TIMES_MAX * size.pixels, PIXELS_ALWAYS), PIXELS_MAX)


class PixelBudget:
    """Counts decoded images until whoever takes them lets go; beyond `bytes_max` the next ones wait."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._held = 0
        self._changed = asyncio.Event()

    async def wait(self) -> None:
        """Until there is room. One that is larger than all of it passes when it is alone."""
        while self._held >= self._bytes_max:
            self._changed.clear()
            await self._changed.wait()

    def count(self, pixels: Pixels) -> None:
        """Of the loop's thread; the last reference may be dropped in any."""
        loop = asyncio.get_running_loop()
        self._held += pixels.nbytes
        finalize(pixels, _release, self, loop, pixels.nbytes)

    def let_go(self, count: int) -> None:
        self._held -= count
        self._changed.set()


def _release(budget: PixelBudget, loop: asyncio.AbstractEventLoop, count: int) -> None:
    with suppress(RuntimeError):  # the loop may be closed: then nobody waits
        loop.call_soon_threadsafe(budget.let_go, count)


class Fetcher:
    """Fetches results' links: public hosts, and those that the operator named."""

    def __init__(self, outbound: Outbound, hosts: Iterable[str], timeout_s: float) -> None:
        """Raises ValueError for an entry of `hosts` that is no host."""
        self._outbound = outbound
        self._policy = Policy.public(hosts)
        self._timeout_s = timeout_s
        self._budget = PixelBudget(PIXEL_BYTES_MAX)
        self._turns = asyncio.Semaphore(DECODERS)

    async def fetch(self, url: str, held: Held) -> bytes:
        """The bytes behind a link, asked for again and again: fresh links can be 404 for seconds.

        They are held as they come.

        Raises ProviderFailed, at the latest after the time allowed.
        """
        end = time.monotonic() + self._timeout_s
        wait_s = _FIRST_WAIT_S
        came = 0

        async def on_body(count: int) -> None:
            nonlocal came
            await held.came(count)
            came += count

        while True:
            left_s = end - time.monotonic()
            try:
                reply = await self._outbound.request(
                    "GET",
                    url,
                    policy=self._policy,
                    headers={"accept": "image/*"},
                    timeout_s=max(0.1, min(left_s, _TRY_S_MAX)),
                    bytes_max=IMAGE_BYTES_MAX,
                    redirects_max=REDIRECTS_MAX,
                    on_body=on_body,
                )
                if reply.status == 200:
                    return reply.content
            except OutboundRefused as error:
                raise ProviderFailed("The provider's link leads where it may not.") from error
            except OutboundTooLarge as error:
                raise ProviderFailed("The provider's image is too large.") from error
            except OutboundError:
                pass
            held.drop(came)
            came = 0
            if time.monotonic() + wait_s >= end:
                raise ProviderFailed("The provider's link to the image does not work.")
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, _WAIT_S_MAX)

    async def pixels(
        self,
        image: ProviderImage,
        held: Held,
        *,
        transparent: bool = False,
        pixels_max: int,
    ) -> Pixels:
        """The pixels of a provider's image, which is held until then. Raises ProviderFailed for what is none.

        With `transparent` they have opacity: who was asked for no background and sends no alpha channel failed.
        """
        if image.data is None:
            assert image.url is not None
            data = await self.fetch(image.url, held)
        else:
            data = image.data
        try:
            async with self._turns:
                await self._budget.wait()
                pixels = await asyncio.to_thread(decoded, data, transparent, pixels_max)
                self._budget.count(pixels)
        finally:
            held.drop(len(data))
        return pixels

    async def look(
        self, image: ProviderImage, held: Held, *, transparent: bool, size: Size
    ) -> Pixels:
        """The pixels of a look at an unfinished image of `size`, none of its sides over LOOK_SIDE_MAX. Raises ProviderFailed."""
        most = min(max(LOOK_PIXELS_MAX, 2 * size.pixels), PIXELS_MAX)
        pixels = await self.pixels(image, held, transparent=transparent, pixels_max=most)
        height, width = pixels.shape[:2]
        scale = LOOK_SIDE_MAX / max(height, width)
        if scale >= 1:
            return pixels
        small = max(1, round(width * scale)), max(1, round(height * scale))
        return await asyncio.to_thread(fit, pixels, *small)


def decoded(data: bytes, transparent: bool, pixels_max: int) -> Pixels:
    """Decode a stranger's image; its size is capped before. CPU-bound. Raises ProviderFailed."""
    read = inputs.read_cut_out if transparent else inputs.read_pixels
    try:
        return read(data, pixels_max=pixels_max)
    except ValueError as error:
        if transparent and str(error) == inputs.OPAQUE:
            raise ProviderFailed(
                "The provider drew a background, and was asked for none."
            ) from None
        if isinstance(error, inputs.NoPicture):
            raise ProviderFailed("The provider sent something that is no image.") from error
        raise ProviderFailed(f"The provider's image {error}.") from error
