"""A new file that a power cut leaves whole or not at all. Knows folders and bytes, not what they mean.

Rename and fsync in this order: Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_TRIES = 8


def write_new(root: Path, name: str, data: bytes, *, sync: bool = True) -> None:
    """Write `data` to the new file `root / name`; its folders are made, `root` itself is not.

    The bytes go to "NAME#<digits>" first. With `sync` they are on the disk before the file has its
    name, and so is the name when this returns. Raises FileExistsError, other OSError.
    """
    path = root / name
    part = path.with_name(f"{path.name}#{secrets.randbits(40)}")
    for left in reversed(range(_TRIES)):
        try:
            _make_folders(root, path)
            _write(part, data, sync)
            break
        except FileNotFoundError:
            # Whoever deletes a folder's last file deletes the folder, maybe just now.
            if not left or not root.is_dir():
                raise
    try:
        os.link(part, path)  # a rename would replace what is there
    finally:
        part.unlink()
    if sync:
        for folder in _folders(root, path):
            sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write(part: Path, data: bytes, sync: bool) -> None:
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            if sync:
                os.fsync(handle)
    except BaseException:
        part.unlink()
        raise


def _folders(root: Path, path: Path) -> Iterator[Path]:
    """From the one that holds the file up to the root. All of them: another writer may have made one, and not synced it yet."""
    folder = path.parent
    while folder != root:
        yield folder
        folder = folder.parent
    yield root


def _make_folders(root: Path, path: Path) -> None:
    for folder in reversed([*_folders(root, path)][:-1]):
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
