"""A task's input pictures: fetched, checked, kept as blobs while their task is open. Knows no HTTP, no dialect, no money.

Their blobs lie in their task's folder, "20261121/<task id>/input-0.png" and ".../input-mask.png". They are
deleted when the task ends: only a drawing needs them. What a crash leaves there the orphans' sweep deletes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, TypeVar

from danqing.domain.errors import DanqingError, EngineFailed, InvalidImage, NotFound
from danqing.domain.sizes import Size
from danqing.domain.task import ImageSource, ImageTask, InputImage
from danqing.net.errors import OutboundError, OutboundRefused, OutboundTooLarge
from danqing.net.outbound import Outbound
from danqing.net.policy import Policy
from danqing.net.turns import Turns
from danqing.observability.logging import get_logger
from danqing.service.budget import ByteBudget, Share
from danqing.service.delivery import task_folder
from danqing.settings import UploadSettings
from danqing.storage import codecs, inputs
from danqing.storage.blobs import Blobs

log = get_logger(__name__)
T = TypeVar("T")

DECODERS = 2
"""Pictures decoded at once: each may need hundreds of megabytes for a moment."""
FETCHES = 64
"""Pictures fetched at once, by all requests,"""
ACCOUNT_FETCHES = 8
"""by all of one account: whose addresses are slow must not hold up everybody,"""
REQUEST_FETCHES = 4
"""and by one."""
WAITING_MAX = 256
"""Pictures that wait for being fetched, or decoded, at most."""
REDIRECTS_MAX = 3
_PREFIX = "input-"

_Read = Callable[..., InputImage]

Own = Callable[[str], Awaitable[bytes | None]]
"""The picture behind a link of ours; None for any other URL."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """The checked pictures of one task, and the memory they are counted with until `release`."""

    references: tuple[InputImage, ...]
    mask: InputImage | None
    share: Share

    @property
    def pictures(self) -> tuple[InputImage, ...]:
        return self.references if self.mask is None else (*self.references, self.mask)

    @property
    def pixels(self) -> int:
        return sum(picture.size.pixels for picture in self.pictures)


def is_input(blob_key: str) -> bool:
    """Whether a blob is a client's picture, not an image of ours."""
    return blob_key.rpartition("/")[2].startswith(_PREFIX)


class References:
    """Brings in the pictures that an edit starts from."""

    def __init__(
        self,
        *,
        blobs: Blobs,
        outbound: Outbound,
        own: Own,
        budget: ByteBudget,
        settings: UploadSettings,
    ) -> None:
        """Raises ValueError for an entry of `settings.fetch_allow_hosts` that is no host."""
        self._blobs = blobs
        self._outbound = outbound
        self._own = own
        self._budget = budget
        self._settings = settings
        self._policy = Policy.public(settings.fetch_allow_hosts)
        self._fetches = Turns(FETCHES, WAITING_MAX, account_max=ACCOUNT_FETCHES)
        self._decodes = Turns(DECODERS, WAITING_MAX)
        # Threads of their own: a hang-up cancels the waiting, not a thread, so their number is what bounds them.
        self._decoders = ThreadPoolExecutor(DECODERS, thread_name_prefix="danqing-inputs")

    async def check(self, task: ImageTask, account_id: str, request_id: str = "") -> Inputs:
        """Fetch and check all of a task's pictures. Raises InvalidImage naming the field, and Busy.

        The mask must have the first reference's size. Accounts take turns at fetching and at decoding.
        """
        sources = [*task.references, *([] if task.mask is None else [task.mask])]
        share = self._budget.share(account_id, request_id)
        try:
            own = asyncio.Semaphore(REQUEST_FETCHES)
            raw = await _all(self._bytes_of(one, share, account_id, own) for one in sources)
            if sum(map(len, raw)) > self._settings.request_bytes_max:
                raise InvalidImage(
                    f"The images have more than {self._settings.request_bytes_max} bytes in all.",
                    sources[0].param,
                )
            # One after the other: a request with many waits its turn behind each of the others'.
            pictures = [
                await self._read(source, data, self._reader(source, task), account_id)
                for source, data in zip(sources, raw, strict=True)
            ]
            count = len(task.references)
            mask = pictures[count] if task.mask is not None else None
            if task.mask_from_alpha and mask is None:
                mask = await self._alpha_of(sources[0], raw[0], account_id)
                pictures += [] if mask is None else [mask]
            share.release()
            share.add(sum(len(picture.data) for picture in pictures), whole=True)
            if mask is not None and task.mask is not None and mask.size != pictures[0].size:
                raise InvalidImage(
                    f"'{task.mask.param}' is {mask.size} pixels, the image {pictures[0].size}: they must be alike.",
                    task.mask.param,
                )
            return Inputs(tuple(pictures[:count]), mask, share)
        except BaseException:
            share.release()
            raise

    async def store(self, task_id: str, task: ImageTask, checked: Inputs) -> ImageTask:
        """Write the pictures as the task's blobs; the task that names them. Raises Unavailable."""
        folder = task_folder(task_id)

        async def kept(source: ImageSource, name: str, picture: InputImage) -> ImageSource:
            key = f"{folder}/{_PREFIX}{name}.{picture.format}"
            await self._blobs.put(key, picture.data)
            return ImageSource(source.param, blob_key=key)

        references = [
            await kept(source, str(index), picture)
            for index, (source, picture) in enumerate(
                zip(task.references, checked.references, strict=True)
            )
        ]
        mask = None
        if checked.mask is not None:
            mask = await kept(task.mask or task.references[0], "mask", checked.mask)
        return replace(task, references=tuple(references), mask=mask, mask_from_alpha=False)

    async def load(self, task: ImageTask, account_id: str, task_id: str) -> Inputs:
        """The pictures of a stored task again. Raises Busy, Unavailable; EngineFailed where one is gone."""
        share = self._budget.share(account_id, task_id)
        try:
            references = [await self._loaded(source, share) for source in task.references]
            mask = None if task.mask is None else await self._loaded(task.mask, share)
            return Inputs(tuple(references), mask, share)
        except BaseException:
            share.release()
            raise

    async def discard(self, task: ImageTask) -> None:
        """Delete a task's stored pictures; what cannot be is logged, and left to the sweep."""
        for source in (*task.references, *([] if task.mask is None else [task.mask])):
            if source.blob_key is None:
                continue
            try:
                await self._blobs.delete(source.blob_key)
            except DanqingError as error:
                log.error("blob_left_behind", key=source.blob_key, code=error.code)

    def close(self) -> None:
        """End the threads; what is being decoded is let go."""
        self._decoders.shutdown(wait=False, cancel_futures=True)

    async def _bytes_of(
        self, source: ImageSource, share: Share, account_id: str, own: asyncio.Semaphore
    ) -> bytes:
        data = source.data
        if data is None:
            assert source.url is not None
            data = await self._own(source.url)
        if data is None:
            wait_s_max = self._settings.fetch_s_max
            async with own, self._fetches.take(account_id, wait_s_max=wait_s_max):
                return await self._fetched(source, share)
        if len(data) > self._settings.image_bytes_max:
            raise self._too_large(source)
        share.add(len(data), whole=True)
        return data

    async def _fetched(self, source: ImageSource, share: Share) -> bytes:
        """The picture at an address; its bytes are counted as they come."""
        assert source.url is not None
        try:
            async with asyncio.timeout(self._settings.fetch_s_max):
                reply = await self._outbound.request(
                    "GET",
                    source.url,
                    policy=self._policy,
                    headers={"accept": "image/*"},
                    timeout_s=self._settings.fetch_s_max,
                    bytes_max=self._settings.image_bytes_max,
                    redirects_max=REDIRECTS_MAX,
                    on_body=share.add,
                )
        except OutboundTooLarge:
            raise self._too_large(source) from None
        except OutboundRefused as error:
            why = f"cannot be fetched: {error.message} The operator's `uploads.fetch_allow_hosts` names exceptions."
            raise _faulty(source, why, "fetch") from None
        except OutboundError as error:
            raise _faulty(source, f"cannot be fetched: {error.message}", "fetch") from None
        except TimeoutError:
            raise _faulty(source, "cannot be fetched: it takes too long.", "fetch") from None
        if reply.status != 200:
            why = f"cannot be fetched: its host answers {reply.status}."
            raise _faulty(source, why, "fetch")
        return reply.content

    @staticmethod
    def _reader(source: ImageSource, task: ImageTask) -> _Read:
        """How this one of a task's pictures is read: a mask repaints the first."""
        if source is task.mask:
            return inputs.read_mask
        is_repainted = source is task.references[0] and (task.mask or task.mask_from_alpha)
        return inputs.read_repainted if is_repainted else inputs.read_reference

    async def _read(
        self, source: ImageSource, data: bytes, read: _Read, account_id: str
    ) -> InputImage:
        work = partial(read, data, pixels_max=self._settings.pixels_max)
        try:
            async with self._decodes.take(account_id):
                return await asyncio.get_running_loop().run_in_executor(self._decoders, work)
        except ValueError as error:
            fault = "format" if isinstance(error, inputs.NoPicture) else None
            raise _faulty(source, f"{error}.", fault) from None

    async def _alpha_of(
        self, source: ImageSource, data: bytes, account_id: str
    ) -> InputImage | None:
        """The mask that a picture has in itself; None where it is opaque."""
        try:
            return await self._read(source, data, inputs.read_mask, account_id)
        except InvalidImage:  # it was read as a picture: what it lacks is a hole
            return None

    async def _loaded(self, source: ImageSource, share: Share) -> InputImage:
        assert source.blob_key is not None
        try:
            data = await self._blobs.get(source.blob_key)
        except NotFound:
            raise EngineFailed("The task's input images are gone.") from None
        share.add(len(data), whole=True)
        format, width, height = await asyncio.to_thread(codecs.measure, data)
        return InputImage(data, format, Size(width, height))

    def _too_large(self, source: ImageSource) -> InvalidImage:
        return _faulty(source, f"has more than {self._settings.image_bytes_max} bytes.")


def _faulty(
    source: ImageSource, what: str, fault: Literal["fetch", "format"] | None = None
) -> InvalidImage:
    return InvalidImage(f"'{source.param}' {what}", source.param, fault)


async def _all(works: Iterable[Awaitable[T]]) -> list[T]:
    """The results in order. The first error, in order, once the rest has ended: nothing goes on behind it."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    for one in ended:
        if isinstance(one, BaseException) and not isinstance(one, asyncio.CancelledError):
            raise one
    return [task.result() for task in tasks]
