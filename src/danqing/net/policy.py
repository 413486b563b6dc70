"""Where an outgoing call may go: URLs, hosts and addresses. Opens no connection and asks no name server."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import httpx2

from danqing.net.errors import OutboundRefused

URL_CHARS_MAX = 8192
_HOST = re.compile(r"[a-z0-9_:][a-z0-9._:-]{0,252}", re.ASCII)
PORTS = {"http": 80, "https": 443}

# Not globally reachable by IANA's IPv4 and IPv6 special-purpose address registries, and multicast.
# 192.88.99.0/24 is the retired 6to4 relay; 168.63.129.16 looks public and is Azure's own metadata.
_NOT_PUBLIC_V4 = [
    ipaddress.IPv4Network(network)
    for network in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "168.63.129.16/32"),
        *("169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24"),
        *("192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24"),
        *("224.0.0.0/4", "240.0.0.0/4"),
    )
]
# Global unicast is 2000::/3 (RFC 4291 section 2.4): loopback, unique local, link-local, multicast,
# IPv4-mapped and IPv4-compatible lie outside. Within: Teredo and other protocols, documentation, 6to4.
_PUBLIC_V6 = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC_V6 = [
    ipaddress.IPv6Network(network)
    for network in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
]
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: the last 32 bits are the IPv4 address


@dataclass(frozen=True, slots=True)
class Policy:
    """Where a request may go: `hosts` at any address; all others at public ones, or not at all.

    An entry of `hosts` is `host` (any port) or `host:port`; a bare IPv6 address will do. The rest
    is reached on ports 80 and 443 alone: a firewall may trust this server's own address, so that a
    user's URL must not knock at the databases behind it, public addresses or not.
    """

    hosts: frozenset[str]
    others_if_public: bool

    @classmethod
    def public(cls, hosts: Iterable[str] = ()) -> Policy:
        """For URLs from users. Raises ValueError for an entry of `hosts` that is no host."""
        return cls(frozenset(map(_host_key, hosts)), others_if_public=True)

    @classmethod
    def operator(cls, hosts: Iterable[str]) -> Policy:
        """For what the operator configured, loopback included. Raises ValueError like `public`."""
        return cls(frozenset(map(_host_key, hosts)), others_if_public=False)


def is_public(address: str) -> bool:
    """True for the text of an IP address that anyone on the Internet may be reached at."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv4Address):
        return not any(ip in network for network in _NOT_PUBLIC_V4)
    if ip in _NAT64:
        return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
    return ip in _PUBLIC_V6 and not any(ip in network for network in _NOT_PUBLIC_V6)


def check_url(url: str, policy: Policy) -> None:
    """Refuse early what can be known without DNS; a request checks again. Raises OutboundRefused."""
    public_only(parse_url(url), policy)


@lru_cache(256)
def parse_url(url: str, base: httpx2.URL | None = None) -> httpx2.URL:
    """`url` taken apart, relative to `base`. Raises OutboundRefused for what is no http(s) URL."""
    if len(url) > URL_CHARS_MAX:
        raise OutboundRefused(f"The URL is longer than {URL_CHARS_MAX} characters.")
    try:
        parsed = base.join(url) if base else httpx2.URL(url)
    except (httpx2.InvalidURL, ValueError) as error:
        raise OutboundRefused("The URL is malformed.") from error
    if parsed.scheme not in PORTS:
        raise OutboundRefused("The URL is not http or https.")
    if parsed.userinfo:
        raise OutboundRefused("The URL holds a user name or password.")
    if not _valid_host_and_port(parsed):
        raise OutboundRefused("The URL has no valid host and port.")
    return parsed


def public_only(url: httpx2.URL, policy: Policy) -> bool:
    """True when only public addresses will do, False for a host named by the operator.

    Raises OutboundRefused. Literal addresses are judged here, also those written like 0x7f.1 or
    2130706433, and so is localhost; other names are left to whoever resolves them.
    """
    host = url.raw_host.decode()
    port = url.port or PORTS[url.scheme]
    bracketed = f"[{host}]" if ":" in host else host
    if bracketed in policy.hosts or f"{bracketed}:{port}" in policy.hosts:
        return False
    if not policy.others_if_public:
        raise OutboundRefused(f"'{host}' is not among the configured hosts.")
    if port not in PORTS.values():
        raise OutboundRefused("Only the ports 80 and 443 are allowed.")
    if (
        host.rstrip(".").rpartition(".")[2] == "localhost"
    ):  # RFC 6761 section 6.3: never anything else
        raise OutboundRefused(f"'{host}' is not a public host.")
    try:
        found = socket.getaddrinfo(host, None, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return True
    if not all(is_public(str(sockaddr[0])) for *_, sockaddr in found):
        raise OutboundRefused(f"'{host}' is not a public host.")
    return True


def _host_key(entry: str) -> str:
    """An operator's `host`, `host:port` or bare IPv6 address as `public_only` looks it up."""
    bare_v6 = entry.count(":") > 1 and not entry.startswith("[")
    try:
        # A made-up scheme: it has no default port, which would be dropped.
        url = httpx2.URL(f"host://[{entry}]" if bare_v6 else f"host://{entry}")
    except httpx2.InvalidURL as error:
        raise ValueError(f"'{entry}' is not a host.") from error
    key = url.netloc.decode()
    if not _valid_host_and_port(url) or str(url) != f"host://{key}":
        raise ValueError(f"'{entry}' is not a host.")
    return key


def _valid_host_and_port(url: httpx2.URL) -> bool:
    host_ok = _HOST.fullmatch(url.raw_host.decode()) is not None
    return host_ok and (url.port is None or 0 < url.port < 65536)
