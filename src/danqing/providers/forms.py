"""multipart/form-data (RFC 7578) as a provider gets it. Pure."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from danqing.dialects.base import Upload

_ESCAPES = str.maketrans({'"': "%22", "\r": "%0D", "\n": "%0A"})  # as browsers write names


def encode_form(parts: Sequence[tuple[str, str | Upload]]) -> tuple[bytes, str]:
    """The body, and its content type."""
    boundary = secrets.token_hex(16)  # 128 random bits: in no picture
    out = bytearray()
    for name, value in parts:
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name.translate(_ESCAPES)}"'
        if isinstance(value, Upload):
            head += f'; filename="{value.filename.translate(_ESCAPES)}"'
            head += f"\r\nContent-Type: {value.content_type or 'application/octet-stream'}"
        out += head.encode() + b"\r\n\r\n"
        out += value.data if isinstance(value, Upload) else value.encode()
        out += b"\r\n"
    out += f"--{boundary}--\r\n".encode()
    return bytes(out), f"multipart/form-data; boundary={boundary}"
