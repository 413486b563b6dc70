"""/admin/v1 over HTTP but for accounts: pages, statements, tokens, codes, waivers, end users, the trail."""

from __future__ import annotations

import csv
import io
import json
import time
from types import SimpleNamespace
from typing import cast

import httpx2
import pytest
from starlette.testclient import TestClient

from danqing.api import mounts
from danqing.api.context import Context
from danqing.api.middleware import RequestLog
from danqing.dialects.registry import DIALECTS
from danqing.service.keys import KeyFileError
from tests.api.desk import made, refused, token_of
from tests.conftest import LiveServer

# Pages


def test_pages_hold_every_account_once(live: LiveServer) -> None:
    for number in range(7):
        made(live, f"page-{number}", characters=1)
    names, after = [], ""
    while True:
        answer = live.client.get("/admin/v1/accounts", params={"after": after, "limit": 3}).json()
        assert answer["object"] == "list"
        assert len(answer["data"]) <= 3
        names += [row["name"] for row in answer["data"]]
        after = answer["last_id"]
        if not answer["has_more"]:
            break
    assert names == sorted(set(names))
    assert {f"page-{number}" for number in range(7)} <= set(names)


def test_statement_pages_and_csv(live: LiveServer) -> None:
    made(live, "books", characters=10)
    nasty = ['=HYPERLINK("http://x")', "+1", "-1", "@SUM(A1)", "＝1", "a,b\n'c\"", "纯文本"]
    for number, reason in enumerate(nasty):
        live.client.post(
            "/admin/v1/accounts/books/grants",
            json={"characters": number + 1, "reason": reason},
            headers={"idempotency-key": f"books-{number}"},
        )
    path = "/admin/v1/accounts/books/statement"
    rows, after = [], ""
    while True:
        answer = live.client.get(path, params={"after": after, "limit": 3}).json()
        rows += answer["data"]
        if not answer["has_more"]:
            break
        after = answer["last_id"]
    assert [row["characters"] for row in rows] == [10, 1, 2, 3, 4, 5, 6, 7]  # in time's order
    assert len({row["id"] for row in rows}) == 8
    assert [row["reason"] for row in rows[1:]] == nasty
    for asked in (
        live.client.get(path, params={"format": "csv"}),
        live.client.get(path, headers={"accept": "text/csv"}),
    ):
        assert asked.headers["content-type"] == "text/csv; charset=utf-8"
        assert "statement.csv" in asked.headers["content-disposition"]
        head, *lines = list(csv.reader(io.StringIO(asked.text)))
        assert head == ["id", "time", "kind", "characters", "hold", "task", "reason"]
        assert [line[0] for line in lines] == [row["id"] for row in rows]
        reasons = [line[6] for line in lines[1:]]
        assert reasons == ["'" + text for text in nasty[:5]] + nasty[5:]
    last = rows[-1]["id"]
    assert live.client.get(path, params={"after": last}).json()["data"] == []
    live.client.post("/admin/v1/accounts/books/grants", json={"characters": 9, "reason": "later"})
    (later,) = live.client.get(path, params={"after": last}).json()["data"]
    assert later["reason"] == "later"  # a reader who comes back misses nothing


def test_a_long_statement_comes_whole(live: LiveServer) -> None:
    made(live, "long", characters=1)

    async def fill(books) -> None:
        account = await books.accounts.get("long")
        for number in range(2100):
            await books.ledger.grant(account.id, 1, f"n{number}")

    live.books(fill)
    text = live.client.get("/admin/v1/accounts/long/statement?format=csv").text
    rows = list(csv.reader(io.StringIO(text)))
    assert [row[6] for row in rows[2:]] == [f"n{number}" for number in range(2100)]


# Tokens, codes, waivers, end users


@pytest.mark.parametrize("limits", [{"expires": 4_000_000_000}, {"networks": ["127.0.0.1"]}])
def test_a_token_with_limits_makes_none_without(
    live: LiveServer, limits: dict[str, object]
) -> None:
    name = f"boxed-{next(iter(limits))}"
    made(live, name, is_admin=True)
    plain = token_of(live, name)
    boxed = token_of(live, name, scopes=["admin"], **limits)["token"]
    headers = {"authorization": f"Bearer {boxed}"}
    for method, path, body in (
        ("POST", "tokens", {"account": name}),
        ("PATCH", f"tokens/{plain['id']}", {"scopes": ["admin"]}),
        ("PUT", f"accounts/{name}/password", {"password": "a long password indeed"}),
    ):
        answer = live.client.request(method, f"/admin/v1/{path}", json=body, headers=headers)
        assert "limits" in refused(answer, 403)["message"]
    again = live.client.get(f"/admin/v1/tokens/{plain['id']}", headers=headers)
    assert again.json()["scopes"] == ["draw"]


def test_an_admin_may_end_its_own_rights(live: LiveServer) -> None:
    for kind, method, body, status in (
        ("quits", "PATCH", {"suspended": True, "reason": "done", "is_admin": False}, 200),
        ("leaves", "DELETE", None, 204),
    ):
        for turn in range(20):
            name = f"{kind}-{turn}"
            made(live, name, is_admin=True)
            token = token_of(live, name, scopes=["admin"])["token"]
            headers = {"authorization": f"Bearer {token}"}
            path = f"/admin/v1/accounts/{name}"
            ended = live.client.request(method, path, json=body, headers=headers)
            assert ended.status_code == status
            # The server has the token in mind still, unless we were slow.
            empty = live.client.post(f"{path}/grants", json={}, headers=headers)
            grant = {"characters": 5, "reason": "one more"}
            operator = "/admin/v1/accounts/operator/grants"
            answer = live.client.post(operator, json=grant, headers=headers)
            if empty.status_code == 400 and answer.status_code != 401:
                break
        refused(empty, 400)
        refused(answer, 403 if kind == "quits" else 404)


def test_tokens(live: LiveServer) -> None:
    made(live, "tokens")
    expires = int(time.time()) + 3600
    token = token_of(
        live,
        "tokens",
        name="ci",
        expires=expires,
        models=["cogview-4"],
        networks=["10.0.0.0/8"],
        budget_day=100,
        concurrency_max=2,
        rate_per_minute=30,
    )
    assert token["token"].startswith(token["id"] + ".")
    assert token["expires"] == expires
    assert (token["status"], token["key_version"]) == ("active", 1)
    path = f"/admin/v1/tokens/{token['id']}"
    shown = live.client.get(path).json()
    assert "token" not in shown
    assert shown == {key: value for key, value in token.items() if key != "token"}
    assert shown["models"] == ["cogview-4"]
    assert shown["scopes"] == ["draw"]
    changed = live.client.patch(path, json={"budget_day": None, "budget_total": 7}).json()
    assert (changed["budget_day"], changed["budget_total"]) == (None, 7)
    assert changed["models"] == ["cogview-4"]  # what is not named stays
    refused(live.client.patch(path, json={"scopes": None}), 400, "scopes")
    refused(live.client.patch(path, json={"name": "x"}), 400, "name")
    refused(live.client.patch(path, json={"models": ["nope"]}), 400, "models")
    unknown = {"account": "tokens", "models": ["dall-e-3", "cogviw-4"]}
    fault = refused(live.client.post("/admin/v1/tokens", json=unknown), 400, "models")
    assert "'cogview-4'" in fault["message"]
    listed = live.client.get("/admin/v1/tokens", params={"account": "tokens"}).json()["data"]
    assert [row["id"] for row in listed] == [token["id"]]
    secret = token["token"].split(".")[1]
    assert secret not in json.dumps(listed)
    assert live.client.delete(path).status_code == 204
    gone = live.client.get(path).json()
    assert gone["revoked"] is not None
    assert gone["status"] == "revoked"
    assert not [line for line in live.lines if secret in str(line)]


def test_codes_and_invites(live: LiveServer) -> None:
    made(live, "codes", characters=1)
    answer = live.client.post("/admin/v1/codes", json={"characters": 50, "count": 3}).json()
    assert len(set(answer["data"])) == 3
    invites = live.client.post("/admin/v1/codes", json={"characters": 5, "kind": "invite"}).json()
    listed = live.client.get("/admin/v1/codes?limit=1000").json()["data"]
    assert {row["kind"] for row in listed} == {"credit", "invite"}
    text = json.dumps(listed)
    for code in (*answer["data"], *invites["data"]):
        assert code not in text
        assert code.replace("-", "") not in text
    headers = {"authorization": f"Bearer {token_of(live, 'codes', scopes=['account'])['token']}"}
    used = live.client.post("/account/v1/redeem", json={"code": answer["data"][0]}, headers=headers)
    assert used.json()["balance"] == 51
    for code in (answer["data"][0], invites["data"][0]):  # an invite is not worth money here
        again = live.client.post("/account/v1/redeem", json={"code": code}, headers=headers)
        assert again.status_code in (400, 404)
    assert live.balance("codes") == 51


def test_waivers(live: LiveServer) -> None:
    made(live, "waivers", characters=1)
    path = "/admin/v1/accounts/waivers/waivers"
    signed = live.client.post(path, json={"version": "1", "signer": "Zhang San"})
    assert signed.status_code == 201
    assert signed.json()["signer"] == "Zhang San"
    assert live.client.get("/admin/v1/accounts/waivers").json()["waiver"]["version"] == "1"
    assert live.client.delete(path).status_code == 204
    assert live.client.get("/admin/v1/accounts/waivers").json()["waiver"] is None
    (kept,) = live.client.get(path).json()["data"]
    assert kept["text"]
    assert kept["revoked"] is not None


def test_blocked_end_users(live: LiveServer) -> None:
    made(live, "blocks", characters=100_000)
    headers = {"authorization": f"Bearer {token_of(live, 'blocks')['token']}"}

    def draw(user: str) -> httpx2.Response:
        body = {"prompt": "x", "model": "dall-e-3", "user": user}
        return live.client.post("/v1/images/generations", json=body, headers=headers)

    for user, account in (("mallory/1", "blocks"), ("eve", None)):
        body = {"end_user": user, "reason": "abuse", "account": account}
        assert live.client.post("/admin/v1/blocks", json=body).status_code == 201
        assert draw(user).json()["error"]["code"] == "end_user_blocked"
    listed = live.client.get("/admin/v1/blocks").json()["data"]
    assert {row["end_user"] for row in listed} >= {"mallory/1", "eve"}
    assert live.client.delete("/admin/v1/blocks/mallory%2F1?account=blocks").status_code == 204
    assert live.client.delete("/admin/v1/blocks/eve").status_code == 204
    assert draw("mallory/1").status_code == 200
    assert draw("eve").status_code == 200


def test_images_without_the_label_are_listed_after_their_account_is_gone(live: LiveServer) -> None:
    account_id = made(live, "unlabelled")["id"]
    signed = {"version": "1", "signer": "Ms Li"}
    assert live.client.post("/admin/v1/accounts/unlabelled/waivers", json=signed).status_code == 201
    body = {"model": "cogview-4", "prompt": "a cat", "size": "512x512", "user_id": "reader-7"}
    path = "/paas/v4/images/generations"
    headers = {"authorization": f"Bearer {token_of(live, 'unlabelled')['token']}"}
    for switch in (True, False, False):
        asked = body | {"watermark_enabled": switch}
        assert live.client.post(path, json=asked, headers=headers).status_code == 200

    def page(**query: object) -> dict:
        answer = live.client.get("/admin/v1/unlabelled", params={"account": account_id} | query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    assert live.cli("images", "delete", page()["data"][0]["image_id"]).returncode == 0
    assert [one["deleted"] is None for one in page()["data"]] == [False, True]
    assert live.client.delete("/admin/v1/accounts/unlabelled").status_code == 204
    whole = page()
    assert all(time.time() - one["deleted"] < 600 for one in whole["data"])
    first, second = whole["data"]
    assert not whole["has_more"]
    assert first["object"] == "image.unlabelled"
    assert (first["account_id"], first["account"]) == (account_id, f"deleted-{account_id}")
    assert (first["end_user"], first["signer"], first["model"]) == (
        "reader-7",
        "Ms Li",
        "cogview-4",
    )
    assert (first["size"], first["label_metadata"], len(first["sha256"])) == ("512x512", True, 64)
    assert page(limit=1) == whole | {"data": [first], "last_id": first["id"], "has_more": True}
    assert page(after=first["id"])["data"] == [second]
    bad = live.client.get("/admin/v1/unlabelled", params={"after": "yesterday"})
    refused(bad, 400, "after")
    token = token_of(live, "operator", scopes=["draw"])["token"]
    denied = {"authorization": f"Bearer {token}"}
    assert live.client.get("/admin/v1/unlabelled", headers=denied).status_code == 403

    lines = live.cli("images", "unlabelled", "--account", account_id, "--json").stdout.splitlines()
    assert [json.loads(line) for line in lines] == whole["data"]
    told = live.cli("images", "unlabelled", "--after", first["id"]).stdout.splitlines()
    cells = told[0].split("\t")
    assert (cells[0], cells[5]) == (second["id"], second["image_id"])


# The trail


def test_every_deed_is_on_the_trail(live: LiveServer) -> None:
    start = live.client.get("/admin/v1/audit?limit=1000").json()["last_id"]
    account = made(live, "trailed", characters=3)
    path = "/admin/v1/accounts/trailed"
    live.client.post(f"{path}/grants", json={"characters": 5, "reason": "why not"})
    live.client.post(f"{path}/adjustments", json={"characters": -1, "reason": "oh"})
    live.client.patch(path, json={"price_permille": 900, "suspended": True, "reason": "r"})
    live.client.patch(path, json={"suspended": False, "is_admin": True, "low_balance": 5})
    token = token_of(live, "trailed")
    live.client.patch(f"/admin/v1/tokens/{token['id']}", json={"budget_day": 5})
    live.client.delete(f"/admin/v1/tokens/{token['id']}")
    live.client.post("/admin/v1/codes", json={"characters": 5})
    live.client.post("/admin/v1/blocks", json={"end_user": "t", "reason": "r"})
    live.client.delete("/admin/v1/blocks/t")
    live.client.post(f"{path}/waivers", json={"version": "1", "signer": "I"})
    live.client.delete(f"{path}/waivers")
    password = "a long password indeed"
    assert live.client.put(f"{path}/password", json={"password": password}).status_code == 204
    assert live.client.delete(path).status_code == 204
    rows = live.client.get(f"/admin/v1/audit?after={start}&limit=1000").json()["data"]
    assert len(rows) >= 18, [row["deed"] for row in rows]
    operator = live.client.get("/admin/v1/accounts/operator").json()["id"]
    assert {row["actor"] for row in rows} == {f"account:{operator} operator"}
    assert [row["id"] for row in rows] == list(range(start + 1, start + 1 + len(rows)))
    text = json.dumps(rows)
    assert "why not" in text
    assert password not in text
    assert token["token"].split(".")[1] not in text
    some = live.client.get("/admin/v1/audit", params={"account": account["id"], "limit": 1000})
    assert {row["subject"] for row in some.json()["data"]} == {f"account:{account['id']}"}
    assert len(some.json()["data"]) >= 14


def test_the_ledger_check(live: LiveServer) -> None:
    assert live.client.get("/admin/v1/ledger/check").json() == {
        "object": "ledger.check",
        "ok": True,
        "faults": [],
    }


@pytest.mark.parametrize("fault", [ZeroDivisionError("/a/path"), KeyFileError("/a/path")])
def test_our_own_failures_have_the_same_shape_and_tell_nothing(fault: Exception) -> None:
    app = mounts.account_v1(cast("Context", SimpleNamespace(dialects=dict(DIALECTS))))

    @app.get("/broken")
    async def broken() -> None:
        raise fault

    answer = TestClient(RequestLog(app), raise_server_exceptions=False).get("/broken")
    assert "/a/path" not in answer.text
    assert refused(answer, 500)["code"] == "server_error"


def test_the_reference_shows_the_routes(live: LiveServer) -> None:
    page = live.client.get("/docs").text.replace("<wbr>", "")  # where long names may break
    paths = live.client.get("/openapi.json").json()["paths"]
    for path in ("/admin/v1/accounts/{account}/grants", "/account/v1/sign-up"):
        assert path in page
        assert path in paths
    body = paths["/admin/v1/accounts/{account}/grants"]["post"]["requestBody"]
    (schema,) = body["content"]["application/json"]["schema"]["anyOf"]
    assert set(schema["required"]) == {"characters", "reason"}
    assert "price_permille" in page
