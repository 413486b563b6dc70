"""An operator's classifier: a real ONNX file, read as its sheet says, and refused by the field that is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from danqing.engine.classifier import Classifier, ClassifierError
from tests.tiny_onnx import SHEET, write_classifier


def picture(red: int, green: int, blue: int, height: int = 30, width: int = 40) -> np.ndarray:
    return np.full((height, width, 3), (red, green, blue), np.uint8)


def test_scores_by_label(tmp_path: Path) -> None:
    classifier = Classifier(write_classifier(tmp_path))
    scores = classifier.scores(picture(255, 51, 0))
    assert scores == pytest.approx({"red": 1.0, "green": 0.2, "blue": 0.0}, abs=1e-6)
    assert classifier.levels == {"red": (0.95, 0.8, 0.6)}


def test_mean_std_and_colour_order(tmp_path: Path) -> None:
    sheet = 'mean = [0.5, 0.25, 0.0]\nstd = [0.5, 0.25, 1.0]\nchannels = "bgr"\n' + SHEET
    scores = Classifier(write_classifier(tmp_path, sheet)).scores(picture(255, 0, 51))
    # The network sees blue, green, red; mean and std belong to the colours themselves.
    assert scores == pytest.approx({"red": 0.2, "green": -1.0, "blue": 1.0}, abs=1e-6)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_activations(tmp_path: Path, activation: str) -> None:
    sheet = SHEET.replace('"none"', f'"{activation}"')
    scores = Classifier(write_classifier(tmp_path, sheet)).scores(picture(255, 0, 0))
    raw = np.array([1.0, 0.0, 0.0])
    expected = (
        np.exp(raw) / np.exp(raw).sum() if activation == "softmax" else 1 / (1 + np.exp(-raw))
    )
    assert list(scores.values()) == pytest.approx(list(expected), abs=1e-6)


@pytest.mark.parametrize(("resize", "red"), [("stretch", 0.5), ("crop", 1.0)])
def test_what_is_seen_of_a_long_picture(tmp_path: Path, resize: str, red: float) -> None:
    """Red in the middle, black at both sides."""
    pixels = picture(0, 0, 0, 64, 256)
    pixels[:, 64:192] = (255, 0, 0)
    sheet = f'resize = "{resize}"\n' + SHEET
    assert Classifier(write_classifier(tmp_path, sheet)).scores(pixels)["red"] == pytest.approx(
        red, abs=0.02
    )


def test_other_layouts_and_open_sizes(tmp_path: Path) -> None:
    nhwc = 'layout = "nhwc"\n' + SHEET
    path = write_classifier(tmp_path, nhwc, shape=(1, 8, 8, 3), axes=(1, 2))
    assert Classifier(path).scores(picture(255, 0, 0))["red"] == pytest.approx(1.0)
    path = write_classifier(tmp_path, "size = [16, 24]\n" + SHEET, shape=("n", 3, "h", "w"))
    assert Classifier(path).scores(picture(0, 255, 0))["green"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("sheet", "options", "named"),
    [
        ("", {}, "labels"),
        ('labels = ["a"]\n', {}, "levels"),
        (SHEET + "pink = [0.9, 0.8, 0.7]\n", {}, "levels.pink: there is no such label"),
        (SHEET.replace("0.8, 0.6", "0.8, 0.9"), {}, "levels.red: thresholds fall"),
        (SHEET.replace("0.95", "9"), {}, "levels.red.0"),
        (SHEET.replace('"blue"', '"red"'), {}, "labels: one of them is there twice"),
        (SHEET.replace('"blue"', '"blue", "grey"'), {}, "labels: there are 4, the network gives 3"),
        ("std = [1.0, 0.0, 1.0]\n" + SHEET, {}, "std: all are above 0"),
        ("colour = 1\n" + SHEET, {}, "colour"),
        ("not toml", {}, "cannot read"),
        ("size = [9, 9]\n" + SHEET, {}, "size: the network wants 8 x 8"),
        ("size = [0, 8]\n" + SHEET, {}, "size: height and width"),
        (SHEET, {"shape": (1, 3, "h", "w")}, "size: the network does not say it"),
        ('layout = "nhwc"\n' + SHEET, {}, "layout: "),
        (SHEET, {"shape": (1, 3, 8), "axes": (1,)}, "no single input of four axes"),
        (SHEET, {"axes": (1, 2, 3)}, "labels: there are 3, the network gives 1"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, sheet: str, options: dict, named: str) -> None:
    with pytest.raises(ClassifierError) as refused:
        Classifier(write_classifier(tmp_path, sheet, **options))
    assert named in str(refused.value)


def test_files_that_are_missing_or_no_network(tmp_path: Path) -> None:
    path = write_classifier(tmp_path)
    path.write_bytes(b"no network at all")
    with pytest.raises(ClassifierError, match="is no ONNX network"):
        Classifier(path)
    path.unlink()
    with pytest.raises(ClassifierError, match="there is no file"):
        Classifier(path)
    path.with_suffix(".toml").unlink()
    with pytest.raises(ClassifierError, match="cannot read"):
        Classifier(path)
