"""What is kept no longer goes, what is paid for and not past its time stays, and what does not fit together is said."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import obstore
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.dialects.cards import card
from tests.s3 import S3Server
from tests.service.house import House, house, run

from danqing.app import open_books
from danqing.domain.ids import uuid7
from danqing.service.delivery import DAY_S, Life, day_folder, task_folder
from danqing.service.thumbnails import copies_of, copy_key, is_copy, stem_of
from danqing.settings import SettingsError, load
from danqing.storage.blobs import OWNER_KEY, Blobs

DAY_MS = DAY_S * 1000


def later(h: House, days: float) -> None:
    """The housekeeping's clock, so many days ahead."""
    h.retention._clock_ms = lambda: time.time_ns() // 1_000_000 + round(days * DAY_MS)


@pytest.fixture(params=["folder", "s3"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """Settings that keep images in a folder, or in S3: the test runs with both."""
    if request.param == "folder":
        return {}
    s3: S3Server = request.getfixturevalue("s3")
    return {"blob_url": s3.url(s3.make_bucket())}


@pytest.fixture
def root_of_nobody(where: dict[str, str], tmp_path: Path) -> str:
    return where.get("blob_url", str(tmp_path / "images"))


def test_a_sweep_of_everything(tmp_path: Path, where: dict[str, str]) -> None:
    """Each kind of blob and row that there may be; a dry run says the same and touches nothing."""

    async def check() -> None:
        async with house(tmp_path, **where) as h:
            blobs = h.retention._blobs
            kept, lost = await h.draw(), await h.draw()
            (kept_row,), (lost_row,) = [await h.ledger.images(one.task_id) for one in (kept, lost)]
            for key in copies_of(kept_row.blob_key):
                await blobs.put(key, b"small")
            await blobs.delete(lost_row.blob_key)
            orphan = f"{task_folder(kept.task_id)}/7-0123456789a.png"
            orphaned_copy = copy_key(orphan, 256)
            stranger = f"{task_folder(uuid7())}/0-0123456789b.png"
            old_stranger = "ab/0123456789c.webp"
            young_input = f"{task_folder(uuid7())}/input-0.png"
            for key in (orphan, orphaned_copy, stranger, old_stranger, young_input):
                await blobs.put(key, b"x")
            everything = [
                key for folder in await blobs.folders() for key in await blobs.list(folder)
            ]
            later(h, 2 / 24)  # so that nothing is on its way any more
            dry = await h.retention.sweep(dry_run=True)
            assert dry.expired == 0
            assert sorted(dry.orphans) == sorted([orphan, orphaned_copy, young_input])
            assert sorted(dry.strangers) == sorted([stranger, old_stranger])
            assert dry.missing == [lost_row.id]
            now = [key for folder in await blobs.folders() for key in await blobs.list(folder)]
            assert now == everything
            assert await h.retention.sweep() == dry
            left = [key for folder in await blobs.folders() for key in await blobs.list(folder)]
            assert sorted(left) == sorted(
                [kept_row.blob_key, *copies_of(kept_row.blob_key), stranger, old_stranger]
            )
            later(h, 29)
            assert (await h.retention.sweep(dry_run=True)).expired == 0
            later(h, 31)
            dry = await h.retention.sweep(dry_run=True)
            assert (dry.expired, dry.expired_bytes) == (2, kept_row.bytes + lost_row.bytes)
            assert (await h.retention.sweep()).expired == 2
            left = [key for folder in await blobs.folders() for key in await blobs.list(folder)]
            assert sorted(left) == sorted([stranger, old_stranger])
            assert await h.retention.sweep() == replace(dry, expired=0, expired_bytes=0, missing=[])

    run(check())


def test_two_databases_never_have_one_store(tmp_path: Path, where: dict[str, str]) -> None:
    """The sweeper of one would take what the other's clients sent for a dead server's: it is not let in."""

    async def check() -> None:
        shared = {"blob_url": str(tmp_path / "shared")} | where
        settings = load(data_dir=tmp_path, **shared)
        others = load(data_dir=tmp_path / "theirs", **shared)
        async with open_books(settings) as mine, open_books(others) as theirs:
            async with mine.open_blobs(settings, dry_run=True):
                pass
            async with theirs.open_blobs(settings, dry_run=True):  # nobody's yet
                pass
            async with mine.open_blobs(settings) as blobs:
                waiting = f"{task_folder(uuid7())}/input-0.png"
                await blobs.put(waiting, b"x")
            for dry_run in (True, False):
                with pytest.raises(SettingsError, match="image store of another database"):
                    async with theirs.open_blobs(settings, dry_run=dry_run) as blobs:
                        raise AssertionError("it may sweep here")
            async with mine.open_blobs(settings) as blobs:  # again, and as often as it likes
                assert await blobs.list(waiting.rpartition("/")[0]) == [waiting]
                assert await blobs.folders() == [waiting.partition("/")[0]]
                obstore.delete(blobs._store, OWNER_KEY)
            async with theirs.open_blobs(settings):  # as the message says
                pass
            with pytest.raises(SettingsError, match=OWNER_KEY):
                async with mine.open_blobs(settings):
                    pass

    run(check())


def test_of_two_that_claim_a_store_at_once_one_gets_it(root_of_nobody: str) -> None:
    async def check() -> None:
        stores = [Blobs(root_of_nobody) for _ in range(8)]
        owners = await asyncio.gather(
            *[blobs.claim(f"database-{number}") for number, blobs in enumerate(stores)]
        )
        assert len(set(owners)) == 1

    run(check())


def test_what_others_keep_in_the_same_place_stays(tmp_path: Path, where: dict[str, str]) -> None:
    """A mounted disk has its `lost+found`, a bucket may be shared: a sweep names them and goes on."""

    async def check() -> None:
        async with house(tmp_path, **where) as h:
            store = h.retention._blobs._store
            folder = task_folder((await h.draw()).task_id)
            orphan = f"{folder}/7-0123456789a.png"
            others = [
                f"{folder}/Holiday 1.PNG",
                f"{folder}/notes/plan.txt",
                "ab/NOTES.txt",
                "x.txt",
            ]
            for key in (orphan, *others, "lost+found/a.txt", "My Files/0-0123456789a.png"):
                obstore.put(store, key, b"x")
            if not where:  # named as what a killed writer leaves of a blob, and of no blob
                photo = tmp_path / "images" / "My Files" / "photo#1"
                photo.write_bytes(b"x")
            later(h, 2 / 24)
            swept = await h.retention.sweep(dry_run=True)
            assert swept.orphans == [orphan]
            assert sorted(swept.strangers) == sorted(["lost+found/", "My Files/", *others])
            assert await h.retention.sweep() == swept
            assert await h.retention.delete_orphans() == 0
            for key in (*others, "lost+found/a.txt", "My Files/0-0123456789a.png"):
                assert bytes(obstore.get(store, key).bytes()) == b"x"
            assert where or photo.exists()

    run(check())


def test_many_sweep_at_once(tmp_path: Path) -> None:
    """As several servers and the command line do: each image is deleted, and the books say so once."""

    async def check() -> None:
        async with house(tmp_path) as h, house(tmp_path) as other:
            for _ in range(3):
                await h.draw(n=4)
            for one in (h, other):
                later(one, 31)
            swept = await asyncio.gather(
                h.retention.sweep(),
                other.retention.sweep(),
                h.retention.delete_expired(),
                other.retention.delete_expired(),
            )
            assert max(one if isinstance(one, int) else one.expired for one in swept) <= 12
            assert h.blobs() == []
            assert (await h.retention.sweep()).missing == []

    run(check())


def test_what_a_blob_is_called_by_says_whose_copy_it_is() -> None:
    key = f"20261121/{uuid7()}/0-0123456789a.png"
    assert copies_of(key) == [f"{key[:-4]}-w256.webp", f"{key[:-4]}-w512.webp"]
    for copy in copies_of(key):
        assert is_copy(copy)
        assert stem_of(copy) == stem_of(key) == key[:-4]
    for other in (key, key.replace(".png", ".webp"), f"{key[:-4]}-w64.webp"):
        assert not is_copy(other)


DAYS = st.integers(1, 3650)


@given(DAYS, st.none() | DAYS, st.none() | DAYS, st.none() | st.floats(0.1, 3650))
def test_how_long_an_image_lives(
    link: int, image: int | None, account: int | None, days_max: float | None
) -> None:
    """The account's word goes before the model's, the cap before both, and no link outlives its image."""
    model = card("m", link_ttl_s=link * DAY_S, image_ttl_s=None if image is None else image * DAY_S)
    life = Life.of(model, account, days_max)
    expected = account or image or link
    if days_max is not None:
        expected = min(expected, days_max)
    assert life.image_s == round(expected * DAY_S)
    assert life.link_s == min(link * DAY_S, life.image_s)


def test_the_day_of_a_folder_is_its_tasks() -> None:
    before, task_id, after = time.time(), uuid7(), time.time()
    days = [day_folder(int(at_s * 1000)) for at_s in (before, after)]
    assert any(task_folder(task_id).startswith(day[:6]) for day in days)
