"""The tables and their rows as frozen dataclasses. Times are Unix ms, money is characters; no rules but CHECKs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import (
    DDL,
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    event,
    text,
)

CHARACTERS_MAX = 10**15
"""The most characters one transfer moves and a grant may bring a balance to."""

OPEN_STATES = ("queued", "running")

TransferKind = Literal["grant", "adjust", "hold", "post", "void", "expire"]
OpenState = Literal["queued", "running"]
EndState = Literal["succeeded", "failed", "cancelled"]
Json = Mapping[str, Any]

metadata = MetaData()

accounts = Table(
    "accounts",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("balance", BigInteger, nullable=False),
    Column("suspended", Boolean, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("waiver_version", Text),
    Column("waiver_text", Text),
    Column("waiver_ms", BigInteger),
    CheckConstraint("balance >= 0", name="accounts_balance_not_negative"),
    CheckConstraint("length(name) BETWEEN 1 AND 64", name="accounts_name_length"),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("account_id", ForeignKey("accounts.id"), nullable=False, index=True),
    Column("key_version", Integer, nullable=False),
    Column("name", Text),
    Column("created_ms", BigInteger, nullable=False),
    Column("expires_ms", BigInteger),
    Column("revoked_ms", BigInteger),
)

transfers = Table(
    "transfers",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("account_id", ForeignKey("accounts.id"), nullable=False),
    Column("kind", String(6), nullable=False),
    Column("amount", BigInteger, nullable=False),
    # UNIQUE: a hold resolves once.
    Column("hold_id", ForeignKey("transfers.id"), unique=True),
    Column("task_id", String(36)),
    Column("reason", Text),
    Column("created_ms", BigInteger, nullable=False),
    CheckConstraint(
        "kind IN ('grant', 'adjust', 'hold', 'post', 'void', 'expire')", name="transfers_kind"
    ),
    CheckConstraint(
        f"amount BETWEEN -{CHARACTERS_MAX} AND {CHARACTERS_MAX} "
        "AND (amount > 0 OR (kind = 'adjust' AND amount <> 0))",
        name="transfers_amount",
    ),
    CheckConstraint(
        "(kind IN ('post', 'void', 'expire')) = (hold_id IS NOT NULL)", name="transfers_resolve"
    ),
    CheckConstraint("(kind IN ('grant', 'adjust')) = (task_id IS NULL)", name="transfers_task"),
    Index("transfers_account", "account_id", "id"),
)

for _deed in ("UPDATE", "DELETE"):
    event.listen(
        transfers,
        "after_create",
        DDL(
            f"CREATE TRIGGER transfers_no_{_deed.lower()} BEFORE {_deed} ON transfers "
            "BEGIN SELECT RAISE(ABORT, 'transfers are immutable'); END"
        ).execute_if(dialect="sqlite"),
    )

_OPEN = text("state IN ('queued', 'running')")

tasks = Table(
    "tasks",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("account_id", ForeignKey("accounts.id"), nullable=False),
    Column("token_id", ForeignKey("tokens.id")),
    Column("dialect", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("state", String(9), nullable=False),
    # NULL where the price is zero: nothing is held.
    Column("hold_id", ForeignKey("transfers.id"), unique=True),
    Column("epoch", Integer, nullable=False),
    Column("lease_until_ms", BigInteger, nullable=False),
    Column("request", JSON(none_as_null=True), nullable=False),
    Column("result", JSON(none_as_null=True)),
    Column("error", JSON(none_as_null=True)),
    Column("end_user", Text),
    Column("charged", BigInteger, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("finished_ms", BigInteger),
    CheckConstraint(
        "state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')", name="tasks_state"
    ),
    CheckConstraint(
        "(state IN ('queued', 'running')) = (finished_ms IS NULL)", name="tasks_finished"
    ),
    CheckConstraint("charged >= 0", name="tasks_charged"),
    Index("tasks_account", "account_id", "id"),
    # Partial, so that finding overdue and open tasks costs the same in a long book.
    Index("tasks_open", "lease_until_ms", sqlite_where=_OPEN, postgresql_where=_OPEN),
)

images = Table(
    "images",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("task_id", ForeignKey("tasks.id"), nullable=False),
    Column("account_id", ForeignKey("accounts.id"), nullable=False),
    Column("idx", Integer, nullable=False),
    Column("format", String(4), nullable=False),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("blob_key", Text, nullable=False),
    Column("label_visible", Boolean, nullable=False),
    Column("label_metadata", Boolean, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("expires_ms", BigInteger, nullable=False, index=True),
    Column("deleted_ms", BigInteger),
    UniqueConstraint("task_id", "idx"),
)

redeem_codes = Table(
    "redeem_codes",
    metadata,
    # SHA-256 of the code, which is kept nowhere.
    Column("digest", String(64), primary_key=True),
    Column("characters", BigInteger, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("account_id", ForeignKey("accounts.id")),
    Column("used_ms", BigInteger),
    CheckConstraint(f"characters BETWEEN 1 AND {CHARACTERS_MAX}", name="redeem_codes_characters"),
    CheckConstraint("(account_id IS NULL) = (used_ms IS NULL)", name="redeem_codes_used"),
)


@dataclass(frozen=True, slots=True)
class AccountRow:
    """`balance` is what may still be held: open holds are already out of it."""

    id: str
    name: str
    balance: int
    suspended: bool
    created_ms: int
    waiver_version: str | None
    waiver_text: str | None
    waiver_ms: int | None


@dataclass(frozen=True, slots=True)
class TokenRow:
    id: str
    account_id: str
    key_version: int
    name: str | None
    created_ms: int
    expires_ms: int | None
    revoked_ms: int | None


@dataclass(frozen=True, slots=True)
class TokenFacts:
    """What authentication asks of the database about one token and its account."""

    token_id: str
    key_version: int
    expires_ms: int | None
    revoked_ms: int | None
    account_id: str
    account_name: str
    suspended: bool
    waiver_ms: int | None


@dataclass(frozen=True, slots=True)
class TransferRow:
    """`amount` > 0 but for adjust; a post's is what was charged, a void's what came back."""

    id: str
    account_id: str
    kind: TransferKind
    amount: int
    hold_id: str | None
    task_id: str | None
    reason: str | None
    created_ms: int


@dataclass(frozen=True, slots=True)
class NewTask:
    """A task as its caller describes it; the ledger adds the hold, the lease and the times."""

    id: str
    account_id: str
    token_id: str | None
    dialect: str
    model: str
    request: Json
    end_user: str | None = None


@dataclass(frozen=True, slots=True)
class TaskRow:
    id: str
    account_id: str
    token_id: str | None
    dialect: str
    model: str
    state: OpenState | EndState
    hold_id: str | None
    epoch: int
    lease_until_ms: int
    request: Json
    result: Json | None
    error: Json | None
    end_user: str | None
    charged: int
    created_ms: int
    finished_ms: int | None


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One stored image; `bytes` is its size, `blob_key` its name in the blob store."""

    id: str
    task_id: str
    account_id: str
    idx: int
    format: str
    width: int
    height: int
    bytes: int
    sha256: str
    seed: int
    blob_key: str
    label_visible: bool
    label_metadata: bool
    created_ms: int
    expires_ms: int
    deleted_ms: int | None = None


@dataclass(frozen=True, slots=True)
class RedeemCodeRow:
    """`account_id` and `used_ms`: who used it, and when; both None until then."""

    digest: str
    characters: int
    created_ms: int
    account_id: str | None = None
    used_ms: int | None = None
