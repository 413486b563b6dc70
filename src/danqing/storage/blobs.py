"""Where image bytes rest: a local folder, or S3 and what speaks its protocol, through obstore. Knows keys and bytes, not what they mean.

The only file that imports obstore. obstore's blocking calls run in worker threads: its async ones call back into
Python from threads of their own, and a process that ends just then aborts (PyO3/pyo3-async-runtimes#40).
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import secrets
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError
from obstore.exceptions import UnauthenticatedError as Unauthenticated
from obstore.store import LocalStore, S3Store

from danqing.domain.errors import NotFound, Unavailable
from danqing.storage import durable

_FOLDER = re.compile(r"[a-z0-9]{1,16}(?:/[a-z0-9-]{1,64})?", re.ASCII)
_KEY = re.compile(_FOLDER.pattern + r"/[a-z0-9-]{1,64}\.(?:png|jpeg|webp)", re.ASCII)
_PART = re.compile(r"(.+)#[0-9]+")
_PROBE = "probe"
OWNER_KEY = "danqing-database"
"""At the top of the store: which database the blobs belong to."""
T = TypeVar("T")

THREADS = 32
"""Store calls at once: each is a connection where the store is not here."""
PROBE_BYTES = 65_536
S3_CONNECT = timedelta(seconds=5)
S3_TIMEOUT = timedelta(seconds=30)
"""Of one request, and of all its tries."""
S3_RETRIES = 4
"""Tries again after an answer of 5xx, or none."""
S3_BACKOFF = timedelta(seconds=3)


class BlobExists(Exception):
    """The key is taken: a blob is never overwritten."""


@dataclass(frozen=True, slots=True)
class S3Location:
    """What `s3://BUCKET/PREFIX?endpoint=URL&region=NAME` says. Credentials are not in it: AWS_* variables hold them."""

    bucket: str
    prefix: str | None = None
    endpoint: str | None = None
    region: str | None = None

    @classmethod
    def parse(cls, url: str) -> S3Location:
        """Raises ValueError naming what is wrong with it."""
        try:
            parts = urlsplit(url)
            query = dict(
                parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
            )
            odd = parts.port is not None or parts.username or parts.password or parts.fragment
        except ValueError:
            raise ValueError("it is no URL") from None
        if odd:
            raise ValueError("it holds more than s3://BUCKET/PREFIX?endpoint=URL&region=NAME")
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{1,62}", parts.netloc):
            raise ValueError(f"'{parts.netloc}' cannot be a bucket's name")
        unknown = sorted(set(query) - {"endpoint", "region"})
        if unknown:
            raise ValueError(f"it knows endpoint and region, not '{unknown[0]}'")
        endpoint = query.get("endpoint")
        if endpoint is not None and not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", endpoint):
            raise ValueError("its endpoint must be an http or https URL without credentials")
        prefix = unquote(parts.path).strip("/")
        return cls(parts.netloc, prefix or None, endpoint, query.get("region"))

    def open(self) -> S3Store:
        """Asks nobody yet. Raises ValueError for what obstore refuses, e.g. in a variable."""
        config: dict[str, Any] = {
            "region": self.region or os.environ.get("AWS_REGION", "us-east-1"),
            "disable_bulk_delete": True,  # not every server that speaks S3 has it
        }
        if self.endpoint is not None:
            config["endpoint"] = self.endpoint
        return S3Store(
            self.bucket,
            prefix=self.prefix,
            config=config,
            client_options={
                "allow_http": (self.endpoint or "").startswith("http:"),
                "connect_timeout": S3_CONNECT,
                "timeout": S3_TIMEOUT,
            },
            retry_config={
                "max_retries": S3_RETRIES,
                "retry_timeout": S3_TIMEOUT,
                "backoff": {
                    "init_backoff": timedelta(milliseconds=100),
                    "max_backoff": S3_BACKOFF,
                    "base": 2,
                },
            },
        )


def is_key(key: str) -> bool:
    """Whether a blob of ours may be called so; else it is somebody else's, who uses the same folder or bucket."""
    return _KEY.fullmatch(key) is not None


def is_folder(name: str) -> bool:
    """The same of a folder."""
    return _FOLDER.fullmatch(name) is not None


@asynccontextmanager
async def open_blobs(root: str | Path, *, fsync: bool = True) -> AsyncIterator[Blobs]:
    """A store that was tried out. Raises ValueError naming the setting, OSError."""
    blobs = Blobs(root, fsync=fsync)
    try:
        await blobs.check()
        yield blobs
    finally:
        blobs.close()


class Blobs:
    """Immutable blobs by key, e.g. "20261121/<task>/0-3f5a2c.png": written once, whole or not at all.

    Every method raises Unavailable when the store does not work (disk full, gone, forbidden) and
    ValueError for a key that is not of our form, which no client can cause.
    """

    def __init__(self, root: str | Path, *, fsync: bool = True) -> None:
        """`root` is a folder, a file:// URL, or s3://BUCKET/PREFIX. A folder is made if missing, and closed to other users.

        With `fsync` a blob in a folder is on the disk when `put` returns, as one in S3 always is. Raises ValueError for another URL and OSError when the folder cannot be made.
        """
        self._fsync = fsync
        text = str(root).removeprefix("file://")
        self._folder: Path | None = None
        self.shown = text.partition("?")[0]
        """Where it is, without anything that is nobody's business."""
        if text.startswith("s3://"):
            try:
                self._store: LocalStore | S3Store = S3Location.parse(text).open()
            except (BaseError, ValueError) as error:
                raise ValueError(f"blob_url: {error}") from None
        elif "://" in text:
            raise ValueError("blob_url: images are kept in a folder or behind s3://BUCKET/PREFIX")
        else:
            self._folder = Path(text).absolute()
            self._folder.mkdir(parents=True, exist_ok=True)
            self._folder.chmod(0o700)
            if fsync:
                durable.sync_folder(self._folder.parent)
            self._store = LocalStore(self._folder, automatic_cleanup=True)
        # Not the loop's own threads: those encode pictures, and waiting for a network must not hold that up.
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="danqing-blobs")

    async def check(self) -> None:
        """Write, read and delete a probe. Raises ValueError naming the setting and what is wrong."""
        key = f"{_PROBE}/{secrets.token_hex(8)}.png"
        try:
            await self.put(key, b"probe")
            await self.get(key)
            await self.delete(key)
        except (Unavailable, NotFound) as error:
            raise ValueError(f"blob_url: {self.shown}: {_why(error.__cause__)}") from error

    async def claim(self, owner: str, *, dry_run: bool = False) -> str:
        """Whose blobs these are: `owner`'s from now on where they were nobody's. `dry_run` writes nothing."""

        def read() -> str | None:
            try:
                return bytes(obstore.get(self._store, OWNER_KEY).bytes()).decode().strip()
            except FileNotFoundError as error:
                if "NoSuchBucket" in str(error):
                    raise
                return None

        def deed() -> str:
            known = read()
            if known is not None or dry_run:
                return owner if known is None else known
            line = f"{owner}\n".encode()
            with suppress(AlreadyExistsError, FileExistsError):
                if self._folder is not None:
                    durable.write_new(self._folder, OWNER_KEY, line, sync=self._fsync)
                else:
                    obstore.put(self._store, OWNER_KEY, line, mode="create", use_multipart=False)
            return read() or owner

        try:
            return await self._run(deed)
        except FileNotFoundError as error:
            raise _unavailable(error) from error

    async def answers(self, seconds: float) -> bool:
        """Whether images can be kept now, by a probe: of a folder a small file is written, of S3 something is asked for."""
        key = f"{_PROBE}/{secrets.token_hex(8)}.png"
        try:
            async with asyncio.timeout(seconds):
                if self._folder is None:
                    with suppress(NotFound):
                        await self.get(key)
                else:
                    await self.put(key, bytes(PROBE_BYTES))
                    await self.delete(key)
        except (Unavailable, TimeoutError):
            return False
        return True

    def close(self) -> None:
        """End the threads; what they are about is let go."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def put(self, key: str, data: bytes) -> None:
        """Store a new blob. Raises BlobExists when the key is taken."""
        path = _checked(key)

        def write() -> None:
            if self._folder is not None:
                durable.write_new(self._folder, path, data, sync=self._fsync)
                return
            kind = {"Content-Type": f"image/{path.rpartition('.')[2]}"}
            obstore.put(
                self._store, path, data, attributes=kind, mode="create", use_multipart=False
            )

        try:
            await self._run(write)
        except (AlreadyExistsError, FileExistsError):
            raise BlobExists(key) from None
        except FileNotFoundError as error:  # no such bucket, or the folder was taken away meanwhile
            raise Unavailable("The image store does not answer.") from error

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
            return await self._run(read)
        except FileNotFoundError:
            raise NotFound("The image is gone.") from None

    async def size(self, key: str) -> int | None:
        """The blob's size in bytes; None when there is no such blob."""
        path = _checked(key)
        try:
            return (await self._run(lambda: obstore.head(self._store, path)))["size"]
        except FileNotFoundError:
            return None

    async def delete(self, key: str) -> None:
        """Remove a blob; one that is not there is removed already."""
        path = _checked(key)
        try:
            await self._run(lambda: obstore.delete(self._store, path))
        except FileNotFoundError:
            return

    async def list(self, folder: str) -> list[str]:
        """The keys in a folder, e.g. "20261121/<task>", and below it, in order; none where there is none."""
        if not is_folder(folder):
            raise ValueError(f"not a blob folder: {folder!r}")

        def read() -> list[str]:
            return sorted(
                meta["path"] for page in obstore.list(self._store, folder) for meta in page
            )

        return await self._run(read)

    async def folders(self) -> list[str]:
        """The folders at the top, in order; not all need be ours (`is_folder`)."""

        def read() -> list[str]:
            prefixes = obstore.list_with_delimiter(self._store)["common_prefixes"]
            return sorted(name for name in map(str, prefixes) if name != _PROBE)

        return await self._run(read)

    async def strange_files(self) -> list[str]:
        """What lies at the top itself and is not ours, in order: blobs lie in folders."""

        def read() -> list[str]:
            found = obstore.list_with_delimiter(self._store)["objects"]
            return sorted(meta["path"] for meta in found if meta["path"] != OWNER_KEY)

        return await self._run(read)

    async def _run(self, deed: Callable[[], T]) -> T:
        """Run a blocking store call. Faults become Unavailable, but for the two that have a meaning.

        The store's own message names paths, so it stays in the cause, for the log.
        """
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, deed)
        except (AlreadyExistsError, FileExistsError):
            raise
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                raise _unavailable(error) from error
            raise
        except (BaseError, OSError) as error:
            raise _unavailable(error) from error

    async def sweep_parts(self, older_than_s: float, *, dry_run: bool = False) -> int:
        """Remove what writers that were killed left half written, and their probes; how many there were.

        A folder's blobs are written to "NAME#1" first (durable.py); obstore's listing does not show those. S3 has none.
        """

        def sweep() -> int:
            removed = 0
            for meta in [meta for page in obstore.list(self._store, _PROBE) for meta in page]:
                if meta["last_modified"].timestamp() < older_than_s:
                    if not dry_run:
                        obstore.delete(self._store, meta["path"])
                    removed += 1
            for path in [] if self._folder is None else self._folder.rglob("*#*"):
                with suppress(FileNotFoundError):
                    part = _PART.fullmatch(path.relative_to(self._folder).as_posix())
                    if part and is_key(part[1]) and path.stat().st_mtime < older_than_s:
                        if not dry_run:
                            path.unlink()
                        removed += 1
            return removed

        return await self._run(sweep)


def _unavailable(error: BaseException) -> Unavailable:
    full = any(os.strerror(code) in str(error) for code in (errno.ENOSPC, errno.EDQUOT))
    return Unavailable("The image store is full." if full else "The image store does not answer.")


def _checked(key: str) -> str:
    if not is_key(key):
        raise ValueError(f"not a blob key: {key!r}")
    return key


def _why(cause: BaseException | None) -> str:
    """What keeps a store from working, for an operator. obstore's own text is long: its last words are left out."""
    text = str(cause).partition("Debug source:")[0]
    if "NoSuchBucket" in text:
        return "there is no such bucket"
    if isinstance(cause, PermissionDeniedError | Unauthenticated):
        return "access is denied: do AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY belong to it, and may they read, write, list and delete?"
    if "169.254.169.254" in text:
        return "there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    return " ".join(text.split())[:300] or "it does not work"
