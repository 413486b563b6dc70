"""Every image given out without the AI label is on record, for longer than six months, whatever becomes of it and its account."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
from tests.service.house import House, house, run

from danqing.db.rows import UnlabelledRow
from danqing.domain.errors import ContentRefused, InvalidField, WaiverRequired
from danqing.domain.ports import DrawOrder
from danqing.domain.sizes import Size
from danqing.domain.task import Linked
from danqing.service.auth import Authenticator
from danqing.service.forgetting import Forgetting
from danqing.service.refusals import Refusals

DAY_MS = 86_400_000


async def act_as(h: House, account: str) -> str:
    """Draw for this account from now on; its id."""
    token = await h.books.tokens.create(account, by="test")
    h.principal = await Authenticator(h.books.db, h.books.keys).authenticate(
        f"Bearer {token}", None
    )
    return h.principal.account_id


async def housekeeping(h: House, days: float) -> None:
    """All that servers and the command line delete, so many days from now, again and again on the way."""
    for day in (1, days / 2, days):
        at_ms = int(time.time() * 1000 + day * DAY_MS)
        h.retention._clock_ms = lambda at_ms=at_ms: at_ms
        await h.retention.delete_expired()
        await h.retention.delete_orphans()
        await h.retention.prune()
        await h.retention.sweep()
        await Forgetting(h.books.db, 1, lambda at_ms=at_ms: at_ms).sweep()
        await Refusals(h.books.db, lambda at_ms=at_ms: at_ms).prune()
        await h.recovery.sweep()


def test_the_record_outlives_the_image_its_account_and_every_sweep(
    database_url: str, tmp_path: Path
) -> None:
    async def check() -> None:
        async with house(tmp_path, database_url=database_url) as h:
            await h.books.accounts.create("waived", 100_000)
            await h.books.accounts.waive("waived", signer="Ms Li")
            account_id = await act_as(h, "waived")
            await h.draw("cogview-4", "zhipu")  # with the label
            drawn = await h.draw(n=2, ai_label=False, end_user="reader-7")
            rows = await h.books.images.unlabelled("", 10)
            assert [(row.task_id, row.idx) for row in rows] == [
                (drawn.task_id, 0),
                (drawn.task_id, 1),
            ]
            (waiver,) = await h.books.accounts.waivers("waived")
            images = await h.ledger.images(drawn.task_id)
            for row, image in zip(rows, images, strict=True):
                assert (row.image_id, row.sha256) == (image.id, image.sha256)
                assert (row.width, row.height, row.label_metadata) == (256, 256, True)
                assert (row.waiver_id, row.signer) == (waiver.id, "Ms Li")
                assert (row.account_name, row.end_user) == ("waived", "reader-7")
                assert not image.label_visible

            await h.books.accounts.revoke_waiver("waived", by="test")
            await h.books.accounts.delete(account_id, by="test")
            await h.books.accounts.create("waived", 100_000)  # somebody else of the same name
            await housekeeping(h, 400)
            assert h.blobs() == []
            kept = await h.books.images.unlabelled("", 10, account_id)
            assert [replace(row, account_name="waived", deleted_ms=None) for row in kept] == rows
            assert all(row.deleted_ms is not None for row in kept)
            assert {row.account_name for row in kept} == {f"deleted-{account_id}"}
            (still,) = await h.books.accounts.waivers(account_id)
            assert (still.text, still.signed_ms) == (waiver.text, waiver.signed_ms)
            successor = await h.books.accounts.get("waived")
            assert await h.books.images.unlabelled("", 10, successor.id) == []

    run(check())


def test_pages_hold_every_image_once(tmp_path: Path) -> None:
    async def check() -> None:
        async with house(tmp_path) as h:
            for name in ("one", "two"):
                await h.books.accounts.create(name, 100_000)
                await h.books.accounts.waive(name)
                await act_as(h, name)
                await h.draw(n=3, ai_label=False)
                await h.draw(n=1)
                await h.draw(n=1, ai_label=False)
            whole = await h.books.images.unlabelled("", 100)
            assert len(whole) == 8
            paged: list[UnlabelledRow] = []
            while rows := await h.books.images.unlabelled(paged[-1].id if paged else "", 3):
                paged += rows
            assert paged == whole
            mine = await h.books.images.unlabelled("", 100, h.principal.account_id)
            assert mine == whole[4:]
            assert (
                await h.books.images.unlabelled(mine[1].id, 100, h.principal.account_id)
                == (mine[2:])
            )
            for after in ("x", "0", f"{mine[0].task_id}.-1", f"{mine[0].task_id}.0.0", "a" * 600):
                with pytest.raises(InvalidField) as caught:
                    await h.books.images.unlabelled(after, 3)
                assert caught.value.param == "after"

    run(check())


def test_links_that_are_passed_on_are_recorded_too_and_what_nobody_got_is_not(
    tmp_path: Path,
) -> None:
    async def passes_on(order: DrawOrder):
        yield Linked(0, "https://elsewhere.example/a.png", Size(256, 256), 1, "png")

    async def refuses(order: DrawOrder):
        raise ContentRefused("user", 0)
        yield

    async def check() -> None:
        async with house(tmp_path, passes_on) as h:
            with pytest.raises(WaiverRequired):
                await h.draw(ai_label=False)
            await h.books.accounts.waive("someone")
            await act_as(h, "someone")
            linked = await h.draw(ai_label=False)
            h.provider.script = refuses
            with pytest.raises(ContentRefused):
                await h.draw(ai_label=False)
            (row,) = await h.books.images.unlabelled("", 10)
            assert (row.id, row.idx, row.image_id, row.label_metadata) == (
                linked.task_id,
                None,
                None,
                None,
            )
            assert await h.books.images.unlabelled(row.id, 10) == []

    run(check())
