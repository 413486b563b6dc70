"""The blob store: written once, whole or not at all, private, and no way out of its folder or prefix."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import obstore
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.s3 import S3Server, failing_front

from danqing.domain.errors import NotFound, Unavailable
from danqing.storage import durable
from danqing.storage.blobs import S3_RETRIES, BlobExists, Blobs, open_blobs

KEY = "3f/3f5a2c00001.png"


@pytest.fixture(params=["folder", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where blobs may rest: the test runs with both."""
    if request.param == "folder":
        return str(tmp_path / "images")
    s3: S3Server = request.getfixturevalue("s3")
    return s3.url(s3.make_bucket())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_round_trip_and_ranges(root: str) -> None:
    async def scenario() -> None:
        blobs = Blobs(root)
        await blobs.put(KEY, b"0123456789")
        assert await blobs.get(KEY) == b"0123456789"
        assert await blobs.get(KEY, range=(0, 10)) == b"0123456789"
        assert await blobs.get(KEY, range=(2, 5)) == b"234"
        assert await blobs.get(KEY, range=(8, 50)) == b"89"
        assert await blobs.get(KEY, range=(4, 4)) == b""
        assert await blobs.size(KEY) == 10

    asyncio.run(scenario())


def test_a_blob_is_never_overwritten(root: str) -> None:
    async def scenario() -> None:
        blobs = Blobs(root)
        await blobs.put(KEY, b"first")
        with pytest.raises(BlobExists):
            await blobs.put(KEY, b"second")
        assert await blobs.get(KEY) == b"first"

    asyncio.run(scenario())


def test_of_many_writers_of_one_key_one_wins(root: str) -> None:
    async def scenario() -> None:
        blobs = Blobs(root)
        data = [bytes([i]) * 100_000 for i in range(16)]
        ends = await asyncio.gather(*(blobs.put(KEY, d) for d in data), return_exceptions=True)
        assert sum(end is None for end in ends) == 1
        assert sum(isinstance(end, BlobExists) for end in ends) == 15
        assert await blobs.get(KEY) == data[ends.index(None)]

    asyncio.run(scenario())


def test_missing_and_deleted(root: str) -> None:
    async def scenario() -> None:
        blobs = Blobs(root)
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


def test_lists_and_folders(root: str) -> None:
    async def scenario() -> None:
        blobs = Blobs(root)
        assert await blobs.folders() == []
        assert await blobs.list("20261121") == []
        await blobs.check()
        keys = [f"20261121/{task}/{index}-{index}.png" for task in "ab" for index in range(3)]
        for key in [*keys, "20261122/a/0-0.webp"]:
            await blobs.put(key, b"x")
        assert await blobs.folders() == ["20261121", "20261122"]
        assert await blobs.list("20261121") == keys
        assert await blobs.list("20261121/b") == keys[3:]
        assert await blobs.list("2026112") == []

    asyncio.run(scenario())


def test_a_probe_says_whether_it_works(root: str) -> None:
    async def scenario() -> None:
        blobs = Blobs(root)
        assert await blobs.answers(10)
        assert await blobs.sweep_parts(0) == 0
        await blobs._run(lambda: obstore.put(blobs._store, "probe/left.png", b"x"))
        assert await blobs.folders() == []
        assert await blobs.sweep_parts(time.time() + 60) == 1
        assert await blobs.sweep_parts(time.time() + 60) == 0

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://example.com/images", "a folder or behind s3://"),
        ("s3://", "cannot be a bucket's name"),
        ("s3://Bucket", "cannot be a bucket's name"),
        ("s3://bucket?endpoint=ftp://a", "endpoint must be"),
        ("s3://bucket?endpoint=http://key:secret@a", "endpoint must be"),
        ("s3://bucket?bucket=b", "not 'bucket'"),
        ("s3://key:secret@bucket", "holds more than"),
        ("s3://bucket:80", "holds more than"),
        ("s3://bucket?endpoint", "no URL"),
    ],
)
def test_another_kind_of_store_is_refused(url: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        Blobs(url)
    assert str(caught.value).startswith("blob_url: ")
    assert "secret" not in str(caught.value)


def test_a_bucket_that_is_missing_or_closed_is_found_out(s3: S3Server) -> None:
    async def refused(url: str) -> str:
        with pytest.raises(ValueError) as caught:
            async with open_blobs(url):
                pass
        assert "secret" not in str(caught.value)
        return str(caught.value)

    missing = asyncio.run(refused(s3.url("nowhere")))
    assert missing == "blob_url: s3://nowhere/some/where: there is no such bucket"
    url = s3.url(s3.make_bucket())
    with s3.checking_credentials():
        assert "access is denied: do AWS_ACCESS_KEY_ID" in asyncio.run(refused(url))
        assert not asyncio.run(Blobs(url).answers(10))
    assert asyncio.run(Blobs(url).answers(10))


def test_a_bucket_that_vanishes_makes_no_image_gone(s3: S3Server) -> None:
    """A wrong bucket answers 404 as a lost image does: nobody must take one for the other."""

    async def scenario() -> None:
        blobs = Blobs(s3.url("vanished"))
        for deed in (blobs.put(KEY, b"x"), blobs.get(KEY), blobs.list("3f"), blobs.folders()):
            with pytest.raises(Unavailable):
                await deed
        assert not await blobs.answers(10)

    asyncio.run(scenario())


def test_what_fails_in_passing_is_tried_again(s3: S3Server) -> None:
    async def scenario() -> None:
        with failing_front(s3.endpoint) as (endpoint, front):
            blobs = Blobs(s3.url(s3.make_bucket(), endpoint))
            front.failures = 2
            await blobs.put(KEY, b"x" * 1000)
            front.failures = 1
            assert await blobs.get(KEY) == b"x" * 1000
            assert front.failed == 3
            front.failures = 1000
            with pytest.raises(Unavailable):
                await blobs.get(KEY)
            assert front.failed == 3 + 1 + S3_RETRIES

    asyncio.run(scenario())


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
        [sys.executable, "-c", FULL_DISK, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=240,
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


class Disk:
    """What is asked of the operating system, in order, by names within a folder."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, str]] = []

        def told(path: str | Path) -> str:
            return re.sub(r"#[0-9]+$", "#N", str(Path(path).relative_to(root)))

        fsync, link = os.fsync, os.link

        def seen_fsync(handle: int) -> None:
            self.calls.append(("fsync", told(os.readlink(f"/proc/self/fd/{handle}"))))
            fsync(handle)

        def seen_link(part: Path, path: Path) -> None:
            assert part.read_bytes()  # written through, not in a buffer of ours
            self.calls.append(("link", told(path)))
            link(part, path)

        monkeypatch.setattr(os, "fsync", seen_fsync)
        monkeypatch.setattr(os, "link", seen_link)


def test_a_blob_is_on_the_disk_before_it_has_its_name_and_its_name_before_put_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(tmp_path, monkeypatch)
    key = "20261126/task/0-3f5a2c00001.png"

    async def scenario() -> None:
        blobs = Blobs(tmp_path / "images")
        assert disk.calls == [("fsync", ".")]
        disk.calls.clear()
        await blobs.put(key, b"x" * 100_000)
        assert disk.calls == [
            ("fsync", f"images/{key}#N"),
            ("link", f"images/{key}"),
            ("fsync", "images/20261126/task"),
            ("fsync", "images/20261126"),
            ("fsync", "images"),
        ]
        disk.calls.clear()
        await Blobs(tmp_path / "images", fsync=False).put(key.replace("0-", "1-"), b"x")
        assert [what for what, _ in disk.calls] == ["link"]

    asyncio.run(scenario())


def test_a_folder_that_is_deleted_meanwhile_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever deletes a task's last blob deletes its folder; one that takes the whole store away does not get it back."""
    write, folder, lost = durable._write, tmp_path / "images", [1]

    def late(part: Path, data: bytes, sync: bool) -> None:
        if lost:
            lost.pop()
            shutil.rmtree(folder / "3f")
        write(part, data, sync)

    monkeypatch.setattr(durable, "_write", late)

    async def scenario() -> None:
        blobs = Blobs(folder)
        await blobs.put(KEY, b"x")
        assert await blobs.get(KEY) == b"x"
        shutil.rmtree(folder)
        with pytest.raises(Unavailable):
            await blobs.put(KEY, b"x")
        assert not folder.exists()

    asyncio.run(scenario())
