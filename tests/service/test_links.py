"""Signed links: good until they end, and no part of one can be changed."""

from __future__ import annotations

import hmac
import re
from collections.abc import Sequence
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danqing.service.links import LinkRefused, LinkSigner

SIGNER = LinkSigner(b"a secret of thirty-two bytes.....")
IDS = st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True)
EXTS = st.sampled_from(["png", "jpeg", "webp"])
TIMES = st.integers(1, 10**11)
VERSIONS = st.integers(0, 2) | st.integers(0, 10**9 - 1)


def parts(link: str) -> tuple[str, str, str, str]:
    """Image id, ext, expires and signature, as a server reads them from the wire."""
    url = urlsplit(link)
    query = parse_qs(url.query, strict_parsing=True)
    assert set(query) == {"x-expires", "x-signature"}
    image_id, ext = url.path.removeprefix("/files/").rsplit(".", 1)
    return image_id, ext, query["x-expires"][0], query["x-signature"][0]


def test_form() -> None:
    link = SIGNER.sign("0a1b2c3d4e5", "png", 1_790_000_000)
    assert re.fullmatch(
        r"/files/0a1b2c3d4e5\.png\?x-expires=1790000000&x-signature=[A-Za-z0-9_-]{43}", link
    )


def refused(fields: Sequence[str], signer: LinkSigner = SIGNER, now: float = 0) -> str:
    """Why a link is refused."""
    with pytest.raises(LinkRefused) as caught:
        signer.verify(*fields, now=now)
    return caught.value.reason


@given(IDS, EXTS, TIMES, VERSIONS)
def test_a_link_is_good_until_it_ends(
    image_id: str, ext: str, expires_s: int, version: int
) -> None:
    fields = parts(SIGNER.sign(image_id, ext, expires_s, version))
    assert fields[:3] == (image_id, ext, str(expires_s))
    assert SIGNER.verify(*fields, now=expires_s - 1) == version
    assert refused(fields, now=expires_s) == "expired"
    assert refused(fields, LinkSigner(b"another secret, also long enough")) == "invalid"


@given(
    st.tuples(IDS, EXTS, TIMES, VERSIONS),
    st.integers(0, 3),
    st.integers(0, 200),
    st.characters() | st.sampled_from("0123456789abcXYZ_-= \n\0٣"),
    st.sampled_from(["replace", "insert", "delete"]),
)
def test_one_changed_character_anywhere_breaks_it(
    link: tuple[str, str, int, int], field: int, at: int, char: str, deed: str
) -> None:
    fields = list(parts(SIGNER.sign(*link)))
    old = fields[field]
    at %= len(old)
    kept = {"replace": at + 1, "insert": at, "delete": at + 1}[deed]
    fields[field] = old[:at] + ("" if deed == "delete" else char) + old[kept:]
    if fields[field] == old:
        assert SIGNER.verify(*fields, now=0) == link[3]
    else:
        assert refused(fields, now=10**12) == "invalid"


LINKS = st.tuples(IDS, EXTS, TIMES, VERSIONS)


@given(LINKS, LINKS)
def test_no_two_links_share_a_signature(
    a: tuple[str, str, int, int], b: tuple[str, str, int, int]
) -> None:
    same = parts(SIGNER.sign(*a))[3] == parts(SIGNER.sign(*b))[3]
    assert same == (a == b)


@given(st.text(), st.text(), st.text(), st.text())
def test_garbage_is_refused_quietly(image_id: str, ext: str, expires: str, signature: str) -> None:
    assert refused((image_id, ext, expires, signature)) == "invalid"


@pytest.mark.parametrize(
    ("expires", "signature"),
    [
        ("9" * 100_000, "x"),
        ("1790000000", "A" * 10_000_000),
        ("1790000000", "\ud800" * 43),
        ("1790000000", "é" * 43),
        ("١٧٩٠٠٠٠٠٠٠", "x"),
        ("-1", "x"),
        ("1e9", "x"),
        ("", ""),
    ],
)
def test_long_and_odd_parameters_are_refused(expires: str, signature: str) -> None:
    assert refused(("0a1b2c3d4e5", "png", expires, signature)) == "invalid"


def test_leading_zeros_are_another_link() -> None:
    image_id, ext, expires, signature = parts(SIGNER.sign("0a", "png", 1_790_000_000))
    assert refused((image_id, ext, "0" + expires, signature)) == "invalid"


def test_signatures_are_compared_in_constant_time_before_anything_else_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever the signature, its length and the link's age: one comparison of the whole, and who has a wrong one learns nothing."""
    compared: list[tuple[bytes, bytes]] = []
    compare = hmac.compare_digest

    def seen(expected: bytes, given: bytes) -> bool:
        compared.append((expected, given))
        return compare(expected, given)

    monkeypatch.setattr(hmac, "compare_digest", seen)
    image_id, ext, expires, signature = parts(SIGNER.sign("0123456789a", "png", 1000))
    for wrong in ("", "x", signature[:-1], "A" + signature[1:], signature + "A", "é" * 43):
        for now in (0, 2000):
            compared.clear()
            with pytest.raises(LinkRefused) as caught:
                SIGNER.verify(image_id, ext, expires, wrong, now=now)
            assert caught.value.reason == "invalid"
            ((expected, _),) = compared
            assert expected == signature.encode()


def test_a_version_is_part_of_what_is_signed() -> None:
    image_id, ext, expires, signature = parts(SIGNER.sign("0a", "png", 1_790_000_000, 2))
    assert re.fullmatch(r"2\.[A-Za-z0-9_-]{43}", signature)
    bare = signature.removeprefix("2.")
    for other in (
        bare,
        f"1.{bare}",
        f"3.{bare}",
        f"02.{bare}",
        f"0.{bare}",
        f".{bare}",
        f"2.2.{bare}",
    ):
        assert refused((image_id, ext, expires, other)) == "invalid"


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(ValueError, match="secret"):
        LinkSigner(b"short")
