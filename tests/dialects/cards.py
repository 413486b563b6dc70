"""Small cards for the codecs' tests, shaped as the seeds describe their models. Not the catalog."""

from __future__ import annotations

from typing import Any

from danqing.domain.card import Backend, Card, LabelRule, Preset, Price
from danqing.domain.sizes import Size, SizeRange, SizeRule

SQUARES = (Size(256, 256), Size(512, 512), Size(1024, 1024))


def card(name: str, **changes: Any) -> Card:
    values: dict[str, Any] = {
        "name": name,
        "owner": "tests",
        "created": 1_700_000_000,
        "description": "",
        "aliases": (),
        "sizes": SizeRule(default=Size(1024, 1024), listed=SQUARES),
        "n_default": 1,
        "n_max": 1,
        "prompt_chars_max": 1000,
        "prompt_overlong": "refuse",
        "qualities": {"standard": Preset(steps=8, guidance=4.0)},
        "quality_default": "standard",
        "price": Price("image", {"standard": 5000}),
        "refund": "undelivered",
        "cancel": "prorata",
        "label": LabelRule(visible=False),
        "link_ttl_s": 3600,
        "format": "png",
        "backend": Backend(name="pocket", family="pocket"),
    }
    return Card(**(values | changes))


_PRESET = Preset(steps=8, guidance=4.0)

DRAW = card("draw", aliases=("bc-Img",))
COGVIEW = card(
    "cogview-4-250304",
    sizes=SizeRule(
        default=Size(1024, 1024),
        listed=(Size(1024, 1024), Size(768, 1344)),
        free=SizeRange(side_min=512, side_max=2048, multiple=16, pixels_max=2**21),
    ),
    qualities={"standard": _PRESET, "hd": _PRESET},
)
COGVIEW_FLASH = card("cogview-3-flash")
JIMENG = card(
    "jimeng-4.0",
    sizes=SizeRule(
        default=Size(1024, 1024),
        listed=SQUARES,
        named={"1:1": Size(1024, 1024), "2:3": Size(832, 1248)},
        tiers={
            "1K": {"1:1": Size(1024, 1024), "2:3": Size(832, 1248)},
            "2K": {"1:1": Size(2048, 2048), "2:3": Size(1664, 2496), "9:16": Size(1440, 2560)},
        },
    ),
    n_default=4,
    n_max=4,
    format="jpeg",
    references_max=2,
    features=frozenset({"size_required", "response_format", "watermark", "jimeng"}),
)
DALLE3 = card(
    "dall-e-3",
    sizes=SizeRule(default=Size(1024, 1024), listed=(*SQUARES, Size(1792, 1024), Size(1024, 1792))),
    n_max=10,
    prompt_chars_max=4000,
    qualities={"standard": _PRESET, "hd": _PRESET},
    features=frozenset({"response_format", "style", "revised_prompt"}),
)
GPT_IMAGE = card(
    "gpt-image-1",
    sizes=SizeRule(
        default=Size(1024, 1024),
        listed=(Size(1024, 1024), Size(1536, 1024)),
        named={"auto": Size(1024, 1024)},
    ),
    n_max=10,
    prompt_chars_max=32000,
    qualities={"low": _PRESET, "medium": _PRESET, "high": _PRESET},
    quality_default="medium",
    features=frozenset({"output_format", "b64_default", "echo", "stream"}),
)
SEEDREAM = card(
    "doubao-seedream-4-0-250828",
    aliases=("seedream-4-0-250828",),
    sizes=SizeRule(
        default=Size(2048, 2048),
        tiers={
            "1K": {"1:1": Size(1024, 1024), "16:9": Size(1280, 720), "9:16": Size(720, 1280)},
            "2K": {"1:1": Size(2048, 2048), "16:9": Size(2848, 1600), "9:16": Size(1600, 2848)},
        },
        free=SizeRange(
            side_min=240, side_max=8192, multiple=1, pixels_min=921600, pixels_max=2**24
        ),
    ),
    n_max=15,
    format="jpeg",
    references_max=14,
    features=frozenset({"response_format", "watermark", "sequential", "optimize_fast", "stream"}),
)
SEEDREAM_PRO = card(
    "doubao-seedream-5-0-pro-260628",
    sizes=SizeRule(default=Size(2048, 2048), tiers=SEEDREAM.sizes.tiers, default_tier="2K"),
    format="jpeg",
    references_max=10,
    features=frozenset({"response_format", "watermark", "output_format"}),
)
QWEN = card(
    "qwen-image",
    sizes=SizeRule(default=Size(1664, 928), listed=(Size(1664, 928), Size(1328, 1328))),
    prompt_chars_max=800,
    prompt_overlong="truncate",
    features=frozenset({"revised_prompt"}),
)
QWEN_2 = card(
    "qwen-image-2.0",
    sizes=SizeRule(
        default=Size(2048, 2048),
        listed=(Size(2688, 1536),),
        free=SizeRange(side_min=128, side_max=8192, multiple=1, pixels_min=2**18, pixels_max=2**22),
    ),
    n_max=6,
    prompt_chars_max=1300,
    prompt_overlong="truncate",
    references_max=3,
    features=frozenset({"revised_prompt"}),
)

CARDS = {
    found.name: found
    for found in (
        DRAW,
        COGVIEW,
        COGVIEW_FLASH,
        JIMENG,
        DALLE3,
        GPT_IMAGE,
        QWEN,
        QWEN_2,
        SEEDREAM,
        SEEDREAM_PRO,
    )
}
