"""An account's stored images: listed, deleted, their links revoked; by their holder and by operators, over HTTP and the CLI."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx2
import pytest

from tests.conftest import LiveServer

PATH = "/v1/images/generations"
FILES = "/v1/images/files"


@pytest.fixture
def client(live: LiveServer, request: pytest.FixtureRequest) -> Iterator[httpx2.Client]:
    """A new account's client."""
    token = live.account(f"holder-{request.node.name[:50]}", 100_000)
    with httpx2.Client(base_url=live.url, headers={"authorization": f"Bearer {token}"}) as client:
        yield client


def drawn(client: httpx2.Client, n: int = 1) -> list[str]:
    """Links to new images."""
    answer = client.post(PATH, json={"prompt": "a cat", "size": "256x256", "n": n})
    assert answer.status_code == 200, answer.text
    return [image["url"] for image in answer.json()["data"]]


def id_of(url: str) -> str:
    return url.split("/files/")[1].split(".")[0]


def test_a_list_of_ones_own_images_newest_first(live: LiveServer, client: httpx2.Client) -> None:
    assert client.get(FILES).json()["data"] == []
    links = [*drawn(client, 2), *drawn(client)]
    page = client.get(FILES, params={"limit": 2}).json()
    assert page["has_more"]
    rest = client.get(FILES, params={"limit": 2, "after": page["last_id"]}).json()
    assert not rest["has_more"]
    listed = page["data"] + rest["data"]
    assert [one["id"] for one in listed] == [id_of(links[2]), id_of(links[1]), id_of(links[0])]
    for one in listed:
        assert (one["object"], one["size"], one["format"]) == ("image.file", "256x256", "png")
        assert one["expires"] - one["created"] == 30 * 86_400
        assert httpx2.get(one["url"]).status_code == 200
        assert httpx2.get(one["thumbnail_url"]).headers["content-type"] == "image/webp"
        assert client.get(f"{FILES}/{one['id']}").json()["id"] == one["id"]
        assert live.client.get(f"{FILES}/{one['id']}").status_code == 404  # another account's
    assert client.get(FILES, params={"after": "nonsense"}).json()["error"]["param"] == "after"
    task = client.get(f"/v1/images/tasks/{listed[0]['task_id']}").json()
    assert httpx2.get(task["data"][0]["thumbnail_url"]).status_code == 200


def test_deleting_an_image(live: LiveServer, client: httpx2.Client) -> None:
    kept, gone = drawn(client, 2)
    assert httpx2.get(f"{gone}&w=256").status_code == 200
    path = f"{FILES}/{id_of(gone)}"
    assert live.client.delete(path).status_code == 404
    assert client.delete(path).status_code == 204
    for url in (gone, f"{gone}&w=256"):
        assert (httpx2.get(url).status_code, httpx2.head(url).status_code) == (404, 404)
    assert [path for path in live.data_dir.rglob("*") if id_of(gone) in path.name] == []
    assert client.delete(path).status_code == 404
    assert client.get(path).json()["error"]["code"] == "not_found"
    assert [one["id"] for one in client.get(FILES).json()["data"]] == [id_of(kept)]
    assert httpx2.get(kept).status_code == 200
    for odd in ("..%2f..%2fkeys.json", "0" * 5000, "%00", "%0a", "*"):
        assert client.delete(f"{FILES}/{odd}").status_code in (400, 404, 405)


def test_revoked_links_are_dead_and_fresh_ones_good(client: httpx2.Client) -> None:
    first, other = drawn(client, 2)
    known = {"if-none-match": httpx2.get(first).headers["etag"]}
    answer = client.post(f"{FILES}/{id_of(first)}/revoke").json()
    for url in (first, f"{first}&w=256"):
        refused = httpx2.get(url, headers=known)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "link_revoked")
    assert httpx2.get(answer["url"]).status_code == 200
    assert httpx2.get(other).status_code == 200
    again = client.post(f"{FILES}/{id_of(first)}/revoke").json()
    assert httpx2.get(answer["url"]).status_code == 403
    assert httpx2.get(again["url"]).status_code == 200
    assert httpx2.get(again["url"].replace("x-signature=2.", "x-signature=")).status_code == 403


def test_operators_revoke_and_delete_anybodys(live: LiveServer, client: httpx2.Client) -> None:
    links = drawn(client, 2)
    image_id = id_of(links[0])
    assert client.get(f"/admin/v1/images/{image_id}").status_code == 403
    shown = live.client.get(f"/admin/v1/images/{image_id}").json()
    account_id = shown["account_id"]
    fresh = live.client.post(f"/admin/v1/images/{image_id}/revoke").json()["url"]
    assert (httpx2.get(links[0]).status_code, httpx2.get(fresh).status_code) == (403, 200)
    answer = live.client.post(f"/admin/v1/accounts/{account_id}/revoke-links").json()
    assert answer == {"object": "account", "id": account_id, "images": 2}
    assert [httpx2.get(url).status_code for url in (fresh, links[1])] == [403, 403]
    assert live.client.delete(f"/admin/v1/images/{image_id}").status_code == 204
    assert live.client.delete(f"/admin/v1/images/{image_id}").status_code == 404
    trail = live.client.get("/admin/v1/audit", params={"account": account_id}).json()["data"]
    assert [one["deed"] for one in trail][-3:] == [
        "image.revoke_links",
        "account.revoke_links",
        "image.delete",
    ]
    assert live.client.get("/admin/v1/ledger/check").json()["ok"]


def test_how_long_an_accounts_images_are_kept(live: LiveServer, client: httpx2.Client) -> None:
    account_id = client.get(f"{FILES}/{id_of(drawn(client)[0])}").json()["account_id"]
    patch = f"/admin/v1/accounts/{account_id}"
    assert live.client.patch(patch, json={"image_days": 0}).json()["error"]["param"] == "image_days"
    assert live.client.patch(patch, json={"image_days": 2}).json()["image_days"] == 2
    other = live.account(f"kept-{account_id[:13]}", 100_000)  # facts of a token are known for 5 s
    assert live.client.patch(patch, json={"image_days": None}).json()["image_days"] is None
    name = f"kept-{account_id[:13]}"
    assert live.cli("account", "keep", name, "2").stdout.strip().endswith("kept for 2 days")
    headers = {"authorization": f"Bearer {other}"}
    url = live.client.post(PATH, json={"prompt": "x", "size": "256x256"}, headers=headers)
    link = url.json()["data"][0]["url"]
    shown = live.client.get(f"{FILES}/{id_of(link)}", headers=headers).json()
    assert shown["expires"] - shown["created"] == 2 * 86_400
    assert int(link.split("x-expires=")[1].split("&")[0]) <= shown["expires"]
    assert live.cli("account", "keep", name).stdout.strip().endswith("as their models say")


def test_the_command_line(live: LiveServer, client: httpx2.Client) -> None:
    links = drawn(client, 3)
    ids = [id_of(url) for url in links]
    account_id = client.get(f"{FILES}/{ids[0]}").json()["account_id"]
    rows = live.cli("images", "list", "--account", account_id).stdout.splitlines()
    assert [row.split("\t")[0] for row in rows] == ids[::-1]
    assert live.cli("images", "revoke", ids[0]).stdout == "links revoked: 1 images\n"
    assert [httpx2.get(url).status_code for url in links] == [403, 200, 200]
    revoked = live.cli("images", "revoke", "--account", account_id)
    assert revoked.stdout == "links revoked: 3 images\n"
    assert [httpx2.get(url).status_code for url in links] == [403, 403, 403]
    assert live.cli("images", "delete", ids[0]).returncode == 0
    failed = live.cli("images", "delete", ids[0], check=False)
    assert (failed.returncode, failed.stderr) == (
        1,
        "danqing: No such image, or it is kept no longer.\n",
    )
    assert live.cli("images", "revoke", check=False).returncode == 2
    assert live.cli("sweep", "--dry-run").stdout.splitlines() == [
        "expired images\t0\t0 bytes",
        "orphaned blobs\t0",
        "prompts\t0",
        "half-written files\t0",
        "blobs of unknown tasks, kept\t0",
        "images without a blob\t0",
    ]
    # A blob that is gone is said: here nobody has been told of it before.
    (path,) = [path for path in live.data_dir.rglob("*") if ids[1] in path.name]
    path.rename(path.with_suffix(".txt"))
    try:

        async def back_date(books) -> None:
            import sqlalchemy as sa

            await books.db.write(
                lambda conn: conn.execute(
                    sa.text("UPDATE images SET created_ms = created_ms - 7200000 WHERE id = :id"),
                    {"id": ids[1]},
                )
            )

        live.books(back_date)
        ended = live.cli("sweep", "--json", check=False)
        assert ended.returncode == 1
        assert json.loads(ended.stdout)["missing"] == [ids[1]]
    finally:
        path.with_suffix(".txt").rename(path)
    assert live.cli("sweep", "--json").returncode == 0
