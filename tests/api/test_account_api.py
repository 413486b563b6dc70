"""/account/v1 over HTTP: signing up and in, what a holder may do and never may, payments."""

from __future__ import annotations

import base64
import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from danqing.service import webhooks
from tests.api.desk import refused, token_of
from tests.conftest import LiveServer, shared_server

SECRET = b"payments" * 4
PASSWORD = "correct horse battery"


live = shared_server(
    DANQING_SIGN_UP="open",
    DANQING_SIGN_UPS_PER_ADDRESS_MAX="1000",
    DANQING_TRUSTED_PROXIES='["127.0.0.1"]',
    DANQING_PAYMENTS_SECRET="whsec_" + base64.b64encode(SECRET).decode(),
)
"""Anybody may sign up here, and a payment provider is known."""


class Holder:
    """A signed-up account and a client with its session; each comes from an address of its own."""

    count = 0

    def __init__(self, live: LiveServer, name: str) -> None:
        Holder.count += 1
        self.name = name
        self.from_ = {"x-forwarded-for": f"198.51.{Holder.count // 250}.{Holder.count % 250}"}
        self._live = live
        credentials = {"name": name, "password": PASSWORD}
        answer = httpx2.post(f"{live.url}/account/v1/sign-up", json=credentials, headers=self.from_)
        assert answer.status_code == 201, answer.text
        self.id = answer.json()["id"]
        self.session = self.sign_in().json()["token"]
        self.client = self.with_token(self.session)

    def sign_in(self, password: str = PASSWORD, name: str | None = None) -> httpx2.Response:
        return httpx2.post(
            f"{self._live.url}/account/v1/sign-in",
            json={"name": name or self.name, "password": password},
            headers=self.from_,
        )

    def with_token(self, token: str) -> httpx2.Client:
        headers = self.from_ | {"authorization": f"Bearer {token}"}
        return httpx2.Client(base_url=f"{self._live.url}/account/v1", headers=headers, timeout=60)

    def key(self, *scopes: str, **limits: Any) -> httpx2.Client:
        """A client with a key of these scopes, made by the operator."""
        token = token_of(self._live, self.name, scopes=list(scopes), **limits)
        return self.with_token(token["token"])


def wait_for_refusal(client: httpx2.Client) -> None:
    until = time.time() + 60  # what is known of a token is cached for 5 seconds
    while (answer := client.get("/me")).status_code == 200:
        assert time.time() < until
        time.sleep(0.3)
    assert answer.status_code in (401, 403)


# Signing up, in and out


def test_sign_up_and_in(live: LiveServer) -> None:
    alice = Holder(live, "alice")
    me = alice.client.get("/me").json()
    assert (me["name"], me["balance"], me["held"]) == ("alice", 15_000, 0)
    assert me["price_permille"] == 1000
    assert me["waiver"] is None
    assert me["token"]["kind"] == "session"
    assert set(me["token"]["scopes"]) == {"draw", "account"}
    hours = (me["token"]["expires"] - time.time()) / 3600
    assert 11.9 < hours < 12.1
    assert PASSWORD not in json.dumps(me)
    assert "argon2" not in json.dumps(me)
    again = httpx2.post(
        f"{live.url}/account/v1/sign-up", json={"name": "alice", "password": PASSWORD}
    )
    refused(again, 400, "name")
    wrong, unknown = alice.sign_in("not my password"), alice.sign_in(name="nobody-at-all")
    assert wrong.status_code == unknown.status_code == 401
    assert wrong.json() == unknown.json()
    assert alice.client.post("/sign-out").status_code == 204
    wait_for_refusal(alice.client)
    assert not [line for line in live.lines if PASSWORD in str(line)]


def test_a_key_does_not_sign_out(live: LiveServer) -> None:
    refused(Holder(live, "keyed").key("account").post("/sign-out"), 403)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"name": ""}, "name"),
        ({"name": "x" * 65}, "name"),
        ({"name": 5}, "name"),
        ({"name": "operator"}, "name"),
        ({"password": "short"}, "password"),
        ({"password": ""}, "password"),
        ({"password": "x" * 2000}, "password"),
        ({"password": None}, "password"),
        ({"is_admin": True}, "is_admin"),
        ({"characters": 5}, "characters"),
    ],
)
def test_bad_sign_ups(live: LiveServer, fields: dict[str, Any], param: str) -> None:
    body = {"name": "somebody", "password": PASSWORD} | fields
    refused(httpx2.post(f"{live.url}/account/v1/sign-up", json=body), 400, param)


def test_who_may_sign_up(null_server) -> None:
    def sign_up(server: LiveServer, name: str, **fields: Any) -> httpx2.Response:
        body = {"name": name, "password": PASSWORD, **fields}
        return httpx2.post(f"{server.url}/account/v1/sign-up", json=body)

    closed = null_server(DANQING_SIGN_UP="closed")
    refused(sign_up(closed, "a"), 403)
    invited = null_server()  # the default
    answer = sign_up(invited, "a")
    assert refused(answer, answer.status_code)["param"] == "invite"
    code = invited.client.post("/admin/v1/codes", json={"characters": 77, "kind": "invite"})
    (invite,) = code.json()["data"]
    first = sign_up(invited, "a", invite=invite)
    assert (first.status_code, first.json()["balance"]) == (201, 77)
    assert sign_up(invited, "b", invite=invite).status_code in (400, 403)
    crowded = null_server(DANQING_SIGN_UP="open", DANQING_SIGN_UPS_PER_ADDRESS_MAX="2")
    codes = [sign_up(crowded, f"c{number}").status_code for number in range(4)]
    assert codes == [201, 201, 429, 429]
    # The header of a peer that nobody trusts moves no address.
    headers = {"x-forwarded-for": "203.0.113.9"}
    body = {"name": "forger", "password": PASSWORD}
    answer = httpx2.post(f"{crowded.url}/account/v1/sign-up", json=body, headers=headers)
    assert answer.status_code == 429


def test_guessing_passwords_gets_slow(live: LiveServer) -> None:
    victim = Holder(live, "victim")
    codes = [victim.sign_in(f"guess number {number}").status_code for number in range(40)]
    assert set(codes) == {401, 429}
    while (limited := victim.sign_in("one more guess")).status_code == 401:
        pass  # a minute has just turned: then one passes
    assert refused(limited, 429)["code"] == "rate_limit_exceeded"
    assert int(limited.headers["retry-after"]) >= 1


def test_a_changed_password_ends_other_sessions(live: LiveServer) -> None:
    carol = Holder(live, "carol")
    other = carol.with_token(carol.sign_in().json()["token"])
    new = "an even longer password"
    refused(carol.client.post("/password", json={"old": "wrong", "new": new}), 400, "old")
    refused(carol.client.post("/password", json={"old": PASSWORD, "new": "short"}), 400, "new")
    assert carol.client.post("/password", json={"old": PASSWORD, "new": new}).status_code == 204
    wait_for_refusal(other)
    assert carol.client.get("/me").status_code == 200
    assert carol.sign_in().status_code == 401
    assert carol.sign_in(new).status_code == 200


# What a holder may, and never may


def test_a_drawing_key_is_no_account_key(live: LiveServer) -> None:
    key = Holder(live, "drawer").key("draw")
    for method, path in (
        ("GET", "/me"),
        ("POST", "/tokens"),
        ("POST", "/delete"),
        ("GET", "/webhook"),
    ):
        refused(key.request(method, path), 403)


def test_tokens_of_ones_own(live: LiveServer) -> None:
    dave = Holder(live, "dave")
    made = dave.client.post("/tokens", json={"name": "laptop", "budget_day": 100}).json()
    assert made["scopes"] == ["draw"]
    assert made["account_id"] == dave.id
    path = f"/tokens/{made['id']}"
    assert dave.client.patch(path, json={"budget_day": None}).json()["budget_day"] is None
    assert dave.client.get(path).json()["name"] == "laptop"
    listed = [row["id"] for row in dave.client.get("/tokens").json()["data"]]
    assert made["id"] in listed
    models = live.client.get("/v1/models", headers={"authorization": f"Bearer {made['token']}"})
    assert models.status_code == 200
    assert dave.client.delete(path).status_code == 204
    assert dave.client.get(path).json()["revoked"] is not None
    refused(dave.client.post("/tokens", json={"scopes": ["draw", "admin"]}), 403, "scopes")
    refused(dave.client.post("/tokens", json={"account": "operator"}), 400, "account")


def test_a_token_makes_none_that_may_more(live: LiveServer) -> None:
    erin = Holder(live, "erin")
    soon = int(time.time()) + 3600
    for limits in (
        {"models": ["cogview-4"]},
        {"networks": ["198.51.0.0/16"]},
        {"budget_total": 10},
        {"concurrency_max": 1},
        {"rate_per_minute": 100},
        {"expires": soon},
    ):
        client = erin.key("draw", "account", **limits)
        own = client.get("/me").json()["token"]["id"]
        refused(client.post("/tokens", json={}), 403)
        refused(client.patch(f"/tokens/{own}", json={"models": None}), 403)
    no_draw = erin.key("account")
    refused(no_draw.post("/tokens", json={}), 403, "scopes")
    assert no_draw.post("/tokens", json={"scopes": ["account"]}).status_code == 201
    # One that may not make such a token may not loosen one either.
    strong = token_of(live, "erin", scopes=["draw"], budget_total=5)
    refused(no_draw.patch(f"/tokens/{strong['id']}", json={"budget_total": None}), 403, "scopes")


def test_a_token_of_another_account_is_not_there(live: LiveServer) -> None:
    frank = Holder(live, "frank")
    theirs = token_of(live, "operator")["id"]
    refused(frank.client.get(f"/tokens/{theirs}"), 404)
    refused(frank.client.patch(f"/tokens/{theirs}", json={"budget_day": 1}), 404)
    refused(frank.client.delete(f"/tokens/{theirs}"), 404)
    assert live.client.get(f"/admin/v1/tokens/{theirs}").json()["revoked"] is None


def test_statement(live: LiveServer) -> None:
    grace = Holder(live, "grace")
    (first,) = grace.client.get("/statement").json()["data"]
    assert (first["kind"], first["characters"]) == ("grant", 15_000)
    assert grace.client.get("/statement", headers={"accept": "text/csv"}).text.startswith(
        "id,time,"
    )


def test_one_code_at_once_is_worth_its_characters_once(live: LiveServer) -> None:
    heidi = Holder(live, "heidi")
    (code,) = live.client.post("/admin/v1/codes", json={"characters": 500}).json()["data"]

    def use(_: int) -> int:
        return heidi.client.post("/redeem", json={"code": code}).status_code

    with ThreadPoolExecutor(8) as pool:
        codes = sorted(pool.map(use, range(8)))
    assert codes == [200] + [400] * 7
    assert live.balance("heidi") == 15_500
    refused(heidi.client.post("/redeem", json={"code": "hello"}), 400, "code")


def test_waiver(live: LiveServer) -> None:
    ivan = Holder(live, "ivan")
    shown = ivan.client.get("/waiver").json()
    assert shown["signed"] == []
    refused(ivan.client.post("/waiver", json={"signer": "Ivan"}), 400, "version")
    refused(ivan.client.post("/waiver", json={"signer": "Ivan", "version": "0"}), 400, "version")
    refused(ivan.client.post("/waiver", json={"version": shown["version"]}), 400, "signer")
    body = {"signer": "Ivan Petrov", "version": shown["version"]}
    signed = ivan.client.post("/waiver", json=body)
    assert signed.status_code == 201
    assert signed.json()["text"] == shown["text"]
    assert ivan.client.get("/me").json()["waiver"]["signer"] == "Ivan Petrov"
    assert ivan.client.delete("/waiver").status_code == 204
    assert ivan.client.get("/me").json()["waiver"] is None
    (kept,) = ivan.client.get("/waiver").json()["signed"]
    assert kept["revoked"] is not None


def test_webhook(live: LiveServer) -> None:
    judy = Holder(live, "judy")
    url = "https://hooks.example.com/danqing"
    changed = judy.client.patch("/webhook", json={"webhook_url": url, "low_balance": 1000}).json()
    assert (changed["webhook_url"], changed["low_balance"]) == (url, 1000)
    assert len(webhooks.parse_secret(changed["secret"])) >= 24
    assert judy.client.get("/webhook").json() == changed
    assert judy.client.patch("/webhook", json={"low_balance": None}).json()["webhook_url"] == url
    for bad in ("http://127.0.0.1:1/x", "ftp://example.com", "nonsense", ""):
        refused(judy.client.patch("/webhook", json={"webhook_url": bad}), 400, "webhook_url")
    refused(judy.client.patch("/webhook", json={"low_balance": -5}), 400, "low_balance")
    both = {"webhook_url": "http://127.0.0.1:1/x", "low_balance": 7}
    refused(judy.client.patch("/webhook", json=both), 400, "webhook_url")
    now = judy.client.get("/webhook").json()
    assert (now["webhook_url"], now["low_balance"]) == (url, None)  # all of it or nothing
    secret = "https://hooks.example.com/a-secret?token=b-secret"
    assert judy.client.patch("/webhook", json={"webhook_url": secret}).status_code == 200
    assert judy.client.patch("/webhook", json={"webhook_url": None}).json()["webhook_url"] is None
    trail = live.client.get("/admin/v1/audit", params={"account": judy.id, "limit": 1000}).json()
    found = [row["detail"]["url"] for row in trail["data"] if row["deed"] == "account.webhook"]
    assert found == ["https://hooks.example.com", "https://hooks.example.com", None]


def test_blocks_of_ones_own(live: LiveServer) -> None:
    kim, leo = Holder(live, "kim"), Holder(live, "leo")
    live.client.post("/admin/v1/blocks", json={"end_user": "everyone's foe", "reason": "secret"})
    assert kim.client.post("/blocks", json={"end_user": "u1", "reason": "spam"}).status_code == 201
    (row,) = kim.client.get("/blocks").json()["data"]  # not the operator's own list
    assert (row["end_user"], row["reason"]) == ("u1", "spam")
    assert leo.client.get("/blocks").json()["data"] == []
    refused(leo.client.delete("/blocks/u1"), 404)
    refused(kim.client.delete("/blocks/everyone's foe"), 404)
    assert kim.client.delete("/blocks/u1").status_code == 204


def test_deeds_name_their_doer(live: LiveServer) -> None:
    mia = Holder(live, "mia")
    mia.client.post("/tokens", json={})
    rows = live.client.get("/admin/v1/audit", params={"account": mia.id, "limit": 1000}).json()[
        "data"
    ]
    assert {row["actor"] for row in rows} == {f"account:{mia.id} mia"}


def test_deleting_oneself(live: LiveServer) -> None:
    nina = Holder(live, "nina")
    draw = {"prompt": "x", "model": "dall-e-3"}
    answer = live.client.post(
        "/v1/images/generations", json=draw, headers={"authorization": f"Bearer {nina.session}"}
    )
    link = answer.json()["data"][0]["url"]
    assert httpx2.get(link).status_code == 200
    refused(nina.client.post("/delete", json={}), 400, "password")
    refused(nina.client.post("/delete", json={"confirm": "nina"}), 400, "password")
    assert nina.client.post("/delete", json={"password": "wrong wrong"}).status_code in (400, 401)
    assert nina.client.get("/me").json()["deleted"] is None
    assert nina.client.post("/delete", json={"password": PASSWORD}).status_code == 204
    assert httpx2.get(link).status_code == 404
    assert nina.sign_in().status_code == 401
    assert not [path for path in (live.data_dir / "images").rglob("*.png") if path.stem in link]
    assert Holder(live, "nina").id != nina.id


def test_deleting_an_account_without_a_password(live: LiveServer) -> None:
    live.account("otto")
    token = token_of(live, "otto", scopes=["account"])["token"]
    client = httpx2.Client(
        base_url=f"{live.url}/account/v1", headers={"authorization": f"Bearer {token}"}
    )
    for body in ({}, {"confirm": "otta"}, {"password": PASSWORD}):
        refused(client.post("/delete", json=body), 400, "confirm")
    assert client.post("/delete", json={"confirm": "otto"}).status_code == 204
    wait_for_refusal(client)


# Payments


def paid(
    live: LiveServer,
    body: dict[str, Any] | bytes,
    *,
    secret: bytes = SECRET,
    at_s: int | None = None,
    message_id: str = "msg_1",
    sent: bytes | None = None,
) -> httpx2.Response:
    """A payment provider's webhook, signed over `body`; `sent` is what goes out in its place."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    stamp = int(time.time()) if at_s is None else at_s
    headers = {
        "webhook-id": message_id,
        "webhook-timestamp": str(stamp),
        "webhook-signature": webhooks.sign(secret, message_id, stamp, content),
        "content-type": "application/json",
    }
    return httpx2.post(f"{live.url}/account/v1/payments", content=sent or content, headers=headers)


def test_a_payment_counts_once(live: LiveServer) -> None:
    pat = Holder(live, "pat")
    body = {"payment_id": "p-1", "account": "pat", "characters": 700}
    first = paid(live, body)
    assert first.status_code == 200, first.text
    assert paid(live, body).json() == first.json()
    assert paid(live, body, message_id="msg_2").json() == first.json()
    with ThreadPoolExecutor(8) as pool:
        many = list(pool.map(lambda _: paid(live, body | {"payment_id": "p-2"}), range(8)))
    assert {answer.status_code for answer in many} == {200}
    assert live.balance("pat") == 15_000 + 1400
    refused(paid(live, body | {"characters": 701}), 409)
    kinds = [row["characters"] for row in pat.client.get("/statement").json()["data"]]
    assert kinds == [15_000, 700, 700]


def test_forged_and_old_payments(live: LiveServer) -> None:
    Holder(live, "quinn")
    body = {"payment_id": "p-9", "account": "quinn", "characters": 700}
    richer = json.dumps(body | {"characters": 10**9}).encode()
    now_s = int(time.time())
    for answer in (
        paid(live, body, secret=b"another" * 5),
        paid(live, body, sent=richer),
        paid(live, body, at_s=now_s - 3600),
        paid(live, body, at_s=now_s + 3600),
        httpx2.post(f"{live.url}/account/v1/payments", json=body),
        httpx2.post(
            f"{live.url}/account/v1/payments",
            json=body,
            headers={"authorization": f"Bearer {live.token}"},
        ),
    ):
        refused(answer, 401)
    for number, (bad, param) in enumerate(
        (
            ({"account": "nobody"}, "account"),
            ({"characters": 0}, "characters"),
            ({"characters": -5}, "characters"),
            ({"characters": 1.5}, "characters"),
            ({"characters": 10**16}, "characters"),
            ({"payment_id": ""}, "payment_id"),
            ({"provider": ""}, "provider"),
        )
    ):
        answer = paid(live, body | {"payment_id": f"bad-{number}"} | bad)
        assert answer.status_code in (400, 404)
        refused(answer, answer.status_code, param)
    refused(paid(live, b'{"x": "' + b"x" * 70_000 + b'"}'), 413)
    refused(paid(live, b"nonsense"), 400)
    assert live.balance("quinn") == 15_000


def test_payments_are_closed_without_a_secret(null_server) -> None:
    server = null_server()
    answer = paid(server, {"payment_id": "p", "account": "operator", "characters": 5})
    refused(answer, 404)
