"""A relay against a provider on loopback: what is sent, what is taken of the answer, and what is never sent twice."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
import time
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from danqing.domain import errors
from danqing.domain.sizes import Size
from danqing.domain.task import (
    Drawn,
    Failed,
    ImageSource,
    InputImage,
    Linked,
    Queued,
    Relayed,
    Started,
    Stepped,
)
from danqing.providers import results
from danqing.providers.upstream import FAILURES_MAX, Untaken
from danqing.storage import codecs
from tests.net.servers import Received, answer, run, serving
from tests.providers.provider_server import (
    SIZE,
    Bench,
    bench,
    bomb,
    cut,
    endless,
    error,
    inline,
    picture,
    says,
    shades,
    silent,
)

OURS = ["response_format", "seed", "negative_prompt", "style", "watermark", "output_format"]


async def failure(far: Bench, **changes: Any) -> errors.DanqingError:
    """The error that a drawing without images came to."""
    try:
        events = await far.draw(**changes)
    except Untaken as untaken:
        return untaken.error
    found = [event.error for event in events if isinstance(event, Failed)]
    assert found
    assert not shades(events)
    return found[0]


def test_an_image_and_all_that_is_said_of_it() -> None:
    async def test() -> None:
        async with bench(
            inline(10, usage={"total_tokens": 9}), qualities={"standard": "medium"}
        ) as far:
            far.provider.drawings[0] = with_header(far.provider.drawings[0], "X-Request-Id: req-9")
            events = await far.draw(end_user="user-1")
            (sent,) = far.provider.posts
            assert sent.line == "POST /v1/images/generations HTTP/1.1"
            assert sent.headers["authorization"] == "Bearer sk-first-key"
            assert far.provider.asked == [
                {
                    "model": "theirs",
                    "prompt": "a cat",
                    "n": 1,
                    "size": "64x48",
                    "quality": "medium",
                    "user": "user-1",
                }
            ]
            assert events[:2] == [Started(0), Stepped(0, 1, 1)]
            assert events[2] == Relayed("far", "req-9", {"total_tokens": 9}, seeded=False)
            assert isinstance(events[3], Drawn)
            assert events[3].pixels.shape == (48, 64, 3)
            assert set(events[3].timing_ms) == {"queue", "upstream", "fetch"}
            assert far.outcomes() == {"ok": 1}

    run(test)


def with_header(inner: Any, *lines: str) -> Any:
    """The same answer with more headers."""

    async def write(got: Received, writer: asyncio.StreamWriter) -> None:
        class Patched:
            def write(self, data: bytes) -> None:
                head, _, rest = data.partition(b"\r\n\r\n")
                writer.write(
                    b"\r\n".join([head, *(x.encode() for x in lines)]) + b"\r\n\r\n" + rest
                )

            async def drain(self) -> None:
                await writer.drain()

        await inner(got, Patched())

    return write


def test_all_fields_reach_a_server_that_knows_them() -> None:
    async def test() -> None:
        async with bench(inline(1, 2), extras=OURS, qualities={"hd": ""}) as far:
            events = await far.draw(n=2, negative_prompt="dogs", style="vivid", seed=5)
            (sent,) = far.provider.asked
            assert sent == {
                "model": "theirs",
                "prompt": "a cat",
                "n": 2,
                "size": "64x48",
                "quality": "standard",
                "negative_prompt": "dogs",
                "style": "vivid",
                "seed": 5,
                "response_format": "b64_json",
                "output_format": "png",
                "watermark": False,
            }
            assert shades(events) == {0: 1, 1: 2}
            assert all(event.seeded for event in events if isinstance(event, Relayed))

    run(test)


def test_a_size_that_cannot_be_asked_for_is_answered_with_those_that_can() -> None:
    async def test() -> None:
        async with bench(inline(1), dialect="jimeng") as far:
            rule = replace(far.card.sizes, listed=(Size(1024, 1024), Size(1000, 600)))
            card = replace(far.card, sizes=rule)
            with pytest.raises(errors.UnsupportedField) as refused:
                await far.relay.check(far.order(size=Size(1000, 600)).task, card)
            assert refused.value.param == "size"
            assert refused.value.message.startswith("'size' 1000x600 is not supported")
            assert refused.value.message.endswith("Supported values are: 1024x1024.")

    run(test)


def test_what_the_provider_cannot_say_is_refused_by_name() -> None:
    async def test() -> None:
        async with bench(inline(1)) as far:
            for field, value in [("negative_prompt", "dogs"), ("style", "vivid"), ("seed", 5)]:
                with pytest.raises(errors.UnsupportedField) as refused:
                    await far.relay.check(far.order(**{field: value}).task, far.card)
                assert refused.value.param == field
            # What is honoured here is no reason: earlier turns, our extension, the end user.
            kept = far.order(history=("hi",), prompt_extend=True, style="vivid", end_user="u")
            await far.relay.check(kept.task, far.card)
            assert far.provider.posts == []
            await far.draw(
                history=("hi",), prompt_extend=True, style="vivid", extended="a vivid cat"
            )
            assert far.provider.asked[0]["prompt"] == "a vivid cat"
            assert "style" not in far.provider.asked[0]

    run(test)


def test_the_label_is_the_providers_where_the_catalog_says_so() -> None:
    async def test() -> None:
        for labels, wanted, expected in [
            ("ours", True, False),
            ("ours", False, False),
            ("provider", True, None),
            ("provider", False, False),
        ]:
            async with bench(inline(1), extras=OURS, backend={"labels": labels}) as far:
                await far.draw(ai_label=wanted)
                assert far.provider.asked[0].get("watermark") is expected
        async with bench(inline(1), backend={"labels": "provider"}) as far:
            with pytest.raises(errors.UnsupportedField, match="watermark"):
                await far.relay.check(far.order(ai_label=False).task, far.card)

    run(test)


def test_a_brand_mark_is_the_providers_where_it_has_one() -> None:
    async def test() -> None:
        for dialect, wanted, sent in [
            ("qwen", True, True),
            ("qwen", False, False),
            ("openai", True, None),
        ]:
            async with bench(inline(1), dialect=dialect) as far:
                await far.relay.check(far.order(brand_mark=wanted).task, far.card)
                events = await far.draw(brand_mark=wanted)
                asked = far.provider.asked[0]
                assert asked.get("parameters", asked).get("watermark") is sent
                (drawn,) = [event for event in events if isinstance(event, Drawn)]
                assert drawn.branded is bool(sent)  # else it is drawn here
        # Where its links are passed on, there is no picture here to draw it on.
        async with bench(inline(1), rehost=False, labels="provider") as far:
            with pytest.raises(errors.UnsupportedField) as refused:
                await far.relay.check(far.order(brand_mark=True).task, far.card)
            assert refused.value.param == "parameters.watermark"
        async with bench(inline(1), dialect="qwen", rehost=False, labels="provider") as far:
            await far.relay.check(far.order(brand_mark=True).task, far.card)

    run(test)


def test_many_images_go_in_several_requests() -> None:
    async def test() -> None:
        async def as_asked(got: Received, writer: asyncio.StreamWriter) -> None:
            await inline(*range(1, json.loads(got.body)["n"] + 1))(got, writer)

        async with bench(as_asked, n_max=2, extras=["seed"]) as far:
            events = await far.draw(n=5, seed=100)
            assert sorted(one["n"] for one in far.provider.asked) == [1, 2, 2]
            assert sorted(one["seed"] for one in far.provider.asked) == [100, 102, 104]
            assert sorted(shades(events)) == [0, 1, 2, 3, 4]

    run(test)


def test_edits_carry_their_pictures() -> None:
    async def test() -> None:
        async with bench(inline(1)) as far:
            source = ImageSource("image", data=b"x")
            order = far.order(references=(source,))
            image = InputImage(picture(), "png", SIZE)
            # The mask was read from the picture's own alpha: the task names none.
            order = replace(order, references=(image,), mask=image)
            async with aclosing(far.relay.draw(order)) as drawing:
                assert any([isinstance(event, Drawn) async for event in drawing])
            (sent,) = far.provider.posts
            assert sent.line.startswith("POST /v1/images/edits ")
            assert sent.headers["content-type"].startswith("multipart/form-data; boundary=")
            assert sent.body.count(picture()) == 2
            assert b'name="mask"; filename="mask.png"' in sent.body
            assert b'name="image"; filename="image.png"\r\nContent-Type: image/png' in sent.body

    run(test)


def cut_out(mode: str) -> bytes:
    """A PNG whose left half is transparent, where its mode can say that."""
    image = Image.new("RGBA", SIZE, (200, 30, 30, 255))
    image.paste((0, 0, 0, 0), (0, 0, SIZE.width // 2, SIZE.height))
    out = io.BytesIO()
    image.convert(mode).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize("edit", [False, True])
def test_a_background_is_left_out(edit: bool) -> None:
    async def test() -> None:
        data = [{"b64_json": base64.b64encode(cut_out("RGBA")).decode()}]
        async with bench(says({"data": data}), extras=["background"]) as far:
            references = (ImageSource("image", data=b"x"),) if edit else ()
            order = far.order(transparent=True, references=references)
            if edit:
                order = replace(order, references=(InputImage(picture(), "png", SIZE),))
            async with aclosing(far.relay.draw(order)) as drawing:
                (drawn,) = [event async for event in drawing if isinstance(event, Drawn)]
            assert drawn.pixels.shape == (SIZE.height, SIZE.width, 4)
            assert drawn.pixels[0, :, 3].tolist() == [0] * 32 + [255] * 32
            (sent,) = far.provider.posts
            field = (
                b'name="background"\r\n\r\ntransparent' if edit else b'"background": "transparent"'
            )
            assert field in sent.body

    run(test)


def test_who_draws_a_background_all_the_same_has_failed() -> None:
    async def test() -> None:
        data = [{"b64_json": base64.b64encode(cut_out("RGB")).decode()}]
        async with bench(says({"data": data}), extras=["background"]) as far:
            assert "asked for none" in (await failure(far, transparent=True)).message
        async with bench(says({"data": data})) as far:
            task = far.order(transparent=True).task
            with pytest.raises(errors.UnsupportedField) as refused:
                await far.relay.check(task, far.card)
            assert refused.value.param == "background"

    run(test)


# Images behind links


def test_a_link_is_fetched_at_once_and_again_while_it_is_404() -> None:
    async def test() -> None:
        async with bench(images=[answer(404), answer(404), answer(200, picture(33))]) as far:
            far.provider.drawings.append(far.provider.link())
            assert shades(await far.draw()) == {0: 33}
            assert len(far.provider.gets) == 3
            assert "authorization" not in far.provider.gets[0].headers, "the key is not for links"

    run(test)


@pytest.mark.parametrize(
    ("images", "word"),
    [
        ([answer(404)], "does not work"),
        ([answer(200, b"<html>please wait</html>")], "no image"),
        ([answer(200, picture()[:-30])], "no image"),
        ([answer(200, b"")], "is empty"),
        ([endless], "too large"),
        ([answer(302, b"", ["Location: http://127.0.0.1:1/x.png"])], "may not"),
        ([answer(302, b"", ["Location: http://169.254.169.254/x.png"])], "may not"),
        ([silent], "does not work"),
    ],
)
def test_a_link_that_gives_no_image(images: Any, word: str) -> None:
    async def test() -> None:
        patience_s = 0.5 if word == "does not work" else 60.0
        async with bench(images=images, fetch_timeout_s=patience_s) as far:
            far.provider.drawings.append(far.provider.link())
            error = await failure(far)
            assert isinstance(error, errors.ProviderFailed)
            assert word in error.message
            assert len(far.provider.posts) == 1, "it is not asked for again"

    run(test)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/x.png", "http://[::1]/x", "file:///etc/passwd", "http://10.0.0.1/"]
)
def test_links_to_private_places_are_not_followed(url: str) -> None:
    async def test() -> None:
        async with bench(says({"data": [{"url": url}]})) as far:
            assert "may not" in (await failure(far)).message

    run(test)


def test_allowed_hosts_may_be_private() -> None:
    async def test() -> None:
        async with serving(answer(200, picture(44))) as store:
            host = f"127.0.0.1:{store.port}"
            body = {"data": [{"url": f"http://{host}/x.png"}]}
            async with bench(says(body), allow_hosts=[host]) as far:
                assert shades(await far.draw()) == {0: 44}

    run(test)


def test_a_bomb_is_not_decoded() -> None:
    async def test() -> None:
        import struct
        import zlib

        def chunk(kind: bytes, data: bytes) -> bytes:
            return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))  # fmt: skip

        header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
        bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"x")
        async with bench(images=[answer(200, bomb)]) as far:
            far.provider.drawings.append(far.provider.link())
            assert "has too many pixels" in (await failure(far)).message

    run(test)


def test_a_bomb_fails_alone() -> None:
    """Far larger than what was asked for, though a decoder would take it; the others come."""

    async def test() -> None:
        items = [{"b64_json": base64.b64encode(one).decode()} for one in (picture(40), bomb())]
        said = says({"data": [items[0], items[1], items[0]]})
        async with bench(said, n_max=3) as far:
            events = await far.draw(n=3)
            assert shades(events) == {0: 40, 2: 40}
            (failed,) = [event for event in events if isinstance(event, Failed)]
            assert failed.index == 1
            assert "is 5000x5000 pixels" in failed.error.message

    run(test)


@pytest.mark.parametrize(
    ("asked", "pixels"),
    [(Size(64, 64), 2**24), (Size(1024, 1024), 2**24), (Size(3000, 3000), 36_000_000),
     (Size(4096, 4096), 2**26), (Size(8192, 8192), 2**26)],
)  # fmt: skip
def test_how_many_pixels_an_image_may_have(asked: Size, pixels: int) -> None:
    assert results.pixels_allowed(asked) == pixels


def test_links_pass_through_where_the_catalog_and_the_client_want_it() -> None:
    async def test() -> None:
        async with bench(backend={"rehost": False, "labels": "provider"}) as far:
            far.provider.drawings.append(far.provider.link())
            events = await far.draw(links=True)
            (linked,) = [event for event in events if isinstance(event, Linked)]
            assert linked == Linked(0, far.provider.server.url + "/1.png", SIZE, 7, "png")
            assert far.provider.gets == []
            assert shades(await far.draw(links=False)) == {0: 90}, "bytes are fetched"

    run(test)


@pytest.mark.parametrize(
    "url",
    [
        *("javascript:alert(1)", "/1.png", "https://a.example/1.png\n![x](https://b.example/)"),
        *("https://a.example/<b>", 'https://a.example/"', "https://a.example/" + "a" * 9000),
    ],
)
def test_what_is_no_link_is_not_passed_on(url: str) -> None:
    async def test() -> None:
        said = says({"data": [{"url": url}]})
        async with bench(said, backend={"rehost": False, "labels": "provider"}) as far:
            (failed,) = [one for one in await far.draw(links=True) if isinstance(one, Failed)]
            assert isinstance(failed.error, errors.ProviderFailed)

    run(test)


def test_what_a_provider_says_beside_its_images_is_bounded() -> None:
    async def test() -> None:
        long = "long " * 100_000
        data = [{"b64_json": base64.b64encode(picture()).decode(), "revised_prompt": long}]
        async with bench(says({"data": data, "id": long, "usage": {"a": long}})) as far:
            events = await far.draw()
            assert shades(events) == {0: 90}
            (relayed,) = [event for event in events if isinstance(event, Relayed)]
            assert len(relayed.revised_prompt or "") == 20_000
            assert len(relayed.upstream_id or "") == 200
            assert relayed.usage == {}

    run(test)


def test_a_usage_that_is_too_deep_to_be_shown_is_not_kept() -> None:
    async def test() -> None:
        data = [{"b64_json": base64.b64encode(picture()).decode()}]
        for depth, kept in ((10, True), (900, False)):
            usage: Any = 1
            for _ in range(depth):
                usage = {"a": usage}
            async with bench(says({"data": data, "usage": usage})) as far:
                (relayed,) = [one for one in await far.draw() if isinstance(one, Relayed)]
                assert bool(relayed.usage) is kept

    run(test)


# What is wrong with an answer


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (says(b"<html>hello</html>"), errors.ProviderFailed),
        (says({"created": 1, "data": []}), errors.ProviderFailed),
        (says({"error": {"message": "oops", "code": None}}), errors.ProviderFailed),
        (error(400, "content_policy_violation"), errors.ContentRefused),
        (error(200, "content_policy_violation"), errors.ContentRefused),
        (error(400, "invalid_value", param="size"), errors.InvalidField),
        (error(500, "server_error"), errors.ProviderFailed),
        (error(408, "timeout"), errors.ProviderFailed),
        (answer(302, b"", ["Location: http://127.0.0.1:1/"]), errors.ProviderFailed),
        (cut, errors.ProviderFailed),
        (endless, errors.ProviderFailed),
        (silent, errors.ProviderFailed),
    ],
)
def test_whoever_may_have_been_paid_is_not_asked_again(said: Any, kind: Any) -> None:
    async def test() -> None:
        async with bench(said, inline(1), timeout_s=1 if said is silent else 60) as far:
            events = (
                await far.draw()
            )  # raises nothing: Untaken would mean that a fallback may be asked
            assert [type(one.error) for one in events if isinstance(one, Failed)] == [kind]
            assert len(far.provider.posts) == 1

    run(test)


def test_a_task_that_was_taken_is_not_given_to_another_for_its_odd_id() -> None:
    async def test() -> None:
        said = says({"output": {"task_id": "x" * 9000, "task_status": "PENDING"}})
        row = {"dialect": "dashscope", "background": True, "timeout_s": 2}
        async with bench(said, backend={"dialect": "dashscope"}, **row) as far:
            events = await far.draw()  # raises no Untaken
            assert [type(one.error) for one in events if isinstance(one, Failed)] == [
                errors.ProviderFailed
            ]

    run(test)


def test_accounts_take_turns_at_the_provider() -> None:
    async def test() -> None:
        gate = asyncio.Event()

        async def gated(got: Received, writer: asyncio.StreamWriter) -> None:
            await gate.wait()
            await inline(1)(got, writer)

        async with bench(gated, concurrency_max=1, queue_max=3) as far:
            drawing: list[asyncio.Task[Any]] = []

            async def come(account: str, prompt: str, n: int = 1) -> asyncio.Task[Any]:
                order = replace(far.order(n=n), account_id=account, prompt=prompt)

                async def draw() -> list[Any]:
                    return [event async for event in far.relay.draw(order)]

                drawing.append(asyncio.create_task(draw()))
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                return drawing[-1]

            for number in range(4):
                await come("greedy", f"greedy {number}")
            await come("late", "late")  # the line was full: the greedy one's last has to leave it
            with pytest.raises(Untaken) as turned_away:
                await drawing[3]
            assert isinstance(turned_away.value.error, errors.Busy)
            gate.set()
            await asyncio.gather(*drawing, return_exceptions=True)
            order = [one["prompt"] for one in far.provider.asked]
            assert order == ["greedy 0", "late", "greedy 1", "greedy 2"]

    run(test)


def test_few_images_are_decoded_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    at_once, most, lock = 0, 0, threading.Lock()
    met = threading.Barrier(results.DECODERS)

    def decoded(data: bytes, *_: object) -> Any:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        met.wait(60)  # of eight, so that each has company
        time.sleep(0.01)
        with lock:
            at_once -= 1
        return codecs.decode(data)

    async def test() -> None:
        async with bench(inline(*range(1, 9))) as far:
            assert len(shades(await far.draw(n=8))) == 8

    monkeypatch.setattr(results, "decoded", decoded)
    run(test)
    assert most == results.DECODERS


def test_the_providers_own_words_are_kept() -> None:
    async def test() -> None:
        async with bench(error(400, "moderation_blocked", message="category: violence")) as far:
            events = await far.draw()
            (relayed,) = [event for event in events if isinstance(event, Relayed)]
            assert "category: violence" in str(relayed.refusal)
            assert isinstance(events[-1], Failed)

    run(test)


def test_a_key_that_the_provider_quotes_is_told_to_nobody(capsys: Any) -> None:
    """Not every provider's keys look like keys: Ark's are UUIDs, a gateway's are what its operator likes."""
    key = "correct horse battery"

    async def test() -> None:
        said = error(400, "invalid_value", param="size", message=f"size: no luck with {key}")
        async with bench(said, keys=[(key, 1)]) as far:
            events = await far.draw()
            assert f"Bearer {key}" in far.provider.posts[0].headers["authorization"]
            (failed,) = [event for event in events if isinstance(event, Failed)]
            assert failed.error.message == "size: no luck with [key]"
            assert key not in repr(events)
            assert "no luck with [key]" in repr(events)

    run(test)
    shown = capsys.readouterr()
    assert key not in shown.out + shown.err


@pytest.mark.parametrize("status", [200, 400, 404, 429, 500, 503])
def test_a_prompt_that_the_provider_quotes_is_logged_nowhere(capsys: Any, status: int) -> None:
    async def test() -> None:
        said = error(status, "odd", "X-Request-Id: req-17", message="cannot draw 'a cat'")
        async with bench(said) as far:
            with suppress(Untaken):
                await far.draw()

    run(test)
    shown = capsys.readouterr()
    assert "provider_refused" in shown.out + shown.err
    assert "req-17" in shown.out + shown.err
    assert "a cat" not in shown.out + shown.err


def test_a_request_id_that_is_none_is_not_logged(capsys: Any) -> None:
    async def test() -> None:
        async with bench(error(400, "odd", "X-Request-Id: you asked for a cat")) as far:
            with pytest.raises(Untaken):
                await far.draw()

    run(test)
    shown = capsys.readouterr()
    assert "provider_refused" in shown.out + shown.err
    assert "a cat" not in shown.out + shown.err


@pytest.mark.parametrize(
    ("said", "n"),
    [(error(503, "overloaded"), 3), (error(429, "limited"), 1), (error(400, "odd"), 1)],
)
def test_what_was_turned_away_counts_as_not_drawn(said: Any, n: int) -> None:
    """Who hangs up between the tries owes nothing: the provider took none of them."""

    async def test() -> None:
        async with bench(said) as far:
            events: list[Any] = []
            with suppress(Untaken):
                async for event in far.relay.draw(far.order()):
                    events.append(event)
            steps = [event.step for event in events if isinstance(event, Stepped)]
            assert steps == [1, 0] * n

    run(test)


def test_what_may_have_been_drawn_counts_as_drawn() -> None:
    async def test() -> None:
        async with bench(error(500, "server_error")) as far:
            steps = [event.step for event in await far.draw() if isinstance(event, Stepped)]
            assert steps == [1]

    run(test)


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (422, "x", "The prompt was flagged as NSFW."),
        (451, "x", "Output rejected: sensitive content"),
        (400, "data_inspection_failed", "Input data may contain inappropriate content."),
        (400, "InputTextSensitiveContentDetected", "no"),
        (400, "1301", "系统检测到输入或生成内容可能包含不安全或敏感内容"),
        (403, "ResponsibleAIPolicyViolation", "no"),
    ],
)
def test_a_refusal_of_the_content_goes_nowhere_else(status: int, code: str, message: str) -> None:
    """By whatever gateway its words come: a fallback must not be asked around it."""

    async def test() -> None:
        async with bench(error(status, code, message=message)) as far:
            failed = [one.error for one in await far.draw() if isinstance(one, Failed)]
            assert [type(one) for one in failed] == [errors.ContentRefused]

    run(test)


def test_fewer_images_than_asked_for_are_failures_in_their_places() -> None:
    async def test() -> None:
        async with bench(inline(1, 2)) as far:
            events = await far.draw(n=4)
            assert shades(events) == {0: 1, 1: 2}
            failed = {event.index: event.error for event in events if isinstance(event, Failed)}
            assert set(failed) == {2, 3}
            assert all(isinstance(one, errors.ProviderFailed) for one in failed.values())

    run(test)


# What is asked again


@pytest.mark.parametrize("status", [503, 429, 401, 402])
def test_what_is_free_may_go_elsewhere(status: int) -> None:
    async def test() -> None:
        async with bench(error(status, "no_more", "Retry-After: 7")) as far:
            with pytest.raises(Untaken):
                await far.draw()
            assert len(far.provider.posts) == (3 if status == 503 else 1)

    run(test)


def test_an_overload_is_waited_out() -> None:
    async def test() -> None:
        async with bench(error(503, "overloaded"), inline(5)) as far:
            assert shades(await far.draw()) == {0: 5}
            assert len(far.provider.posts) == 2

    run(test)


def test_a_limited_key_rests_and_the_next_one_asks() -> None:
    async def test() -> None:
        keys = [("sk-one-one", 1), ("sk-two-two", 1)]
        async with bench(
            error(429, "rate_limit_exceeded", "Retry-After: 30"), inline(5), keys=keys
        ) as far:
            assert shades(await far.draw()) == {0: 5}
            used = [post.headers["authorization"] for post in far.provider.posts]
            assert used == ["Bearer sk-one-one", "Bearer sk-two-two"]
            await far.draw()
            assert far.provider.posts[-1].headers["authorization"] == "Bearer sk-two-two"
            assert (far.relay.health()["keys"], far.relay.health()["keys_usable"]) == (2, 1)

    run(test)


def test_the_last_key_that_is_limited_says_when_to_come_back() -> None:
    async def test() -> None:
        async with bench(error(429, "rate_limit_exceeded", "Retry-After: 30")) as far:
            for _ in range(2):  # the second is not even asked
                with pytest.raises(Untaken) as untaken:
                    await far.draw()
                assert isinstance(untaken.value.error, errors.Busy)
                assert 25 < untaken.value.error.retry_after_s <= 30
            assert len(far.provider.posts) == 1

    run(test)


def test_a_key_that_the_provider_does_not_know_is_left_off() -> None:
    async def test() -> None:
        keys = [("sk-bad-bad", 1), ("sk-good-one", 1)]
        async with bench(error(401, "invalid_api_key"), inline(5), keys=keys) as far:
            for _ in range(3):
                assert shades(await far.draw()) == {0: 5}
            used = [post.headers["authorization"] for post in far.provider.posts]
            assert used == ["Bearer sk-bad-bad"] + ["Bearer sk-good-one"] * 3

    run(test)


def test_nobody_there_is_tried_again_and_then_left() -> None:
    async def test() -> None:
        async with serving(answer()) as gone:
            pass
        async with bench(inline(5), base_url=f"{gone.url}/v1") as far:
            with pytest.raises(Untaken) as untaken:
                await far.draw()
            assert isinstance(untaken.value.error, errors.ProviderFailed)
            assert far.outcomes() == {"provider_failed": 1}

    run(test)


def test_a_provider_that_keeps_failing_is_left_alone_for_a_while() -> None:
    async def test() -> None:
        async with bench(*[error(500, "x")] * 5, inline(5)) as far:
            for _ in range(5):
                await far.draw()
            assert far.relay.health()["circuit"] == "open"
            with pytest.raises(Untaken) as untaken:
                await far.draw()
            assert isinstance(untaken.value.error, errors.Unavailable)
            assert len(far.provider.posts) == 5
            far.relay._asker.breaker._open_until = 0.0
            assert far.relay.health()["circuit"] == "half-open"
            assert shades(await far.draw()) == {0: 5}
            assert far.relay.health()["circuit"] == "closed"

    run(test)


# Many at once, and hanging up


def test_a_full_house_queues_and_then_says_busy() -> None:
    async def test() -> None:
        gate = asyncio.Event()

        async def slow(got: Received, writer: asyncio.StreamWriter) -> None:
            await gate.wait()
            await inline(5)(got, writer)

        async with bench(slow, concurrency_max=1, queue_max=1) as far:
            first = asyncio.create_task(far.draw())
            while not far.provider.posts:
                await asyncio.sleep(0.01)
            second = asyncio.create_task(far.draw())
            while not far.relay.health()["waiting"]:
                await asyncio.sleep(0.01)
            with pytest.raises(Untaken) as untaken:
                await far.draw()
            assert isinstance(untaken.value.error, errors.Busy)
            gate.set()
            assert shades(await first) == {0: 5}
            waited = await second
            assert shades(waited) == {0: 5}
            (queued,) = [event for event in waited if isinstance(event, Queued)]
            assert queued.position == 1
            assert far.relay.health()["running"] == 0

    run(test)


def test_hanging_up_closes_the_connection() -> None:
    async def test() -> None:
        closed = asyncio.Event()

        async def wait(got: Received, writer: asyncio.StreamWriter) -> None:
            while not writer.is_closing() and not writer.transport.is_closing():
                writer.write(b"HTTP/1.1 102 Processing\r\n\r\n")
                try:
                    await writer.drain()
                except ConnectionError:
                    break
                await asyncio.sleep(0.02)
            closed.set()

        async with bench(wait) as far:
            drawing = asyncio.create_task(far.draw())
            while not far.provider.posts:
                await asyncio.sleep(0.01)
            drawing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await drawing
            await asyncio.wait_for(closed.wait(), 60)
            assert far.relay.health()["running"] == 0
            assert far.outcomes() == {"cancelled": 1}

    run(test)


def test_a_client_that_leaves_the_queue_takes_no_place() -> None:
    async def test() -> None:
        gate = asyncio.Event()

        async def slow(got: Received, writer: asyncio.StreamWriter) -> None:
            await gate.wait()
            await inline(5)(got, writer)

        async with bench(slow, concurrency_max=1) as far:
            first, second, third = (asyncio.create_task(far.draw()) for _ in range(3))
            while far.relay.health()["waiting"] != 2:
                await asyncio.sleep(0.01)
            second.cancel()
            await asyncio.wait({second})
            gate.set()
            assert shades(await first) == shades(await third) == {0: 5}
            assert len(far.provider.posts) == 2

    run(test)


def test_finished_pixels_are_bounded() -> None:
    from danqing.providers.results import PixelBudget

    async def test() -> None:
        import numpy as np

        budget = PixelBudget(100)
        first = np.zeros((10, 10, 3), np.uint8)
        await budget.wait()
        budget.count(first)
        waiting = asyncio.create_task(budget.wait())
        await asyncio.sleep(0.01)
        assert not waiting.done()
        del first
        await asyncio.wait_for(waiting, 60)

    run(test)


def test_the_time_for_a_request_is_bounded() -> None:
    async def test() -> None:
        async with bench(silent, timeout_s=1) as far:
            started = time.monotonic()
            assert isinstance(await failure(far), errors.ProviderFailed)
            assert time.monotonic() - started < 60

    run(test)


SQUARE = Size(1024, 1024)


def jimeng(code: int) -> Any:
    return says({"code": code, "message": "[no]", "data": None})


@pytest.mark.parametrize("dialect", ["jimeng", "openai"])
@pytest.mark.parametrize("code", [-2002, -2009])
def test_a_key_refused_with_200_rests_and_another_one_draws(dialect: str, code: int) -> None:
    """jimeng's relays: a token that has expired, points that are used up. Nothing was drawn for it."""

    async def test() -> None:
        keys = [("key-number-one", 1), ("key-number-two", 1)]
        async with bench(jimeng(code), inline(7), keys=keys, dialect=dialect) as far:
            assert len(shades(await far.draw(size=SQUARE))) == 1
            assert far.relay.health()["keys_usable"] == 1
        async with bench(jimeng(code), keys=keys[:1], dialect=dialect) as far:
            with pytest.raises(Untaken):  # so a fallback may be asked
                await far.draw(size=SQUARE)

    run(test)


def test_a_refusal_with_200_stays_one_and_leaves_the_circuit_closed() -> None:
    async def test() -> None:
        async with bench(jimeng(-2006), dialect="jimeng") as far:
            for _ in range(FAILURES_MAX):
                events = await far.draw(size=SQUARE)
                (failed,) = [one for one in events if isinstance(one, Failed)]
                assert isinstance(failed.error, errors.ContentRefused)
            assert far.relay.health()["circuit"] == "closed"

    run(test)
