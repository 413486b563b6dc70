"""Tokens and Zhipu's JWT: what gets in, what does not, and what lies on the disk."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import re
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.ledger.books import Books, open_books

from danqing.db import queries
from danqing.domain.errors import (
    AccountSuspended,
    AuthError,
    ExpiredToken,
    InvalidField,
    InvalidToken,
    MissingToken,
    PermissionDenied,
    ServerFault,
    Unavailable,
)
from danqing.service import changes
from danqing.service.auth import require_scope
from danqing.service.keys import KeyFile
from danqing.service.tokens import TokenLimits

MINUTE_MS = 60_000


def with_token(folder: Path, deed: Callable[[Books, str], Awaitable[None]]) -> None:
    """Run `deed` on books with an account "a" and a token of it."""

    async def main() -> None:
        async with open_books(folder) as books:
            await books.accounts.create("a")
            await deed(books, await books.tokens.create("a", by="test"))

    asyncio.run(main())


async def refused(books: Books, header: str | None, error: type[AuthError] = InvalidToken) -> None:
    with pytest.raises(error) as caught:
        await books.authenticator().authenticate(header)
    assert type(caught.value) is error
    secret = (header or "").rpartition(".")[2]
    assert len(secret) < 8 or secret not in caught.value.message


def part(content: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")


def signature(secret: str, signed: str, digest: str = "sha256") -> str:
    raw = hmac.digest(secret.encode(), signed.encode(), digest)
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def zhipu_jwt(token: str, now_ms: int, **changes: object) -> str:
    """As Zhipu's SDKs make it; a change to None leaves the claim out."""
    api_key, secret = token.split(".")
    claims = {"api_key": api_key, "exp": now_ms + 210_000, "timestamp": now_ms} | changes
    claims = {name: value for name, value in claims.items() if value is not None}
    signed = f"{part({'alg': 'HS256', 'sign_type': 'SIGN', 'typ': 'JWT'})}.{part(claims)}"
    return f"{signed}.{signature(secret, signed)}"


@pytest.mark.parametrize("form", ["Bearer {}", "bearer {}", "BEARER   {} ", " Bearer {}"])
def test_a_good_token(tmp_path: Path, form: str) -> None:
    async def deed(books: Books, token: str) -> None:
        principal = await books.authenticator().authenticate(form.format(token))
        account = await books.accounts.get("a")
        assert (principal.account_id, principal.account_name) == (account.id, "a")
        assert token.startswith(f"sk-{principal.token_id}.")
        assert principal.waiver_id is None
        await books.accounts.waive("a")
        assert (await books.authenticator().authenticate(form.format(token))).waiver_id is not None

    with_token(tmp_path, deed)


def test_the_secret_is_the_documented_hmac(tmp_path: Path) -> None:
    async def deed(books: Books, token: str) -> None:
        content = json.loads((tmp_path / "keys.json").read_text())
        key = bytes.fromhex(content["keys"][str(content["current"])])
        token_id, secret = token.removeprefix("sk-").split(".")
        raw = hmac.new(key, token_id.encode(), hashlib.sha256).digest()
        assert secret == base64.urlsafe_b64encode(raw).decode().rstrip("=")

    with_token(tmp_path, deed)


@pytest.mark.parametrize("header", [None, "", "  ", "Bearer", "Bearer   "])
def test_no_token(tmp_path: Path, header: str | None) -> None:
    async def deed(books: Books, _token: str) -> None:
        await refused(books, header, MissingToken)

    with_token(tmp_path, deed)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda token: token[:-1],
        lambda token: token[:-1] + ("A" if token[-1] != "A" else "B"),
        lambda token: token + "A",
        lambda token: token + "=",
        lambda token: token.split(".")[0],
        lambda token: token.split(".")[0] + ".",
        lambda token: token.removeprefix("sk-"),
        lambda token: token.upper(),
        lambda token: "sk-" + "0" * 32 + "." + token.split(".")[1],
        lambda token: token.replace(".", ".."),
        lambda token: token + "." + "A" * 3000,
        lambda token: token + "é",
        lambda token: token.replace("sk-", "sk-\x00"),
    ],
)
def test_a_spoiled_token(tmp_path: Path, spoil: Callable[[str], str]) -> None:
    async def deed(books: Books, token: str) -> None:
        await refused(books, f"Bearer {spoil(token)}")

    with_token(tmp_path, deed)


def test_other_schemes_are_refused(tmp_path: Path) -> None:
    async def deed(books: Books, token: str) -> None:
        await refused(books, f"Basic {token}")
        await refused(books, token)

    with_token(tmp_path, deed)


def test_revoked_expired_suspended(tmp_path: Path) -> None:
    async def deed(books: Books, token: str) -> None:
        expiring = await books.tokens.create(
            "a", expires_ms=books.clock.now_ms + MINUTE_MS, by="test"
        )
        cached = books.authenticator()
        await cached.authenticate(f"Bearer {expiring}")
        books.clock.now_ms += MINUTE_MS
        with pytest.raises(ExpiredToken):  # the cache knows the time
            await cached.authenticate(f"Bearer {expiring}")
        await books.tokens.revoke(token.split(".")[0], by="test")
        await refused(books, f"Bearer {token}", ExpiredToken)
        other = await books.tokens.create("a", by="test")
        await books.db.write(
            lambda conn: conn.exec_driver_sql("UPDATE accounts SET suspended = 1").rowcount
        )
        with pytest.raises(AccountSuspended):
            await books.authenticator().authenticate(f"Bearer {other}")

    with_token(tmp_path, deed)


def test_a_revocation_is_seen_within_five_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def deed(books: Books, token: str) -> None:
        now_s = 100.0
        monkeypatch.setattr("danqing.service.auth.time.monotonic", lambda: now_s)
        authenticator = books.authenticator()
        await authenticator.authenticate(f"Bearer {token}")
        await books.tokens.revoke(token, by="test")
        now_s += 4.9
        await authenticator.authenticate(f"Bearer {token}")
        now_s += 0.1
        with pytest.raises(ExpiredToken):
            await authenticator.authenticate(f"Bearer {token}")

    with_token(tmp_path, deed)


def test_a_made_up_token_costs_no_query(tmp_path: Path) -> None:
    async def deed(books: Books, token: str) -> None:
        authenticator = books.authenticator()
        await books.db.close()  # a query would raise Unavailable
        with pytest.raises(InvalidToken):
            await authenticator.authenticate(f"Bearer {token[:-3]}AAA")

    with_token(tmp_path, deed)


def test_rotation(tmp_path: Path) -> None:
    async def deed(books: Books, old: str) -> None:
        running = books.authenticator()
        links = books.keys.derive("links")
        elsewhere = KeyFile(tmp_path / "keys.json")  # e.g. the CLI beside the server
        assert elsewhere.rotate() == 2
        new = await books.tokens.create("a", by="test")
        assert {row.key_version for row in await books.tokens.list("a")} == {1, 2}
        for token in (old, new):
            await running.authenticate(f"Bearer {token}")
        # The right secret of another version is the wrong secret.
        crossed = elsewhere.secrets_of(old.removeprefix("sk-").split(".")[0])[2]
        await refused(books, f"Bearer {old.split('.')[0]}.{crossed}")
        assert books.keys.derive("links") == links != books.keys.derive("other")
        with pytest.raises(InvalidField):
            elsewhere.rotate(revoke_version=7)
        assert elsewhere.rotate(revoke_version=1) == 3
        await refused(books, f"Bearer {old}")
        with pytest.raises(InvalidToken):
            await running.authenticate(f"Bearer {old}")
        await running.authenticate(f"Bearer {new}")
        await refused(books, f"Bearer {zhipu_jwt(old, books.clock.now_ms)}")

    with_token(tmp_path, deed)


def test_a_good_jwt(tmp_path: Path) -> None:
    async def deed(books: Books, token: str) -> None:
        now_ms = books.clock.now_ms
        for signed in (
            zhipu_jwt(token, now_ms),
            zhipu_jwt(token, now_ms, exp=now_ms + 60 * MINUTE_MS),
            zhipu_jwt(token, now_ms, exp=now_ms + 1),
        ):
            principal = await books.authenticator().authenticate(f"Bearer {signed}")
            assert token.startswith(f"sk-{principal.token_id}.")

    with_token(tmp_path, deed)


def test_the_sdk_makes_what_we_take(tmp_path: Path) -> None:
    jwt_token = pytest.importorskip("zai.core._jwt_token")

    async def deed(books: Books, token: str) -> None:
        await books.authenticator().authenticate(f"Bearer {jwt_token.generate_token(token)}")

    with_token(tmp_path, deed)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        (lambda now: {"exp": now}, ExpiredToken),
        (lambda now: {"exp": now - MINUTE_MS}, ExpiredToken),
        (lambda now: {"exp": (now + MINUTE_MS) // 1000}, ExpiredToken),  # seconds
        (lambda now: {"exp": now + 60 * MINUTE_MS + 1}, InvalidToken),
        (lambda now: {"exp": now + 10 * 365 * 24 * 60 * MINUTE_MS}, InvalidToken),
        (lambda now: {"exp": float(now + MINUTE_MS)}, InvalidToken),
        (lambda now: {"exp": str(now + MINUTE_MS)}, InvalidToken),
        (lambda now: {"exp": True}, InvalidToken),
        (lambda now: {"exp": None}, InvalidToken),
        (lambda now: {"timestamp": None}, InvalidToken),
        (lambda now: {"timestamp": "now"}, InvalidToken),
        (lambda now: {"api_key": None}, InvalidToken),
        (lambda now: {"api_key": 7}, InvalidToken),
        (lambda now: {"api_key": "sk-" + "0" * 32}, InvalidToken),
        (lambda now: {"note": "x" * 600}, InvalidToken),
    ],
)
def test_a_bad_jwt(tmp_path: Path, changes, error: type[AuthError]) -> None:
    async def deed(books: Books, token: str) -> None:
        signed = zhipu_jwt(token, books.clock.now_ms, **changes(books.clock.now_ms))
        await refused(books, f"Bearer {signed}", error)

    with_token(tmp_path, deed)


@pytest.mark.parametrize("alg", ["none", "None", "HS512", "RS256", "hs256", "", None, ["HS256"]])
def test_the_algorithm_is_hs256_alone(tmp_path: Path, alg: object) -> None:
    async def deed(books: Books, token: str) -> None:
        api_key, secret = token.split(".")
        now_ms = books.clock.now_ms
        claims = {"api_key": api_key, "exp": now_ms + MINUTE_MS, "timestamp": now_ms}
        body = part(claims)
        for digest in ("sha256", "sha512"):
            signed = f"{part({'alg': alg})}.{body}"
            await refused(books, f"Bearer {signed}.{signature(secret, signed, digest)}")
        await refused(books, f"Bearer {signed}.")
        unsigned = f"{part({'alg': 'HS256'})}.{body}"
        await refused(books, f"Bearer {unsigned}.{signature(secret, signed)}")
        await refused(books, f"Bearer {unsigned}.")

    with_token(tmp_path, deed)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_garbage_is_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    books = _shared_books(tmp_path_factory)
    json_values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
        max_leaves=6,
    )
    piece = (
        json_values.map(part)
        | st.text(max_size=20)
        | st.just("[" * 380)
        | st.just(base64.urlsafe_b64encode(b"[" * 380).decode())
        | st.just(part({"alg": "HS256"}))
        | st.just(part({"api_key": "sk-" + "0" * 32, "exp": 1, "timestamp": 1}))
    )
    header = "Bearer " + ".".join(data.draw(st.lists(piece, min_size=1, max_size=4)))
    with pytest.raises(AuthError):
        asyncio.run(books.authenticator().authenticate(header))


_BOOKS: list[Books] = []


def _shared_books(tmp_path_factory: pytest.TempPathFactory) -> Books:
    """Books whose database is closed: garbage must not reach it."""

    async def make() -> None:
        async with open_books(tmp_path_factory.mktemp("garbage")) as books:
            _BOOKS.append(books)

    if not _BOOKS:
        asyncio.run(make())
    return _BOOKS[0]


def test_nothing_secret_is_in_the_database(tmp_path: Path) -> None:
    async def deed(books: Books, token: str) -> None:
        await books.authenticator().authenticate(f"Bearer {token}")
        await books.authenticator().authenticate(f"Bearer {zhipu_jwt(token, books.clock.now_ms)}")
        keys = re.findall(r"[0-9a-f]{64}", (tmp_path / "keys.json").read_text())
        assert len(keys) == 2  # the root and the first version
        files = list(tmp_path.glob("danqing.db*"))
        content = b"".join(file.read_bytes() for file in files)
        token_id, secret = token.removeprefix("sk-").split(".")
        assert token_id.encode() in content
        raw = base64.urlsafe_b64decode(secret + "=")
        for hidden in (secret.encode(), raw, raw.hex().encode(), *map(bytes.fromhex, keys)):
            assert hidden not in content
        assert not any(key.encode() in content for key in keys)

    with_token(tmp_path, deed)


def test_a_missing_key_file_is_an_error_while_running(tmp_path: Path) -> None:
    async def deed(books: Books, token: str) -> None:
        (tmp_path / "keys.json").unlink()
        with pytest.raises(ServerFault):
            await books.authenticator().authenticate(f"Bearer {token}")

    with_token(tmp_path, deed)


@pytest.mark.parametrize(
    ("address", "good"),
    [
        ("192.0.2.7", True),
        ("::ffff:192.0.2.7", True),
        ("2001:db8::5", True),
        ("2001:db8::5%eth0", True),
        ("192.0.2.8", False),
        ("2001:db9::5", False),
        ("", False),
        ("not an address", False),
        (None, False),
    ],
)
def test_a_token_of_certain_addresses(tmp_path: Path, address: str | None, good: bool) -> None:
    async def deed(books: Books, plain: str) -> None:
        limits = TokenLimits(networks=("192.0.2.7", "2001:db8::/32"))
        token = await books.tokens.create("a", limits=limits, by="test")
        authenticator = books.authenticator()
        await authenticator.authenticate(f"Bearer {plain}", address)
        for credential in (token, zhipu_jwt(token, books.clock.now_ms)):
            if good:
                await authenticator.authenticate(f"Bearer {credential}", address)
            else:
                with pytest.raises(PermissionDenied, match="address"):
                    await authenticator.authenticate(f"Bearer {credential}", address)

    with_token(tmp_path, deed)


def test_scopes(tmp_path: Path) -> None:
    async def deed(books: Books, token: str) -> None:
        principal = await books.authenticator().authenticate(f"Bearer {token}")
        require_scope(principal, "draw")
        for scope in ("account", "admin"):
            with pytest.raises(PermissionDenied, match=scope):
                require_scope(principal, scope)
        await books.accounts.change("a", changes.price(700), by="test")
        principal = await books.authenticator().authenticate(f"Bearer {token}")
        assert (principal.price_permille, principal.is_admin, principal.session) == (
            700,
            False,
            False,
        )

    with_token(tmp_path, deed)


def test_what_changes_is_seen_within_five_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def deed(books: Books, token: str) -> None:
        now_s = 100.0
        monkeypatch.setattr("danqing.service.auth.time.monotonic", lambda: now_s)
        authenticator = books.authenticator()
        await books.accounts.waive("a")
        assert (await authenticator.authenticate(f"Bearer {token}")).waiver_id is not None
        await books.accounts.revoke_waiver("a", by="test")
        now_s += 5
        assert (await authenticator.authenticate(f"Bearer {token}")).waiver_id is None
        await books.accounts.change("a", changes.suspended("spam"), by="test")
        now_s += 5
        with pytest.raises(AccountSuspended):
            await authenticator.authenticate(f"Bearer {token}")

    with_token(tmp_path, deed)


def test_the_last_use_is_noted_once_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def deed(books: Books, token: str) -> None:
        written: list[int] = []
        write = queries.mark_token_used
        monkeypatch.setattr(
            queries,
            "mark_token_used",
            lambda conn, token_id, now_ms: written.append(now_ms) or write(conn, token_id, now_ms),
        )
        start_ms = books.clock.now_ms
        authenticator = books.authenticator()
        for offset_ms in (0, 1, 59_999, 60_000, 60_001):
            books.clock.now_ms = start_ms + offset_ms
            for _ in range(5):
                await authenticator.authenticate(f"Bearer {token}")
            await asyncio.gather(*authenticator._uses.values())
        assert written == [start_ms, start_ms + 60_000]
        (row,) = await books.tokens.list()
        assert row.last_used_ms == start_ms + 60_000

    with_token(tmp_path, deed)


def test_noting_a_use_delays_and_fails_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def deed(books: Books, token: str) -> None:
        authenticator = books.authenticator()
        writing, blocked = threading.Event(), threading.Event()
        stuck = asyncio.create_task(books.db.write(lambda _: writing.set() or blocked.wait(120)))
        await asyncio.to_thread(writing.wait, 60)
        async with asyncio.timeout(60):  # the writer is busy all the while
            await authenticator.authenticate(f"Bearer {token}")

        def fail(*_: object) -> None:
            raise Unavailable("The database is unavailable.")

        monkeypatch.setattr(queries, "mark_token_used", fail)
        blocked.set()
        await stuck
        for _ in range(3):
            await authenticator.authenticate(f"Bearer {token}")
            await asyncio.gather(*authenticator._uses.values())

    with_token(tmp_path, deed)
