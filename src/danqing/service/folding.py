"""One text for its many spellings: case, width, accents, separators, invisible signs, lookalike letters. Knows no list.

What Unicode itself calls compatible (full width, mathematical letters, ligatures) NFKD unfolds. The rest is
tables of ours: letters that only look Latin, taken from the single-letter rows of Unicode's confusables
(UTS 39) for the alphabets that keyboards have, and the digits that stand for letters.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import cache

TEXT_CHARS_MAX = 100_000
"""Of a longer text the end is looked at: no prompt is that long, and a history's end matters most."""

# Scripts written without blanks between words: there, a term may begin and end anywhere.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3130-\u318f"
    "\u3400-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003347f"
)
_ANY_UNSPACED = re.compile(f"[{_UNSPACED}]")
_NO_WORD = re.compile(r"[\W_]+")
_NO_SPACED_WORD = re.compile(rf"[\W_{_UNSPACED}]+")
_SPELLED = re.compile(r"(?<= )(?:\w ){2,}\w(?= )")

_SPELLED_CHARS_MAX = 60
# But for white space and the separators, these show nothing.
_CONTROLS = "\0-\x08\x0e-\x1b\x7f-\x84\x86-\x9f"
_CONTROL = re.compile(f"[{_CONTROLS}]")
# ASCII, Chinese characters and their punctuation: nothing to unfold.
_COMMON = re.compile("[\t-\r\x1c-\x7e\u3001\u3002\u4e00-\u9fff！（），：；？“”]*")

# Latin letters that NFKD leaves as they are: with strokes, without dots, small capitals.
_LATIN = dict(
    zip(
        "øłđħŧıɑɡɩᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢ",
        "oldhtiagiabcdefghijklmnoprstuvwyz",
        strict=True,
    )
)
# Of Cyrillic, Greek and Armenian: what looks like a Latin letter, small or capital (which is folded before).
_LOOKALIKES = str.maketrans(
    dict(
        zip(
            "авекмнорстухіјѕԁһӏԛԝɯ" + "αβεηικμνορτυχγω" + "օսոհքց",
            "abekmhopctyxijsdhlqwm" + "abenikuvoptuxyw" + "ounhpg",
            strict=True,
        )
    )
)
_DIGITS = {
    ord(digit): letter
    for digit, letter in {"0": "o", "1": "i", "3": "e", "4": "a", "5": "s", "7": "t"}.items()
}
# Only from the first of a run on, and the whole of it: anything else costs the square of its length.
_SIGNS = re.compile(r"(?<=[^\W\d_])[@$]++|(?<![@$])[@$]++(?=[^\W\d_])")
_SIGN_LETTERS = str.maketrans("@$", "as")
_SUSPECTS = re.compile("[013457@$\u0370-\u03ff\u0400-\u052f\u0530-\u058f\u026f]")
_LETTERS = re.compile("[a-z].*[a-z]")
_ASCII_LETTER = re.compile("[a-z]")
_FOREIGN = re.compile("[\u0370-\u03ff\u0400-\u052f\u0530-\u058f]")
_LATIN_LIKE = re.compile("[" + "".join(_LATIN) + "]")
# Letters in boxes and circles, and the halves of flags: NFKD knows but a part of them.
_BADGES = re.compile("[\U0001f150-\U0001f169\U0001f170-\U0001f189\U0001f1e6-\U0001f1ff]")


def fold(text: str) -> str:
    """The text without case, width, accents and invisible characters (NFKD, marks removed, NFC).

    At most the last TEXT_CHARS_MAX characters, also of what one character may unfold to.
    """
    if text.isascii():
        return _CONTROL.sub("", text[-TEXT_CHARS_MAX:]).lower()
    if _COMMON.fullmatch(text, max(0, len(text) - TEXT_CHARS_MAX)):
        return text[-TEXT_CHARS_MAX:].lower()
    # Marks go first too: ordering a long run of them would cost the square of its length.
    unfolded = unicodedata.normalize("NFKD", _bare(text[-TEXT_CHARS_MAX:]))[-TEXT_CHARS_MAX:]
    bare = _LATIN_LIKE.sub(lambda match: _LATIN[match[0]], _bare(unfolded.casefold()))
    return unicodedata.normalize("NFC", bare)


def is_unspaced(folded: str) -> bool:
    """Whether the text has any letter of a script without blanks between its words."""
    return _ANY_UNSPACED.search(folded) is not None


def is_blank(folded: str) -> bool:
    """Whether nothing of the text is a letter or digit."""
    return not _NO_WORD.sub("", folded)


def words(folded: str) -> str:
    """The words of spaced scripts, one blank around each: " make a bomb "."""
    return f" {_NO_SPACED_WORD.sub(' ', folded).strip()} "


def word_patterns(folded: str) -> Iterator[str]:
    """What a term looks like in `word_readings`; one of several words also as one that was spelled out."""
    plain = words(folded)
    yield plain
    if plain.count(" ") > 2:
        yield _whole(plain.replace(" ", ""))


def squeeze(folded: str) -> str:
    """Letters and digits alone, as terms of unspaced scripts are looked for."""
    return _NO_WORD.sub("", folded)


def word_readings(folded: str) -> Iterator[str]:
    """What the words may be read as: as they stand, spelled out joined ("a-b-c"), lookalikes as Latin."""
    plain = words(folded)
    yield plain
    joined = _joined(plain)
    if joined != plain:
        yield joined
    if _SUSPECTS.search(folded) is None:
        return
    signed = folded
    if "@" in folded or "$" in folded:
        signed = _SIGNS.sub(lambda match: match[0].translate(_SIGN_LETTERS), folded)
    base = _joined(words(signed))
    latin = _latin(base) if _FOREIGN.search(base) is not None else base
    for one in "il":  # a 1 is either
        read = _lettered(latin, one)
        if read != joined:
            yield read
        if "1" not in base:
            return


def squeezed_readings(folded: str) -> Iterator[str]:
    """The same for unspaced scripts; their terms may have Latin letters in them."""
    if folded.isascii() or not is_unspaced(folded):
        return
    squeezed = squeeze(folded)
    yield squeezed
    if _FOREIGN.search(squeezed) is not None:
        yield squeezed.translate(_LOOKALIKES)


def _joined(spaced: str) -> str:
    """Words that were spelled out, joined; at the end once more without the letters that may be no part of them ("a b-o-m-b")."""
    parts: list[str] = []

    def join(match: re.Match[str]) -> str:
        word = match[0].replace(" ", "")
        if len(word) <= _SPELLED_CHARS_MAX:
            shorter = (word[1:], word[:-1], word[1:-1])
            parts.extend(shorter)
            parts.extend(_whole(part).strip() for part in (word, *shorter))
        return word

    joined = _SPELLED.sub(join, spaced)
    return f"{joined}{' '.join(parts)} " if parts else joined


def _whole(spelled: str) -> str:
    """A spelled-out run: it may be several words ("t-h-e-s-e t-w-o"), which no word of a text is taken for."""
    return f" \0{spelled}\0 "


def _latin(spaced: str) -> str:
    """Words of lookalikes as Latin ones. A word that is whole in another alphabet stays in a text of that alphabet."""
    mapped = spaced.translate(_LOOKALIKES)
    is_foreign_text = _FOREIGN.search(mapped) is not None
    return " ".join(
        word
        if not latin.isascii() or (is_foreign_text and not _ASCII_LETTER.search(word))
        else latin
        for word, latin in zip(spaced.split(" "), mapped.split(" "), strict=True)
    )


def _lettered(spaced: str, one: str) -> str:
    """Digits within words as the letters they look like; "4k" and "50" are what they are."""
    letters = _DIGITS | {ord("1"): one}
    return " ".join(
        word if word.isalpha() or _LETTERS.search(word) is None else word.translate(letters)
        for word in spaced.split(" ")
    )


def _bare(text: str) -> str:
    low, high = _marks()
    text = low.sub("", text)
    if not text or max(text) <= "\uffff":
        return text
    return _BADGES.sub(_badge, high.sub("", text))


def _badge(match: re.Match[str]) -> str:
    code = ord(match[0])
    start = next(at for at in (0x1F1E6, 0x1F170, 0x1F150) if code >= at)
    return chr(ord("a") + code - start)


@cache
def _marks() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Combining marks, format characters (zero-width joiners and the like) and blank letters.

    Two patterns, to U+FFFF and above: a set within the first plane is looked up in one step.
    """

    def pattern(*planes: range) -> re.Pattern[str]:
        found = [
            re.escape(char)
            for plane in planes
            for char in map(chr, plane)
            if unicodedata.category(char) in ("Mn", "Me", "Cf") or unicodedata.combining(char)
        ]
        return re.compile("[" + "".join(found) + "\u115f\u1160\u3164\uffa0" + _CONTROLS + "]+")

    return pattern(range(0x10000)), pattern(range(0x10000, 0x20000), range(0xE0000, 0xE0200))
