"""The local provider: an order becomes jobs, the engine's events become the domain's."""

from __future__ import annotations

import asyncio
import io
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from danqing import catalog
from danqing.domain.card import Preset
from danqing.domain.errors import EngineFailed, PromptTooLong, UnsupportedField
from danqing.domain.pipelines import PIPELINES
from danqing.domain.ports import DrawOrder
from danqing.domain.sizes import Size
from danqing.domain.task import Drawn, Event, ImageSource, ImageTask, InputImage, Preview, Stepped
from danqing.engine.client import InProcessClient
from danqing.engine.core import EngineCore
from danqing.engine.messages import Job
from danqing.providers.local import LocalProvider
from danqing.settings import Settings
from tests.engine.null_family import WORDS_MAX, NullFamily


def order(**changes: Any) -> DrawOrder:
    card = catalog.load(Settings()).find("pocket", "openai")
    task = ImageTask("pocket", "a cat", Size(64, 128), "standard", n=2)
    fields = {"task_id": "t", "account_id": "a", "prompt": "a cat", "seeds": (5, 6)}
    return DrawOrder(task=task, card=card, **(fields | changes))  # type: ignore[arg-type]


async def drawn(family: NullFamily, asked: DrawOrder) -> list[Event]:
    client = InProcessClient(EngineCore(lambda: family, warm_up=None))
    await client.ready()
    try:
        async with aclosing(LocalProvider(client).draw(asked)) as events:
            return [event async for event in events]
    finally:
        await client.close()


def test_an_order_yields_its_images_and_the_looks_asked_for() -> None:
    family = NullFamily(step_s=0.002)
    events = asyncio.run(drawn(family, order(previews=2)))
    images = [event for event in events if isinstance(event, Drawn)]
    assert sorted((image.index, image.seed) for image in images) == [(0, 5), (1, 6)]
    assert {event.steps for event in events if isinstance(event, Stepped)} == {8}
    looks = [event for event in events if isinstance(event, Preview)]
    assert {look.index for look in looks} == {0, 1}
    for look in looks:
        assert (look.step, look.steps) == ((2, 5)[look.number], 8)
        assert look.pixels.shape == (128, 64, 3)
        assert np.all(look.pixels == 5 + look.index + look.step)


EDIT: dict[str, Any] = {"references": (ImageSource("image", data=b"x"),)}


@pytest.mark.parametrize(
    ("pipeline", "guidance", "changes", "refused"),
    [
        ("sdxl", 5.0, {"negative_prompt": "blue", "strength": 0.5}, None),
        ("sdxl", 1.0, {"negative_prompt": "blue"}, "negative_prompt"),
        ("sd_turbo", 0.0, {"negative_prompt": "blue"}, "negative_prompt"),
        ("z_image", 0.5, {"negative_prompt": "blue"}, None),
        ("flux", 3.5, {"negative_prompt": "blue"}, "negative_prompt"),
        ("flux2_klein", 1.0, {"strength": 0.5}, "strength"),
        ("flux2_klein", 1.0, {"strength": 0.5, "mask": ImageSource("mask", data=b"x")}, None),
        ("pixart_sigma", 4.5, {"mask": ImageSource("mask", data=b"x")}, "mask"),
        ("flux2_klein", 1.0, EDIT | {"size": Size(48, 64)}, "size"),
        ("flux2_klein", 1.0, EDIT | {"size": Size(64, 520)}, "size"),
        ("flux2_klein", 1.0, EDIT | {"size": Size(49, 512)}, None),
        ("flux2_klein", 1.0, EDIT | {"size": Size(16, 16), "mask": ImageSource("mask", data=b"x")}, None),
        ("flux2_klein", 1.0, {"size": Size(16, 16)}, None),
        ("sdxl", 5.0, EDIT | {"size": Size(16, 16)}, None),
        (None, 3.0, {"negative_prompt": "blue", "strength": 0.5}, None),
    ],
)  # fmt: skip
def test_what_a_pipeline_has_no_place_for_is_refused_by_name(
    pipeline: str | None, guidance: float, changes: dict[str, Any], refused: str | None
) -> None:
    asked = order()
    facts = None if pipeline is None else PIPELINES[pipeline]
    card = replace(
        asked.card,
        backend=replace(asked.card.backend, pipeline=facts),
        qualities={"standard": Preset(4, guidance)},
    )
    provider = LocalProvider(InProcessClient(EngineCore(NullFamily, warm_up=None)))
    task = replace(asked.task, **changes)
    if refused is None:
        asyncio.run(provider.check(task, card))
        return
    with pytest.raises(UnsupportedField) as caught:
        asyncio.run(provider.check(task, card))
    assert caught.value.param == refused
    assert refused in str(caught.value)


def test_a_size_that_the_device_has_no_memory_for_is_refused_by_name() -> None:
    """Where orders are checked: before anything is held, and not by running out of memory."""

    async def main() -> None:
        client = InProcessClient(EngineCore(lambda: NullFamily(pixels_max=8192), warm_up=None))
        asked = order()
        provider = LocalProvider(client)
        larger = replace(asked.task, size=Size(64, 129))
        await provider.check(larger, asked.card)  # nothing is loaded: nobody knows
        await client.ready()
        try:
            await provider.check(asked.task, asked.card)  # 64 x 128
            with pytest.raises(UnsupportedField, match=r"64x129 has 8256 pixels.*memory for 8192") as told:  # fmt: skip
                await provider.check(larger, asked.card)
            assert told.value.param == "size"
        finally:
            await client.close()

    asyncio.run(main())


@pytest.mark.parametrize(("side_max", "refused"), [(None, False), (128, False), (127, True)])
def test_a_side_that_the_network_has_no_positions_for_is_refused_by_name(
    side_max: int | None, refused: bool
) -> None:
    asked = order()  # 64 x 128
    client = InProcessClient(EngineCore(NullFamily, warm_up=None))
    provider = LocalProvider(client, side_max)
    for size in (asked.task.size, Size(128, 64)):
        task = replace(asked.task, size=size)
        if not refused:
            asyncio.run(provider.check(task, asked.card))
            continue
        with pytest.raises(UnsupportedField, match="more than 127 pixels") as told:
            asyncio.run(provider.check(task, asked.card))
        assert told.value.param == "size"


def test_a_background_is_left_out_by_pocket_alone() -> None:
    asked = order()
    provider = LocalProvider(InProcessClient(EngineCore(NullFamily, warm_up=None)))
    task = replace(asked.task, transparent=True)
    pocket = replace(asked.card, backend=replace(asked.card.backend, family="pocket"))
    asyncio.run(provider.check(task, pocket))
    other = replace(asked.card, backend=replace(asked.card.backend, family="cogview4"))
    with pytest.raises(UnsupportedField) as caught:
        asyncio.run(provider.check(task, other))
    assert caught.value.param == "background"


def picture(pixels: np.ndarray) -> InputImage:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return InputImage(out.getvalue(), "png", Size(pixels.shape[1], pixels.shape[0]))


def begun(asked: DrawOrder, task: ImageTask) -> list[Job]:
    """The jobs that the engine got for an order."""
    family = NullFamily()
    jobs: list[Job] = []
    start = family.start

    def kept(job: Job, conditioning: str) -> Any:
        jobs.append(job)
        return start(job, conditioning)

    family.start = kept  # type: ignore[method-assign]
    asyncio.run(drawn(family, replace(asked, task=task, prompt=task.prompt)))
    return jobs


def test_the_reference_and_the_mask_come_at_the_size_of_the_task() -> None:
    shown = np.zeros((300, 200, 4), np.uint8)  # the task's 64x128 sees 150 of its 200 columns
    shown[:, :100] = (255, 0, 0, 255)
    shown[:, 100:, 2] = 255
    reference, mask = picture(shown[:, :, :3]), picture(shown)
    asked = order(references=(reference,), mask=mask)
    first, second = begun(asked, asked.task)
    assert first.reference is second.reference  # not one copy an image
    assert first.reference is not None
    assert first.mask is not None
    assert first.reference.shape == (128, 64, 3)
    assert first.mask.shape == (128, 64)
    assert np.all(first.reference[:, :24] == (255, 0, 0))
    assert np.all(first.reference[:, 40:] == (0, 0, 255))
    assert not first.mask[:, :24].any()  # opaque: kept
    assert first.mask[:, 40:].all()  # transparent: repainted


@pytest.mark.parametrize(
    ("prompt", "masked", "asked", "strength"),
    [
        ("a dog", False, None, 0.75),
        ("", False, None, 0.5),
        ("a dog", True, None, 1.0),
        ("", True, None, 1.0),
        ("a dog", False, 0.2, 0.2),
        ("a dog", True, 0.0, 0.0),
    ],
)
def test_how_far_an_edit_goes(
    prompt: str, masked: bool, asked: float | None, strength: float
) -> None:
    plain = picture(np.zeros((128, 64, 3), np.uint8))
    mask = picture(np.zeros((128, 64, 4), np.uint8)) if masked else None
    wanted = order(references=(plain,), mask=mask)
    task = replace(wanted.task, prompt=prompt, strength=asked)
    job = begun(wanted, task)[0]
    assert job.strength == strength
    assert job.steps_drawn == max(1, round(8 * strength))


def test_a_job_is_drawn_as_its_preset_says() -> None:
    asked = order()
    preset = Preset(5, 3.0, "grey", "style", (0.25, 0.75))
    card = replace(asked.card, qualities={"standard": preset})
    for job in begun(replace(asked, card=card), asked.task):
        told = (job.steps, job.guidance, job.negative_prompt, job.lora, job.guidance_interval)
        assert told == (5, 3.0, "grey", "style", (0.25, 0.75))


def test_a_picture_that_broke_on_the_way_is_our_fault() -> None:
    broken = InputImage(b"no picture", "png", Size(64, 128))
    with pytest.raises(EngineFailed):
        asyncio.run(drawn(NullFamily(), order(references=(broken,))))


def test_nobody_asked_so_no_looks_are_made() -> None:
    family = NullFamily()
    events = asyncio.run(drawn(family, order()))
    assert not any(isinstance(event, Preview) for event in events)
    assert family.previewed == []


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
def test_a_text_over_the_encoders_limit_is_refused_by_name(field: str) -> None:
    async def scenario() -> None:
        client = InProcessClient(EngineCore(NullFamily, warm_up=None))
        await client.ready()
        provider, asked = LocalProvider(client), order()
        try:
            fits = replace(asked.task, **{field: "x " * WORDS_MAX})
            await provider.check(fits, asked.card)
            long = replace(asked.task, **{field: "x " * (WORDS_MAX + 1)})
            with pytest.raises(PromptTooLong, match=f"^'{field}' is too long: 301 tokens") as told:
                await provider.check(long, asked.card)
            assert told.value.param == field
        finally:
            await client.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("family", "guidance", "refused"),
    [("cogview4", 1.0, True), ("cogview4", 0.0, True), ("cogview4", 1.5, False), ("pocket", 1.0, False)],
)  # fmt: skip
def test_what_is_drawn_without_guidance_takes_no_negative_prompt_unless_it_reads_it_as_words(
    family: str, guidance: float, refused: bool
) -> None:
    async def scenario() -> None:
        client = InProcessClient(EngineCore(NullFamily, warm_up=None))
        await client.ready()
        asked = order()
        qualities = {"standard": Preset(4, guidance, lora="lightning-4")}
        backend = replace(asked.card.backend, family=family)
        card = replace(asked.card, backend=backend, qualities=qualities)
        provider = LocalProvider(client)
        try:
            await provider.check(replace(asked.task, negative_prompt=" "), card)
            await provider.check(asked.task, card)
            task = replace(asked.task, negative_prompt="dogs")
            if not refused:
                await provider.check(task, card)
                return
            with pytest.raises(UnsupportedField, match="without guidance") as told:
                await provider.check(task, card)
            assert told.value.param == "negative_prompt"
        finally:
            await client.close()

    asyncio.run(scenario())
