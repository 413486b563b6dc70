"""/admin/v1 over HTTP: who may, every deed and its trace in the books, bad input, pages."""

from __future__ import annotations

import csv
import io
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast

import httpx2
import pytest
from starlette.testclient import TestClient

from danqing.api import mounts
from danqing.api.context import Context
from danqing.api.middleware import RequestLog
from danqing.dialects.registry import DIALECTS
from danqing.service.keys import KeyFileError
from tests.conftest import LiveServer, start_server, stop_server


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def live(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    """A server that draws nothing much; its client is the operator."""
    environment = {}
    if request.param == "postgresql":
        environment["DANQING_DATABASE_URL"] = request.getfixturevalue("postgres").create_database()
    folder = tmp_path_factory.mktemp("admin") / "data"
    server = start_server(folder, module="tests.null_server", **environment)
    yield server
    assert stop_server(server) == 0


def made(live: LiveServer, name: str, **fields: Any) -> dict[str, Any]:
    answer = live.client.post("/admin/v1/accounts", json={"name": name, **fields})
    assert answer.status_code == 201, answer.text
    return answer.json()


def token_of(live: LiveServer, account: str, **fields: Any) -> dict[str, Any]:
    answer = live.client.post("/admin/v1/tokens", json={"account": account, **fields})
    assert answer.status_code == 201, answer.text
    return answer.json()


def refused(answer: httpx2.Response, status: int, param: str | None = None) -> dict[str, Any]:
    """The error of an answer, in OpenAI's shape."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    if param is not None:
        assert error["param"] == param, error
    assert answer.headers["x-request-id"]
    return error


# Who may


def test_only_the_scope_admin_gets_in(live: LiveServer) -> None:
    made(live, "plain")
    draws, holds = token_of(live, "plain"), token_of(live, "plain", scopes=["draw", "account"])
    for token in (draws, holds):
        headers = {"authorization": f"Bearer {token['token']}"}
        for method, path in (
            ("GET", "/admin/v1/accounts"),
            ("POST", "/admin/v1/accounts"),
            ("POST", "/admin/v1/accounts/plain/grants"),
            ("GET", "/admin/v1/audit"),
        ):
            answer = live.client.request(method, path, headers=headers)
            refused(answer, 403)
    assert (
        live.client.get(
            "/account/v1/me", headers={"authorization": f"Bearer {draws['token']}"}
        ).status_code
        == 403
    )
    for authorization in ("", "Bearer sk-wrong.wrong", "Basic abc"):
        answer = live.client.get("/admin/v1/accounts", headers={"authorization": authorization})
        assert refused(answer, 401)["code"] == "invalid_api_key"


def test_a_stranger_is_refused_before_the_body_is_read(live: LiveServer) -> None:
    host, port = live.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(
            b"POST /admin/v1/accounts HTTP/1.1\r\nhost: x\r\nauthorization: Bearer nonsense\r\n"
            b"content-type: application/json\r\ncontent-length: 50000\r\n\r\n{"
        )
        answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 401")
        assert b"connection: close" in answer.lower()


def test_a_token_of_the_scope_admin_is_for_admins_only(live: LiveServer) -> None:
    made(live, "would-be")
    body = {"account": "would-be", "scopes": ["admin"]}
    assert "'admin'" in refused(live.client.post("/admin/v1/tokens", json=body), 403)["message"]
    assert (
        live.client.patch("/admin/v1/accounts/would-be", json={"is_admin": True}).status_code == 200
    )
    headers = {"authorization": f"Bearer {token_of(live, 'would-be', scopes=['admin'])['token']}"}
    assert live.client.get("/admin/v1/accounts", headers=headers).status_code == 200
    assert (
        live.client.patch("/admin/v1/accounts/would-be", json={"is_admin": False}).status_code
        == 200
    )
    until = time.time() + 8  # what is known of a token is cached for 5 seconds
    while live.client.get("/admin/v1/accounts", headers=headers).status_code == 200:
        assert time.time() < until
        time.sleep(0.3)


# Accounts and money


def test_an_account_from_birth_to_death(live: LiveServer) -> None:
    account = made(live, "丹 alice/1")
    assert account["balance"] == 15_000
    assert account["object"] == "account"
    by_id = live.client.get(f"/admin/v1/accounts/{account['id']}").json()
    assert by_id["name"] == "丹 alice/1"
    assert by_id["held"] == 0
    assert by_id["waiver"] is None
    assert abs(by_id["created"] - time.time()) < 60
    path = f"/admin/v1/accounts/{account['id']}"
    changed = live.client.patch(path, json={"price_permille": 500, "low_balance": 2000}).json()
    assert (changed["price_permille"], changed["low_balance"]) == (500, 2000)
    assert live.client.patch(path, json={"low_balance": None}).json()["low_balance"] is None
    refused(live.client.patch(path, json={"suspended": True}), 400, "reason")
    token = token_of(live, account["id"])["token"]
    gone = live.client.patch(path, json={"suspended": True, "reason": "unpaid"}).json()
    assert (gone["suspended"], gone["suspended_reason"]) == (True, "unpaid")
    assert live.client.patch(path, json={"suspended": False}).json()["suspended"] is False
    assert live.client.delete(path).status_code == 204
    refused(live.client.delete(path), 404)
    assert live.client.get(path).json()["deleted"] is not None
    listed = [
        row["name"] for row in live.client.get("/admin/v1/accounts?limit=1000").json()["data"]
    ]
    assert "丹 alice/1" not in listed
    answer = live.client.get("/v1/models", headers={"authorization": f"Bearer {token}"})
    assert answer.status_code in (401, 403)
    assert made(live, "丹 alice/1")["id"] != account["id"]  # the name is free again


def test_grants_and_adjustments(live: LiveServer) -> None:
    made(live, "money", characters=1000)
    grants, adjustments = "/admin/v1/accounts/money/grants", "/admin/v1/accounts/money/adjustments"
    body = {"characters": 500, "reason": "gift"}
    assert live.client.post(grants, json=body).json()["balance"] == 1500
    key = {"idempotency-key": "grant-1"}
    for _ in range(3):
        assert live.client.post(grants, json=body, headers=key).json()["balance"] == 2000
    for path, other in (
        (grants, body | {"characters": 501}),
        (adjustments, body),
    ):
        answer = live.client.post(path, json=other, headers=key)
        assert refused(answer, 409, "Idempotency-Key")["code"] == "idempotency_conflict"
    made(live, "money-2", characters=1)
    answer = live.client.post("/admin/v1/accounts/money-2/grants", json=body, headers=key)
    refused(answer, 409)
    take = {"characters": -2000, "reason": "mistake"}
    assert live.client.post(adjustments, json=take).json()["balance"] == 0
    assert refused(live.client.post(adjustments, json=take), 429)["code"] == "insufficient_quota"
    live.balance("money")  # checks the books


def test_one_key_at_once_grants_once(live: LiveServer) -> None:
    made(live, "racer", characters=1)

    def grant(_: int) -> int:
        answer = live.client.post(
            "/admin/v1/accounts/racer/grants",
            json={"characters": 100, "reason": "race"},
            headers={"idempotency-key": "race-1"},
        )
        return answer.status_code

    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(grant, range(32))) == {200}
    assert live.balance("racer") == 101


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"characters": 0}, "characters"),
        ({"characters": -5}, "characters"),
        ({"characters": 1.5}, "characters"),
        ({"characters": 1.0}, "characters"),
        ({"characters": True}, "characters"),
        ({"characters": "100"}, "characters"),
        ({"characters": 10**15 + 1}, "characters"),
        ({"characters": 10**40}, "characters"),
        ({"characters": None}, "characters"),
        ({"reason": ""}, "reason"),
        ({"reason": "x" * 501}, "reason"),
        ({"reason": None}, "reason"),
        ({"reasn": "x"}, "reasn"),
        ({"account": "other"}, "account"),
    ],
)
def test_bad_grants(live: LiveServer, fields: dict[str, Any], param: str) -> None:
    body = {"characters": 10, "reason": "why"} | fields
    answer = live.client.post("/admin/v1/accounts/operator/grants", json=body)
    refused(answer, 400, param)


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "ключ".encode()])
def test_bad_idempotency_keys(live: LiveServer, key: str | bytes) -> None:
    answer = live.client.post(
        "/admin/v1/accounts/operator/grants",
        json={"characters": 10, "reason": "why"},
        headers=[(b"idempotency-key", key if isinstance(key, bytes) else key.encode())],
    )
    refused(answer, 400, "Idempotency-Key")


@pytest.mark.parametrize(
    ("method", "path", "body", "param"),
    [
        ("POST", "accounts", {}, "name"),
        ("POST", "accounts", {"name": ""}, "name"),
        ("POST", "accounts", {"name": "x" * 65}, "name"),
        ("POST", "accounts", {"name": "a\nb"}, "name"),
        ("POST", "accounts", {"name": 5}, "name"),
        ("POST", "accounts", {"name": "operator"}, "name"),
        ("POST", "accounts", {"name": "neg", "characters": -1}, "characters"),
        ("POST", "accounts", {"name": "y", "is_admin": "yes"}, "is_admin"),
        ("POST", "accounts", {"name": "y", "balance": 5}, "balance"),
        ("PATCH", "accounts/operator", {"price_permille": -1}, "price_permille"),
        ("PATCH", "accounts/operator", {"price_permille": 10**9}, "price_permille"),
        ("PATCH", "accounts/operator", {"low_balance": -1}, "low_balance"),
        ("PATCH", "accounts/operator", {"balance": 1}, "balance"),
        ("PUT", "accounts/operator/password", {"password": "short"}, "password"),
        ("POST", "tokens", {"account": "operator", "scopes": ["root"]}, "scopes"),
        ("POST", "tokens", {"account": "operator", "scopes": []}, "scopes"),
        ("POST", "tokens", {"account": "operator", "networks": ["10.0.0.0/99"]}, "networks"),
        ("POST", "tokens", {"account": "operator", "budget_day": -1}, "budget_day"),
        ("POST", "tokens", {"account": "operator", "budget_total": 10**30}, "budget_total"),
        ("POST", "tokens", {"account": "operator", "concurrency_max": 0}, "concurrency_max"),
        ("POST", "tokens", {"account": "operator", "rate_per_minute": 0}, "rate_per_minute"),
        ("POST", "tokens", {"account": "operator", "expires": 1}, "expires"),
        ("POST", "tokens", {"account": "operator", "expires": 10**12}, "expires"),
        ("POST", "tokens", {"account": "operator", "expires": "tomorrow"}, "expires"),
        ("POST", "codes", {"characters": 0}, "characters"),
        ("POST", "codes", {"characters": 5, "count": 0}, "count"),
        ("POST", "codes", {"characters": 5, "count": 10_001}, "count"),
        ("POST", "codes", {"characters": 5, "kind": "gift"}, "kind"),
        ("POST", "blocks", {"end_user": "", "reason": "x"}, "end_user"),
        ("POST", "blocks", {"end_user": "x"}, "reason"),
        ("POST", "accounts/operator/waivers", {"version": "0", "signer": "I"}, "version"),
        ("POST", "accounts/operator/waivers", {"version": "1"}, "signer"),
    ],
)
def test_bad_bodies(
    live: LiveServer, method: str, path: str, body: dict[str, Any], param: str
) -> None:
    answer = live.client.request(method, f"/admin/v1/{path}", json=body)
    error = refused(answer, 400)
    assert (error["param"] or "").split("[")[0] == param, error


def test_bodies_that_are_none(live: LiveServer) -> None:
    for content, status in (
        (b"", 400),
        (b"[]", 400),
        (b"{", 400),
        (b"\xff", 400),
        (b'{"name": "a", "name": "b"}', 400),
        (b'{"name": "a\\u0000"}', 400),
        (b'{"x": "' + b"x" * 70_000 + b'"}', 413),
    ):
        answer = live.client.post("/admin/v1/accounts", content=content)
        refused(answer, status)


def test_what_is_not_there(live: LiveServer) -> None:
    for method, path in (
        ("GET", "accounts/nobody"),
        ("GET", "accounts/018f0000-0000-7000-8000-000000000000"),
        ("DELETE", "accounts/nobody"),
        ("GET", "accounts/nobody/statement"),
        ("GET", "accounts/nobody/statement?format=csv"),
        ("GET", "tokens/sk-nothing"),
        ("DELETE", "tokens/sk-nothing"),
        ("GET", "tokens?account=nobody"),
        ("DELETE", "blocks/nobody"),
        ("GET", "nowhere"),
    ):
        refused(live.client.request(method, f"/admin/v1/{path}"), 404)
    refused(live.client.put("/admin/v1/accounts"), 405)
    refused(live.client.post("/admin/v1/audit"), 405)
    refused(live.client.get("/admin/v1/accounts/a%00b"), 400, "account")
    for query, param in (
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=ten", "limit"),
        ("after=%00", "after"),
        ("after=" + "x" * 601, "after"),
    ):
        refused(live.client.get(f"/admin/v1/accounts?{query}"), 400, param)
    refused(live.client.get("/admin/v1/audit?after=-1"), 400, "after")
    refused(live.client.get("/admin/v1/tokens?after=nothing"), 400, "after")
    refused(live.client.get("/admin/v1/accounts/operator/statement?format=xml"), 400, "format")


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
    listed = live.client.get("/admin/v1/tokens", params={"account": "tokens"}).json()["data"]
    assert [row["id"] for row in listed] == [token["id"]]
    secret = token["token"].split(".")[1]
    assert secret not in json.dumps(listed)
    assert live.client.delete(path).status_code == 204
    assert live.client.get(path).json()["revoked"] is not None
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
    assert {row["actor"] for row in rows} == {"account:operator"}
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
    page = live.client.get("/docs").text
    paths = live.client.get("/openapi.json").json()["paths"]
    for path in ("/admin/v1/accounts/{account}/grants", "/account/v1/sign-up"):
        assert path in page
        assert path in paths
    body = paths["/admin/v1/accounts/{account}/grants"]["post"]["requestBody"]
    (schema,) = body["content"]["application/json"]["schema"]["anyOf"]
    assert set(schema["required"]) == {"characters", "reason"}
    assert "price_permille" in page
