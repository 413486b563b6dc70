"""The pictures of an edit: where they may come from, what they must be, and how long they are kept."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.net.servers import A, Answer, Names, Received, Wire, answer, serving
from tests.service.house import House, all_well, house, run, until
from tests.service.test_recovery import KEY, LEASE_S, dead_draw

from danqing.domain.errors import (
    Busy,
    Cancelled,
    ContentRefused,
    EngineFailed,
    InvalidImage,
    QuotaExceeded,
)
from danqing.domain.ids import uuid7
from danqing.domain.ports import DrawOrder
from danqing.domain.sizes import Size
from danqing.domain.task import Event, ImageSource
from danqing.net.outbound import Outbound
from danqing.service import references
from danqing.service.calls import Accepted, Outcome
from danqing.service.delivery import task_folder
from danqing.storage import codecs


def picture(size: tuple[int, int] = (300, 200), colour: str = "red", format: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, format)
    return out.getvalue()


def hole(size: tuple[int, int] = (300, 200)) -> bytes:
    out = io.BytesIO()
    Image.new("RGBA", size).save(out, "PNG")
    return out.getvalue()


def sent(data: bytes, param: str = "image") -> ImageSource:
    return ImageSource(param, data=data)


def at(url: str, param: str = "image") -> ImageSource:
    return ImageSource(param, url=url)


def names(h: House) -> list[str]:
    return sorted(path.name for path in h.blobs())


def looking(seen: list[list[str]], box: list[House]) -> Callable[[DrawOrder], Any]:
    """A provider that notes which blobs there are while it draws."""

    async def script(order: DrawOrder) -> AsyncGenerator[Event, None]:
        seen.append(names(box[0]))
        async for event in all_well(order):
            yield event

    return script


def test_pictures_reach_the_provider_and_are_kept_no_longer_than_the_task(tmp_path: Path) -> None:
    async def check() -> None:
        seen: list[list[str]] = []
        box: list[House] = []
        async with house(tmp_path, looking(seen, box)) as h:
            box.append(h)
            first, second = picture(), picture((64, 64), "blue", "JPEG")
            outcome = await h.draw(
                references=(sent(first), sent(second)), mask=sent(hole(), "mask"), n=2
            )
            order = h.provider.orders[0]
            assert [one.data for one in order.references] == [first, second]
            assert [one.size for one in order.references] == [Size(300, 200), Size(64, 64)]
            assert order.mask is not None
            assert order.mask.size == Size(300, 200)
            assert seen == [["input-0.png", "input-1.jpeg", "input-mask.png"]]
            assert outcome.result.input_pixels == 2 * 300 * 200 + 64 * 64
            assert len(names(h)) == 2
            assert all(name[1] == "-" for name in names(h))
            row, _ = await h.gallery.task(outcome.task_id, h.principal.account_id)
            assert "input-mask.png" in str(row.request)
            assert (await h.gallery.outcome(row, "")).result.input_pixels == (
                outcome.result.input_pixels
            )
            assert h.uploads.taken == 0
            assert await h.balance() == 90_000

    run(check())


def test_a_picture_may_be_its_own_mask(tmp_path: Path) -> None:
    async def check() -> None:
        async with house(tmp_path) as h:
            edit = {"references": (sent(hole()),), "mask_from_alpha": True, "model": "dall-e-2"}
            outcome = await h.draw(**edit)
            assert h.provider.orders[0].mask is not None
            assert outcome.result.input_pixels == 2 * 300 * 200
            await h.draw(**edit | {"references": (sent(picture()),)})
            assert h.provider.orders[1].mask is None
            row, _ = await h.gallery.task(outcome.task_id, h.principal.account_id)
            assert row.request["task"]["mask"]["param"] == "image"
            assert not any(name.startswith("input") for name in names(h))

    run(check())


def test_there_is_no_white_where_a_picture_is_repainted(tmp_path: Path) -> None:
    pierced = Image.new("RGBA", (300, 200), "red")
    pierced.paste((0, 0, 0, 0), (100, 50, 200, 150))
    out = io.BytesIO()
    pierced.save(out, "PNG")
    image = sent(out.getvalue())

    async def check() -> None:
        async with house(tmp_path) as h:
            await h.draw(references=(image,), mask_from_alpha=True, model="dall-e-2")
            await h.draw(references=(image,), mask=sent(out.getvalue(), "mask"))
            await h.draw(references=(image,))
            own, other, plain = (
                codecs.decode(order.references[0].data) for order in h.provider.orders
            )
            assert own[:, :, 1].max() == other[:, :, 1].max() == 0
            assert plain[100, 150].min() == 255

    run(check())


def test_an_edit_has_its_own_price(tmp_path: Path) -> None:
    catalog = tmp_path / "catalog.toml"
    catalog.write_text("[models.dall-e-3.price.edit]\nstandard = 7000\n")

    async def check() -> None:
        async with house(tmp_path, catalog_file=catalog) as h:
            assert (await h.draw()).charged == 5_000
            assert (await h.draw(references=(sent(picture()),))).charged == 7_000

    run(check())


def test_a_variation_has_no_words(tmp_path: Path) -> None:
    async def check() -> None:
        async with house(tmp_path) as h:
            outcome = await h.draw(
                references=(sent(picture()),), prompt="", prompt_extend=True, model="jimeng-4.0"
            )
            assert h.provider.orders[0].prompt == ""
            assert outcome.result.revised_prompt is None
            assert await h.balance() == 95_000

    run(check())


def test_the_size_can_follow_the_picture(tmp_path: Path) -> None:
    async def check() -> None:
        async with house(tmp_path) as h:
            for size, expected in (
                ((300, 200), "1792x1024"),
                ((90, 100), "256x256"),
                ((200, 400), "1024x1792"),
            ):
                outcome = await h.draw(references=(sent(picture(size)),), fit_reference=True)
                assert str(outcome.result.delivered[0].size) == expected

    run(check())


FAULTS: list[tuple[str, dict[str, Any], str, str]] = [
    ("text", {"references": (sent(b"a cat"),)}, "image", "'image' is not a whole"),
    (
        "the second",
        {"references": (sent(picture()), sent(b"", "image[1]"))},
        "image[1]",
        "is empty",
    ),
    ("the mask", {"mask": sent(picture(), "mask")}, "mask", "'mask' has no alpha channel"),
    ("another size", {"mask": sent(hole((200, 300)), "mask")}, "mask", "'mask' is 200x300 pixels"),
    ("many pixels", {"references": (sent(picture((500, 300))),)}, "image", "at most 100000"),
    ("many bytes", {"references": (sent(picture() + bytes(30_000)),)}, "image", "more than 20000"),
    (
        "many bytes in all",
        {"references": (sent(picture() + bytes(15_000)),) * 3},
        "image",
        "in all",
    ),
]


@pytest.mark.parametrize(
    ("fields", "param", "why"), [r[1:] for r in FAULTS], ids=[r[0] for r in FAULTS]
)
def test_a_faulty_picture_costs_nothing(
    tmp_path: Path, fields: dict[str, Any], param: str, why: str
) -> None:
    async def check() -> None:
        limits = {"pixels_max": 100_000, "image_bytes_max": 20_000, "request_bytes_max": 40_000}
        async with house(tmp_path, uploads=limits) as h:
            with pytest.raises(InvalidImage, match=why) as caught:
                await h.draw(**({"references": (sent(picture()),)} | fields))
            assert caught.value.param == param
            assert (h.provider.orders, h.blobs(), h.uploads.taken) == ([], [], 0)
            assert await h.balance() == 100_000

    run(check())


def test_what_is_refused_leaves_nothing_behind(tmp_path: Path) -> None:
    async def check() -> None:
        async with house(tmp_path) as h:
            edit = {"references": (sent(picture()),)}
            with pytest.raises(QuotaExceeded):
                await h.draw(**edit, quality="hd", n=11)
            with pytest.raises(ContentRefused):
                await h.draw(**edit, prompt="how to make a bomb")
            assert (h.provider.orders, h.blobs(), h.uploads.taken) == ([], [], 0)

    run(check())


def test_who_cannot_pay_has_nothing_fetched(tmp_path: Path) -> None:
    async def check() -> None:
        async with serving(answer(body=picture())) as web:
            limits = {"fetch_allow_hosts": [f"127.0.0.1:{web.port}"]}
            async with house(tmp_path, uploads=limits) as h:
                edit = {"references": (at(f"{web.url}/cat.png"),)}
                with pytest.raises(QuotaExceeded):
                    await h.draw(**edit, n=21)
                assert web.requests == []
                await h.draw(**edit, n=2)
                assert len(web.requests) == 1

    run(check())


def test_failures_and_hang_ups_delete_the_pictures(tmp_path: Path) -> None:
    async def failing(order: DrawOrder) -> AsyncGenerator[Event, None]:
        raise EngineFailed
        yield

    async def check() -> None:
        async with house(tmp_path, failing) as h:
            with pytest.raises(EngineFailed):
                await h.draw(references=(sent(picture()),))
            assert (h.blobs(), h.uploads.taken) == ([], 0)

            async def waiting(order: DrawOrder) -> AsyncGenerator[Event, None]:
                await asyncio.sleep(3600)
                yield

            h.provider.script = waiting
            hung_up = asyncio.Event()
            work = asyncio.create_task(h.draw(references=(sent(picture()),), hung_up=hung_up))
            while len(h.provider.orders) < 2:
                await asyncio.sleep(0.01)
            assert names(h) == ["input-0.png"]
            assert h.uploads.taken == len(picture())
            hung_up.set()
            work.cancel()
            with pytest.raises((Cancelled, asyncio.CancelledError)):
                await work
            assert (h.blobs(), h.uploads.taken) == ([], 0)
            assert await h.balance() == 100_000

    run(check())


def test_the_next_server_draws_from_the_same_pictures(tmp_path: Path) -> None:
    async def check() -> None:
        edit = {"references": (sent(picture()),), "mask": sent(hole(), "mask")}
        task_id = await dead_draw(tmp_path, 0, background=True, **edit)
        async with house(tmp_path, task_lease_s=LEASE_S) as h:
            assert names(h) == ["input-0.png", "input-mask.png"]
            await h.sweep_until_quiet()
            order = h.provider.orders[0]
            assert order.task_id == task_id
            assert [one.data for one in order.references] == [picture()]
            assert order.mask is not None
            assert order.mask.size == Size(300, 200)
            row, images = await h.gallery.task(task_id, h.principal.account_id)
            assert (row.state, row.charged, len(images)) == ("succeeded", 5_000, 1)
            assert len(names(h)) == 1
            assert h.uploads.taken == 0
            assert (await h.gallery.outcome(row, "")).result.input_pixels == 2 * 300 * 200

    run(check())


def test_a_task_whose_pictures_are_gone_fails(tmp_path: Path) -> None:
    async def check() -> None:
        task_id = await dead_draw(tmp_path, 0, background=True, references=(sent(picture()),))
        async with house(tmp_path, task_lease_s=LEASE_S) as h:
            for path in h.blobs():
                path.unlink()
            await h.sweep_until_quiet()
            row = await h.ledger.task(task_id)
            assert (row.state, row.charged) == ("failed", 0)
            assert row.error["message"] == "The task's input images are gone."

    run(check())


def test_a_task_that_is_given_up_takes_its_pictures_along(tmp_path: Path) -> None:
    async def check() -> None:
        await dead_draw(tmp_path, 0, references=(sent(picture()),))
        async with house(tmp_path, task_lease_s=LEASE_S) as h:
            assert names(h) == ["input-0.png"]
            await h.sweep_until_quiet()
            assert h.blobs() == []

    run(check())


def test_a_key_fetches_and_keeps_nothing_twice(tmp_path: Path) -> None:
    async def check() -> None:
        async with serving(answer(body=picture())) as web:
            outbound = Outbound(resolve=Names(a_example=[[A]]), dialer=Wire({A: web}))
            async with house(tmp_path, outbound=outbound) as h:
                edit = {"references": (at("http://a.example/cat.png"),), "key": KEY}
                first = await h.draw(**edit)
                again = await h.draw(**edit)
                assert again.replayed
                assert again.task_id == first.task_id
                assert len(web.requests) == 1
                assert web.requests[0].headers["accept"] == "image/*"
                assert len(h.blobs()) == 1
                assert await h.balance() == 95_000

    run(check())


def test_two_requests_with_one_key_at_once_keep_one_set_of_pictures(tmp_path: Path) -> None:
    async def check() -> None:
        async with house(tmp_path) as h:
            edit = {"references": (sent(picture()),), "key": KEY}
            outcomes = await asyncio.gather(*(h.draw(**edit) for _ in range(4)))
            assert len({outcome.task_id for outcome in outcomes}) == 1
            assert len(h.blobs()) == 1
            assert h.uploads.taken == 0

    run(check())


async def endless(_: Received, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\n")
    while True:
        writer.write(bytes(4096))
        await writer.drain()


async def silent(_: Received, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(3600)


FETCHES: list[tuple[str, Answer, str, str | None]] = [
    ("well", answer(body=picture()), "http://a.example/cat.png?x=猫", None),
    (
        "a redirect outside",
        answer(302, headers=["Location: /x"]),
        "http://a.example/",
        "More than 3",
    ),
    (
        "into loopback",
        answer(302, headers=["Location: http://127.0.0.1/"]),
        "http://a.example/",
        "not a public host",
    ),
    ("loopback", answer(), "http://127.0.0.1/", "not a public host"),
    ("loopback as a number", answer(), "http://2130706433/", "not a public host"),
    ("loopback in IPv6", answer(), "http://[::1]/", "not a public host"),
    ("metadata", answer(), "http://169.254.169.254/latest/meta-data/", "not a public host"),
    ("a private name", answer(), "http://private.example/", "not a public host"),
    ("half private", answer(), "http://half.example/", "not a public host"),
    (
        "another port",
        answer(),
        "http://a.example:6379/",
        "ports 80 and 443 are allowed. The operator's `uploads.fetch_allow_hosts`",
    ),
    ("with a password", answer(), "http://u:p@a.example/", "user name or password"),
    ("gone", answer(404, body=picture()), "http://a.example/", "its host answers 404"),
    ("moved, nowhere", answer(301), "http://a.example/", "its host answers 301"),
    ("a web page", answer(body=b"<html>hello"), "http://a.example/", "is a web page"),
    ("nothing", answer(body=b""), "http://a.example/", "is empty"),
    ("without end", endless, "http://a.example/", "more than 20000 bytes"),
    ("in silence", silent, "http://a.example/", "in time|too long"),
    ("refused connection", answer(), "http://nobody.example/", "exchange with"),
]


@pytest.mark.parametrize(
    ("web", "url", "why"), [r[1:] for r in FETCHES], ids=[r[0] for r in FETCHES]
)
def test_where_a_picture_may_be_fetched_from(
    tmp_path: Path, web: Answer, url: str, why: str | None
) -> None:
    async def check() -> None:
        async with serving(web) as server:
            resolve = Names(
                a_example=[[A]],
                private_example=[["10.0.0.1"]],
                half_example=[[A, "127.0.0.1"]],
                nobody_example=[["93.184.216.99"]],
            )
            outbound = Outbound(resolve=resolve, dialer=Wire({A: server}))
            limits = {"image_bytes_max": 20_000, "fetch_s_max": 1.0 if web is silent else 60.0}
            async with house(tmp_path, outbound=outbound, uploads=limits) as h:
                if why is None:
                    await h.draw(references=(at(url),))
                    assert h.provider.orders[0].references[0].data == picture()
                    return
                with pytest.raises(InvalidImage, match=why) as caught:
                    await h.draw(references=(sent(picture()), at(url, "images[1].image_url")))
                assert caught.value.param == "images[1].image_url"
                assert (h.provider.orders, h.blobs(), h.uploads.taken) == ([], [], 0)
                assert await h.balance() == 100_000

    run(check())


def test_addresses_that_never_answer_hold_up_only_who_named_them(tmp_path: Path) -> None:
    """Twice as many as are fetched at once, all of one account; another one's picture comes at once."""

    async def either(got: Received, writer: asyncio.StreamWriter) -> None:
        await (silent if "/silent" in got.line else answer(body=picture()))(got, writer)

    async def check() -> None:
        async with serving(either) as web:
            limits = {"fetch_allow_hosts": [f"127.0.0.1:{web.port}"], "fetch_s_max": 600}
            async with house(tmp_path, uploads=limits) as h:
                stuck = (at(f"{web.url}/silent"),) * 4
                greedy = [
                    asyncio.create_task(h.draw(references=stuck, model="gpt-image-1"))
                    for _ in range(references.FETCHES // 2)
                ]
                await until(lambda: len(web.requests) == references.ACCOUNT_FETCHES)
                h.principal = replace(h.principal, account_id=await h.another_account())
                await h.draw(references=(at(f"{web.url}/cat.png"),))
                assert not any(one.done() for one in greedy)
                assert len(web.requests) == references.ACCOUNT_FETCHES + 1
                for one in greedy:
                    one.cancel()
                await asyncio.gather(*greedy, return_exceptions=True)
                assert h.uploads.taken == 0

    run(check())


def test_who_waits_too_long_for_a_turn_is_told_to_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(references, "ACCOUNT_FETCHES", 1)

    async def check() -> None:
        async with serving(silent) as web:
            limits = {"fetch_allow_hosts": [f"127.0.0.1:{web.port}"], "fetch_s_max": 0.5}
            async with house(tmp_path, uploads=limits) as h:
                turns = h.pipeline._references._fetches
                async with turns.take(h.principal.account_id):  # the only one
                    many = [h.draw(references=(at(f"{web.url}/silent"),)) for _ in range(3)]
                    ends = await asyncio.gather(*many, return_exceptions=True)
                assert [type(end) for end in ends] == [Busy] * 3
                assert web.requests == []
                assert await h.balance() == 100_000

    run(check())


def test_the_operator_may_allow_hosts(tmp_path: Path) -> None:
    async def check() -> None:
        async with serving(answer(body=picture())) as web:
            limits = {"fetch_allow_hosts": [f"127.0.0.1:{web.port}"]}
            async with house(tmp_path, uploads=limits) as h:
                await h.draw(references=(at(f"{web.url}/cat.png"),))
                assert h.provider.orders[0].references[0].data == picture()

    run(check())


def test_our_own_links_need_no_fetching(tmp_path: Path) -> None:
    async def check() -> None:
        async with house(tmp_path) as h:
            first = await h.draw()
            url = first.result.delivered[0].url
            assert url is not None
            await h.draw(references=(at(url.replace("http://here", "http://127.0.0.1:8000")),))
            assert h.provider.orders[1].references[0].size == Size(256, 256)
            with pytest.raises(InvalidImage, match="not a public host"):
                await h.draw(references=(at(url.replace("http://here", "http://127.0.0.1") + "A"),))

    run(check())


def test_memory_is_bounded_over_all_requests(tmp_path: Path) -> None:
    async def check() -> None:
        gate = asyncio.Event()

        async def gated(order: DrawOrder) -> AsyncGenerator[Event, None]:
            await gate.wait()
            async for event in all_well(order):
                yield event

        room = {"bytes_at_once_max": 3 * len(picture())}
        async with house(tmp_path, gated, uploads=room) as h:
            first = asyncio.create_task(h.draw(references=(sent(picture()),) * 2))
            while not h.provider.orders:
                await asyncio.sleep(0.01)
            with pytest.raises(Busy):
                await h.draw(references=(sent(picture()),) * 2)
            mine, other = h.principal, replace(h.principal, account_id=await h.another_account())
            with pytest.raises(Busy):  # one account may not fill it all
                await h.draw(references=(sent(picture()),))
            h.principal = other
            small = await h.draw(references=(sent(picture()),), background=True)
            assert isinstance(small, Accepted)
            gate.set()
            h.principal = mine
            assert isinstance(await first, Outcome)
            while h.uploads.taken:
                await asyncio.sleep(0.01)
            assert isinstance(await h.draw(references=(sent(picture()),) * 3), Outcome)

    run(check())


def test_what_is_fetched_is_counted_as_it_comes(tmp_path: Path) -> None:
    async def check() -> None:
        async with serving(endless) as web:
            limits = {
                "fetch_allow_hosts": [f"127.0.0.1:{web.port}"],
                "bytes_at_once_max": 200_000,
            }
            async with house(tmp_path, uploads=limits) as h:
                with pytest.raises(Busy):
                    await h.draw(references=(at(f"{web.url}/cat.png"),))
                assert h.uploads.taken == 0

    run(check())


@pytest.mark.parametrize(("age_s", "kept"), [(60, True), (7200, False)])
def test_pictures_without_a_task_are_swept_when_they_are_old(
    tmp_path: Path, age_s: int, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server died between writing them and writing their task."""

    async def check() -> None:
        async with house(tmp_path) as h:
            task_id = uuid7()
            blob = h.images / task_folder(task_id) / "input-0.png"
            blob.parent.mkdir(parents=True)
            blob.write_bytes(picture())
            real_ms = h.retention._clock_ms()
            monkeypatch.setattr(h.retention, "_clock_ms", lambda: real_ms + age_s * 1000)
            assert await h.retention.delete_orphans() == (0 if kept else 1)
            assert blob.exists() == kept

    run(check())
