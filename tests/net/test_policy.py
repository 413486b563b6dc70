"""Where a call may go: addresses against Python's own tables, and URLs however they are written."""

from __future__ import annotations

import ipaddress
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from danqing.net.errors import OutboundRefused
from danqing.net.policy import Policy, check_url, is_public

PUBLIC = Policy.public()
V4 = st.ip_addresses(v=4)
V6 = st.one_of(
    st.ip_addresses(v=6),
    st.integers(0, 2**125 - 1).map(lambda n: ipaddress.IPv6Address(1 << 125 | n)),
)

# Refused by us and global to Python's tables (3.11): retired relays, metadata, whole protocol blocks.
STRICTER = [
    ipaddress.ip_network(text)
    for text in (
        *("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32"),
        *("2001::/23", "2002::/16", "3fff::/20"),
    )
]


@given(V4)
@example(ipaddress.IPv4Address("100.64.0.1"))
@example(ipaddress.IPv4Address("100.127.255.255"))
@example(ipaddress.IPv4Address("100.128.0.0"))
@example(ipaddress.IPv4Address("169.254.169.254"))
@example(ipaddress.IPv4Address("223.255.255.255"))
def test_ipv4_is_public_where_python_says_global_unicast(ip: ipaddress.IPv4Address) -> None:
    stricter = any(ip in network for network in STRICTER if network.version == 4)
    assert is_public(str(ip)) == (ip.is_global and not ip.is_multicast and not stricter)


@given(V6)
def test_ipv6_is_public_where_python_says_global_unicast(ip: ipaddress.IPv6Address) -> None:
    if ip in ipaddress.ip_network("64:ff9b::/96"):
        return
    unicast = int(ip) >> 125 == 1  # 2000::/3, all that is given out
    stricter = any(ip in network for network in STRICTER if network.version == 6)
    assert is_public(str(ip)) == (unicast and ip.is_global and not stricter)


@given(V4)
@example(ipaddress.IPv4Address("127.0.0.1"))
@example(ipaddress.IPv4Address("10.0.0.1"))
@example(ipaddress.IPv4Address("8.8.8.8"))
def test_an_ipv4_address_gains_nothing_in_an_ipv6_one(ip: ipaddress.IPv4Address) -> None:
    inside = int(ip)
    assert is_public(str(ipaddress.IPv6Address((0x64FF9B << 96) + inside))) == is_public(str(ip))
    for wrapped in (
        inside,  # IPv4-compatible
        0xFFFF << 32 | inside,  # IPv4-mapped
        0x2002 << 112 | inside << 80,  # 6to4
        0x20010000 << 96 | inside ^ 0xFFFFFFFF,  # Teredo
        0x64FF9B0001 << 80 | inside,  # NAT64 of a local network
    ):
        assert not is_public(str(ipaddress.IPv6Address(wrapped)))


def test_scoped_addresses_are_not_public() -> None:
    assert not is_public("fe80::1%eth0")


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://127.1/",
        "http://localhost/",
        "http://LOCALHOST./",
        "http://a.localhost/",
        "http://0x7f.1/",
        "http://0177.0.0.1/",
        "http://2130706433/",
        "http://0/",
        "http://10.0.0.8/",
        "http://169.254.169.254/latest/meta-data/",
        "http://100.100.100.200/",
        "http://[::1]/",
        "http://[::]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:8.8.8.8]/",
        "http://[::7f00:1]/",
        "http://[64:ff9b::a00:1]/",
        "http://[2002:7f00:1::]/",
        "http://[fd00:ec2::254]/",
        "http://[fe80::1%25eth0]/",
        "http://01.2.3.4/",
        "http://１２７.0.0.1/",
        "http://%31%32%37.0.0.1/",
        "http://example.com:22/",
        "http://example.com:8080/",
        "http://example.com:0/",
        "http://example.com:99999/",
        "http://example.com:x/",
        "http://user@example.com/",
        "http://user:secret@example.com/",
        "http://example.com\\@127.0.0.1/",
        "ftp://example.com/",
        "file:///etc/passwd",
        "gopher://example.com/",
        "//example.com/",
        "example.com",
        "",
        "http://",
        "http:///path",
        "http://.example.com/",
        "http://exa mple.com/",
        "http://example.com/\n",
        "http://example.com/" + "a" * 9000,
    ],
)
def test_refused(url: str) -> None:
    with pytest.raises(OutboundRefused):
        check_url(url, PUBLIC)


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/hook?a=1",
        "http://example.com:443/",
        "HTTPS://EXAMPLE.COM:443/",
        "https://例子.中国/回调",
        "http://8.8.8.8/",
        "http://[2606:4700::1111]/",
        "http://[64:ff9b::8.8.8.8]/",
        "https://xn--made-up-99999999/",
    ],
)
def test_allowed(url: str) -> None:
    check_url(url, PUBLIC)


@given(st.text(max_size=60))
def test_any_text_is_allowed_or_refused(text: str) -> None:
    """No text brings up another error."""
    for url in (text, f"http://{text}"):
        with suppress(OutboundRefused):
            check_url(url, PUBLIC)


def test_operator_hosts() -> None:
    policy = Policy.operator(["127.0.0.1", "gpu.local:9000", "::1", "例子.中国", "[fd00::1]:80"])
    for url in (
        "http://127.0.0.1:5000/",
        "https://127.0.0.1/",
        "http://GPU.local:9000/",
        "http://[::1]:77/",
        "http://例子.中国/",
        "http://xn--fsqu00a.xn--fiqs8s/",
        "http://[fd00::1]/",
    ):
        check_url(url, policy)
    for url in (
        "http://127.0.0.2/",
        "http://gpu.local/",
        "http://gpu.local.:9000/",
        "http://evil.gpu.local:9000/",
        "https://[fd00::1]/",
        "https://example.com/",
    ):
        with pytest.raises(OutboundRefused):
            check_url(url, policy)
    check_url("https://example.com/", Policy.public(["gpu.local:9000"]))
    check_url("http://gpu.local:9000/", Policy.public(["gpu.local:9000"]))


@pytest.mark.parametrize(
    "entry", ["", "http://a", "a/b", "a?b", "user@a", "a b", "a:x", "a:99999", "*", "a:1:2"]
)
def test_what_is_no_host_is_no_entry(entry: str) -> None:
    with pytest.raises(ValueError, match="is not a host"):
        Policy.operator([entry])
