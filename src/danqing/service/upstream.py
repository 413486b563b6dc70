"""What providers said of a task that was relayed to them: its row keeps it, its answer tells it. Knows no HTTP."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from danqing.domain.card import ImageFormat
from danqing.domain.sizes import Size
from danqing.domain.task import DeliveredImage, Linked, Relayed, SafetyLevel


@dataclass(slots=True)
class Upstream:
    """All of a task's relayed requests, and the links that are passed on instead of images."""

    requests: list[Relayed] = field(default_factory=list[Relayed])
    links: dict[int, Linked] = field(default_factory=dict[int, Linked])

    @property
    def seeded(self) -> bool:
        """The task's seeds are what its images were drawn by."""
        return all(request.seeded for request in self.requests)

    def keeping(self, indexes: Collection[int]) -> Upstream:
        """The same with these links alone: the others are nobody's, who has not paid for them."""
        links = {index: link for index, link in self.links.items() if index in indexes}
        return Upstream(self.requests, links)

    def as_json(self) -> dict[str, Any]:
        """Empty where nothing was relayed."""
        if not self.requests and not self.links:
            return {}
        return {
            "requests": [known for request in self.requests if (known := shown(request))],
            "links": {
                str(index): [link.url, str(link.size), link.seed, link.format]
                for index, link in self.links.items()
            },
            "seeded": self.seeded,
        }

    @classmethod
    def of_json(cls, kept: Mapping[str, Any]) -> Upstream:
        """As much of it as answers need: the requests stay as they are in the row."""
        seeded = Relayed("", seeded=kept.get("seeded", True))
        links: dict[int, Linked] = {}
        for index, (url, size, seed, kind) in kept.get("links", {}).items():
            parsed = Size.parse(size)
            assert parsed is not None
            links[int(index)] = Linked(int(index), url, parsed, seed, cast("ImageFormat", kind))
        return cls([seeded], links)


def shown(request: Relayed) -> dict[str, Any]:
    """A request for the row and for the operator; what was not said is left out."""
    facts = {
        "backend": request.backend,
        "upstream_id": request.upstream_id,
        "usage": dict(request.usage),
        "refusal": request.refusal,
    }
    return {name: value for name, value in facts.items() if value}


def passed_on(link: Linked) -> DeliveredImage:
    """A provider's own link as an image of the answer: it is no image of ours, so that it has no id."""
    return DeliveredImage("", link.size, link.seed, link.format, url=link.url)


def worst_of(*found: SafetyLevel) -> tuple[SafetyLevel, ...]:
    """One finding for each role, the worst; in the order they came."""
    worst: dict[str, SafetyLevel] = {}
    for one in found:
        known = worst.get(one.role)
        if known is None or one.level < known.level:
            worst[one.role] = one
    return tuple(worst.values())
