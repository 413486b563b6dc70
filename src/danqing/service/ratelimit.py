"""Requests per minute, counted in memory or in Redis. Knows keys and numbers; nothing of tokens, accounts or HTTP."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from limits import RateLimitItemPerMinute, WindowStats
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from limits.errors import StorageError

from danqing.domain.errors import RateLimited
from danqing.observability.logging import get_logger
from danqing.settings import SettingsError

if TYPE_CHECKING:
    from redis.asyncio import ConnectionPool

WINDOW_S = 60.0
REDIS_WAIT_S_MAX = 1.0
REDIS_REST_S = 5.0
REDIS_CONNECTIONS_MAX = 32

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Taken:
    """The limit after a request has passed, for `x-ratelimit-{limit,remaining,reset}-requests`."""

    limit: int
    """Requests per minute."""
    remaining: int
    """Requests that may pass at once, now."""
    reset_s: float
    """Seconds until one more may."""


class RateLimiter:
    """So many requests per minute and key, counted by a sliding window.

    Counted are the running minute and the one before, weighted by how much of that still lies within
    the last 60 s. Of the strategies that `limits` has,

    - a fixed window lets twice the limit pass at the turn of every minute; here what passed before
      the turn still weighs after it (one request over the limit may pass at the turn itself: the
      weighted count is rounded down);
    - a moving window is exact, but keeps the time of every request, trusts the clocks of all gateways
      to agree and never to jump, and in memory goes through all keys at every request, a thread hop
      each: with 1,000 keys and 50 requests a second that took a whole core. Here a key is two
      numbers, and in Redis the minutes are those of Redis' own clock.

    Refused requests do not count.

    In memory (`storage_url` None) each process counts for itself; in Redis (`redis://`, `rediss://`)
    all of them together. When Redis fails or has not answered within REDIS_WAIT_S_MAX, requests pass
    uncounted, with a warning in the log, and Redis is not asked again for REDIS_REST_S. A limit is
    there to protect the service, so its own failure must not take the service down; what a request
    costs is still held against its account.

    Raises SettingsError for a URL it cannot use, and when Redis' client is not installed.
    """

    def __init__(self, storage_url: str | None) -> None:
        self._pool = None if storage_url is None else _connections(storage_url)
        self._strategy = SlidingWindowCounterRateLimiter(
            MemoryStorage()
            if self._pool is None
            else RedisStorage(
                f"async+{storage_url}",
                wrap_exceptions=True,
                implementation="redispy",
                key_prefix="danqing",
                connection_pool=cast("Any", self._pool),  # documented there, but not annotated
            )
        )
        # A flood waits here, not inside the timeout: it must not look like a Redis that is gone.
        self._slots = asyncio.Semaphore(REDIS_CONNECTIONS_MAX)
        self._resting_until_s = 0.0

    async def take(self, key: str, per_minute: int) -> Taken:
        """Count one request of `key` against `per_minute`; another limit is another count.

        Raises RateLimited, with the seconds until one may pass, when the limit is reached.
        """
        uncounted = Taken(per_minute, per_minute, 0.0)
        item = RateLimitItemPerMinute(per_minute)
        async with self._slots:
            if time.monotonic() < self._resting_until_s:
                return uncounted
            try:
                passed, stats = await self._asked(item, key)
            except (StorageError, TimeoutError) as error:
                self._rest(error)
                return uncounted
        reset_s = stats.reset_time - time.time()
        if not passed:
            raise RateLimited(per_minute, max(0.0, reset_s))
        # A window in its first millisecond reads like one in its last.
        return Taken(per_minute, stats.remaining, reset_s if reset_s > 0 else WINDOW_S)

    async def _asked(self, item: RateLimitItemPerMinute, key: str) -> tuple[bool, WindowStats]:
        """Ask the storage. Raises StorageError, and TimeoutError when it is really silent.

        A process that is short of CPU misses answers that came in time: a plain ping tells the two
        apart, and then the request is asked again (it may count twice, never not at all).
        """
        for is_last in (False, True):
            try:
                async with asyncio.timeout(REDIS_WAIT_S_MAX):
                    passed = await self._strategy.hit(item, key)
                    return passed, await self._strategy.get_window_stats(item, key)
            except TimeoutError:
                if is_last:
                    raise
            async with asyncio.timeout(REDIS_WAIT_S_MAX):
                if not await self._strategy.storage.check():
                    raise TimeoutError
        raise AssertionError("unreachable")

    async def close(self) -> None:
        """Close the connections to Redis, if there are any."""
        if self._pool is not None:
            await self._pool.aclose()

    def _rest(self, error: StorageError | TimeoutError) -> None:
        now_s = time.monotonic()
        if now_s >= self._resting_until_s:  # many fail together: one says so
            cause = error.storage_error if isinstance(error, StorageError) else "no answer in time"
            log.warning("rate_limits_off", cause=str(cause), rest_s=REDIS_REST_S)
        self._resting_until_s = now_s + REDIS_REST_S


def _connections(url: str) -> ConnectionPool:
    """The client's pool. It has no `socket_timeout`, because `take` has a timeout over all.

    With one the client sends by `asyncio.wait_for`, which on Python 3.11 now and then swallows the
    cancel of a timeout around it (a test found it as a wait of 5 s).
    """
    if not url.startswith(("redis://", "rediss://")):
        raise SettingsError("the rate limits' storage must be a redis:// or rediss:// URL")
    try:
        from redis.asyncio import ConnectionPool
    except ImportError:
        raise SettingsError(
            "rate limits in Redis need the extra 'redis': pip install 'danqing[redis]'"
        ) from None
    try:
        pool = ConnectionPool.from_url(  # pyright: ignore[reportUnknownMemberType]  # its **kwargs
            url, max_connections=REDIS_CONNECTIONS_MAX, socket_timeout=None
        )
        pool.make_connection()  # connects nowhere, but reads the URL's options
    except (ValueError, TypeError) as error:
        raise SettingsError(f"the rate limits' storage URL cannot be used: {error}") from None
    return pool
