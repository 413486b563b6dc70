"""parse_json: what it refuses, how fast, and that it raises InvalidBody and nothing else."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danqing.dialects.base import DEPTH_MAX, parse_json
from danqing.domain.errors import InvalidBody


def nested(depth: int) -> bytes:
    """An object whose nesting, itself included, is `depth`."""
    return b'{"a":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"


REFUSED = {
    "empty": b"",
    "blank": b"  ",
    "not json": b"hello",
    "cut short": b'{"a": 1',
    "list": b"[1]",
    "string": b'"a"',
    "number": b"1",
    "null": b"null",
    "single quotes": b"{'a': 1}",
    "trailing": b'{"a": 1} x',
    "two values": b"{}{}",
    "not utf-8": b'{"a": "\xff"}',
    "utf-16": '{"a": 1}'.encode("utf-16"),
    "utf-8 surrogate": b'{"a": "\xed\xa0\x80"}',
    "lone surrogate": b'{"a": "\\ud800"}',
    "lone surrogate in a list": b'{"a": ["x", {"b": "\\udfff"}]}',
    "lone surrogate in a key": b'{"\\ud800": 1}',
    "nul": b'{"a": "x\\u0000"}',
    "raw control character": b'{"a": "\x01"}',
    "NaN": b'{"a": NaN}',
    "Infinity": b'{"a": [-Infinity]}',
    "float out of range": b'{"a": 1e999}',
    "giant int": b'{"a": ' + b"9" * 100_000 + b"}",
    "same key twice": b'{"a": 1, "a": 2}',
    "same key twice, inside": b'{"a": {"b": 1, "b": 1}}',
    "two BOMs": b"\xef\xbb\xbf\xef\xbb\xbf{}",
    "too deep": nested(DEPTH_MAX + 1),
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "deep after a string of brackets": b'{"a": "]]]]]]", "b": ' + b"[" * 40,
    "a million objects": b'{"a": [' + b"{}," * 1_000_000 + b"{}]}",
    "a million empty strings": b'{"a": [' + b'"",' * 1_000_000 + b'""]}',
    "unterminated string": b'{"a": "' + b"\\" * 99_999,
}


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "is empty"),
        (b"\n ", "is empty"),
        (b"prompt=a cat", "expecting value (line 1, column 1)"),
        (b"{'prompt': 1}", "in double quotes (line 1, column 2)"),
        (b'{\n"prompt": "a"\n"n": 1}', "expecting ',' delimiter (line 3, column 1)"),
        (b'{"n": ' + b"9" * 5_000 + b"}", "is not valid JSON."),
    ],
)
def test_the_error_says_where(raw: bytes, words: str) -> None:
    with pytest.raises(InvalidBody) as caught:
        parse_json(raw)
    assert words in caught.value.message


@pytest.mark.parametrize("raw", REFUSED.values(), ids=REFUSED.keys())
def test_refused(raw: bytes) -> None:
    with pytest.raises(InvalidBody) as caught:
        parse_json(raw)
    caught.value.message.encode()  # safe to send


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b"{}", {}),
        (b'\xef\xbb\xbf{"a": 1}', {"a": 1}),
        ('{"a": "猫😀"}'.encode(), {"a": "猫😀"}),
        (b'{"a": "\\ud83d\\ude00"}', {"a": "😀"}),
        (b'{"a": "' + b"[" * 100_000 + b'"}', {"a": "[" * 100_000}),
        (b'{"a": "\\"[[[\\\\"}', {"a": '"[[[\\'}),
        (b' {"a": [1, 1.5, true, null]} ', {"a": [1, 1.5, True, None]}),
    ],
)
def test_read(raw: bytes, value: dict[str, object]) -> None:
    assert parse_json(raw) == value


def test_the_deepest_allowed() -> None:
    assert parse_json(nested(DEPTH_MAX))


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a": ' + b'"\\' * 500_000,
        b'"' * 1_000_000,
        b"[]" * 500_000,
        b'{"a": "' + b"\\" * 999_999,
    ],
)
def test_a_hostile_megabyte_takes_linear_time(raw: bytes) -> None:
    start = time.process_time()
    with pytest.raises(InvalidBody):
        parse_json(raw)
    assert time.process_time() - start < 20  # about 0.1 s; a quadratic scan takes hours


@given(st.binary() | st.text().map(str.encode) | st.text('{}[]":,\\u d80a1eE-.N').map(str.encode))
def test_raises_only_invalid_body(raw: bytes) -> None:
    try:
        value = parse_json(raw)
    except InvalidBody:
        return
    json.dumps(value, allow_nan=False, ensure_ascii=False).encode()


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_characters="\x00", codec="utf-8")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text("abc"), inner),
    max_leaves=20,
)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text("abc"), JSON))
def test_reads_back_what_json_writes(value: dict[str, object]) -> None:
    assert parse_json(json.dumps(value).encode()) == value
