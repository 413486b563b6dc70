"""An operator's own image classifier: an ONNX file, and a TOML file beside it that says how to read it. Decides nothing.

Checked when it is loaded, with one forward: what is wrong is named by its field before a server starts.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np
import numpy.typing as npt
import onnxruntime
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from danqing.domain.task import Pixels
from danqing.engine.pixels import fit

Floats = npt.NDArray[np.float32]
Unit = Annotated[float, Field(ge=0, le=2)]
"""A threshold; above 1 is never reached."""

_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class ClassifierError(ValueError):
    """The classifier cannot be used: "field: what is wrong with it"."""


class ClassifierSheet(BaseModel):
    """The TOML file."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    labels: tuple[str, ...] = Field(min_length=1)
    """What the scores mean, in their order."""
    levels: dict[str, tuple[Unit, Unit, Unit]] = Field(min_length=1)
    """For each label that matters: the scores from which a picture has level 0, 1 and 2."""
    size: tuple[int, int] | None = None
    """Height and width of the input; as the network says where it says so."""
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """What is taken from red, green and blue (0 to 1)."""
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """What they are then divided by."""
    layout: Literal["nchw", "nhwc"] = "nchw"
    """The order of the input's axes."""
    channels: Literal["rgb", "bgr"] = "rgb"
    """The order of its colours; mean and std are red's first all the same."""
    resize: Literal["stretch", "crop"] = "stretch"
    """Squeeze the whole picture in, or cut its longer sides off."""
    activation: Literal["softmax", "sigmoid", "none"] = "softmax"
    """What makes probabilities of the scores; "none": they are."""

    @model_validator(mode="after")
    def _fits(self) -> ClassifierSheet:
        for label, (worst, bad, mild) in self.levels.items():
            if label not in self.labels:
                raise ValueError(f"levels.{label}: there is no such label")
            if not worst >= bad >= mild:
                raise ValueError(f"levels.{label}: thresholds fall, as in [0.9, 0.7, 0.4]")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels: one of them is there twice")
        if min(self.std) <= 0:
            raise ValueError("std: all are above 0")
        if self.size is not None and not all(1 <= side <= 4096 for side in self.size):
            raise ValueError("size: height and width are 1 to 4096")
        return self


class Classifier:
    """Scores pictures by label. Its calls may come from any thread."""

    def __init__(self, path: Path, threads: int = 0) -> None:
        """`path` is the ONNX file; the sheet has its name and ends in `.toml`. Raises ClassifierError."""
        self._sheet = _read_sheet(path.with_suffix(".toml"))
        self._session = _load(path, threads)
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in _TYPES:
            raise ClassifierError("the network has no single input of four axes of floats")
        self._input = inputs[0].name
        self._dtype = _TYPES[inputs[0].type]
        self._size = self._checked_size(list(inputs[0].shape))
        self._check_output()

    @property
    def levels(self) -> dict[str, tuple[float, float, float]]:
        """Label → the scores from which a picture has level 0, 1 and 2."""
        return self._sheet.levels

    def scores(self, pixels: Pixels) -> dict[str, float]:
        """Probabilities by label of one picture, H x W x 3."""
        raw = self._run(self._prepared(pixels))
        match self._sheet.activation:
            case "softmax":
                raised = np.exp(raw - raw.max())
                raw = raised / raised.sum()
            case "sigmoid":
                raw = 1 / (1 + np.exp(-np.clip(raw, -80, 80)))
            case "none":
                pass
        return dict(zip(self._sheet.labels, map(float, raw), strict=True))

    def _prepared(self, pixels: Pixels) -> Floats:
        height, width = self._size
        if self._sheet.resize == "crop":
            small = fit(pixels, width, height)
        else:
            image = Image.fromarray(pixels)
            small = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
        mean, std = (np.asarray(three, np.float32) for three in (self._sheet.mean, self._sheet.std))
        values = (small.astype(np.float32) / 255 - mean) / std
        if self._sheet.channels == "bgr":
            values = values[:, :, ::-1]
        if self._sheet.layout == "nchw":
            values = values.transpose(2, 0, 1)
        return np.ascontiguousarray(values[None], self._dtype)

    def _run(self, values: Floats) -> Floats:
        return np.asarray(self._session.run(None, {self._input: values})[0], np.float32).reshape(-1)

    def _checked_size(self, shape: list[Any]) -> tuple[int, int]:
        height, width, colours = (2, 3, 1) if self._sheet.layout == "nchw" else (1, 2, 3)
        if isinstance(shape[colours], int) and shape[colours] != 3:
            raise ClassifierError(f"layout: the input {shape} has not 3 colours at that place")
        fixed = (shape[height], shape[width])
        known = all(isinstance(side, int) for side in fixed)
        if self._sheet.size is None:
            if not known:
                raise ClassifierError("size: the network does not say it, so the sheet must")
            return cast("tuple[int, int]", fixed)
        if known and fixed != self._sheet.size:
            raise ClassifierError(f"size: the network wants {fixed[0]} x {fixed[1]}")
        return self._sheet.size

    def _check_output(self) -> None:
        grey = np.full((64, 64, 3), 128, np.uint8)
        try:
            raw = self._run(self._prepared(grey))
        except (
            Exception
        ) as error:  # whatever onnxruntime raises: each version has classes of its own
            raise ClassifierError(f"the network does not run: {_line(error)}") from None
        if raw.size != len(self._sheet.labels):
            raise ClassifierError(
                f"labels: there are {len(self._sheet.labels)}, the network gives {raw.size} scores"
            )
        if not np.isfinite(raw).all():
            raise ClassifierError("the network gives scores that are no numbers")


def _read_sheet(path: Path) -> ClassifierSheet:
    try:
        return ClassifierSheet.model_validate(tomllib.loads(path.read_text("utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ClassifierError(f"cannot read {path}: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        what = first["msg"].removeprefix("Value error, ")
        raise ClassifierError(f"{path}: {where + ': ' if where else ''}{what}") from None


def _load(path: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Between pictures a spinning pool would take the processor from the rest of the server.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4
    if not path.is_file():
        raise ClassifierError(f"there is no file {path}")
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # whatever onnxruntime raises: each version has classes of its own
        raise ClassifierError(f"{path} is no ONNX network: {_line(error)}") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
