"""jimeng's relays seen from their client: sizes by ratio and resolution, and failures that come with HTTP 200."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from danqing.catalog import load
from danqing.dialects.answers import NO_MONEY, SHUT_OUT
from danqing.dialects.client import Incoming, ProviderImage, Target
from danqing.dialects.jimeng_client import EXTRAS, SIZES, JimengClient
from danqing.dialects.openai_client import OpenAIClient
from danqing.dialects.registry import CLIENTS
from danqing.domain import errors
from danqing.domain.sizes import Size
from danqing.domain.task import Delivery, ImageSource, ImageTask, InputImage
from danqing.settings import Settings

TASK = ImageTask("jimeng-4.0", "猫", Size(1664, 2496), "standard", n=4)
PICTURE = InputImage(b"png", "png", Size(64, 64))


def failure(code: int | str, message: str = "") -> Incoming:
    body = {"code": code, "message": message, "data": None}
    return Incoming(200, json.dumps(body).encode())


CLIENTS_OF_RELAYS = [CLIENTS["openai"], OpenAIClient(frozenset()), JimengClient()]


@pytest.mark.parametrize("client", CLIENTS_OF_RELAYS, ids=["openai", "openai-bare", "jimeng"])
@pytest.mark.parametrize(
    ("code", "message", "kind", "said"),
    [
        (-2006, "[内容由于合规问题已被阻止生成]: x", errors.ContentRefused, None),
        ("-2006", "", errors.ContentRefused, None),
        (-2001, "[请求失败]: 输入的文字包含敏感内容", errors.ContentRefused, None),
        (-2002, "[Token已失效]", errors.ProviderFailed, SHUT_OUT),
        (-2009, "[即梦积分不足]", errors.ProviderFailed, NO_MONEY),
        (-2005, "[已有对话流正在输出]", errors.Busy, None),
        (-2001, "[请求失败]: x", errors.ProviderFailed, "code -2001"),
        (-2007, "[图像生成失败]", errors.ProviderFailed, "code -2007"),
        (-1000, "[系统异常]", errors.ProviderFailed, "code -1000"),
        (-2000, "[请求参数非法]", errors.ProviderFailed, "code -2000"),
        (-9999, "", errors.ProviderFailed, "code -9999"),
    ],
)
def test_a_failure_that_comes_with_200(
    client: Any, code: int | str, message: str, kind: type[errors.DanqingError], said: str | None
) -> None:
    answer = failure(code, message)
    read = client.decode_error(answer)
    assert type(read) is kind
    assert said is None or said in read.message
    with pytest.raises(kind):
        client.decode_result(answer, TASK)


@pytest.mark.parametrize(
    ("code", "message", "kind", "field"),
    [
        (
            -1000,
            "不支持的参数: size。请使用 ratio 和 resolution 参数。",
            "UnsupportedField",
            "size",
        ),
        (-2000, "Params body.prompt invalid", "InvalidField", "prompt"),
        (-1001, "Params body.ratio invalid", "InvalidField", "size"),
        (-2000, "sample_strength must be from 0 to 1", "InvalidField", "strength"),
        (-2003, "[远程文件URL非法]", "InvalidImage", "image"),
        (-2004, "[远程文件超出大小]", "InvalidImage", "image"),
    ],
)
def test_what_the_caller_can_mend_names_the_field(
    code: int, message: str, kind: str, field: str
) -> None:
    read = JimengClient().decode_error(failure(code, message))
    assert isinstance(read, errors.RequestError)
    assert (type(read).__name__, read.param) == (kind, field)


def test_an_answer_with_images_is_none_whatever_stands_beside_them() -> None:
    body = {"code": 0, "created": 1, "data": [{"url": "https://img.example/1.jpeg"}] * 4}
    for client in CLIENTS_OF_RELAYS:
        answer = Incoming(200, json.dumps(body).encode())
        assert client.decode_error(answer) is None
        images = client.decode_result(answer, TASK).images  # type: ignore[union-attr]
        assert [type(one) for one in images] == [ProviderImage] * 4


def test_what_it_says() -> None:
    sent = JimengClient(EXTRAS - {"width"}).encode_request(TASK, Delivery(), Target("jimeng-4.0"))
    assert (sent.method, sent.path) == ("POST", "/images/generations")
    assert sent.json == {
        "model": "jimeng-4.0",
        "prompt": "猫",
        "n": 4,
        "ratio": "2:3",
        "resolution": "2k",
        "response_format": "url",
    }


def test_a_relay_that_takes_sides_gets_sides() -> None:
    task = ImageTask("jimeng-3.0", "猫", Size(1000, 600), "standard", negative_prompt="雨")
    client = JimengClient(frozenset({"width"}))
    assert client.unsupported(task, Delivery()) == frozenset()
    said = client.encode_request(task, Delivery(), Target("jimeng-3.0")).json
    assert said is not None
    assert (said["width"], said["height"], said["negative_prompt"]) == (1000, 600, "雨")
    assert not {"size", "ratio", "resolution"} & set(said)


def test_a_picture_goes_with_its_strength() -> None:
    source = ImageSource("image", b"png")
    task = ImageTask("m", "猫", Size(2048, 2048), "standard", references=(source,), strength=0.25)
    assert JimengClient(frozenset()).unsupported(task, Delivery()) == {"references", "strength"}
    said = JimengClient().encode_request(task, Delivery(), Target("m", (PICTURE,))).json
    assert said is not None
    assert (said["sample_strength"], said["images"]) == (0.25, ["data:image/png;base64,cG5n"])


def test_only_its_own_sizes_can_be_said() -> None:
    """4:3 and 3:4 at 1k are drawn the other way round there (iptag/jimeng-api): so neither is asked for."""
    for size in ("1024x768", "768x1024", "1000x600"):
        parsed = Size.parse(size)
        assert parsed is not None
        task = ImageTask("m", "猫", parsed, "standard")
        assert JimengClient(frozenset()).unsupported(task, Delivery()) == {"size"}


def test_its_sizes_are_those_of_the_cards_but_for_the_small_ones() -> None:
    tiers = load(Settings()).cards["jimeng-4.0"].sizes.tiers
    for resolution in ("2k", "4k"):
        here = tiers[resolution.upper()]
        assert {ratio: str(size) for ratio, size in here.items()} == SIZES[resolution]


def test_the_built_in_row_draws_every_ratio_there(tmp_path: Path) -> None:
    """4:3 and 3:4 are drawn at 2K, all else at 1K: of a tier only what can be drawn at it."""
    catalog = tmp_path / "catalog.toml"
    catalog.write_text(
        '[backends.far]\ndialect = "jimeng"\nbase_url = "http://localhost:5100/v1"\n'
        '[models."jimeng-4.0"]\nbackend = "far"\n',
        encoding="utf-8",
    )
    built_in = load(Settings()).cards["jimeng-4.0"].sizes
    sizes = load(Settings(catalog_file=catalog)).cards["jimeng-4.0"].sizes
    tier = {ratio: "2k" if ratio in ("4:3", "3:4") else "1k" for ratio in built_in.named}
    assert {ratio: str(size) for ratio, size in sizes.named.items()} == {
        ratio: SIZES[tier[ratio]][ratio] for ratio in tier
    }
    assert {
        name.lower(): {ratio: str(size) for ratio, size in by_ratio.items()}
        for name, by_ratio in sizes.tiers.items()
    } == SIZES
