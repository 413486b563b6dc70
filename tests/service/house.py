"""What the pipeline's tests share: a whole service on a real ledger and blob store, with a scripted provider."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np

from danqing import catalog, settings
from danqing.app import make_service, open_books
from danqing.domain.card import Card
from danqing.domain.ids import uuid7
from danqing.domain.ports import DrawOrder
from danqing.domain.sizes import Size
from danqing.domain.task import Delivery, Drawn, Event, ImageTask, Started, Stepped
from danqing.net.outbound import Outbound
from danqing.observability.metrics import Metrics
from danqing.service.auth import Authenticator, Principal
from danqing.service.books import Books
from danqing.service.budget import ByteBudget
from danqing.service.calls import Call, ClientKey
from danqing.service.gallery import Gallery
from danqing.service.ledger import Ledger
from danqing.service.pipeline import Pipeline
from danqing.service.recovery import Recovery
from danqing.service.retention import Retention
from danqing.service.streaming import Feed
from danqing.storage.blobs import Blobs

Script = Callable[[DrawOrder], AsyncGenerator[Event, None]]


class Scripted:
    """A provider that plays a script."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.orders: list[DrawOrder] = []

    async def check(self, task: ImageTask, card: Card) -> None:
        pass

    def draw(self, order: DrawOrder) -> AsyncGenerator[Event, None]:
        self.orders.append(order)
        return self.script(order)


def image(order: DrawOrder, index: int) -> Drawn:
    size = order.task.size
    pixels = np.full((size.height, size.width, 3), 90, np.uint8)
    return Drawn(index, pixels, order.seeds[index], {"denoise": 1.0})


async def all_well(order: DrawOrder) -> AsyncGenerator[Event, None]:
    for index in range(order.task.n):
        yield Started(index)
        yield Stepped(index, 8, 8)
        yield image(order, index)


@dataclasses.dataclass
class House:
    pipeline: Pipeline
    recovery: Recovery
    retention: Retention
    gallery: Gallery
    provider: Scripted
    ledger: Ledger
    principal: Principal
    models: catalog.Catalog
    images: Path
    uploads: ByteBudget
    books: Books

    async def draw(
        self,
        model: str = "dall-e-3",
        dialect: str = "openai",
        hung_up: asyncio.Event | None = None,
        key: ClientKey | None = None,
        background: bool = False,
        feed: Feed | None = None,
        delivery: Delivery | None = None,
        **fields,
    ):
        card = self.models.find(model, dialect)
        values = {
            "model": card.name,
            "prompt": "a cat",
            "size": Size(256, 256),
            "quality": card.quality_default,
        }
        task = ImageTask(**(values | fields))
        call = Call(
            dialect,
            self.principal,
            card,
            task,
            delivery or Delivery(),
            "http://here",
            time.time(),
            key,
            background,
            hung_up or asyncio.Event(),
            feed,
            uuid7(),
        )
        return await self.pipeline.draw(call)

    async def balance(self) -> int:
        assert await self.ledger.check() == []
        assert (await self.ledger.open_holds()).count == 0
        return await self.ledger.balance(self.principal.account_id)

    async def another_account(self, name: str = "another") -> str:
        """The id of a new account with some characters."""
        await self.books.accounts.create(name, 100_000)
        return (await self.books.accounts.get(name)).id

    async def sweep_until_quiet(self) -> None:
        """What housekeeping does within a few leases."""
        while (await self.ledger.open_holds()).count:
            await self.recovery.sweep()
            await asyncio.sleep(0.05)
        await self.until_idle()

    async def until_idle(self) -> None:
        """Until nothing goes on: a task has ended in the ledger before what it leaves is cleared away."""
        await until(lambda: not self.pipeline._running)

    def blobs(self) -> list[Path]:
        return [path for path in self.images.rglob("*") if path.is_file()]


@asynccontextmanager
async def house(
    folder: Path,
    script: Script = all_well,
    account: str = "someone",
    outbound: Outbound | None = None,
    **options,
):
    # Money, not pixels, is what these tests are about; a mark takes a while on a busy machine.
    options.setdefault("labels", {"pixel_mark": False})
    configured = settings.load(data_dir=folder, **options)
    async with open_books(configured) as books:
        if account not in [one.name for one in await books.accounts.all()]:
            await books.accounts.create(account, 100_000)
        token = await books.tokens.create(account, by="test")
        models = catalog.load(configured)
        provider = Scripted(script)
        outbound = outbound or Outbound()
        blobs = Blobs(configured.blob_root)
        service = make_service(configured, models, Metrics(), books, blobs, provider, outbound)
        principal = await Authenticator(books.db, books.keys).authenticate(f"Bearer {token}", None)
        try:
            yield House(
                service.pipeline,
                service.recovery,
                service.retention,
                service.gallery,
                provider,
                books.ledger,
                principal,
                models,
                folder / "images",
                service.uploads,
                books,
            )
        finally:
            await service.pipeline.drain()
            service.references.close()
            blobs.close()
            await outbound.aclose()


async def until(happened: Callable[[], object]) -> None:
    """Wait for it, however busy the machine is."""
    async with asyncio.timeout(60):
        while not happened():
            await asyncio.sleep(0.005)


def run(work: Awaitable[None]) -> None:
    asyncio.run(work)  # type: ignore[arg-type]
