"""The key file: the secrets behind tokens, links and other signatures, and what is derived of them. Knows no database.

A token is `sk-<id>.<secret>` with secret = base64url(HMAC-SHA256(key[version], id)): the database
holds the id alone, and Zhipu's JWT, which is signed with the secret, can be checked.
"""

from __future__ import annotations

import base64
import fcntl
import hmac
import json
import os
import secrets
import stat
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from danqing.domain.errors import InvalidField, ServerFault

_KEY_BYTES = 32


class KeyFileError(ServerFault):
    """The key file is missing, unreadable, or readable by others."""

    retryable = False


class KeyFile:
    """Versioned keys behind all tokens, and a root that never changes behind all else.

    `{"current": 1, "root": "<64 hex>", "keys": {"1": "<64 hex>"}}`, mode 0600. Lives outside the
    database; gateways share it, and see each other's rotations at once.
    """

    def __init__(self, path: Path) -> None:
        """Open an existing file. Raises KeyFileError."""
        self._path = path
        self._name = str(path)
        self._load()

    @classmethod
    def load_or_create(cls, path: Path) -> KeyFile:
        """Open the file, making it with a first key where missing. Raises KeyFileError."""
        with _locked_folder(path):
            if not path.exists():
                first = secrets.token_bytes(_KEY_BYTES)
                _store(path, 1, secrets.token_bytes(_KEY_BYTES), {1: first})
            file = cls(path)
            if not file._has_root:
                # Of version 0.1.0, which derived from the oldest key: its links stay good.
                _store(path, file._current, file._root, file._keys)
                file._load()
            return file

    def rotate(self, revoke_version: int | None = None) -> int:
        """Add a key, make it the current one and return its version.

        `revoke_version` removes an older key: its tokens are void from then on. What is derived
        stays as it is. Raises InvalidField when there is no such version.
        """
        with _locked_folder(self._path):
            self._load()
            if revoke_version is not None and revoke_version not in self._keys:
                raise InvalidField(f"There is no key version {revoke_version}.", "revoke_version")
            # Above every version ever made: the newest is never revoked before a newer one is.
            version = max(self._keys) + 1
            keys = {n: key for n, key in self._keys.items() if n != revoke_version}
            keys[version] = secrets.token_bytes(_KEY_BYTES)
            _store(self._path, version, self._root, keys)
            self._load()
            return version

    def versions(self) -> frozenset[int]:
        """The versions whose tokens are good."""
        self._refresh()
        return frozenset(self._keys)

    @property
    def current(self) -> int:
        """The version that new tokens are of."""
        self._refresh()
        return self._current

    def token(self, token_id: str) -> tuple[str, int]:
        """The whole token of an id under the current key, and that key's version."""
        self._refresh()
        return f"sk-{token_id}.{_secret(self._keys[self._current], token_id)}", self._current

    def secrets_of(self, token_id: str) -> dict[int, str]:
        """The secret of an id under each key version."""
        self._refresh()
        return {version: _secret(key, token_id) for version, key in self._keys.items()}

    def derive(self, purpose: str) -> bytes:
        """32 bytes for another use of the file, e.g. signing links; no rotation changes them."""
        return hmac.digest(self._root, f"danqing {purpose}".encode(), "sha256")

    def _refresh(self) -> None:
        try:
            info = os.stat(self._name)
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
            self._has_root = "root" in content
            oldest = self._keys[min(self._keys)]
            self._root = bytes.fromhex(content["root"]) if self._has_root else oldest
            shortest = min(map(len, [self._root, *self._keys.values()]))
            if shortest < _KEY_BYTES or self._current not in self._keys:
                raise ValueError
        except OSError as error:
            raise KeyFileError(f"The key file {self._path} cannot be read.") from error
        except (ValueError, KeyError, TypeError, AttributeError):
            # Without its cause, which may quote the keys.
            raise KeyFileError(f"The key file {self._path} is damaged.") from None
        self._seen = (info.st_ino, info.st_mtime_ns)


def _store(path: Path, current: int, root: bytes, keys: Mapping[int, bytes]) -> None:
    """Replace the key file as a whole; a reader sees the old or the new one."""
    content = {
        "current": current,
        "root": root.hex(),
        "keys": {str(n): key.hex() for n, key in keys.items()},
    }
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


def base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


@lru_cache(4096)
def _secret(key: bytes, token_id: str) -> str:
    return base64url(hmac.digest(key, token_id.encode(), "sha256"))
