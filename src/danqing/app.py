"""The composition root: the only file that wires floors together."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path

from starlette.types import ASGIApp

from danqing import catalog
from danqing.api.context import Context
from danqing.api.server import build
from danqing.catalog import Catalog
from danqing.db.session import Database
from danqing.dialects.registry import DIALECTS
from danqing.engine.client import InProcessClient
from danqing.engine.core import EngineCore
from danqing.engine.families.base import Family
from danqing.observability.logging import get_logger
from danqing.observability.metrics import Metrics
from danqing.providers.local import LocalProvider
from danqing.providers.router import Router
from danqing.service.accounts import Accounts
from danqing.service.auth import Authenticator, KeyFile
from danqing.service.delivery import Deliverer
from danqing.service.gallery import Gallery
from danqing.service.ledger import Ledger
from danqing.service.links import LinkSigner
from danqing.service.moderation import TextModerator
from danqing.service.pipeline import Pipeline
from danqing.settings import Settings
from danqing.storage.blobs import Blobs

log = get_logger(__name__)

SWEEP_S = 10.0
"""How often the holds of tasks that nobody works on any more are given back."""


@dataclass(frozen=True, slots=True)
class Books:
    """The part that needs no engine: accounts, tokens, the ledger. What the CLI works on."""

    db: Database
    keys: KeyFile
    ledger: Ledger
    accounts: Accounts


@asynccontextmanager
async def open_books(settings: Settings, *, create: bool = True) -> AsyncIterator[Books]:
    """Open the data directory's database and key file. Raises DanqingError, OSError.

    `create` False raises FileNotFoundError where there are none: a mistyped path must not pass for books.
    """
    if not create and not settings.key_file.exists():
        raise FileNotFoundError(f"there is no Danqing data in {settings.data_dir.absolute()}")
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    database = settings.data_dir / "danqing.db"
    if database.exists() and not settings.key_file.exists():
        # A new key would void every token and link without a word.
        raise FileNotFoundError(
            f"{settings.key_file.absolute()} is missing beside its database: put it back "
            "(or move the database away, to start anew)"
        )
    keys = KeyFile.load_or_create(settings.key_file)  # first: it is what says that there are books
    db = Database.open(settings.database_url_effective)
    try:
        ledger = Ledger(db)
        yield Books(db, keys, ledger, Accounts(db, ledger, keys))
    finally:
        await db.close()


def load_family(name: str, settings: Settings) -> Family:
    """A family with its weights. Raises ValueError for a name no file implements."""
    if name != "pocket":
        raise ValueError(f"unknown family {name}")
    from danqing.engine.families.pocket import Pocket  # loads onnxruntime: only where it draws

    return Pocket(threads=settings.engine.threads or len(os.sched_getaffinity(0)))


@asynccontextmanager
async def open_engine(
    settings: Settings, family: str, metrics: Metrics | None = None
) -> AsyncIterator[InProcessClient]:
    """A running engine for one family."""
    options = settings.engine
    core = EngineCore(
        lambda: load_family(family, settings),
        queue_max=options.queue_max,
        live_max=options.live_max,
        batch_max=options.batch_max,
        on_step=metrics.on_step if metrics else None,
    )
    client = InProcessClient(core)
    try:
        await client.ready()
        yield client
    finally:
        await client.close()


def make_moderator(settings: Settings) -> TextModerator:
    """The word-list moderator of these settings. Raises ValueError for a list it cannot read."""
    paths = list(settings.moderation.word_lists)
    if settings.moderation.bundled_list:
        paths.insert(0, Path(str(files("danqing.service").joinpath("assets", "wordlist.txt"))))
    return TextModerator(paths, block_level=settings.moderation.block_level)


@asynccontextmanager
async def open_server(settings: Settings) -> AsyncIterator[tuple[ASGIApp, Books]]:
    """Everything a server needs, running; yields what uvicorn serves, and the books."""
    models = catalog.load(settings)
    metrics = Metrics()
    async with (
        open_books(settings) as books,
        open_engine(settings, "pocket", metrics) as client,
    ):
        pipeline, context = _wire(settings, models, metrics, books, client)
        sweeping = asyncio.create_task(_sweep(books, metrics))
        try:
            yield build(context), books
        finally:
            await pipeline.drain()
            sweeping.cancel()
            await asyncio.gather(sweeping, return_exceptions=True)


def _wire(
    settings: Settings, models: Catalog, metrics: Metrics, books: Books, client: InProcessClient
) -> tuple[Pipeline, Context]:
    signer = LinkSigner(books.keys.derive("links"))
    blobs = Blobs(settings.blob_root)
    pipeline = Pipeline(
        settings=settings,
        catalog=models,
        ledger=books.ledger,
        provider=Router(dict.fromkeys(models.backends, LocalProvider(client))),
        moderator=make_moderator(settings),
        deliverer=Deliverer(blobs, signer),
        metrics=metrics,
    )

    async def health() -> dict[str, object]:
        facts = asdict(client.health())
        facts.pop("fault")  # an exception's raw text; the log has it, the public need not
        return {"ok": facts["alive"], "engine": facts}

    metrics.watch(metrics.queue_depth, lambda: client.health().queue_depth)
    metrics.watch(metrics.live, lambda: client.health().live)
    return pipeline, Context(
        settings=settings,
        catalog=models,
        dialects=dict(DIALECTS),
        auth=Authenticator(books.db, books.keys),
        pipeline=pipeline,
        gallery=Gallery(books.ledger, blobs, signer),
        metrics=metrics,
        health=health,
    )


async def _sweep(books: Books, metrics: Metrics) -> None:
    """Give back what crashed servers held, for ever; a failing sweep is logged and tried again."""
    while True:
        try:
            for task_id in await books.ledger.expire_overdue():
                log.warning("hold_expired", task=task_id)
            metrics.open_holds.set((await books.ledger.open_holds()).count)
        except Exception:  # whatever it was, the next one must still come
            log.exception("sweep_failed")
        await asyncio.sleep(SWEEP_S)
