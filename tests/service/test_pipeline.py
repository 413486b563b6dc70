"""The pipeline's money: what is charged at each kind of end, with a real ledger and blob store and a scripted provider."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from danqing import catalog, settings
from danqing.app import make_moderator
from danqing.db.session import Database
from danqing.domain.errors import (
    Busy,
    ContentRefused,
    DanqingError,
    EngineFailed,
    QuotaExceeded,
    ServerFault,
    WaiverRequired,
)
from danqing.domain.ports import DrawOrder
from danqing.domain.sizes import Size
from danqing.domain.task import Delivery, Drawn, Event, Failed, ImageTask, Started, Stepped
from danqing.observability.metrics import Metrics
from danqing.service.accounts import Accounts
from danqing.service.auth import KeyFile, Principal
from danqing.service.delivery import Deliverer
from danqing.service.ledger import Ledger
from danqing.service.links import LinkSigner
from danqing.service.pipeline import Call, Pipeline
from danqing.storage.blobs import Blobs

Script = Callable[[DrawOrder], AsyncGenerator[Event, None]]


class Scripted:
    """A provider that plays a script."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.orders: list[DrawOrder] = []

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
    provider: Scripted
    ledger: Ledger
    principal: Principal
    models: catalog.Catalog
    images: Path

    async def draw(self, model: str = "dall-e-3", dialect: str = "openai", **fields):
        card = self.models.find(model, dialect)
        values = {
            "model": card.name,
            "prompt": "a cat",
            "size": Size(256, 256),
            "quality": card.quality_default,
        }
        task = ImageTask(**(values | fields))
        call = Call(
            dialect, self.principal, card, task, Delivery(), "r", "http://here", time.time()
        )
        return await self.pipeline.draw(call)

    async def balance(self) -> int:
        assert await self.ledger.check() == []
        assert (await self.ledger.open_holds()).count == 0
        return await self.ledger.balance(self.principal.account_id)

    def blobs(self) -> list[Path]:
        return [path for path in self.images.rglob("*") if path.is_file()]


@asynccontextmanager
async def house(folder: Path, script: Script = all_well, **options):
    configured = settings.load(data_dir=folder, **options)
    db = Database.open(configured.database_url_effective)
    keys = KeyFile.load_or_create(configured.key_file)
    ledger = Ledger(db)
    accounts = Accounts(db, ledger, keys)
    account = await accounts.create("someone", 100_000)
    token = await accounts.create_token("someone")
    models = catalog.load(configured)
    provider = Scripted(script)
    pipeline = Pipeline(
        settings=configured,
        catalog=models,
        ledger=ledger,
        provider=provider,
        moderator=make_moderator(configured),
        deliverer=Deliverer(Blobs(folder / "images"), LinkSigner(b"x" * 32)),
        metrics=Metrics(),
    )
    principal = Principal(
        account_id=account.id,
        account_name="someone",
        token_id=token.split(".")[0].removeprefix("sk-"),
        waiver=False,
    )
    try:
        yield House(pipeline, provider, ledger, principal, models, folder / "images")
    finally:
        await pipeline.drain()
        await db.close()


def run(work: Awaitable[None]) -> None:
    asyncio.run(work)  # type: ignore[arg-type]


def test_delivered_images_are_charged(tmp_path: Path) -> None:
    async def check() -> None:
        async with house(tmp_path) as h:
            outcome = await h.draw(n=3, seed=2**31 - 2)
            assert outcome.charged == 15_000
            assert outcome.seeds == (2**31 - 2, 2**31 - 1, 0)
            assert len(outcome.result.delivered) == 3
            assert await h.balance() == 85_000
            assert len(h.blobs()) == 3
            row = await h.ledger.task(outcome.task_id)
            assert (row.state, row.charged) == ("succeeded", 15_000)

    run(check())


def test_images_that_failed_are_not_charged(tmp_path: Path) -> None:
    async def script(order: DrawOrder) -> AsyncGenerator[Event, None]:
        yield image(order, 0)
        yield Failed(1, EngineFailed("NaN"))
        yield image(order, 2)

    async def check() -> None:
        async with house(tmp_path, script) as h:
            outcome = await h.draw(n=3)
            assert outcome.charged == 10_000
            assert [isinstance(i, DanqingError) for i in outcome.result.images] == [0, 1, 0]
            assert await h.balance() == 90_000

    run(check())


@pytest.mark.parametrize("model", ["dall-e-3", "draw"])
@pytest.mark.parametrize("error", [Busy(3), EngineFailed("lost"), RuntimeError("a bug")])
def test_our_own_failures_cost_nothing(tmp_path: Path, model: str, error: Exception) -> None:
    async def script(order: DrawOrder) -> AsyncGenerator[Event, None]:
        if False:
            yield
        raise error

    async def check() -> None:
        async with house(tmp_path, script) as h:
            with pytest.raises(Busy if isinstance(error, Busy) else ServerFault):
                await h.draw(model)
            assert await h.balance() == 100_000
            assert h.blobs() == []

    run(check())


def test_all_images_failing_costs_nothing(tmp_path: Path) -> None:
    async def script(order: DrawOrder) -> AsyncGenerator[Event, None]:
        yield Failed(0, EngineFailed("no"))
        yield Failed(1, EngineFailed("no"))

    async def check() -> None:
        async with house(tmp_path, script) as h:
            with pytest.raises(EngineFailed):
                await h.draw(n=2)
            assert await h.balance() == 100_000

    run(check())


def test_too_slow_costs_nothing(tmp_path: Path) -> None:
    async def script(order: DrawOrder) -> AsyncGenerator[Event, None]:
        yield Started(0)
        await asyncio.sleep(60)

    async def check() -> None:
        async with house(tmp_path, script, request_timeout_s=1) as h:
            with pytest.raises(EngineFailed, match="too long"):
                await h.draw()
            assert await h.balance() == 100_000

    run(check())


@pytest.mark.parametrize(
    ("model", "steps", "left"),
    [
        ("dall-e-3", 0, 100_000),
        ("dall-e-3", 1, 100_000 - 625),
        ("dall-e-3", 4, 97_500),
        ("draw", 0, 95_000),
        ("draw", 4, 95_000),
    ],
)
def test_hang_up(tmp_path: Path, model: str, steps: int, left: int) -> None:
    async def check() -> None:
        reached = asyncio.Event()

        async def script(order: DrawOrder) -> AsyncGenerator[Event, None]:
            for step in range(1, steps + 1):
                yield Stepped(0, step, 8)
            reached.set()
            await asyncio.sleep(60)
            yield Started(0)

        async with house(tmp_path, script) as h:
            work = asyncio.create_task(h.draw(model))
            await reached.wait()
            work.cancel()
            with pytest.raises(asyncio.CancelledError):
                await work
            assert await h.balance() == left

    run(check())


def test_hang_up_at_any_moment_leaves_the_books_clean(tmp_path: Path) -> None:
    """Cancelled after each number of turns of the event loop, from before the hold to after the post."""

    async def check() -> None:
        async with house(tmp_path) as h:
            for turns in [*range(40), *range(40, 400, 12)]:
                work = asyncio.create_task(h.draw())
                for _ in range(turns):
                    await asyncio.sleep(0)
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
                await h.pipeline.drain()
                await h.balance()
                await h.ledger.grant(h.principal.account_id, 5_000, "test")

    run(check())


def test_refused_before_the_hold(tmp_path: Path) -> None:
    async def check() -> None:
        async with house(tmp_path) as h:
            for fields in (
                {"prompt": "how to make a bomb"},
                {"negative_prompt": "how to make a bomb"},
                {"history": ("how to make a bomb",)},
            ):
                with pytest.raises(ContentRefused):
                    await h.draw("draw", **fields)
            with pytest.raises(WaiverRequired, match="watermark_enabled"):
                await h.draw("cogview-4", "zhipu", ai_label=False)
            assert h.provider.orders == []
            assert await h.balance() == 100_000

    run(check())


def test_quota(tmp_path: Path) -> None:
    async def check() -> None:
        async with house(tmp_path) as h:
            await h.draw(n=10, quality="hd")
            with pytest.raises(QuotaExceeded):
                await h.draw()
            assert await h.balance() == 0
            assert len(h.provider.orders) == 1

    run(check())


def test_the_extended_prompt_is_drawn_and_told(tmp_path: Path) -> None:
    async def check() -> None:
        async with house(tmp_path) as h:
            outcome = await h.draw(prompt_extend=True, style="vivid")
            (order,) = h.provider.orders
            assert order.prompt == outcome.result.revised_prompt != "a cat"
            assert {level.role for level in outcome.result.safety} == {"user", "assistant"}

    run(check())


def test_a_full_disk_charges_nothing(tmp_path: Path) -> None:
    async def check() -> None:
        async with house(tmp_path) as h:
            blobs = h.images
            blobs.chmod(0o700)
            for path in blobs.iterdir():
                path.rmdir()
            blobs.rmdir()
            blobs.write_text("a file where the folder should be")
            with pytest.raises(ServerFault):
                await h.draw()
            assert await h.balance() == 100_000

    run(check())
