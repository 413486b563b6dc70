"""What the ledger should say, in memory: the state machine's model. Knows the rules, nothing of how they are kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

from sqlalchemy.exc import IntegrityError

from danqing.db.rows import NewTask
from danqing.domain.errors import (
    ConcurrencyExceeded,
    ExpiredToken,
    NotFound,
    QuotaExceeded,
    TokenBudgetExceeded,
)
from danqing.service.ledger import KeyInUse, StaleTask, TransferConflict

NOBODY = "nobody"
"""The id of no account and no token."""
KEY_LIFE_MS = 24 * 3_600_000
LEASE_AHEAD_MS_MAX = 3_600_000
WINDOWS = {"day": "%Y-%m-%d", "month": "%Y-%m", "total": "total"}


def window(name: str, at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime(WINDOWS[name])


@dataclass
class Token:
    id: str
    budget_day: int | None = None
    budget_month: int | None = None
    budget_total: int | None = None
    concurrency_max: int | None = None
    revoked: bool = False

    @property
    def budgets(self) -> dict[str, int | None]:
        return {name: getattr(self, f"budget_{name}") for name in WINDOWS}


@dataclass
class Held:
    """A task in the books. `transfer_id`, `kind`: how its hold was resolved."""

    task: NewTask
    hold_id: str
    characters: int
    created_ms: int
    until_ms: int
    epoch: int = 1
    draws: int = 1
    state: str = "queued"
    charged: int = 0
    transfer_id: str | None = None
    kind: str = ""

    @property
    def open(self) -> bool:
        return self.state in ("queued", "running")


@dataclass
class Model:
    account_id: str
    tokens: dict[str, Token]
    now_ms: int
    balance: int = 0
    tasks: dict[str, Held] = field(default_factory=dict)
    keys: dict[str, Held] = field(default_factory=dict)

    def take(self, characters: int) -> bool:
        if characters > self.balance:
            return False
        self.balance -= characters
        return True

    def open_of(self, token_id: str) -> int:
        return sum(held.open and held.task.token_id == token_id for held in self.tasks.values())

    def spending(self) -> dict[tuple[str, str], int]:
        """Characters by (token, window), of tokens with a budget; no zeros."""
        spent: dict[tuple[str, str], int] = {}
        for held in self.tasks.values():
            token = self.tokens.get(held.task.token_id or "")
            if token is not None and any(one is not None for one in token.budgets.values()):
                for name in WINDOWS:
                    key = (token.id, window(name, held.created_ms))
                    spent[key] = spent.get(key, 0) + (
                        held.characters if held.open else held.charged
                    )
        return {key: characters for key, characters in spent.items() if characters}

    def holder(self, key: str | None) -> Held | None:
        """Whose the client's key is."""
        held = self.keys.get(key or "")
        return held if held and held.created_ms + KEY_LIFE_MS > self.now_ms else None

    def open_task(
        self, task: NewTask, hold_id: str, characters: int, lease_s: int
    ) -> type[Exception] | None:
        """What it raises; None where the task is in the books after it."""
        same = [
            held
            for held in self.tasks.values()
            if task.id == held.task.id or hold_id == held.hold_id
        ]
        if same:
            asked = (task.id, hold_id, characters, task.account_id)
            known = [(one.task.id, one.hold_id, one.characters, self.account_id) for one in same]
            return None if known == [asked] else TransferConflict
        if self.holder(task.client_key) is not None:
            return KeyInUse
        if task.account_id != self.account_id:
            return NotFound
        refused = self._limit(self.tokens.get(task.token_id or ""), characters)
        if refused is None and characters > self.balance:
            refused = QuotaExceeded
        if refused is None and task.token_id == NOBODY:
            refused = IntegrityError
        if refused is not None:
            return refused
        self.balance -= characters
        held = Held(task, hold_id, characters, self.now_ms, self.now_ms + lease_s * 1000)
        self.tasks[task.id] = held
        if task.client_key is not None:
            self.keys[task.client_key] = held
        return None

    def _limit(self, token: Token | None, characters: int) -> type[Exception] | None:
        if token is None:
            return None
        if token.revoked:
            return ExpiredToken
        if token.concurrency_max is not None and self.open_of(token.id) >= token.concurrency_max:
            return ConcurrencyExceeded
        spent = self.spending()
        for name, budget in token.budgets.items():
            left = (budget or 0) - spent.get((token.id, window(name, self.now_ms)), 0)
            if budget is not None and characters > left:
                return TokenBudgetExceeded
        return None

    def settle(
        self, held: Held, epoch: int, post: int, state: str, transfer_id: str, release_key: bool
    ) -> type[Exception] | None:
        kind = "post" if post else "void"
        if held.open and epoch == held.epoch:
            if post > held.characters:
                return TransferConflict
            self.end(held, kind, post, state, transfer_id, release_key)
            return None
        if not held.characters:  # nothing was held, so no transfer can tell a retry
            return None if (epoch, state) == (held.epoch, held.state) else StaleTask
        if transfer_id != held.transfer_id:
            return StaleTask
        same = (kind, post or held.characters) == (held.kind, held.charged or held.characters)
        return None if same else TransferConflict

    def end(
        self,
        held: Held,
        kind: str,
        post: int,
        state: str,
        transfer_id: str | None,
        release_key: bool,
    ) -> None:
        held.state, held.kind, held.charged, held.transfer_id = state, kind, post, transfer_id
        self.balance += held.characters - post
        if release_key and self.keys.get(held.task.client_key or "") is held:
            del self.keys[held.task.client_key or ""]

    def overdue(self) -> list[Held]:
        far_ms = self.now_ms + LEASE_AHEAD_MS_MAX
        return [
            held
            for held in self.tasks.values()
            if held.open and (held.until_ms < self.now_ms or held.until_ms > far_ms)
        ]
