"""The blob store: written once, whole or not at all, private, and no way out of its folder."""

from __future__ import annotations

import asyncio
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danqing.domain.errors import NotFound, Unavailable
from danqing.storage.blobs import BlobExists, Blobs

KEY = "3f/3f5a2c00001.png"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_round_trip_and_ranges(tmp_path: Path) -> None:
    async def scenario() -> None:
        blobs = Blobs(tmp_path / "images")
        await blobs.put(KEY, b"0123456789")
        assert await blobs.get(KEY) == b"0123456789"
        assert await blobs.get(KEY, range=(0, 10)) == b"0123456789"
        assert await blobs.get(KEY, range=(2, 5)) == b"234"
        assert await blobs.get(KEY, range=(8, 50)) == b"89"
        assert await blobs.get(KEY, range=(4, 4)) == b""
        assert await blobs.size(KEY) == 10

    asyncio.run(scenario())


def test_a_blob_is_never_overwritten(tmp_path: Path) -> None:
    async def scenario() -> None:
        blobs = Blobs(tmp_path)
        await blobs.put(KEY, b"first")
        with pytest.raises(BlobExists):
            await blobs.put(KEY, b"second")
        assert await blobs.get(KEY) == b"first"

    asyncio.run(scenario())


def test_of_many_writers_of_one_key_one_wins(tmp_path: Path) -> None:
    async def scenario() -> None:
        blobs = Blobs(tmp_path)
        data = [bytes([i]) * 100_000 for i in range(16)]
        ends = await asyncio.gather(*(blobs.put(KEY, d) for d in data), return_exceptions=True)
        assert sum(end is None for end in ends) == 1
        assert sum(isinstance(end, BlobExists) for end in ends) == 15
        assert await blobs.get(KEY) == data[ends.index(None)]

    asyncio.run(scenario())


def test_missing_and_deleted(tmp_path: Path) -> None:
    async def scenario() -> None:
        blobs = Blobs(tmp_path)
        assert await blobs.size(KEY) is None
        with pytest.raises(NotFound):
            await blobs.get(KEY)
        with pytest.raises(NotFound):
            await blobs.get(KEY, range=(0, 1))
        await blobs.delete(KEY)
        await blobs.put(KEY, b"x")
        await blobs.delete(KEY)
        assert await blobs.size(KEY) is None

    asyncio.run(scenario())


def test_files_are_private(tmp_path: Path) -> None:
    root = tmp_path / "a" / "images"
    asyncio.run(Blobs(f"file://{root}").put(KEY, b"x"))
    assert mode(root) == 0o700
    assert mode(root / KEY) == 0o600


@pytest.mark.parametrize(
    "key",
    [
        "../up/a.png",
        "aa/../../b.png",
        "/etc/passwd",
        "aa/b.txt",
        "aa/b.png/c",
        "a.png",
        "",
        "aa/b.png\n",
    ],
)
def test_foreign_keys_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match="not a blob key"):
        asyncio.run(Blobs(tmp_path / "images").get(key))


@given(st.text(alphabet="ab./\\%0\x00é-", max_size=30))
def test_whatever_the_key_nothing_is_written_outside(
    tmp_path_factory: pytest.TempPathFactory, key: str
) -> None:
    root = tmp_path_factory.mktemp("blobs")
    blobs = Blobs(root / "images")
    try:
        asyncio.run(blobs.put(key, b"x"))
    except ValueError:
        assert not [path for path in root.rglob("*") if path.is_file()]
    else:
        assert [path for path in root.rglob("*") if path.is_file()] == [root / "images" / key]


def test_another_kind_of_store_is_refused() -> None:
    with pytest.raises(ValueError, match="folder only"):
        Blobs("s3://bucket")


FULL_DISK = """
import asyncio, resource, sys
from danqing.domain.errors import Unavailable
from danqing.storage.blobs import Blobs
async def main():
    blobs = Blobs(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    try:
        await blobs.put("aa/big.png", bytes(1_000_000))
    except Unavailable as error:
        print("unavailable:", error, sys.argv[1] in str(error))
    print(await blobs.size("aa/big.png"))
    await blobs.put("aa/small.png", bytes(1_000))
asyncio.run(main())
"""


def test_a_write_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    """A file size limit stands for the full disk: the write fails midway."""
    ended = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == [
        "unavailable: The image store does not answer. False",
        "None",
    ]
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["small.png"]


def test_a_store_that_fails_is_unavailable(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path / "images")
    (tmp_path / "images" / "3f").write_text("a file where a folder belongs")
    with pytest.raises(Unavailable) as caught:
        asyncio.run(blobs.put(KEY, b"x"))
    assert str(tmp_path) not in str(caught.value)
    assert caught.value.__cause__ is not None
