"""The form reader by itself: the same body however it is cut into pieces, and nothing kept of what is refused."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request

from danqing.api import requests, uploads
from danqing.dialects.base import Upload
from danqing.dialects.forms import FormBody, form_body
from danqing.domain.errors import (
    BodyTooSlow,
    Busy,
    Cancelled,
    DanqingError,
    InvalidImage,
    Unavailable,
)
from danqing.service.budget import ByteBudget

LIMITS = uploads.FormLimits(
    bytes_max=100_000, file_bytes_max=40_000, text_bytes_max=10_000, files_max=3
)
Parts = Sequence[tuple[str, str | Upload]]


def encoded(parts: Parts) -> bytes:
    body = b""
    for name, value in parts:
        head = f'--b\r\nContent-Disposition: form-data; name="{name}"'
        if isinstance(value, Upload):
            head += f'; filename="{value.filename}"\r\nContent-Type: {value.content_type}'
        data = value.data if isinstance(value, Upload) else value.encode()
        body += head.encode() + b"\r\n\r\n" + data + b"\r\n"
    return body + b"--b--\r\n"


def request_of(chunks: Sequence[bytes], *, leaves: bool = False) -> Request:
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": chunk, "more_body": leaves or at < len(chunks) - 1}
        for at, chunk in enumerate(chunks)
    ]
    if leaves:
        messages.append({"type": "http.disconnect"})
    scope = {
        "type": "http",
        "headers": [(b"content-type", b"multipart/form-data; boundary=b")],
    }

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    return Request(scope, receive)


def read(chunks: Sequence[bytes], budget: ByteBudget | None = None, **options: Any) -> FormBody:
    async def work() -> FormBody:
        with (budget or ByteBudget(10**9)).share() as share:
            request = request_of(chunks, **options)
            boundary = uploads.boundary_of(request)
            assert boundary == b"b"
            return await uploads.read_form(request, boundary, LIMITS, share)

    return asyncio.run(work())


files = st.builds(Upload, st.binary(max_size=300), st.just("a.png"), st.just("image/png"))
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=50)
names = st.text("abcdefg[]_", min_size=1, max_size=10)
forms = st.lists(
    st.tuples(names, texts | files), max_size=4, unique_by=lambda part: part[0]
).filter(lambda parts: sum(isinstance(value, Upload) for _, value in parts) <= 3)


@settings(max_examples=60)
@given(forms, st.data())
def test_a_form_is_the_same_however_it_is_cut(parts: Parts, data: st.DataObject) -> None:
    whole = encoded(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    chunks = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    assert read(chunks) == form_body(parts)


def test_large_files_wait_on_disk_and_leave_nothing_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(uploads, "SPOOL_BYTES_MAX", 1000)
    rolled: list[int] = []
    real = tempfile.SpooledTemporaryFile

    class Watched(real):  # type: ignore[misc, valid-type]
        def rollover(self) -> None:
            rolled.append(self.tell())
            super().rollover()

    monkeypatch.setattr(uploads.tempfile, "SpooledTemporaryFile", Watched)
    parts = [("image", Upload(bytes(5000), "a", "image/png")), ("mask", Upload(b"x", "", ""))]
    whole = encoded(parts)
    body = read([whole[at : at + 700] for at in range(0, len(whole), 700)])
    assert body == form_body(parts)
    assert len(rolled) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "SPOOL_BYTES_MAX", 100)
    monkeypatch.setattr(tempfile, "tempdir", "/dev/full")
    room = ByteBudget(10**6)
    with pytest.raises(Unavailable):
        read([encoded([("image", Upload(bytes(500), "a", ""))])], room)
    assert room.taken == 0


@pytest.mark.parametrize(
    ("parts", "leaves", "budget", "error"),
    [
        ([("image", Upload(bytes(40_001), "a", ""))], False, 10**6, InvalidImage),
        ([("image", Upload(bytes(9_000), "a", ""))], False, 5000, Busy),
        ([("image", Upload(bytes(9_000), "a", ""))], True, 10**6, Cancelled),
    ],
)
def test_what_ends_early_gives_its_memory_back(
    parts: Parts, leaves: bool, budget: int, error: type[DanqingError]
) -> None:
    whole = encoded(parts)
    if leaves:
        whole = whole[:4000]
    room = ByteBudget(budget)
    with pytest.raises(error):
        read([whole[at : at + 1000] for at in range(0, len(whole), 1000)], room, leaves=leaves)
    assert room.taken == 0


@pytest.mark.parametrize("limit", ["SILENCE_S_MAX", "UPLOAD_S_MAX", "UPLOAD_WINDOW_S"])
def test_who_dawdles_is_let_go(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, limit, 0.05)

    async def work() -> None:
        request = request_of([b"--b\r\n"], leaves=True)

        async def receive() -> dict[str, Any]:
            await asyncio.sleep(3600)
            raise AssertionError

        request._receive = receive
        with ByteBudget(10**6).share() as share, pytest.raises(BodyTooSlow, match="in time"):
            await uploads.read_form(request, b"b", LIMITS, share)

    asyncio.run(work())


def test_who_trickles_is_let_go_and_who_is_slow_is_not() -> None:
    """What counts is what came in each window that was waited for."""

    def lasts(pieces: Sequence[tuple[float, int]]) -> bool:
        """Whether a body whose pieces take so long to come is waited for to its end."""
        arrival = requests.Arrival(0.0, 300, 10, 1000)
        now_s = 0.0
        for wait_s, count in pieces:
            if wait_s >= arrival.patience_s(now_s):
                return False
            arrival.came(count, wait_s)
            now_s += wait_s + 0.2  # what we do with it
        return True

    assert lasts([(0.9, 100)] * 200)
    assert lasts([(9.9, 1000)] * 20)
    assert lasts([(0.1, 10), (9.0, 990), (9.5, 1000), (0.1, 1)])
    assert not lasts([(5.0, 100)] * 9)
    assert not lasts([(0.1, 10**6), (10.0, 1)] + [(5.0, 100)] * 9)
    assert not lasts([(1.0, 10_000)] * 400), "300 seconds, ours counted"
