"""The labels: high enough, legible on any ground, always inside; the hidden one in the guide's own form."""

from __future__ import annotations

import html
import io
import json
import math
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from typing import get_args

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFont
from pydantic import ValidationError

from danqing.domain.card import ImageFormat
from danqing.domain.task import Pixels
from danqing.service import hidden_label, labels
from danqing.settings import Corner, LabelSettings
from danqing.storage import codecs, metadata

TEXTS = ["AI生成", "AI-generated"]
SIZES = [
    (64, 64), (65, 97), (128, 128), (256, 256), (512, 512), (1024, 1024), (1792, 1024),
    (1024, 1792), (2048, 2048), (2048, 64), (64, 2048), (2048, 700), (700, 2048),
]  # fmt: skip


def flat(width: int, height: int, colour: tuple[int, int, int] = (255, 255, 255)) -> Pixels:
    return np.full((height, width, 3), colour, np.uint8)


def noise(width: int, height: int) -> Pixels:
    return np.random.default_rng(5).integers(0, 256, (height, width, 3), dtype=np.uint8)


def checks(width: int, height: int, side: int) -> Pixels:
    y, x = np.mgrid[0:height, 0:width]
    grey = ((x // side + y // side) % 2 * 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def box_of(mask: npt.NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Top, bottom (exclusive), left, right (exclusive) of what is set."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def ink_of(text: str, width: int, height: int) -> npt.NDArray[np.bool_]:
    """The solid part of the text: more than half dark on a white image."""
    return labels.draw_visible(flat(width, height), text)[..., 0] < 128


def plate_of(text: str, width: int, height: int) -> npt.NDArray[np.bool_]:
    """All that the label covers: every pixel that a grey image has changed."""
    grey = flat(width, height, (128, 128, 128))
    return (labels.draw_visible(grey, text) != grey).any(axis=2)


def luminance(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """WCAG 2.2 relative luminance."""
    srgb = pixels / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    return linear @ np.array([0.2126, 0.7152, 0.0722])


def contrasts(pixels: Pixels, text: str) -> npt.NDArray[np.float64]:
    """WCAG contrast between the drawn text and each pixel of the plate beside it."""
    height, width, _ = pixels.shape
    drawn = luminance(labels.draw_visible(pixels, text))
    ink, plate = ink_of(text, width, height), plate_of(text, width, height)
    top, bottom, left, right = box_of(ink)
    inside = np.zeros_like(plate)
    inside[top:bottom, left:right] = True
    near = np.zeros_like(ink)  # antialiased edges belong to neither
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            near |= np.roll(ink, (dy, dx), (0, 1))
    core = ink & ~(np.roll(~ink, 1, 1) | np.roll(~ink, -1, 1))
    letters, ground = np.median(drawn[core]), drawn[plate & inside & ~near]
    return (np.maximum(letters, ground) + 0.05) / (np.minimum(letters, ground) + 0.05)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_height_place_and_fit(text: str, width: int, height: int) -> None:
    short = min(width, height)
    top, bottom, left, right = box_of(ink_of(text, width, height))
    assert bottom - top >= math.ceil(short * 0.05)
    if short >= 256:  # not needlessly larger
        assert bottom - top <= short * 0.06
    top, bottom, left, right = box_of(plate_of(text, width, height))
    margin = round(short * labels.MARGIN_SHARE)
    assert (height - bottom, width - right) == (margin, margin)
    assert left >= margin
    assert top >= height // 2


@pytest.mark.parametrize("text", TEXTS)
def test_small_images_get_legible_text(text: str) -> None:
    top, bottom, *_ = box_of(ink_of(text, 128, 128))
    assert bottom - top >= labels.LEGIBLE_PX


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from(TEXTS))
def test_any_size_is_labelled_within_its_bounds(width: int, height: int, text: str) -> None:
    pixels = noise(width, height)
    pixels.setflags(write=False)
    before = pixels.copy()
    drawn = labels.draw_visible(pixels, text)
    assert drawn.shape == pixels.shape
    assert drawn.dtype == np.uint8
    assert np.array_equal(pixels, before)
    if min(width, height) >= 32:  # the whole label is inside
        top, _, left, _ = box_of(plate_of(text, width, height))
        margin = round(min(width, height) * labels.MARGIN_SHARE)
        assert top >= margin
        assert left >= margin


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (8000, 40), (16, 16)])
def test_odd_sizes(size: tuple[int, int]) -> None:
    for text in TEXTS:
        drawn = labels.draw_visible(flat(*size), text)
        assert drawn.shape == (size[1], size[0], 3)
        assert (drawn != 255).any() == (size != (1, 1))


def test_nothing_but_the_label_changes() -> None:
    pixels = noise(640, 480)
    drawn = labels.draw_visible(pixels, "AI生成")
    top, bottom, left, right = box_of(plate_of("AI生成", 640, 480))
    drawn[top:bottom, left:right] = pixels[top:bottom, left:right]
    assert np.array_equal(drawn, pixels)


@pytest.mark.parametrize("text", TEXTS)
@settings(deadline=None, max_examples=60)
@given(colour=st.tuples(*[st.integers(0, 255)] * 3))
def test_contrast_on_every_colour(text: str, colour: tuple[int, int, int]) -> None:
    assert contrasts(flat(384, 384, colour), text).min() >= 4.4


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(
    "pixels",
    [noise(512, 512), checks(512, 512, 3), checks(512, 512, 16), checks(512, 512, 40),
     noise(512, 512) // 4, 255 - noise(512, 512) // 4],
    ids=["noise", "checks 3", "checks 16", "checks 40", "dark noise", "light noise"],
)  # fmt: skip
def test_contrast_on_busy_grounds(text: str, pixels: Pixels) -> None:
    found = contrasts(pixels, text)
    assert np.percentile(found, 5) >= 4.4
    assert found.min() >= 3.5


def test_drawing_in_several_threads_is_the_same() -> None:
    sizes = [(200 + 8 * i, 300) for i in range(24)]
    with ThreadPoolExecutor(8) as pool:
        drawn = list(pool.map(lambda s: labels.draw_visible(flat(*s), "AI生成"), sizes))
    for size, pixels in zip(sizes, drawn, strict=True):
        assert np.array_equal(pixels, labels.draw_visible(flat(*size), "AI生成"))


def test_the_font_has_every_character_and_its_licence() -> None:
    assets = files("danqing.service").joinpath("assets")
    data = assets.joinpath("NotoSansCJKsc-Bold-labels.otf").read_bytes()
    assert len(data) < 1_000_000
    font = ImageFont.truetype(io.BytesIO(data), 40)
    missing = bytes(font.getmask("\uffff"))
    for char in set("".join(TEXTS)) | set("丹青人工智能生成合成图像模型辅助内容"):
        assert bytes(font.getmask(char)) != missing, char
    licence = assets.joinpath("NotoSansCJKsc-Bold-labels.LICENSE.txt").read_text("utf-8")
    assert "SIL OPEN FONT LICENSE Version 1.1" in licence
    assert "Copyright" in licence


def test_wording_follows_the_prompts_language() -> None:
    settings = LabelSettings()
    assert labels.wording("一只猫", settings) == "AI生成"
    assert labels.wording("a 猫", settings) == "AI生成"
    assert labels.wording("a cat, 😀", settings) == "AI-generated"
    assert labels.wording("", settings) == "AI-generated"
    own = LabelSettings(text_chinese="人工智能合成", text_english="Made by AI")
    assert labels.wording("一只猫", own) == "人工智能合成"
    assert labels.wording("a cat", own) == "Made by AI"


@pytest.mark.parametrize("text", ["a nice picture", "人工智能", "AI\nmade", "AI"])
def test_a_label_that_says_too_little_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        LabelSettings(text_english=text)


def test_signs_that_the_font_has_not_are_named() -> None:
    assert labels.unprintable("AI 生成, made by AI") == ""
    assert labels.unprintable("AI生成 ж龘") == "ж龘"


@pytest.mark.parametrize("corner", get_args(Corner))
@pytest.mark.parametrize("text", TEXTS)
def test_every_corner_and_finding_the_label_there(corner: Corner, text: str) -> None:
    place = labels.Place(corner, 0.04)
    for number, plain in enumerate(
        (flat(700, 400, (128, 128, 128)), noise(700, 400), checks(700, 400, 7))
    ):
        drawn = labels.draw_visible(plain, text, place)
        changed = (drawn != plain).any(axis=2)
        top, bottom, left, right = box_of(changed)
        assert abs((400 - bottom if "bottom" in corner else top) - 16) <= 1
        assert abs((700 - right if "right" in corner else left) - 16) <= 1
        assert labels.shows(drawn, text, 0.04), number
        assert not labels.shows(plain, text, 0.04), number
        assert not any(labels.shows(drawn, other, 0.04) for other in TEXTS if other != text)


def test_a_label_is_found_after_a_jpeg_and_at_half_the_size() -> None:
    drawn = labels.draw_visible(noise(1024, 768) // 2 + 60, "AI生成")
    with Image.open(io.BytesIO(codecs.encode(drawn, "jpeg", compression=60))) as image:
        assert labels.shows(np.asarray(image), "AI生成")
        assert labels.shows(np.asarray(image.resize((512, 384))), "AI生成")


GUIDE = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">\n'
    '<rdf:Description rdf:about="" xmlns:TC260="http://www.tc260.org.cn/ns/AIGC/1.0/">\n'
    "<TC260:AIGC>{&quot;Label&quot;:&quot;1&quot;,&quot;ContentProducer&quot;:&quot;Danqing&quot;,"
    "&quot;ProduceID&quot;:&quot;0a1b2c3d4e5&quot;,&quot;ReservedCode1&quot;:&quot;&quot;,"
    "&quot;ContentPropagator&quot;:&quot;&quot;,&quot;PropagateID&quot;:&quot;&quot;,"
    "&quot;ReservedCode2&quot;:&quot;&quot;}</TC260:AIGC>\n"
    "</rdf:Description></rdf:RDF></x:xmpmeta>"
)


def test_xmp_is_the_guides_form_to_the_letter() -> None:
    fields = hidden_label.label_fields(producer="Danqing", produce_id="0a1b2c3d4e5")
    assert hidden_label.xmp(fields) == GUIDE


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_the_hidden_label_is_read_back_from_a_file(format: ImageFormat) -> None:
    fields = hidden_label.label_fields(producer="P", produce_id="0a")
    data = codecs.encode(noise(64, 64), format, xmp=hidden_label.xmp(fields))
    packet = metadata.read(data).xmp
    assert packet is not None
    assert hidden_label.read_xmp(packet) == {
        "Label": "1", "ContentProducer": "P", "ProduceID": "0a", "ReservedCode1": "",
        "ContentPropagator": "", "PropagateID": "", "ReservedCode2": "",
    }  # fmt: skip


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"])))
def test_any_producer_survives(producer: str) -> None:
    found = hidden_label.read_xmp(
        hidden_label.xmp(hidden_label.label_fields(producer=producer, produce_id="1"))
    )
    assert found is not None
    assert found["ContentProducer"] == producer


def packet(value: str, *, attribute: bool = False, prefix: str = "TC260") -> str:
    name, text = f"{prefix}:AIGC", html.escape(value)
    inside = f' {name}="{text}"/>' if attribute else f"><{name}>{text}</{name}></r:Description>"
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<r:RDF xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><r:Description r:about="" '
        f'xmlns:{prefix}="{hidden_label.XMP_NAMESPACE}"{inside}</r:RDF></x:xmpmeta><?xpacket end="w"?>'
    )


def test_deviant_forms_are_read() -> None:
    plain, wrapped = {"Label": "1", "ProduceID": "x"}, {"AIGC": {"Label": 1, "ProduceID": "x"}}
    for value in (plain, wrapped):
        for text in (
            packet(json.dumps(value)),
            packet(json.dumps(value), attribute=True),
            packet(json.dumps(value), prefix="other") + "\0\n",
        ):
            assert hidden_label.read_xmp(text) == plain


@pytest.mark.parametrize(
    "text",
    [
        "", "no xml", "<a/>", packet(""), packet("not json"), packet("[1]"), packet("{}"),
        packet('{"AIGC": 1}'), packet('{"ProduceID": "x"}'), packet("[" * 20_000),
        packet('{"Label": "1"}') + "x" * 100_000,
        '<!DOCTYPE a [<!ENTITY b "1">]>' + packet('{"Label": "1"}'),
        packet('{"Label": "1"}')[:-20],
    ],
)  # fmt: skip
def test_what_is_no_label_is_none(text: str) -> None:
    assert hidden_label.read_xmp(text) is None


def test_the_label_survives_a_jpeg_and_stays_high_enough() -> None:
    drawn = labels.draw_visible(flat(512, 512), "AI生成")
    with Image.open(io.BytesIO(codecs.encode(drawn, "jpeg", compression=75))) as image:
        ink = np.asarray(image.convert("L")) < 128
    top, bottom, *_ = box_of(ink)
    assert bottom - top >= math.ceil(512 * 0.05)


@pytest.mark.parametrize("hidden", [0, 90, 255])
def test_a_label_is_opaque_whatever_is_transparent_below_it(hidden: int) -> None:
    """A provider's transparent pixels have any colour: also the label's own."""
    pixels = np.full((512, 768, 4), hidden, np.uint8)
    pixels[..., 3] = 0
    drawn = labels.draw_visible(pixels, "AI-generated")
    place = labels.area("AI-generated", 768, 512)
    inside = drawn[place.top : place.bottom, place.left : place.right]
    assert (inside[8:-8, 8:-8, 3] == 255).all()
    assert drawn[..., 3].sum() == inside[..., 3].sum(), "and nothing else is"
    assert labels.shows(np.ascontiguousarray(drawn[..., :3]), "AI-generated")
    assert (pixels[..., 3] == 0).all()
