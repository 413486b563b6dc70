"""Inspecting pictures over HTTP: what a server drew it knows again, in every format and after changes; bad files get clear errors."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import shutil
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from danqing.domain.errors import Busy
from danqing.service import labels
from danqing.service.inspection import AT_ONCE, WAITING_MAX, Inspection, Inspections, Inspector
from danqing.settings import LabelSettings
from danqing.storage import metadata
from tests.conftest import LiveServer as Server
from tests.conftest import shared_server

ROUTE = "/v1/images/inspect"
labelled = shared_server(DANQING_LABELS__POLICY="cn", DANQING_LABELS__PIXEL_MARK="true")


def drawn(server: Server, format: str, **body: object) -> tuple[str, bytes]:
    """An image of a fresh task: its id in its link, and its file."""
    if format == "png" and "model" not in body:
        path, asked = "/paas/v4/images/generations", {"model": "cogview-4", "size": "512x512"}
    else:
        path, asked = "/v1/images/generations", {"model": "pocket", "size": "512x512"}
        asked["output_format"] = format
    answer = server.client.post(path, json={"prompt": "a red cat"} | asked | body)
    assert answer.status_code == 200, answer.text
    task = server.client.get(f"/v1/images/tasks/{answer.headers['x-danqing-task']}").json()
    url = task["data"][0]["url"]
    return url.rpartition("/")[2].partition(".")[0], server.client.get(url).content


def inspected(server: Server, data: bytes) -> dict[str, object]:
    answer = server.client.post(ROUTE, files={"image": ("a", data)})
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_an_image_of_ours_is_known_again(live: Server, format: str) -> None:
    image_id, data = drawn(live, format)
    found = inspected(live, data)
    assert found["image_id"] == found["pixel_mark"] == image_id
    assert found["visible"] is (format == "png")  # CogView's rule; pocket's is without
    assert found["ours"] is found["pixels_unchanged"] is True
    assert found["metadata"]["ProduceID"] == image_id
    as_json = {"image": f"data:image/{format};base64,{base64.b64encode(data).decode()}"}
    assert live.client.post(ROUTE, json=as_json).json() == found
    assert live.client.post(ROUTE, json={"image": base64.b64encode(data).decode()}).json() == found


def saved(image: Image.Image, format: str, packet: str | None) -> bytes:
    """The picture in a file of this format, with this hidden label or with none."""
    out, info = io.BytesIO(), PngInfo()
    if format == "png":
        if packet is not None:
            info.add_itxt("XML:com.adobe.xmp", packet)
        image.save(out, "PNG", pnginfo=info)
    else:
        kept = {} if packet is None else {"xmp": packet.encode()}
        image.save(out, format, quality=95, **kept)
    return out.getvalue()


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_each_label_is_told_by_itself_in_every_format(
    labelled: Server, tmp_path: Path, format: str
) -> None:
    image_id, data = drawn(labelled, format, model="pocket")
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == format.upper()
        pixels = np.asarray(image.convert("RGB"))
    packet = metadata.read(data).xmp
    spot = labels.area("AI-generated", 512, 512)
    painted, strange = pixels.copy(), np.random.default_rng(3).integers(0, 256, pixels.shape)
    painted[spot.top : spot.bottom, spot.left : spot.right] = pixels[5, 5]
    strange = strange.astype(np.uint8)
    strange[spot.top : spot.bottom, spot.left : spot.right] = pixels[
        spot.top : spot.bottom, spot.left : spot.right
    ]
    for file, visible, hidden, mark, unchanged in (
        (data, True, True, True, True),
        (saved(Image.fromarray(painted), format, packet), False, True, True, False),
        (saved(Image.fromarray(strange), format, packet), True, True, False, False),
        (saved(Image.fromarray(pixels), format, None), True, False, True, None),
        (saved(Image.fromarray(strange[:, :200]), format, None), False, False, False, None),
    ):
        found = inspected(labelled, file)
        assert found.pop("object") == "image.inspection"
        assert found["visible"] is visible
        assert (found["metadata"] or {}).get("ProduceID") == (image_id if hidden else None)
        assert found["pixel_mark"] == (image_id if mark else None)
        assert found["image_id"] == (image_id if hidden or mark else None)
        assert found["pixels_unchanged"] is unchanged
        assert found["ours"] is (hidden or mark)
        if file is data:
            path = tmp_path / "a"
            path.write_bytes(file)
            assert json.loads(labelled.cli("inspect", str(path), "--json").stdout) == found


def test_a_thing_without_its_background_is_known_again(server: Server) -> None:
    body = {"model": "gpt-image-1", "prompt": "a red apple", "size": "1024x1024"}
    answer = server.client.post(
        "/v1/images/generations", json=body | {"background": "transparent", "seed": 3}
    )
    data = base64.b64decode(answer.json()["data"][0]["b64_json"])
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "RGBA"
        assert image.getextrema()[3] == (0, 255)
    found = inspected(server, data)
    assert found["pixel_mark"] == found["metadata"]["ProduceID"] == found["image_id"]
    assert found["ours"] is found["pixels_unchanged"] is True


def test_what_was_changed_since_shows(live: Server) -> None:
    image_id, data = drawn(live, "png")
    with Image.open(io.BytesIO(data)) as image:
        packet = image.info["XML:com.adobe.xmp"]
        # Encoded anew without loss, the label kept: nothing has changed.
        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", packet)
        out = io.BytesIO()
        image.save(out, "PNG", pnginfo=info, optimize=True)
        assert inspected(live, out.getvalue())["pixels_unchanged"] is True
        # One pixel painted over.
        image.putpixel((3, 3), (1, 2, 3))
        out = io.BytesIO()
        image.save(out, "PNG", pnginfo=info)
        found = inspected(live, out.getvalue())
        assert found["pixels_unchanged"] is False
        assert found["ours"] is True
        assert found["image_id"] == image_id
        # The metadata lost, smaller and in another format: the pixels still tell.
        out = io.BytesIO()
        image.resize((384, 384)).save(out, "JPEG", quality=80)
        found = inspected(live, out.getvalue())
        assert found["metadata"] is found["pixels_unchanged"] is None
        assert found["image_id"] == found["pixel_mark"] == image_id
        # Cut on every side, and its metadata lost.
        out = io.BytesIO()
        image.crop((20, 31, 500, 470)).save(out, "JPEG", quality=80)
        found = inspected(live, out.getvalue())
        assert found["metadata"] is None
        assert found["image_id"] == found["pixel_mark"] == image_id
        assert found["ours"] is True
    # The label on a stranger's picture.
    out = io.BytesIO()
    Image.new("RGB", (300, 300), "teal").save(out, "PNG", pnginfo=info)
    found = inspected(live, out.getvalue())
    assert found["pixel_mark"] is None
    assert found["pixels_unchanged"] is False
    # Somebody else's name in our label.
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", packet.replace("Danqing", "Somebody", 1))
    out = io.BytesIO()
    Image.open(io.BytesIO(data)).save(out, "PNG", pnginfo=info)
    found = inspected(live, out.getvalue())
    assert found["metadata"]["ContentProducer"] == "Somebody"
    assert found["pixels_unchanged"] is None
    assert found["pixel_mark"] == image_id


def bad_files() -> dict[str, bytes]:
    out = io.BytesIO()
    Image.effect_noise((64, 64), 80).convert("RGB").save(out, "PNG")
    whole = out.getvalue()
    lying = whole[:16] + (60_000).to_bytes(4, "big") * 2 + whole[24:]
    return {
        "empty": b"",
        "text": b"hello",
        "truncated": whole[: len(whole) // 2],
        "head alone": whole[:40],
        "lying": lying,
        "svg": b"<svg/>",
        "gif": b"GIF89a" + b"\0" * 40,
    }


@pytest.mark.parametrize("name", list(bad_files()))
def test_what_is_no_image_gets_a_clear_error(live: Server, name: str) -> None:
    answer = live.client.post(ROUTE, files={"image": ("a.png", bad_files()[name])})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == "image"
    assert "image" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "image"),
        ({"image": 3}, "image"),
        ({"image": "data:text/plain;base64,AAAA"}, "image"),
        ({"image": "http://somewhere/a.png"}, "image"),
        ({"image": "AAAA", "picture": "AAAA"}, "picture"),
    ],
)
def test_bodies_without_an_image(live: Server, body: dict[str, object], param: str) -> None:
    answer = live.client.post(ROUTE, json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_a_sealed_picture_that_no_decoder_shows_vouches_for_no_other(live: Server) -> None:
    _, webp = drawn(live, "webp")
    sealed = webp[webp.index(b"VP8 ") :]  # and the label behind it
    other = io.BytesIO()
    Image.new("RGB", (512, 512), "red").save(other, "WEBP")
    for forged in (other.getvalue() + sealed, other.getvalue() + sealed[:-1]):
        assert inspected(live, forged)["pixels_unchanged"] is not True
    _, png = drawn(live, "png")
    with Image.open(io.BytesIO(png)) as still:
        text, red = PngInfo(), Image.new("RGB", still.size, "red")
        text.add_itxt("XML:com.adobe.xmp", still.text["XML:com.adobe.xmp"])
        for frames, unchanged in (([], True), ([red, red], False)):
            out = io.BytesIO()
            moving = {"save_all": True, "append_images": frames, "default_image": True}
            still.save(out, "PNG", pnginfo=text, **(moving if frames else {}))
            assert inspected(live, out.getvalue())["pixels_unchanged"] is unchanged


def test_a_label_of_half_a_character(live: Server) -> None:
    text, out = PngInfo(), io.BytesIO()
    text.add_text("AIGC", '{"Label":"\\ud800","ProduceID":"\\udfff\\ud83d\\ude00"}')
    Image.new("RGB", (64, 64)).save(out, "PNG", pnginfo=text)
    assert inspected(live, out.getvalue())["metadata"] == {"Label": "�", "ProduceID": "�😀"}


def test_strangers_inspect_nothing(live: Server) -> None:
    answer = live.client.post(ROUTE, json={"image": "AAAA"}, headers={"authorization": "Bearer no"})
    assert answer.status_code == 401


def test_a_picture_of_one_pixel(live: Server) -> None:
    out = io.BytesIO()
    Image.new("RGB", (1, 1)).save(out, "PNG")
    found = inspected(live, out.getvalue())
    assert found["image_id"] is found["pixel_mark"] is None
    assert found["visible"] is found["ours"] is False


class Gated(Inspector):
    """Inspects nothing until it may."""

    def __init__(self) -> None:
        super().__init__(LabelSettings(), None)
        self.gate = threading.Semaphore(0)
        self.seen: list[bytes] = []

    def inspect(self, data: bytes, *, pixels_max: int) -> Inspection:
        self.seen.append(data)
        self.gate.acquire()
        return Inspection(None, False, None, None, None, None)


def test_accounts_take_turns_at_inspecting() -> None:
    asyncio.run(turns_at_inspecting())


async def turns_at_inspecting() -> None:
    gated = Gated()
    inspections = Inspections(gated)

    async def ask(account: str, name: bytes) -> Inspection:
        return await inspections.inspect(name, account, pixels_max=1)

    greedy = [asyncio.create_task(ask("greedy", b"g")) for _ in range(AT_ONCE + WAITING_MAX)]
    await asyncio.sleep(0)
    with pytest.raises(Busy) as busy:  # the line is full, and all of it is its own
        await ask("greedy", b"g")
    assert busy.value.retry_after_s >= 1
    other = asyncio.create_task(ask("other", b"o"))  # the greedy one's last gives way
    await asyncio.sleep(0)
    gated.gate.release()
    async with asyncio.timeout(60):
        while len(gated.seen) <= AT_ONCE:
            await asyncio.sleep(0.005)
    assert gated.seen == [b"g"] * AT_ONCE + [b"o"]  # the first place that was free
    gated.gate.release(AT_ONCE + WAITING_MAX)
    await other
    ends = await asyncio.gather(*greedy, return_exceptions=True)
    assert [type(end) for end in ends].count(Busy) == 1


@pytest.mark.slow
def test_a_full_line_is_told_to_come_back_and_not_to_others(
    null_server: Callable[..., Server],
) -> None:
    live = null_server(NULL_INSPECT_S="1.5")
    out = io.BytesIO()
    Image.new("RGB", (64, 64)).save(out, "PNG")
    body = {"image": base64.b64encode(out.getvalue()).decode()}
    greedy, other = ({"authorization": f"Bearer {live.account(name)}"} for name in ("greedy", "b"))
    with ThreadPoolExecutor(9) as pool:
        asked = [pool.submit(live.client.post, ROUTE, json=body, headers=greedy) for _ in range(8)]
        answers = (one.result() for one in as_completed(asked))
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert int(refused.headers["retry-after"]) >= 1
        assert live.client.post(ROUTE, json=body, headers=other).status_code == 200
        assert {one.result().status_code for one in asked} == {200, 429}


EXIFTOOL = shutil.which("exiftool")


@pytest.mark.slow
@pytest.mark.skipif(
    EXIFTOOL is None, reason="needs exiftool (apt-get install libimage-exiftool-perl)"
)
@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_exiftool_reads_our_label(live: Server, tmp_path: Path, format: str) -> None:
    assert EXIFTOOL is not None
    image_id, data = drawn(live, format)
    file = tmp_path / f"a.{format}"
    file.write_bytes(data)
    told = subprocess.run([EXIFTOOL, "-j", "-XMP:all", file], capture_output=True, check=True)
    fields = json.loads(json.loads(told.stdout)[0]["Aigc"])
    assert fields["Label"] == "1"
    assert fields["ProduceID"] == image_id
    # A metadata editor's work leaves the seal whole.
    subprocess.run([EXIFTOOL, "-q", "-overwrite_original", "-XMP:Title=mine", file], check=True)
    found = inspected(live, file.read_bytes())
    assert found["pixels_unchanged"] is True
    assert found["metadata"] == fields
