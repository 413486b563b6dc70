"""A token that is still known for a moment: it does nothing to the next account of the name, or after a suspension."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.api.conftest import BOTH, serve
from tests.api.desk import made, refused, token_of
from tests.conftest import LiveServer

WAIVER = {"version": "1", "signer": "somebody"}
BLOCK = {"end_user": "u", "reason": "r"}


@pytest.fixture(scope="module", params=BOTH)
def live(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    """One that keeps in mind what it knows of a token for as long as all this takes."""
    yield from serve(request, tmp_path_factory, NULL_FACTS_S="600")


def holder(live: LiveServer, name: str) -> httpx2.Client:
    """A client of the account's whose token the server has just looked up."""
    token = token_of(live, name, scopes=["draw", "account"])["token"]
    headers = {"authorization": f"Bearer {token}"}
    client = httpx2.Client(base_url=f"{live.url}/account/v1", headers=headers, timeout=60)
    assert client.get("/me").status_code == 200
    return client


def attempts(live: LiveServer) -> list[tuple[str, str, dict[str, Any] | None]]:
    codes = live.client.post("/admin/v1/codes", json={"characters": 5}).json()["data"]
    return [
        ("POST", "/tokens", {"scopes": ["draw"]}),
        ("POST", "/redeem", {"code": codes[0]}),
        ("POST", "/waiver", WAIVER),
        ("DELETE", "/waiver", None),
        ("PATCH", "/webhook", {"low_balance": 5, "webhook_url": "https://example.com/"}),
        ("POST", "/blocks", BLOCK),
    ]


def test_the_next_account_of_the_name_is_another_one(live: LiveServer) -> None:
    old = made(live, "bob")
    client = holder(live, "bob")
    tries = attempts(live)
    assert live.client.delete("/admin/v1/accounts/bob").status_code == 204
    new = made(live, "bob")
    assert live.client.post("/admin/v1/accounts/bob/waivers", json=WAIVER).status_code == 201
    for method, path, body in tries:
        refused(client.request(method, path, json=body), 404)
    # What is only shown is of the account that was.
    assert client.get("/me").json()["id"] == old["id"]
    assert client.get("/waiver").json()["signed"] == []
    assert [row["account_id"] for row in client.get("/tokens").json()["data"]] == [old["id"]]

    now = live.client.get("/admin/v1/accounts/bob").json()
    assert now == new | {"held": 0, "waiver": now["waiver"]}
    assert now["waiver"]["signer"] == "somebody"
    assert live.client.get("/admin/v1/tokens", params={"account": "bob"}).json()["data"] == []
    rows = live.client.get("/admin/v1/audit", params={"account": new["id"]}).json()["data"]
    assert [row["deed"] for row in rows] == ["account.create", "waiver.sign"]


def test_who_was_suspended_meanwhile_changes_nothing(live: LiveServer) -> None:
    account = made(live, "carl")
    client = holder(live, "carl")
    tries = attempts(live)
    body = {"suspended": True, "reason": "spam"}
    assert live.client.patch("/admin/v1/accounts/carl", json=body).status_code == 200
    before = live.client.get("/admin/v1/accounts/carl").json()
    for method, path, content in tries:
        if method != "DELETE":  # there is no waiver to revoke
            assert (
                "suspended" in refused(client.request(method, path, json=content), 403)["message"]
            )
    assert live.client.get("/admin/v1/accounts/carl").json() == before
    rows = live.client.get("/admin/v1/audit", params={"account": account["id"]}).json()["data"]
    assert rows[-1]["deed"] == "account.suspend"


@pytest.mark.parametrize("name", ["id", "name"])
def test_the_trail_names_who_acted_by_id_and_name(live: LiveServer, name: str) -> None:
    account = made(live, f"dora-{name}")
    client = holder(live, account[name])
    assert client.post("/waiver", json=WAIVER).status_code == 201
    rows = live.client.get("/admin/v1/audit", params={"account": account[name]}).json()["data"]
    assert rows[-1]["actor"] == f"account:{account['id']} dora-{name}"
