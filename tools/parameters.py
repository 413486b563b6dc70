"""Writes docs/parameters.md: every parameter of every dialect, tried on every model of the catalog. `make docs`; a test compares.

Nothing in the table is somebody's word: each value below is put into a request, the codec decodes it, and what became
of the task says whether it was honoured, refused by name, or ignored and told.
"""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel

from danqing import catalog
from danqing.dialects.base import Dialect, Upload
from danqing.dialects.chat import MEANINGLESS
from danqing.dialects.client import Target
from danqing.dialects.forms import FormBody
from danqing.dialects.jimeng import JimengHabits
from danqing.dialects.registry import CLIENTS, DIALECTS, client_of
from danqing.domain.card import Card
from danqing.domain.errors import DanqingError, RequestError
from danqing.domain.sizes import Size
from danqing.domain.task import Delivery, ImageSource, ImageTask, InputImage
from danqing.settings import Settings

TARGET = Path(__file__).parent.parent / "docs" / "parameters.md"

# The smallest PNG there is: what a picture looks like is not the codec's business.
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
PICTURE = "data:image/png;base64," + base64.b64encode(PIXEL).decode()

Outcome = Literal["honoured", "refused", "ignored", "same"]


@dataclass(frozen=True)
class Default:
    """A value that asks for what is done anyway, so that nothing may change."""

    value: Any


@dataclass(frozen=True)
class With:
    """A value that means something only beside others."""

    value: Any
    also: dict[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    """Parameters of the plain request that it takes the place of."""


TRIED = (
    *("1024x1024", "2048x2048", "1280x1280", "1440x1440", "1360x1360"),
    *("1024x768", "512x512", "2304x1728", "4096x4096"),
)


def other_size(card: Card) -> str:
    """A size of the model that is not its default."""
    for size in (*map(str, card.sizes.listed), *card.sizes.named, *TRIED):
        try:
            if card.sizes.resolve(size, "size") != card.sizes.default:
                return size
        except RequestError:
            continue
    raise ValueError(f"{card.name} has one size only")


def other_size_starred(card: Card) -> str:
    return other_size(card).replace("x", "*")


def other_quality(card: Card) -> str:
    """A quality that is not the default; one that no model has where there is none."""
    return next((name for name in card.qualities if name != card.quality_default), "ultra")


def bad_size(_card: Card) -> str:
    return "1x1"


Probe = Any
"""A value, a `Default`, a `With`, or a function of the card that makes a value."""

COMMON: dict[str, list[Probe]] = {
    "n": [Default(None), 2, 3],
    "size": [other_size, bad_size],
    "seed": [7],
    "negative_prompt": ["rain"],
    "user": ["somebody"],
}
STYLE: dict[str, list[Probe]] = {"style": ["vivid", "natural"]}
QUALITY: dict[str, list[Probe]] = {"quality": [other_quality, "no-such-quality"]}
MESSAGES: dict[str, list[Probe]] = {
    "input.messages": [[{"role": "user", "content": [{"text": "a dog"}]}]],
}
PARAMETERS: dict[str, list[Probe]] = {
    "parameters.negative_prompt": ["rain"],
    "parameters.prompt_extend": [True, False],
    "parameters.watermark": [Default(False), True],
    "parameters.size": [other_size_starred, "1*1"],
    "parameters.n": [2],
    "parameters.seed": [7],
}
NATIVE: dict[str, list[Probe]] = {
    "parameters.is_async": [Default(True), Default(False)],
    "parameters.enable_sequential": [Default(False), True],
    "parameters.enable_thinking": [Default(False), True],
    "parameters.thinking_mode": [Default(False), True],
}
"""`is_async` is what the SDK writes beside the header that counts."""


TALK = [
    {"role": "user", "content": "a dog"},
    {"role": "assistant", "content": f"![image]({PICTURE})"},
    {"role": "user", "content": "make it red"},
]


@dataclass(frozen=True)
class Subject:
    """One dialect: a request without anything optional, and what to try."""

    title: str
    base: Callable[[Card], dict[str, Any]]
    probes: dict[str, list[Probe]]
    beside: frozenset[str] = field(default_factory=frozenset[str])
    """Parameters that are not fields of the dialect's body model."""


SIZE = ("size",)


def _prompt(card: Card) -> dict[str, Any]:
    needs_size = "size_required" in card.features
    return {"prompt": "a cat"} | ({"size": str(card.sizes.default)} if needs_size else {})


def _edit(_card: Card) -> dict[str, Any]:
    return {"prompt": "a cat", "images": [{"image_url": PICTURE}]}


def _variation(_card: Card) -> dict[str, Any]:
    return FormBody({"image": Upload(PIXEL, "image.png", "image/png")})


def _chat(_card: Card) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "a cat"}]}


def _dashscope(_card: Card) -> dict[str, Any]:
    return {"input": {"messages": [{"role": "user", "content": [{"text": "a cat"}]}]}}


SUBJECTS: dict[str, Subject] = {
    "openai": Subject(
        "OpenAI: `POST /v1/images/generations`",
        _prompt,
        COMMON
        | STYLE
        | QUALITY
        | {
            "prompt": ["a dog"],
            "response_format": ["url", "b64_json"],
            "safety_identifier": ["somebody"],
            "output_format": ["png", "jpeg", "webp"],
            "output_compression": [40, With(40, {"output_format": "jpeg"})],
            "background": [Default("auto"), Default("opaque"), "transparent"],
            "moderation": [Default("auto"), "low"],
            "stream": [Default(False), True],
            "partial_images": [Default(0), With(2, {"stream": True})],
            "watermark": [Default(True), False],
            "ratio": [With("16:9", without=SIZE), With("16:9", {"size": "1:1"})],
            "resolution": [With("1k", {"ratio": "16:9"}, SIZE)],
            "intelligent_ratio": [With(True, {"prompt": "16:9, a cat"}, SIZE)],
            "width": [With(512, {"height": 512}, SIZE)],
            "height": [With(512, {"width": 512}, SIZE)],
            "sample_strength": [0.3, With(0.3, {"image": PICTURE})],
            "image": [PICTURE],
            "images": [[PICTURE]],
        },
        frozenset(JimengHabits.model_fields),
    ),
    "openai_edits": Subject(
        "OpenAI: `POST /v1/images/edits` (in JSON; a form has `image`, `image[]` and `mask` as files)",
        _edit,
        COMMON
        | QUALITY
        | {
            "prompt": ["a dog"],
            "images": [[{"image_url": PICTURE + "A"}], [{"file_id": "file-1"}]],
            "mask": [{"image_url": PICTURE}],
            "response_format": ["url", "b64_json"],
            "safety_identifier": ["somebody"],
            "output_format": ["png", "jpeg", "webp"],
            "output_compression": [40, With(40, {"output_format": "jpeg"})],
            "background": [Default("auto"), Default("opaque"), "transparent"],
            "moderation": [Default("auto"), "low"],
            "input_fidelity": [Default("low"), "high"],
            "strength": [0.3, 2],
            "stream": [Default(False), True],
            "partial_images": [Default(0), With(2, {"stream": True})],
            "watermark": [Default(True), False],
        },
    ),
    "openai_variations": Subject(
        "OpenAI: `POST /v1/images/variations` (a form with the file `image`)",
        _variation,
        COMMON
        | {
            "response_format": ["url", "b64_json"],
            "watermark": [Default(True), False],
            "strength": [0.3, 2],
        },
    ),
    "chat": Subject(
        "Chat: `POST /v1/chat/completions` with `messages`",
        _chat,
        COMMON
        | QUALITY
        | {
            "messages": [
                [{"role": "user", "content": "a dog"}],
                [
                    {
                        "role": "user",
                        "content": [
                            {"type": "text", "text": "a cat"},
                            {"type": "image_url", "image_url": {"url": PICTURE}},
                        ],
                    }
                ],
            ],
            "safety_identifier": ["somebody"],
            "stream": [Default(False), True],
            "stream_options": [{"include_usage": True}],
            "edit_last_image": [Default(False), With(True, {"messages": TALK})],
            "modalities": [Default(["text", "image"]), ["audio"]],
            "response_format": [Default("url"), "b64_json", {"type": "json_object"}],
            "logprobs": [Default(False), True],
            "top_logprobs": [2],
            "tools": [Default([]), [{"type": "function"}]],
            "functions": [Default([]), [{"name": "f"}]],
        }
        | {name: [1] for name in sorted(MEANINGLESS)},
        MEANINGLESS,
    ),
    "draw": Subject(
        "Draw: `POST /v1/chat/completions` with `prompt`",
        lambda _card: {"prompt": "a cat"},
        COMMON | {"prompt": ["a dog"], "stream": [Default(False), True]},
    ),
    "zhipu": Subject(
        "Zhipu: `POST /paas/v4/images/generations`, and `/async/images/generations`",
        lambda _card: {"prompt": "a cat"},
        COMMON
        | STYLE
        | QUALITY
        | {
            "prompt": ["a dog"],
            "watermark_enabled": [Default(True), False],
            "user_id": ["somebody", With("somebody", {"user": "another"})],
            "stream": [Default(False), True],
            "request_id": ["request-1"],
            "response_format": [Default("url"), "b64_json"],
            "sensitive_word_check": [
                Default({"type": "ALL", "status": "ENABLE"}),
                {"type": "ALL", "status": "DISABLE"},
            ],
        },
    ),
    "dashscope": Subject(
        "Qwen-Image on OpenAI's path: `POST /v1/images/generations` with `input`",
        _dashscope,
        MESSAGES | PARAMETERS | {"input.prompt": ["a dog"], "input.negative_prompt": ["rain"]},
    ),
    "dashscope_native": Subject(
        "DashScope with messages: `POST /api/v1/services/aigc/multimodal-generation/generation`, "
        "`…/image-generation/generation`",
        _dashscope,
        MESSAGES
        | PARAMETERS
        | NATIVE
        | {"input.prompt": ["a dog"], "input.negative_prompt": ["rain"]},
    ),
    "dashscope_synthesis": Subject(
        "DashScope with a prompt: `POST /api/v1/services/aigc/text2image/image-synthesis`, "
        "`…/image2image/image-synthesis`",
        lambda _card: {"input": {"prompt": "a cat"}},
        MESSAGES
        | PARAMETERS
        | NATIVE
        | {
            "input.prompt": ["a dog"],
            "input.negative_prompt": ["rain"],
            "input.images": [[PICTURE]],
        },
    ),
    "ark": Subject(
        "Volcengine Ark: `POST /api/v3/images/generations`",
        lambda _card: {"prompt": "a cat"},
        COMMON
        | {
            "prompt": ["a dog"],
            "image": [PICTURE, [PICTURE]],
            "seed": [7, Default(-1)],
            "guidance_scale": [5.0],
            "sequential_image_generation": [
                Default("disabled"),
                With("auto", {"sequential_image_generation_options": {"max_images": 2}}),
            ],
            "sequential_image_generation_options": [{"max_images": 2}],
            "stream": [Default(False), True],
            "response_format": [Default("url"), "b64_json"],
            "watermark": [Default(True), False],
            "optimize_prompt": [Default(False), True],
            "optimize_prompt_options": [{"mode": "standard"}, {"mode": "fast"}],
            "output_format": ["png", "jpeg"],
            "tools": [[{"type": "web_search"}]],
            "background": ["transparent"],
            "layer_decomposition": [Default(False), True],
        },
    ),
}
SUBJECTS["ark"].probes.pop("n")  # Ark has none

APART = frozenset({"model"})
"""Read before the codec: a name or alias of the catalog, else an error that names it."""


def cards() -> list[Card]:
    """Every model of the built-in catalog."""
    return list(catalog.load(Settings()).cards.values())


def paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The parameters of a body: the fields of its objects, but for those that an SDK names as one."""
    for name, found in model.model_fields.items():
        parts = [found.annotation, *get_args(found.annotation)]
        inner = next(
            (one for one in parts if isinstance(one, type) and issubclass(one, BaseModel)), None
        )
        if inner is not None and not prefix and name in ("input", "parameters"):
            yield from paths(inner, f"{name}.")
        else:
            yield prefix + name


def put(body: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The body with a value at the path."""
    changed = copy.deepcopy(body)
    place = changed
    *above, last = path.split(".")
    for name in above:
        place = place.setdefault(name, {})
    place[last] = value
    return changed


def outcome(dialect: Dialect, card: Card, base: dict[str, Any], path: str, given: Any) -> Outcome:
    """What becomes of a value. Raises ValueError where an error names another parameter."""
    plain, value = base, given
    if isinstance(given, With):
        value = given.value
        plain = copy.deepcopy(base)
        for name in given.without:
            plain.pop(name, None)
        plain.update(given.also)
    try:
        before = dialect.decode_request(plain, card)
    except RequestError:  # what stands beside it needs it
        before = dialect.decode_request(base, card)
    try:
        after = dialect.decode_request(put(plain, path, value), card)
    except RequestError as error:
        named = (error.param or "").replace("]", "").replace("[", ".")
        beside = given.also if isinstance(given, With) else {}
        known = {path, path.split(".")[0] if beside else path, *beside}
        if not any(f"{named}.".startswith(f"{one}.") for one in known) and not _of_one(error):
            raise ValueError(f"{path} of {card.name}: {named}: {error}") from error
        return "refused"
    if path in after[1].ignored and path not in before[1].ignored:
        return "ignored"
    return "same" if after == before else "honoured"


def _of_one(error: DanqingError) -> bool:
    return "n=1" in error.message


@dataclass
class Row:
    """What becomes of one parameter's values, by model."""

    path: str
    tried: dict[str, dict[Outcome, list[str]]] = field(default_factory=dict)
    """Value as shown → outcome → models."""
    by_model: dict[str, set[Outcome]] = field(default_factory=dict)
    """What became of the values that ask for something, by model."""

    @property
    def silent(self) -> list[str]:
        """Models that take every value and do nothing with any of them."""
        return [model for model, found in self.by_model.items() if found == {"same"}]


def probe(name: str) -> list[Row]:
    """Try every parameter of a dialect on every model that takes its plain request."""
    dialect, subject = DIALECTS[name], SUBJECTS[name]
    takers: list[tuple[Card, dict[str, Any]]] = []
    for card in cards():
        base = subject.base(card)
        try:
            dialect.decode_request(base, card)
        except RequestError:
            continue
        takers.append((card, base))
    return [_row(dialect, takers, path, values) for path, values in subject.probes.items()]


def _row(
    dialect: Dialect, takers: list[tuple[Card, dict[str, Any]]], path: str, values: list[Probe]
) -> Row:
    row = Row(path)
    for given in values:
        is_default = isinstance(given, Default)
        for card, base in takers:
            value = given.value if is_default else given(card) if callable(given) else given
            shown = _shown(given, value)
            found = outcome(dialect, card, base, path, value)
            row.tried.setdefault(shown, {}).setdefault(found, []).append(card.name)
            if not is_default:
                row.by_model.setdefault(card.name, set()).add(found)
    return row


def _shown(given: Probe, value: Any) -> str:
    if isinstance(given, With):
        beside = f" with `{'`, `'.join(given.also)}`" if given.also else ""
        instead = f" without `{'`, `'.join(given.without)}`" if given.without else ""
        return f"{_shown(None, given.value)}{beside}{instead}"
    if callable(given):
        return {
            "other_size": "another size of the model",
            "other_size_starred": "another size of the model",
            "other_quality": "another quality of the model",
        }.get(given.__name__, f"`{json.dumps(value)}`")
    text = json.dumps(value, ensure_ascii=False)
    return f"`{text.replace(PICTURE, 'data:…')}`"


def client_table() -> list[str]:
    """What a relay can say to each kind of provider, from `unsupported`."""
    rows = ["| |" + "".join(f" {name} |" for name in CLIENTS), "|---|" + "---|" * len(CLIENTS)]
    for name in TASK_PROBES:
        task, delivery = before_and_after(name)[1]
        cells = []
        for client_name, client in CLIENTS.items():
            if name not in client_of(client_name, frozenset()).unsupported(task, delivery):
                cells.append("yes")
            elif name not in client.unsupported(task, delivery):
                cells.append("an extra")
            else:
                cells.append("refused")
        rows.append(f"| {TASK_WORDS.get(name, f'`{name}`')} |" + "".join(f" {c} |" for c in cells))
    return rows


Asked = tuple[ImageTask, Delivery]


def before_and_after(name: str) -> tuple[Asked, Asked]:
    """A plain task, and one with a field set; what the field needs to make sense is in both."""
    values = TASK_PROBES[name]
    plain, changed = ImageTask("m", "a cat", _SIZE, "standard"), Delivery()
    needs = {key: value for key, value in values.items() if key != name}
    if name in Delivery.__dataclass_fields__:
        return (plain, replace(changed, **needs)), (plain, replace(changed, **values))
    return (replace(plain, **needs), changed), (replace(plain, **values), changed)


def target_of(task: ImageTask) -> Target:
    """Where it goes, with the pictures it needs."""
    picture = InputImage(PIXEL, "png", Size(1, 1))
    return Target("m", (picture,) if task.references else (), picture if task.mask else None)


_SIZE = Size(1024, 1024)
_SOURCE = ImageSource("image", PIXEL)
TASK_PROBES: dict[str, dict[str, Any]] = {
    "prompt": {"prompt": "", "references": (_SOURCE,)},
    "size": {"size": Size(512, 512)},
    "quality": {"quality": "hd"},
    "n": {"n": 2},
    "negative_prompt": {"negative_prompt": "rain"},
    "style": {"style": "vivid"},
    "seed": {"seed": 7},
    "prompt_extend": {"prompt_extend": True},
    "ai_label": {"ai_label": False},
    "brand_mark": {"brand_mark": True},
    "end_user": {"end_user": "somebody"},
    "client_request_id": {"client_request_id": "request-1"},
    "history": {"history": ("before",)},
    "references": {"references": (_SOURCE,)},
    "mask": {"references": (_SOURCE,), "mask": _SOURCE},
    "strength": {"references": (_SOURCE,), "strength": 0.5},
    "input_fidelity": {"references": (_SOURCE,), "input_fidelity": "high"},
    "moderation": {"moderation": "low"},
    "transparent": {"transparent": True},
    "form": {"form": "b64_json"},
    "format": {"format": "webp"},
    "compression": {"format": "jpeg", "compression": 50},
}
TASK_WORDS = {
    "prompt": "no prompt (a variation)",
    "ai_label": "without the AI label",
    "brand_mark": "with the brand mark (where refused, it is drawn here)",
    "references": "pictures to start from",
    "transparent": "no background",
    "form": "answer in base64",
}


def render() -> str:
    lines = [
        "# Parameters",
        "",
        "Made from the codecs by `make docs`: each value was put into a request, for every model of the built-in",
        "catalog that takes the dialect's plain request, and what became of it is in the table. A test does the same and",
        "fails where a parameter has no row, where a value is dropped in silence, or where this page is out of date.",
        "",
        "*Honoured*: the value changes what is drawn or how it is answered. *No change*: it asks for what is done anyway.",
        "*Refused*: an error in the dialect's shape that names the parameter. *Ignored*: accepted, and named in the header",
        "`x-danqing-ignored`. A parameter that is in no row is refused by name. `null` counts as absent everywhere. `model` is",
        "a name or alias of the catalog; `gpt-image-*` are all whose names begin so, and *all others* are the rest of the models.",
        "",
    ]
    for name, subject in SUBJECTS.items():
        rows = probe(name)
        lines += [
            f"## {subject.title}",
            "",
            "| parameter | value | what becomes of it |",
            "|---|---|---|",
        ]
        for row in rows:
            for shown, found in row.tried.items():
                lines.append(f"| `{row.path}` | {shown} | {_told(found)} |")
        lines.append("")
    lines += [
        "## As a relay says it",
        "",
        "What of a task reaches a provider, by the dialect its backend speaks. *An extra*: where the backend's `extras` say that",
        "the provider knows the field. *Refused*: the caller gets an error that names the field.",
        "",
        *client_table(),
        "",
    ]
    return "\n".join(lines)


WORDS: dict[Outcome, str] = {
    "honoured": "honoured",
    "same": "no change",
    "refused": "refused",
    "ignored": "ignored",
}


def _told(found: dict[Outcome, list[str]]) -> str:
    """What becomes of a value: of the most models in one word, of the others by name."""
    everybody = [name for names in found.values() for name in names]
    groups = [(kind, found[kind]) for kind in WORDS if found.get(kind)]
    most = max(groups, key=lambda group: len(group[1]))
    if len(groups) == 1:
        return WORDS[most[0]]
    few = [
        f"{WORDS[kind]}: {', '.join(grouped(names, everybody))}"
        for kind, names in groups
        if kind != most[0]
    ]
    return "; ".join([*few, f"{WORDS[most[0]]}: all others"])


def grouped(names: list[str], everybody: list[str]) -> Iterator[str]:
    """Names in order; `gpt-image-*` for several where all of `everybody` that begin so are among them."""
    left = list(names)
    while left:
        first = left[0]
        heads = [first[: at + 1] for at, sign in enumerate(first) if sign in "-."]
        for head in heads:
            family = [name for name in everybody if name.startswith(head)]
            if len(family) > 1 and set(family) <= set(names):
                same = [one for one in heads if all(name.startswith(one) for name in family)]
                yield f"`{same[-1]}*`"
                left = [name for name in left if name not in family]
                break
        else:
            yield f"`{first}`"
            left = left[1:]


if __name__ == "__main__":
    TARGET.write_text(render(), "utf-8")
