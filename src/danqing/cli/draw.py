"""`danqing draw`: one drawing with the local engine or a relay, no server, no account, nobody charged."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from pathlib import Path

from danqing import catalog
from danqing.app import open_provider
from danqing.cli.progress import StepBar
from danqing.domain.card import Card, ImageFormat
from danqing.domain.errors import (
    InvalidField,
    InvalidImage,
    MissingField,
    ModelNotFound,
    PromptTooLong,
    TooManyImages,
)
from danqing.domain.ids import uuid7
from danqing.domain.ports import DrawOrder
from danqing.domain.task import SEED_MAX, Drawn, Failed, ImageTask, InputImage
from danqing.guard import open_screen
from danqing.labelling import found_keys, make_finisher
from danqing.service.delivery import new_image_id
from danqing.service.finishing import LabelPlan
from danqing.settings import Settings
from danqing.storage.inputs import read_mask, read_reference, read_repainted

PIXELS_MAX = 50_000_000
"""Of a reference or mask; it is one's own machine, but a picture decodes to four bytes a pixel."""

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
    reference: Path | None = None
    mask: Path | None = None
    strength: float | None = None


@dataclass(frozen=True, slots=True)
class Pictures:
    """The files of an edit, checked."""

    reference: InputImage | None = None
    mask: InputImage | None = None


async def run(settings: Settings, options: DrawOptions) -> list[Path]:
    """Draw and write the images; returns their paths. Raises DanqingError, OSError."""
    models = catalog.load(settings)
    card = _find(models, options.model)
    pictures = await asyncio.to_thread(_pictures, card, options)
    task = _task(card, options, pictures)
    plan = LabelPlan.of(card, task, False, settings.labels)
    finisher = make_finisher(settings, found_keys(settings))
    seed = task.seed if task.seed is not None else secrets.randbelow(SEED_MAX + 1)
    format = _format(card, options.output)
    order = DrawOrder(
        task=task,
        card=card,
        task_id=uuid7(),
        account_id="local",
        prompt=task.prompt,
        seeds=tuple((seed + index) % (SEED_MAX + 1) for index in range(task.n)),
        references=(pictures.reference,) if pictures.reference else (),
        mask=pictures.mask,
    )
    paths: list[Path] = []
    async with AsyncExitStack() as stack:
        screen = await stack.enter_async_context(open_screen(settings, models))
        await screen.texts({"user": (task.prompt, task.negative_prompt)})
        for picture in order.references:
            await screen.picture(picture.data)
        provider = await stack.enter_async_context(open_provider(settings, models, card))
        await provider.check(task, card)
        with StepBar(task.n, card.qualities[task.quality].steps) as bar:
            async with aclosing(provider.draw(order)) as events:
                async for event in events:
                    bar.on_event(event)
                    if isinstance(event, Failed):
                        raise event.error
                    if isinstance(event, Drawn):
                        await screen.image(event.pixels)
                        path = _path(options.output, event, task.n, format)
                        data = await asyncio.to_thread(
                            finisher.finish,
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


def _find(models: catalog.Catalog, name: str) -> Card:
    """Raises InvalidField: ModelNotFound names a route, and here is no server."""
    try:
        return models.find(name, "openai")
    except ModelNotFound as error:
        hint = f" Did you mean '{error.meant}'?" if error.meant else ""
        raise InvalidField(
            f"The model '{name[:100]}' does not exist: `danqing models list` lists those that do.{hint}",
            "--model",
        ) from None


def _pictures(card: Card, options: DrawOptions) -> Pictures:
    """Read and check the edit's files. Raises InvalidField, OSError."""
    if options.reference is None:
        for name, value in (("--mask", options.mask), ("--strength", options.strength)):
            if value is not None:
                raise InvalidField(f"'{name}' needs '--reference'.", name)
        return Pictures()
    if card.references_max < 1:
        raise InvalidField(f"'{card.name}' takes no '--reference'.", "--reference")
    if options.strength is not None and not 0 <= options.strength <= 1:
        raise InvalidField("'--strength' must be between 0 and 1.", "--strength")
    read = read_reference if options.mask is None else read_repainted
    reference = _read(options.reference, "--reference", read)
    if options.mask is None:
        return Pictures(reference)
    mask = _read(options.mask, "--mask", read_mask)
    if mask.size != reference.size:
        raise InvalidImage(
            f"'--mask' is {mask.size}, but the reference is {reference.size}.", "--mask"
        )
    return Pictures(reference, mask)


def _read(path: Path, param: str, read: Callable[..., InputImage]) -> InputImage:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InvalidImage(f"'{param}': there is no file {path}.", param) from None
    try:
        return read(data, pixels_max=PIXELS_MAX)
    except ValueError as error:
        raise InvalidImage(f"'{param}' {error}.", param) from None


def _task(card: Card, options: DrawOptions, pictures: Pictures) -> ImageTask:
    """The same checks the server makes, naming the command line's options."""
    if not options.prompt.strip() and pictures.reference is None:
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
    if options.size is not None:
        size = card.sizes.resolve(options.size, "--size")
    elif pictures.reference is not None:
        size = card.sizes.nearest(pictures.reference.size)
    else:
        size = card.sizes.default
    return ImageTask(
        model=card.name,
        prompt=options.prompt,
        size=size,
        quality=quality,
        n=n,
        negative_prompt=options.negative,
        seed=options.seed,
        strength=options.strength,
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
