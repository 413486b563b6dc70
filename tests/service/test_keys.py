"""The key file: private, whole, shared by many, and what is derived of it for good."""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import stat
import threading
from pathlib import Path

import pytest

from danqing import app
from danqing.service.keys import KeyFile, KeyFileError
from danqing.settings import load


def test_the_key_file_is_private(tmp_path: Path) -> None:
    path = tmp_path / "new" / "keys.json"
    previous = os.umask(0)
    try:
        KeyFile.load_or_create(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        KeyFile(path).rotate()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        os.umask(previous)
    assert list(path.parent.iterdir()) == [path]
    for mode in (0o640, 0o604, 0o620):
        path.chmod(mode)
        with pytest.raises(KeyFileError, match="chmod 600"):
            KeyFile.load_or_create(path)


@pytest.mark.parametrize(
    "content",
    ["", "{}", "[]", '{"current": 1, "keys": {}}', '{"current": 2, "keys": {"1": "00"}}',
     '{"current": 1, "keys": {"1": "00ff"}}', '{"current": 1, "keys": {"1": "secret-text"}}'],
)  # fmt: skip
def test_a_damaged_key_file_is_refused_and_kept(tmp_path: Path, content: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(KeyFileError, match="damaged") as caught:
        KeyFile.load_or_create(path)
    assert "secret-text" not in str(caught.value)
    assert path.read_text() == content


def test_many_make_and_rotate_one_key_file(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    start = threading.Barrier(8)
    made: list[bytes] = []

    def work() -> None:
        start.wait()
        made.append(KeyFile.load_or_create(path).derive("x"))
        KeyFile(path).rotate()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 8
    assert len(set(made)) == 1
    content = json.loads(path.read_text())
    assert content["current"] == 9
    assert sorted(map(int, content["keys"])) == list(range(1, 10))


def test_what_is_derived_outlives_every_key(tmp_path: Path) -> None:
    """Also in a file of version 0.1.0, which derived from its oldest key."""
    path = tmp_path / "keys.json"
    keys = KeyFile.load_or_create(path)
    derived = keys.derive("links")
    content = json.loads(path.read_text())
    assert content["root"] not in content["keys"].values()
    for _ in range(3):
        keys.rotate(revoke_version=min(map(int, json.loads(path.read_text())["keys"])))
    assert KeyFile.load_or_create(path).derive("links") == derived

    oldest = "11" * 32
    path.write_text(json.dumps({"current": 2, "keys": {"2": "22" * 32, "1": oldest}}))
    was = hmac.digest(bytes.fromhex(oldest), b"danqing links", "sha256")
    assert KeyFile(path).derive("links") == was
    opened = KeyFile.load_or_create(path)
    assert opened.derive("links") == was
    assert json.loads(path.read_text())["root"] == oldest
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    opened.rotate(revoke_version=1)
    assert oldest not in json.loads(path.read_text())["keys"].values()
    for keys in (opened, KeyFile.load_or_create(path)):
        assert keys.derive("links") == was


def test_an_old_file_that_is_rotated_before_it_has_a_root(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.touch(0o600)
    path.write_text(json.dumps({"current": 1, "keys": {"1": "11" * 32}}))
    keys = KeyFile(path)
    derived = keys.derive("links")
    keys.rotate(revoke_version=1)
    assert KeyFile.load_or_create(path).derive("links") == derived


def test_another_key_file_is_refused(tmp_path: Path, database_url: str) -> None:
    """A gateway that came up without the shared file must not make one of its own."""

    async def open_with(keys_file: Path) -> None:
        configured = load(data_dir=tmp_path, database_url=database_url, keys_file=keys_file)
        async with app.open_books(configured):
            pass

    asyncio.run(open_with(tmp_path / "one.json"))
    asyncio.run(open_with(tmp_path / "one.json"))
    with pytest.raises((KeyFileError, FileNotFoundError), match=r"put (it|that one) back"):
        asyncio.run(open_with(tmp_path / "two.json"))
    assert not (tmp_path / "two.json").exists()
