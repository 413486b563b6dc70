"""Old prompts are blanked in the books, and nothing else is."""

from __future__ import annotations

from pathlib import Path

from tests.service.house import house, run

from danqing.service.forgetting import Forgetting, has_words, without_words

DAY_MS = 86_400_000


def test_old_prompts_are_forgotten_and_young_ones_kept(tmp_path: Path) -> None:
    async def check() -> None:
        async with house(tmp_path) as h:
            outcomes = [await h.draw(negative_prompt="dogs", prompt_extend=True) for _ in range(3)]
            before = [await h.ledger.task(outcome.task_id) for outcome in outcomes]
            assert all("a cat" in str(row.request) + str(row.result) for row in before)
            now_ms = before[-1].created_ms

            def forgetting(days: int, later_days: float) -> Forgetting:
                at_ms = int(now_ms + later_days * DAY_MS)
                return Forgetting(h.ledger._db, days, lambda: at_ms)

            assert await forgetting(180, 179).sweep() == 0
            assert await forgetting(0, 9999).sweep() == 0
            assert await forgetting(180, 181).sweep(dry_run=True) == 3
            assert [await h.ledger.task(row.id) for row in before] == before
            assert await forgetting(180, 181).sweep() == 3
            assert await forgetting(180, 181).sweep() == 0
            for old in before:
                row = await h.ledger.task(old.id)
                assert not has_words(row.request, row.result)
                for word in ("a cat", "dogs", "vivid"):
                    assert word not in str(row.request) + str(row.result)
                assert (row.charged, row.state, row.end_user) == (
                    old.charged,
                    old.state,
                    old.end_user,
                )
                assert row.request["task"]["size"] == old.request["task"]["size"]
            again = await h.gallery.outcome(await h.ledger.task(before[0].id), "http://here")
            assert len(again.result.delivered) == 1
            fresh = await h.draw()
            assert await forgetting(180, 181).sweep() == 1
            assert fresh.task_id != before[0].id
            assert await h.balance() == 100_000 - 4 * 5_000

    run(check())


def test_a_task_that_is_open_keeps_its_prompt(tmp_path: Path) -> None:
    async def check() -> None:
        async with house(tmp_path) as h:
            outcome = await h.draw()
            row = await h.ledger.task(outcome.task_id)
            await h.ledger._db.write(
                lambda conn: conn.exec_driver_sql(
                    "UPDATE tasks SET state = 'queued', finished_ms = NULL"
                )
            )
            later = Forgetting(h.ledger._db, 1, lambda: row.created_ms + 9 * DAY_MS)
            assert await later.sweep() == 0
            assert has_words((await h.ledger.task(row.id)).request, None)
            await h.ledger._db.write(
                lambda conn: conn.exec_driver_sql(
                    "UPDATE tasks SET state = 'succeeded', finished_ms = 1"
                )
            )
            assert await later.sweep() == 1

    run(check())


def test_providers_words_go_too() -> None:
    request = {"task": {"prompt": "a", "negative_prompt": "b", "n": 2}, "held": 3}
    result = {
        "revised_prompt": "ab",
        "upstream": {"requests": [{"backend": "x", "refusal": "your a"}], "seeded": True},
    }
    assert without_words(request, result) == (
        {"task": {"prompt": "", "negative_prompt": "", "n": 2}, "held": 3},
        {"revised_prompt": None, "upstream": {"requests": [{"backend": "x"}], "seeded": True}},
    )
    assert without_words({}, None) == ({}, None)
