"""The ledger against a ten-line model: any order of holds, resolves, retries, expiries and zombies."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from danqing.db.tables import NewTask
from danqing.domain.errors import QuotaExceeded
from danqing.domain.ids import uuid7
from danqing.service.ledger import StaleTask, TransferConflict
from tests.ledger.books import new_image, new_task, open_books

CHARACTERS = st.integers(1, 60)
LEASE_S = st.sampled_from([10, 30, 100])


@dataclass
class Model:
    """What the books should say."""

    balance: int = 0
    posted: int = 0

    def take(self, characters: int) -> bool:
        if characters > self.balance:
            return False
        self.balance -= characters
        return True


@dataclass
class Held:
    task: NewTask
    hold_id: str
    characters: int
    lease_s: int
    until_ms: int
    open: bool = True
    post: int = 0
    transfer_id: str = ""


class LedgerMachine(RuleBasedStateMachine):
    held = Bundle("held")
    grants = Bundle("grants")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.runner = asyncio.Runner()
        self.context = open_books(self.folder)
        self.books = self.do(self.context.__aenter__())
        self.ledger = self.books.ledger
        self.model = Model()
        self.holds: list[Held] = []

    def do(self, deed):
        return self.runner.run(deed)

    def teardown(self) -> None:
        self.do(self.context.__aexit__(None, None, None))
        self.runner.close()
        shutil.rmtree(self.folder)

    @initialize(characters=st.integers(0, 200))
    def account(self, characters: int) -> None:
        self.account_id = self.do(self.books.accounts.create("a", characters)).id
        self.model.balance = characters

    @rule(target=grants, characters=CHARACTERS)
    def grant(self, characters: int):
        transfer_id = uuid7()
        self.model.balance += characters
        balance = self.do(self.ledger.grant(self.account_id, characters, "g", transfer_id))
        assert balance == self.model.balance
        return transfer_id, characters

    @rule(grant=grants, other=st.booleans())
    def grant_again(self, grant: tuple[str, int], other: bool) -> None:
        transfer_id, characters = grant
        again = self.ledger.grant(self.account_id, characters + other, "g", transfer_id)
        if other:
            with pytest.raises(TransferConflict):
                self.do(again)
        else:
            assert self.do(again) == self.model.balance

    @rule(characters=st.integers(-60, 60).filter(bool))
    def adjust(self, characters: int) -> None:
        deed = self.ledger.adjust(self.account_id, characters, "a")
        if self.model.take(-characters):
            assert self.do(deed) == self.model.balance
        else:
            with pytest.raises(QuotaExceeded):
                self.do(deed)

    @rule(target=held, characters=st.integers(0, 60), lease_s=LEASE_S)
    def hold(self, characters: int, lease_s: int):
        task, hold_id = new_task(self.account_id), uuid7()
        deed = self.ledger.open_task(task, hold_id, characters, lease_s)
        if not self.model.take(characters):
            with pytest.raises(QuotaExceeded) as caught:
                self.do(deed)
            assert (caught.value.needed, caught.value.available) == (
                characters,
                self.model.balance,
            )
            return multiple()
        row = self.do(deed)
        assert (row.state, row.epoch) == ("queued", 1)
        until_ms = self.books.clock.now_ms + lease_s * 1000
        self.holds.append(Held(task, hold_id, characters, lease_s, until_ms))
        return self.holds[-1]

    @rule(held=held, other=st.booleans())
    def hold_again(self, held: Held, other: bool) -> None:
        again = self.ledger.open_task(
            held.task, held.hold_id, held.characters + other, held.lease_s
        )
        if other:
            with pytest.raises(TransferConflict):
                self.do(again)
        else:
            assert self.do(again).id == held.task.id

    @rule(held=held, lease_s=LEASE_S, epoch=st.sampled_from([0, 1, 1, 1, 2]))
    def renew(self, held: Held, lease_s: int, epoch: int) -> None:
        deed = self.ledger.renew(held.task.id, epoch, lease_s, "running")
        if held.open and epoch == 1:
            self.do(deed)
            held.until_ms = self.books.clock.now_ms + lease_s * 1000
        else:
            with pytest.raises(StaleTask):
                self.do(deed)

    @rule(
        held=held,
        post=st.integers(0, 70),
        epoch=st.sampled_from([0, 1, 1, 1, 2]),
        state=st.sampled_from(["succeeded", "failed", "cancelled"]),
        n_images=st.integers(0, 2),
    )
    def settle(self, held: Held, post: int, epoch: int, state: str, n_images: int) -> None:
        transfer_id = uuid7()
        deed = self.ledger.settle(
            held.task.id,
            epoch,
            post=post,
            state=state,
            images=[new_image(held.task.id, self.account_id, i) for i in range(n_images)],
            transfer_id=transfer_id,
        )
        if not held.open or epoch != 1:
            with pytest.raises(StaleTask):
                self.do(deed)
        elif post > held.characters:
            with pytest.raises(TransferConflict):
                self.do(deed)
        else:
            self.do(deed)
            held.open, held.post, held.transfer_id = False, post, transfer_id
            self.model.balance += held.characters - post
            self.model.posted += post
            assert len(self.do(self.ledger.images(held.task.id))) == n_images

    @rule(held=consumes(held), other=st.booleans())
    def settle_again(self, held: Held, other: bool) -> None:
        if held.open or not held.characters:
            return
        again = self.ledger.settle(
            held.task.id,
            1,
            post=held.post + other,
            state="succeeded",
            transfer_id=held.transfer_id or uuid7(),
        )
        if not held.transfer_id:  # it had expired
            with pytest.raises(StaleTask):
                self.do(again)
        elif other:
            with pytest.raises(TransferConflict):
                self.do(again)
        else:
            self.do(again)

    @rule(seconds=st.sampled_from([1, 10, 31]))
    def time_passes(self, seconds: int) -> None:
        self.books.clock.now_ms += seconds * 1000

    @rule()
    def expire(self) -> None:
        now_ms = self.books.clock.now_ms
        due = [held for held in self.holds if held.open and held.until_ms < now_ms]
        assert sorted(self.do(self.ledger.expire_overdue())) == sorted(held.task.id for held in due)
        for held in due:
            held.open = False
            self.model.balance += held.characters

    @invariant()
    def the_books_balance(self) -> None:
        if not hasattr(self, "account_id"):
            return
        assert self.do(self.ledger.check()) == []
        assert self.do(self.ledger.balance(self.account_id)) == self.model.balance
        still = [held.characters for held in self.holds if held.open and held.characters]
        holds = self.do(self.ledger.open_holds(self.account_id))
        assert (holds.count, holds.characters) == (len(still), sum(still))
        statement = self.do(self.ledger.statement(self.account_id))
        assert sum(row.amount for row in statement if row.kind == "post") == self.model.posted


TestLedger = LedgerMachine.TestCase
TestLedger.settings = settings(
    max_examples=30,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
