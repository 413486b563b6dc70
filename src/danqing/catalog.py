"""Models as data: reads catalog.toml and the operator's file into domain Cards. Knows no engine and no HTTP."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from danqing import catalog_tables
from danqing.backends import KINDS, STRICT, BackendRow, FamilyRow, RelayRow
from danqing.dialects.hints import meant
from danqing.domain.card import (
    ALL_LEVELS,
    PERMILLE_MAX,
    RELAYED,
    Backend,
    Card,
    ImageFormat,
    LabelRule,
    PixelTier,
    Preset,
    Price,
    Strength,
)
from danqing.domain.errors import InvalidField, ModelNotFound, Unavailable
from danqing.domain.sizes import SQUARE, Size, SizeRange, SizeRule
from danqing.settings import Settings, SettingsError

_FAULTS_SHOWN = 10

STAND_IN_FAMILY = "pocket"
DAY_S = 86_400
PRICE_MAX = 10**12
"""The most characters a request may cost; times the highest multiplier it is still one transfer."""

REFERENCES_MAX = 16
LOCAL_REFERENCES = {"pocket": 1, "cogview4": 1, "qwen_image": 1}
"""Pictures that a family edits from; one that is not here only draws."""
PIXELS_MAX = 2**26
SIDE_MIN = 16

_Level = Annotated[float, Field(ge=0, le=1)]
_Characters = Annotated[int, Field(strict=True, ge=0, le=PRICE_MAX)]

Feature = Literal[
    "response_format",
    "style",
    "output_format",
    "revised_prompt",
    "size_required",
    "b64_default",
    "echo",
    "stream",
    "watermark",
    "alpha_mask",
    "sequential",
    "optimize_fast",
    "jimeng",
    "transparent",
    "user_errors",
]


_Route = Literal[
    "openai",
    "openai_edits",
    "openai_variations",
    "chat",
    "draw",
    "zhipu",
    "dashscope",
    "dashscope_native",
    "dashscope_synthesis",
    "ark",
]


class PresetRow(BaseModel):
    """One of `[presets.FAMILY]`: how a quality is drawn."""

    model_config = STRICT
    steps: int = Field(ge=1, le=200)
    """Denoising steps."""
    guidance: float = Field(ge=0, le=30)
    """How strongly the prompt is followed; 1 = without the second half that guidance needs."""
    negative_prompt: str = Field(default="", max_length=1000)
    """What stands for a request's negative prompt where it has none: Qwen-Image is guided only with one, and " " counts."""
    lora: str = Field(default="", max_length=100)
    """Which of the backend's `loras` draws it; none = the checkpoint as it is."""
    guidance_interval: tuple[_Level, _Level] = ALL_LEVELS
    """The noise levels (0 clean, 1 noise) between which steps are guided; a step beyond costs half. `cogview4` and `qwen_image` only, and not lossless."""


class StrengthRow(BaseModel):
    """`[strengths.FAMILY]`: how far edits leave their reference unless a request says, 0 to 1."""

    model_config = STRICT
    edit: float = Field(ge=0, le=1)
    """With a prompt."""
    masked: float = Field(ge=0, le=1)
    """Inside a mask."""
    variation: float = Field(ge=0, le=1)
    """Without a prompt."""


class _FreeRow(BaseModel):
    """`size_free`: any size within these bounds."""

    model_config = STRICT
    side_min: int = Field(ge=16)
    """The shortest side, pixels."""
    side_max: int = Field(le=8192)
    """The longest side, pixels."""
    multiple: int = Field(ge=1)
    """Each side is a multiple of this."""
    pixels_max: int = Field(le=2**26)
    """Width times height at most."""
    pixels_min: int = 0
    """Width times height at least."""
    ratio_max: float = Field(default=4.0, ge=1)
    """The longer side over the shorter at most."""


class _TierRow(BaseModel):
    """One step of `price.pixels`."""

    model_config = STRICT
    up_to: int | None = Field(default=None, strict=True, ge=1)
    """The sizes it is for: width times height at most; the last tier may go without."""
    permille: int = Field(strict=True, ge=0, le=PERMILLE_MAX)
    """What they cost, in thousandths of the price: 2000 is double."""


class _PriceRow(BaseModel):
    """`price`: beside these fields it has one for every quality, with the quality's characters."""

    model_config = STRICT | ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, _Characters] = Field(init=False)
    per: Literal["image", "call"]
    """`image`: n images cost n times the price; `call`: one price, whatever n is."""
    edit: dict[str, _Characters] = {}
    """Characters of an image edit, by quality; a quality left out costs what drawing costs."""
    pixels: tuple[_TierRow, ...] = ()
    """Ascending tiers by size; none = every size costs the same."""


class ModelRow(BaseModel):
    """One `[models.NAME]` table; `like = "OTHER"` starts as a copy of another."""

    model_config = STRICT
    owner: str
    """`owned_by` in /v1/models."""
    created: int
    """Unix seconds, for /v1/models."""
    description: str
    """One line for people."""
    size_default: str
    """The size when a request names none: `WxH`, or one of `size_tiers`."""
    price: _PriceRow
    """The characters of each quality by its name (`hd = 10000`), and what follows."""
    aliases: tuple[str, ...] = ()
    """Other names, matched without regard to case like the name itself."""
    backend: str | None = None
    """The `[backends.NAME]` that draws it; none = the pocket stand-in."""
    backend_model: str | None = Field(default=None, min_length=1, max_length=200)
    """The provider's name of the model, where `backend` is a relay."""
    fallbacks: tuple[str, ...] = ()
    """Backends that draw it, in this order, while `backend` cannot; never around a refusal."""
    sizes: tuple[str, ...] = ()
    """Sizes taken as they are, whatever `size_free` says."""
    size_names: dict[str, str] = {}
    """Named sizes: ratios ("2:3"), "auto"."""
    size_tiers: dict[str, dict[str, str]] = {}
    """Tiers in capitals ("2K"): the size of each ratio in them; every tier has "1:1"."""
    size_free: _FreeRow | None = None
    """Bounds for free sizes; none = only the listed and named ones."""
    n_default: int = Field(default=1, ge=1, le=16)
    """Images when a request names no number."""
    n_max: int = Field(default=1, ge=1, le=16)
    """Images in one request at most."""
    prompt_chars_max: int = Field(default=4000, ge=1, le=32_000)
    """The longest prompt, in characters of Unicode."""
    prompt_overlong: Literal["refuse", "truncate"] = "refuse"
    """What a longer one gets; a cut is told in `x-danqing-truncated`."""
    qualities: dict[str, str] = {"standard": "standard"}
    """Each quality and the preset (steps, guidance) that draws it."""
    quality_default: str | None = None
    """The quality when a request names none; the first one if not set."""
    refund: Literal["undelivered", "never"] = "undelivered"
    """What is charged when no image comes: nothing, or (but for our own failures) all."""
    cancel: Literal["void", "prorata", "full"] = "prorata"
    """What a client that leaves after the first step pays: nothing, by steps done, or all."""
    label_visible: bool = False
    """Carry the visible AI label (the hidden one is always there)."""
    link_days: float = Field(default=30, gt=0, le=3650)
    """How long an image's links are good."""
    image_days: float | None = Field(default=None, gt=0, le=3650)
    """How long its images are kept, where that is not as long as `link_days`; while they are, fresh links can be had."""
    format: ImageFormat = "png"
    """The image format when a request names none."""
    references_max: int = Field(default=0, ge=0, le=REFERENCES_MAX)
    """Pictures an edit may start from, as its provider has it; 0 = the model only draws. A local family takes one."""
    features: tuple[Feature, ...] = ()
    """Optional parameters the model honours."""


class _File(BaseModel):
    model_config = STRICT
    defaults: dict[_Route, str]
    presets: dict[str, dict[str, PresetRow]]
    strengths: dict[str, StrengthRow] = {}
    backends: dict[str, BackendRow]
    models: dict[str, ModelRow]


class Catalog:
    """All cards, by name and alias, matched without regard to case."""

    def __init__(
        self,
        cards: Mapping[str, Card],
        defaults: Mapping[str, str],
        relays: Mapping[str, RelayRow],
        families: Mapping[str, FamilyRow],
    ) -> None:
        self.cards = dict(cards)
        self.defaults = dict(defaults)
        self.relays = dict(relays)
        """The relays of the catalog by their backends' names."""
        self.families = dict(families)
        """The local ones."""
        self.backends = {
            backend.name: backend
            for card in cards.values()
            for backend in (card.backend, *card.fallbacks)
        }
        """What the models are drawn by; of a relay, one of the models that it draws."""
        self._by_name: dict[str, Card] = {}
        for card in cards.values():
            for name in (card.name, *card.aliases):
                if self._by_name.setdefault(name.lower(), card) is not card:
                    raise SettingsError(f"catalog: two models are called {name}")
        for dialect, name in defaults.items():
            if name.lower() not in self._by_name:
                raise SettingsError(f"catalog: defaults.{dialect} names no model: {name}")

    def find(self, name: str | None, dialect: str) -> Card:
        """The card a client means; None or "" is the dialect's default. Raises ModelNotFound."""
        wanted = name or self.defaults[dialect]
        card = self._by_name.get(wanted.lower())
        if card is None:
            raise ModelNotFound(wanted, meant=self.nearest(wanted))
        return card

    def nearest(self, name: str) -> str | None:
        """The model or alias that an unknown name was probably meant to be."""
        return meant(
            name, [one for card in self.cards.values() for one in (card.name, *card.aliases)]
        )

    def require(self, names: Iterable[str], param: str) -> None:
        """Raises InvalidField naming the first that is neither a model nor an alias."""
        for name in names:
            if name.lower() not in self._by_name:
                nearest = self.nearest(name)
                hint = f" Did you mean '{nearest}'?" if nearest else ""
                raise InvalidField(f"'{param}': there is no model '{name[:100]}'.{hint}", param)

    def drawable(self, card: Card, standin: bool) -> Card:
        """The card itself. Raises Unavailable when only a stand-in could draw and that is turned off."""
        if card.backend.stand_in and not standin:
            raise Unavailable(
                f"Nothing is configured to draw '{card.name}', and stand-ins are off."
            )
        return card


def load(settings: Settings) -> Catalog:
    """Read the built-in catalog and the operator's over it, whole or not at all. Raises SettingsError."""
    try:
        tables = catalog_tables.read(settings.catalog_file)
        file = _File.model_validate(tables)
    except (tomllib.TOMLDecodeError, TypeError, AttributeError, KeyError) as error:
        raise SettingsError(
            f"catalog: {error}"
        ) from None  # not TOML, or a value where a table belongs
    except ValidationError as error:
        faults = "; ".join(map(_fault, error.errors()[:_FAULTS_SHOWN]))
        raise SettingsError(f"catalog: {faults}") from None
    cards = {
        name: _card(name, row, file, settings.labels.policy) for name, row in file.models.items()
    }
    relays = {name: row for name, row in file.backends.items() if isinstance(row, RelayRow)}
    families = {name: row for name, row in file.backends.items() if isinstance(row, FamilyRow)}
    return Catalog(cards, file.defaults, relays, families)


def _fault(fault: ErrorDetails) -> str:
    place = [str(part) for part in fault["loc"]]
    if place[:1] == ["backends"] and place[2:3] and place[2] in KINDS:
        del place[2]
    return f"{'.'.join(place)}: {fault['msg']}"


def _card(name: str, row: ModelRow, file: _File, policy: str) -> Card:
    def fail(text: str) -> SettingsError:
        return SettingsError(f"catalog: models.{name}: {text}")

    if not row.qualities:
        raise fail("qualities: there must be one")
    backend = _backend(name, row.backend, row, file, fail)
    fallbacks = tuple(_backend(name, other, row, file, fail) for other in row.fallbacks)
    for other in (backend, *fallbacks):
        if other.labels != backend.labels:
            raise fail(f"fallbacks: {other.name} and {backend.name} differ in `labels`")
        if not other.rehost and policy == "cn":
            raise fail(f"backend {other.name} has rehost = false, but labels.policy is cn")
        if not other.rehost and row.label_visible and not other.labelled:
            raise fail(f"label_visible: nobody can draw it with {other.name}'s rehost = false")
    if row.backend_model is not None and not backend.is_relay:
        raise fail(f"backend_model: {backend.name} is no relay")
    quality_default = row.quality_default or next(iter(row.qualities))
    if quality_default not in row.qualities or row.n_default > row.n_max:
        raise fail("a default lies outside what the model takes")
    sizes = _size_rule(row, fail)
    drawn_by = file.backends.get(row.backend or STAND_IN_FAMILY)
    if isinstance(drawn_by, RelayRow) and (sayable := drawn_by.client().ratios):
        sizes = sizes.within(sayable)
    return Card(
        name=name,
        owner=row.owner,
        created=row.created,
        description=row.description,
        aliases=row.aliases,
        sizes=sizes,
        n_default=row.n_default,
        n_max=row.n_max,
        prompt_chars_max=row.prompt_chars_max,
        prompt_overlong=row.prompt_overlong,
        qualities=backend.presets,
        quality_default=quality_default,
        price=_price(row, sizes, fail),
        refund=row.refund,
        cancel=row.cancel,
        label=LabelRule(visible=row.label_visible),
        link_ttl_s=round(row.link_days * DAY_S),
        image_ttl_s=None if row.image_days is None else round(row.image_days * DAY_S),
        format=row.format,
        backend=backend,
        fallbacks=fallbacks,
        references_max=max(one.references_max for one in (backend, *fallbacks)),
        features=frozenset(row.features),
    )


def _local_references(row: FamilyRow) -> int:
    """How many pictures it can start from."""
    return LOCAL_REFERENCES.get(row.family, 0) if row.facts is None else int(row.facts.edits)


def _backend(model: str, name: str | None, row: ModelRow, file: _File, fail: Any) -> Backend:
    """A backend as `model` uses it; None is the stand-in."""
    found = file.backends.get(name or STAND_IN_FAMILY)
    if found is None:
        raise fail(f"backend {name} is not configured")
    if isinstance(found, RelayRow):
        own = row.backend_model if name == row.backend else None
        return Backend(
            name or "",
            "",
            dialect=found.dialect,
            model=own or found.model or model,
            presets=dict.fromkeys(row.qualities, RELAYED),
            labels=found.labels,
            labelled=found.labelled,
            rehost=found.rehost,
            references_max=row.references_max,
            extras=frozenset(found.extras),
        )
    presets = file.presets.get(found.presets, {})
    if missing := set(row.qualities.values()) - set(presets):
        raise fail(f"no preset {', '.join(sorted(missing))} for {found.presets}")
    drawn = {key: Preset(**presets[value].model_dump()) for key, value in row.qualities.items()}
    for quality, preset in drawn.items():
        if fault := found.preset_fault(preset):
            chosen = row.qualities[quality]
            raise fail(f"qualities.{quality}: presets.{found.presets}.{chosen}.{fault}")
    return Backend(
        name or STAND_IN_FAMILY,
        found.family,
        stand_in=name is None,
        presets=drawn,
        strength=_strength(file.strengths.get(found.presets)),
        pipeline=found.facts,
        references_max=min(row.references_max, _local_references(found)),
    )


def _strength(row: StrengthRow | None) -> Strength:
    return Strength() if row is None else Strength(row.edit, row.masked, row.variation)


def _size_rule(row: ModelRow, fail: Any) -> SizeRule:
    def size(text: str) -> Size:
        parsed = Size.parse(text)
        if parsed is None:
            raise fail(f"not a size: {text}")
        return parsed

    tiers = {
        name: {ratio: size(value) for ratio, value in by_ratio.items()}
        for name, by_ratio in row.size_tiers.items()
    }
    for name, by_ratio in tiers.items():
        if SQUARE not in by_ratio or name != name.upper():
            raise fail(f"size_tiers.{name}: a name in capitals, and a size for {SQUARE}")
    is_tier = row.size_default in tiers
    rule = SizeRule(
        default=tiers[row.size_default][SQUARE] if is_tier else size(row.size_default),
        listed=tuple(size(text) for text in row.sizes),
        named={key: size(value) for key, value in row.size_names.items()},
        free=SizeRange(**row.size_free.model_dump()) if row.size_free else None,
        tiers=tiers,
        default_tier=row.size_default if is_tier else None,
    )
    for known in rule.known():
        if known.pixels > PIXELS_MAX or min(known) < SIDE_MIN:
            raise fail(f"{known} is not a size that can be drawn")
    return rule


def _price(row: ModelRow, sizes: SizeRule, fail: Any) -> Price:
    characters = row.price.model_extra or {}
    for field, table in (("price", characters), ("price.edit", row.price.edit)):
        if unknown := set(table) - set(row.qualities):
            raise fail(f"{field}: not a quality of the model: {', '.join(sorted(unknown))}")
    if missing := set(row.qualities) - set(characters):
        raise fail(f"price: no number for the quality {', '.join(sorted(missing))}")
    pixels_max = max(size.pixels for size in sizes.known())
    if sizes.free is not None:
        pixels_max = max(pixels_max, min(sizes.free.pixels_max, sizes.free.side_max**2))
    tiers = _tiers(row.price.pixels, pixels_max, fail)
    price = Price(row.price.per, characters, characters | row.price.edit, tiers)
    highest = max(
        price.of(quality, Size(pixels_max, 1), row.n_max, edit=edit)
        for quality in row.qualities
        for edit in (False, True)
    )
    if highest > PRICE_MAX:
        raise fail(f"price: a request may cost {highest}, at most {PRICE_MAX} is allowed")
    return price


def _tiers(rows: tuple[_TierRow, ...], pixels_max: int, fail: Any) -> tuple[PixelTier, ...]:
    """The tiers, the last one opened: it was checked that no size lies beyond it."""
    if not rows:
        return (PixelTier(None, 1000),)
    bounds = [row.up_to or math.inf for row in rows]
    if any(above <= below for below, above in pairwise(bounds)):
        raise fail("price.pixels: up_to must ascend, and only the last tier may go without")
    if any(above.permille < below.permille for below, above in pairwise(rows)):
        raise fail("price.pixels: permille may not fall, larger sizes cost no less")
    if bounds[-1] < pixels_max:
        raise fail(f"price.pixels: ends at {bounds[-1]}, but the model takes {pixels_max} pixels")
    return (
        *(PixelTier(row.up_to, row.permille) for row in rows[:-1]),
        PixelTier(None, rows[-1].permille),
    )
