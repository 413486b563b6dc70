"""Streams that a provider sends to a relay: looks on the way, and whatever a stream can do wrong."""

from __future__ import annotations

import asyncio
import base64
import json
from contextlib import aclosing, suppress
from dataclasses import replace
from io import BytesIO
from typing import Any

import pytest
from PIL import Image

from danqing.domain import errors
from danqing.domain.task import Drawn, Failed, ImageSource, InputImage, Preview, Relayed
from danqing.providers import streamed
from danqing.providers.upstream import Untaken
from tests.net.servers import Answer, Received, run
from tests.providers.provider_server import (
    SIZE,
    Bench,
    bench,
    error,
    inline,
    picture,
    says,
    shades,
)

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-Request-Id: up-7\r\n"


def event(kind: str, **data: Any) -> bytes:
    body = json.dumps({"type": kind} | data)
    return f"event: {kind}\ndata: {body}\n\n".encode()


def b64(shade: int) -> str:
    return base64.b64encode(picture(shade)).decode()


def look(number: int, shade: int, what: str = "image_generation") -> bytes:
    return event(f"{what}.partial_image", b64_json=b64(shade), partial_image_index=number)


def whole(shade: int, what: str = "image_generation") -> bytes:
    return event(f"{what}.completed", b64_json=b64(shade), usage={"total_tokens": 9})


ENDS, CUT, STAYS, DRIPS = "ends", "cut", "stays", "drips"


def streaming(*pieces: bytes, end: str = ENDS, head: bytes = HEAD) -> Answer:
    """A stream that ends as it should, is cut, just stops and stays open, or says for good that it is there."""

    async def write(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(head + b"Transfer-Encoding: chunked\r\n\r\n")
        for piece in pieces:
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await writer.drain()
        if end == ENDS:
            writer.write(b"0\r\n\r\n")
        elif end == CUT:
            writer.close()
        elif end == DRIPS:
            while True:
                await asyncio.sleep(0.05)
                writer.write(b"8\r\n: ping\n\n\r\n")
                await writer.drain()
        else:
            await asyncio.sleep(3600)

    return write


async def endless(_: Received, writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + b"\r\ndata: ")
    while True:
        writer.write(b"x" * 65536)
        await writer.drain()


async def chatty(_: Received, writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + b"\r\n")
    while True:
        writer.write(event("image_generation.working") * 100)
        await writer.drain()


async def drawn(far: Bench, previews: int = 2, **changes: Any) -> list[Any]:
    order = replace(far.order(**changes), previews=previews)
    if order.task.references:
        order = replace(order, references=(InputImage(picture(), "png", SIZE),))
    async with aclosing(far.relay.draw(order)) as drawing:
        return [one async for one in drawing]


def looks(events: list[Any]) -> list[tuple[int, int, int]]:
    """Place, number and colour of each."""
    found = [one for one in events if isinstance(one, Preview)]
    return [(one.index, one.number, int(one.pixels[0, 0, 0])) for one in found]


@pytest.mark.parametrize("edit", [False, True])
def test_looks_come_before_the_image(edit: bool) -> None:
    async def test() -> None:
        what = "image_edit" if edit else "image_generation"
        sent = streaming(look(0, 10, what), b": still here\n\n", look(1, 20, what), whole(30, what))
        async with bench(sent, extras=["stream"]) as far:
            references = (ImageSource("image", data=b"x"),) if edit else ()
            events = await drawn(far, references=references)
            assert looks(events) == [(0, 0, 10), (0, 1, 20)]
            assert shades(events) == {0: 30}
            assert [type(one) for one in events[-4:]] == [Preview, Preview, Relayed, Drawn]
            relayed = events[-2]
            assert (relayed.upstream_id, relayed.usage) == ("up-7", {"total_tokens": 9})
            body = far.provider.posts[0].body
            if edit:
                assert b'name="stream"\r\n\r\ntrue\r\n' in body
                assert b'name="partial_images"\r\n\r\n2\r\n' in body
            else:
                assert far.provider.asked[0]["stream"] is True
                assert far.provider.asked[0]["partial_images"] == 2
            # Its connection serves the next one.
            await drawn(far, references=references)
            assert far.provider.server.connections == 1
            assert far.relay._answers.taken == 0  # type: ignore[attr-defined]

    run(test)


def test_only_who_is_known_to_stream_is_asked_to() -> None:
    async def test() -> None:
        async with bench(inline(5)) as far:
            assert shades(await drawn(far)) == {0: 5}
            assert "stream" not in far.provider.asked[0]
        async with bench(inline(5), extras=["stream"]) as far:
            await drawn(far, previews=0)
            assert "stream" not in far.provider.asked[0]
            # Who answers at once all the same is read like any other.
            assert shades(await drawn(far)) == {0: 5}
            assert far.provider.asked[1]["stream"] is True

    run(test)


def test_a_look_is_no_larger_than_looks_are() -> None:
    async def test() -> None:
        grey = BytesIO()
        Image.new("L", (3000, 3000)).save(grey, "PNG")
        huge = base64.b64encode(grey.getvalue()).decode()
        sent = event("image_generation.partial_image", b64_json=huge)
        async with bench(streaming(sent, look(1, 20), whole(30)), extras=["stream"]) as far:
            events = await drawn(far)
            assert looks(events) == [(0, 1, 20)]
            assert shades(events) == {0: 30}

    run(test)


def test_each_image_is_its_own_stream() -> None:
    """OpenAI's events do not say which image they are of."""

    async def test() -> None:
        async def by_seed(got: Received, writer: asyncio.StreamWriter) -> None:
            seed = json.loads(got.body)["seed"]
            await streaming(look(0, seed), whole(seed + 100))(got, writer)

        async with bench(by_seed, extras=["stream", "seed"]) as far:
            events = await drawn(far, n=3, seed=1)
            assert sorted(looks(events)) == [(0, 0, 1), (1, 0, 2), (2, 0, 3)]
            assert shades(events) == {0: 101, 1: 102, 2: 103}

    run(test)


def test_more_than_was_asked_for_and_what_is_no_look_is_left() -> None:
    async def test() -> None:
        odd = (
            event("image_generation.partial_image", b64_json="!"),
            event("image_generation.partial_image", url="http://127.0.0.1:1/x.png"),
            event("image_generation.partial_image", b64_json=base64.b64encode(b"no").decode()),
            event("something.else", b64_json=b64(1)),
            *(look(at, at) for at in range(9)),
            *(whole(50), whole(60), event("error", error={"message": "late"})),
            b"data: [DONE]\n\n",
        )
        async with bench(streaming(*odd), extras=["stream"]) as far:
            events = await drawn(far)
            assert looks(events) == [(0, 1, 0)]  # what could not be shown counts as one of the two
            assert shades(events) == {0: 50}

    run(test)


@pytest.mark.parametrize("end", [CUT, STAYS, DRIPS])
def test_an_image_that_came_is_taken_whatever_follows(
    monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(streamed, "FAREWELL_S", 0.2)

    async def test() -> None:
        async with bench(streaming(look(0, 1), whole(7), end=end), extras=["stream"]) as far:
            assert shades(await asyncio.wait_for(drawn(far), 20)) == {0: 7}
            assert far.outcomes() == {"ok": 1}
        refused = streaming(look(0, 1), event("error", error=REFUSED), end=end)
        async with bench(refused, extras=["stream"]) as far:
            (*_, failed) = await asyncio.wait_for(drawn(far), 20)
            assert isinstance(failed.error, errors.ContentRefused)

    run(test)


KEY = "prodkey7f3a9c2e51d84b60aa"
QUOTED = {"message": f"too dark, {KEY}", "type": "x", "code": "invalid_value", "param": "prompt"}


TOLD = {"revised_prompt": f"drawn for {KEY}", "id": KEY, "usage": {KEY: KEY}}
QUOTING = HEAD.replace(b"up-7", KEY.encode())
PLAIN_LARGE = {"data": [{"b64_json": b64(1)} | TOLD], "x": "x" * 300_000} | TOLD


@pytest.mark.parametrize(
    "answer",
    [
        streaming(look(0, 1), event("error", error=QUOTED), head=QUOTING),
        streaming(look(0, 1), event("error", error=QUOTED).replace(b"prodkey", rb"\u0070rodkey")),
        streaming(look(0, 1), event("image_generation.completed", b64_json=b64(3), **TOLD)),
        streaming(whole(3), head=QUOTING, end=CUT),
        says(PLAIN_LARGE),
        error(400, "invalid_value", param="prompt", message=f"{KEY} " + "x" * 300_000),
        says("x" * 490 + KEY, 400),
    ],
)
def test_nobody_is_told_our_key(answer: Answer) -> None:
    """Whatever the provider quotes it in, and however long its answer is."""

    async def test() -> None:
        async with bench(answer, keys=[(KEY, 1)], extras=["stream"]) as far:
            events: list[Any] = []
            async with aclosing(far.relay.draw(replace(far.order(), previews=2))) as drawing:
                with suppress(Untaken):
                    async for one in drawing:
                        events.append(one)
            told = [one.error.message if isinstance(one, Failed) else one for one in events]
            said = repr([one for one in told if not isinstance(one, Preview | Drawn)])
            assert KEY[:10] not in said
            assert "[key]" in said

    run(test)


STILL = streaming(look(0, 1), end=STAYS)
REFUSED = {"message": "no", "type": "x", "code": "moderation_blocked"}
LIMITED = {"message": "no", "type": "x", "code": "rate_limit_exceeded"}


@pytest.mark.parametrize(
    ("answer", "kind", "word"),
    [
        (streaming(look(0, 1), end=CUT), errors.ProviderFailed, "no complete answer"),
        (streaming(look(0, 1), whole(2)[:-9], end=CUT), errors.ProviderFailed, "no complete"),
        (streaming(look(0, 1)), errors.ProviderFailed, "without an image"),
        (streaming(), errors.ProviderFailed, "without an image"),
        (streaming(b"<html>hello</html>"), errors.ProviderFailed, "without an image"),
        (streaming(look(0, 1), b"data: {]\n\n"), errors.ProviderFailed, "not JSON"),
        (streaming(b"data: [1]\n\n"), errors.ProviderFailed, "not JSON"),
        (
            streaming(event("image_generation.completed")),
            errors.ProviderFailed,
            "no image where one",
        ),
        (streaming(event("error", error=REFUSED)), errors.ContentRefused, ""),
        (streaming(look(0, 1), event("error", error=REFUSED)), errors.ContentRefused, ""),
        (streaming(event("error", error={"message": "x"})), errors.ProviderFailed, "HTTP 200"),
        (streaming(look(0, 1), event("error", error=LIMITED)), errors.ProviderFailed, "gave up"),
        (STILL, errors.ProviderFailed, "no complete answer"),
        (endless, errors.ProviderFailed, "no complete answer"),
        (chatty, errors.ProviderFailed, "no complete answer"),
    ],
)
def test_a_broken_stream_is_an_error_and_asked_once(
    answer: Answer, kind: type[errors.DanqingError], word: str
) -> None:
    async def test() -> None:
        # Only who stands still is to be given up: this machine may stand still, too.
        idle_s = 1.0 if answer is STILL else 60.0
        async with bench(answer, extras=["stream"], idle_timeout_s=idle_s) as far:
            events = await drawn(far)
            (failed,) = [one for one in events if isinstance(one, Failed)]
            assert isinstance(failed.error, kind)
            assert word in failed.error.message
            assert len(far.provider.posts) == 1, "it may have been paid"
            assert far.relay._answers.taken == 0  # type: ignore[attr-defined]

    run(test)


def test_a_provider_that_does_not_stream_after_all_is_our_configuration() -> None:
    async def test() -> None:
        unknown = error(400, "unknown_parameter", param="stream", message="Unknown: 'stream'.")
        async with bench(unknown, extras=["stream"]) as far:
            with pytest.raises(Untaken) as untaken:
                await drawn(far)
            assert "this server's configuration" in untaken.value.error.message

    run(test)


@pytest.mark.parametrize(
    "first", [streaming(event("error", error=LIMITED)), error(429, "rate_limit_exceeded")]
)
def test_who_is_turned_away_before_anything_was_shown_asks_by_another_key(first: Answer) -> None:
    async def test() -> None:
        keys = [("sk-first-key", 1), ("sk-other-key", 1)]
        async with bench(
            first, streaming(look(0, 4), whole(9)), keys=keys, extras=["stream"]
        ) as far:
            events = await drawn(far)
            assert (looks(events), shades(events)) == ([(0, 0, 4)], {0: 9})
            assert len({got.headers["authorization"] for got in far.provider.posts}) == 2
        async with bench(first, extras=["stream"]) as far:
            with pytest.raises(Untaken):
                await drawn(far)

    run(test)
