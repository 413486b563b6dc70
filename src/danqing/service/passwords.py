"""Passwords: which will do, and their argon2id hashes (RFC 9106). Knows no account; logs and keeps no password."""

from __future__ import annotations

import asyncio
import base64
import secrets
import unicodedata
from collections.abc import Callable
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from danqing.domain.errors import Busy, InvalidField

T = TypeVar("T")

CHARS_MAX = 1024
AT_ONCE = 2
"""Each takes 64 MiB and a core or more for the time."""
WAITING_MAX = 64


class Passwords:
    """Hashes and compares in worker threads, a few at a time."""

    def __init__(self, length_min: int) -> None:
        self._length_min = length_min
        self._hasher = PasswordHasher()
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._inside = 0
        # Of nobody's password: comparing with it takes as long as with a real one.
        self._nobodys = (
            f"$argon2id$v=19$m={self._hasher.memory_cost},t={self._hasher.time_cost},"
            f"p={self._hasher.parallelism}${_random(self._hasher.salt_len)}"
            f"${_random(self._hasher.hash_len)}"
        )

    def check(self, password: str, param: str) -> None:
        """Raises InvalidField for what cannot be a new password."""
        if not self._length_min <= len(password) <= CHARS_MAX:
            raise InvalidField(
                f"A password has {self._length_min} to {CHARS_MAX} characters.", param
            )
        if _plain(password) is None:
            raise InvalidField("The password holds characters that nobody can type.", param)

    async def hash(self, password: str) -> str:
        """The encoded hash of a password that `check` let pass. Raises Busy."""
        plain = _plain(password)
        assert plain is not None
        return await self._run(lambda: self._hasher.hash(plain))

    async def matches(self, kept: str | None, password: str) -> bool:
        """Whether a password is the one of this hash; takes its time also without a hash. Raises Busy."""
        plain = _plain(password) if len(password) <= CHARS_MAX else None
        found = await self._run(lambda: self._compare(kept or self._nobodys, plain or b""))
        return found and kept is not None and plain is not None

    def is_outdated(self, kept: str) -> bool:
        """Whether a hash was made with other parameters than today's."""
        return self._hasher.check_needs_rehash(kept)

    def _compare(self, kept: str, plain: bytes) -> bool:
        try:
            return self._hasher.verify(kept, plain)
        except (VerificationError, InvalidHashError):
            return False

    async def _run(self, work: Callable[[], T]) -> T:
        if self._inside >= WAITING_MAX:
            raise Busy(retry_after_s=1.0)
        self._inside += 1
        try:
            async with self._slots:
                return await asyncio.to_thread(work)
        finally:
            self._inside -= 1


def _plain(password: str) -> bytes | None:
    """The bytes that are hashed: NFC, as RFC 8265 section 4.2.2 has it, so that every keyboard's é is one."""
    try:
        return unicodedata.normalize("NFC", password).encode()
    except UnicodeEncodeError:  # half a surrogate pair
        return None


def _random(count: int) -> str:
    return base64.b64encode(secrets.token_bytes(count)).rstrip(b"=").decode()
