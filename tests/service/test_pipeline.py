"""The pipeline's money: what is charged at each kind of end, with a real ledger and blob store and a scripted provider."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import os
import random
from collections import Counter
from collections.abc import AsyncGenerator
from pathlib import Path

import numpy as np
import pytest
from tests.service.house import House, house, image, run, until

from danqing.domain.errors import (
    Busy,
    ContentRefused,
    DanqingError,
    EngineFailed,
    QuotaExceeded,
    ServerFault,
    Unavailable,
    WaiverRequired,
)
from danqing.domain.ports import DrawOrder
from danqing.domain.task import Delivery, Drawn, Event, Failed, Started, Stepped
from danqing.service import settling
from danqing.service.calls import ClientKey
from danqing.service.delivery import Deliverer
from danqing.service.streaming import Feed
from danqing.storage import codecs


def test_delivered_images_are_charged(tmp_path: Path) -> None:
    async def check() -> None:
        async with house(tmp_path) as h:
            outcome = await h.draw(n=3, seed=2**31 - 2)
            assert outcome.charged == 15_000
            assert outcome.seeds == (2**31 - 2, 2**31 - 1, 0)
            assert len(outcome.result.delivered) == 3
            assert await h.balance() == 85_000
            assert len(h.blobs()) == 3
            row = await h.ledger.task(outcome.task_id)
            assert (row.state, row.charged) == ("succeeded", 15_000)

    run(check())


def test_images_that_failed_are_not_charged(tmp_path: Path) -> None:
    async def script(order: DrawOrder) -> AsyncGenerator[Event, None]:
        yield image(order, 0)
        yield Failed(1, EngineFailed("NaN"))
        yield image(order, 2)

    async def check() -> None:
        async with house(tmp_path, script) as h:
            outcome = await h.draw(n=3)
            assert outcome.charged == 10_000
            assert [isinstance(i, DanqingError) for i in outcome.result.images] == [0, 1, 0]
            assert await h.balance() == 90_000

    run(check())


@pytest.mark.parametrize("model", ["dall-e-3", "draw"])
@pytest.mark.parametrize("error", [Busy(3), EngineFailed("lost"), RuntimeError("a bug")])
def test_our_own_failures_cost_nothing(tmp_path: Path, model: str, error: Exception) -> None:
    async def script(order: DrawOrder) -> AsyncGenerator[Event, None]:
        if False:
            yield
        raise error

    async def check() -> None:
        async with house(tmp_path, script) as h:
            with pytest.raises(Busy if isinstance(error, Busy) else ServerFault):
                await h.draw(model)
            assert await h.balance() == 100_000
            assert h.blobs() == []

    run(check())


def test_all_images_failing_costs_nothing(tmp_path: Path) -> None:
    async def script(order: DrawOrder) -> AsyncGenerator[Event, None]:
        yield Failed(0, EngineFailed("no"))
        yield Failed(1, EngineFailed("no"))

    async def check() -> None:
        async with house(tmp_path, script) as h:
            with pytest.raises(EngineFailed):
                await h.draw(n=2)
            assert await h.balance() == 100_000

    run(check())


def test_too_slow_costs_nothing(tmp_path: Path) -> None:
    async def script(order: DrawOrder) -> AsyncGenerator[Event, None]:
        yield Started(0)
        await asyncio.sleep(60)

    async def check() -> None:
        async with house(tmp_path, script, request_timeout_s=1) as h:
            with pytest.raises(EngineFailed, match="too long"):
                await h.draw()
            assert await h.balance() == 100_000

    run(check())


@pytest.mark.parametrize(
    ("model", "steps", "of", "left"),
    [
        ("dall-e-3", 0, 8, 100_000),
        ("dall-e-3", 1, 8, 100_000 - 625),
        ("dall-e-3", 4, 8, 97_500),
        ("dall-e-3", 2, 4, 97_500),  # an edit, which keeps a part of its reference, takes fewer
        ("draw", 0, 8, 95_000),
        ("draw", 4, 8, 95_000),
    ],
)
def test_hang_up(tmp_path: Path, model: str, steps: int, of: int, left: int) -> None:
    async def check() -> None:
        reached = asyncio.Event()

        async def script(order: DrawOrder) -> AsyncGenerator[Event, None]:
            for step in range(1, steps + 1):
                yield Stepped(0, step, of)
            reached.set()
            await asyncio.sleep(60)
            yield Started(0)

        async with house(tmp_path, script) as h:
            work = asyncio.create_task(h.draw(model, hung_up=(left_us := asyncio.Event())))
            await reached.wait()
            left_us.set()
            work.cancel()
            with pytest.raises(asyncio.CancelledError):
                await work
            assert await h.balance() == left

    run(check())


@pytest.mark.parametrize("cancel", ["prorata", "full", "void"])
def test_who_hangs_up_between_a_providers_refusals_pays_nothing(
    tmp_path: Path, cancel: str
) -> None:
    """The provider took the request and turned it away (503); the next try has not been sent."""
    (tmp_path / "catalog.toml").write_text(f'[models.dall-e-3]\ncancel = "{cancel}"\n')

    async def check() -> None:
        reached = asyncio.Event()

        async def script(order: DrawOrder) -> AsyncGenerator[Event, None]:
            yield Stepped(0, 1, 1)
            yield Stepped(0, 0, 1)
            reached.set()
            await asyncio.sleep(60)

        async with house(tmp_path, script, catalog_file=tmp_path / "catalog.toml") as h:
            work = asyncio.create_task(h.draw(hung_up=(left_us := asyncio.Event())))
            await reached.wait()
            left_us.set()
            work.cancel()
            with pytest.raises(asyncio.CancelledError):
                await work
            assert await h.balance() == 100_000

    run(check())


def test_who_hangs_up_pays_nothing_for_an_image_that_failed(tmp_path: Path) -> None:
    async def check() -> None:
        reached = asyncio.Event()

        async def script(order: DrawOrder) -> AsyncGenerator[Event, None]:
            for index in range(2):
                yield Stepped(index, 8, 8)
            yield Failed(0, EngineFailed("NaN"))
            reached.set()
            await asyncio.sleep(60)

        async with house(tmp_path, script) as h:
            work = asyncio.create_task(h.draw(n=2, hung_up=(left_us := asyncio.Event())))
            await reached.wait()
            left_us.set()
            work.cancel()
            with pytest.raises(asyncio.CancelledError):
                await work
            assert await h.balance() == 95_000

    run(check())


def test_hang_up_at_any_moment_leaves_the_books_clean(tmp_path: Path) -> None:
    """Cancelled after a random while, from before the hold to after the post, by client or server."""

    async def script(order: DrawOrder) -> AsyncGenerator[Event, None]:
        for index in range(order.task.n):
            await asyncio.sleep(0.003)
            yield Stepped(index, 4, 8)
            await asyncio.sleep(0.003)
            yield image(order, index)

    async def check() -> None:
        rng = random.Random(4)
        ends: Counter[str] = Counter()
        async with house(tmp_path, script) as h:
            await h.ledger.grant(h.principal.account_id, 10_000_000, "test")
            settle, settled = h.ledger.settle, Counter()

            async def counted(task_id: str, *args, **how) -> None:
                settled[task_id] += 1
                await settle(task_id, *args, **how)

            h.ledger.settle = counted
            for number in range(150):
                key = ClientKey(f"{number:064d}", "f" * 64) if number % 3 == 0 else None
                work = asyncio.create_task(h.draw(n=2, key=key, hung_up=(left := asyncio.Event())))
                await asyncio.sleep(rng.random() * 0.05)
                if number % 3 != 1:
                    left.set()
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
            await h.until_idle()
            await h.balance()
            assert set(settled.values()) == {1}
            kept = 0
            for row in await h.ledger.statement(h.principal.account_id):
                if row.kind == "hold":
                    task = await h.ledger.task(row.task_id)
                    images = await h.ledger.images(task.id)
                    ends[task.state] += 1
                    kept += len(images)
                    assert (task.state == "succeeded") == (len(images) == 2)
            assert min(ends[state] for state in ("succeeded", "failed", "cancelled")) > 0, ends
            assert len(h.blobs()) == kept

    run(check())


def test_who_leaves_when_all_is_drawn_gets_what_is_charged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check() -> None:
        gone, stored = asyncio.Event(), asyncio.Event()
        store = Deliverer.store

        async def slowly(self: Deliverer, drawn: Drawn, **options):
            result = await store(self, drawn, **options)
            stored.set()
            await asyncio.sleep(0.1)
            return result

        monkeypatch.setattr(Deliverer, "store", slowly)
        async with house(tmp_path) as h:
            work = asyncio.create_task(h.draw(hung_up=gone))
            await stored.wait()
            gone.set()
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            row = await h.ledger.task(h.provider.orders[0].task_id)
            assert (row.state, row.charged) == ("succeeded", 5_000)
            assert len(h.blobs()) == 1
            assert await h.balance() == 95_000

    run(check())


def test_refused_before_the_hold(tmp_path: Path) -> None:
    async def check() -> None:
        async with house(tmp_path) as h:
            for fields in (
                {"prompt": "how to make a bomb"},
                {"negative_prompt": "how to make a bomb"},
                {"history": ("how to make a bomb",)},
            ):
                with pytest.raises(ContentRefused):
                    await h.draw("draw", **fields)
            with pytest.raises(WaiverRequired, match="watermark_enabled"):
                await h.draw("cogview-4", "zhipu", ai_label=False)
            assert h.provider.orders == []
            assert await h.balance() == 100_000

    run(check())


def test_quota(tmp_path: Path) -> None:
    async def check() -> None:
        async with house(tmp_path) as h:
            await h.draw(n=10, quality="hd")
            with pytest.raises(QuotaExceeded):
                await h.draw()
            assert await h.balance() == 0
            assert len(h.provider.orders) == 1

    run(check())


def test_the_extended_prompt_is_drawn_and_told(tmp_path: Path) -> None:
    async def check() -> None:
        async with house(tmp_path) as h:
            outcome = await h.draw(prompt_extend=True, style="vivid")
            (order,) = h.provider.orders
            assert order.prompt == outcome.result.revised_prompt != "a cat"
            assert {level.role for level in outcome.result.safety} == {"user", "assistant"}

    run(check())


def test_a_full_disk_charges_nothing(tmp_path: Path) -> None:
    async def check() -> None:
        async with house(tmp_path) as h:
            blobs = h.images
            blobs.chmod(0o700)
            for path in blobs.iterdir():
                path.rmdir()
            blobs.rmdir()
            blobs.write_text("a file where the folder should be")
            with pytest.raises(ServerFault):
                await h.draw()
            assert await h.balance() == 100_000

    run(check())


def test_a_server_that_stops_charges_nothing(tmp_path: Path) -> None:
    """Cancelled without a hang-up: our own doing, draw's rule or not."""

    async def check() -> None:
        reached = asyncio.Event()

        async def script(order: DrawOrder) -> AsyncGenerator[Event, None]:
            yield Stepped(0, 4, 8)
            reached.set()
            await asyncio.sleep(60)

        async with house(tmp_path, script) as h:
            for model in ("draw", "dall-e-3"):
                reached.clear()
                work = asyncio.create_task(h.draw(model))
                await reached.wait()
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
            assert await h.balance() == 100_000

    run(check())


def test_telling_that_it_runs_holds_up_no_event(tmp_path: Path) -> None:
    """A database that takes its time: what was done of both images at once counts for both."""
    asked = asyncio.Event()

    async def script(order: DrawOrder) -> AsyncGenerator[Event, None]:
        yield Stepped(0, 1, 1)
        yield Stepped(1, 1, 1)
        asked.set()
        await asyncio.sleep(60)

    async def check() -> None:
        async with house(tmp_path, script) as h:
            renew, told = h.ledger.renew, asyncio.Event()

            async def slow(*args) -> bool:
                await told.wait()
                return await renew(*args)

            h.ledger.renew = slow
            feed, hung_up = Feed(), asyncio.Event()
            work = asyncio.create_task(h.draw(n=2, feed=feed, hung_up=hung_up))
            await asyncio.wait_for(asked.wait(), 60)
            hung_up.set()
            work.cancel()
            await asyncio.sleep(0)
            told.set()
            await asyncio.gather(work, return_exceptions=True)
            assert await h.balance() == 90_000

    run(check())


def test_a_missed_heartbeat_is_made_up_for(tmp_path: Path) -> None:
    """By the ledger's clock a heartbeat comes every third of the lease, to the millisecond."""
    lease_s = 0.3
    done = asyncio.Event()

    async def script(order: DrawOrder) -> AsyncGenerator[Event, None]:
        await done.wait()
        yield image(order, 0)

    async def check() -> None:
        async with house(tmp_path, script, task_lease_s=lease_s) as h:
            now_ms, beats = h.ledger._clock_ms(), 0
            h.ledger._clock_ms = lambda: now_ms
            renew = h.ledger.renew

            async def flaky(*args) -> bool:
                nonlocal now_ms, beats
                now_ms += round(lease_s * 1000 / 3)
                beats += 1
                assert await h.ledger.overdue() == []
                if beats == 1:
                    raise ServerFault("locked")
                if beats == 6:
                    done.set()
                return await renew(*args)

            h.ledger.renew = flaky
            assert (await h.draw()).charged == 5_000
            assert beats >= 6
            assert await h.balance() == 95_000

    run(check())


def test_a_task_that_lost_its_lease_stops_and_leaves_nothing(tmp_path: Path) -> None:
    async def script(order: DrawOrder) -> AsyncGenerator[Event, None]:
        yield image(order, 0)
        await asyncio.sleep(60)

    async def check() -> None:
        async with house(tmp_path, script, task_lease_s=0.3) as h:
            renew, taken = h.ledger.renew, asyncio.Event()

            async def late(*args) -> bool:
                await taken.wait()
                return await renew(*args)

            h.ledger.renew = late
            work = asyncio.create_task(h.draw(n=2))
            await until(h.blobs)
            row = await h.ledger.task(h.provider.orders[0].task_id)
            claimed = await h.ledger.claim(row, 30)  # another server does
            await h.ledger.expire(claimed)
            taken.set()
            with pytest.raises(Unavailable, match="taken over"):
                await asyncio.wait_for(work, 60)
            assert h.blobs() == []
            assert await h.balance() == 100_000

    run(check())


def test_one_image_that_cannot_be_stored_costs_only_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Deliverer.store

    async def flaky(self: Deliverer, drawn: Drawn, **options):
        if drawn.index == 1:
            raise Unavailable("full")
        return await store(self, drawn, **options)

    monkeypatch.setattr(Deliverer, "store", flaky)

    async def check() -> None:
        async with house(tmp_path) as h:
            outcome = await h.draw("jimeng-4.0", n=4)
            failed = [isinstance(image, DanqingError) for image in outcome.result.images]
            assert failed == [False, True, False, False]
            assert outcome.charged == 3_750
            assert len(h.blobs()) == 3
            assert await h.balance() == 96_250

    run(check())


@pytest.mark.parametrize("keyed", [True, False])
def test_an_end_that_the_database_does_not_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keyed: bool
) -> None:
    """With a key its client comes back for the images; without one it pays for nothing it did not get."""
    monkeypatch.setattr(settling, "_FIRST_WAIT_S", 0.001)
    key = ClientKey("k" * 64, "f" * 64) if keyed else None

    async def check() -> None:
        async with house(tmp_path, task_lease_s=0.2) as h:
            settle, tries = h.ledger.settle, []

            async def broken(*args, **options) -> None:
                tries.append(options["transfer_id"])
                raise Unavailable("locked")

            h.ledger.settle = broken
            with pytest.raises(Unavailable):
                await h.draw(key=key)
            assert Counter(tries)[tries[0]] == settling._TRIES
            await asyncio.sleep(0.2)
            assert len(h.blobs()) == 1  # whatever was written, nothing is thrown away yet
            h.ledger.settle = settle
            await h.sweep_until_quiet()
            assert await h.balance() == (95_000 if keyed else 100_000)
            assert len(h.blobs()) == (1 if keyed else 0)
            if keyed:
                assert (await h.draw(key=key)).replayed is True

    run(check())


def test_a_charge_that_was_written_after_all_is_not_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settling, "_FIRST_WAIT_S", 0.001)

    async def check() -> None:
        async with house(tmp_path, task_lease_s=0.2) as h:
            settle = h.ledger.settle

            async def unheard(*args, **options) -> None:
                await settle(*args, **options)
                raise Unavailable("the connection broke")

            h.ledger.settle = unheard
            with pytest.raises(Unavailable):
                await h.draw()
            await h.until_idle()
            assert await h.balance() == 95_000
            assert len(h.blobs()) == 1

    run(check())


def test_an_end_whose_answer_got_lost_is_written_once(tmp_path: Path) -> None:
    async def check() -> None:
        async with house(tmp_path) as h:
            settle, lost = h.ledger.settle, [Unavailable("the connection broke")]

            async def unheard(*args, **options) -> None:
                await settle(*args, **options)
                if lost:
                    raise lost.pop()

            h.ledger.settle = unheard
            assert (await h.draw()).charged == 5_000
            assert await h.balance() == 95_000
            assert len(h.blobs()) == 1

    run(check())


def test_a_failure_that_the_database_does_not_take_costs_nothing_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settling, "_FIRST_WAIT_S", 0.001)

    async def script(order: DrawOrder) -> AsyncGenerator[Event, None]:
        yield image(order, 0)
        await asyncio.sleep(0.1)
        raise EngineFailed("lost")

    async def check() -> None:
        async with house(tmp_path, script, task_lease_s=0.2) as h:
            settle = h.ledger.settle

            async def broken(*args, **options) -> None:
                raise Unavailable("locked")

            h.ledger.settle = broken
            with pytest.raises(Unavailable):
                await h.draw(n=2)
            assert h.blobs() == []
            h.ledger.settle = settle
            await h.sweep_until_quiet()
            assert await h.balance() == 100_000

    run(check())


def test_a_hold_whose_answer_got_lost_is_written_once(tmp_path: Path) -> None:
    async def check() -> None:
        for key in (None, ClientKey("k" * 64, "f" * 64)):
            async with house(tmp_path / str(key is None)) as h:
                open_task, lost = h.ledger.open_task, [Unavailable("the connection broke")]

                async def unheard(*args, open_task=open_task, lost=lost, **options):
                    row = await open_task(*args, **options)
                    if lost:
                        raise lost.pop()
                    return row

                h.ledger.open_task = unheard
                assert (await h.draw(key=key)).replayed is False
                assert await h.balance() == 95_000

    run(check())


def test_a_slow_disk_does_not_lose_the_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is renewed for as long as an image is being stored."""
    store = Deliverer.store

    async def check() -> None:
        async with house(tmp_path, task_lease_s=0.3) as h:

            async def slowly(self: Deliverer, drawn: Drawn, **options):
                leases: set[int] = set()
                async with asyncio.timeout(60):
                    while len(leases) < 4:
                        leases.add((await h.ledger.task(options["task_id"])).lease_until_ms)
                        await asyncio.sleep(0.01)
                return await store(self, drawn, **options)

            monkeypatch.setattr(Deliverer, "store", slowly)
            assert (await h.draw()).charged == 5_000

    run(check())


@pytest.mark.parametrize(
    ("backend", "fallbacks", "ours"),
    [
        ("dashscope", [], True),  # their APIs have no AI label that could be asked for
        ("openai", [], True),
        ("chat", [], True),
        ("draw", [], True),
        ("zhipu", [], False),
        ("ark", [], False),
        ("zhipu", ["ark"], False),
        ("zhipu", ["dashscope"], True),
    ],
)
def test_what_a_provider_does_not_label_we_do(
    tmp_path: Path, backend: str, fallbacks: list[str], ours: bool
) -> None:
    dialects = {backend, *fallbacks}
    text = "".join(
        f'[backends.{name}]\ndialect = "{name}"\nbase_url = "http://127.0.0.1:1/v1"\nlabels = "provider"\n'
        for name in dialects
    )
    text += (
        f'[models.dall-e-3]\nbackend = "{backend}"\nfallbacks = {fallbacks}\nlabel_visible = true\n'
    )
    (tmp_path / "catalog.toml").write_text(text.replace("'", '"'))

    async def check() -> None:
        async with house(tmp_path, catalog_file=tmp_path / "catalog.toml") as h:
            outcome = await h.draw()
            (row,) = await h.ledger.images(outcome.task_id)
            assert row.label_visible is ours
            (blob,) = h.blobs()
            colours = {tuple(pixel) for pixel in codecs.decode(blob.read_bytes()).reshape(-1, 3)}
            assert (len(colours) > 2) is ours

    run(check())


def test_a_brand_mark_is_drawn_once_and_beside_the_label(tmp_path: Path) -> None:
    async def branded(order: DrawOrder) -> AsyncGenerator[Event, None]:
        yield Started(0)
        yield Stepped(0, 8, 8)
        yield dataclasses.replace(image(order, 0), branded=order.task.brand_mark)

    async def drawn(h: House, **fields) -> tuple[bool, bool, bool]:
        """Whether the provider was asked for its mark; what stands to the left and to the right below."""
        before = set(h.blobs())
        await h.draw(**fields)
        (blob,) = set(h.blobs()) - before
        pixels = codecs.decode(blob.read_bytes())[200:].astype(int) - 90
        left, right = (np.abs(part).max() > 60 for part in (pixels[:, :100], pixels[:, 150:]))
        return h.provider.orders[-1].task.brand_mark, bool(left), bool(right)

    async def check() -> None:
        async with house(tmp_path / "ours") as h:
            assert await drawn(h, brand_mark=True) == (True, True, False)
            assert await drawn(h) == (False, False, False)
        async with house(tmp_path / "theirs", branded) as h:
            assert await drawn(h, brand_mark=True) == (True, False, False)
            # CogView's visible label would stand on a provider's mark: it is not asked for one.
            asked = {"model": "cogview-4", "dialect": "zhipu", "brand_mark": True}
            assert await drawn(h, **asked) == (False, True, True)

    run(check())


def test_an_image_is_on_the_disk_before_it_is_paid_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check() -> None:
        async with house(tmp_path) as h:
            order: list[str] = []
            fsync, settle = os.fsync, h.ledger.settle

            def seen(handle: int) -> None:
                fsync(handle)
                order.append(os.readlink(f"/proc/self/fd/{handle}"))

            async def paid(*args, **how) -> None:
                order.append("paid")
                await settle(*args, **how)

            monkeypatch.setattr(os, "fsync", seen)
            monkeypatch.setattr(h.ledger, "settle", paid)
            outcome = await h.draw(n=2)
            at = order.index("paid")
            for image in await h.ledger.images(outcome.task_id):
                path = str(h.images / image.blob_key)
                (written,) = [one for one in order[:at] if one.startswith(f"{path}#")]
                assert os.path.dirname(path) in order[order.index(written) : at]

    run(check())


def test_base64_is_the_stored_file_and_encoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check() -> None:
        async with house(tmp_path) as h:
            encode, calls = codecs.encode, []

            def counted(*args, **how) -> bytes:
                calls.append(args[1])
                return encode(*args, **how)

            monkeypatch.setattr(codecs, "encode", counted)
            outcome = await h.draw(n=2, delivery=Delivery(form="b64_json", format="webp"))
            assert calls == ["webp", "webp"]
            rows = await h.ledger.images(outcome.task_id)
            for row, shown in zip(rows, outcome.result.delivered, strict=True):
                assert base64.b64decode(shown.b64) == (h.images / row.blob_key).read_bytes()
            task = await h.ledger.task(outcome.task_id)
            again = await h.gallery.outcome(task, "http://here")
            assert [one.b64 for one in again.result.delivered] == [
                one.b64 for one in outcome.result.delivered
            ]
            assert len(calls) == 2

    run(check())
