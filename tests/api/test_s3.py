"""A server that keeps its images in S3: the same through the HTTP API, and honest when S3 is wrong or away."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable

import httpx2
import pytest
from PIL import Image

from danqing.storage.blobs import OWNER_KEY
from tests.api.test_idempotency import ROUTES
from tests.conftest import LiveServer, clean_environment, cli
from tests.s3 import S3Server, failing_front

BODY = {"prompt": "a cat", "size": "256x256"}
PATH = "/v1/images/generations"

Make = Callable[..., LiveServer]


def keys_in(s3: S3Server, bucket: str) -> list[str]:
    """What lies in a bucket, by S3's own API."""
    text = httpx2.get(f"{s3.endpoint}/{bucket}?list-type=2").text
    keys = [part.partition("</Key>")[0] for part in text.split("<Key>")[1:]]
    return [key for key in keys if key != f"some/where/{OWNER_KEY}"]


def test_images_are_drawn_kept_served_and_deleted(null_server: Make, s3: S3Server) -> None:
    bucket = s3.make_bucket()
    server = null_server(DANQING_BLOB_URL=s3.url(bucket))
    assert server.client.get("/readyz").json()["images"]
    token = server.account("someone", 100_000)
    headers = {"authorization": f"Bearer {token}"}
    answer = server.client.post(PATH, json=BODY | {"n": 2}, headers=headers).json()
    links = [image["url"] for image in answer["data"]]
    whole = httpx2.get(links[0])
    assert whole.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(whole.content)).size == (256, 256)
    part = httpx2.get(links[0], headers={"range": "bytes=5-9"})
    assert (part.status_code, part.content) == (206, whole.content[5:10])
    kept = keys_in(s3, bucket)
    assert len(kept) == 2
    assert all(key.startswith("some/where/2") and key.endswith(".png") for key in kept)
    assert not (server.data_dir / "images").exists()
    # An edit's pictures lie there while it is drawn, and no longer.
    image = "data:image/png;base64," + base64.b64encode(whole.content).decode()
    edit = {"prompt": "a dog", "images": [{"image_url": image}], "model": "pocket"}
    edited = server.client.post("/v1/images/edits", json=edit, headers=headers)
    assert edited.status_code == 200, edited.text
    assert len(keys_in(s3, bucket)) == 3
    cli_environment = clean_environment(DANQING_BLOB_URL=s3.url(bucket))
    data_dir = str(server.data_dir)
    cli("account", "delete", "someone", "--yes", "--data-dir", data_dir, env=cli_environment)
    assert keys_in(s3, bucket) == []
    assert httpx2.get(links[0]).status_code in (403, 404)


def test_s3_gone_and_back(null_server: Make, s3: S3Server) -> None:
    """No image can be kept: each API says so in its own words, and nobody pays."""
    with failing_front(s3.endpoint) as (endpoint, front):
        server = null_server(DANQING_BLOB_URL=s3.url(s3.make_bucket(), endpoint))
        before = server.client.post(PATH, json=BODY).json()["data"][0]["url"]
        front.failures = 10**6
        assert server.client.get("/readyz").status_code == 503
        assert httpx2.get(before).status_code == 503
        for name in ("openai", "zhipu", "dashscope"):
            path, body = ROUTES[name]
            answer = server.client.post(path, json=body)
            assert answer.status_code == 503, answer.text
            assert answer.headers["retry-after"] == "5"
        front.failures = 0
        assert httpx2.get(before).status_code == 200
        assert server.client.post(PATH, json=BODY).status_code == 200
        assert server.client.get("/readyz").status_code == 200
        assert server.balance("operator") == 1_000_000 - 10_000


@pytest.mark.parametrize("fault", ["no bucket", "no access", "another's"])
def test_a_store_that_cannot_be_used_refuses_to_start(tmp_path, s3: S3Server, fault: str) -> None:
    def start(bucket: str) -> str:
        environment = clean_environment(DANQING_BLOB_URL=s3.url(bucket))
        arguments = ("serve", "--port", "0", "--data-dir", str(tmp_path))
        ended = cli(*arguments, check=False, env=environment)
        assert ended.returncode == 1
        return ended.stderr.splitlines()[-1]

    if fault == "no bucket":
        assert start("nowhere").endswith("there is no such bucket")
        return
    bucket = s3.make_bucket()
    if fault == "another's":
        httpx2.put(f"{s3.endpoint}/{bucket}/some/where/{OWNER_KEY}", content=b"0193-theirs\n")
        line = start(bucket)
        assert line.startswith(f"danqing: blob_url: s3://{bucket}/some/where is the image store of")
        assert "'0193-theirs'" in line
        return
    with s3.checking_credentials():
        line = start(bucket)
        assert line.startswith(f"danqing: blob_url: s3://{bucket}/some/where: access is denied")
        assert "secret" not in line
