"""The headers of a file that is served: what is fresh, which part is wanted, what it is saved as. Knows headers; no file.

Conditional and range requests are RFC 9110 sections 13 and 14, the name to save under is RFC 6266.
"""

from __future__ import annotations

import re
import unicodedata
from email.utils import formatdate, parsedate_to_datetime
from urllib.parse import quote

from starlette.datastructures import Headers

NAME_CHARS_MAX = 100
_RANGE = re.compile(r"bytes=(\d{0,15})-(\d{0,15})", re.ASCII)
_TAGS = re.compile(r'(?:W/)?"[^"]*"')
_ENDING = re.compile(r"\.(?:png|jpe?g|webp)$", re.IGNORECASE)
_UNSAFE = re.compile(r'[/\\:*?"<>|]')


def http_date(seconds: int) -> str:
    """Unix seconds as an HTTP date."""
    return formatdate(seconds, usegmt=True)


def is_unchanged(headers: Headers, etag: str, modified_s: int) -> bool:
    """Whether the client has this already: If-None-Match, or without that If-Modified-Since."""
    tags = headers.get("if-none-match")
    if tags is not None:
        # Weak comparison: a W/ before a tag makes no difference.
        return tags.strip() == "*" or etag in [
            tag.removeprefix("W/") for tag in _TAGS.findall(tags)
        ]
    since_s = _seconds(headers.get("if-modified-since"))
    return since_s is not None and modified_s <= since_s


def span(headers: Headers, size: int, etag: str, modified_s: int) -> tuple[int, int, int]:
    """Status (200, 206, 416) and half-open byte span that the Range header asks for.

    Anything odd gets the whole file, and so do several ranges at once: a server may do so, and their sum can be
    many times the file.
    """
    match = _RANGE.fullmatch(headers.get("range", "").strip())
    if match is None or match[0] == "bytes=-" or not _is_same(headers, etag, modified_s):
        return 200, 0, size
    first, last = match.groups()
    if first == "":
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(size, int(last) + 1 if last else size)
    if start >= size or start >= end:
        return 416, 0, 0
    return 206, start, end


def _is_same(headers: Headers, etag: str, modified_s: int) -> bool:
    """If-Range: whether the part that the client has is of this very file."""
    known = headers.get("if-range")
    if known is None or known == etag:
        return True
    return _seconds(known) == modified_s


def _seconds(date: str | None) -> int | None:
    try:
        return None if date is None else int(parsedate_to_datetime(date).timestamp())
    except (ValueError, TypeError, OverflowError):
        return None


def disposition(wanted: str | None, default: str, ext: str) -> str:
    """Content-Disposition: shown in place, or (`wanted` is a name, or empty) saved under it with the true ending.

    A name is a stranger's: no folders, no control or direction marks, nothing that a file system may not take.
    """
    if wanted is None:
        return f'inline; filename="{default}.{ext}"'
    name = "".join(sign for sign in unicodedata.normalize("NFC", wanted) if sign.isprintable())
    name = _ENDING.sub("", _UNSAFE.sub("_", name)[:NAME_CHARS_MAX].strip(" ."))
    name = name.strip(" .") or default
    plain = re.sub(r"[^A-Za-z0-9 ._()-]", "_", name)
    if not re.search(r"[A-Za-z0-9]", plain):
        plain = default
    told = f'attachment; filename="{plain}.{ext}"'
    return told if plain == name else f"{told}; filename*=UTF-8''{quote(f'{name}.{ext}', safe='')}"
