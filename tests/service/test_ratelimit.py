"""Rate limits: as many as allowed and no more, in memory and in a real Redis; and a Redis that is gone holds nobody up."""

from __future__ import annotations

import asyncio
import math
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio import StrictRedis
from structlog.testing import capture_logs
from tests.conftest import missing
from tests.postgres import free_port

from danqing.domain.errors import RateLimited
from danqing.service import ratelimit
from danqing.service.ratelimit import RateLimiter, Taken
from danqing.settings import SettingsError

TOP_OF_A_MINUTE_S = 1_800_000_000.0  # the epoch's seconds; a multiple of 60
Work = Callable[[RateLimiter], Coroutine[Any, Any, None]]


class Clock:
    """Stands in for `time.time`, which the counts in memory go by."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = TOP_OF_A_MINUTE_S + 1
        monkeypatch.setattr(time, "time", lambda: self.now_s)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


class Redis:
    """A redis-server of the test's own, on loopback, that keeps nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        program = shutil.which("redis-server") or missing("Redis", "redis-server")
        options = {"port": self.port, "bind": "127.0.0.1", "save": "", "dir": self.folder}
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        self.process = subprocess.Popen([program, *words], stdout=subprocess.DEVNULL)
        deadline_s = time.monotonic() + 60
        while time.monotonic() < deadline_s and self.process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                time.sleep(0.01)
        raise AssertionError("redis-server did not start")

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    server = Redis(tmp_path)
    yield server
    server.stop()


@pytest.fixture
def silent_port() -> Iterator[int]:
    """It takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine, Redis is not taken for one that is gone."""
    monkeypatch.setattr(ratelimit, "REDIS_WAIT_S_MAX", 30)


@asynccontextmanager
async def limiter(url: str | None = None):
    made = RateLimiter(url)
    try:
        yield made
    finally:
        await made.close()


@pytest.fixture(params=["memory", "redis"])
def run(request: pytest.FixtureRequest) -> Callable[[Work], None]:
    """Runs a test with a limiter of either kind; the clock of the one in memory stands still."""
    url = None
    if request.param == "memory":
        request.getfixturevalue("clock")
    else:
        server = request.getfixturevalue("redis")
        server.start()
        url = server.url
        request.getfixturevalue("monkeypatch").setattr(ratelimit, "REDIS_WAIT_S_MAX", 30)

    def run_with(work: Work) -> None:
        async def main() -> None:
            async with limiter(url) as limits:
                await work(limits)

        asyncio.run(main())

    return run_with


async def attempt(limits: RateLimiter, key: str, per_minute: int) -> Taken | RateLimited:
    try:
        return await limits.take(key, per_minute)
    except RateLimited as error:
        return error


def wake(limits: RateLimiter) -> None:
    """The rest after a failure is over."""
    limits._resting_until_s = 0.0


def test_it_counts_down_and_says_when_to_come_back(run: Callable[[Work], None]) -> None:
    async def work(limits: RateLimiter) -> None:
        taken = [await limits.take("t", 3) for _ in range(3)]
        assert [(one.limit, one.remaining) for one in taken] == [(3, 2), (3, 1), (3, 0)]
        assert all(20 < one.reset_s <= 60 for one in taken)
        await asyncio.sleep(0.01)
        for _ in range(5):
            with pytest.raises(RateLimited, match="3 requests per minute") as refused:
                await limits.take("t", 3)
            assert refused.value.limit == 3
            assert 20 < refused.value.retry_after_s <= 60

    run(work)


@pytest.mark.parametrize("turn", range(3))
def test_of_many_at_once_exactly_the_limit_passes(run: Callable[[Work], None], turn: int) -> None:
    async def work(limits: RateLimiter) -> None:
        results = await asyncio.gather(*(attempt(limits, "t", 200) for _ in range(500)))
        assert sum(isinstance(result, Taken) for result in results) == 200

    run(work)


def test_keys_and_limits_count_apart(run: Callable[[Work], None]) -> None:
    async def work(limits: RateLimiter) -> None:
        await limits.take("a", 1)
        assert (await limits.take("b", 1)).remaining == 0
        assert (await limits.take("a", 5)).remaining == 4  # raised: a count of its own
        with pytest.raises(RateLimited):
            await limits.take("a", 1)

    run(work)


def test_a_limit_of_none_lets_nobody_pass(run: Callable[[Work], None]) -> None:
    async def work(limits: RateLimiter) -> None:
        with pytest.raises(RateLimited):
            await limits.take("t", 0)

    run(work)


@settings(max_examples=200, deadline=None)
@given(per_minute=st.integers(1, 12), gaps_s=st.lists(st.floats(0, 70), min_size=1, max_size=60))
def test_laws_of_the_window(per_minute: int, gaps_s: list[float]) -> None:
    """In any clock minute the limit at most, in any 60 s twice that; who waits as told may pass.

    At the very first moment of a minute the answer is a wait of 0, and the right one after it.
    """

    async def work(clock: Clock) -> None:
        limits, passed_s = RateLimiter(None), []
        for gap_s in gaps_s:
            clock.now_s += gap_s
            result, waits_s = await attempt(limits, "t", per_minute), []
            while isinstance(result, RateLimited):
                waits_s.append(result.retry_after_s)
                clock.now_s += result.retry_after_s + 0.001
                result = await attempt(limits, "t", per_minute)
            assert len([wait_s for wait_s in waits_s if wait_s > 0]) <= 1
            assert waits_s.count(0) <= 1
            assert max(waits_s, default=0) <= 60
            assert 0 <= result.remaining < per_minute
            assert 0 < result.reset_s <= 60
            passed_s.append(clock.now_s)
        minutes = [math.floor(at_s / 60) for at_s in passed_s]
        for index, start_s in enumerate(passed_s):
            assert minutes.count(minutes[index]) <= per_minute
            within = [at_s for at_s in passed_s if start_s <= at_s < start_s + 60]
            assert len(within) <= 2 * per_minute

    with pytest.MonkeyPatch.context() as patch:
        asyncio.run(work(Clock(patch)))


def test_the_turn_of_a_minute_does_not_double_the_limit(clock: Clock) -> None:
    async def work() -> None:
        limits = RateLimiter(None)
        clock.now_s = TOP_OF_A_MINUTE_S + 59.9
        for _ in range(60):
            await limits.take("t", 60)
        clock.now_s += 0.2
        results = [await attempt(limits, "t", 60) for _ in range(60)]
        assert sum(isinstance(result, Taken) for result in results) == 1
        clock.now_s += 30  # half of what passed before has left the window
        results = [await attempt(limits, "t", 60) for _ in range(60)]
        assert sum(isinstance(result, Taken) for result in results) == 30
        clock.now_s += 130
        assert (await limits.take("t", 60)).remaining == 59

    asyncio.run(work())


def test_the_first_moment_of_a_minute_does_not_read_as_its_last(clock: Clock) -> None:
    clock.now_s = TOP_OF_A_MINUTE_S
    assert asyncio.run(RateLimiter(None).take("t", 5)) == Taken(5, 4, 60.0)


@pytest.mark.parametrize("jump_s", [-3600, -61, 3600, 10**8])
def test_a_clock_that_jumps_locks_nobody_out(clock: Clock, jump_s: float) -> None:
    async def work() -> None:
        limits = RateLimiter(None)
        await limits.take("t", 1)
        clock.now_s += jump_s
        result = await attempt(limits, "t", 1)
        assert isinstance(result, Taken) or result.retry_after_s <= 60

    asyncio.run(work())


def test_keys_that_are_idle_are_forgotten(clock: Clock) -> None:

    async def work() -> None:
        limits = RateLimiter(None)
        for key in range(2000):
            await limits.take(str(key), 600)
        clock.now_s += 300
        for key in range(3):
            await limits.take(str(key), 600)
            await asyncio.sleep(0)  # what has expired is swept beside
        assert len(limits._strategy.storage.storage) <= 3

    asyncio.run(work())


def test_gateways_share_what_redis_counts(redis: Redis, patient: None) -> None:
    redis.start()

    async def work() -> None:
        async with limiter(redis.url) as one, limiter(redis.url) as two:
            tries = [attempt(side, "t", 100) for side in (one, two) for _ in range(100)]
            results = await asyncio.gather(*tries)
            assert sum(isinstance(result, Taken) for result in results) == 100

    asyncio.run(work())


def test_no_connection_is_left_open(redis: Redis, patient: None) -> None:
    redis.start()

    async def work() -> None:
        async with StrictRedis.from_url(redis.url) as watcher:
            async with limiter(redis.url) as limits:
                await asyncio.gather(*(limits.take("t", 99) for _ in range(99)))
                assert 1 < len(await watcher.client_list()) <= ratelimit.REDIS_CONNECTIONS_MAX + 1
            async with asyncio.timeout(60):
                while len(await watcher.client_list()) != 1:  # Redis has not noticed yet
                    await asyncio.sleep(0.02)

    asyncio.run(work())


def test_a_flood_does_not_look_like_a_redis_that_is_gone(redis: Redis, patient: None) -> None:
    """Else whoever sends enough at once would be rid of the limit: time runs for as many as there are connections."""
    redis.start()

    async def work() -> None:
        async with limiter(redis.url) as limits:
            asked, now, most = limits._asked, 0, 0

            async def counted(*args):
                nonlocal now, most
                now += 1
                most = max(most, now)
                try:
                    return await asked(*args)
                finally:
                    now -= 1

            limits._asked = counted
            results = await asyncio.gather(*(attempt(limits, "t", 10) for _ in range(1000)))
            assert sum(isinstance(result, Taken) for result in results) == 10
            assert 1 < most <= ratelimit.REDIS_CONNECTIONS_MAX

    asyncio.run(work())


def test_a_process_short_of_cpu_does_not_look_like_a_redis_that_is_gone(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ratelimit, "REDIS_WAIT_S_MAX", 0.2)
    redis.start()

    async def hog() -> None:
        await asyncio.sleep(0)
        time.sleep(0.5)  # nobody reads the answer that comes meanwhile
        monkeypatch.setattr(ratelimit, "REDIS_WAIT_S_MAX", 30)  # for the ping and the second try

    async def work() -> None:
        async with limiter(redis.url) as limits:
            taken, _ = await asyncio.gather(limits.take("t", 2), hog())
            assert taken.remaining < 2, "it was not counted"

    asyncio.run(work())


def test_redis_gone_holds_nobody_up(
    redis: Redis, patient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing listens; then it comes, and goes again."""
    monkeypatch.setattr(ratelimit, "REDIS_REST_S", 3600)

    async def work() -> None:
        async with limiter(redis.url) as limits:
            with capture_logs() as lines:
                began_s = time.monotonic()
                results = await asyncio.gather(*(limits.take("t", 1) for _ in range(100)))
                assert time.monotonic() - began_s < ratelimit.REDIS_WAIT_S_MAX
            assert set(results) == {Taken(1, 1, 0.0)}
            assert [(line["event"], line["log_level"]) for line in lines] == [
                ("rate_limits_off", "warning")
            ]
            redis.start()
            assert await limits.take("t", 1) == Taken(1, 1, 0.0)  # not asked again yet
            wake(limits)
            assert (await limits.take("t", 1)).remaining == 0
            with pytest.raises(RateLimited):
                await limits.take("t", 1)
            redis.stop()
            for _ in range(3):
                assert await limits.take("t", 1) == Taken(1, 1, 0.0)

    asyncio.run(work())


def test_a_silent_redis_is_given_up_soon(silent_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ratelimit, "REDIS_WAIT_S_MAX", 0.2)
    monkeypatch.setattr(ratelimit, "REDIS_REST_S", 3600)

    async def work() -> None:
        async with limiter(f"redis://:secret-word@127.0.0.1:{silent_port}/0") as limits:
            began_s = time.monotonic()
            with capture_logs() as lines:
                # More than there are connections: those that wait for one give up as well.
                results = await asyncio.gather(*(limits.take("t", 1) for _ in range(100)))
            assert 0.2 <= time.monotonic() - began_s < 60
            assert set(results) == {Taken(1, 1, 0.0)}
            assert len(lines) == 1
            assert "secret-word" not in str(lines)
            monkeypatch.delattr(limits, "_strategy")  # it is not asked for a while
            assert await limits.take("t", 1) == Taken(1, 1, 0.0)

    asyncio.run(work())


def test_a_frozen_redis_answers_late_to_nobody(
    redis: Redis, patient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that came too late must not be read as the next request's."""
    redis.start()

    async def work() -> None:
        async with limiter(redis.url) as limits:
            for _ in range(2):
                await limits.take("used up", 2)
            redis.process.send_signal(signal.SIGSTOP)
            monkeypatch.setattr(ratelimit, "REDIS_WAIT_S_MAX", 0.2)
            frozen = await asyncio.gather(*(limits.take("used up", 2) for _ in range(50)))
            assert set(frozen) == {Taken(2, 2, 0.0)}
            redis.process.send_signal(signal.SIGCONT)
            monkeypatch.setattr(ratelimit, "REDIS_WAIT_S_MAX", 30)
            wake(limits)
            mixed = await asyncio.gather(
                *(attempt(limits, key, 2) for _ in range(20) for key in ("used up", "fresh"))
            )
            assert not any(isinstance(result, Taken) for result in mixed[0::2])
            assert sum(isinstance(result, Taken) for result in mixed[1::2]) == 2

    asyncio.run(work())


@pytest.mark.parametrize(
    "url",
    [
        "",
        "memcached://host:11211",
        "host:6379",
        "redis://:secret-word@host:port/0",
        "redis://:secret-word@host:99999/0",
        "redis://:secret-word@host/0?db=first",
        "redis://:secret-word@host/0?no_such_option=1",
        "redis://[:secret-word",
    ],
)
def test_a_bad_url_refuses_to_start(url: str) -> None:
    with pytest.raises(SettingsError, match="the rate limits' storage") as refused:
        RateLimiter(url)
    assert "secret-word" not in str(refused.value)


def test_redis_without_its_client_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    with pytest.raises(SettingsError, match=r"pip install 'danqing\[redis\]'"):
        RateLimiter("redis://127.0.0.1:6379/0")
    RateLimiter(None)  # needs none
