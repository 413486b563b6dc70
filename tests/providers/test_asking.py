"""Reading a provider's answer: a large one is not read on the event loop, where everybody else would wait."""

from __future__ import annotations

import asyncio
import threading

import pytest

from danqing.dialects.client import Incoming
from danqing.domain.errors import ProviderFailed
from danqing.providers.answers import LARGE_BYTES, Answers


@pytest.mark.parametrize(("bytes_count", "on_loop"), [(0, True), (LARGE_BYTES, False)])
def test_where_an_answer_is_read(bytes_count: int, on_loop: bool) -> None:
    def read(answer: Incoming, n: int) -> tuple[int, int, int]:
        return len(answer.body), n, threading.get_ident()

    answer = Incoming(200, b"x" * bytes_count)
    length, n, thread = asyncio.run(Answers().read(read, answer, 3))
    assert (length, n) == (bytes_count, 3)
    assert (thread == threading.get_ident()) is on_loop


def test_its_error_comes_through() -> None:
    def read(_: Incoming) -> None:
        raise ProviderFailed("no image")

    with pytest.raises(ProviderFailed, match="no image"):
        asyncio.run(Answers().read(read, Incoming(200, b"x" * LARGE_BYTES)))
