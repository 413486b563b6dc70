"""What people type: names, texts and numbers, checked; and the account that a name means. Knows no deed."""

from __future__ import annotations

import re
import unicodedata

from danqing.db import queries
from danqing.db.rows import AccountRow
from danqing.db.session import Connection
from danqing.domain.errors import InvalidField, NotFound

NAME_CHARS_MAX = 64
TEXT_CHARS_MAX = 500
DELETED = "deleted-"
"""What the names of deleted accounts begin with, and no other's."""
BELOW_ACCOUNTS = ("adjustments", "grants", "password", "revoke-links", "statement", "waivers")
"""What lies below an account's address. Names of before may end in "/grants"; no new one does."""
TIME_MS_MAX = 253_402_300_799_999
"""The end of the year 9999."""
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def folded(name: str) -> str:
    """How a name is kept: compatibility forms and case make no difference (NFKC, full case folding)."""
    plain = unicodedata.normalize("NFKC", name).casefold()
    return unicodedata.normalize("NFKC", plain)


def check_name(name: str, param: str = "name") -> str:
    """The folded name of a new account. Raises InvalidField."""
    if len(name) <= NAME_CHARS_MAX:  # folding makes a name 18 times as long at most
        name = folded(name)
    check_label(name, param)
    if name.startswith(DELETED):
        raise InvalidField(f"A name cannot begin with '{DELETED}'.", param)
    for below in BELOW_ACCOUNTS:
        if name.endswith(f"/{below}"):
            raise InvalidField(f"A name cannot end in '/{below}'.", param)
    return name


def check_label(name: str, param: str = "name") -> None:
    """Raises InvalidField for what cannot be anything's name."""
    # isprintable is False for control characters, line ends and lone surrogates.
    if not 1 <= len(name) <= NAME_CHARS_MAX or not name.isprintable() or name != name.strip():
        raise InvalidField(
            f"A name has 1 to {NAME_CHARS_MAX} printable characters and no space at its ends.",
            param,
        )


def check_text(text: str, param: str, chars_max: int = TEXT_CHARS_MAX) -> None:
    """Raises InvalidField for a text that is blank, too long, or that no database keeps."""
    if not text.strip() or len(text) > chars_max or not storable(text):
        raise InvalidField(f"'{param}' must be a text of 1 to {chars_max} characters.", param)


def storable(text: str) -> bool:
    """Whether every database keeps it: PostgreSQL has no NUL, and none has half a surrogate pair."""
    return "\0" not in text and not any("\ud800" <= sign <= "\udfff" for sign in text)


def check_whole(value: int, param: str, least: int, most: int) -> None:
    """Raises InvalidField for what is not a whole number within these."""
    # The type is asked as well: what comes from JSON may be 1.5 or True.
    if type(value) is not int or not least <= value <= most:
        raise InvalidField(f"'{param}' must be a whole number from {least} to {most}.", param)


def check_expires(expires_ms: int | None, now_ms: int) -> None:
    """Raises InvalidField for a time that is past."""
    if expires_ms is None:
        return
    check_whole(expires_ms, "expires", 0, TIME_MS_MAX)
    if expires_ms <= now_ms:
        raise InvalidField("It would have expired already.", "expires")


def is_taken(conn: Connection, name: str) -> bool:
    """Whether a folded name is an account's already, or the id of one: an id goes before a name."""
    if _ID.fullmatch(name) and queries.account_by_id(conn, name) is not None:
        return True
    return bool(queries.accounts_named(conn, name, name))


def find_named(conn: Connection, name: str) -> AccountRow | None:
    """The account that a typed name means; an exact name (of version 0.1.0) goes before a folded one."""
    if not name.isprintable() or len(name) > NAME_CHARS_MAX:
        return None
    rows = queries.accounts_named(conn, name, folded(name))
    return min(rows, key=lambda row: row.name != name, default=None)


def named(conn: Connection, name: str) -> AccountRow:
    """The account of this id, else of this name (which may look like an id). Raises NotFound."""
    account = queries.account_by_id(conn, name) if _ID.fullmatch(name) else None
    account = account or find_named(conn, name)
    if account is None:
        shown = name[:NAME_CHARS_MAX] if name.isprintable() else "?"
        raise NotFound(f"There is no account named '{shown}'.", "account")
    return account


def live(conn: Connection, account_id: str) -> AccountRow:
    """An account that was not deleted. Raises NotFound."""
    account = queries.account_by_id(conn, account_id)
    if account is None or account.deleted_ms is not None:
        raise NotFound("There is no such account.", "account")
    return account
