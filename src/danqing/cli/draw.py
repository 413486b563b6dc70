"""`danqing draw`: one drawing with the local engine, no server, no account, nobody charged."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from danqing import catalog
from danqing.app import make_moderator, open_engine
from danqing.cli.progress import StepBar
from danqing.domain.card import Card, ImageFormat
from danqing.domain.errors import InvalidField, MissingField, PromptTooLong, TooManyImages
from danqing.domain.ids import uuid7
from danqing.domain.ports import DrawOrder
from danqing.domain.task import SEED_MAX, Drawn, Failed, ImageTask
from danqing.providers.local import LocalProvider
from danqing.service.delivery import LabelPlan, finish, new_image_id
from danqing.settings import Settings

_FORMATS: dict[str, ImageFormat] = {
    ".png": "png",
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".webp": "webp",
}


@dataclass(frozen=True, slots=True)
class DrawOptions:
    """The command line of one drawing."""

    prompt: str
    model: str
    size: str | None
    n: int | None
    quality: str | None
    seed: int | None
    negative: str
    output: Path | None


async def run(settings: Settings, options: DrawOptions) -> list[Path]:
    """Draw and write the images; returns their paths. Raises DanqingError, OSError."""
    card = catalog.load(settings).find(options.model, "openai")
    task = _task(card, options)
    make_moderator(settings).require({"user": (task.prompt, task.negative_prompt)})
    plan = LabelPlan.of(card, True, False, settings.labels)
    seed = task.seed if task.seed is not None else secrets.randbelow(SEED_MAX + 1)
    format = _format(card, options.output)
    order = DrawOrder(
        task=task,
        card=card,
        task_id=uuid7(),
        account_id="local",
        prompt=task.prompt,
        seeds=tuple((seed + index) % (SEED_MAX + 1) for index in range(task.n)),
    )
    paths: list[Path] = []
    async with open_engine(settings, card.backend.family) as client:
        with StepBar(task.n, card.qualities[task.quality].steps) as bar:
            async with aclosing(LocalProvider(client).draw(order)) as events:
                async for event in events:
                    bar.on_event(event)
                    if isinstance(event, Failed):
                        raise event.error
                    if isinstance(event, Drawn):
                        path = _path(options.output, event, task.n, format)
                        data = await asyncio.to_thread(
                            finish,
                            event.pixels,
                            image_id=new_image_id(),
                            format=format,
                            compression=None,
                            plan=plan,
                            prompt=task.prompt,
                        )
                        path.write_bytes(data)
                        paths.append(path)
    return sorted(paths)


def _task(card: Card, options: DrawOptions) -> ImageTask:
    """The same checks the server makes, naming the command line's options."""
    if not options.prompt.strip():
        raise MissingField("PROMPT")
    for name, text in (("PROMPT", options.prompt), ("--negative", options.negative)):
        if len(text) > card.prompt_chars_max:
            raise PromptTooLong(name, len(text), card.prompt_chars_max)
    n = card.n_default if options.n is None else options.n
    if n > card.n_max:
        raise TooManyImages("--n", card.n_max)
    if n < 1:
        raise InvalidField("'--n' must be at least 1.", "--n")
    quality = options.quality or card.quality_default
    if quality not in card.qualities:
        raise InvalidField(f"'--quality' must be one of {', '.join(card.qualities)}.", "--quality")
    if options.seed is not None and not 0 <= options.seed <= SEED_MAX:
        raise InvalidField(f"'--seed' must be between 0 and {SEED_MAX}.", "--seed")
    size = (
        card.sizes.default if options.size is None else card.sizes.resolve(options.size, "--size")
    )
    return ImageTask(
        model=card.name,
        prompt=options.prompt,
        size=size,
        quality=quality,
        n=n,
        negative_prompt=options.negative,
        seed=options.seed,
    )


def _format(card: Card, output: Path | None) -> ImageFormat:
    if output is None or output.is_dir() or not output.suffix:
        return card.format
    if output.suffix.lower() not in _FORMATS:
        raise InvalidField(f"'--output' must end in one of {', '.join(_FORMATS)}.", "--output")
    return _FORMATS[output.suffix.lower()]


def _path(output: Path | None, drawn: Drawn, n: int, format: ImageFormat) -> Path:
    """A folder gets danqing-SEED.png; a file name gets -1, -2, … where there are several images."""
    if output is None or output.is_dir() or not output.suffix:
        folder = output or Path()
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"danqing-{drawn.seed}.{format}"
    output.parent.mkdir(parents=True, exist_ok=True)
    if n == 1:
        return output
    return output.with_stem(f"{output.stem}-{drawn.index + 1}")
