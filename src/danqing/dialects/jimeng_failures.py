"""How jimeng's relays fail: HTTP 200 and `{code, message, data}` with a negative code. Pure; knows no client."""

from __future__ import annotations

import re
from collections.abc import Mapping

from danqing.dialects.answers import (
    NO_MONEY,
    SHUT_OUT,
    failed,
    list_of,
    mapping_of,
    text_of,
    turned_away,
    words,
)
from danqing.dialects.client import Incoming
from danqing.domain.errors import (
    ContentRefused,
    DanqingError,
    InvalidField,
    InvalidImage,
    ProviderFailed,
    UnsupportedField,
)

# Of jimeng-free-api and iptag/jimeng-api. -2001 (the request failed), -2007 (no picture came) and every
# other one say nothing that anybody could act upon.
_FILTERED, _TOKEN, _POINTS, _AT_IT = "-2006", "-2002", "-2009", "-2005"
_FILES = frozenset({"-2003", "-2004"})
"""A picture's address is wrong, a picture is too large."""
_FIELDS_WRONG = frozenset({"-1000", "-1001", "-2000"})
"""A field is wrong; -1000 is all that its code throws bare, an unknown field among it."""
_FAILURE = re.compile("-[0-9]{1,9}")
_UNKNOWN = "不支持的参数"
_REFUSED_WORDS = re.compile(r"敏感|违规|合规")

_FIELDS = {
    "prompt": "prompt",
    "negative_prompt": "negative_prompt",
    **dict.fromkeys(("size", "width", "height", "ratio", "resolution"), "size"),
    "sample_strength": "strength",
    **dict.fromkeys(("image", "images"), "image"),
}
"""The fields that came from the caller, and what each says."""
_NAMED = re.compile(
    rf"(?<![A-Za-z_])({'|'.join(sorted(_FIELDS, key=len, reverse=True))})(?![A-Za-z_])"
)


def read_failure(body: Mapping[str, object], answer: Incoming) -> DanqingError | None:
    """The error of an answer of that shape; None for any other."""
    code = text_of(body.get("code"))
    if _FAILURE.fullmatch(code) is None or list_of(body.get("data")):
        return None
    if mapping_of(body.get("error")):  # somebody else's, who has codes beside it
        return None
    return _error(code, words(body.get("message")), answer)


def _error(code: str, text: str, answer: Incoming) -> DanqingError:
    if code == _TOKEN:
        return ProviderFailed(SHUT_OUT)
    if code == _POINTS:
        return ProviderFailed(NO_MONEY)
    if code == _FILTERED or _REFUSED_WORDS.search(text):
        return ContentRefused("user", 1)
    if (away := turned_away(answer, is_busy=code == _AT_IT)) is not None:
        return away
    if code in _FILES:
        return InvalidImage(text or "The provider cannot read the image.", "image")
    if code in _FIELDS_WRONG and (named := _NAMED.search(text)):
        kind = UnsupportedField if _UNKNOWN in text else InvalidField
        return kind(text, _FIELDS[named[1]])
    return failed(answer, f"code {code}")
