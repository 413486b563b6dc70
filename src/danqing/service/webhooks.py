"""Webhooks by the Standard Webhooks specification 1.0: signed, checked, sent from the outbox. Knows no SQL, no sockets.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import NoReturn, Protocol

from danqing.db.rows import OutboxRow
from danqing.domain.errors import InvalidField, InvalidToken
from danqing.net.errors import OutboundError, OutboundRefused
from danqing.net.outbound import Outbound
from danqing.net.policy import Policy
from danqing.net.policy import check_url as check_outbound_url
from danqing.observability.logging import get_logger
from danqing.service.ledger import wall_clock_ms

URL_CHARS_MAX = 2048
RETRY_S = (5, 60, 600, 3600, 6 * 3600, 24 * 3600)
"""From a failed attempt to the next; after the last of them the webhook is given up."""
LEASE_MS = 60_000
"""How long a claimed row is this process's: far more than an attempt takes."""
ACCOUNT_SENDING = 4
"""An account that has so many attempts under way gets no more (so it may have twice as many less one)."""
_SECRET_BYTES_MIN = 24  # the specification's
_PREFIX = "whsec_"
_SIGNATURES_CHARS_MAX = 4096
# Printable ASCII without the full stop, which parts the signed fields: none can grow into another.
_MESSAGE_ID = re.compile(r"[!-\-/-~]{1,255}", re.ASCII)
_TIMESTAMP = re.compile(r"[1-9][0-9]{0,11}", re.ASCII)
log = get_logger(__name__)


class InvalidSignature(InvalidToken):
    """A webhook that is not from who holds the secret, or not of now."""


def sign(secret: bytes, message_id: str, timestamp_s: int, body: bytes) -> str:
    """`v1,<base64 HMAC-SHA256 of id.timestamp.body>`. Raises ValueError for a secret under 24 bytes."""
    if len(secret) < _SECRET_BYTES_MIN:
        raise ValueError(f"the webhook secret has fewer than {_SECRET_BYTES_MIN} bytes")
    content = b"%b.%d.%b" % (message_id.encode(), timestamp_s, body)
    return "v1," + base64.b64encode(hmac.digest(secret, content, "sha256")).decode()


def verify(
    secret: bytes, headers: Mapping[str, str], body: bytes, now_s: int, tolerance_s: int = 300
) -> str:
    """The message id of a webhook that was signed with `secret` within `tolerance_s` of `now_s`.

    One good signature among several is enough. The id is the caller's key against replays within
    the tolerance. Raises InvalidSignature; ValueError for a secret under 24 bytes.
    """
    fields = {name.lower(): value for name, value in headers.items()}
    message_id = fields.get("webhook-id", "")
    timestamp = fields.get("webhook-timestamp", "")
    given = fields.get("webhook-signature", "")
    if not _MESSAGE_ID.fullmatch(message_id) or not _TIMESTAMP.fullmatch(timestamp):
        raise InvalidSignature("The webhook's id or timestamp is missing or malformed.")
    expected = sign(secret, message_id, int(timestamp), body).encode()
    candidates = given[:_SIGNATURES_CHARS_MAX].encode("utf-8", "replace").split(b" ")
    if not any(hmac.compare_digest(expected, candidate) for candidate in candidates):
        raise InvalidSignature("The webhook's signature is missing or wrong.")
    if abs(now_s - int(timestamp)) > tolerance_s:
        raise InvalidSignature("The webhook's timestamp is too far from now.")
    return message_id


def account_secret(key: bytes, account_id: str) -> bytes:
    """32 bytes, the same for a key and an account each time: nothing is stored."""
    return hmac.digest(key, f"danqing-webhook-v1\n{account_id}".encode(), "sha256")


def shown(secret: bytes) -> str:
    """A secret as receivers and their libraries take it: `whsec_<base64>`."""
    return _PREFIX + base64.b64encode(secret).decode()


def parse_secret(text: str) -> bytes:
    """The bytes of a shown secret. Raises ValueError, which does not quote it."""
    try:
        secret = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        secret = b""
    if not text.startswith(_PREFIX) or len(secret) < _SECRET_BYTES_MIN:
        raise ValueError(
            f"a webhook secret is {_PREFIX} and the base64 of {_SECRET_BYTES_MIN} bytes or more"
        )
    return secret


def check_url(url: str, hosts: Iterable[str] = ()) -> None:
    """Check a URL an account wants its webhooks at: public, or at one of the operator's `hosts`.

    What a name resolves to is checked at each delivery. Raises InvalidField `webhook_url`; ValueError
    for an entry of `hosts` that is no host.
    """
    if len(url) > URL_CHARS_MAX:
        raise InvalidField(f"The URL is longer than {URL_CHARS_MAX} characters.", "webhook_url")
    try:
        check_outbound_url(url, Policy.public(hosts))
    except OutboundRefused as error:
        raise InvalidField(
            f"{error.message} The operator's `webhook_allow_hosts` names exceptions.", "webhook_url"
        ) from error


class OutboxStore(Protocol):
    """The webhooks that wait, in a database that other processes may work off too."""

    async def claim(
        self, now_ms: int, until_ms: int, rows_max: int, busy: Collection[str]
    ) -> Sequence[OutboxRow]:
        """Take rows that are due, the longest due first, but none of the accounts in `busy`.

        Each counts as an attempt from now on (`attempts` of the answer are those before), and is
        not due again before `until_ms`.
        """
        ...

    async def delivered(self, row_id: str, now_ms: int) -> None:
        """The row is done."""
        ...

    async def failed(self, row_id: str, now_ms: int, retry_at_ms: int | None, note: str) -> None:
        """The attempt failed as `note` says (at most 200 characters); due again at `retry_at_ms`, or never."""
        ...


class WebhookSender:
    """Sends what is due, at least once each. A slow receiver takes up a few of the places at most."""

    def __init__(
        self,
        store: OutboxStore,
        outbound: Outbound,
        key: bytes,
        *,
        hosts: Iterable[str] = (),
        sending_max: int = 32,
        timeout_s: float = 10.0,
        clock_ms: Callable[[], int] = wall_clock_ms,
    ) -> None:
        """`key` is what `account_secret` derives from. Raises ValueError for an entry of `hosts` that is no host."""
        self._store = store
        self._outbound = outbound
        self._key = key
        self._policy = Policy.public(hosts)
        self._sending_max = sending_max
        self._timeout_s = timeout_s
        self._clock_ms = clock_ms
        self._sending: dict[asyncio.Task[None], str] = {}

    async def run(self, poll_s: float = 1.0) -> NoReturn:
        """Send what is due until cancelled; then `aclose`."""
        while True:
            try:
                await self._start()
            except Exception:
                log.exception("outbox_unreadable")
                await asyncio.sleep(poll_s)
            if self._sending:
                done = asyncio.FIRST_COMPLETED
                await asyncio.wait(set(self._sending), timeout=poll_s, return_when=done)
            else:
                await asyncio.sleep(poll_s)

    async def run_once(self) -> int:
        """Start what is due and has a place (few for any one account), wait for it, and return how many."""
        started = await self._start()
        await self.aclose()
        return started

    async def aclose(self) -> None:
        """Wait for the attempts under way: `timeout_s`, and the time to note what came of them."""
        if self._sending:
            await asyncio.wait(set(self._sending))

    async def _start(self) -> int:
        started = 0
        while places := self._sending_max - len(self._sending):
            now_ms = self._clock_ms()
            sending = Counter(self._sending.values())
            busy = {account for account, n in sending.items() if n >= ACCOUNT_SENDING}
            # A few rows at a time, or the first claim would give one account all places.
            rows_max = min(places, ACCOUNT_SENDING)
            rows = await self._store.claim(now_ms, now_ms + LEASE_MS, rows_max, busy)
            for row in rows:
                task = asyncio.create_task(self._deliver(row))
                self._sending[task] = row.account_id
                task.add_done_callback(self._sending.pop)
            started += len(rows)
            if not rows:
                break
        return started

    async def _deliver(self, row: OutboxRow) -> None:
        """Make one attempt and note it. What fails unforeseen is due again when its lease ends."""
        try:
            status, note = await self._attempt(row)
            now_ms = self._clock_ms()
            if 200 <= status < 300:
                await self._store.delivered(row.id, now_ms)
                log.info("webhook_delivered", webhook=row.id, attempt=row.attempts + 1)
                return
            retry_at_ms = None if status == 410 else _retry_at_ms(row.attempts, now_ms)
            await self._store.failed(row.id, now_ms, retry_at_ms, note[:200])
            log.warning(
                "webhook_failed" if retry_at_ms else "webhook_given_up",
                webhook=row.id,
                account=row.account_id,
                attempt=row.attempts + 1,
                note=note,
            )
        except Exception:
            log.exception("webhook_crashed", webhook=row.id)

    async def _attempt(self, row: OutboxRow) -> tuple[int, str]:
        """The receiver's status (0 where there is none), and a note for when it is a failure."""
        body = _body(row)
        timestamp_s = self._clock_ms() // 1000
        secret = account_secret(self._key, row.account_id)
        try:
            reply = await self._outbound.request(
                "POST",
                row.url,
                policy=self._policy,
                headers={
                    "content-type": "application/json",
                    "webhook-id": row.id,
                    "webhook-timestamp": str(timestamp_s),
                    "webhook-signature": sign(secret, row.id, timestamp_s, body),
                },
                content=body,
                timeout_s=self._timeout_s,
                bytes_max=0,
            )
        except OutboundError as error:
            return 0, error.message
        return reply.status, f"The receiver answered {reply.status}."


def _body(row: OutboxRow) -> bytes:
    happened = datetime.fromtimestamp(row.created_ms / 1000, UTC)
    content = {
        "type": row.event,
        "timestamp": happened.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "data": row.payload,
    }
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def _retry_at_ms(attempts: int, now_ms: int) -> int | None:
    """When to try again after `attempts` failures and one more: up to 20 % late, so that none march in step."""
    if attempts >= len(RETRY_S):
        return None
    return now_ms + int(RETRY_S[attempts] * 1000 * random.uniform(1, 1.2))
