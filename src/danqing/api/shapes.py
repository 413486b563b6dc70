"""The books' rows as the admin and account APIs answer them: JSON objects and pages. Knows rows; decides nothing.

Times are Unix seconds, amounts are characters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

from fastapi import Query

from danqing.db.rows import (
    AccountRow,
    AuditRow,
    BlockedUserRow,
    ImageRow,
    RedeemCodeRow,
    RefusalRow,
    TaskRow,
    TokenRow,
    TransferRow,
    UnlabelledRow,
    WaiverRow,
)
from danqing.domain.errors import InvalidField

T = TypeVar("T")
Record = dict[str, Any]

Limit = Annotated[int, Query(ge=1, le=1000, description="Entries on a page at most.")]
After = Annotated[
    str,
    Query(max_length=600, description="The `last_id` of the page before; empty: from the start."),
]


def page(
    rows: Sequence[T], limit: int, id_of: Callable[[T], Any], shape: Callable[[T], Record]
) -> Record:
    """A list as OpenAI pages it: `last_id` is the next page's `after`. `rows` may hold one beyond `limit`."""
    shown = rows[:limit]
    return {
        "object": "list",
        "data": [shape(row) for row in shown],
        "last_id": id_of(shown[-1]) if shown else None,
        "has_more": len(rows) > limit,
    }


def page_of_all(
    rows: Sequence[T],
    after: str,
    limit: int,
    id_of: Callable[[T], str],
    shape: Callable[[T], Record],
) -> Record:
    """One page of a list that is at hand whole. Raises InvalidField where no entry is called `after`."""
    start = 0
    if after:
        ids = [id_of(row) for row in rows]
        if after not in ids:
            raise InvalidField("'after' is the 'last_id' of an earlier page.", "after")
        start = ids.index(after) + 1
    return page(rows[start : start + limit + 1], limit, id_of, shape)


def account(row: AccountRow) -> Record:
    return {
        "id": row.id,
        "object": "account",
        "name": row.name,
        "created": row.created_ms // 1000,
        "balance": row.balance,
        "price_permille": row.price_permille,
        "suspended": row.suspended,
        "suspended_reason": row.suspended_reason,
        "is_admin": row.is_admin,
        "has_password": row.password_hash is not None,
        "low_balance": row.low_balance,
        "block_level": row.block_level,
        "image_days": row.image_days,
        "webhook_url": row.webhook_url,
        "deleted": _seconds(row.deleted_ms),
    }


def waiver(row: WaiverRow) -> Record:
    return {
        "id": row.id,
        "object": "waiver",
        "version": row.version,
        "text": row.text,
        "signer": row.signer,
        "signed": row.signed_ms // 1000,
        "revoked": _seconds(row.revoked_ms),
    }


def token(row: TokenRow, state: str) -> Record:
    """A token without its secret, which nobody has but its owner; `state` is `Tokens.state`."""
    return {
        "id": token_id(row),
        "object": "token",
        "account_id": row.account_id,
        "name": row.name,
        "kind": row.kind,
        "status": state,
        "key_version": row.key_version,
        "created": row.created_ms // 1000,
        "expires": _seconds(row.expires_ms),
        "revoked": _seconds(row.revoked_ms),
        "last_used": _seconds(row.last_used_ms),
        "scopes": row.scopes.split(),
        "models": row.models,
        "networks": row.networks,
        "budget_day": row.budget_day,
        "budget_month": row.budget_month,
        "budget_total": row.budget_total,
        "concurrency_max": row.concurrency_max,
        "rate_per_minute": row.rate_per_minute,
    }


def token_id(row: TokenRow) -> str:
    return f"sk-{row.id}"


def transfer(row: TransferRow) -> Record:
    return {
        "id": row.id,
        "object": "transfer",
        "created": row.created_ms // 1000,
        "kind": row.kind,
        "characters": row.amount,
        "hold_id": row.hold_id,
        "task_id": row.task_id,
        "reason": row.reason,
    }


def task(row: TaskRow) -> Record:
    result = row.result or {}
    return {
        "id": row.id,
        "object": "task",
        "account_id": row.account_id,
        "token_id": None if row.token_id is None else f"sk-{row.token_id}",
        "dialect": row.dialect,
        "model": row.model,
        "status": row.state,
        "created": row.created_ms // 1000,
        "finished": _seconds(row.finished_ms),
        "charged": row.charged,
        "error": row.error and {name: row.error[name] for name in ("code", "message")},
        "end_user": row.end_user,
        "extension": result.get("extension"),
        "upstream": result.get("upstream", {}).get("requests", []),
    }


def image(row: ImageRow) -> Record:
    return {
        "id": row.id,
        "object": "image.file",
        "account_id": row.account_id,
        "task_id": row.task_id,
        "created": row.created_ms // 1000,
        "expires": row.expires_ms // 1000,
        "format": row.format,
        "size": f"{row.width}x{row.height}",
        "bytes": row.bytes,
        "label_visible": row.label_visible,
        "label_metadata": row.label_metadata,
    }


def code(row: RedeemCodeRow) -> Record:
    """A code by its digest: the code itself is kept nowhere."""
    return {
        "id": row.digest,
        "object": "code",
        "kind": row.kind,
        "characters": row.characters,
        "created": row.created_ms // 1000,
        "created_by": row.created_by,
        "expires": _seconds(row.expires_ms),
        "used": _seconds(row.used_ms),
        "account_id": row.account_id,
    }


def block(row: BlockedUserRow) -> Record:
    return {
        "id": block_id(row),
        "object": "block",
        "end_user": row.end_user,
        "account_id": row.account_id,
        "everywhere": row.account_id is None,
        "reason": row.reason,
        "created": row.created_ms // 1000,
        "created_by": row.created_by,
    }


def refusal(row: RefusalRow) -> Record:
    return {
        "id": row.id,
        "object": "refusal",
        "account_id": row.account_id,
        "task_id": row.task_id,
        "dialect": row.dialect,
        "model": row.model,
        "end_user": row.end_user,
        "role": row.role,
        "level": row.level,
        "subject": row.subject,
        "source": row.source,
        "category": row.category,
        "created": row.created_ms // 1000,
    }


def unlabelled(row: UnlabelledRow) -> Record:
    """An image without the AI label: whose, under which waiver, how to know it again."""
    return {
        "id": row.id,
        "object": "image.unlabelled",
        "account_id": row.account_id,
        "account": row.account_name,
        "end_user": row.end_user,
        "waiver_id": row.waiver_id,
        "waiver_version": row.waiver_version,
        "signer": row.signer,
        "dialect": row.dialect,
        "model": row.model,
        "task_id": row.task_id,
        "image_id": row.image_id,
        "size": None if row.width is None else f"{row.width}x{row.height}",
        "sha256": row.sha256,
        "label_metadata": row.label_metadata,
        "created": row.created_ms // 1000,
        "deleted": _seconds(row.deleted_ms),
    }


def block_id(row: BlockedUserRow) -> str:
    return f"{row.account_id or '*'}:{row.end_user}"


def audit(row: AuditRow) -> Record:
    return {
        "id": row.seq,
        "object": "audit",
        "at": row.at_ms // 1000,
        "actor": row.actor,
        "deed": row.deed,
        "subject": row.subject,
        "detail": row.detail,
        "mac": row.mac,
    }


def _seconds(ms: int | None) -> int | None:
    return None if ms is None else ms // 1000
