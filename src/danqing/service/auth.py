"""Who is asking: the key file, tokens made from it, and checking them. Knows headers' text, not HTTP.

A token is `sk-<id>.<secret>` with secret = base64url(HMAC-SHA256(key[version], id)): the database
holds the id alone, and Zhipu's JWT, which is signed with the secret, can be checked.
"""

from __future__ import annotations

import base64
import fcntl
import hmac
import json
import os
import re
import secrets
import stat
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from danqing.db import queries
from danqing.db.session import Database
from danqing.db.tables import TokenFacts
from danqing.domain.errors import (
    AccountSuspended,
    ExpiredToken,
    InvalidField,
    InvalidToken,
    MissingToken,
    ServerFault,
)
from danqing.observability.logging import get_logger
from danqing.service.ledger import wall_clock_ms

HEADER_CHARS_MAX = 2048
_JWT_PART_CHARS_MAX = 512
_JWT_AHEAD_MS_MAX = 3_600_000
_FACTS_TTL_S = 5.0
_FACTS_MAX = 4096
log = get_logger(__name__)

_TOKEN_ID = re.compile(r"sk-([0-9a-f]{32})")


class KeyFileError(ServerFault):
    """The key file is missing, unreadable, or readable by others."""

    retryable = False


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is asking, authenticated. `waiver`: the account signed the label waiver."""

    account_id: str
    account_name: str
    token_id: str
    waiver: bool


class KeyFile:
    """The versioned keys behind all tokens: `{"current": 1, "keys": {"1": "<64 hex>"}}`, mode 0600.

    Lives outside the database; gateways share it, and see each other's rotations at once.
    """

    def __init__(self, path: Path) -> None:
        """Open an existing file. Raises KeyFileError."""
        self._path = path
        self._load()

    @classmethod
    def load_or_create(cls, path: Path) -> KeyFile:
        """Open the file, making it with a first key where missing. Raises KeyFileError."""
        with _locked_folder(path):
            if not path.exists():
                _store(path, 1, {1: secrets.token_bytes(32)})
        return cls(path)

    def rotate(self, revoke_version: int | None = None) -> int:
        """Add a key, make it the current one and return its version.

        `revoke_version` removes an older key: its tokens are void from then on. Raises
        InvalidField when there is no such version.
        """
        with _locked_folder(self._path):
            self._load()
            if revoke_version is not None and revoke_version not in self._keys:
                raise InvalidField(f"There is no key version {revoke_version}.", "revoke_version")
            # Above every version ever made: the newest is never revoked before a newer one is.
            version = max(self._keys) + 1
            keys = {n: key for n, key in self._keys.items() if n != revoke_version}
            _store(self._path, version, {**keys, version: secrets.token_bytes(32)})
            self._load()
            return version

    def token(self, token_id: str) -> tuple[str, int]:
        """The whole token of an id under the current key, and that key's version."""
        self._refresh()
        return f"sk-{token_id}.{_secret(self._keys[self._current], token_id)}", self._current

    def secrets_of(self, token_id: str) -> dict[int, str]:
        """The secret of an id under each key version."""
        self._refresh()
        return {version: _secret(key, token_id) for version, key in self._keys.items()}

    def derive(self, purpose: str) -> bytes:
        """32 bytes for another use of the file, e.g. signing links.

        From the oldest key: rotation leaves them as they are, revoking that key changes them.
        """
        return hmac.digest(self._keys[min(self._keys)], f"danqing {purpose}".encode(), "sha256")

    def _refresh(self) -> None:
        try:
            info = self._path.stat()
        except OSError as error:
            raise KeyFileError("The key file cannot be read.") from error
        if (info.st_ino, info.st_mtime_ns) != self._seen:
            self._load()

    def _load(self) -> None:
        try:
            with self._path.open("rb") as file:
                info = os.fstat(file.fileno())
                if stat.S_IMODE(info.st_mode) & 0o077:
                    raise KeyFileError(
                        f"The key file {self._path} can be read by others: chmod 600 it."
                    )
                content = json.loads(file.read(1 << 20))
            self._keys = {int(n): bytes.fromhex(key) for n, key in content["keys"].items()}
            self._current = int(content["current"])
            if min(map(len, self._keys.values())) < 32 or self._current not in self._keys:
                raise ValueError
        except OSError as error:
            raise KeyFileError(f"The key file {self._path} cannot be read.") from error
        except (ValueError, KeyError, TypeError, AttributeError):
            # Without its cause, which may quote the keys.
            raise KeyFileError(f"The key file {self._path} is damaged.") from None
        self._seen = (info.st_ino, info.st_mtime_ns)


def _store(path: Path, current: int, keys: Mapping[int, bytes]) -> None:
    """Replace the key file as a whole; a reader sees the old or the new one."""
    content = {"current": current, "keys": {str(n): key.hex() for n, key in keys.items()}}
    part = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(content, file)
            file.flush()
            os.fsync(file.fileno())
        part.rename(path)
    except OSError as error:
        raise KeyFileError(f"The key file {path} cannot be written.") from error


@contextmanager
def _locked_folder(path: Path) -> Generator[None]:
    """Keep other processes from making or rotating keys meanwhile: a lock on the file's folder."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise KeyFileError(f"The key file {path} cannot be made.") from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
        os.fsync(folder)
    finally:
        os.close(folder)


def new_token_id() -> str:
    """128 random bits as 32 hex digits."""
    return secrets.token_hex(16)


class Authenticator:
    """Checks an Authorization header. What the database says of a token is cached for 5 s at most."""

    def __init__(
        self, db: Database, keys: KeyFile, clock_ms: Callable[[], int] = wall_clock_ms
    ) -> None:
        self._db = db
        self._keys = keys
        self._clock_ms = clock_ms
        self._cache: OrderedDict[str, tuple[float, TokenFacts]] = OrderedDict()

    async def authenticate(self, authorization: str | None) -> Principal:
        """The principal behind `Bearer <token>`, or `Bearer <jwt>` as Zhipu's SDKs sign it.

        The signature is checked before the database is asked, so that a made-up token costs no
        query. Raises MissingToken, InvalidToken, ExpiredToken (revoked too), AccountSuspended.
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
        if facts.suspended:
            raise AccountSuspended("The account is suspended.")
        return Principal(
            account_id=facts.account_id,
            account_name=facts.account_name,
            token_id=facts.token_id,
            waiver=facts.waiver_ms is not None,
        )

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
                version: _base64url(hmac.digest(secret.encode(), signed, "sha256"))
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


def _bearer(authorization: str | None) -> str:
    if authorization is None or not authorization.strip():
        raise MissingToken("You didn't provide an API key.")
    if len(authorization) > HEADER_CHARS_MAX or not authorization.isascii():
        raise _invalid()
    scheme, _, credential = authorization.strip().partition(" ")
    credential = credential.strip()
    if scheme.lower() != "bearer":
        raise _invalid()
    if not credential:
        raise MissingToken("You didn't provide an API key.")
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


def _secret(key: bytes, token_id: str) -> str:
    return _base64url(hmac.digest(key, token_id.encode(), "sha256"))


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _invalid() -> InvalidToken:
    return InvalidToken("Incorrect API key provided.")
