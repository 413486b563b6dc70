"""The port of payment providers: a signed webhook grants characters, once per payment. Knows no HTTP and no provider.

Whoever takes the money sends a Standard Webhook (see `webhooks`) whose body is
`{"payment_id": text, "account": name, "characters": number, "provider": text or missing}`.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping
from typing import Any, cast

from danqing.db import book_queries
from danqing.db.session import Connection, Database
from danqing.domain.errors import (
    IdempotencyConflict,
    InvalidBody,
    InvalidField,
    MissingField,
    NotFound,
)
from danqing.service.inputs import check_text, live, named
from danqing.service.ledger import Ledger, check_characters, wall_clock_ms
from danqing.service.trail import Trail, of_account
from danqing.service.webhooks import verify

_PAYMENTS = uuid.UUID("6b1c9b0e-6d0f-4f0c-9f5e-3f1f6f0f2a57")
"""The name space of payments' transfers: any constant will do, so long as it stays."""
_WORD_CHARS_MAX = 200


class TopUp:
    """Receives payments. A webhook that comes again, later or at once, grants nothing more."""

    def __init__(
        self,
        db: Database,
        ledger: Ledger,
        trail: Trail,
        secret: bytes | None,
        clock_ms: Callable[[], int] = wall_clock_ms,
    ) -> None:
        """`secret` is the provider's and ours; None takes no payments."""
        self._db = db
        self._ledger = ledger
        self._trail = trail
        self._secret = secret
        self._clock_ms = clock_ms

    async def receive(self, headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
        """Grant what was paid for; the answer, the same each time the payment comes.

        Raises InvalidSignature (forged, or signed more than five minutes ago), InvalidBody,
        MissingField, InvalidField, IdempotencyConflict (the payment was something else before),
        NotFound (no such account; or no payments are taken here).
        """
        if self._secret is None:
            raise NotFound("No payments are taken here.")
        verify(self._secret, headers, body, self._clock_ms() // 1000)
        content = _content(body)
        payment_id, account = _word(content, "payment_id"), _word(content, "account")
        provider = _word(content, "provider") if "provider" in content else "payment"
        if "characters" not in content:
            raise MissingField("characters")
        characters = content["characters"]
        check_characters(characters)
        # With the lengths: no other provider and payment make the same text.
        words = f"{len(provider)} {provider} {payment_id}"
        transfer_id = str(uuid.uuid5(_PAYMENTS, words))
        row = await self._db.read(lambda conn: named(conn, account))

        def work(conn: Connection) -> None:
            known = book_queries.transfer_by_id(conn, transfer_id)
            if known is not None:
                if (known.account_id, known.amount) != (row.id, characters):
                    raise IdempotencyConflict("payment_id")
                return
            live(conn, row.id)
            reason = f"{provider} {payment_id}"
            self._ledger.grant_within(conn, row.id, characters, reason, transfer_id)
            detail = {"payment_id": payment_id, "characters": characters}
            by = f"payment:{provider}"
            self._trail.within(conn, by, "account.top_up", of_account(row.id), detail)

        await self._trail.write(work, [row.id])
        return {
            "id": transfer_id,
            "payment_id": payment_id,
            "account": row.name,
            "characters": characters,
        }


def _content(body: bytes) -> dict[str, Any]:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise InvalidBody("The body is not JSON.") from None
    if not isinstance(content, dict):
        raise InvalidBody("The body is not a JSON object.")
    return cast("dict[str, Any]", content)


def _word(content: Mapping[str, Any], param: str) -> str:
    if param not in content:
        raise MissingField(param)
    word = content[param]
    if not isinstance(word, str):
        raise InvalidField(f"'{param}' must be a text.", param)
    check_text(word, param, _WORD_CHARS_MAX)
    return word
