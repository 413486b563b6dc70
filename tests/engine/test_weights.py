"""Checkpoint folders looked at without torch: what is there, how large, and what is wrong with it."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danqing.domain import pulled
from danqing.domain.pulled import RECORD, Record
from danqing.engine.families import positions, weights
from danqing.engine.families.load import LoadError, Plan, check_family
from danqing.engine.families.weights import CheckpointError, find, measure

PARTS = ("transformer", "text_encoder", "vae")


def safetensors(shapes: dict[str, list[int]], bytes_each: int = 2) -> bytes:
    """The format, by hand: length, header, data."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in shapes.items():
        size = bytes_each
        for side in shape:
            size *= side
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(at)


def checkpoint(folder: Path) -> Path:
    for name in PARTS:
        part = folder / name
        part.mkdir(parents=True)
        (part / "config.json").write_text("{}")
        (part / "model.safetensors").write_bytes(safetensors({"a": [3, 5], "b": [7]}))
    for name in ("tokenizer", "scheduler"):
        (folder / name).mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text("{}")
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    (folder / "model_index.json").write_text('{"_class_name": "CogView4Pipeline"}')
    return folder


def test_a_whole_checkpoint_is_measured(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "c")
    assert find(folder, "CogView4Pipeline")["_class_name"] == "CogView4Pipeline"
    (folder / "transformer" / "more.safetensors").write_bytes(safetensors({"c": [2, 2, 2]}))
    assert {part.name: part.parameters for part in measure(folder)} == {
        "transformer": 30,
        "text_encoder": 22,
        "vae": 22,
    }


@given(st.binary(max_size=200) | st.integers(0, 150).map(lambda cut: safetensors({"a": [4]})[:cut]))
def test_what_is_no_safetensors_file_is_refused_by_name(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    folder = checkpoint(tmp_path_factory.mktemp("spoilt") / "c")
    file = folder / "vae" / "model.safetensors"
    file.write_bytes(data)
    if data == safetensors({"a": [4]}):
        measure(folder)
        return
    with pytest.raises(CheckpointError, match=r"vae/model.safetensors is no whole") as caught:
        measure(folder)
    assert "\n" not in str(caught.value)


def test_a_download_that_was_cut_off_is_noticed_before_loading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("danqing.engine.families.load.find_spec", lambda name: name)
    folder = checkpoint(tmp_path / "c")
    check_family(Plan("cogview4", str(folder)))
    file = folder / "transformer" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(LoadError, match=r"^checkpoint: .*it has \d+ bytes and should have \d+"):
        check_family(Plan("cogview4", str(folder)))
    with pytest.raises(LoadError, match=r"^checkpoint: .* holds a CogView4Pipeline, not a Qwen"):
        check_family(Plan("qwen_image", str(folder)))


def test_what_a_folder_cannot_be_is_said_in_words(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "c")
    (folder / "tokenizer" / "tokenizer.json").rename(folder / "tokenizer" / "config.json")
    with pytest.raises(CheckpointError, match=r"tokenizer holds no vocabulary: tokenizer\.json or"):
        find(folder, "CogView4Pipeline")
    quantized = {"quantization_config": {"quant_method": "bitsandbytes"}}
    (folder / "vae" / "config.json").write_text(json.dumps(quantized))
    with pytest.raises(CheckpointError, match=r"vae is quantized \(bitsandbytes\): only whole"):
        find(folder, "CogView4Pipeline")
    (folder / "model_index.json").unlink()
    with pytest.raises(CheckpointError, match=r"model_index\.json is missing$"):
        find(folder, "CogView4Pipeline")
    (folder / "all-in-one.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="of another layout than diffusers'"):
        find(folder, "CogView4Pipeline")


def test_a_librarys_advice_to_its_callers_is_left_out() -> None:
    error = ValueError(
        "no a.b expected\n shape [8], but got [4]. If you want, pass x=False. See https://"
    )
    assert weights.one_line(error) == "ValueError: no a.b expected shape [8], but got [4]"


@pytest.mark.parametrize(
    ("text", "wanted", "fault"),
    [
        (Record("h", "o/n", "abc1234").text(), "abc1234", None),
        (Record("h", "o/n", "abc1234").text(), "def5678", "o/n is here at abc1234, not at def5678"),
        (Record("h", "o/n", "abc1234", False).text(), "abc1234", "did not end: run it again"),
        (None, "abc1234", "there is no danqing.json that says which commit this is"),
        ("[]", "abc1234", "there is no danqing.json that says which commit this is"),
        ('{"id": 1}', "abc1234", "there is no danqing.json that says which commit this is"),
        ("{", "abc1234", "there is no danqing.json that says which commit this is"),
    ],
)
def test_a_checkpoint_is_held_to_its_commit(
    tmp_path: Path, text: str | None, wanted: str, fault: str | None
) -> None:
    if text is not None:
        (tmp_path / RECORD).write_text(text, "utf-8")
    found = pulled.fault(weights.pulled_from(tmp_path), wanted)
    assert found is None if fault is None else fault in str(found)


def test_a_record_is_read_as_it_was_written() -> None:
    record = Record("https://hub.example", "o/n", "abc1234", False, {"a/b.json": "0" * 64, "é": ""})
    assert Record.of(record.text()) == record


@pytest.mark.parametrize(
    ("config", "side"),
    [
        ({"_class_name": "CogView4Transformer2DModel"}, 4096),
        ({"_class_name": "CogView4Transformer2DModel", "rope_axes_dim": [64, 32], "patch_size": 2}, 512),
        ({"_class_name": "QwenImageTransformer2DModel", "patch_size": 2}, 98_304),
        ({"_class_name": "SD3Transformer2DModel", "pos_embed_max_size": 192, "patch_size": 2}, 3072),
        ({"_class_name": "SD3Transformer2DModel", "pos_embed_max_size": 384}, 6144),
        ({"_class_name": "ZImageTransformer2DModel", "axes_lens": [1536, 512, 384], "all_patch_size": [2]}, 6144),
        ({"_class_name": "FluxTransformer2DModel"}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_a_networks_config_tells_how_far_it_can_tell_positions(
    config: dict[str, object], side: int | None, tmp_path: Path
) -> None:
    assert positions.side_max(tmp_path) is None  # no transformer: a UNet
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text(json.dumps(config))
    assert positions.side_max(tmp_path) == side


@pytest.mark.parametrize(
    "config",
    [
        {"_class_name": "CogView4Transformer2DModel", "rope_axes_dim": 16},
        {"_class_name": "ZImageTransformer2DModel", "axes_lens": [1536]},
    ],
)
def test_positions_that_are_none_are_named(config: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"config\.json: its positions are no numbers"):
        positions.side_max(tmp_path)
