"""What the handlers share: one object made by app.py and kept on each sub-app's state."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fastapi import FastAPI, Request

from danqing.catalog import Catalog
from danqing.dialects.base import Dialect
from danqing.observability.metrics import Metrics
from danqing.service.auth import Authenticator
from danqing.service.books import Books
from danqing.service.budget import ByteBudget
from danqing.service.gallery import Gallery
from danqing.service.inspection import Inspections
from danqing.service.pipeline import Pipeline
from danqing.service.reloads import Reloads
from danqing.settings import Settings


@dataclass(frozen=True, slots=True)
class Context:
    """The server's parts, as the api sees them."""

    settings: Settings
    catalog: Catalog
    dialects: dict[str, Dialect]
    auth: Authenticator
    pipeline: Pipeline
    gallery: Gallery
    inspections: Inspections
    books: Books
    metrics: Metrics
    uploads: ByteBudget
    """What clients' pictures in memory are counted with."""
    reloads: Reloads
    health: Callable[[], Awaitable[dict[str, object]]]
    """Facts for /healthz and /readyz; key "ok" says whether all is well."""


def context_of(request: Request) -> Context:
    return request.app.state.context


def attach(app: FastAPI, context: Context) -> FastAPI:
    app.state.context = context
    return app
