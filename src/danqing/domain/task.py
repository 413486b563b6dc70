"""What to draw (ImageTask), how to answer (Delivery), what came of it (ImageResult), and the events between.

Canonical: no dialect's words, no HTTP. Pixels are numpy arrays, uint8, H x W x 3 (RGB), or H x W x 4 with opacity
(not premultiplied) where a task asks for a transparent background.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from danqing.domain.card import Card, ImageFormat
from danqing.domain.errors import DanqingError
from danqing.domain.sizes import Size

Pixels = npt.NDArray[np.uint8]

SEED_MAX = 2**31 - 1


@dataclass(frozen=True, slots=True)
class ImageSource:
    """A picture that the client sent along, not yet looked at: its bytes, or the address they are at.

    Exactly one of `data`, `url` and `blob_key` is set; the last once it is stored for its task.
    """

    param: str = field(compare=False)
    """Its path on the wire, for errors."""
    data: bytes | None = field(default=None, repr=False)
    url: str | None = None
    blob_key: str | None = None


@dataclass(frozen=True, slots=True)
class InputImage:
    """A picture from the client that was checked: it is whole, of this format and size, and decodes."""

    data: bytes = field(repr=False)
    format: ImageFormat
    size: Size
    """As it is shown: turned the way its metadata says."""


@dataclass(frozen=True, slots=True)
class ImageTask:
    """One request to draw `n` images. Image i uses seed + i (modulo 2^31)."""

    model: str
    prompt: str
    size: Size
    quality: str
    n: int = 1
    negative_prompt: str = ""
    style: str | None = None
    seed: int | None = None
    prompt_extend: bool = False
    ai_label: bool = True
    """False asks for images without visible label; only with the account's waiver."""
    brand_mark: bool = False
    """A brand mark in a corner, beside the AI label and no part of it (DashScope's `watermark`)."""
    end_user: str | None = None
    transparent: bool = False
    """Draw what is asked for and no background: the pixels have opacity."""
    client_request_id: str | None = None
    history: tuple[str, ...] = ()
    """Earlier chat turns: moderated, not drawn."""
    references: tuple[ImageSource, ...] = ()
    """Pictures to start from. With them the task is an edit; without a prompt, a variation."""
    mask: ImageSource | None = None
    """Where to repaint the first reference: where it is transparent."""
    mask_from_alpha: bool = False
    """Without a mask: where the first reference is transparent, if it is so anywhere."""
    strength: float | None = None
    """How far an edit may leave its reference, 0 (not at all) to 1; None = the backend's default."""
    input_fidelity: Literal["low", "high"] | None = None
    """How closely a provider's edit is to keep to its pictures; None = as its model does."""
    moderation: Literal["low"] | None = None
    """Asks a provider for less moderation of its own. Ours stays as it is."""
    fit_reference: bool = False
    """`size` is only the model's default: what counts is its size nearest to the first reference's."""

    @property
    def is_edit(self) -> bool:
        return bool(self.references)


@dataclass(frozen=True, slots=True)
class Delivery:
    """How to answer."""

    form: Literal["url", "b64_json"] = "url"
    format: ImageFormat = "png"
    compression: int | None = None
    """0-100 for jpeg and webp; None = our default."""
    ignored: tuple[str, ...] = ()
    """Accepted parameters that mean nothing for images (a chat's temperature); told back in a header."""
    truncated: tuple[str, ...] = ()
    """Parameters whose text was cut to the model's limit; told back in a header."""
    stream: bool = False
    """Answer by server-sent events, each image as it comes."""
    partial_images: int = 0
    """Looks at each unfinished image to send in a stream, 0-3."""
    asked_model: str | None = None
    """The model's name as the client wrote it, where answers repeat it."""
    user_errors: bool = False
    """A bad value or picture is an error of GPT Image 2's own type."""
    echo: bool = False
    """The answer states the effective size, quality and format, and usage, and a refusal what was refused
    (gpt-image's way)."""

    @classmethod
    def of_card(cls, card: Card) -> Delivery:
        """What a model's own API says of itself in every answer and error."""
        return cls(echo="echo" in card.features, user_errors="user_errors" in card.features)


@dataclass(frozen=True, slots=True)
class SafetyLevel:
    """Moderation's finding for one role; level 0 is the worst, 3 the mildest."""

    role: Literal["user", "assistant", "history"]
    level: int


@dataclass(frozen=True, slots=True)
class DeliveredImage:
    """One image that came out: either `url` or `b64` is set, or neither while its bytes are left where they are kept."""

    image_id: str
    size: Size
    seed: int
    format: ImageFormat
    url: str | None = None
    b64: str | None = None
    blob_key: str | None = None
    """Where the bytes of `b64` are kept."""


@dataclass(frozen=True, slots=True)
class ImageResult:
    """The end of a task that delivered at least one image. `images` holds errors in their places."""

    created: int
    """Unix seconds at which the request came in."""
    model: str
    images: tuple[DeliveredImage | DanqingError, ...]
    prompt: str
    revised_prompt: str | None = None
    """Set when the prompt was extended; this text was drawn."""
    safety: tuple[SafetyLevel, ...] = ()
    quality: str = "standard"
    input_pixels: int = 0
    """Of all references and the mask together."""
    transparent: bool = False
    """The images have no background."""

    @property
    def delivered(self) -> list[DeliveredImage]:
        return [image for image in self.images if isinstance(image, DeliveredImage)]


@dataclass(frozen=True, slots=True)
class TaskReport:
    """How a task stands, for whoever comes back to ask. Times are Unix milliseconds.

    `result` is set when it succeeded, `error` when it failed.
    """

    task_id: str
    model: str
    state: Literal["queued", "running", "succeeded", "failed", "cancelled"]
    created_ms: int
    started_ms: int | None = None
    """When drawing began, as far as it is known."""
    finished_ms: int | None = None
    prompt: str = ""
    client_request_id: str | None = None
    delivery: Delivery = Delivery()
    result: ImageResult | None = None
    error: DanqingError | None = None


# Events of a drawing in progress. `index` counts a task's images from 0.


@dataclass(frozen=True, slots=True)
class Queued:
    position: int
    eta_s: float


@dataclass(frozen=True, slots=True)
class Started:
    index: int


@dataclass(frozen=True, slots=True)
class Stepped:
    """Image `index` has done `step` of `steps` denoising steps."""

    index: int
    step: int
    steps: int


@dataclass(frozen=True, slots=True)
class Preview:
    """A look at image `index` after `step` of `steps` steps; `number` counts the image's looks from 0."""

    index: int
    number: int
    step: int
    steps: int
    pixels: Pixels = field(repr=False)


@dataclass(frozen=True, slots=True)
class Drawn:
    index: int
    pixels: Pixels = field(repr=False)
    seed: int
    timing_ms: dict[str, float] = field(default_factory=dict[str, float])
    """Stage → milliseconds: queue, encode, denoise, decode."""
    branded: bool = False
    """A provider was asked to put its own brand mark on, and has."""


@dataclass(frozen=True, slots=True)
class Failed:
    index: int
    error: DanqingError


@dataclass(frozen=True, slots=True)
class Linked:
    """Image `index` stays where the provider has it: its link is passed on, and nothing is stored here."""

    index: int
    url: str
    size: Size
    seed: int
    format: ImageFormat


@dataclass(frozen=True, slots=True)
class Relayed:
    """What a provider says of one request that drew, or refused, some of a task's images."""

    backend: str
    upstream_id: str | None = None
    usage: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What it cost, in the provider's own words."""
    refusal: str | None = None
    """Why it drew nothing, in the provider's own words."""
    revised_prompt: str | None = None
    safety: tuple[SafetyLevel, ...] = ()
    seeded: bool = True
    """The provider drew by the seeds it was given."""


@dataclass(frozen=True, slots=True)
class Turned:
    """The task was handed to `backend`, a fallback of its model's."""

    backend: str


Event = Queued | Started | Stepped | Preview | Drawn | Failed | Linked | Relayed | Turned


# What a streamed answer tells, in this order. It ends with Finished or Broken, and nothing follows.


@dataclass(frozen=True, slots=True)
class StreamHead:
    """What is known when a stream begins, and every event of it may need."""

    reply_id: str
    created: int
    """Unix seconds at which the request came in."""
    model: str
    prompt: str
    quality: str
    size: Size
    n: int
    is_edit: bool = False
    input_pixels: int = 0
    """Of all references and the mask together."""
    transparent: bool = False


@dataclass(frozen=True, slots=True)
class Begun:
    """The task is paid for and waits or is being drawn."""


@dataclass(frozen=True, slots=True)
class PartialImage:
    """A labelled look at image `index`; `number` counts its looks from 0."""

    index: int
    number: int
    format: ImageFormat
    size: Size
    b64: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class FinishedImage:
    """Image `index` is stored and will be charged."""

    index: int
    image: DeliveredImage
    revised_prompt: str | None = None
    """Set when the prompt was extended; this text was drawn."""


@dataclass(frozen=True, slots=True)
class FailedImage:
    """Image `index` will not come; the others may."""

    index: int
    error: DanqingError


@dataclass(frozen=True, slots=True)
class Finished:
    """The task is settled; at least one image was delivered."""

    result: ImageResult


@dataclass(frozen=True, slots=True)
class Broken:
    """The task ended without an image."""

    error: DanqingError


StreamEvent = Begun | PartialImage | FinishedImage | FailedImage | Finished | Broken
