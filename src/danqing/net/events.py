"""Server-sent events as they come in (WHATWG HTML, section 9.2.6), bounded. Knows no connection and no dialect."""

from __future__ import annotations

import re
from typing import NamedTuple

from danqing.net.errors import OutboundTooLarge

_LINE_END = re.compile(rb"\r\n?|\n")
_BOM = b"\xef\xbb\xbf"
_LINE_BYTES = 64
"""What a line of data counts beside its bytes: many empty ones take memory too."""


class ReceivedEvent(NamedTuple):
    """`name` is empty where its stream gives none."""

    name: str
    data: bytes


class EventReader:
    """Makes events of the pieces of a stream."""

    def __init__(self, *, event_bytes_max: int, events_max: int, lines_max: int) -> None:
        """`lines_max` is the whole stream's: each takes time, a comment or an empty one too."""
        self._event_bytes_max = event_bytes_max
        self._events_left = events_max
        self._lines_left = lines_max
        self._rest = bytearray()
        """What came of a line without its end, of which the first so many bytes have been looked at:"""
        self._searched = 0
        self._is_first = True
        self._follows_cr = False
        self._name = b""
        self._data: list[bytes] = []
        self._data_bytes = 0

    @property
    def waiting_bytes(self) -> int:
        """Of an event that is not whole yet."""
        return len(self._rest) + self._data_bytes

    def feed(self, piece: bytes) -> list[ReceivedEvent]:
        """The events that are whole with this piece. Raises OutboundTooLarge."""
        if self._follows_cr and piece:
            piece = piece.removeprefix(b"\n")  # the other half of a line's end
            self._follows_cr = False
        self._rest += piece
        events: list[ReceivedEvent] = []
        start = 0
        while found := _LINE_END.search(self._rest, max(start, self._searched)):
            line = bytes(self._rest[start : found.start()])
            start = found.end()
            self._follows_cr = start == len(self._rest) and found[0] == b"\r"
            if (event := self._line(line)) is not None:
                events.append(event)
        del self._rest[:start]
        self._searched = len(self._rest)
        if self.waiting_bytes > self._event_bytes_max:
            raise OutboundTooLarge(f"An event has more than {self._event_bytes_max} bytes.")
        return events

    def _line(self, line: bytes) -> ReceivedEvent | None:
        """Raises OutboundTooLarge."""
        self._lines_left -= 1
        if self._lines_left < 0:
            raise OutboundTooLarge("The stream has too many lines.")
        if self._is_first:
            self._is_first = False
            line = line.removeprefix(_BOM)
        if not line:
            return self._event()
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
            self._data_bytes += len(value) + _LINE_BYTES
        elif field == b"event":
            self._name = value[:100]
        return None

    def _event(self) -> ReceivedEvent | None:
        """What an empty line ends. Raises OutboundTooLarge."""
        name, data = self._name.decode("utf-8", "replace"), b"\n".join(self._data)
        self._name = b""
        self._data.clear()
        self._data_bytes = 0
        if not data:
            return None
        self._events_left -= 1
        if self._events_left < 0:
            raise OutboundTooLarge("The stream has too many events.")
        return ReceivedEvent(name, data)
