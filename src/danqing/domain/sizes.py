"""Image sizes: parsing and the rule that says which a model takes. Pure; knows no dialect."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from danqing.domain.errors import InvalidField

_PIXELS = re.compile(r"([0-9]{1,5})[x*X×]([0-9]{1,5})")

SQUARE = "1:1"


class Size(NamedTuple):
    """Width and height in pixels."""

    width: int
    height: int

    @property
    def pixels(self) -> int:
        return self.width * self.height

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"

    @classmethod
    def parse(cls, text: str) -> Size | None:
        """Read "WxH" (also "W*H"); None when the text is something else."""
        match = _PIXELS.fullmatch(text.strip())
        if match is None:
            return None
        return cls(int(match[1]), int(match[2]))


@dataclass(frozen=True, slots=True)
class SizeRange:
    """Free sizes: each side within bounds and a multiple of `multiple`; area and ratio capped."""

    side_min: int
    side_max: int
    multiple: int
    pixels_max: int
    ratio_max: float = 16.0
    pixels_min: int = 0

    def fault(self, size: Size) -> str | None:
        """What is wrong with `size`, or None when it fits."""
        if not all(self.side_min <= side <= self.side_max for side in size):
            return f"each side must be between {self.side_min} and {self.side_max} pixels"
        if any(side % self.multiple for side in size):
            return f"each side must be a multiple of {self.multiple}"
        if size.pixels > self.pixels_max:
            return f"the image may have at most {self.pixels_max} pixels"
        if size.pixels < self.pixels_min:
            return f"the image must have at least {self.pixels_min} pixels"
        if max(size) / min(size) > self.ratio_max:
            return f"the sides' ratio may be at most {self.ratio_max:g}:1"
        return None

    def scaled(self, size: Size, pixels: int) -> Size | None:
        """The size within these bounds with `size`'s ratio and about `pixels` pixels; None if there is none."""
        factor = math.sqrt(max(pixels, self.pixels_min) / size.pixels)
        factor = max(factor, self.side_min / min(size))
        factor = min(factor, self.side_max / max(size), math.sqrt(self.pixels_max / size.pixels))
        # Rounded down: up would leave the bounds just reached.
        sides = (int(side * factor / self.multiple + 1e-9) * self.multiple for side in size)
        found = Size(*sides)
        return found if min(found) > 0 and self.fault(found) is None else None


@dataclass(frozen=True, slots=True)
class SizeRule:
    """Which sizes a model takes: listed ones, named ones ("2:3", "auto"), tiers ("2K"), a free range.

    The list is asked before the range: a provider may list a size that its own range forbids.
    """

    default: Size
    listed: tuple[Size, ...] = ()
    named: Mapping[str, Size] = field(default_factory=dict[str, Size])
    free: SizeRange | None = None
    tiers: Mapping[str, Mapping[str, Size]] = field(default_factory=dict[str, Mapping[str, Size]])
    """A tier's size by ratio ("2K" → "16:9" → 2848x1600); each has "1:1"."""
    default_tier: str | None = None
    """Set where the default is a tier: whoever reads ratios chooses within it."""

    def tier(self, text: str) -> Mapping[str, Size] | None:
        """The sizes of a tier by ratio; its name in any case. None when there is no such tier."""
        return self.tiers.get(text.strip().upper())

    def resolve(self, text: str, param: str = "size") -> Size:
        """Turn the wire's text into pixels; a tier alone is its square. Raises InvalidField naming `param`."""
        name = text.strip()
        if name in self.named:
            return self.named[name]
        tier = self.tier(name)
        if tier is not None:
            return tier[SQUARE]
        size = Size.parse(name)
        if size is None:
            raise InvalidField(f"Invalid value: '{name[:50]}'. {self._supported()}", param)
        if size in self.listed or any(size in sizes.values() for sizes in self.tiers.values()):
            return size
        if self.free is None:
            raise InvalidField(f"Invalid value: '{name[:50]}'. {self._supported()}", param)
        fault = self.free.fault(size)
        if fault is not None:
            beyond = [one for one in self.tiers if self.free.fault(self.tiers[one][SQUARE])]
            if beyond:
                fault += f", but for the sizes of {' and '.join(beyond)}"
            raise InvalidField(f"Invalid value: '{name[:50]}': {fault}. {self._supported()}", param)
        return size

    def nearest(self, size: Size, asked: Size | None = None) -> Size:
        """The size to redraw a picture of `size` at: first of like ratio, then of like area.

        Where `asked` is a tier's square it is a size of that tier. Of a free range it is never larger than
        the default, so that a large picture is not a dear one.
        """
        tier = next(
            (by_ratio for by_ratio in self.tiers.values() if by_ratio[SQUARE] == asked), None
        )
        if tier is None and self.free is not None:
            scaled = self.free.scaled(size, min(size.pixels, self.default.pixels))
            if scaled is not None:
                return scaled
        wanted = math.log(size.width / size.height)

        def distance(known: Size) -> tuple[float, float]:
            ratio = abs(math.log(known.width / known.height) - wanted)
            return round(ratio, 2), abs(math.log(known.pixels / size.pixels))

        return min(self.known() if tier is None else tier.values(), key=distance)

    def within(self, sayable: Mapping[str, Mapping[str, Size]]) -> SizeRule:
        """This rule where only `sayable` sizes, by tier and ratio, can be drawn: a ratio whose size cannot be is that
        ratio's smallest of those; a tier has of its ratios those that can be drawn at it.
        """
        sizes = {size for by_ratio in sayable.values() for size in by_ratio.values()}

        def smallest(ratio: str, size: Size) -> Size:
            found = [by_ratio[ratio] for by_ratio in sayable.values() if ratio in by_ratio]
            return size if size in sizes or not found else min(found, key=lambda one: one.pixels)

        named = {name: smallest(name, size) for name, size in self.named.items()}
        tiers = {
            tier: {
                ratio: size if size in sizes else sayable[tier][ratio]
                for ratio, size in by_ratio.items()
                if size in sizes or ratio in sayable.get(tier, {})
            }
            for tier, by_ratio in self.tiers.items()
        }
        tiers = {tier: by_ratio for tier, by_ratio in tiers.items() if SQUARE in by_ratio}
        return replace(self, named=named, tiers=tiers)

    def known(self) -> list[Size]:
        """Every size that the rule itself names."""
        tiers = (size for sizes in self.tiers.values() for size in sizes.values())
        return [self.default, *self.listed, *self.named.values(), *tiers]

    def _supported(self) -> str:
        values = [*self.named, *self.tiers, *map(str, self.listed)] or [str(self.default)]
        text = "Supported values are: " + ", ".join(f"'{value}'" for value in values)
        if self.free is not None:
            free = self.free
            text += f", and any other WIDTHxHEIGHT with sides {free.side_min} to {free.side_max}, "
            text += f"multiples of {free.multiple}, " if free.multiple > 1 else ""
            text += f"{free.pixels_min} to " if free.pixels_min else "at most "
            text += f"{free.pixels_max} pixels"
        return text + "."
