"""What moderation's settings come to when a server is put together: refused by the field that is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from danqing import catalog, settings
from danqing.guard import make_screen
from danqing.net.outbound import Outbound
from danqing.observability.metrics import Metrics
from danqing.service.screening import Screen
from danqing.settings import SettingsError
from tests.tiny_onnx import write_classifier

RELAY = """
[backends.far]
dialect = "openai"
base_url = "http://127.0.0.1:1/v1"
key_env = "SOMEWHERE"
labels = "provider"
rehost = {rehost}

[models.far]
like = "dall-e-2"
backend = "far"
backend_model = "x"
"""


def made(folder: Path, rehost: str = "true", **moderation: Any) -> Screen:
    path = folder / "catalog.toml"
    path.write_text(RELAY.format(rehost=rehost), "utf-8")
    configured = settings.load(data_dir=folder, catalog_file=path, moderation=moderation)
    return make_screen(configured, Metrics(), Outbound(), catalog.load(configured))


def test_a_classifier(tmp_path: Path) -> None:
    path = write_classifier(tmp_path)
    assert made(tmp_path, images="classifier", classifier=path).sees_images
    assert not made(tmp_path).sees_images


def test_links_that_are_passed_on_cannot_be_judged(tmp_path: Path) -> None:
    made(tmp_path, "false")
    path = write_classifier(tmp_path)
    with pytest.raises(SettingsError, match=r"backends\.far\.rehost"):
        made(tmp_path, "false", images="classifier", classifier=path)


@pytest.mark.parametrize(
    ("moderation", "named"),
    [
        ({"images": "api"}, "api.base_url"),
        ({"images": "classifier"}, "classifier"),
        ({"classifier": "x.onnx"}, "classifier"),
        ({"images": "classifier", "classifier": "none.onnx"}, r"moderation\.classifier: .*none\.toml"),
        ({"api": {"base_url": "ftp://x"}}, r"moderation\.api\.base_url"),
        ({"api": {"key": "secr et"}}, r"moderation\.api\.key"),
        ({"api": {"levels": [0.9, 0.8]}}, r"moderation\.api\.levels"),
        ({"api": {"levels": [0.1, 0.8, 0.9]}}, r"moderation\.api\.levels"),
        ({"api": {"category_levels": {"hate": [0.1, 0.8, 0.9]}}}, r"moderation\.api\.category_levels"),
        ({"on_failure": "maybe"}, r"moderation\.on_failure"),
        ({"word_lists": ["none.txt"]}, r"moderation: cannot read the word list none\.txt"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path: Path, moderation: dict[str, Any], named: str) -> None:
    with pytest.raises(SettingsError, match=named) as refused:
        made(tmp_path, **moderation)
    assert "secr" not in str(refused.value)
