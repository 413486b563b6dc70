"""Writing answers: replies of the dialects, and the x-danqing-* headers. Knows HTTP; nothing of any dialect."""

from __future__ import annotations

import json
import math
import time

from starlette.responses import Response

from danqing.dialects.base import Dialect, Reply
from danqing.domain.errors import BodyTooLarge, BodyTooSlow, DanqingError
from danqing.domain.task import Delivery, TaskReport
from danqing.service.calls import Accepted, Call, Outcome
from danqing.service.ratelimit import Taken

_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def respond(reply: Reply, headers: dict[str, str] | None = None) -> Response:
    """A reply as JSON in UTF-8."""
    return Response(
        _JSON.encode(reply.body).encode("utf-8"),
        status_code=reply.status,
        headers=reply.headers | (headers or {}),
        media_type="application/json",
    )


def refuse(
    dialect: Dialect,
    error: DanqingError,
    request_id: str,
    delivery: Delivery | None = None,
    *,
    close: bool = False,
) -> Response:
    """An error in the dialect's own shape; `close` ends the connection, its body unread."""
    unread = isinstance(error, BodyTooLarge | BodyTooSlow)
    headers = {"connection": "close"} if close or unread else {}
    return respond(dialect.encode_error(error, request_id, delivery), headers)


def facts(call: Call, outcome: Outcome) -> dict[str, str]:
    """What was really done, one header each; a list has one entry per image, in the answer's order."""
    backend = outcome.backend or call.card.backend
    headers = {
        "x-danqing-task": outcome.task_id,
        "x-danqing-model": f"{backend.name}; stand-in" if backend.stand_in else backend.name,
        "x-danqing-size": str(outcome.result.delivered[0].size),
        "x-danqing-charged": str(outcome.charged),
        "x-danqing-timing": ", ".join(
            f"{stage};dur={outcome.timing_ms[stage]:.1f}" for stage in outcome.timing_ms
        ),
        "openai-processing-ms": str(round((time.time() - call.received_s) * 1000)),
    }
    if backend.name != call.card.backend.name:
        headers["x-danqing-fallback"] = f"for {call.card.backend.name}"
    if outcome.seeds:
        headers["x-danqing-seed"] = ",".join(str(image.seed) for image in outcome.result.delivered)
    if outcome.replayed:
        headers["idempotent-replayed"] = "true"
    headers |= extended(outcome.extension)
    return headers | rate_left(outcome.rate) | notes(call.delivery)


def rate_left(rate: Taken | None) -> dict[str, str]:
    """What is left of the token's rate limit, as OpenAI names it; the reset is a duration."""
    if rate is None:
        return {}
    return {
        "x-ratelimit-limit-requests": str(rate.limit),
        "x-ratelimit-remaining-requests": str(rate.remaining),
        "x-ratelimit-reset-requests": f"{math.ceil(rate.reset_s)}s",
    }


def accepted(call: Call, outcome: Accepted) -> Response:
    """202 for a task that is drawn in the background (RFC 7240: Prefer: respond-async)."""
    return Response(
        json.dumps({"id": outcome.task_id, "object": "image.task", "status": "queued"}).encode(),
        status_code=202,
        headers={
            "location": f"/v1/images/tasks/{outcome.task_id}",
            "preference-applied": "respond-async",
            "x-danqing-task": outcome.task_id,
        }
        | rate_left(outcome.rate)
        | notes(call.delivery),
        media_type="application/json",
    )


def accepted_natively(dialect: Dialect, call: Call, outcome: Accepted, request_id: str) -> Response:
    """The answer of a provider's own asynchronous route: the dialect says where to ask again."""
    report = TaskReport(
        task_id=outcome.task_id,
        model=call.card.name,
        state="queued",
        created_ms=round(call.received_s * 1000),
        prompt=call.task.prompt,
        client_request_id=call.task.client_request_id,
        delivery=call.delivery,
    )
    headers = {"x-danqing-task": outcome.task_id} | rate_left(outcome.rate)
    headers |= notes(call.delivery)
    return respond(dialect.encode_accepted(report, request_id), headers)


def extended(how: str | None) -> dict[str, str]:
    """How the prompt was extended, or why the original was drawn; nothing where that was not asked for, or is not known yet."""
    return {} if how is None else {"x-danqing-extension": how}


def notes(delivery: Delivery) -> dict[str, str]:
    """Parameters that were accepted but changed: said, never silent."""
    notes = {
        "x-danqing-ignored": ",".join(delivery.ignored),
        "x-danqing-truncated": ",".join(delivery.truncated),
    }
    return {name: value for name, value in notes.items() if value}
