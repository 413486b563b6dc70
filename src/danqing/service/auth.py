"""Who is asking: checking tokens and Zhipu's JWTs, and from where they come. Knows headers' text, not HTTP."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, cast

from danqing.db import queries
from danqing.db.rows import TokenFacts
from danqing.db.session import Database
from danqing.domain.errors import (
    AccountSuspended,
    DanqingError,
    ExpiredToken,
    InvalidToken,
    MissingToken,
    PermissionDenied,
    ServerFault,
)
from danqing.observability.logging import get_logger
from danqing.service.keys import KeyFile, KeyFileError, base64url
from danqing.service.ledger import wall_clock_ms

HEADER_CHARS_MAX = 2048
_JWT_PART_CHARS_MAX = 512
_JWT_AHEAD_MS_MAX = 3_600_000
_FACTS_TTL_S = 5.0
_FACTS_MAX = 4096
_USED_EVERY_MS = 60_000
_USES_MAX = 256
"""Tokens whose use is being noted at once; beyond it some uses go unnoted."""
log = get_logger(__name__)

_HEADER = "Send it as the header 'Authorization: Bearer YOUR_TOKEN'."
_TOKEN_ID = re.compile(r"sk-([0-9a-f]{32})")


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is asking, authenticated. `waiver_id`: of the label waiver that the account signed."""

    account_id: str
    account_name: str
    token_id: str
    waiver_id: str | None
    scopes: frozenset[str]
    is_admin: bool
    price_permille: int
    """What the account pays of the catalog's prices, in thousandths."""
    models: frozenset[str] | None
    """Models the token may draw with, in lower case; None = all."""
    rate_per_minute: int | None
    image_days: int | None = None
    """How long the account's images are kept; None = as their models say."""
    session: bool = False
    """The token is one that signing in made."""
    block_level: int | None = None
    """From which level on its content is refused; None = as the settings say."""


def require_scope(principal: Principal, scope: str) -> None:
    """Raises PermissionDenied."""
    if scope not in principal.scopes:
        raise PermissionDenied(f"This needs a token with the scope '{scope}'.")


class Authenticator:
    """Checks an Authorization header. What the database says of a token is cached for 5 s at most."""

    def __init__(
        self, db: Database, keys: KeyFile, clock_ms: Callable[[], int] = wall_clock_ms
    ) -> None:
        self._db = db
        self._keys = keys
        self._clock_ms = clock_ms
        self._cache: OrderedDict[str, tuple[float, TokenFacts]] = OrderedDict()
        self._uses: dict[str, asyncio.Task[None]] = {}

    async def authenticate(
        self, authorization: str | None, address: str | None = None
    ) -> Principal:
        """The principal behind `Bearer <token>`, or `Bearer <jwt>` as Zhipu's SDKs sign it.

        `address` is where the request came from, as far as that can be trusted. The signature is
        checked before the database is asked, so that a made-up token costs no query. Raises
        MissingToken, InvalidToken, ExpiredToken (revoked too), AccountSuspended, PermissionDenied
        (not from this address).
        """
        credential = _bearer(authorization)
        now_ms = self._clock_ms()
        try:
            if credential.count(".") == 2:
                token_id, version = self._verify_jwt(credential, now_ms)
            else:
                token_id, version = self._verify_token(credential)
        except KeyFileError as error:
            log.error(
                "key_file_unusable", message=error.message
            )  # it names a path: not for clients
            raise ServerFault from error
        facts = await self._facts(token_id)
        if facts is None or facts.key_version != version:
            raise _invalid()
        if facts.revoked_ms is not None:
            raise ExpiredToken("The API key has been revoked.")
        if facts.expires_ms is not None and facts.expires_ms <= now_ms:
            raise ExpiredToken("The API key has expired.")
        if facts.deleted_ms is not None:
            raise ExpiredToken("The account has been deleted.")
        if facts.suspended:
            raise AccountSuspended("The account is suspended.")
        if facts.networks is not None and not _within(tuple(facts.networks), address):
            raise PermissionDenied("This API key may not be used from your address.")
        self._note_use(facts, now_ms)
        return _principal(facts)

    def _verify_token(self, credential: str) -> tuple[str, int]:
        name, _, secret = credential.partition(".")
        token_id = _token_id(name)
        return token_id, _matching(self._keys.secrets_of(token_id), secret)

    def _verify_jwt(self, credential: str, now_ms: int) -> tuple[str, int]:
        """Zhipu's JWT: HS256, `exp` and `timestamp` in milliseconds, as the zai-sdk signs it. Written by hand,
        because JWT libraries take `exp` for seconds."""
        head, body, signature = credential.split(".")
        header, payload = _json_part(head), _json_part(body)
        if header.get("alg") != "HS256" or "crit" in header:
            raise _invalid()
        token_id = _token_id(payload.get("api_key"))
        signed = f"{head}.{body}".encode()
        version = _matching(
            {
                version: base64url(hmac.digest(secret.encode(), signed, "sha256"))
                for version, secret in self._keys.secrets_of(token_id).items()
            },
            signature,
        )
        expires_ms = payload.get("exp")
        if type(expires_ms) is not int or type(payload.get("timestamp")) is not int:
            raise _invalid()
        if expires_ms <= now_ms:
            raise ExpiredToken("The signed token has expired.")
        if expires_ms > now_ms + _JWT_AHEAD_MS_MAX:
            raise InvalidToken("The signed token lives too long: at most one hour is allowed.")
        return token_id, version

    def _note_use(self, facts: TokenFacts, now_ms: int) -> None:
        """Have it written when the token was used, once a minute; nobody waits for that."""
        token_id = facts.token_id
        if now_ms - (facts.last_used_ms or 0) < _USED_EVERY_MS:
            return
        if token_id in self._uses or len(self._uses) >= _USES_MAX:
            return

        async def write() -> None:
            try:
                await self._db.write(lambda conn: queries.mark_token_used(conn, token_id, now_ms))
            except DanqingError as error:
                log.warning("token_use_unnoted", message=error.message)
                return
            known = self._cache.get(token_id)
            if known is not None:
                self._cache[token_id] = (known[0], replace(known[1], last_used_ms=now_ms))

        task = self._uses[token_id] = asyncio.create_task(write())
        task.add_done_callback(lambda _: self._uses.pop(token_id))

    async def _facts(self, token_id: str) -> TokenFacts | None:
        known = self._cache.get(token_id)
        if known is not None and time.monotonic() - known[0] < _FACTS_TTL_S:
            self._cache.move_to_end(token_id)
            return known[1]
        asked_s = time.monotonic()
        facts = await self._db.read(lambda conn: queries.token_facts(conn, token_id))
        if facts is not None:
            self._cache[token_id] = (asked_s, facts)
            self._cache.move_to_end(token_id)
            if len(self._cache) > _FACTS_MAX:
                self._cache.popitem(last=False)
        return facts


def _principal(facts: TokenFacts) -> Principal:
    scopes = frozenset(facts.scopes.split())
    return Principal(
        account_id=facts.account_id,
        account_name=facts.account_name,
        token_id=facts.token_id,
        waiver_id=facts.waiver_id,
        # The token may be older than the loss of the account's rights.
        scopes=scopes if facts.is_admin else scopes - {"admin"},
        is_admin=facts.is_admin,
        price_permille=facts.price_permille,
        models=None if facts.models is None else frozenset(map(str.lower, facts.models)),
        rate_per_minute=facts.rate_per_minute,
        image_days=facts.image_days,
        session=facts.kind == "session",
        block_level=facts.block_level,
    )


def _within(networks: tuple[str, ...], address: str | None) -> bool:
    try:
        found: IPv4Address | IPv6Address = ip_address((address or "").partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, IPv6Address):
        found = found.ipv4_mapped or found
    return any(found in network for network in _parsed(networks))


@lru_cache(_FACTS_MAX)
def _parsed(networks: tuple[str, ...]) -> tuple[IPv4Network | IPv6Network, ...]:
    return tuple(map(ip_network, networks))


def _bearer(authorization: str | None) -> str:
    if authorization is None or not authorization.strip():
        raise MissingToken(f"You didn't provide an API key. {_HEADER}")
    if len(authorization) > HEADER_CHARS_MAX or not authorization.isascii():
        raise _invalid()
    scheme, _, credential = authorization.strip().partition(" ")
    credential = credential.strip()
    if scheme.lower() != "bearer":
        raise InvalidToken(f"Incorrect API key provided. {_HEADER}")
    if not credential:
        raise MissingToken(f"You didn't provide an API key. {_HEADER}")
    return credential


def _token_id(name: object) -> str:
    match = _TOKEN_ID.fullmatch(name) if isinstance(name, str) else None
    if match is None:
        raise _invalid()
    return match[1]


def _matching(expected: Mapping[int, str], given: str) -> int:
    """The version whose text equals `given`, compared in constant time. Raises InvalidToken."""
    found: int | None = None
    for version, text in expected.items():
        if hmac.compare_digest(text.encode(), given.encode()):
            found = version
    if found is None:
        raise _invalid()
    return found


def _json_part(part: str) -> dict[str, Any]:
    """A JWT's header or payload. Raises InvalidToken."""
    if len(part) > _JWT_PART_CHARS_MAX:
        raise _invalid()
    try:
        content = json.loads(base64.b64decode(part + "=" * (-len(part) % 4), "-_", validate=True))
    except (ValueError, RecursionError):
        raise _invalid() from None
    if not isinstance(content, dict):
        raise _invalid()
    return cast("dict[str, Any]", content)


def _invalid() -> InvalidToken:
    return InvalidToken("Incorrect API key provided.")
