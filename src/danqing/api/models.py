"""GET /v1/models: what can be asked for, at what price, and what really draws it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request

from danqing.api.context import context_of
from danqing.api.requests import client_address
from danqing.api.schemas import MODEL, MODELS, answers
from danqing.domain.card import Card
from danqing.domain.errors import ModelNotFound

router = APIRouter(tags=["models"])


@router.get("/models", openapi_extra=answers(MODELS))
async def list_models(request: Request) -> dict[str, Any]:
    """Every model of the catalog, in OpenAI's shape with a `danqing` object beside it."""
    context = context_of(request)
    await context.auth.authenticate(
        request.headers.get("authorization"), client_address(request, context.settings)
    )
    cards = [
        card for card in context.catalog.cards.values() if _listed(card, context.settings.standin)
    ]
    return {"object": "list", "data": [_row(card) for card in cards]}


@router.get("/models/{name:path}", openapi_extra=answers(MODEL))
async def get_model(request: Request, name: str) -> dict[str, Any]:
    """One model, by name or alias."""
    context = context_of(request)
    await context.auth.authenticate(
        request.headers.get("authorization"), client_address(request, context.settings)
    )
    card = context.catalog.find(name, "openai")
    if not _listed(card, context.settings.standin):
        raise ModelNotFound(name)
    return _row(card)


def _listed(card: Card, standin: bool) -> bool:
    return standin or not card.backend.stand_in


def _row(card: Card) -> dict[str, Any]:
    sizes = card.sizes
    return {
        "id": card.name,
        "object": "model",
        "created": card.created,
        "owned_by": card.owner,
        "danqing": {
            "description": card.description,
            "aliases": list(card.aliases),
            "backend": card.backend.name,
            "stand_in": card.backend.stand_in,
            "relay": card.backend.dialect,
            "fallbacks": [backend.name for backend in card.fallbacks],
            "sizes": [*sizes.named, *sizes.tiers, *map(str, sizes.listed)],
            "size_default": str(sizes.default),
            "n_default": card.n_default,
            "n_max": card.n_max,
            "prompt_chars_max": card.prompt_chars_max,
            "qualities": list(card.qualities),
            "quality_default": card.quality_default,
            "price": asdict(card.price),
            "link_ttl_s": card.link_ttl_s,
            "label_visible": card.label.visible,
            "format": card.format,
            "references_max": card.references_max,
            "features": sorted(card.features),
        },
    }
