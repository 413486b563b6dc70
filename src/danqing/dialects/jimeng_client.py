"""jimeng's relays (iptag/jimeng-api, jimeng-free-api) seen from their client. Pure; knows no HTTP library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from danqing.dialects.answers import check_extras, data_url, openais_own, refuse_unsaid
from danqing.dialects.client import ClientDialect, Incoming, Outgoing, ProviderResult, Target
from danqing.dialects.openai_client import OpenAIClient
from danqing.domain.errors import DanqingError
from danqing.domain.sizes import Size
from danqing.domain.task import Delivery, ImageTask

EXTRAS = frozenset({"width", "images", "seed", "user", "watermark"})
"""Fields that not every relay knows. `width` (and `height`) are jimeng-free-api's, in place of `ratio` and
`resolution`; the others are ours."""

IMAGES_MAX = 4
"""It draws four whatever is asked for; who knows `n` draws no more than that."""

SIZES: dict[str, dict[str, str]] = {
    # 4:3 and 3:4 are swapped there, so neither is said.
    "1k": {
        "1:1": "1024x1024",
        "16:9": "1024x576",
        "9:16": "576x1024",
        "3:2": "1024x682",
        "2:3": "682x1024",
        "21:9": "1195x512",
    },
    "2k": {
        "1:1": "2048x2048",
        "4:3": "2304x1728",
        "3:4": "1728x2304",
        "16:9": "2560x1440",
        "9:16": "1440x2560",
        "3:2": "2496x1664",
        "2:3": "1664x2496",
        "21:9": "3024x1296",
    },
    "4k": {
        "1:1": "4096x4096",
        "4:3": "4608x3456",
        "3:4": "3456x4608",
        "16:9": "5120x2880",
        "9:16": "2880x5120",
        "3:2": "4992x3328",
        "2:3": "3328x4992",
        "21:9": "6048x2592",
    },
}
"""iptag/jimeng-api's table: resolution → ratio → width x height."""

_SAID = {size: (ratio, tier) for tier, ratios in SIZES.items() for ratio, size in ratios.items()}

_RATIOS = {
    tier.upper(): {ratio: Size(*map(int, size.split("x"))) for ratio, size in ratios.items()}
    for tier, ratios in SIZES.items()
}

_OPENAI = OpenAIClient()


@dataclass(frozen=True)
class JimengClient(ClientDialect):
    """The client side. Answers are OpenAI's, failures come with HTTP 200."""

    name = "jimeng"

    extras: frozenset[str] = EXTRAS

    def __post_init__(self) -> None:
        check_extras(self.extras, EXTRAS)

    @property
    def ratios(self) -> Mapping[str, Mapping[str, Size]]:
        return {} if "width" in self.extras else _RATIOS

    def unsupported(self, task: ImageTask, delivery: Delivery) -> frozenset[str]:
        pictures = "images" in self.extras
        said = {
            "prompt": not task.prompt,
            "size": "width" not in self.extras and str(task.size) not in _SAID,
            "quality": task.quality not in ("", "standard"),
            "n": task.n > IMAGES_MAX,
            "style": task.style is not None,
            "seed": task.seed is not None and "seed" not in self.extras,
            "prompt_extend": task.prompt_extend,
            "ai_label": not task.ai_label and "watermark" not in self.extras,
            "end_user": task.end_user is not None and "user" not in self.extras,
            "client_request_id": task.client_request_id is not None,
            "history": bool(task.history),
            "references": bool(task.references) and not pictures,
            "fit_reference": task.fit_reference,
            "strength": task.strength is not None and not (task.references and pictures),
            "brand_mark": task.brand_mark,
        }
        unsaid = frozenset(name for name, cannot in said.items() if cannot)
        return unsaid | openais_own(task, delivery)

    def encode_request(self, task: ImageTask, delivery: Delivery, target: Target) -> Outgoing:
        refuse_unsaid(self.unsupported(task, delivery))
        fields: dict[str, Any] = {
            "model": target.model,
            "prompt": task.prompt,
            "n": task.n,
            "response_format": delivery.form,
        }
        if "width" in self.extras:
            fields["width"], fields["height"] = task.size
        else:
            fields["ratio"], fields["resolution"] = _SAID[str(task.size)]
        optional = {
            "negative_prompt": task.negative_prompt or None,
            "seed": task.seed,
            "user": task.end_user,
            "watermark": None if task.ai_label else False,
            "images": [data_url(image) for image in target.references] or None,
            "sample_strength": task.strength,
        }
        fields |= {name: value for name, value in optional.items() if value is not None}
        return Outgoing("POST", "/images/generations", json=fields)

    def decode_result(self, answer: Incoming, task: ImageTask) -> ProviderResult:
        return _OPENAI.decode_result(answer, task)

    def decode_error(self, answer: Incoming) -> DanqingError | None:
        return _OPENAI.decode_error(answer)
