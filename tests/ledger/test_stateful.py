"""The ledger against a model of it: any order, and many at once, of whatever it can be asked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Iterable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import select

from danqing.db import book_queries, checks, queries
from danqing.db.rows import NewTask, TaskRow
from danqing.db.tables import token_spending
from danqing.domain.errors import InvalidField, QuotaExceeded
from danqing.domain.ids import uuid7
from danqing.service.ledger import StaleTask, TransferConflict
from tests.ledger.model import NOBODY, Held, Model, Token
from tests.ledger.plain import PlainBooks, new_image, new_task, open_plain

CHARACTERS = st.integers(1, 60)
LEASE_S = st.sampled_from([10, 30, 100])
KEYS = st.sampled_from([None, None, "one", "two"])
STATES = st.sampled_from(["succeeded", "failed", "cancelled"])
# Two hours before the end of a day and of a month.
START_MS = 1_764_540_000_000
DAY_S = 86_400
LIMITS: list[dict[str, int]] = [
    {},
    {"budget_day": 90},
    {"budget_month": 120},
    {"budget_total": 150},
    {"concurrency_max": 2},
    {"budget_day": 60, "budget_month": 100, "budget_total": 110, "concurrency_max": 3},
]
TOKENS = st.sampled_from([None, *range(len(LIMITS))])
WHICH = st.integers(0, 50)
OPENING = st.tuples(
    st.sampled_from(["new", "new", "new", "again", "again", "changed", "no account", "no token"]),
    WHICH,
    st.integers(0, 60),
    TOKENS,
    KEYS,
)
ENDING = st.tuples(WHICH, st.integers(0, 70), STATES, st.booleans(), st.sampled_from([0, 0, 0, 1]))


class LedgerMachine(RuleBasedStateMachine):
    """Each example has an account of its own, in one database that all examples share."""

    def __init__(self, books: PlainBooks, runner: asyncio.Runner) -> None:
        super().__init__()
        self.books = books
        self.ledger = books.ledger
        self.runner = runner

    def do(self, deed: Awaitable[Any]) -> Any:
        async def work() -> Any:
            return await deed

        return self.runner.run(work())

    def outcome(self, deed: Awaitable[Any]) -> Any:
        """What is returned, or the type of what is raised."""
        return self.at_once([deed])[0]

    def at_once(self, deeds: Iterable[Awaitable[Any]]) -> list[Any]:
        """Outcomes in order, of what all waits while the writer is busy."""

        async def work() -> list[Any]:
            waiting = list(deeds)
            if len(waiting) > 1:
                waiting.insert(0, self.books.db.write(lambda _conn: time.sleep(0.002)))
            done = await asyncio.gather(*waiting, return_exceptions=True)
            return done[len(waiting) > 1 :]

        return [type(one) if isinstance(one, Exception) else one for one in self.runner.run(work())]

    @initialize(characters=st.integers(0, 300))
    def begin(self, characters: int) -> None:
        self.books.clock.now_ms = START_MS
        account_id = self.do(self.books.account(characters))
        self.token_ids = [self.do(self.books.token(account_id, **limits)) for limits in LIMITS]
        tokens = {
            one: Token(one, **limits) for one, limits in zip(self.token_ids, LIMITS, strict=True)
        }
        self.model = Model(account_id, tokens, START_MS, characters)
        self.grants: list[tuple[str, int]] = []
        self.suffix = account_id  # another example's keys are others

    def pick(self, which: int) -> Held:
        held = list(self.model.tasks.values())
        return held[which % len(held)]

    def row(self, held: Held) -> TaskRow:
        return self.do(self.ledger.task(held.task.id))

    # Money

    @rule(characters=CHARACTERS)
    def grant(self, characters: int) -> None:
        self.grants.append((uuid7(), characters))
        self.model.balance += characters
        deed = self.ledger.grant(self.model.account_id, characters, "g", self.grants[-1][0])
        assert self.do(deed) == self.model.balance

    @precondition(lambda self: self.grants)
    @rule(which=WHICH, other=st.booleans())
    def grant_again(self, which: int, other: bool) -> None:
        transfer_id, characters = self.grants[which % len(self.grants)]
        again = self.ledger.grant(self.model.account_id, characters + other, "g", transfer_id)
        assert self.outcome(again) == (TransferConflict if other else self.model.balance)

    @rule(characters=st.integers(-60, 60))
    def adjust(self, characters: int) -> None:
        outcome = self.outcome(self.ledger.adjust(self.model.account_id, characters, "a"))
        if characters == 0:
            assert outcome is InvalidField
        elif self.model.take(-characters):
            assert outcome == self.model.balance
        else:
            assert outcome is QuotaExceeded

    @rule(which=WHICH)
    def revoke(self, which: int) -> None:
        if which % 10:  # seldom: there are six
            return
        token_id = self.token_ids[which // 10]
        self.model.tokens[token_id].revoked = True
        self.do(self.books.db.write(lambda conn: queries.revoke_token(conn, token_id, 1)))

    # Opening

    @rule(openings=st.lists(OPENING, min_size=1, max_size=6), lease_s=LEASE_S)
    def open(self, openings: list[tuple], lease_s: int) -> None:
        """One, or several in one batch: new ones, retries of what is there or is just coming, bad ones."""
        asked: list[tuple[NewTask, str, int]] = []
        for kind, which, characters, token, key in openings:
            known = [(one.task, one.hold_id, one.characters) for one in self.model.tasks.values()]
            known += asked
            if kind in ("again", "changed") and known:
                task, hold_id, before = known[which % len(known)]
                asked.append((task, hold_id, before + (kind == "changed")))
                continue
            account_id = NOBODY if kind == "no account" else self.model.account_id
            token_id = None if token is None else self.token_ids[token]
            task = new_task(
                account_id,
                NOBODY if kind == "no token" else token_id,
                client_key=key and key + self.suffix,
            )
            asked.append((task, uuid7(), characters))
        expected = [self.model.open_task(*one, lease_s) for one in asked]
        outcomes = self.at_once([self.ledger.open_task(*one, lease_s) for one in asked])
        assert expected == [None if isinstance(one, TaskRow) else one for one in outcomes]
        for (task, _, _), one in zip(asked, outcomes, strict=True):
            if isinstance(one, TaskRow):
                assert one.id == task.id

    # Working

    @precondition(lambda self: self.model.tasks)
    @rule(which=WHICH, lease_s=LEASE_S, off=st.sampled_from([0, 0, 0, -1, 1]))
    def renew(self, which: int, lease_s: int, off: int) -> None:
        held = self.pick(which)
        outcome = self.outcome(
            self.ledger.renew(held.task.id, held.epoch + off, lease_s, "running")
        )
        if held.open and not off:
            assert outcome is not StaleTask
            held.until_ms, held.state = self.model.now_ms + lease_s * 1000, "running"
        else:
            assert outcome is StaleTask

    @precondition(lambda self: self.model.tasks)
    @rule(which=WHICH, late=st.booleans(), lease_s=LEASE_S)
    def claim(self, which: int, late: bool, lease_s: int) -> None:
        """By several at once: one gets it, and the old owner is a zombie from then on."""
        held = self.pick(which)
        row = replace(self.row(held), epoch=held.epoch - late)
        outcomes = self.at_once([self.ledger.claim(row, lease_s) for _ in range(2)])
        if not held.open or late:
            assert outcomes == [None, None]
            return
        held.epoch += 1
        held.until_ms = self.model.now_ms + lease_s * 1000
        assert [one and (one.epoch, one.lease_until_ms) for one in outcomes] in (
            [(held.epoch, held.until_ms), None],
            # Where the new lease ends when the old one did, only the epoch tells them apart.
            [None, (held.epoch, held.until_ms)],
        )

    @precondition(lambda self: self.model.tasks)
    @rule(which=WHICH, late=st.booleans())
    def draw_again(self, which: int, late: bool) -> None:
        held = self.pick(which)
        row = replace(self.row(held), epoch=held.epoch - late)
        outcome = self.outcome(self.ledger.draw_again(row))
        if held.open and not late:
            held.draws, held.state = held.draws + 1, "queued"
            assert (outcome.draws, outcome.state) == (held.draws, held.state)
        else:
            assert outcome is StaleTask

    # Ending

    @precondition(lambda self: self.model.tasks)
    @rule(endings=st.lists(ENDING, min_size=1, max_size=5), release_key=st.booleans())
    def settle(self, endings: list[tuple], release_key: bool) -> None:
        """One, or several in one batch: owners, zombies, retries, two ends of one task."""
        expected, deeds = [], []
        for which, post, state, again, behind in endings:
            held = self.pick(which)
            epoch = held.epoch - behind
            transfer_id = (again and held.transfer_id) or uuid7()
            if again and held.transfer_id and not behind:
                post, state = held.charged + post % 2, held.state
            expected.append(self.model.settle(held, epoch, post, state, transfer_id, release_key))
            images = (
                [new_image(held.task.id, self.model.account_id)] if state == "succeeded" else []
            )
            deeds.append(
                self.ledger.settle(
                    held.task.id,
                    epoch,
                    account_id=self.model.account_id,
                    post=post,
                    state=state,
                    images=images,
                    transfer_id=transfer_id,
                    release_key=release_key,
                )
            )
        assert self.at_once(deeds) == expected

    @rule()
    def expire(self) -> None:
        due = self.model.overdue()
        assert sorted(self.do(self.books.expire_overdue())) == sorted(one.task.id for one in due)
        for held in due:
            held.epoch += 1
            held.until_ms = self.model.now_ms + 30_000
            self.model.end(held, "expire", 0, "failed", None, release_key=True)

    @precondition(lambda self: len(self.model.tasks) > 2)
    @rule(which=WHICH, characters=st.integers(0, 20))
    def all_kinds_at_once(self, which: int, characters: int) -> None:
        """In one transaction, each on a task of its own."""
        still = [held for held in self.model.tasks.values() if held.open][which % 3 :]
        deeds: list[Awaitable[Any]] = [self.ledger.grant(self.model.account_id, 20, "g")]
        task, hold_id = new_task(self.model.account_id), uuid7()
        if self.model.open_task(task, hold_id, characters, 30) is None:
            deeds.append(self.ledger.open_task(task, hold_id, characters, 30))
        self.model.balance += 20
        if still:
            ended, transfer_id = still[0], uuid7()
            self.model.settle(ended, ended.epoch, 0, "failed", transfer_id, False)
            how = {"account_id": self.model.account_id, "post": 0, "transfer_id": transfer_id}
            deeds.append(self.ledger.settle(ended.task.id, ended.epoch, state="failed", **how))
        if len(still) > 1:
            still[1].until_ms = self.model.now_ms + 30_000
            deeds.append(self.ledger.renew(still[1].task.id, still[1].epoch, 30))
        assert not [one for one in self.at_once(deeds) if isinstance(one, type)]

    @rule(seconds=st.sampled_from([1, 31, 7200, 84_600, DAY_S, 16 * DAY_S, -7200]))
    def time_passes(self, seconds: int) -> None:
        self.books.clock.now_ms += seconds * 1000
        self.model.now_ms = self.books.clock.now_ms

    # What always holds

    @invariant()
    def the_books_say_what_the_model_says(self) -> None:
        model = self.model
        self.do(self.books.db.read(self.compare))
        for key, held in model.keys.items():
            row = self.do(self.ledger.task_of_key(key))
            assert (row and row.id) == (held.task.id if model.holder(key) else None)

    def compare(self, conn: Any) -> None:
        model = self.model
        assert checks.faults(conn) == []
        account = queries.account_by_id(conn, model.account_id)
        assert account is not None
        assert account.balance == model.balance
        still = [held.characters for held in model.tasks.values() if held.open and held.characters]
        holds = book_queries.open_holds(conn, model.account_id)
        assert (holds.count, holds.characters) == (len(still), sum(still))
        spent = {
            (row.token_id, row.window): row.characters
            for row in conn.execute(
                select(token_spending).where(token_spending.c.token_id.in_(model.tokens))
            )
            if row.characters
        }
        assert spent == model.spending()

    def teardown(self) -> None:
        if not hasattr(self, "model"):
            return
        try:
            self.look_at_every_row()
        finally:  # no open task is left to the next example's sweep
            account_id = self.model.account_id
            for task_id in self.do(
                self.books.db.read(lambda conn: book_queries.open_task_ids(conn, account_id))
            ):
                self.do(self.ledger.expire(self.do(self.ledger.task(task_id))))

    def look_at_every_row(self) -> None:
        for held in self.model.tasks.values():
            row = self.row(held)
            assert (row.state, row.epoch, row.draws, row.charged, row.lease_until_ms) == (
                held.state,
                held.epoch,
                held.draws,
                held.charged,
                held.until_ms,
            )
        statement = self.do(self.ledger.statement(self.model.account_id))
        ends = {row.task_id: (row.kind, row.amount) for row in statement if row.hold_id}
        assert ends == {
            held.task.id: (held.kind, held.charged or held.characters)
            for held in self.model.tasks.values()
            if not held.open and held.characters
        }


@pytest.mark.parametrize(
    "database_url", ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)], indirect=True
)
def test_any_order(database_url: str) -> None:
    with asyncio.Runner() as runner:
        context = open_plain(database_url)
        books = runner.run(context.__aenter__())
        try:
            run_state_machine_as_test(
                lambda: LedgerMachine(books, runner),
                settings=settings(
                    max_examples=40,
                    stateful_step_count=30,
                    deadline=None,
                    suppress_health_check=list(HealthCheck),
                ),
            )
        finally:
            runner.run(context.__aexit__(None, None, None))
