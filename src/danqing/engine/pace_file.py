"""Step times kept over a restart: a small JSON file for each engine. Knows pace.py and files, no engine, no settings.

A file that is broken, or of another checkpoint, device or machine, is no fault: its times are not used, the log says why, and
it is written anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import re
import reprlib
import tempfile
from collections.abc import Hashable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from danqing.engine.messages import KeptPace
from danqing.engine.pace import KEYS_MAX, Known, Pace

log = logging.getLogger(__name__)

VERSION = 1
BYTES_MAX = 1_000_000
"""Of a file; one with as many keys as are remembered has some 100 KB."""
KEY_BYTES_MAX = 1000
KEY_DEPTH_MAX = 16
SIZE_MAX = 100_000
SAVE_EVERY_S = 60.0
SECONDS_MAX = 86_400.0
OTHER_DEVICE = 4.0
"""A file is another device's where a step measured now lasts so many times longer than it says, or shorter."""


def kept(folder: Path, name: str, of: Mapping[str, Any]) -> KeptPace:
    """In a folder's file for an engine called `name`: its times on this machine. `of`: what else they depend on."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", name):
        name = hashlib.sha256(name.encode()).hexdigest()
    here = {"machine": platform.machine(), "cores": len(os.sched_getaffinity(0))}
    return KeptPace(str(folder / f"{name}.json"), {**of, **here})


class PaceFile:
    """What one engine's steps took, on disk."""

    def __init__(self, kept: KeptPace) -> None:
        """Nothing is read yet."""
        self._path = Path(kept.path)
        self._of = json.loads(json.dumps(kept.of))
        self._saved_s: float | None = None
        self._text = ""
        self._has_failed = False

    def restore(self, pace: Pace) -> None:
        """Give `pace` what it has not measured by itself. Raises nothing, whatever is in the file."""
        try:
            known = self._read()
            _compare(known, pace.known())
        except FileNotFoundError:
            return
        except Exception as error:
            log.warning("step times in %s are not used: %s", self._path, error)
            return
        pace.restore(known)
        log.info("step times in %s: of %s kinds of image", self._path, len(known))

    def is_due(self, now_s: float) -> bool:
        """It is time to save; `now_s` by any clock, the same at each call."""
        if self._saved_s is None:
            self._saved_s = now_s
        return now_s - self._saved_s >= SAVE_EVERY_S

    def save(self, known: Mapping[Hashable, Known], now_s: float) -> None:
        """As a whole or not at all. Raises nothing: drawing goes on where a disk is full."""
        self._saved_s = now_s
        if not known:
            return
        try:
            text = _text(known, self._of)
            if text != self._text:
                self._write(text)
            self._text, self._has_failed = text, False
        except Exception as error:
            if not self._has_failed:
                log.warning("step times cannot be written: %s", error)
            self._has_failed = True

    def _read(self) -> dict[Hashable, Known]:
        if self._path.exists() and not self._path.is_file():
            raise ValueError("it is no plain file")
        with self._path.open("rb") as file:
            data = file.read(BYTES_MAX + 1)
        if len(data) > BYTES_MAX:
            raise ValueError("it is too large")
        found = json.loads(data)
        if found["version"] != VERSION:
            raise ValueError(f"it has version {reprlib.repr(found['version'])}, not {VERSION}")
        if found["of"] != self._of:
            raise ValueError("they were measured with another checkpoint, device or machine")
        return {_key(row["key"]): _known(row) for row in found["keys"][-KEYS_MAX:]}

    def _write(self, text: str) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}.")
        try:
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(name, self._path)
        except BaseException:
            with suppress(OSError):
                os.unlink(name)
            raise


def _text(known: Mapping[Hashable, Known], of: object) -> str:
    """The file. Keys that it would not be read with are left out."""
    rows: list[dict[str, Any]] = []
    for key, one in known.items():
        if _is_key(key):
            steps = {str(size): _rounded(seconds) for size, seconds in sorted(one.step_s.items())}
            ending_s = None if one.ending_s is None else _rounded(one.ending_s)
            rows.append({"key": key, "step_s": steps, "decode_s": ending_s})
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    of_text = json.dumps(of, ensure_ascii=False)
    return f'{{"version": {VERSION}, "of": {of_text}, "keys": [\n{lines}\n]}}\n'


def _rounded(seconds: float) -> float:
    return float(f"{seconds:.4g}")


def _is_key(key: object) -> bool:
    """JSON has types and UTF-8 has characters for it, and it is no larger than keys are."""
    try:
        return _is_plain(key, KEY_DEPTH_MAX) and (
            len(json.dumps(key, ensure_ascii=False, allow_nan=False).encode()) <= KEY_BYTES_MAX
        )
    except ValueError:  # half a character, a number without end
        return False


def _is_plain(key: object, depth_max: int) -> bool:
    if isinstance(key, tuple):
        return depth_max > 0 and all(_is_plain(each, depth_max - 1) for each in key)
    return key is None or isinstance(key, str | int | float)


def _key(value: object) -> Hashable:
    """A batch key as it was: JSON has lists for tuples."""
    key = _tuples(value)
    if not _is_key(key):
        raise ValueError(f"{reprlib.repr(value)} is no batch key")
    return key


def _tuples(value: Any) -> Hashable:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _known(row: Mapping[str, Any]) -> Known:
    steps = {int(size): _seconds(value) for size, value in row["step_s"].items()}
    if not steps or not 1 <= min(steps) <= max(steps) <= SIZE_MAX:
        raise ValueError(f"{reprlib.repr(row['step_s'])} are no step times")
    ending_s = row["decode_s"]
    return Known(steps, None if ending_s is None else _seconds(ending_s))


def _seconds(value: object) -> float:
    if not isinstance(value, int | float) or not 0 <= value <= SECONDS_MAX:
        raise ValueError(f"{reprlib.repr(value)} are no seconds")
    return float(value)


def _compare(known: Mapping[Hashable, Known], measured: Mapping[Hashable, Known]) -> None:
    """Raise ValueError where what was measured now could not be on the device that the file is of."""
    for key in known.keys() & measured.keys():
        for size in known[key].step_s.keys() & measured[key].step_s.keys():
            then_s, now_s = known[key].step_s[size], measured[key].step_s[size]
            if max(then_s, now_s) > OTHER_DEVICE * max(1e-3, min(then_s, now_s)):
                raise ValueError(
                    f"a step of {key} takes {now_s:.4g} s here, and took {then_s:.4g} s"
                )
