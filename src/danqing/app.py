"""The composition root: the only file that wires floors together."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp

from danqing import catalog
from danqing.api.context import Context
from danqing.api.server import build
from danqing.backends import FamilyRow, read_keys
from danqing.catalog import Catalog
from danqing.db.session import Database
from danqing.dialects.registry import DIALECTS
from danqing.domain.card import Backend, Card
from danqing.domain.errors import DanqingError, EngineFailed
from danqing.domain.ports import Provider
from danqing.engine.child import ChildCore
from danqing.engine.client import Core, InProcessClient
from danqing.engine.core import EngineCore
from danqing.engine.families import load, weights
from danqing.engine.families.base import Family
from danqing.engine.families.load import LoadError, cards, cards_here, pipelines
from danqing.engine.messages import Begin, Job, KeptPace
from danqing.engine.pace_file import kept
from danqing.engine.warm_up import WARM_UP
from danqing.guard import ASKED_AT_ONCE, make_extender, make_screen
from danqing.labelling import make_finisher, make_inspector
from danqing.net.outbound import Outbound
from danqing.observability.logging import get_logger
from danqing.observability.metrics import Metrics
from danqing.providers.answers import Answers
from danqing.providers.local import LocalProvider
from danqing.providers.relay import Relay
from danqing.providers.router import Router
from danqing.service.auth import Authenticator
from danqing.service.books import Books
from danqing.service.budget import ByteBudget
from danqing.service.delivery import Deliverer
from danqing.service.drawing import Artist
from danqing.service.forgetting import Forgetting
from danqing.service.gallery import Gallery
from danqing.service.housekeeping import every
from danqing.service.inspection import Inspections
from danqing.service.keys import KeyFile
from danqing.service.links import LinkSigner
from danqing.service.outbox import Outbox
from danqing.service.pipeline import Pipeline
from danqing.service.recovery import Recovery
from danqing.service.referee import Referee
from danqing.service.references import References
from danqing.service.reloads import Reloads
from danqing.service.retention import Retention
from danqing.service.screening import Screen
from danqing.service.settling import Settler
from danqing.service.webhooks import WebhookSender
from danqing.settings import Settings, SettingsError
from danqing.storage.blobs import Blobs

__all__ = ["LoadError", "cards", "cards_here", "pipelines"]  # the engine's, for the floor above

log = get_logger(__name__)

FAMILY_FACTORY = "danqing.engine.families.load:load_family"
"""What an engine process calls to load its family."""
CPU_WARM_UP_PX = 256
"""The side of a network's first image where the processor draws: a large one would take minutes."""
STOP_S = 10.0
"""How long a stopping server waits for what its housekeeping is just doing."""
HOUSEKEEPING_S = 3600.0
"""How often images past their time, and blobs that are no image's, are deleted."""


def _refuse_a_part(settings: Settings) -> None:
    """Raise FileNotFoundError where the database is there and its keys are not, or the other way round.

    New keys would void every token and link, a new database every account, without a word.
    """
    if settings.database_url is not None:
        return  # Books.match_keys asks the database itself
    database, keys = settings.data_dir / "danqing.db", settings.key_file
    if database.exists() and not keys.exists():
        lost, kept = keys, "database"
    elif keys.exists() and not database.exists() and (settings.data_dir / "images").exists():
        lost, kept = database, "keys and images"
    else:
        return
    raise FileNotFoundError(
        f"{lost.absolute()} is missing beside its {kept}: put it back (or move the {kept} away, to start anew)"
    )


@asynccontextmanager
async def open_books(settings: Settings, *, create: bool = True) -> AsyncIterator[Books]:
    """Open the data directory's database and key file. Raises DanqingError, OSError, SettingsError.

    `create` False raises FileNotFoundError where there are none: a mistyped path must not pass for books.
    """
    if not create and not settings.key_file.exists():
        raise FileNotFoundError(f"there is no Danqing data in {settings.data_dir.absolute()}")
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    _refuse_a_part(settings)
    is_new = not settings.key_file.exists()
    keys = KeyFile.load_or_create(settings.key_file)  # first: it is what says that there are books
    db = Database.open(settings.database_url_effective, create=create)
    try:
        books = Books.on(db, keys, settings)
        try:
            try:
                await books.match_keys()
            except DanqingError:
                if is_new:  # of a server that came up without the file it shares with others
                    settings.key_file.unlink()
                raise
            yield books
        finally:
            await books.limiter.close()
    finally:
        await db.close()


def load_family(row: FamilyRow, settings: Settings) -> Family:
    """A backend's family with its weights, in this process. Raises LoadError."""
    return load.load_family(**_options(row, settings))


def _options(row: FamilyRow, settings: Settings) -> dict[str, Any]:
    """What FAMILY_FACTORY takes."""
    options: dict[str, Any] = {"name": row.family, "threads": settings.engine.threads}
    if row.family in load.TORCH:
        options |= row.options(settings.data_dir)
    return options


def check_fit(row: FamilyRow, settings: Settings) -> load.Fit:
    """What a torch family needs and what is there, looked at before anything is loaded. Raises LoadError."""
    return load.check_fit(_plan(row, settings))


def commit_of(row: FamilyRow, settings: Settings) -> str | None:
    """The commit that a backend's checkpoint was pulled at; None where nothing says so."""
    record = weights.pulled_from(row.folder(settings.data_dir))
    return None if record is None else record.commit


def _plan(row: FamilyRow, settings: Settings) -> load.Plan:
    options = _options(row, settings)
    options.pop("threads")
    return load.Plan.of(**options)


def check_checkpoint(family: str, folder: Path, pipeline: str | None = None) -> None:
    """Is a family's whole checkpoint in the folder? Raises LoadError."""
    load.check_family(load.Plan(family, str(folder), pipeline))


def check_backend(name: str, row: FamilyRow, settings: Settings) -> None:
    """Are a local backend's packages and checkpoint there? Raises SettingsError naming the field."""
    if row.family not in load.TORCH:
        return
    try:
        load.check_family(_plan(row, settings))
    except LoadError as error:
        raise SettingsError(f"catalog: backends.{name}.{error}") from None


def _side_max(row: FamilyRow, settings: Settings) -> int | None:
    """The longest side that a backend that was checked can draw, pixels; None = any."""
    return None if row.family not in load.TORCH else load.side_max(_plan(row, settings))


def make_core(
    settings: Settings,
    row: FamilyRow,
    *,
    warm_up: Job = WARM_UP,
    on_step: Callable[[float, int], None] | None = None,
    pace: KeptPace | None = None,
) -> Core:
    """An engine for one backend, as the settings want it: a thread of this process, or a process of its own."""
    options = settings.engine
    in_thread = row.family not in load.TORCH if options.process == "auto" else None
    batch_max = load.batch_max(row.family, options.batch_max)
    if in_thread or options.process == "thread":
        return EngineCore(
            lambda: load_family(row, settings),
            queue_max=options.queue_max,
            live_max=options.live_max,
            batch_max=batch_max,
            on_step=on_step,
            warm_up=warm_up,
            pace=pace,
        )
    begin = Begin(
        factory=FAMILY_FACTORY,
        options=_options(row, settings),
        queue_max=options.queue_max,
        live_max=options.live_max,
        batch_max=batch_max,
        warm_up=warm_up,
        pace=pace,
    )
    return ChildCore(
        begin, hang_s=options.step_timeout_s, load_s=options.load_timeout_s, on_step=on_step
    )


def _warm_up(backend: Backend, row: FamilyRow) -> Job:
    """An image as its requests will be: guided as they are, so that the step times learned are theirs."""
    preset = next(iter(backend.presets.values()))
    side = WARM_UP.width if row.family == "pocket" or row.device != "cpu" else CPU_WARM_UP_PX
    return replace(
        WARM_UP,
        width=side,
        height=side,
        guidance=preset.guidance,
        negative_prompt=preset.negative_prompt,
    )


@asynccontextmanager
async def open_engine(
    settings: Settings, backend: Backend, row: FamilyRow, metrics: Metrics | None = None
) -> AsyncIterator[InProcessClient]:
    """A running engine for one backend; with `metrics` a server's, which keeps its step times. Raises SettingsError naming the field that it cannot run with."""
    check_backend(backend.name, row, settings)
    on_step, pace = None, None
    if metrics:
        on_step = partial(metrics.on_step, backend.name)
        pace = kept(settings.data_dir / "step_times", backend.name, _options(row, settings))
    core = make_core(settings, row, warm_up=_warm_up(backend, row), on_step=on_step, pace=pace)
    client = InProcessClient(core)
    try:
        try:
            await client.ready()
        except EngineFailed as error:
            _, is_named, fault = error.message.partition(f"{LoadError.__name__}: ")
            if is_named:
                raise SettingsError(f"catalog: backends.{backend.name}.{fault}") from None
            raise EngineFailed(f"backends.{backend.name}: {error.message}") from None
        yield client
    finally:
        await client.close()


@asynccontextmanager
async def open_engines(
    settings: Settings, models: Catalog, metrics: Metrics
) -> AsyncIterator[dict[str, InProcessClient]]:
    """The engines of all backends that draw here, by name; those that are the same but for the name share one.

    Raises SettingsError: what is configured must run, a stand-in is only for what is not.
    """
    local = [backend for backend in models.backends.values() if not backend.is_relay]
    for backend in local:  # all are looked at before the first one is loaded, which takes a while
        check_backend(backend.name, models.families[backend.name], settings)
    async with AsyncExitStack() as stack:
        clients: dict[str, InProcessClient] = {}
        by_row: dict[str, InProcessClient] = {}
        for backend in local:
            row = models.families[backend.name]
            kind = row.model_dump_json()
            if kind not in by_row:
                opened = open_engine(settings, backend, row, metrics)
                client = by_row[kind] = await stack.enter_async_context(opened)
                _watch(client, backend.name, metrics)
            clients[backend.name] = by_row[kind]
        yield clients


def _watch(client: InProcessClient, name: str, metrics: Metrics) -> None:
    metrics.watch(metrics.queue_depth, lambda: client.health().queue_depth, name)
    metrics.watch(metrics.live, lambda: client.health().live, name)


@asynccontextmanager
async def open_provider(settings: Settings, models: Catalog, card: Card) -> AsyncIterator[Provider]:
    """What draws one card, without a server. Raises SettingsError where a relay's key is missing."""
    async with AsyncExitStack() as stack:
        providers: dict[str, Provider] = {}
        if card.backend.is_relay:
            outbound = await stack.enter_async_context(open_outbound())
            providers |= make_relays(models, outbound, Metrics(), only=card.backend.name)
        else:
            row = models.families[card.backend.name]
            client = await stack.enter_async_context(open_engine(settings, card.backend, row))
            providers[card.backend.name] = LocalProvider(client, _side_max(row, settings))
        yield Router(providers)


@asynccontextmanager
async def open_server(settings: Settings) -> AsyncIterator[tuple[ASGIApp, Books, Screen]]:
    """Everything a server needs, running; yields what uvicorn serves, the books, and what SIGHUP reloads."""
    models = catalog.load(settings)
    metrics = Metrics()
    async with (
        open_books(settings) as books,
        books.open_blobs(settings) as blobs,
        open_engines(settings, models, metrics) as engines,
        open_outbound() as outbound,
        open_outbound(sum(row.concurrency_max for row in models.relays.values())) as relaying,
        open_outbound(ASKED_AT_ONCE) as asking,
    ):
        relays = make_relays(models, relaying, metrics)
        local = {
            name: LocalProvider(client, _side_max(models.families[name], settings))
            for name, client in engines.items()
        }
        provider = Router(local | relays)
        service = make_service(settings, models, metrics, books, blobs, provider, outbound, asking)
        sender = WebhookSender(
            Outbox(books.db),
            outbound,
            books.keys.derive("webhooks"),
            hosts=settings.webhook_allow_hosts,
        )
        recovery = service.recovery
        reloads = Reloads(books.db, service.screen)
        forgetting = Forgetting(books.db, settings.prompts_kept_days)
        sending = asyncio.create_task(sender.run())
        stopping = asyncio.Event()
        loops = [
            every(settings.task_lease_s / 3, lambda: _sweep(recovery, books, metrics), stopping),
            every(settings.task_lease_s / 3, reloads.look, stopping),
            every(HOUSEKEEPING_S, books.refusals.prune, stopping),
            every(HOUSEKEEPING_S, forgetting.sweep, stopping),
            every(HOUSEKEEPING_S, service.retention.delete_expired, stopping),
            every(HOUSEKEEPING_S, service.retention.delete_orphans, stopping),
            every(HOUSEKEEPING_S, service.retention.prune, stopping),
        ]
        try:
            context = _context(settings, models, metrics, books, service, engines, relays, reloads)
            yield build(context), books, service.screen
        finally:
            stopping.set()  # first: what is taken over now would only be given back
            _, late = await asyncio.wait(loops, timeout=STOP_S)
            for loop in (*late, sending):
                loop.cancel()
            await asyncio.gather(*late, sending, return_exceptions=True)
            await service.pipeline.drain()
            service.references.close()
            await sender.aclose()


def make_relays(
    models: Catalog, outbound: Outbound, metrics: Metrics, only: str | None = None
) -> dict[str, Relay]:
    """The relays of the catalog (or one of them), with their keys. Raises SettingsError naming the field."""
    relays: dict[str, Relay] = {}
    answers = Answers()
    metrics.watch(metrics.answer_bytes, lambda: answers.taken)
    for name, row in models.relays.items():
        if only is not None and name != only:
            continue
        keys = read_keys(name, row, os.environ)
        try:
            relays[name] = Relay(name, row, keys, outbound, metrics, answers)
        except ValueError as error:
            raise SettingsError(f"catalog: backends.{name}.allow_hosts: {error}") from None
    return relays


@asynccontextmanager
async def open_outbound(requests: int = 0) -> AsyncIterator[Outbound]:
    """A client for `requests` at once, each over a connection that is kept; 0 = as it comes."""
    outbound = (
        Outbound(requests_max=10 * requests, connections_max=2 * requests, idle_max=requests)
        if requests
        else Outbound()
    )
    try:
        yield outbound
    finally:
        await outbound.aclose()


@dataclass(frozen=True, slots=True)
class Service:
    """The use case and what belongs to it."""

    pipeline: Pipeline
    recovery: Recovery
    retention: Retention
    gallery: Gallery
    references: References
    uploads: ByteBudget
    """What clients' pictures in memory are counted with."""
    screen: Screen


def make_service(
    settings: Settings,
    models: Catalog,
    metrics: Metrics,
    books: Books,
    blobs: Blobs,
    provider: Provider,
    outbound: Outbound,
    asking: Outbound | None = None,
) -> Service:
    """The use case on these books, drawing by this provider. `asking` asks the operator's own services. Raises ValueError for a setting it cannot use."""
    signer = LinkSigner(books.keys.derive("links"))
    ledger = books.ledger
    screen = make_screen(settings, metrics, asking or outbound, models)

    async def is_taken(image_id: str) -> bool:
        return await ledger.image(image_id) is not None

    deliverer = Deliverer(blobs, signer, make_finisher(settings, books.keys), is_taken)
    gallery = Gallery(ledger, blobs, signer)
    budget = ByteBudget(settings.uploads.bytes_at_once_max)
    references = References(
        blobs=blobs,
        outbound=outbound,
        own=gallery.behind,
        budget=budget,
        settings=settings.uploads,
    )
    pipeline = Pipeline(
        settings=settings,
        catalog=models,
        ledger=ledger,
        artist=Artist(
            ledger=ledger,
            provider=provider,
            screen=screen,
            extender=make_extender(settings, metrics, asking or outbound),
            deliverer=deliverer,
            references=references,
            metrics=metrics,
            lease_s=settings.task_lease_s,
        ),
        settler=Settler(ledger, deliverer, references, metrics),
        referee=Referee(screen, books.refusals),
        references=references,
        gallery=gallery,
        blocks=books.blocks,
        limiter=books.limiter,
    )
    retention = Retention(books.db, ledger, blobs, metrics)
    recovery = Recovery(
        ledger=ledger,
        pipeline=pipeline,
        deliverer=deliverer,
        retention=retention,
        lease_s=settings.task_lease_s,
    )
    return Service(pipeline, recovery, retention, gallery, references, budget, screen)


def _context(
    settings: Settings,
    models: Catalog,
    metrics: Metrics,
    books: Books,
    service: Service,
    engines: dict[str, InProcessClient],
    relays: dict[str, Relay],
    reloads: Reloads,
) -> Context:
    async def health() -> dict[str, object]:
        facts = {
            name: client.facts(settings.engine.step_timeout_s) for name, client in engines.items()
        }
        worst = min(facts.values(), key=lambda engine: bool(engine["ok"]), default=None)
        return {
            "ok": worst is None or worst["ok"],
            "engine": worst,
            "engines": facts,
            "backends": {name: relay.health() for name, relay in relays.items()},
        }

    metrics.watch(metrics.upload_bytes, lambda: service.uploads.taken)
    return Context(
        settings=settings,
        catalog=models,
        dialects=dict(DIALECTS),
        auth=Authenticator(books.db, books.keys),
        pipeline=service.pipeline,
        gallery=service.gallery,
        inspections=Inspections(make_inspector(settings, books.keys, models)),
        books=books,
        metrics=metrics,
        uploads=service.uploads,
        reloads=reloads,
        health=health,
    )


async def _sweep(recovery: Recovery, books: Books, metrics: Metrics) -> None:
    await recovery.sweep()
    metrics.open_holds.set((await books.ledger.open_holds()).count)
