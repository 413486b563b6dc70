"""A streamed answer's events and what they cost: order, bounds, and an exact charge for what has left."""

from __future__ import annotations

import asyncio
import base64
import gc
import io
import random
import weakref
from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.service.house import House, Script, house, image, run, until

from danqing.domain.errors import (
    Busy,
    Cancelled,
    ContentRefused,
    DanqingError,
    EngineFailed,
    Unavailable,
)
from danqing.domain.ports import DrawOrder
from danqing.domain.sizes import Size
from danqing.domain.task import (
    Begun,
    DeliveredImage,
    Delivery,
    Event,
    Failed,
    FailedImage,
    Finished,
    FinishedImage,
    ImageResult,
    PartialImage,
    Preview,
    Stepped,
    StreamEvent,
    StreamHead,
)
from danqing.service import settling, streaming
from danqing.service.calls import ClientKey
from danqing.service.streaming import Feed

STREAM = Delivery(form="b64_json", stream=True, partial_images=2)
HEAD = StreamHead("t", 1, "m", "a cat", "standard", Size(64, 64), 2)


def look(index: int, number: int, chars: int = 4) -> PartialImage:
    return PartialImage(index, number, "png", Size(8, 8), "A" * chars)


def done(index: int) -> FinishedImage:
    return FinishedImage(index, delivered(index))


def delivered(index: int) -> DeliveredImage:
    return DeliveredImage(f"i{index}", Size(8, 8), index, "png", b64="AAAA")


def preview(index: int, number: int) -> Preview:
    pixels = np.full((32, 32, 3), 40 * number, np.uint8)
    return Preview(index, number, 2 * (number + 1), 8, pixels)


def taken(feed: Feed) -> list[StreamEvent]:
    events: list[StreamEvent] = []
    while (event := feed.take()) is not None:
        events.append(event)
    return events


async def read_until(feed: Feed, stop: type[StreamEvent]) -> list[StreamEvent]:
    events: list[StreamEvent] = []
    while not events or not isinstance(events[-1], stop):
        await asyncio.wait_for(feed.filled(), 60)
        if (event := feed.take()) is not None:
            events.append(event)
    return events


# The feed alone


def test_a_feed_tells_in_order_and_ends() -> None:
    feed = Feed()
    feed.open(HEAD)
    feed.tell(look(0, 0))
    feed.tell(look(0, 0))  # again
    feed.tell(look(0, 1))
    feed.tell(look(0, 0))  # late
    feed.tell(done(0))
    feed.tell(look(0, 2))  # its image is there
    feed.finish(ImageResult(1, "m", (delivered(0), EngineFailed()), "a cat"))
    kinds = [type(event) for event in taken(feed)]
    assert kinds == [Begun, PartialImage, PartialImage, FinishedImage, FailedImage, Finished]
    assert (feed.left, feed.kept) == ({0}, {0})


def test_looks_give_way_and_finished_images_never(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "LOOKS_CHARS_MAX", 100)
    feed = Feed()
    feed.open(HEAD)
    feed.tell(done(7))
    for number in range(3):
        for index in range(5):
            feed.tell(look(index, number, 40))
    events = taken(feed)
    assert [event for event in events if isinstance(event, FinishedImage)] == [done(7)]
    looks = [event for event in events if isinstance(event, PartialImage)]
    assert [(one.index, one.number) for one in looks] == [(3, 2), (4, 2)]  # the newest


def test_one_look_larger_than_the_bound_still_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "LOOKS_CHARS_MAX", 10)
    feed = Feed()
    feed.tell(look(0, 0, 40))
    assert len(taken(feed)) == 1


def test_nothing_leaves_once_it_is_cut() -> None:
    feed = Feed()
    feed.open(HEAD)
    feed.tell(look(0, 0))
    assert isinstance(feed.take(), Begun)
    feed.cut()
    feed.tell(done(0))
    feed.finish(ImageResult(1, "m", (delivered(0),), "a cat"))
    assert taken(feed) == []
    assert feed.left == set()


@given(st.lists(st.one_of(st.integers(1, 60), st.just("take")), max_size=40))
def test_base64_of_finished_images_waits_in_the_store(deeds: list[int | str]) -> None:
    """However many wait for a slow reader: little of them is in memory, and all of them leave whole."""
    bound, streaming.IMAGES_CHARS_MAX = streaming.IMAGES_CHARS_MAX, 80

    async def check() -> None:
        kept: dict[str | None, str] = {}

        async def load(image: DeliveredImage) -> DeliveredImage:
            return replace(image, b64=kept[image.blob_key])

        feed, out, told = Feed(load), [], 0
        for deed in [*deeds, *["take"] * len(deeds)]:
            if isinstance(deed, str):
                await feed.prepare()
                out += [event for event in [feed.take()] if event]
            else:
                kept[str(told)] = "x" * deed
                image = DeliveredImage(str(told), Size(8, 8), 0, "png", None, "x" * deed, str(told))
                feed.tell(FinishedImage(told, image))
                told += 1
            chars = [len(one.image.b64 or "") for one in feed._waiting]
            assert sum(chars) <= 80 + 60, "and the one that is next"
        assert [event.image.b64 for event in out] == [kept[str(at)] for at in range(told)]
        assert feed.kept == set(range(told))

    try:
        run(check())
    finally:
        streaming.IMAGES_CHARS_MAX = bound


def test_a_stream_and_its_replay_read_images_from_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "IMAGES_CHARS_MAX", 1)

    async def check() -> None:
        async with house(tmp_path) as h:
            seen: list[list[str | None]] = []
            for _ in range(2):
                feed = Feed(h.gallery.filled)
                outcome = await h.draw(
                    n=3, key=ClientKey("k" * 64, "f" * 64), feed=feed, delivery=STREAM
                )
                assert all(image.b64 is None for image in outcome.result.delivered)
                waiting = [one for one in feed._waiting if isinstance(one, FinishedImage)]
                assert sum(one.image.b64 is not None for one in waiting) <= 1
                images = []
                for _ in range(9):
                    await feed.prepare()
                    if isinstance(event := feed.take(), FinishedImage):
                        images.append(event.image.b64)
                seen.append(images)
            assert len(seen[0]) == 3
            assert all(base64.b64decode(b64).startswith(b"\x89PNG") for b64 in seen[0])
            assert sorted(seen[0]) == sorted(seen[1])

    run(check())


@given(
    st.lists(
        st.one_of(
            st.builds(look, st.integers(0, 3), st.integers(0, 2), st.integers(1, 60)),
            st.builds(done, st.integers(0, 3)),
            st.just("take"),
        ),
        max_size=40,
    )
)
def test_laws_of_the_feed(deeds: list[PartialImage | FinishedImage | str]) -> None:
    """Whatever is told and read when: images end once, looks come in order and before it, memory is bounded."""
    bound, streaming.LOOKS_CHARS_MAX = streaming.LOOKS_CHARS_MAX, 80
    try:
        feed, out = Feed(), []
        for deed in deeds:
            if isinstance(deed, str):
                out += [event for event in [feed.take()] if event]
            else:
                feed.tell(deed)
            waiting = [one for one in feed._waiting if isinstance(one, PartialImage)]
            assert sum(len(one.b64) for one in waiting) <= 80
        out += taken(feed)
        ended: set[int] = set()
        numbers: dict[int, int] = {}
        for event in out:
            assert event.index not in ended
            if isinstance(event, FinishedImage):
                ended.add(event.index)
            else:
                assert event.number > numbers.get(event.index, -1)
                numbers[event.index] = event.number
        assert ended == {deed.index for deed in deeds if isinstance(deed, FinishedImage)}
        assert feed.left == ended | set(numbers)
    finally:
        streaming.LOOKS_CHARS_MAX = bound


# Through the pipeline


def with_looks(feed: Feed) -> Script:
    """The drawing goes on when a look has been told: one that comes after its image is dropped."""

    async def script(order: DrawOrder) -> AsyncGenerator[Event, None]:
        for index in range(order.task.n):
            for number in range(order.previews):
                yield Stepped(index, 2 * (number + 1), 8)
                yield preview(index, number)
                await told(feed, index, number)
            yield image(order, index)

    return script


async def told(feed: Feed, index: int, number: int = 0) -> None:
    await until(lambda: feed._numbers.get(index) == number)


def test_looks_and_images_as_they_come(tmp_path: Path) -> None:
    async def check() -> None:
        feed = Feed()
        async with house(tmp_path, with_looks(feed)) as h:
            drawing = asyncio.create_task(h.draw("cogview-4", n=2, feed=feed, delivery=STREAM))
            events = await read_until(feed, Finished)
            outcome = await drawing
            assert feed.head is not None
            assert (feed.head.reply_id, feed.head.n) == (outcome.task_id, 2)
            assert isinstance(events[0], Begun)
            for index in range(2):  # images are encoded side by side
                own = [type(event) for event in events if getattr(event, "index", None) == index]
                assert own == [PartialImage, PartialImage, FinishedImage]
            assert len(h.blobs()) == 2  # a look is never stored
            assert await h.balance() == 90_000

    run(check())


@pytest.mark.parametrize("model", ["cogview-4", "gpt-image-1"])
@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_looks_are_labelled_as_their_image_is(tmp_path: Path, model: str, format: str) -> None:
    """CogView's carry the visible label, and every one the hidden one, with its task's id."""

    async def check() -> None:
        feed = Feed()
        async with house(tmp_path, with_looks(feed)) as h:
            delivery = Delivery("b64_json", format, stream=True, partial_images=1)  # type: ignore[arg-type]
            drawing = asyncio.create_task(h.draw(model, feed=feed, delivery=delivery))
            (_, first) = await read_until(feed, PartialImage)
            outcome = await drawing
            assert isinstance(first, PartialImage)
            data = base64.b64decode(first.b64)
            assert outcome.task_id.encode() in data
            with Image.open(io.BytesIO(data)) as shown:
                assert (shown.format, shown.size) == (format.upper(), (32, 32))
                has_label = np.asarray(shown.convert("RGB")).max() > 60  # the look itself is black
            assert has_label == (model == "cogview-4")

    run(check())


def test_nobody_pays_for_looks_that_nobody_wants(tmp_path: Path) -> None:
    async def check() -> None:
        async with house(tmp_path) as h:
            await h.draw(delivery=Delivery(partial_images=3))
            await h.draw(feed=Feed(), delivery=Delivery(stream=True))
            await h.draw(feed=Feed(), delivery=STREAM)
            assert [order.previews for order in h.provider.orders] == [0, 0, 2]

    run(check())


def test_an_image_that_fails_is_told_and_not_charged(tmp_path: Path) -> None:
    async def script(order: DrawOrder) -> AsyncGenerator[Event, None]:
        yield Failed(0, EngineFailed("NaN"))
        yield image(order, 1)

    async def check() -> None:
        async with house(tmp_path, script) as h:
            feed = Feed()
            await h.draw(n=2, feed=feed, delivery=STREAM)
            _, failed, finished, end = taken(feed)
            assert isinstance(failed, FailedImage)
            assert isinstance(finished, FinishedImage)
            assert isinstance(end, Finished)
            assert (failed.index, finished.index) == (0, 1)
            assert await h.balance() == 95_000

    run(check())


@pytest.mark.parametrize("error", [Busy(3), ContentRefused("user", 0)])
def test_what_is_refused_tells_nothing(tmp_path: Path, error: DanqingError) -> None:
    """A full queue comes after the hold: the stream may not have begun by then."""

    async def script(order: DrawOrder) -> AsyncGenerator[Event, None]:
        if False:
            yield
        raise error

    async def check() -> None:
        async with house(tmp_path, script) as h:
            feed = Feed()
            begun = asyncio.create_task(feed.begun(60))
            with pytest.raises(type(error)):
                await h.draw(feed=feed, delivery=STREAM)
            assert not begun.done()
            begun.cancel()
            assert taken(feed) == []
            assert await h.balance() == 100_000

    run(check())


async def stop_after(
    h: House, feed: Feed, hung_up: asyncio.Event | None, stop: asyncio.Event, shown: int, **how
) -> list[StreamEvent]:
    """Draw, read until `stop` and so many looks and images, then leave (with `hung_up`) or be stopped; what was read."""
    drawing = asyncio.create_task(h.draw(feed=feed, hung_up=hung_up, delivery=STREAM, **how))
    read: list[StreamEvent] = []

    async def reader() -> None:
        while True:
            await feed.filled()
            if (event := feed.take()) is not None:
                read.append(event)

    reading = asyncio.create_task(reader())
    await asyncio.wait_for(stop.wait(), 60)
    # Encoders run beside.
    await until(lambda: sum(isinstance(one, PartialImage | FinishedImage) for one in read) == shown)
    reading.cancel()
    if hung_up is not None:
        hung_up.set()
        feed.cut()
    drawing.cancel()
    await asyncio.gather(drawing, return_exceptions=True)
    return read


@pytest.mark.parametrize(
    ("shown", "kept", "steps", "left"),
    [
        # two images at 5,000 over 8 steps each; shown and finished ones in full, others by steps
        ((), (), {0: 1}, 100_000 - 625),
        ((0,), (), {0: 1}, 95_000),
        ((0, 1), (), {0: 1, 1: 1}, 90_000),
        ((0,), (), {0: 1, 1: 3}, 95_000 - 3 * 625),
        ((), (1,), {0: 4}, 95_000 - 4 * 625),
        ((0,), (0,), {0: 7}, 95_000),
    ],
)
def test_hanging_up_pays_for_what_was_shown(
    tmp_path: Path,
    shown: tuple[int, ...],
    kept: tuple[int, ...],
    steps: dict[int, int],
    left: int,
) -> None:
    async def check() -> None:
        feed, reached = Feed(), asyncio.Event()

        async def script(order: DrawOrder) -> AsyncGenerator[Event, None]:
            for index, step in steps.items():
                yield Stepped(index, step, 8)
            for index in shown:
                yield preview(index, 0)
                await told(feed, index)
            for index in kept:
                yield image(order, index)
            reached.set()
            await asyncio.sleep(60)

        async with house(tmp_path, script) as h:
            await stop_after(h, feed, asyncio.Event(), reached, len(shown) + len(kept), n=2)
            row = await h.ledger.task(h.provider.orders[0].task_id)
            assert (row.state, row.charged) == ("cancelled", 100_000 - left)
            assert await h.balance() == left
            images = await h.ledger.images(row.id)
            assert [one.idx for one in images] == list(
                kept
            )  # their links may be all the client has
            assert len(h.blobs()) == len(kept)

    run(check())


@pytest.mark.parametrize(
    ("cancel", "left"), [("void", 95_000), ("prorata", 95_000 - 625), ("full", 90_000)]
)
def test_by_every_cards_rule(tmp_path: Path, cancel: str, left: int) -> None:
    catalog = tmp_path / "catalog.toml"
    catalog.write_text(f'[models.dall-e-3]\ncancel = "{cancel}"\n')

    async def check() -> None:
        reached = asyncio.Event()

        async def script(order: DrawOrder) -> AsyncGenerator[Event, None]:
            yield Stepped(0, 1, 8)
            yield preview(0, 0)
            yield Stepped(1, 1, 8)
            reached.set()
            await asyncio.sleep(60)

        async with house(tmp_path / "data", script, catalog_file=catalog) as h:
            await stop_after(h, Feed(), asyncio.Event(), reached, 1, n=2)
            assert await h.balance() == left

    run(check())


def test_an_edit_has_its_own_number_of_steps(tmp_path: Path) -> None:
    """It skips the first ones: what was done is a share of those that it takes."""

    async def check() -> None:
        reached = asyncio.Event()

        async def script(order: DrawOrder) -> AsyncGenerator[Event, None]:
            yield Stepped(0, 3, 4)  # the card says 8
            yield Stepped(1, 1, 3)
            reached.set()
            await asyncio.sleep(60)

        async with house(tmp_path, script) as h:
            await stop_after(h, Feed(), asyncio.Event(), reached, 0, n=2)
            assert await h.balance() == 100_000 - 3750 - 1667  # rounded up, once

    run(check())


def test_a_sleeping_reader_holds_no_pixels(tmp_path: Path) -> None:
    pixels: list[weakref.ref[np.ndarray]] = []

    async def script(order: DrawOrder) -> AsyncGenerator[Event, None]:
        for index in range(order.task.n):
            for number in range(3):
                shown = preview(index, number)
                pixels.append(weakref.ref(shown.pixels))
                yield shown
                del shown
                await asyncio.sleep(0.02)
            drawn = image(order, index)
            pixels.append(weakref.ref(drawn.pixels))
            yield drawn
            del drawn

    async def check() -> None:
        async with house(tmp_path, script) as h:
            feed = Feed()
            await h.draw(n=4, feed=feed, delivery=STREAM)
            assert len(pixels) == 16
            # An encoder that was given up may still be at it.
            await until(lambda: gc.collect() >= 0 and not any(ref() is not None for ref in pixels))
            assert sum(isinstance(event, FinishedImage) for event in taken(feed)) == 4

    run(check())


def test_a_look_that_nobody_read_costs_nothing_more(tmp_path: Path) -> None:
    async def check() -> None:
        reached = asyncio.Event()

        async def script(order: DrawOrder) -> AsyncGenerator[Event, None]:
            yield Stepped(0, 1, 8)
            yield preview(0, 0)
            reached.set()
            await asyncio.sleep(60)

        async with house(tmp_path, script) as h:
            feed, gone = Feed(), asyncio.Event()
            drawing = asyncio.create_task(h.draw(feed=feed, hung_up=gone, delivery=STREAM))
            await reached.wait()
            while len(feed._waiting) < 2:
                await asyncio.sleep(0.01)
            gone.set()
            drawing.cancel()
            await asyncio.gather(drawing, return_exceptions=True)
            assert taken(feed) == []  # and it can no longer leave
            assert await h.balance() == 100_000 - 625

    run(check())


def test_a_key_outlives_its_reader(tmp_path: Path) -> None:
    """The drawing goes on; the key again replays the finished images and the end."""

    async def check() -> None:
        reached, go_on = asyncio.Event(), asyncio.Event()

        async def script(order: DrawOrder) -> AsyncGenerator[Event, None]:
            yield preview(0, 0)
            reached.set()
            await go_on.wait()
            yield image(order, 0)
            yield Failed(1, EngineFailed("NaN"))

        key = ClientKey("k" * 64, "f" * 64)
        async with house(tmp_path, script) as h:
            await stop_after(h, Feed(), asyncio.Event(), reached, 1, n=2, key=key)
            again = Feed()
            replay = asyncio.create_task(h.draw(n=2, feed=again, delivery=STREAM, key=key))
            head = await again.begun(0.01)  # it begins before the first one has ended
            go_on.set()
            outcome = await replay
            assert outcome.replayed
            assert again.replayed
            assert head.reply_id == outcome.task_id
            kinds = [type(event) for event in taken(again)]
            assert kinds == [Begun, FinishedImage, FailedImage, Finished]
            assert len(h.provider.orders) == 1
            assert await h.balance() == 95_000

    run(check())


@pytest.mark.parametrize(("finished", "balance"), [(False, 100_000), (True, 95_000)])
def test_a_server_that_stops(tmp_path: Path, finished: bool, balance: int) -> None:
    """Images that have left whole are charged and kept; without any, our stopping costs nothing."""

    async def check() -> None:
        feed, reached = Feed(), asyncio.Event()

        async def script(order: DrawOrder) -> AsyncGenerator[Event, None]:
            yield Stepped(0, 4, 8)
            yield preview(0, 0)
            await told(feed, 0)
            if finished:
                yield image(order, 0)
            reached.set()
            await asyncio.sleep(60)

        async with house(tmp_path, script) as h:
            read = await stop_after(h, feed, None, reached, 1 + finished, n=2)
            assert any(isinstance(event, PartialImage) for event in read)
            rest = taken(feed)
            row = await h.ledger.task(h.provider.orders[0].task_id)
            if finished:
                failed, end = rest
                assert isinstance(failed, FailedImage)
                assert isinstance(failed.error, Unavailable)
                assert isinstance(end, Finished)
                assert row.state == "succeeded"
            else:
                assert rest == []
                assert row.state == "failed"
            assert len(h.blobs()) == finished
            assert await h.balance() == balance

    run(check())


def test_an_engine_that_dies_after_an_image(tmp_path: Path) -> None:
    async def check() -> None:
        feed = Feed()

        async def script(order: DrawOrder) -> AsyncGenerator[Event, None]:
            yield image(order, 0)
            await read_until(feed, FinishedImage)
            raise EngineFailed

        async with house(tmp_path, script) as h:
            outcome = await h.draw(n=2, feed=feed, delivery=STREAM)
            assert (outcome.charged, len(outcome.result.delivered)) == (5_000, 1)
            assert [type(event) for event in taken(feed)] == [FailedImage, Finished]
            assert await h.balance() == 95_000

    run(check())


def test_deleting_a_task_that_streams(tmp_path: Path) -> None:
    async def check() -> None:
        feed, reached = Feed(), asyncio.Event()

        async def script(order: DrawOrder) -> AsyncGenerator[Event, None]:
            yield Stepped(0, 2, 8)
            yield preview(0, 0)
            await read_until(feed, PartialImage)
            reached.set()
            await asyncio.sleep(60)

        async with house(tmp_path, script) as h:
            drawing = asyncio.create_task(h.draw(feed=feed, delivery=STREAM))
            await reached.wait()
            await h.pipeline.cancel(h.provider.orders[0].task_id)
            with pytest.raises(Cancelled):
                await drawing
            assert await h.balance() == 95_000

    run(check())


def test_books_that_fail_after_an_image_has_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client has it: housekeeping posts what is stored, where without it the hold would be given back."""
    monkeypatch.setattr(settling, "_TRIES", 1)

    async def check() -> None:
        feed = Feed()

        async def script(order: DrawOrder) -> AsyncGenerator[Event, None]:
            yield image(order, 0)
            await read_until(feed, FinishedImage)

        async with house(tmp_path, script, task_lease_s=1) as h:
            settle = h.ledger.settle

            async def broken(*args, **how) -> None:
                raise Unavailable("no database")

            h.ledger.settle = broken
            with pytest.raises(Unavailable):
                await h.draw(feed=feed, delivery=STREAM)
            h.ledger.settle = settle
            await h.sweep_until_quiet()
            row = await h.ledger.task(h.provider.orders[0].task_id)
            assert (row.state, row.charged) == ("succeeded", 5_000)
            assert await h.balance() == 95_000

    run(check())


def test_ends_at_any_moment_leave_the_books_clean(tmp_path: Path) -> None:
    """Hung up on, deleted or stopped after a random while, read or not: the charge covers what has left."""

    async def script(order: DrawOrder) -> AsyncGenerator[Event, None]:
        for index in range(order.task.n):
            for number in range(2):
                yield Stepped(index, 3 * (number + 1), 8)
                yield preview(index, number)
                await asyncio.sleep(0.005)
            yield image(order, index)

    async def check() -> None:
        rng = random.Random(11)
        ends: Counter[str] = Counter()
        async with house(tmp_path, script) as h:
            await h.ledger.grant(h.principal.account_id, 10_000_000, "test")
            kept = 0
            for number in range(60):
                feed, stop = Feed(), asyncio.Event()
                if number < 3:
                    stop.set()
                elif number > 5:  # those before end by themselves
                    asyncio.get_running_loop().call_later(rng.random() * 0.08, stop.set)
                how = asyncio.Event() if number % 3 else None
                await _draw_and_end(h, feed, how, stop, reads=number % 2 == 0)
                row = await h.ledger.task(h.provider.orders[-1].task_id)
                images = await h.ledger.images(row.id)
                kept += len(images)
                ends[row.state] += 1
                assert feed.kept <= {one.idx for one in images}
                if how is not None:  # our own stopping is charged for what has left whole only
                    assert row.charged >= 5_000 * len(feed.left)
                assert row.charged >= 5_000 * len(feed.kept)
                assert row.charged <= 10_000
            assert min(ends[state] for state in ("succeeded", "failed", "cancelled")) > 0, ends
            assert len(h.blobs()) == kept
            await h.balance()

    run(check())


async def _draw_and_end(
    h: House, feed: Feed, hung_up: asyncio.Event | None, stop: asyncio.Event, *, reads: bool
) -> None:
    drawing = asyncio.create_task(h.draw(n=2, feed=feed, hung_up=hung_up, delivery=STREAM))
    while not h.provider.orders or h.provider.orders[-1].task_id != (
        feed.head and feed.head.reply_id
    ):
        await asyncio.sleep(0.001)
    while not stop.is_set() and not drawing.done():
        if reads:
            feed.take()
        await asyncio.sleep(0.001)
    if hung_up is not None:
        hung_up.set()
    drawing.cancel()
    await asyncio.gather(drawing, return_exceptions=True)
    await asyncio.sleep(0)
    while feed.take() is not None:  # what a server that stops still says
        pass
