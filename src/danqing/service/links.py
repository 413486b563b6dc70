"""Signed, expiring links to stored images. Knows ids, times and one secret: no host, no database, no HTTP."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_EXT = re.compile(r"[a-z0-9]{1,8}", re.ASCII)
_EXPIRES = re.compile(r"[1-9][0-9]{0,11}", re.ASCII)
_SECRET_BYTES_MIN = 16


class LinkSigner:
    """Makes and checks links of the form /files/{id}.{ext}?x-expires=…&x-signature=….

    The signature is HMAC-SHA256 in unpadded base64url (RFC 4648 section 5), 43 characters. The HTTP
    method is left out: a link serves GET and HEAD alike.
    """

    def __init__(self, secret: bytes) -> None:
        """Raises ValueError for a secret under 16 bytes."""
        if len(secret) < _SECRET_BYTES_MIN:
            raise ValueError(f"the link secret has fewer than {_SECRET_BYTES_MIN} bytes")
        self._secret = secret

    def sign(self, image_id: str, ext: str, expires_s: int) -> str:
        """The path and query of an image, good until `expires_s` (Unix seconds)."""
        expires = str(expires_s)
        assert _well_formed(image_id, ext, expires), (image_id, ext, expires)
        signature = self._signature(image_id, ext, expires)
        return f"/files/{image_id}.{ext}?x-expires={expires}&x-signature={signature}"

    def verify(self, image_id: str, ext: str, expires: str, signature: str, now: float) -> bool:
        """True when the link is one of ours, unaltered, and `now` (Unix seconds) is before its end.

        Takes any text, as it comes from the wire; signatures are compared in constant time.
        """
        if not _well_formed(image_id, ext, expires):
            return False
        expected = self._signature(image_id, ext, expires).encode()
        ours = hmac.compare_digest(expected, signature[:100].encode("utf-8", "replace"))
        return ours and now < int(expires)

    def _signature(self, image_id: str, ext: str, expires: str) -> str:
        # No field may hold a line feed, so no two links share a text.
        text = f"danqing-link-v1\n{image_id}\n{ext}\n{expires}"
        digest = hmac.digest(self._secret, text.encode(), hashlib.sha256)
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _well_formed(image_id: str, ext: str, expires: str) -> bool:
    fields = ((_ID, image_id), (_EXT, ext), (_EXPIRES, expires))
    return all(pattern.fullmatch(text) is not None for pattern, text in fields)
