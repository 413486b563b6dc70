"""The habits of jimeng's relays on OpenAI's route: sizes by ratio and resolution, pictures in the body. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, cast

from pydantic import Field

from danqing.dialects.fields import Wire, read_references, read_source, validate
from danqing.dialects.prompt_hints import read_ratio
from danqing.domain.card import Card
from danqing.domain.errors import ExclusiveFields, InvalidField, UnsupportedField
from danqing.domain.sizes import SQUARE, Size
from danqing.domain.task import ImageSource

RESOLUTION = "2k"
"""With a ratio alone; iptag/jimeng-api's default. A ratio as `size` is at the 1K tier."""
SIDE = 1024
"""Of a width or height alone; jimeng-free-api's default."""


class JimengHabits(Wire):
    """What iptag/jimeng-api (`ratio`, `resolution`, …) and jimeng-free-api (`width`, `height`) read beside OpenAI's fields."""

    ratio: str | None = None
    resolution: str | None = None
    intelligent_ratio: bool | None = None
    width: int | None = None
    height: int | None = None
    sample_strength: Annotated[float, Field(ge=0, le=1)] | None = None
    image: object = None
    images: list[object] | None = None


def translate(body: Mapping[str, object], card: Card) -> tuple[dict[str, object], dict[str, Any]]:
    """The body in OpenAI's words alone, and what it changes in the task besides. Raises RequestError."""
    known = JimengHabits.model_fields
    habits = validate(JimengHabits, {name: body[name] for name in body if name in known})
    plain = {name: body[name] for name in body if name not in known}
    size = _read_size(habits, plain, card)
    if size is not None:
        plain["size"] = str(size)
    sources = _read_pictures(habits)
    changes: dict[str, Any] = {}
    if sources:
        name = "images" if habits.images else "image"
        changes["references"] = read_references(sources, name, card)
    if habits.sample_strength is not None:
        if not sources:
            raise UnsupportedField(
                "'sample_strength' needs an 'image' to start from.", "sample_strength"
            )
        changes["strength"] = habits.sample_strength
    return plain, changes


def _read_size(habits: JimengHabits, plain: Mapping[str, object], card: Card) -> Size | None:
    """By ratio and resolution, or by width and height; None where neither is given."""
    ways = [
        next((name for name in names if given.get(name) is not None), None)
        for names, given in (
            (("size",), plain),
            (("ratio", "resolution", "intelligent_ratio"), vars(habits)),
            (("width", "height"), vars(habits)),
        )
    ]
    used = [name for name in ways if name is not None]
    if len(used) > 1:
        raise ExclusiveFields(used[1], used[0])
    _, by_ratio, by_sides = ways
    if by_sides is not None:
        sides = [SIDE if side is None else side for side in (habits.width, habits.height)]
        return card.sizes.resolve(f"{sides[0]}x{sides[1]}", by_sides)
    return None if by_ratio is None else _by_ratio(habits, plain.get("prompt"), card)


def _by_ratio(habits: JimengHabits, prompt: object, card: Card) -> Size:
    tier = card.sizes.tier(habits.resolution or RESOLUTION)
    if tier is None:
        tiers = ", ".join(f"'{name.lower()}'" for name in card.sizes.tiers)
        raise InvalidField(
            f"Invalid value for 'resolution'. Supported values are: {tiers}.", "resolution"
        )
    ratio = habits.ratio or SQUARE
    if ratio not in tier:
        ratios = ", ".join(f"'{name}'" for name in tier)
        raise InvalidField(f"Invalid value for 'ratio'. Supported values are: {ratios}.", "ratio")
    if habits.intelligent_ratio and isinstance(prompt, str):
        return tier.get(read_ratio(prompt) or ratio, tier[ratio])
    return tier[ratio]


def _read_pictures(habits: JimengHabits) -> list[ImageSource]:
    """`image` (one, or a list) or `images`: URLs or data URLs."""
    if habits.images and habits.image is not None:
        raise ExclusiveFields("images", "image")
    if isinstance(habits.image, str):
        return [read_source(habits.image, "image")]
    name, pictures = ("images", habits.images) if habits.images else ("image", habits.image)
    if pictures is None:
        return []
    if not isinstance(pictures, list):
        raise InvalidField("'image' must be a string or a list of strings.", "image")
    sources: list[ImageSource] = []
    for index, picture in enumerate(cast("list[object]", pictures)):
        if not isinstance(picture, str):
            raise InvalidField(f"'{name}[{index}]' must be a string.", f"{name}[{index}]")
        sources.append(read_source(picture, f"{name}[{index}]"))
    return sources
