"""What one ledger transaction does to many tasks at once: opening and ending them. Knows rules, not SQL, threads or prices.

Each function is a batch for `Database.write_batched`: it reads what all items need, decides them in
order in memory, then writes each table once. Accounts are locked before (see `Database.write`), so
what was read still holds when it is written.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from danqing.db import book_queries, ending_queries, image_queries, log_queries
from danqing.db.book_queries import Limits, Payer
from danqing.db.ending_queries import End, Ending
from danqing.db.rows import (
    EndState,
    ImageRow,
    Json,
    OutboxRow,
    ResolveKind,
    TaskRow,
    TransferRow,
    has_budget,
)
from danqing.db.session import Connection, Failed
from danqing.domain.errors import (
    AccountSuspended,
    ConcurrencyExceeded,
    DanqingError,
    ExpiredToken,
    NotFound,
    QuotaExceeded,
    ServerFault,
    TokenBudgetExceeded,
)
from danqing.domain.ids import uuid7

KEY_LIFE_MS = 24 * 3_600_000
"""How long an Idempotency-Key is kept."""
WINDOWS = ("day", "month", "total")


class LedgerError(ServerFault):
    """The books refuse this; trying again changes nothing."""

    retryable = False


class StaleTask(LedgerError):
    """The task has ended, or is at another epoch: whoever asks is no longer its owner."""

    def __init__(self, task_id: str) -> None:
        super().__init__(f"Task {task_id} has ended or is no longer yours.")


class TransferConflict(LedgerError):
    """The id is in the books already, for something else; or a post is above its hold."""


class KeyInUse(LedgerError):
    """Another task has the client's key already; `task` is its row."""

    def __init__(self, task: TaskRow) -> None:
        super().__init__(f"Task {task.id} has this key already.")
        self.task = task


@dataclass(frozen=True, slots=True)
class Opening:
    """A task to open; `row.hold_id` is None where nothing is held."""

    row: TaskRow
    characters: int


@dataclass(frozen=True, slots=True)
class Settlement:
    """A task to end. `post` is charged, the rest of the hold returns."""

    task_id: str
    epoch: int
    kind: ResolveKind
    post: int
    state: EndState
    result: Json | None
    error: Json | None
    images: Sequence[ImageRow]
    transfer_id: str | None
    now_ms: int
    release_key: bool


def window(name: str, at_ms: int) -> str:
    """The key of a budget's window (UTC) at a time: "total", "2026-11" or "2026-11-21"."""
    if name == "total":
        return name
    day = datetime.fromtimestamp(at_ms / 1000, UTC).date().isoformat()
    return day if name == "day" else day[:7]


class _Desk:
    """The accounts and tokens of one batch as its decisions leave them, to be written at its end."""

    def __init__(self, conn: Connection, openings: Sequence[Opening]) -> None:
        token_ids = {item.row.token_id for item in openings if item.row.token_id is not None}
        self.payers = book_queries.payers(conn, {item.row.account_id for item in openings})
        self.limits = book_queries.limits(conn, token_ids)
        self.spent = defaultdict[tuple[str, str], int](int)
        budgeted = {row.id for row in self.limits.values() if has_budget(row)}
        if budgeted:
            times = {item.row.created_ms for item in openings}
            windows = {window(name, at_ms) for at_ms in times for name in WINDOWS}
            self.spent.update(book_queries.spending(conn, budgeted, windows))
        capped = {row.id for row in self.limits.values() if row.concurrency_max is not None}
        self.open = defaultdict[str, int](int, book_queries.open_tasks_by_token(conn, capped))
        self.left = {payer.id: payer.balance for payer in self.payers.values()}
        self.spending = defaultdict[tuple[str, str], int](int)

    def admit(self, row: TaskRow, characters: int) -> None:
        """Take the characters for a task. Raises what forbids it, taking nothing."""
        payer = self.payers.get(row.account_id)
        if payer is None:
            raise no_account()
        if payer.suspended or payer.deleted_ms is not None:
            raise AccountSuspended("The account is suspended.")
        limits = None if row.token_id is None else self.limits.get(row.token_id)
        if limits is not None:
            self._check(limits, row.created_ms, characters)
        if characters > self.left[payer.id]:
            raise QuotaExceeded(characters, self.left[payer.id])
        self.left[payer.id] -= characters
        if limits is not None:
            self.open[limits.id] += 1
            if has_budget(limits):
                for name in WINDOWS:
                    self.spending[limits.id, window(name, row.created_ms)] += characters

    def _check(self, limits: Limits, now_ms: int, characters: int) -> None:
        if limits.revoked_ms is not None:
            raise ExpiredToken("The API key has been revoked.")
        if limits.concurrency_max is not None and self.open[limits.id] >= limits.concurrency_max:
            raise ConcurrencyExceeded(limits.concurrency_max)
        if not has_budget(limits):
            return
        budgets = (limits.budget_day, limits.budget_month, limits.budget_total)
        for name, budget in zip(WINDOWS, budgets, strict=True):
            key = (limits.id, window(name, now_ms))
            spent = self.spent[key] + self.spending[key]
            if budget is not None and spent + characters > budget:
                raise TokenBudgetExceeded(name, characters, max(budget - spent, 0))

    def write(self, conn: Connection, now_ms: int) -> None:
        moves = {one: left - self.payers[one].balance for one, left in self.left.items()}
        if not book_queries.move_balances(conn, moves):
            raise LedgerError("A balance moved while it was locked.")
        book_queries.add_spending(conn, self.spending)
        for payer in self.payers.values():
            tell_low_balance(conn, payer, self.left[payer.id], now_ms)


def open_tasks(conn: Connection, openings: Sequence[Opening]) -> list[TaskRow | Failed]:
    """HOLD the characters of each and write its task.

    Outcomes: the task; or QuotaExceeded, TokenBudgetExceeded, ConcurrencyExceeded, ExpiredToken,
    AccountSuspended, NotFound (no such account), KeyInUse, TransferConflict.
    """
    if len(openings) == 1 and (known := _known(conn, openings[0])) is not None:
        return [known]
    # The same ids again in a larger batch break a UNIQUE, or are refused: then they are looked up.
    keys = {item.row.client_key for item in openings if item.row.client_key is not None}
    in_use = book_queries.tasks_by_client_key(conn, keys)
    desk = _Desk(conn, openings)
    outcomes: list[TaskRow | Failed] = []
    expired: list[str] = []
    opened: list[Opening] = []
    for item in openings:
        row = item.row
        other = None if row.client_key is None else in_use.get(row.client_key)
        try:
            if other is not None and other.created_ms + KEY_LIFE_MS > row.created_ms:
                raise KeyInUse(other)
            desk.admit(row, item.characters)
        except DanqingError as error:
            outcomes.append(Failed(error))
            continue
        if other is not None:
            expired.append(other.id)
        if row.client_key is not None:
            in_use[row.client_key] = row
        opened.append(item)
        outcomes.append(row)
    if opened:
        book_queries.release_client_keys(conn, expired)
        desk.write(conn, opened[0].row.created_ms)
        book_queries.insert_transfers(conn, [_hold(item) for item in opened if item.characters])
        book_queries.insert_tasks(conn, [item.row for item in opened])
    if len(openings) == 1:
        return outcomes
    return [
        (isinstance(outcome, Failed) and _known(conn, item)) or outcome
        for item, outcome in zip(openings, outcomes, strict=True)
    ]


def _hold(item: Opening) -> TransferRow:
    row = item.row
    return TransferRow(
        id=str(row.hold_id),
        account_id=row.account_id,
        kind="hold",
        amount=item.characters,
        hold_id=None,
        task_id=row.id,
        reason=None,
        created_ms=row.created_ms,
    )


def _known(conn: Connection, item: Opening) -> TaskRow | Failed | None:
    """The task itself where this opening is a retry; None where it is new."""
    row = item.row
    known = book_queries.tasks_by_id_or_hold(conn, row.id, row.hold_id or "")
    if not known:
        return None
    asked = [(row.id, row.account_id, row.hold_id)]
    same = [(task.id, task.account_id, task.hold_id) for task in known] == asked
    if same and row.hold_id is not None:
        hold = book_queries.transfer_by_id(conn, row.hold_id)
        same = hold is not None and hold.amount == item.characters
    if same:
        return known[0]
    message = f"Task {row.id} or its hold is in the books for something else."
    return Failed(TransferConflict(message))


def settle_tasks(conn: Connection, ends: Sequence[Settlement]) -> list[Failed | None]:
    """End each task: POST what was used, or give the hold back.

    Outcomes: None; or StaleTask (nothing is changed), TransferConflict (the post is above the hold).
    """
    endings = ending_queries.endings(conn, [end.task_id for end in ends])
    outcomes: list[Failed | None] = []
    done: dict[str, tuple[Settlement, Ending]] = {}
    for end in ends:
        ending = endings.get(end.task_id)
        earlier, _ = done.get(end.task_id, (None, None))
        error = _objection(conn, end, ending, earlier)
        outcomes.append(None if error is None else Failed(error))
        if error is None and ending is not None and ending.state in ("queued", "running"):
            done[end.task_id] = (end, ending)
            endings[end.task_id] = replace(ending, state=end.state)  # for the next of this batch
    if done:
        _write_ends(conn, list(done.values()))
    return outcomes


def _objection(
    conn: Connection, end: Settlement, ending: Ending | None, earlier: Settlement | None
) -> LedgerError | None:
    """Why a task cannot end so; None too where it has ended just so before (a retry).

    `earlier` is what ends it in this batch already.
    """
    if ending is None:
        return StaleTask(end.task_id)
    if ending.epoch == end.epoch and ending.state in ("queued", "running"):
        if end.post > ending.held:
            return TransferConflict(
                f"Task {end.task_id} holds {ending.held} characters; {end.post} cannot be posted."
            )
        return None
    if end.transfer_id is None:
        return StaleTask(end.task_id)
    if ending.hold_id is None:  # no transfer tells: but an epoch has one owner
        same = (ending.epoch, ending.state) == (end.epoch, end.state)
        return None if same else StaleTask(end.task_id)
    if earlier is not None and earlier.transfer_id == end.transfer_id:
        same = (earlier.kind, earlier.post) == (end.kind, end.post)
    else:
        known = book_queries.transfer_by_id(conn, end.transfer_id)
        if known is None:
            return StaleTask(end.task_id)
        amount = end.post or ending.held
        same = (known.task_id, known.kind, known.amount) == (end.task_id, end.kind, amount)
    if same:
        return None
    return TransferConflict(f"Transfer {end.transfer_id} is in the books for something else.")


def _write_ends(conn: Connection, done: Sequence[tuple[Settlement, Ending]]) -> None:
    ended = [
        End(
            task_id=end.task_id,
            epoch=end.epoch,
            state=end.state,
            result=end.result,
            error=end.error,
            charged=end.post,
            now_ms=end.now_ms,
        )
        for end, _ in done
    ]
    if not ending_queries.end_tasks(conn, ended):
        raise LedgerError("A task changed while it was locked.")
    back = defaultdict[str, int](int)
    unspent = defaultdict[tuple[str, str], int](int)
    for end, ending in done:
        back[ending.account_id] += ending.held - end.post
        if ending.token_id is not None and ending.held > end.post:
            for name in WINDOWS:
                unspent[ending.token_id, window(name, ending.created_ms)] += ending.held - end.post
    resolves = [_resolve(end, ending) for end, ending in done if ending.hold_id is not None]
    book_queries.insert_transfers(conn, resolves)
    if not book_queries.move_balances(conn, back):
        raise LedgerError("A balance moved while it was locked.")
    if unspent:
        budgeted = book_queries.limits(conn, {token_id for token_id, _ in unspent})
        book_queries.subtract_spending(
            conn, {key: less for key, less in unspent.items() if has_budget(budgeted[key[0]])}
        )
    image_queries.insert_images(conn, [image for end, _ in done for image in end.images])
    book_queries.release_client_keys(conn, [end.task_id for end, _ in done if end.release_key])
    _tell_ended(conn, done)


def _resolve(end: Settlement, ending: Ending) -> TransferRow:
    return TransferRow(
        id=end.transfer_id or uuid7(),
        account_id=ending.account_id,
        kind=end.kind,
        amount=end.post or ending.held,
        hold_id=ending.hold_id,
        task_id=end.task_id,
        reason=None,
        created_ms=end.now_ms,
    )


# Webhooks: written with what they tell of, so that neither is without the other


def tell_low_balance(conn: Connection, payer: Payer, left: int, now_ms: int) -> None:
    """Once, until something brings the balance above the line again (see `move_balances`)."""
    if payer.low_balance is None or left >= payer.low_balance:
        return
    if payer.webhook_url is None or payer.low_balance_told:
        return
    payload = {"account": payer.id, "balance": left, "threshold": payer.low_balance}
    event = "account.balance_low"
    row = OutboxRow(uuid7(), payer.id, payer.webhook_url, event, payload, 0, now_ms)
    log_queries.insert_outbox(conn, [row])
    book_queries.set_low_balance_told(conn, payer.id)


def _tell_ended(conn: Connection, done: Iterable[tuple[Settlement, Ending]]) -> None:
    """Of tasks that nobody's connection waits for."""
    background = [(end, ending) for end, ending in done if ending.background]
    if not background:
        return
    payers = book_queries.payers(conn, {ending.account_id for _, ending in background})
    rows: list[OutboxRow] = []
    for end, ending in background:
        url = payers[ending.account_id].webhook_url
        if url is not None:
            payload = {"id": end.task_id, "status": end.state, "charged": end.post}
            event = f"image.task.{end.state}"
            rows.append(OutboxRow(uuid7(), ending.account_id, url, event, payload, 0, end.now_ms))
    log_queries.insert_outbox(conn, rows)


def no_account() -> NotFound:
    return NotFound("There is no such account.", "account")
