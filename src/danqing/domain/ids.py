"""Ids of rows: UUID version 7. Reads the clock and the system's random source, nothing else."""

from __future__ import annotations

import os
import threading
import time

_lock = threading.Lock()
_last_tick = 0


def uuid7() -> str:
    """A new UUIDv7 (RFC 9562 section 5.7), time-ordered and strictly rising within a process.

    48 bits of Unix milliseconds, then 12 bits of the millisecond's fraction (section 6.2,
    method 3), then 62 random bits. Where the clock stands still or jumps back, the last tick
    plus one is used.
    """
    global _last_tick
    ms, ns_of_ms = divmod(time.time_ns(), 1_000_000)
    with _lock:
        _last_tick = tick = max(ms << 12 | (ns_of_ms << 12) // 1_000_000, _last_tick + 1)
    random = int.from_bytes(os.urandom(8), "big") & ((1 << 62) - 1)
    value = (tick >> 12) << 80 | 0x7 << 76 | (tick & 0xFFF) << 64 | 0b10 << 62 | random
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
