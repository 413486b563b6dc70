"""Where image bytes rest: a local folder through obstore. Knows keys and bytes, not what they mean.

The only file that imports obstore. The content type is not kept here (a local folder has no place for it): the
image's row has it. obstore's blocking calls run in worker threads: its async ones call back into Python from
threads of their own, and a process that ends just then aborts (PyO3/pyo3-async-runtimes#40).
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore

from danqing.domain.errors import NotFound, Unavailable

_FOLDER = re.compile(r"[a-z0-9]{1,16}(?:/[a-z0-9-]{1,64})?", re.ASCII)
_KEY = re.compile(_FOLDER.pattern + r"/[a-z0-9-]{1,64}\.(?:png|jpeg|webp)", re.ASCII)
_PART = re.compile(r".+#[0-9]+")
T = TypeVar("T")


class BlobExists(Exception):
    """The key is taken: a blob is never overwritten."""


class Blobs:
    """Immutable blobs by key, e.g. "20261121/<task>/0-3f5a2c.png": written once, whole or not at all.

    Every method raises Unavailable when the store does not work (disk full, gone, forbidden) and
    ValueError for a key that is not of our form, which no client can cause.
    """

    def __init__(self, root: str | Path) -> None:
        """`root` is a folder or a file:// URL. It is made if missing, and closed to other users.

        Raises ValueError for another kind of URL and OSError when the folder cannot be made.
        """
        text = str(root).removeprefix("file://")
        if "://" in text:
            raise ValueError("blob_url: images can be kept in a folder only, not behind a URL")
        self._root = Path(text).absolute()
        self._root.mkdir(parents=True, exist_ok=True)
        self._root.chmod(0o700)
        self._store = LocalStore(self._root, automatic_cleanup=True)

    async def put(self, key: str, data: bytes) -> None:
        """Store a new blob. Raises BlobExists when the key is taken."""
        path = _checked(key)

        def write() -> None:
            obstore.put(self._store, path, data, mode="create", use_multipart=False)
            (self._root / path).chmod(0o600)  # the folder is closed; this is for copies of it

        try:
            await _in_thread(write)
        except AlreadyExistsError:
            raise BlobExists(key) from None

    async def get(self, key: str, range: tuple[int, int] | None = None) -> bytes:
        """The whole blob, or its bytes [start, end), fewer where it ends before. Raises NotFound.

        A `start` behind the end is Unavailable: callers know the size.
        """
        path = _checked(key)
        if range is not None and range[0] == range[1]:
            return b""

        def read() -> bytes:
            if range is None:
                return bytes(obstore.get(self._store, path).bytes())
            return bytes(obstore.get_range(self._store, path, start=range[0], end=range[1]))

        try:
            return await _in_thread(read)
        except FileNotFoundError:
            raise NotFound("The image is gone.") from None

    async def size(self, key: str) -> int | None:
        """The blob's size in bytes; None when there is no such blob."""
        path = _checked(key)
        try:
            return (await _in_thread(lambda: obstore.head(self._store, path)))["size"]
        except FileNotFoundError:
            return None

    async def delete(self, key: str) -> None:
        """Remove a blob; one that is not there is removed already."""
        path = _checked(key)
        try:
            await _in_thread(lambda: obstore.delete(self._store, path))
        except FileNotFoundError:
            return

    async def list(self, folder: str) -> list[str]:
        """The keys in a folder, e.g. "20261121/<task>", and below it, in order; none where there is none."""
        if _FOLDER.fullmatch(folder) is None:
            raise ValueError(f"not a blob folder: {folder!r}")

        def read() -> list[str]:
            return sorted(
                meta["path"] for page in obstore.list(self._store, folder) for meta in page
            )

        return await _in_thread(read)

    async def folders(self) -> list[str]:
        """The folders at the top, in order."""

        def read() -> list[str]:
            prefixes = obstore.list_with_delimiter(self._store)["common_prefixes"]
            return sorted(str(prefix) for prefix in prefixes)

        return await _in_thread(read)

    async def sweep_parts(self, older_than_s: float) -> int:
        """Remove what writers that were killed left half written; how many there were.

        The local store writes to "NAME#1" and renames; its listing does not show those.
        """

        def sweep() -> int:
            removed = 0
            for path in self._root.rglob("*#*"):
                with suppress(FileNotFoundError):
                    if _PART.fullmatch(path.name) and path.stat().st_mtime < older_than_s:
                        path.unlink()
                        removed += 1
            return removed

        return await _in_thread(sweep)


def _checked(key: str) -> str:
    if _KEY.fullmatch(key) is None:
        raise ValueError(f"not a blob key: {key!r}")
    return key


async def _in_thread(deed: Callable[[], T]) -> T:
    """Run a blocking store call. Faults become Unavailable, but for the two that have a meaning.

    The store's own message names paths, so it stays in the cause, for the log.
    """
    try:
        return await asyncio.to_thread(deed)
    except (AlreadyExistsError, FileNotFoundError):
        raise
    except (BaseError, OSError) as error:
        full = any(os.strerror(code) in str(error) for code in (errno.ENOSPC, errno.EDQUOT))
        raise Unavailable(
            "The image store is full." if full else "The image store does not answer."
        ) from error
