"""Real ONNX files of a few hundred bytes, written by hand: a classifier whose scores are the means of the colours.

Protobuf's wire format and the field numbers of onnx.proto (onnx 1.x); the onnx package is not needed for so little.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

FLOAT, INTS, INT = 1, 7, 2
SHEET = """
labels = ["red", "green", "blue"]
activation = "none"
[levels]
red = [0.95, 0.8, 0.6]
"""


def write_classifier(
    folder: Path,
    sheet: str = SHEET,
    *,
    shape: Sequence[int | str] = (1, 3, 8, 8),
    axes: Sequence[int] = (2, 3),
    name: str = "classifier",
) -> Path:
    """`name.onnx` and `name.toml` in the folder; the ONNX file's path. A text in `shape` is an axis of any length."""
    node = _bytes(1, b"x") + _bytes(2, b"y") + _bytes(4, b"ReduceMean")
    ints = b"".join(_number(8, axis) for axis in axes)
    node += _bytes(5, _bytes(1, b"axes") + ints + _number(20, INTS))
    node += _bytes(5, _bytes(1, b"keepdims") + _number(3, 0) + _number(20, INT))
    graph = _bytes(1, node) + _bytes(2, b"colours")
    graph += _bytes(11, _value(b"x", shape)) + _bytes(12, _bytes(1, b"y"))
    model = _number(1, 8) + _bytes(7, graph) + _bytes(8, _bytes(1, b"") + _number(2, 13))
    path = folder / f"{name}.onnx"
    path.write_bytes(model)
    path.with_suffix(".toml").write_text(sheet, "utf-8")
    return path


def _value(name: bytes, shape: Sequence[int | str]) -> bytes:
    dims = b"".join(
        _bytes(1, _number(1, side) if isinstance(side, int) else _bytes(2, side.encode()))
        for side in shape
    )
    tensor = _number(1, FLOAT) + _bytes(2, dims)
    return _bytes(1, name) + _bytes(2, _bytes(1, tensor))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
