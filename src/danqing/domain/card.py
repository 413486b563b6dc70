"""A model's card: everything a request needs to know of one model. Filled by the catalog; pure data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from danqing.domain.pipelines import PipelineFacts
from danqing.domain.sizes import Size, SizeRule

ImageFormat = Literal["png", "jpeg", "webp"]

PERMILLE_MAX = 100_000
"""The highest multiplier of a price, in thousandths."""


ALL_LEVELS = (0.0, 1.0)
"""Of noise."""


@dataclass(frozen=True, slots=True)
class Preset:
    """How a quality is drawn."""

    steps: int
    guidance: float
    negative_prompt: str = ""
    """What stands for a request's negative prompt where it has none."""
    lora: str = ""
    """Which of the backend's LoRAs draws it; "" = none."""
    guidance_interval: tuple[float, float] = ALL_LEVELS
    """Noise levels between which steps are guided, 0 = clean."""


RELAYED = Preset(steps=1, guidance=0.0)
"""A relay's image is one step, done as soon as its request is sent."""


@dataclass(frozen=True, slots=True)
class Strength:
    """How far a family's edits leave their reference where a request names no strength, 0-1."""

    edit: float = 0.75
    masked: float = 1.0
    variation: float = 0.5

    def of(self, *, masked: bool, variation: bool) -> float:
        """A mask counts first: what it keeps is kept whatever the strength is."""
        if masked:
            return self.masked
        return self.variation if variation else self.edit


def multiplied(characters: int, permille: int) -> int:
    """`characters` times `permille` / 1000, rounded up; permille 0 to PERMILLE_MAX."""
    return -(-characters * permille // 1000)


@dataclass(frozen=True, slots=True)
class PixelTier:
    """What sizes up to this many pixels cost, in thousandths of the listed price."""

    up_to: int | None
    """Width times height at most; None = any."""
    permille: int


@dataclass(frozen=True, slots=True)
class Price:
    """Characters per image or per call, by quality, pixels, and whether an image is edited."""

    per: Literal["image", "call"]
    characters: Mapping[str, int]
    """Every quality of the card."""
    edit: Mapping[str, int] = field(default_factory=dict[str, int])
    """The same for edits; a quality that is not here costs what drawing costs."""
    pixels: tuple[PixelTier, ...] = (PixelTier(None, 1000),)
    """Ascending; the last one is open. A size pays the first that it fits."""

    def of(self, quality: str, size: Size, n: int, *, edit: bool = False) -> int:
        """Characters for a request of `n` images: the only place where n counts, and it counts once."""
        listed = self.characters[quality]
        if edit:
            listed = self.edit.get(quality, listed)
        tier = next(t for t in self.pixels if t.up_to is None or size.pixels <= t.up_to)
        unit = multiplied(listed, tier.permille)
        return unit if self.per == "call" else unit * n

    @staticmethod
    def charge(held: int, delivered: int, n: int) -> int:
        """What is posted of a hold of `held` when `delivered` of `n` images came: their share, rounded down."""
        assert 0 <= delivered <= n
        return held * delivered // n


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
    """The local network; "" for a relay."""
    stand_in: bool = False
    dialect: str | None = None
    """The provider's API where it is a relay."""
    model: str = ""
    """The provider's name of the model."""
    presets: Mapping[str, Preset] = field(default_factory=dict[str, Preset])
    """How it draws each quality of the card."""
    strength: Strength = Strength()
    """What an edit's strength is unless the task says."""
    pipeline: PipelineFacts | None = None
    """Of `diffusers_pipeline`: what the pipeline has a place for. The other families honour all that a task can say."""
    labels: Literal["ours", "provider"] = "ours"
    """Who puts the visible AI label on its images."""
    labelled: bool = False
    """They come with a provider's visible label."""
    rehost: bool = True
    """Its images are stored here; False passes a provider's links on."""
    references_max: int = 1
    """Pictures that it can start an edit of this model from."""
    extras: frozenset[str] = frozenset()
    """Optional fields that its provider knows."""

    @property
    def is_relay(self) -> bool:
        return self.dialect is not None


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
    """How long a link is good."""
    format: ImageFormat
    backend: Backend
    fallbacks: tuple[Backend, ...] = ()
    """What draws, in this order, while the backend cannot and nothing was paid to it."""
    references_max: int = 0
    """Pictures that an edit may start from, by whichever backend takes most; 0 = the model only draws."""
    image_ttl_s: int | None = None
    """How long an image is kept; None = as long as its first link is good."""
    features: frozenset[str] = field(default_factory=frozenset[str])
    """Optional request parameters this model honours, e.g. "style", "response_format"."""

    def faces(self) -> Iterator[Card]:
        """The card with each of its backends, in order."""
        yield self
        for backend in self.fallbacks:
            yield replace(self, backend=backend, qualities=backend.presets or self.qualities)

    @property
    def comes_labelled(self) -> bool:
        """Whoever draws it puts a visible label on."""
        return all(backend.labelled for backend in (self.backend, *self.fallbacks))

    def knows(self, extra: str) -> bool:
        """A provider that draws it, or steps in, has this optional field."""
        return any(extra in backend.extras for backend in (self.backend, *self.fallbacks))

    @property
    def may_be_relayed(self) -> bool:
        """A provider draws it, or steps in."""
        return any(backend.is_relay for backend in (self.backend, *self.fallbacks))

    @property
    def may_pass_links(self) -> bool:
        """A provider's own links may be passed on, to images that never come here."""
        return not all(backend.rehost for backend in (self.backend, *self.fallbacks))
