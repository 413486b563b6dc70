"""Asking a service that the operator configured, in JSON, with its key, in bounded time. Knows no moderation, no prompt."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any, cast
from urllib.parse import urlsplit

from danqing.net.errors import OutboundError
from danqing.net.outbound import Outbound
from danqing.net.policy import Policy

ANSWER_BYTES_MAX = 1_000_000
_AGAIN_S = 0.2


class RemoteFailed(Exception):
    """No answer that makes sense, in time. The text says why in a word or two, and holds nothing of what was asked."""


class Remote:
    """One service behind one base URL."""

    def __init__(
        self,
        base_url: str,
        key: str | None,
        outbound: Outbound,
        *,
        timeout_s: float,
        tries: int = 1,
    ) -> None:
        """`tries`: how often at most it is asked within `timeout_s`, where no answer came or a 429 or 5xx."""
        url = urlsplit(base_url)
        port = url.port or (443 if url.scheme == "https" else 80)
        self._base_url = base_url.rstrip("/")
        self._policy = Policy.operator([f"{url.hostname}:{port}"])
        self._headers = {"content-type": "application/json", "accept": "application/json"}
        if key:
            self._headers["authorization"] = f"Bearer {key}"
        self._outbound = outbound
        self._timeout_s = timeout_s
        self._tries = tries

    async def post(self, path: str, body: Mapping[str, Any]) -> Mapping[str, object]:
        """The JSON object that answers. Raises RemoteFailed."""
        content = json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
        try:
            async with asyncio.timeout(self._timeout_s):
                for left in reversed(range(self._tries)):
                    try:
                        return await self._post(path, content)
                    except _Again:
                        if not left:
                            raise
                        await asyncio.sleep(_AGAIN_S)
        except TimeoutError:
            raise RemoteFailed("timeout") from None
        raise AssertionError("unreachable")

    async def _post(self, path: str, content: bytes) -> Mapping[str, object]:
        try:
            reply = await self._outbound.request(
                "POST",
                self._base_url + path,
                policy=self._policy,
                headers=self._headers,
                content=content,
                timeout_s=self._timeout_s,
                bytes_max=ANSWER_BYTES_MAX,
            )
        except OutboundError as error:
            raise _Again(error.code) from None
        if reply.status != 200:
            kind = _Again if reply.status == 429 or reply.status >= 500 else RemoteFailed
            raise kind(f"status {reply.status}")
        try:
            answer = json.loads(reply.content)
        except (ValueError, RecursionError):
            raise RemoteFailed("no JSON") from None
        if not isinstance(answer, dict):
            raise RemoteFailed("no object")
        return cast("dict[str, object]", answer)


class _Again(RemoteFailed):
    """Asking again may help."""
