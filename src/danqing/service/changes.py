"""What operators and holders change of an account, each checked, for `Accounts.change`. Knows no database."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from danqing.db.rows import CHARACTERS_MAX, Json
from danqing.domain.card import PERMILLE_MAX
from danqing.service import webhooks
from danqing.service.inputs import check_text, check_whole

IMAGE_DAYS_MAX = 3650


@dataclass(frozen=True, slots=True)
class Change:
    """Columns of an account, and the deed that the audit trail calls it."""

    deed: str
    detail: Json
    values: Json


def suspended(reason: str) -> Change:
    """Refuse its tokens, within 5 seconds everywhere. Raises InvalidField."""
    check_text(reason, "reason")
    values = {"suspended": True, "suspended_reason": reason}
    return Change("account.suspend", {"reason": reason}, values)


def restored() -> Change:
    """End a suspension."""
    return Change("account.restore", {}, {"suspended": False, "suspended_reason": None})


def price(permille: int) -> Change:
    """Multiply the catalog's prices, in thousandths; 0 draws for nothing. Raises InvalidField."""
    check_whole(permille, "price_permille", 0, PERMILLE_MAX)
    values = {"price_permille": permille}
    return Change("account.price", values, values)


def admin(is_admin: bool) -> Change:
    """Let its tokens have the scope "admin", or no more."""
    values = {"is_admin": is_admin}
    return Change("account.admin", values, values)


def block_level(level: int | None) -> Change:
    """Refuse what moderation finds at this level or worse, -1 (nothing) to 3; None = as the settings say.

    Raises InvalidField.
    """
    if level is not None:
        check_whole(level, "block_level", -1, 3)
    values = {"block_level": level}
    return Change("account.block_level", values, values)


def low_balance(characters: int | None) -> Change:
    """Below this balance its webhook is told; None = never. Raises InvalidField."""
    if characters is not None:
        check_whole(characters, "low_balance", 1, CHARACTERS_MAX)
    values = {"low_balance": characters}
    return Change("account.low_balance", values, values | {"low_balance_told": False})


def image_days(days: int | None) -> Change:
    """How long its images are kept from now on; None = as their models say. Raises InvalidField."""
    if days is not None:
        check_whole(days, "image_days", 1, IMAGE_DAYS_MAX)
    values = {"image_days": days}
    return Change("account.image_days", values, values)


def webhook(url: str | None, allow_hosts: Iterable[str] = ()) -> Change:
    """Where the account is told of what happens; None = nowhere. Raises InvalidField.

    `allow_hosts` may be webhooks' though they are not public. The trail keeps no more than the host:
    the rest of an address may be a secret.
    """
    if url is None:
        return Change("account.webhook", {"url": None}, {"webhook_url": None})
    webhooks.check_url(url, allow_hosts)
    parts = urlsplit(url)
    detail = {"url": f"{parts.scheme}://{parts.hostname}"}
    return Change("account.webhook", detail, {"webhook_url": url})
