"""Asking a provider: one request, again where that is free, and polled until it is done. Knows no order and no image.

What is sent again, and what never: a request of which nothing left this machine, and one that was answered by
401, 402, 403, 429 or 503, or by a code for a key that may not or has no money, drew nothing. After anything else (a timeout, a cut connection, 500, an answer that
makes no sense) the provider may have been paid, so that nobody is asked again.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from danqing.backends import RelayRow
from danqing.dialects.answers import NO_MONEY, SHUT_OUT, read_object, retry_after_s, words
from danqing.dialects.client import Incoming, Outgoing, Pending, ProviderResult, Target
from danqing.domain.errors import (
    Busy,
    ContentRefused,
    DanqingError,
    ProviderFailed,
    RequestError,
    WaiverRequired,
)
from danqing.domain.task import Delivery, Event, ImageTask, Relayed, Stepped
from danqing.net.errors import OutboundError, OutboundRefused, OutboundUnsent
from danqing.net.outbound import Outbound
from danqing.net.policy import Policy
from danqing.observability.logging import get_logger
from danqing.observability.metrics import Metrics
from danqing.providers.answers import Answers, Held, received
from danqing.providers.blame import Caller
from danqing.providers.forms import encode_form
from danqing.providers.results import IMAGE_BYTES_MAX
from danqing.providers.streamed import Look, Streamed
from danqing.providers.upstream import (
    KEY_OFF_S,
    KEY_POOR_S,
    RATE_LIMITED,
    Breaker,
    Key,
    KeyRing,
    Untaken,
    no_key,
)

log = get_logger(__name__)

TRIES_MAX = 3
"""Requests of which nothing was sent, or that met a 503."""
_FIRST_WAIT_S = 0.2
_POLL_FAULTS_MAX = 5
_POLL_S_MAX = 5.0
_CANCEL_S_MAX = 5.0
_LATE = frozenset({408, 499})
"""What proxies answer when they lose patience: whoever is behind them may be drawing."""
_ANSWER_BYTES = 2**20
"""Of an answer beside its images."""
ID_CHARS_MAX = 200
"""Of a provider's id of a request or task."""
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,99}")
_SAID_BYTES_MAX = 65536
"""Of an error that is no JSON: far more than its words are clipped to, so that no half of a key stays."""

Emit = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class Part:
    """One request to the provider: some of a task's images."""

    task: ImageTask
    delivery: Delivery
    target: Target
    places: Sequence[int]
    """The images' indices in the order's task."""
    seeds: Sequence[int]
    seeded: bool
    caller: Caller
    held: Held
    """The memory that its answer takes."""
    look: Look | None = None
    """Who is shown looks at its one unfinished image, where the provider streams them."""


class Asker:
    """One provider, with its keys and its health."""

    def __init__(
        self,
        name: str,
        row: RelayRow,
        keys: Sequence[tuple[str, int]],
        outbound: Outbound,
        metrics: Metrics,
        answers: Answers,
    ) -> None:
        self._name = name
        self.row = row
        self.client = row.client()
        self.ring = KeyRing(name, keys)
        self.breaker = Breaker()
        self._outbound = outbound
        self._metrics = metrics
        self._answers = answers
        self._policy = Policy.operator([row.host])

    async def ask(self, part: Part, emit: Emit) -> ProviderResult:
        """The provider's result, however long it takes to make one. Raises Untaken, DanqingError."""
        end = time.monotonic() + self.row.timeout_s
        started = time.perf_counter()
        outcome = "cancelled"
        try:
            answer, key, streamed = await self._answered(part, end, emit)
            try:
                if streamed is not None and streamed.begun:
                    result = streamed.result()
                else:
                    result = await self._answers.read(self.client.decode_result, answer, part.task)
                if isinstance(result, Pending):
                    result = await self._polled(result, key, part, end)
            except DanqingError as error:
                emit(self._refusal(answer, error))
                raise part.caller.hears(error, self._name) from error
            outcome = "ok"
            return result
        except (Untaken, DanqingError) as error:
            outcome = error.error.code if isinstance(error, Untaken) else error.code
            raise
        finally:
            self.breaker.left()
            self._metrics.upstream_requests.labels(self._name, outcome).inc()
            self._metrics.upstream_seconds.labels(self._name).observe(time.perf_counter() - started)

    async def _answered(
        self, part: Part, end: float, emit: Emit
    ) -> tuple[Incoming, Key, Streamed | None]:
        """An answer that is no error, the key it came for, and what it streamed; asks again where that is free."""
        outgoing = self.client.encode_request(part.task, part.delivery, part.target)
        tried: list[Key] = []
        failures = 0

        def told(step: int) -> None:
            """Of the one step that a relay's image has."""
            for place in part.places:
                emit(Stepped(place, step, 1))

        while True:
            self.breaker.admit()
            key = self.ring.take(tried)
            if key is None:
                self.breaker.left()
                raise no_key(self.ring)

            streamed = self._streamed(part, key)
            try:
                answer = await self._request(outgoing, key, part, end, partial(told, 1), streamed)
            except OutboundUnsent as error:
                self.breaker.failed()
                failures += 1
                if not await self._may_wait(failures, end):
                    raise Untaken(
                        ProviderFailed("The provider of this model cannot be reached.")
                    ) from error
                continue
            error = await self._answers.read(self.client.decode_error, answer)
            if error is None:
                self.breaker.worked()
                return answer, key, streamed
            log.warning(
                "provider_refused",
                backend=self._name,
                status=answer.status,
                code=error.code,
                upstream_id=_request_id(answer),  # and never its words: it may quote the prompt
            )
            if _is_undrawn(answer, error):
                told(0)  # who leaves now owes nothing for it
            if answer.status >= 500:
                self.breaker.failed()
            else:
                self.breaker.worked()
            if self._rests(key, answer, error):
                tried.append(key)
                if self.ring.take(tried) is not None:
                    continue
            elif answer.status == 503:
                failures += 1
                if await self._may_wait(failures, end):
                    continue
            emit(self._refusal(answer, error))
            heard = part.caller.hears(error, self._name)
            raise Untaken(heard) if _is_free(answer, heard) else heard

    def _streamed(self, part: Part, key: Key) -> Streamed | None:
        if part.look is None:
            return None
        return Streamed(
            *(self.client, self._answers, part.held, part.look),
            secret=key.secret,
            looks_max=part.delivery.partial_images,
            event_bytes_max=_ANSWER_BYTES + IMAGE_BYTES_MAX * 4 // 3,
            idle_s=self.row.idle_timeout_s,
        )

    def _rests(self, key: Key, answer: Incoming, error: DanqingError) -> bool:
        """Whether an error is one key's alone; that key rests then."""
        if answer.status == 401:
            self.ring.rest(key, KEY_OFF_S, "unauthorized")
        elif isinstance(error, Busy):
            self.ring.rest(key, max(1.0, retry_after_s(answer.headers)), RATE_LIMITED)
        elif _is_ours(error) or (
            isinstance(error, ProviderFailed) and answer.status in (402, 403, 429)
        ):  # DashScope says 400 to who owes, Zhipu 434 to whom it does not let in
            self.ring.rest(key, KEY_POOR_S, "quota_or_permission")
        else:
            return False
        return True

    async def _may_wait(self, failures: int, end: float) -> bool:
        """Wait a little before trying again; False where that has been enough."""
        wait_s = _FIRST_WAIT_S * 4 ** (failures - 1)
        if failures >= TRIES_MAX or time.monotonic() + wait_s >= end:
            return False
        await asyncio.sleep(wait_s)
        return True

    async def _request(
        self,
        outgoing: Outgoing,
        key: Key,
        part: Part,
        end: float,
        on_sent: Callable[[], None] | None,
        streamed: Streamed | None = None,
    ) -> Incoming:
        """One exchange. Raises OutboundUnsent; ProviderFailed where the provider may have been paid."""
        headers = {"accept": "application/json", **outgoing.headers}
        content = b""
        if outgoing.json is not None:
            content = json.dumps(outgoing.json, ensure_ascii=False).encode()
            headers["content-type"] = "application/json"
        elif outgoing.form is not None:
            content, headers["content-type"] = encode_form(outgoing.form)
        if key.text is not None:
            headers["authorization"] = f"Bearer {key.text}"
        part.held.begin()
        images = part.task.n + part.delivery.partial_images
        try:
            reply = await self._outbound.request(
                outgoing.method,
                self.row.base_url.rstrip("/") + outgoing.path,
                policy=self._policy,
                headers=headers,
                content=content,
                timeout_s=max(0.1, end - time.monotonic()),
                bytes_max=_ANSWER_BYTES + images * IMAGE_BYTES_MAX * 4 // 3,
                on_sent=on_sent,
                on_body=part.held.hear,
                listener=streamed,
            )
        except OutboundUnsent:
            raise
        except OutboundRefused as error:
            raise Untaken(ProviderFailed("The provider's address is not allowed.")) from error
        except OutboundError as error:
            if streamed is not None and streamed.is_over:  # all that counts of it has come
                return received(200, streamed.headers, streamed.refusal, key.secret)
            self.breaker.failed()
            log.warning("provider_failed", backend=self._name, reason=error.message)
            raise ProviderFailed("The provider of this model gave no complete answer.") from error
        body = streamed.refusal if streamed is not None and streamed.begun else reply.content
        return received(reply.status, reply.headers, body, key.secret)

    async def _polled(self, pending: Pending, key: Key, part: Part, end: float) -> ProviderResult:
        """Ask how a background task stands until it is over. Cancelled, it cancels the provider's too."""
        faults = 0
        try:
            while True:
                wait_s = min(max(pending.after_s, 0.05), _POLL_S_MAX)
                if time.monotonic() + wait_s >= end:
                    await self._cancel(pending, key, part)
                    raise ProviderFailed("The provider of this model took too long.")
                await asyncio.sleep(wait_s)
                # Asking is free: a question that came to nothing says nothing about the task.
                answer = await self._polled_once(pending, key, part, end)
                if answer is None:
                    faults += 1
                    if faults >= _POLL_FAULTS_MAX:
                        raise ProviderFailed("The provider of this model lost its task.")
                    continue
                result = await self._answers.read(self.client.decode_result, answer, part.task)
                faults = 0
                if isinstance(result, ProviderResult):
                    return replace(result, upstream_id=result.upstream_id or pending.upstream_id)
                if result.upstream_id:
                    pending = result
        except asyncio.CancelledError:
            await self._cancel(pending, key, part)
            raise

    async def _polled_once(
        self, pending: Pending, key: Key, part: Part, end: float
    ) -> Incoming | None:
        try:
            answer = await self._request(pending.poll, key, part, end, None)
        except (
            OutboundUnsent,
            ProviderFailed,
            Untaken,
        ):  # it has the task, whatever became of the question
            return None
        return None if answer.status == 429 or answer.status >= 500 else answer

    async def _cancel(self, pending: Pending, key: Key, part: Part) -> None:
        if pending.cancel is None:
            return
        end = time.monotonic() + _CANCEL_S_MAX
        with suppress(OutboundError, DanqingError, Untaken):
            await self._request(pending.cancel, key, part, end, None)

    def _refusal(self, answer: Incoming, error: DanqingError) -> Relayed:
        return Relayed(
            backend=self._name,
            upstream_id=answer.headers.get("x-request-id", "")[:ID_CHARS_MAX] or None,
            refusal=_said(answer) or error.message,
        )


def _request_id(answer: Incoming) -> str | None:
    """The provider's id of a request for the log, where it looks like one."""
    found = answer.headers.get("x-request-id", "")
    return found if _ID.fullmatch(found) else None


def _is_free(answer: Incoming, error: DanqingError) -> bool:
    """Whether an error answer says for certain that nothing was drawn, and another provider may do better."""
    callers = isinstance(error, ContentRefused | RequestError | WaiverRequired)
    return not callers and _is_undrawn(answer, error)


def _is_undrawn(answer: Incoming, error: DanqingError) -> bool:
    """Whether an error answer says for certain that nothing was drawn."""
    refused = 400 <= answer.status < 500 and answer.status not in _LATE
    return refused or answer.status == 503 or isinstance(error, Busy) or _is_ours(error)


def _is_ours(error: DanqingError) -> bool:
    """Whether a provider turned our key away; draw's and jimeng's say so with HTTP 200."""
    return isinstance(error, ProviderFailed) and error.message in (NO_MONEY, SHUT_OUT)


def _said(answer: Incoming) -> str:
    """The provider's own words of an error, for the log and the task's row."""
    body = read_object(answer)
    if body is None:
        return words(answer.plain(answer.body[:_SAID_BYTES_MAX].decode("utf-8", "replace")))
    return words(json.dumps(body, ensure_ascii=False))
