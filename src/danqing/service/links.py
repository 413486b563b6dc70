"""Signed, expiring links to stored images. Knows ids, times and one secret: no host, no database, no HTTP."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from typing import Literal

from danqing.domain.errors import PermissionDenied

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_EXT = re.compile(r"[a-z0-9]{1,8}", re.ASCII)
_EXPIRES = re.compile(r"[1-9][0-9]{0,11}", re.ASCII)
_VERSION = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)
_SECRET_BYTES_MIN = 16
_SIGNATURE_CHARS_MAX = 100


class LinkRefused(PermissionDenied):
    """A link that opens nothing: not one of ours or changed, past its time, or revoked."""

    def __init__(self, reason: Literal["invalid", "expired", "revoked"]) -> None:
        super().__init__(_MESSAGES[reason])
        self.reason: Literal["invalid", "expired", "revoked"] = reason


_MESSAGES = {
    "invalid": "The link is not one of ours, or a part of it was changed. Ask for the image again to get a fresh one.",
    "expired": "The link has expired. Ask for the image again to get a fresh one.",
    "revoked": "The link was revoked. Ask for the image again to get a fresh one.",
}


class LinkSigner:
    """Makes and checks links of the form /files/{id}.{ext}?x-expires=…&x-signature=….

    The signature is HMAC-SHA256 in unpadded base64url (RFC 4648 section 5), 43 characters. The HTTP
    method is left out: a link serves GET and HEAD alike. An image whose links were revoked has a
    version: it is signed, and stands before the signature ("2.…"), so that the signature can be
    checked before anything is looked up.
    """

    def __init__(self, secret: bytes) -> None:
        """Raises ValueError for a secret under 16 bytes."""
        if len(secret) < _SECRET_BYTES_MIN:
            raise ValueError(f"the link secret has fewer than {_SECRET_BYTES_MIN} bytes")
        self._secret = secret

    def sign(self, image_id: str, ext: str, expires_s: int, version: int = 0) -> str:
        """The path and query of an image, good until `expires_s` (Unix seconds), or until its version changes."""
        expires = str(expires_s)
        assert _well_formed(image_id, ext, expires), (image_id, ext, expires)
        signature = self._signature(image_id, ext, expires, version)
        return f"/files/{image_id}.{ext}?x-expires={expires}&x-signature={signature}"

    def verify(self, image_id: str, ext: str, expires: str, signature: str, now: float) -> int:
        """The version of a link that is one of ours, unaltered, and before its end at `now` (Unix seconds).

        Takes any text, as it comes from the wire; signatures are compared in constant time. Raises
        LinkRefused, "expired" only for what was a link of ours.
        """
        first, dot, _ = signature.partition(".")
        version = int(first) if dot and _VERSION.fullmatch(first) else 0
        if not _well_formed(image_id, ext, expires):
            raise LinkRefused("invalid")
        expected = self._signature(image_id, ext, expires, version).encode()
        given = signature[:_SIGNATURE_CHARS_MAX].encode("utf-8", "replace")
        if not hmac.compare_digest(expected, given):
            raise LinkRefused("invalid")
        if now >= int(expires):
            raise LinkRefused("expired")
        return version

    def _signature(self, image_id: str, ext: str, expires: str, version: int) -> str:
        # No field may hold a line feed, so no two links share a text.
        text = f"danqing-link-v1\n{image_id}\n{ext}\n{expires}"
        if version:
            text += f"\n{version}"
        digest = hmac.digest(self._secret, text.encode(), hashlib.sha256)
        signature = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        return f"{version}.{signature}" if version else signature


def _well_formed(image_id: str, ext: str, expires: str) -> bool:
    fields = ((_ID, image_id), (_EXT, ext), (_EXPIRES, expires))
    return all(pattern.fullmatch(text) is not None for pattern, text in fields)
