"""The text of redeem codes: making one, reading one as typed, its digest. Knows no database and no accounts."""

from __future__ import annotations

import hashlib
import secrets
import unicodedata

from danqing.domain.errors import InvalidField

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's base 32: no I, L, O, U
_ALIKE = str.maketrans("ILO", "110")
_SYMBOLS = 20  # 100 bits: nobody guesses one, so a plain SHA-256 keeps it
_GROUP = 5
_TYPED_CHARS_MAX = 128


def new_code() -> str:
    """A random code of 100 bits: XXXXX-XXXXX-XXXXX-XXXXX."""
    symbols = "".join(secrets.choice(_ALPHABET) for _ in range(_SYMBOLS))
    return "-".join(symbols[at : at + _GROUP] for at in range(0, _SYMBOLS, _GROUP))


def digest(typed: str) -> str:
    """SHA-256 (hex) of a code, however it is typed. Raises InvalidField for what is no code.

    Case, width (full-width letters of a Chinese keyboard), spaces and punctuation don't matter;
    I and L read as 1, O as 0, after Crockford.
    """
    text = unicodedata.normalize("NFKC", typed[:_TYPED_CHARS_MAX]).upper()
    symbols = "".join(filter(str.isalnum, text)).translate(_ALIKE)
    if len(symbols) != _SYMBOLS or not set(symbols) <= set(_ALPHABET):
        raise InvalidField(
            f"This is not a redeem code: one has {_SYMBOLS} letters and digits.", "code"
        )
    return hashlib.sha256(symbols.encode()).hexdigest()
