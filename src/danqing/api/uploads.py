"""Reading multipart forms as they come in: bounded in every way, large files on disk meanwhile. Knows HTTP; nothing of any dialect."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import IO, cast

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from danqing.api.requests import (
    DRAIN_BYTES_MAX,
    drain,
    expects_continue,
    upload_arrival,
)
from danqing.dialects.base import Upload
from danqing.dialects.forms import FormBody, form_body
from danqing.domain.errors import (
    BodyTooLarge,
    BodyTooSlow,
    Cancelled,
    DanqingError,
    InvalidBody,
    InvalidImage,
    Unavailable,
)
from danqing.observability.logging import get_logger
from danqing.service.budget import Share

log = get_logger(__name__)

SPOOL_BYTES_MAX = 1_000_000
"""A file above this goes to disk until it is there whole."""
PARTS_MAX = 64
HEADERS_MAX = 8
HEADER_BYTES_MAX = 2048
NAME_CHARS_MAX = 100
_PLAIN_ENCODINGS = (b"", b"7bit", b"8bit", b"binary")


@dataclass(frozen=True, slots=True)
class FormLimits:
    """What a form may hold."""

    bytes_max: int
    file_bytes_max: int
    text_bytes_max: int
    """All parts that are no files together."""
    files_max: int


def boundary_of(request: Request) -> bytes | None:
    """The boundary of a multipart form; None where the body is something else. Raises InvalidBody where it has none."""
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind.lower() != b"multipart/form-data":
        return None
    boundary = options.get(b"boundary", b"")
    if not 1 <= len(boundary) <= 70:  # RFC 2046 section 5.1.1
        raise InvalidBody("The multipart form's 'Content-Type' names no valid boundary.")
    return boundary


async def read_form(
    request: Request, boundary: bytes, limits: FormLimits, share: Share
) -> FormBody:
    """The whole form. Its bytes are added to `share` as they come; nothing stays on disk.

    Raises InvalidBody; BodyTooLarge; InvalidImage for a file that is too large; Busy when the share
    cannot grow; BodyTooSlow; Cancelled when the client leaves.
    """
    declared = request.headers.get("content-length", "")
    expected = int(declared) if declared.isdigit() else 0
    with ExitStack() as files:
        form = _Form(limits, files)
        try:
            if expected > limits.bytes_max:
                raise _too_large(limits)
            share.probe(expected)
            await _receive(request, boundary, form, limits, share)
        except (BodyTooSlow, Cancelled):
            raise
        except DanqingError:
            # Who sends first and reads afterwards is to get the answer; who waits for "100 Continue" has sent nothing.
            if not form.is_received and not expects_continue(request):
                await drain(request.receive, expected or DRAIN_BYTES_MAX)
            raise
        try:
            return await asyncio.to_thread(form.body)
        except OSError:
            raise _no_room() from None


async def _receive(
    request: Request, boundary: bytes, form: _Form, limits: FormLimits, share: Share
) -> None:
    parser = MultipartParser(
        boundary,
        form.callbacks(),  # type: ignore[arg-type]
        max_header_count=HEADERS_MAX,
        max_header_size=HEADER_BYTES_MAX,
    )
    count = 0
    arrival = upload_arrival()
    while not form.is_received:
        chunk, form.is_received = await arrival.next_chunk(request)
        count += len(chunk)
        if count > limits.bytes_max:
            raise _too_large(limits)
        share.add(len(chunk))
        try:
            parser.write(chunk)
        except FormParserError:
            raise InvalidBody("The request body is not a valid multipart form.") from None
        await form.flush()
    if not form.is_whole:
        raise InvalidBody("The multipart form ends before its last boundary.")


def _too_large(limits: FormLimits) -> BodyTooLarge:
    return BodyTooLarge(f"The request body is too large: at most {limits.bytes_max} bytes.")


def _no_room() -> Unavailable:
    log.exception("upload_not_kept")
    return Unavailable("The server has no room for uploads just now.")


@dataclass(slots=True)
class _Part:
    name: str
    is_file: bool
    filename: str
    content_type: str
    file: IO[bytes]
    bytes_count: int = 0
    waiting: list[bytes] = field(default_factory=list[bytes])


class _Form:
    """Takes the parser's callbacks, which may not wait, and keeps the parts."""

    def __init__(self, limits: FormLimits, files: ExitStack) -> None:
        self._limits = limits
        self._files = files
        self._parts: list[_Part] = []
        self._text_bytes = 0
        self._name = bytearray()
        self._value = bytearray()
        self._headers: dict[bytes, bytes] = {}
        self.is_received = False
        self.is_whole = False
        """The last boundary was there."""

    def callbacks(self) -> dict[str, Callable[..., None]]:
        return {
            "on_part_begin": self._headers.clear,
            "on_header_field": lambda data, start, end: self._name.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._on_header,
            "on_headers_finished": self._on_headers,
            "on_part_data": self._on_data,
            "on_end": self._on_end,
        }

    def _on_header(self) -> None:
        self._headers[bytes(self._name).lower()] = bytes(self._value)
        self._name.clear()
        self._value.clear()

    def _on_headers(self) -> None:
        kind, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = _text(options.get(b"name", b""))
        if kind.lower() != b"form-data" or not name or len(name) > NAME_CHARS_MAX:
            raise InvalidBody("A part of the form has no valid name.")
        encoding = self._headers.get(b"content-transfer-encoding", b"").strip().lower()
        if encoding not in _PLAIN_ENCODINGS:  # RFC 7578 section 4.7: deprecated, nobody sends it
            raise InvalidBody(f"The part '{name}' is encoded: send its bytes as they are.")
        is_file = b"filename" in options
        if len(self._parts) == PARTS_MAX:
            raise InvalidBody(f"The form has more than {PARTS_MAX} parts.")
        if is_file and sum(part.is_file for part in self._parts) == self._limits.files_max:
            raise InvalidImage(f"The form has more than {self._limits.files_max} files.", name)
        file = cast("IO[bytes]", tempfile.SpooledTemporaryFile(SPOOL_BYTES_MAX))  # noqa: SIM115
        self._parts.append(
            _Part(
                name,
                is_file,
                _text(options.get(b"filename", b""))[:255],
                _text(self._headers.get(b"content-type", b""))[:100],
                self._files.enter_context(file),
            )
        )

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        part = self._parts[-1]
        part.bytes_count += end - start
        if part.is_file:
            if part.bytes_count > self._limits.file_bytes_max:
                raise InvalidImage(
                    f"'{part.name}' has more than {self._limits.file_bytes_max} bytes.", part.name
                )
        else:
            self._text_bytes += end - start
            if self._text_bytes > self._limits.text_bytes_max:
                raise BodyTooLarge(
                    f"The form's texts are too large: at most {self._limits.text_bytes_max} bytes."
                )
        part.waiting.append(data[start:end])

    def _on_end(self) -> None:
        self.is_whole = True

    async def flush(self) -> None:
        """Write what came; to disk not on the event loop."""
        for part in self._parts:
            if not part.waiting:
                continue
            data = b"".join(part.waiting)
            part.waiting.clear()
            try:
                if part.bytes_count > SPOOL_BYTES_MAX:
                    await asyncio.to_thread(part.file.write, data)
                else:
                    part.file.write(data)
            except OSError:
                raise _no_room() from None

    def body(self) -> FormBody:
        """All parts, read. Raises InvalidBody."""
        return form_body((part.name, self._value_of(part)) for part in self._parts)

    def _value_of(self, part: _Part) -> str | Upload:
        part.file.seek(0)
        data = part.file.read()
        if part.is_file:
            return Upload(data, part.filename, part.content_type)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            raise InvalidBody(f"The part '{part.name}' is not valid UTF-8.") from None


def _text(raw: bytes) -> str:
    """A header's text: UTF-8 as browsers and SDKs write it; what is not is replaced."""
    return "".join(sign for sign in raw.decode("utf-8", "replace") if sign.isprintable())
