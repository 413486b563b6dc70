"""Which labels an image gets, and that the smallest and the largest pictures get through the whole of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.dialects.cards import card
from tests.service.house import house, image, run

from danqing.domain.card import ImageFormat, LabelRule
from danqing.domain.ports import DrawOrder
from danqing.domain.sizes import Size
from danqing.domain.task import Event, ImageTask, Started, Stepped
from danqing.service.brand import BrandMark
from danqing.service.finishing import Finisher, LabelPlan, Secrets
from danqing.service.hidden_label import Sealer
from danqing.service.inspection import Inspector
from danqing.service.pixel_mark import SIDE_MIN, PixelMarker
from danqing.settings import BrandSettings, LabelSettings

SECRETS = Secrets(PixelMarker(b"m" * 32), Sealer(b"s" * 32))
IMAGE_ID = "0123456789a"


@pytest.mark.parametrize("policy", ["card", "cn"])
@pytest.mark.parametrize("drops", [False, True])
def test_a_waiver_drops_what_it_may_and_nothing_else_does(policy: str, drops: bool) -> None:
    settings = LabelSettings(policy=policy, waiver_drops_metadata=drops)
    for visible, metadata in product((False, True), repeat=2):
        model = card("m", label=LabelRule(visible=visible, metadata=metadata))

        def planned(wanted: bool, waived: bool, model=model) -> tuple[bool, bool, bool]:
            task = ImageTask("m", "a cat", Size(512, 512), "standard", ai_label=wanted)
            plan = LabelPlan.of(model, task, waived, settings)
            return plan.visible, plan.metadata, plan.pixel

        whole = (visible or policy == "cn", metadata, True)
        assert planned(True, False) == whole
        assert planned(True, True) == whole  # who has a waiver asks for it each time
        assert planned(False, False) == whole  # refused before it comes here: never obeyed
        assert planned(False, True) == (False, metadata and not drops, False)


def finished(side_px: int, format: ImageFormat, channels: int) -> bytes:
    rng = np.random.default_rng(3)
    rough = rng.integers(40, 215, (-(-side_px // 8), -(-side_px // 8), channels), dtype=np.uint8)
    pixels = rough.repeat(8, 0).repeat(8, 1)[:side_px, :side_px]
    plan = LabelPlan(True, True, "Danqing", True, brand=True)
    brand = BrandMark(BrandSettings(), "bottom-left", 0.02)
    return Finisher(LabelSettings(), SECRETS, brand).finish(
        pixels, image_id=IMAGE_ID, format=format, compression=None, plan=plan, prompt="a cat"
    )


@pytest.mark.parametrize(
    ("side_px", "format", "channels"),
    [
        (1, "png", 3),
        (1, "jpeg", 3),
        (1, "webp", 3),
        (1, "png", 4),
        (1, "webp", 4),
        (SIDE_MIN, "webp", 4),
        pytest.param(8000, "png", 3, marks=pytest.mark.slow),
    ],
)
def test_the_smallest_and_the_largest_are_labelled_and_known_again(
    side_px: int, format: ImageFormat, channels: int
) -> None:
    """Of one pixel there is no room for a mark, and none to see words on; its file still says what it is."""
    data = finished(side_px, format, channels)
    found = Inspector(LabelSettings(), SECRETS).inspect(data, pixels_max=100_000_000)
    assert found.metadata is not None
    assert found.metadata["ProduceID"] == found.image_id == IMAGE_ID
    assert found.pixels_unchanged
    assert found.ours
    has_room = side_px >= SIDE_MIN
    assert found.visible == has_room
    assert (found.pixel_mark == IMAGE_ID) == has_room


def test_labels_and_files_are_made_beside_other_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Proved by order: the first image is not finished before its task's next one and another request have done their steps."""
    labelling, stepped, went_on = threading.Event(), threading.Barrier(3), list[str]()
    finish = Finisher.finish

    def slowly(self: Finisher, *args: Any, prompt: str, **options: Any) -> bytes:
        if not labelling.is_set():
            labelling.set()
            stepped.wait(60)
            went_on.append("finished")
        return finish(self, *args, prompt=prompt, **options)

    async def steps(order: DrawOrder, index: int) -> AsyncGenerator[Event, None]:
        yield Started(index)
        for step in range(8):
            yield Stepped(index, step + 1, 8)
        went_on.append(order.task.prompt)
        await asyncio.to_thread(stepped.wait, 60)

    async def script(order: DrawOrder) -> AsyncGenerator[Event, None]:
        if order.task.n == 2:
            yield image(order, 0)
        await asyncio.to_thread(labelling.wait, 60)
        async for event in steps(order, order.task.n - 1):
            yield event
        yield image(order, order.task.n - 1)

    async def main() -> None:
        async with house(tmp_path, script) as here:
            both = here.draw(prompt="two cats", n=2), here.draw(prompt="another's")
            drawn = await asyncio.gather(*both)
            assert [len(each.result.delivered) for each in drawn] == [2, 1]

    monkeypatch.setattr(Finisher, "finish", slowly)
    run(main())
    assert set(went_on[:2]) == {"two cats", "another's"}
    assert went_on[2:] == ["finished"]
