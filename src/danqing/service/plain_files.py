"""Opening what an operator named as a file, where it is one. Knows no setting, no format."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO


def opened(path: Path) -> BinaryIO:
    """The file. Raises OSError; ValueError for what is none: a pipe would be waited for, a device read for ever."""
    # Without waiting: to open a pipe that nobody writes to would.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ValueError("it is no plain file")
    return open(handle, "rb")
