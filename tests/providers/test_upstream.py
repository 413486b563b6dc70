"""Keys in turn, and the breaker: by a clock of the test's own."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danqing.domain.errors import Busy, ProviderFailed
from danqing.providers.forms import encode_form
from danqing.providers.upstream import (
    FAILURES_MAX,
    KEY_OFF_S,
    OPEN_S,
    OPEN_S_MAX,
    Breaker,
    KeyRing,
    Untaken,
    no_key,
)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_each_key_is_used_by_its_weight(weights: list[int]) -> None:
    ring = KeyRing("far", [(f"key-{index}", weight) for index, weight in enumerate(weights)])
    for _ in range(2):  # in every round, not only on the whole
        used = Counter(key.text for _ in range(sum(weights)) if (key := ring.take()))
        assert used == {f"key-{index}": weight for index, weight in enumerate(weights)}


def test_a_key_rests_for_as_long_as_it_was_told() -> None:
    clock = Clock()
    ring = KeyRing("far", [("one", 1), ("two", 1)], clock)
    first = ring.take()
    assert first is not None
    ring.rest(first, 30, "rate_limited")
    assert {key.text for _ in range(4) if (key := ring.take())} == {"two"}
    assert ring.take([key for key in [ring.take()] if key]) is None
    clock.now += 30
    assert {key.text for _ in range(4) if (key := ring.take())} == {"one", "two"}


def test_without_a_key_one_asks_without() -> None:
    ring = KeyRing("far", [])
    key = ring.take()
    assert key is not None
    assert (key.text, ring.total, ring.usable) == (None, 0, 0)


def test_what_a_caller_hears_while_no_key_works() -> None:
    clock = Clock()
    ring = KeyRing("far", [("one", 1)], clock)
    key = ring.take()
    assert key is not None
    ring.rest(key, 20, "rate_limited")
    busy = no_key(ring).error
    assert isinstance(busy, Busy)
    assert busy.retry_after_s == 20
    ring.rest(key, KEY_OFF_S, "unauthorized")
    assert isinstance(no_key(ring).error, ProviderFailed)


def test_a_limit_is_no_closed_door_however_long_it_lasts() -> None:
    clock = Clock()
    ring = KeyRing("far", [("one", 1), ("two", 1)], clock)
    limited, unknown = ring.take(), ring.take()
    assert limited is not None
    assert unknown is not None
    ring.rest(unknown, KEY_OFF_S, "unauthorized")
    clock.now += 100
    ring.rest(limited, KEY_OFF_S, "rate_limited")
    clock.now += 10
    ring.rest(
        limited, 60, "quota_or_permission"
    )  # of a request sent before: the longer rest counts
    busy = no_key(ring).error
    assert isinstance(busy, Busy)
    assert busy.retry_after_s == KEY_OFF_S - 10


def test_the_breaker_opens_for_longer_each_time_and_lets_one_probe() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    for _ in range(FAILURES_MAX):
        breaker.admit()
        breaker.failed()
    open_s = OPEN_S
    for _ in range(6):
        with pytest.raises(Untaken):
            breaker.admit()
        clock.now += open_s
        breaker.admit()
        with pytest.raises(Untaken):  # one at a time
            breaker.admit()
        breaker.failed()
        open_s = min(open_s * 2, OPEN_S_MAX)
    clock.now += open_s
    breaker.admit()
    breaker.left()  # the probe was cancelled: the next one may
    breaker.admit()
    breaker.worked()
    breaker.admit()
    assert breaker.state == "closed"


def test_a_form_is_read_back_as_it_was() -> None:
    import asyncio

    from starlette.requests import Request

    from danqing.dialects.base import Upload

    body, kind = encode_form(
        [("prompt", "一只猫\r\n--x"), ("image[]", Upload(b"\r\n--\0", 'a"b.png', "image/png")), ("n", "2")]
    )  # fmt: skip

    async def read() -> None:
        async def receive() -> dict[str, object]:
            return {"type": "http.request", "body": body, "more_body": False}

        scope = {"type": "http", "method": "POST", "headers": [(b"content-type", kind.encode())]}
        form = await Request(scope, receive).form()
        assert (form["prompt"], form["n"]) == ("一只猫\r\n--x", "2")
        upload = form["image[]"]
        assert await upload.read() == b"\r\n--\0"
        assert (upload.filename, upload.content_type) == ("a%22b.png", "image/png")

    asyncio.run(read())
