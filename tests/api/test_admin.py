"""/admin/v1/accounts over HTTP: who may, accounts, money, bad input."""

from __future__ import annotations

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from danqing.domain.card import PERMILLE_MAX
from tests.api.desk import made, refused, token_of
from tests.conftest import LiveServer

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
    with socket.create_connection((host, int(port)), timeout=60) as connection:
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
    until = time.time() + 60  # what is known of a token is cached for 5 seconds
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
    assert abs(by_id["created"] - time.time()) < 600
    for name in ("丹 alice/1", "丹%20alice%2F1"):
        by_name = f"/admin/v1/accounts/{name}"
        assert live.client.get(by_name).json()["id"] == account["id"]
        assert live.client.get(f"{by_name}/statement").json()["data"][0]["kind"] == "grant"
        assert live.client.patch(by_name, json={"low_balance": None}).status_code == 200
    path = f"/admin/v1/accounts/{account['id']}"
    changed = live.client.patch(path, json={"price_permille": 500, "low_balance": 2000}).json()
    assert (changed["price_permille"], changed["low_balance"]) == (500, 2000)
    assert live.client.patch(path, json={"low_balance": None}).json()["low_balance"] is None
    refused(live.client.patch(path, json={"suspended": True}), 400, "reason")
    for bad, param in (
        ({"price_permille": 7, "is_admin": True, "low_balance": -1}, "low_balance"),
        ({"price_permille": 7, "low_balance": 5, "suspended": True}, "reason"),
        ({"low_balance": 5, "price_permille": PERMILLE_MAX + 1}, "price_permille"),
    ):
        before = live.client.get(path).json()
        refused(live.client.patch(path, json=bad), 400, param)
        assert live.client.get(path).json() == before  # all of it or nothing
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
    short = refused(live.client.post(adjustments, json=take), 429)
    assert short["code"] == "insufficient_quota"
    assert "The account 'money' has 0" in short["message"]
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
    for below in ("adjustments", "grants", "password", "revoke-links", "statement", "waivers"):
        answer = live.client.patch(f"/admin/v1/accounts/operator/{below}", json={})
        refused(answer, 405)
        assert "PATCH" not in answer.headers["allow"]
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
