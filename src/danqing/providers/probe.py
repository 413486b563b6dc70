"""Asking a provider whether it is there and takes our keys, without having anything drawn. Knows no task and no money."""

from __future__ import annotations

from collections.abc import Sequence

from danqing.backends import RelayRow
from danqing.net.errors import OutboundFailed, OutboundRefused
from danqing.net.outbound import Outbound
from danqing.net.policy import Policy

TIMEOUT_S = 10.0


async def probe(row: RelayRow, keys: Sequence[str], outbound: Outbound) -> tuple[bool, str]:
    """Whether the provider would take a request by each of the keys, as far as a free one tells, and in words why.

    `GET {base_url}/models` is asked: providers that have no such list answer 404, which tells that they are
    there and nothing of the key. TIMEOUT_S for each key at most.
    """
    url = row.base_url.rstrip("/") + "/models"
    told = list[str]()
    for at, key in enumerate(keys or [""], 1):
        which = f"key {at}: " if len(keys) > 1 else ""
        headers = {"authorization": f"Bearer {key}"} if key else {}
        try:
            reply = await outbound.request(
                "GET",
                url,
                policy=Policy.operator([row.host]),
                headers=headers | {"accept": "application/json"},
                timeout_s=TIMEOUT_S,
                bytes_max=0,
            )
        except (OutboundRefused, OutboundFailed) as error:
            return False, f"{which}no answer from {row.host}: {error}"
        fault = _fault(reply.status)
        if fault is not None:
            return False, f"{which}GET {url} answers {reply.status}: {fault}"
        unsure = (
            "" if reply.status < 300 else f" ({reply.status}: whether the key is good is not known)"
        )
        told.append(f"{which}it answers{unsure}")
    return True, "; ".join(told)


def _fault(status: int) -> str | None:
    if status in (401, 403):
        return "it does not take the key" if status == 401 else "it does not let the key in"
    if 300 <= status < 400:
        return "it sends us elsewhere, which is not followed"
    return "it is in trouble" if status >= 500 else None
