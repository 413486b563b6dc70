"""Which letters and signs are read as which others: tables. Knows no text.

Most of them are picked from Unicode's data (assets/folding.txt, made by tools/make_folding.py); the rest is ours.
"""

from __future__ import annotations

import unicodedata
from functools import cache
from importlib.resources import files

Table = dict[int, str]
"""As str.translate takes it."""

# Latin letters that NFKD leaves as they are: with strokes, without dots, small capitals.
_OUR_LATIN = dict(
    zip(
        "øłđħŧıɑɡɩᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢɯ",
        "oldhtiagiabcdefghijklmnoprstuvwyzm",
        strict=True,
    )
)
# Small letters that are read as their shape, where Unicode's data has their capital's, or none.
_OUR_OTHERS = dict(zip("вкмнтӏμωτք", "bkmhtluwtp", strict=True))

_PLANE_MAX = 0xFFFF

SIGNS = {"@": "a", "$": "s", "€": "e", "£": "l", "¢": "c"}
"""Read as letters beside one."""
SIGNS_BETWEEN = dict(zip("!¡❗❕|¦©¥®§×✕✖❌†⭕◯○●◎⚫⚪", "111111cyrsxxxxtooooooo", strict=True))
"""Read as letters between two: elsewhere they are what they are. A 1 is an i or an l."""


@cache
def simplified() -> Table:
    """Traditional Chinese characters as simplified ones, one by one."""
    return _read()["simplified"]


@cache
def latin() -> Table:
    """Letters of the Latin script as the plain ones that they look like."""
    found = {code: one for code, one in _letters() if _is_latin(code)}
    return found | {ord(letter): one for letter, one in _OUR_LATIN.items()}


@cache
def others() -> Table:
    """Letters of other alphabets (case folded) as the Latin ones that they look like."""
    found = {code: one for code, one in _letters() if not _is_latin(code)}
    return found | {ord(letter): one for letter, one in _OUR_OTHERS.items()}


@cache
def high_letters() -> Table:
    """What lies above U+FFFF: letters in boxes and circles, the halves of flags, what boxes say; and the other
    alphabets up there, which nobody writes to a model."""
    found = {
        start + at: chr(ord("a") + at) for start in (0x1F1E6, 0x1F150, 0x1F170) for at in range(26)
    }
    said = ["cl", "cool", "free", "id", "new", "ng", "ok", "sos", "up!", "vs"]
    rare = {code: one for code, one in _read()["latin"].items() if code > _PLANE_MAX}
    return rare | found | {0x1F18E: "ab"} | {0x1F191 + at: word for at, word in enumerate(said)}


def _letters() -> list[tuple[int, str]]:
    return [(code, one) for code, one in _read()["latin"].items() if code <= _PLANE_MAX]


@cache
def _read() -> dict[str, Table]:
    text = files("danqing.service").joinpath("assets", "folding.txt").read_text("utf-8")
    tables: dict[str, Table] = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            name, pairs = line.split("\t")
            tables[name] = dict(zip(map(ord, pairs[::2]), pairs[1::2], strict=True))
    return tables


def _is_latin(code: int) -> bool:
    return unicodedata.name(chr(code), "").startswith("LATIN")
