"""The tables' rows as frozen dataclasses, and the words they use. Times are Unix ms, money is characters. No SQL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from operator import attrgetter
from typing import Any, Literal, Protocol

CHARACTERS_MAX = 10**15
"""The most characters one transfer moves and a grant may bring a balance to."""

PERMILLE = 1000
"""An account's price multiplier is in thousandths: 1000 pays the catalog's price."""

OPEN_STATES = ("queued", "running")

TransferKind = Literal["grant", "adjust", "hold", "post", "void", "expire"]
ResolveKind = Literal["post", "void", "expire"]
OpenState = Literal["queued", "running"]
EndState = Literal["succeeded", "failed", "cancelled"]
TokenKind = Literal["key", "session"]
CodeKind = Literal["credit", "invite"]
Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class AccountRow:
    """`balance` is what may still be held: open holds are already out of it."""

    id: str
    name: str
    balance: int
    suspended: bool
    created_ms: int
    suspended_reason: str | None = None
    is_admin: bool = False
    password_hash: str | None = None
    """argon2id; None where nobody can sign in by password."""
    price_permille: int = PERMILLE
    address_mac: str | None = None
    """Who signed up: an HMAC of the network address, for the cap per address."""
    low_balance: int | None = None
    """Below this the account's webhook is told, once until the balance is above it again."""
    low_balance_told: bool = False
    webhook_url: str | None = None
    deleted_ms: int | None = None
    image_days: int | None = None
    """How long its images are kept; None = as their models say."""
    block_level: int | None = None
    """What moderation finds at this level or worse is refused; None = as the server's settings say."""


@dataclass(frozen=True, slots=True)
class WaiverRow:
    """A signed label waiver: the text as it was signed, by whom, when; kept when revoked."""

    id: str
    account_id: str
    version: str
    text: str
    signer: str
    signed_ms: int
    revoked_ms: int | None = None


@dataclass(frozen=True, slots=True)
class TokenRow:
    id: str
    account_id: str
    key_version: int
    name: str | None
    created_ms: int
    expires_ms: int | None = None
    revoked_ms: int | None = None
    kind: TokenKind = "key"
    """A session is a token that signing in makes: it lives hours."""
    scopes: str = "draw"
    """Words with spaces between them."""
    models: list[str] | None = None
    """Models it may draw with; None = all."""
    networks: list[str] | None = None
    """Addresses or networks it may be used from; None = any."""
    budget_day: int | None = None
    budget_month: int | None = None
    budget_total: int | None = None
    concurrency_max: int | None = None
    """Tasks open at once."""
    rate_per_minute: int | None = None
    last_used_ms: int | None = None


class Budgets(Protocol):
    """Whatever has a token's budgets."""

    @property
    def budget_day(self) -> int | None: ...
    @property
    def budget_month(self) -> int | None: ...
    @property
    def budget_total(self) -> int | None: ...


def has_budget(limits: Budgets) -> bool:
    """Whether anything it spends must be counted."""
    return not limits.budget_day is limits.budget_month is limits.budget_total is None


@dataclass(frozen=True, slots=True)
class TokenFacts:
    """What authentication asks of the database about one token and its account."""

    token_id: str
    kind: TokenKind
    key_version: int
    expires_ms: int | None
    revoked_ms: int | None
    scopes: str
    models: list[str] | None
    networks: list[str] | None
    concurrency_max: int | None
    rate_per_minute: int | None
    last_used_ms: int | None
    account_id: str
    account_name: str
    suspended: bool
    deleted_ms: int | None
    is_admin: bool
    price_permille: int
    image_days: int | None
    waiver_id: str | None
    """The label waiver in force."""
    block_level: int | None


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
    client_key: str | None = None
    """Digest of account, route and the client's Idempotency-Key: one task has it."""
    fingerprint: str | None = None
    """Digest of the body that came with the key."""
    background: bool = False
    """Nobody's connection waits for it."""
    waiver_id: str | None = None
    """The waiver under which it is drawn without the AI label."""


@dataclass(frozen=True, slots=True)
class TaskSummary:
    """What a list says of a task."""

    id: str
    token_id: str | None
    model: str
    state: OpenState | EndState
    created_ms: int
    finished_ms: int | None


@dataclass(frozen=True, slots=True)
class TaskRow:
    """`draws` counts how often drawing began: a task is requeued once. The lease is the hold's deadline."""

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
    client_key: str | None = None
    fingerprint: str | None = None
    background: bool = False
    draws: int = 1
    cancel_ms: int | None = None
    """When its account asked to have it cancelled; its owner sees it with the next heartbeat."""
    waiver_id: str | None = None
    """The waiver under which it is drawn without the AI label; None where it has the label."""

    @property
    def is_open(self) -> bool:
        return self.state in OPEN_STATES


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
    label_pixel: bool = False
    link_version: int = 0
    """Links of an earlier version are revoked."""


@dataclass(frozen=True, slots=True)
class UnlabelledRow:
    """One image that was given out without the AI label, and under which waiver.

    Of links that were passed on, and of looks at images that a cancelled task never finished, there
    is one row for the task, without `idx` and what is the image's.
    """

    task_id: str
    idx: int | None
    account_id: str
    account_name: str
    end_user: str | None
    dialect: str
    model: str
    waiver_id: str
    waiver_version: str
    signer: str
    image_id: str | None
    width: int | None
    height: int | None
    sha256: str | None
    """Of the file, hex."""
    label_metadata: bool | None
    """Whether the hidden label stayed."""
    created_ms: int
    deleted_ms: int | None
    """When the image itself was; the record stays."""

    @property
    def id(self) -> str:
        """Where it stands in the list: its task's id, and the image's place in it."""
        return self.task_id if self.idx is None else f"{self.task_id}.{self.idx}"


@dataclass(frozen=True, slots=True)
class RedeemCodeRow:
    """`account_id` and `used_ms`: who used it, and when; both None until then."""

    digest: str
    characters: int
    created_ms: int
    account_id: str | None = None
    used_ms: int | None = None
    kind: CodeKind = "credit"
    expires_ms: int | None = None
    created_by: str | None = None


@dataclass(frozen=True, slots=True)
class BlockedUserRow:
    """An end user nobody draws for: of one account, or everywhere (`account_id` None)."""

    account_id: str | None
    end_user: str
    reason: str
    created_by: str
    created_ms: int


@dataclass(frozen=True, slots=True)
class RefusalRow:
    """What moderation refused. `subject` is "text" or "image"; `source` who said so: lists, api, classifier, provider."""

    id: str
    account_id: str
    task_id: str | None
    dialect: str
    model: str
    end_user: str | None
    role: str
    level: int
    subject: str
    source: str
    category: str | None
    created_ms: int


@dataclass(frozen=True, slots=True)
class AuditRow:
    """Who did what to whom. `mac` chains the rows: each is an HMAC over the one before and itself."""

    seq: int
    at_ms: int
    actor: str
    deed: str
    subject: str
    detail: Json
    mac: str


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """A webhook on its way."""

    id: str
    account_id: str
    url: str
    event: str
    payload: Json
    attempts: int
    created_ms: int


def values_of(row: Any) -> dict[str, Any]:
    """The fields of a dataclass, by name; `dataclasses.asdict` would copy the JSON in them in depth."""
    names, get = _fields(type(row))
    return dict(zip(names, get(row), strict=True))


@cache
def _fields(kind: type[Any]) -> tuple[tuple[str, ...], attrgetter[tuple[Any, ...]]]:
    names = tuple(field.name for field in fields(kind))
    return names, attrgetter(*names)
