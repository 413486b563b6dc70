"""Conditional requests, ranges and the name to save under, against their laws; no server needed."""

from __future__ import annotations

import re
from email.utils import formatdate
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from danqing.api.ranges import disposition, is_unchanged, span

TAG = '"0123abcd"'
DATE_S = 1_790_000_000


def date(seconds: int) -> str:
    return formatdate(seconds, usegmt=True)


@pytest.mark.parametrize(
    ("headers", "unchanged"),
    [
        ({}, False),
        ({"if-none-match": TAG}, True),
        ({"if-none-match": "*"}, True),
        ({"if-none-match": f"W/{TAG}"}, True),
        ({"if-none-match": f'"other", {TAG}'}, True),
        ({"if-none-match": '"other"'}, False),
        ({"if-none-match": TAG.strip('"')}, False),
        ({"if-modified-since": date(DATE_S)}, True),
        ({"if-modified-since": date(DATE_S + 60)}, True),
        ({"if-modified-since": date(DATE_S - 1)}, False),
        ({"if-modified-since": "yesterday"}, False),
        # The tag counts, not the date.
        ({"if-none-match": '"other"', "if-modified-since": date(DATE_S)}, False),
    ],
)
def test_what_is_unchanged(headers: dict[str, str], unchanged: bool) -> None:
    assert is_unchanged(Headers(headers), TAG, DATE_S) == unchanged


@pytest.mark.parametrize(
    ("known", "status"),
    [
        (TAG, 206),
        (f"W/{TAG}", 200),
        ('"other"', 200),
        (date(DATE_S), 206),
        (date(DATE_S - 1), 200),
        (date(DATE_S + 1), 200),
        ("nonsense", 200),
    ],
)
def test_a_part_is_of_the_file_that_the_client_has(known: str, status: int) -> None:
    headers = Headers({"range": "bytes=0-9", "if-range": known})
    assert span(headers, 100, TAG, DATE_S)[0] == status


@given(st.integers(1, 1000), st.integers(0, 1200), st.none() | st.integers(0, 1200))
def test_a_range_is_within_the_file(size: int, first: int, last: int | None) -> None:
    headers = Headers({"range": f"bytes={first}-{'' if last is None else last}"})
    status, start, end = span(headers, size, TAG, DATE_S)
    if first >= size or (last is not None and last < first):
        assert status == 416
    else:
        whole = bytes(index % 251 for index in range(size))
        assert (status, whole[start:end]) == (
            206,
            whole[first : None if last is None else last + 1],
        )


@given(st.text(st.sampled_from("bytes=0123456789-, \tabc٣"), max_size=30) | st.text())
def test_odd_ranges_give_the_whole_file_or_a_part(text: str) -> None:
    try:
        headers = Headers({"range": text})
        status, start, end = span(headers, 50, TAG, DATE_S)
    except UnicodeEncodeError:  # no such header can come over the wire
        return
    assert (status, start, end) == (200, 0, 50) or status == 416 or 0 <= start < end <= 50


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (None, 'inline; filename="0a.png"'),
        ("", 'attachment; filename="0a.png"'),
        ("cat", 'attachment; filename="cat.png"'),
        ("cat.png", 'attachment; filename="cat.png"'),
        ("cat.JPEG", 'attachment; filename="cat.png"'),
        ("cat.exe", 'attachment; filename="cat.exe.png"'),
        ("../../etc/passwd", 'attachment; filename="_.._etc_passwd.png"'),
        ('a";b', "attachment; filename=\"a__b.png\"; filename*=UTF-8''a_%3Bb.png"),
        ("小猫", "attachment; filename=\"0a.png\"; filename*=UTF-8''%E5%B0%8F%E7%8C%AB.png"),
        ("café 1", "attachment; filename=\"caf_ 1.png\"; filename*=UTF-8''caf%C3%A9%201.png"),
        ("gnp.\u202eexe", 'attachment; filename="gnp.exe.png"'),
        ("...", 'attachment; filename="0a.png"'),
    ],
)
def test_the_name_to_save_under(wanted: str | None, expected: str) -> None:
    assert disposition(wanted, "0a", "png") == expected


@given(st.text(max_size=300))
def test_whatever_the_name_the_header_is_one_and_the_ending_true(wanted: str) -> None:
    told = disposition(wanted, "0a", "webp")
    match = re.fullmatch(
        r'attachment; filename="([A-Za-z0-9 ._()-]+\.webp)"(?:; filename\*=UTF-8\'\'([A-Za-z0-9%._~-]+))?',
        told,
    )
    assert match, told
    name = unquote(match[2]) if match[2] else match[1]
    assert name.endswith(".webp")
    assert name.isprintable()
    assert not set(name) & set('/\\:*?"<>|')
    assert len(name) <= 120
