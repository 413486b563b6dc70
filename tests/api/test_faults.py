"""What a server needs is gone: the database, the disk. Clients get 503 with Retry-After, nothing is drawn, nothing is lost."""

from __future__ import annotations

import ctypes
import os
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.api.test_idempotency import ROUTES
from tests.conftest import LiveServer, start_server, stop_server
from tests.postgres import PostgresServer

BODY = {"prompt": "a cat", "size": "256x256"}
PATH = "/v1/images/generations"


def until_well(server: LiveServer, seconds: float = 60) -> httpx2.Response:
    """The first answer that is an image."""
    give_up_s = time.monotonic() + seconds
    while True:
        answer = server.client.post(PATH, json=BODY)
        if answer.status_code == 200:
            return answer
        assert answer.status_code == 503, answer.text
        assert time.monotonic() < give_up_s
        time.sleep(0.2)


def is_unavailable(answer: httpx2.Response) -> bool:
    """In each API's words: 503, but the draw API answers 200 to everything."""
    assert answer.headers["retry-after"] == "5"
    body = answer.json()
    assert "error" in body or body["code"] == "ModelUnavailable"  # DashScope's stands at the top
    return answer.status_code == 503


def test_postgresql_gone_and_back(null_server, postgres: PostgresServer, postgres_url: str) -> None:
    server = null_server(DANQING_DATABASE_URL=postgres_url)
    assert until_well(server).headers["x-danqing-charged"] == "5000"
    steps = server.metric("danqing_engine_steps_total")
    postgres.kill()
    for name, (path, body) in ROUTES.items():
        answer = server.client.post(path, json=body)
        assert is_unavailable(answer) == (name != "draw"), answer.text
    assert server.metric("danqing_engine_steps_total") == steps
    assert server.client.get("/healthz").status_code == 200
    assert server.client.get("/readyz").json() == {
        "ready": False,
        "engine": True,
        "database": False,
        "images": True,
    }
    postgres.start()
    until_well(server)
    assert server.balance("operator") == 1_000_000 - 10_000


@pytest.mark.slow
def test_sqlite_locked_by_another_process(null_server) -> None:
    server = null_server()
    until_well(server)
    other = sqlite3.connect(server.data_dir / "danqing.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    assert is_unavailable(server.client.post(PATH, json=BODY))
    other.execute("ROLLBACK")
    other.close()
    until_well(server)
    assert server.balance("operator") == 1_000_000 - 10_000


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", folder], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("this user may not mount a small file system")
    yield folder
    ctypes.CDLL(None, use_errno=True).umount2(os.fsencode(folder), 2)  # MNT_DETACH


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)


def test_a_full_disk(small_disk: Path) -> None:
    server = start_server(small_disk / "data", module="tests.null_server", DANQING_TASK_LEASE_S="1")
    try:
        before = until_well(server).json()["data"][0]["url"]
        filler = small_disk / "filler"
        with pytest.raises(OSError, match="No space"):
            fill(filler)
        answers = [server.client.post(PATH, json=BODY) for _ in range(5)]
        assert {answer.status_code for answer in answers} == {503}
        assert all(is_unavailable(answer) for answer in answers)
        assert httpx2.get(before).status_code == 200
        assert not server.client.get("/readyz").json()["images"]
        filler.unlink()
        after = until_well(server).json()["data"][0]["url"]
        assert httpx2.get(after).status_code == 200
        give_up_s = time.monotonic() + 60
        while server.books(lambda books: books.ledger.open_holds()).count:
            assert time.monotonic() < give_up_s
            time.sleep(0.3)
        # Of the five, those whose image and charge fitted after all would be rows; none is half.
        charged = 1_000_000 - server.balance("operator")
        posted = server.books(posted_images)
        assert charged == 5_000 * posted >= 10_000
    finally:
        stop_server(server)


async def posted_images(books) -> int:
    return await books.db.read(
        lambda conn: conn.exec_driver_sql("SELECT COUNT(*) FROM images").scalar_one()
    )
