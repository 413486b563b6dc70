"""SQL on accounts, waivers, tokens, codes and blocked users, as functions of a Connection. They decide nothing.

Statements are built once, with bound parameters, so that SQLAlchemy finds them in its cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    Connection,
    bindparam,
    delete,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert as insert_postgresql
from sqlalchemy.dialects.sqlite import insert as insert_sqlite

from danqing.db.prepared import Prepared
from danqing.db.rows import (
    AccountRow,
    BlockedUserRow,
    RedeemCodeRow,
    TokenFacts,
    TokenRow,
    WaiverRow,
    values_of,
)
from danqing.db.statements import every, one
from danqing.db.tables import (
    accounts,
    blocked_users,
    installation,
    redeem_codes,
    tasks,
    tokens,
    waivers,
)

# Accounts

_INSERT_ACCOUNT = insert(accounts)
_ACCOUNT = select(accounts).where(accounts.c.id == bindparam("id"))
_ACCOUNTS_NAMED = select(accounts).where(
    accounts.c.name.in_([bindparam("name"), bindparam("other_name")])
)
_ACCOUNTS = (
    select(accounts)
    .where(accounts.c.deleted_ms.is_(None), accounts.c.name > bindparam("after"))
    .order_by(accounts.c.name)
    .limit(bindparam("rows_max"))
)
_SIGN_UPS = select(func.count()).where(
    accounts.c.address_mac == bindparam("address_mac"),
    accounts.c.created_ms > bindparam("since_ms"),
)


def insert_account(conn: Connection, row: AccountRow) -> None:
    conn.execute(_INSERT_ACCOUNT, values_of(row))


def account_by_id(conn: Connection, account_id: str) -> AccountRow | None:
    return one(conn, AccountRow, _ACCOUNT, id=account_id)


def accounts_named(conn: Connection, name: str, other_name: str) -> list[AccountRow]:
    """The accounts that have one of these names."""
    return every(conn, AccountRow, _ACCOUNTS_NAMED, name=name, other_name=other_name)


def accounts_after(conn: Connection, after: str, rows_max: int) -> list[AccountRow]:
    """Accounts by name, from the one behind `after`; deleted ones are left out."""
    return every(conn, AccountRow, _ACCOUNTS, after=after, rows_max=rows_max)


def update_account(conn: Connection, account_id: str, **values: Any) -> None:
    """Set columns of an account; never its balance, which transfers move."""
    conn.execute(update(accounts).where(accounts.c.id == account_id).values(**values))


def sign_ups_from(conn: Connection, address_mac: str, since_ms: int) -> int:
    """How many accounts were made from an address since then."""
    return conn.execute(_SIGN_UPS, {"address_mac": address_mac, "since_ms": since_ms}).scalar_one()


# Waivers

_INSERT_WAIVER = insert(waivers)
_WAIVERS_OF = (
    select(waivers)
    .where(waivers.c.account_id == bindparam("account_id"))
    .order_by(waivers.c.signed_ms, waivers.c.id)
)
_REVOKE_WAIVERS = (
    update(waivers)
    .where(waivers.c.account_id == bindparam("of_account"), waivers.c.revoked_ms.is_(None))
    .values(revoked_ms=bindparam("now_ms"))
)


def insert_waiver(conn: Connection, row: WaiverRow) -> None:
    conn.execute(_INSERT_WAIVER, values_of(row))


def waivers_of(conn: Connection, account_id: str) -> list[WaiverRow]:
    """All waivers an account ever signed, oldest first."""
    return every(conn, WaiverRow, _WAIVERS_OF, account_id=account_id)


def revoke_waivers(conn: Connection, account_id: str, now_ms: int) -> int:
    """Revoke what is in force; how many there were."""
    values = {"of_account": account_id, "now_ms": now_ms}
    return conn.execute(_REVOKE_WAIVERS, values).rowcount


# Tokens

_INSERT_TOKEN = insert(tokens)
_TOKEN = select(tokens).where(tokens.c.id == bindparam("id"))
_TOKENS = select(tokens).order_by(tokens.c.created_ms, tokens.c.id)
_KEYS_OF = select(func.count()).where(
    tokens.c.account_id == bindparam("account_id"),
    tokens.c.kind == "key",
    tokens.c.revoked_ms.is_(None),
)
_TOKENS_OF = _TOKENS.where(tokens.c.account_id == bindparam("account_id"))
_TOKEN_FACTS = Prepared(
    select(
        tokens.c.id.label("token_id"),
        tokens.c.kind,
        tokens.c.key_version,
        tokens.c.expires_ms,
        tokens.c.revoked_ms,
        tokens.c.scopes,
        tokens.c.models,
        tokens.c.networks,
        tokens.c.concurrency_max,
        tokens.c.rate_per_minute,
        tokens.c.last_used_ms,
        tokens.c.account_id,
        accounts.c.name.label("account_name"),
        accounts.c.suspended,
        accounts.c.deleted_ms,
        accounts.c.is_admin,
        accounts.c.price_permille,
        accounts.c.block_level,
        accounts.c.image_days,
        select(waivers.c.id)
        .where(waivers.c.account_id == accounts.c.id, waivers.c.revoked_ms.is_(None))
        .order_by(waivers.c.signed_ms.desc(), waivers.c.id.desc())
        .limit(1)
        .scalar_subquery()
        .label("waiver_id"),
    )
    .join_from(tokens, accounts)
    .where(tokens.c.id == bindparam("id"))
)
_REVOKE = (
    update(tokens)
    .where(tokens.c.id == bindparam("token_id"))
    .values(revoked_ms=func.coalesce(tokens.c.revoked_ms, bindparam("now_ms")))
)
_REVOKE_OF = (
    update(tokens)
    .where(tokens.c.account_id == bindparam("of_account"), tokens.c.revoked_ms.is_(None))
    .values(revoked_ms=bindparam("now_ms"))
)
_END_SESSIONS = (
    update(tokens)
    .where(
        tokens.c.account_id == bindparam("of_account"),
        tokens.c.kind == "session",
        tokens.c.revoked_ms.is_(None),
        tokens.c.id != bindparam("kept_id"),
    )
    .values(revoked_ms=bindparam("now_ms"))
)
# The books say which token drew what: one that did stays.
_PRUNE_SESSIONS = delete(tokens).where(
    tokens.c.kind == "session",
    or_(tokens.c.expires_ms < bindparam("before_ms"), tokens.c.revoked_ms < bindparam("before_ms")),
    ~exists().where(tasks.c.token_id == tokens.c.id),
)
# A row that another transaction has in hand is left: nothing of this is worth a wait.
_USED = (
    update(tokens)
    .where(
        tokens.c.id.in_(
            select(tokens.c.id)
            .where(
                tokens.c.id == bindparam("token_id"),
                func.coalesce(tokens.c.last_used_ms, literal(0)) < bindparam("now_ms"),
            )
            .with_for_update(key_share=True, skip_locked=True)
        )
    )
    .values(last_used_ms=bindparam("now_ms"))
)


def insert_token(conn: Connection, row: TokenRow) -> None:
    conn.execute(_INSERT_TOKEN, values_of(row))


def token_by_id(conn: Connection, token_id: str) -> TokenRow | None:
    return one(conn, TokenRow, _TOKEN, id=token_id)


def tokens_of(conn: Connection, account_id: str | None) -> list[TokenRow]:
    """The tokens of one account, or of all, oldest first."""
    if account_id is None:
        return every(conn, TokenRow, _TOKENS)
    return every(conn, TokenRow, _TOKENS_OF, account_id=account_id)


def keys_of(conn: Connection, account_id: str) -> int:
    """How many tokens of an account are not revoked, its sessions left out."""
    return conn.execute(_KEYS_OF, {"account_id": account_id}).scalar_one()


def token_facts(conn: Connection, token_id: str) -> TokenFacts | None:
    return one(conn, TokenFacts, _TOKEN_FACTS, id=token_id)


def update_token(conn: Connection, token_id: str, **values: Any) -> None:
    conn.execute(update(tokens).where(tokens.c.id == token_id).values(**values))


def revoke_token(conn: Connection, token_id: str, now_ms: int) -> bool:
    """Mark as revoked, keeping the first time; False where there is no such token."""
    return conn.execute(_REVOKE, {"token_id": token_id, "now_ms": now_ms}).rowcount == 1


def revoke_tokens_of(conn: Connection, account_id: str, now_ms: int) -> int:
    """Revoke all of an account's tokens and sessions; how many there were."""
    return conn.execute(_REVOKE_OF, {"of_account": account_id, "now_ms": now_ms}).rowcount


def end_sessions_of(conn: Connection, account_id: str, now_ms: int, kept_id: str) -> int:
    """Revoke an account's sessions but one ("" keeps none); how many there were."""
    values = {"of_account": account_id, "now_ms": now_ms, "kept_id": kept_id}
    return conn.execute(_END_SESSIONS, values).rowcount


def prune_sessions(conn: Connection, before_ms: int) -> int:
    """Forget sessions that were over before then, but for those that drew; how many there were."""
    return conn.execute(_PRUNE_SESSIONS, {"before_ms": before_ms}).rowcount


def mark_token_used(conn: Connection, token_id: str, now_ms: int) -> None:
    """Note when a token was last used, if no other transaction is changing it."""
    conn.execute(_USED, {"token_id": token_id, "now_ms": now_ms})


# Redeem codes and invites

_INSERT_CODE = insert(redeem_codes)
_CODE = select(redeem_codes).where(redeem_codes.c.digest == bindparam("digest"))
_CODES = select(redeem_codes).order_by(redeem_codes.c.created_ms, redeem_codes.c.digest)
_USE_CODE = (
    update(redeem_codes)
    .where(
        redeem_codes.c.digest == bindparam("code_digest"),
        redeem_codes.c.kind == bindparam("code_kind"),
        redeem_codes.c.used_ms.is_(None),
        or_(redeem_codes.c.expires_ms.is_(None), redeem_codes.c.expires_ms > bindparam("now_ms")),
    )
    .values(account_id=bindparam("user_id"), used_ms=bindparam("now_ms"))
    .returning(redeem_codes.c.characters)
)


def insert_redeem_codes(conn: Connection, rows: Sequence[RedeemCodeRow]) -> None:
    conn.execute(_INSERT_CODE, [values_of(row) for row in rows])


def redeem_code(conn: Connection, digest: str) -> RedeemCodeRow | None:
    return one(conn, RedeemCodeRow, _CODE, digest=digest)


def all_redeem_codes(conn: Connection) -> list[RedeemCodeRow]:
    return every(conn, RedeemCodeRow, _CODES)


def use_redeem_code(
    conn: Connection, digest: str, kind: str, account_id: str, now_ms: int
) -> int | None:
    """Mark an unused code as used and return its characters; None where there is no such one."""
    values = {
        "code_digest": digest,
        "code_kind": kind,
        "user_id": account_id,
        "now_ms": now_ms,
    }
    return conn.execute(_USE_CODE, values).scalar_one_or_none()


# Blocked end users

EVERYWHERE = "*"

_BLOCKED = select(
    exists().where(
        blocked_users.c.end_user == bindparam("end_user"),
        blocked_users.c.scope.in_([bindparam("account_id"), EVERYWHERE]),
    )
)
_UNBLOCK = delete(blocked_users).where(
    blocked_users.c.end_user == bindparam("end_user"), blocked_users.c.scope == bindparam("scope")
)
_BLOCKS = select(blocked_users).order_by(blocked_users.c.created_ms, blocked_users.c.end_user)
_BLOCKS_FOR = _BLOCKS.where(blocked_users.c.scope.in_([bindparam("account_id"), EVERYWHERE]))
_COUNT_BLOCKS = select(func.count()).where(blocked_users.c.scope == bindparam("account_id"))


def is_blocked(conn: Connection, account_id: str, end_user: str) -> bool:
    """Whether an end user is blocked for this account or everywhere."""
    values = {"account_id": account_id, "end_user": end_user}
    return bool(conn.execute(_BLOCKED, values).scalar_one())


def block_user(conn: Connection, row: BlockedUserRow) -> None:
    """Block, or replace the record of who did."""
    unblock_user(conn, row.account_id, row.end_user)
    values = values_of(row)
    values["scope"] = values.pop("account_id") or EVERYWHERE
    conn.execute(insert(blocked_users), values)


def unblock_user(conn: Connection, account_id: str | None, end_user: str) -> bool:
    """False where the user was not blocked so."""
    values = {"scope": account_id or EVERYWHERE, "end_user": end_user}
    return conn.execute(_UNBLOCK, values).rowcount == 1


def blocked(conn: Connection, account_id: str | None) -> list[BlockedUserRow]:
    """Who is blocked for an account (also everywhere), or all records."""
    statement = _BLOCKS if account_id is None else _BLOCKS_FOR
    found = conn.execute(statement, {} if account_id is None else {"account_id": account_id})
    return [
        BlockedUserRow(
            account_id=None if row.scope == EVERYWHERE else row.scope,
            end_user=row.end_user,
            reason=row.reason,
            created_by=row.created_by,
            created_ms=row.created_ms,
        )
        for row in found
    ]


def blocks_of(conn: Connection, account_id: str) -> int:
    """How many end users are blocked for an account alone."""
    return conn.execute(_COUNT_BLOCKS, {"account_id": account_id}).scalar_one()


# The installation

_FACT = select(installation.c.value).where(installation.c.name == bindparam("name"))
_SET_FACT = {
    name: statement.on_conflict_do_update(
        index_elements=["name"], set_={"value": statement.excluded.value}
    )
    for name, statement in (
        ("sqlite", insert_sqlite(installation)),
        ("postgresql", insert_postgresql(installation)),
    )
}
_CLAIM_FACT = {
    "sqlite": insert_sqlite(installation).on_conflict_do_nothing(),
    "postgresql": insert_postgresql(installation).on_conflict_do_nothing(),
}


def claim_fact(conn: Connection, name: str, value: str) -> str:
    """What is written under this name; `value` from now on where nothing was."""
    conn.execute(_CLAIM_FACT[conn.dialect.name], {"name": name, "value": value})
    return str(conn.execute(_FACT, {"name": name}).scalar_one())


def fact(conn: Connection, name: str) -> str | None:
    """What is written under this name."""
    return conn.execute(_FACT, {"name": name}).scalar_one_or_none()


def set_fact(conn: Connection, name: str, value: str) -> None:
    """Write it, whatever was there."""
    conn.execute(_SET_FACT[conn.dialect.name], {"name": name, "value": value})
