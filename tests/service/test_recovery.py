"""What becomes of the tasks of a server that died, and of what it left in the blob store."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.service.house import House, house, image, run, until

from danqing.domain.errors import Busy, DanqingError, Unavailable
from danqing.domain.ids import uuid7
from danqing.domain.ports import DrawOrder
from danqing.domain.task import Event, Stepped
from danqing.service import recovery
from danqing.service.calls import ClientKey

KEY = ClientKey("k" * 64, "f" * 64)
LEASE_S = 0.3


def dying(images: int):
    """A provider that draws some images, and then never again says anything."""

    async def script(order: DrawOrder) -> AsyncGenerator[Event, None]:
        for index in range(images):
            yield image(order, index)
        yield Stepped(0, 8, 8)
        await asyncio.sleep(3600)

    return script


async def kill(h: House, **how) -> str:
    """Start a task, wait until all that comes is stored, and let go of it as a killed server would."""
    expected = how.pop("stored")
    work = asyncio.create_task(h.draw(**how))
    # A blob that is still being written would appear after others have looked what there is.
    while sum(blob.suffix == ".png" for blob in h.blobs()) < expected or not h.provider.orders:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    await let_go(h)
    await asyncio.gather(work, return_exceptions=True)
    return h.provider.orders[-1].task_id


async def let_go(h: House) -> None:
    """End all that goes on, settling nothing and renewing nothing."""
    h.pipeline._running = set()
    h.pipeline._works.clear()
    going = asyncio.all_tasks() - {asyncio.current_task()}
    for task in going:
        task.cancel()
    await asyncio.gather(*going, return_exceptions=True)


async def dead_draw(tmp_path: Path, stored: int, **how) -> str:
    """What a server leaves that was killed after storing some of its images."""
    options = how.pop("options", {"task_lease_s": LEASE_S})
    async with house(tmp_path, dying(stored), **options) as h:
        settle = h.ledger.settle

        async def never(*args, **options) -> None:
            raise asyncio.CancelledError

        h.ledger.settle = never
        task_id = await kill(h, stored=stored, **how)
        h.ledger.settle = settle
        assert (await h.ledger.task(task_id)).is_open
        return task_id


def test_what_was_stored_is_posted(tmp_path: Path) -> None:
    async def check() -> None:
        task_id = await dead_draw(tmp_path, 2, n=2, seed=5)
        async with house(tmp_path, task_lease_s=LEASE_S) as h:
            await h.sweep_until_quiet()
            row, images = await h.gallery.task(task_id, h.principal.account_id)
            assert (row.state, row.charged, len(images)) == ("succeeded", 10_000, 2)
            assert [one.seed for one in images] == [5, 6]
            assert await h.balance() == 90_000
            assert h.provider.orders == []
            outcome = await h.gallery.outcome(row, "http://here")
            assert len(outcome.result.delivered) == 2

    run(check())


def test_seeds_that_nobody_drew_by_are_not_told(tmp_path: Path) -> None:
    """Whoever knew whether the provider takes seeds has died; what the client asked for was honoured."""
    file = tmp_path / "catalog.toml"
    file.write_text(
        '[backends.far]\ndialect = "openai"\nbase_url = "http://127.0.0.1:1/v1"\n'
        '[models.dall-e-3]\nbackend = "far"\n'
    )

    async def check() -> None:
        for seed, told in ((None, ()), (5, (5, 6))):
            folder = tmp_path / str(seed)
            relayed = {"catalog_file": file, "task_lease_s": LEASE_S}
            task_id = await dead_draw(folder, 2, n=2, seed=seed, options=relayed)
            async with house(folder, **relayed) as h:
                await h.sweep_until_quiet()
                row, images = await h.gallery.task(task_id, h.principal.account_id)
                assert (row.state, len(images)) == ("succeeded", 2)
                assert (await h.gallery.outcome(row, "http://here")).seeds == told
                assert not (row.result or {}).get("upstream", {}).get("requests")

    run(check())


def test_of_some_images_those_are_charged(tmp_path: Path) -> None:
    async def check() -> None:
        task_id = await dead_draw(tmp_path, 1, n=3)
        async with house(tmp_path, task_lease_s=LEASE_S) as h:
            await h.sweep_until_quiet()
            row = await h.ledger.task(task_id)
            assert (row.state, row.charged) == ("succeeded", 5_000)
            outcome = await h.gallery.outcome(row, "http://here")
            assert [isinstance(one, DanqingError) for one in outcome.result.images] == [0, 1, 1]
            assert await h.balance() == 95_000

    run(check())


def test_nothing_stored_costs_nothing(tmp_path: Path) -> None:
    async def check() -> None:
        for model in ("dall-e-3", "draw"):
            task_id = await dead_draw(tmp_path / model, 0, model=model)
            async with house(tmp_path / model, task_lease_s=LEASE_S) as h:
                await h.sweep_until_quiet()
                row = await h.ledger.task(task_id)
                assert (row.state, row.charged) == ("failed", 0)
                assert await h.balance() == 100_000

    run(check())


def test_a_client_with_a_key_gets_its_image_from_the_next_server(tmp_path: Path) -> None:
    async def check() -> None:
        task_id = await dead_draw(tmp_path, 1, n=2, key=KEY, seed=3)
        async with house(tmp_path, task_lease_s=LEASE_S) as h:
            back = asyncio.create_task(h.draw(n=2, key=KEY, seed=3))
            while not back.done():
                await h.recovery.sweep()
                await asyncio.sleep(0.05)
            outcome = await back
            assert (outcome.task_id, outcome.charged, outcome.replayed) == (task_id, 10_000, True)
            assert h.provider.orders[0].seeds == (3, 4)
            assert (await h.ledger.task(task_id)).draws == 2
            assert await h.balance() == 90_000
            await h.until_idle()
            assert len(h.blobs()) == 2  # what the dead one had stored is gone

    run(check())


def test_a_background_task_is_requeued_once(tmp_path: Path) -> None:
    async def check() -> None:
        task_id = await dead_draw(tmp_path, 0, background=True)
        async with house(tmp_path, dying(0), task_lease_s=LEASE_S) as h:
            while not h.provider.orders:
                await h.recovery.sweep()
                await asyncio.sleep(0.05)
            assert h.provider.orders[0].task_id == task_id
            await let_go(h)
            await h.sweep_until_quiet()
            row = await h.ledger.task(task_id)
            assert (row.state, row.draws, row.charged) == ("failed", 2, 0)
            assert await h.balance() == 100_000

    run(check())


def test_a_task_whose_owner_lives_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lease looks over, because the clock has jumped ahead; but it keeps being renewed.

    By the other server's own clock a heartbeat takes half a lease, however long it takes here.
    """
    now_s, beats = 0.0, 0
    monkeypatch.setattr(recovery, "time", SimpleNamespace(monotonic=lambda: now_s))

    async def check() -> None:
        nonlocal now_s
        async with house(tmp_path, dying(0), task_lease_s=LEASE_S) as h:
            renew = h.ledger.renew

            async def counted(*args) -> bool:
                nonlocal beats
                try:
                    return await renew(*args)
                finally:
                    beats += 1

            h.ledger.renew = counted
            work = asyncio.create_task(h.draw())
            await until(lambda: h.provider.orders)
            async with house_beside(tmp_path) as other:
                clock_ms = other.ledger._clock_ms
                other.ledger._clock_ms = lambda: clock_ms() + 20_000
                for _ in range(6):
                    done = await other.recovery.sweep()
                    assert (done.posted, done.requeued, done.expired) == ([], [], [])
                    now_s += LEASE_S / 2
                    was = beats
                    await until(lambda: beats > was)  # noqa: B023 - at once
                assert (await h.ledger.open_holds()).count == 1
                await let_go(h)
                await asyncio.gather(work, return_exceptions=True)
                await other.recovery.sweep()
                now_s += 2 * LEASE_S
                assert len((await other.recovery.sweep()).expired) == 1

    run(check())


def house_beside(folder: Path):
    return house(folder, dying(0), task_lease_s=LEASE_S, account="beside")


def test_blobs_that_are_no_image_are_deleted_in_time(tmp_path: Path) -> None:
    async def check() -> None:
        async with house(tmp_path) as h:
            outcome = await h.draw(n=2)
            (one, two) = h.blobs()
            orphan = one.with_name("7-0123456789a.png")
            orphan.write_bytes(b"x")
            part = one.with_name("8-0123456789a.png#1")
            part.write_bytes(b"x")
            hour_ago_s = time.time() - 3700
            os.utime(part, (hour_ago_s, hour_ago_s))
            assert await h.retention.delete_orphans() == 1  # the half-written one
            assert orphan.exists()  # its task has ended just now: somebody may still be at it
            assert await h.retention.delete_orphans(older_than_s=0) == 1
            assert sorted(h.blobs()) == sorted([one, two])
            assert outcome.charged == 10_000

    run(check())


def test_a_recoverer_that_stalls_takes_nothing_from_who_was_faster(tmp_path: Path) -> None:
    async def check() -> None:
        task_id = await dead_draw(tmp_path, 1, n=2, key=KEY)
        async with (
            house(tmp_path, task_lease_s=LEASE_S) as slow,
            house(tmp_path, task_lease_s=LEASE_S, account="beside") as fast,
        ):
            found, claimed, go_on = slow.recovery._deliverer.found, asyncio.Event(), asyncio.Event()

            async def stalled(*args, **how):
                claimed.set()
                await go_on.wait()
                return await found(*args, **how)

            slow.recovery._deliverer.found = stalled

            async def sweep_slowly() -> None:
                while not claimed.is_set():
                    await slow.recovery.sweep()
                    await asyncio.sleep(0.05)

            sweeping = asyncio.create_task(sweep_slowly())
            await claimed.wait()
            await fast.sweep_until_quiet()
            # The charge is written first, then what the dead server had stored is deleted.
            await until(lambda: len(fast.blobs()) == 2)
            blobs = sorted(fast.blobs())
            go_on.set()
            await sweeping
            await slow.until_idle()
            assert sorted(fast.blobs()) == blobs
            assert len(await fast.ledger.images(task_id)) == 2
            assert slow.provider.orders == []

    run(check())


def test_a_full_queue_does_not_lose_a_background_task(tmp_path: Path) -> None:
    refusals = [Busy(1), Busy(1), Busy(1)]

    async def script(order: DrawOrder) -> AsyncGenerator[Event, None]:
        if refusals:
            raise refusals.pop()
        yield image(order, 0)

    async def check() -> None:
        async with house(tmp_path, script, task_lease_s=LEASE_S) as h:
            accepted = await h.draw(background=True)
            await h.sweep_until_quiet()
            row = await h.ledger.task(accepted.task_id)
            assert (row.state, row.draws, row.charged) == ("succeeded", 1, 5_000)
            assert len(h.provider.orders) == 4

    run(check())


def test_stopping_a_server_does_not_count_as_a_drawing(tmp_path: Path) -> None:
    async def check() -> None:
        async with house(tmp_path, dying(0), task_lease_s=LEASE_S) as h:
            accepted = await h.draw(background=True)
            while not h.provider.orders:
                await asyncio.sleep(0.01)
        for _ in range(3):
            async with house(tmp_path, dying(0), task_lease_s=LEASE_S) as h:
                while not h.provider.orders:
                    await h.recovery.sweep()
                    await asyncio.sleep(0.02)
        async with house(tmp_path, task_lease_s=LEASE_S) as h:
            await h.sweep_until_quiet()
            assert (await h.ledger.task(accepted.task_id)).state == "succeeded"
            assert await h.balance() == 95_000

    run(check())


def test_a_hiccup_of_the_database_does_not_end_a_task(tmp_path: Path) -> None:
    async def check() -> None:
        task_id = await dead_draw(tmp_path, 0, background=True)
        async with house(tmp_path, task_lease_s=LEASE_S) as h:
            draw_again, failures = h.ledger.draw_again, [Unavailable("locked")]

            async def flaky(row):
                if failures:
                    raise failures.pop()
                return await draw_again(row)

            h.ledger.draw_again = flaky
            await h.sweep_until_quiet()
            assert failures == []
            assert (await h.ledger.task(task_id)).state == "succeeded"

    run(check())


def test_a_task_nobody_understands_is_given_back_and_holds_up_no_other(tmp_path: Path) -> None:
    async def check() -> None:
        first = await dead_draw(tmp_path, 0, background=True)
        second = await dead_draw(tmp_path, 1)
        async with house(tmp_path, task_lease_s=LEASE_S) as h:
            kept = json.dumps({"task": {"colour": "red"}, "seeds": []})
            await h.ledger._db.write(
                lambda conn: conn.exec_driver_sql(
                    f"UPDATE tasks SET request = '{kept}' WHERE id = '{first}'"
                )
            )
            await h.sweep_until_quiet()
            assert (await h.ledger.task(first)).state == "failed"
            assert (await h.ledger.task(second)).state == "succeeded"

    run(check())


def test_a_dead_servers_task_can_be_cancelled(tmp_path: Path) -> None:
    async def check() -> None:
        task_id = await dead_draw(tmp_path, 0, background=True)
        async with house(tmp_path, task_lease_s=LEASE_S) as h:
            await h.pipeline.cancel(task_id)
            await h.sweep_until_quiet()
            row = await h.ledger.task(task_id)
            assert (row.state, row.charged, row.error["code"]) == ("cancelled", 0, "cancelled")
            assert h.provider.orders == []

    run(check())


def test_a_blob_of_no_task_is_not_ours_to_delete(tmp_path: Path) -> None:
    """The database was restored from yesterday, say."""

    async def check() -> None:
        async with house(tmp_path) as h:
            await h.draw()
            (blob,) = h.blobs()
            stranger = blob.parent.with_name(uuid7()) / "0-0123456789a.png"
            stranger.parent.mkdir()
            stranger.write_bytes(b"x")
            assert await h.retention.delete_orphans(older_than_s=0) == 0
            assert stranger.exists()

    run(check())


def test_an_image_that_cannot_be_deleted_is_tried_again(tmp_path: Path) -> None:
    async def check() -> None:
        async with house(tmp_path) as h:
            await h.draw(n=2)
            h.retention._clock_ms = lambda: (time.time_ns() // 1_000_000) + 31 * 86_400_000
            delete, failures = h.retention._blobs.delete, [Unavailable("forbidden")]

            async def flaky(key: str) -> None:
                if key.endswith(".png") and failures:
                    raise failures.pop()
                await delete(key)

            h.retention._blobs.delete = flaky
            assert await h.retention.delete_expired() == 1
            assert len(h.blobs()) == 1
            assert await h.retention.delete_expired() == 1
            assert h.blobs() == []

    run(check())


def test_images_past_their_time_are_deleted(tmp_path: Path) -> None:
    async def check() -> None:
        async with house(tmp_path) as h:
            outcome = await h.draw()
            assert await h.retention.delete_expired() == 0
            h.retention._clock_ms = lambda: (time.time_ns() // 1_000_000) + 31 * 86_400_000
            assert await h.retention.delete_expired() == 1
            assert h.blobs() == []
            (image_row,) = await h.ledger.images(outcome.task_id)
            assert image_row.deleted_ms is not None
            assert await h.retention.delete_expired() == 0

    run(check())
