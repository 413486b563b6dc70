"""A model's card: everything a request needs to know of one model. Filled by the catalog; pure data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from danqing.domain.sizes import SizeRule

ImageFormat = Literal["png", "jpeg", "webp"]


@dataclass(frozen=True, slots=True)
class Preset:
    """How a quality is drawn."""

    steps: int
    guidance: float


@dataclass(frozen=True, slots=True)
class Price:
    """Characters per image or per call, by quality. `characters` has every quality of the card."""

    per: Literal["image", "call"]
    characters: Mapping[str, int]

    def of(self, quality: str, n: int) -> int:
        """Characters for `n` images of this quality."""
        unit = self.characters[quality]
        return unit if self.per == "call" else unit * n


@dataclass(frozen=True, slots=True)
class LabelRule:
    """Which AI-content labels the images carry unless a waiver says otherwise."""

    visible: bool
    metadata: bool = True


@dataclass(frozen=True, slots=True)
class Backend:
    """What draws the model. `stand_in` is True where pocket answers for something unconfigured."""

    name: str
    family: str
    stand_in: bool = False


@dataclass(frozen=True, slots=True)
class Card:
    """One model of the catalog. Times are seconds, money is characters."""

    name: str
    owner: str
    created: int
    description: str
    aliases: tuple[str, ...]
    sizes: SizeRule
    n_default: int
    n_max: int
    prompt_chars_max: int
    prompt_overlong: Literal["refuse", "truncate"]
    qualities: Mapping[str, Preset]
    quality_default: str
    price: Price
    refund: Literal["undelivered", "never"]
    cancel: Literal["void", "prorata", "full"]
    label: LabelRule
    link_ttl_s: int
    format: ImageFormat
    backend: Backend
    features: frozenset[str] = field(default_factory=frozenset[str])
    """Optional request parameters this model honours, e.g. "style", "response_format"."""
