"""What a dialect is on the other side: how a task is sent to a provider and its answer read. Pure; knows no HTTP library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from danqing.dialects.base import Upload
from danqing.domain.card import ImageFormat
from danqing.domain.errors import DanqingError
from danqing.domain.sizes import Size
from danqing.domain.task import Delivery, ImageTask, InputImage, SafetyLevel


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One request to a provider. `path` follows the backend's base URL; either `json` or `form` is set."""

    method: str
    path: str
    json: dict[str, Any] | None = None
    form: tuple[tuple[str, str | Upload], ...] | None = None
    """multipart/form-data, in order."""
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    """Beside content-type and authorization, which the relay sets."""


@dataclass(frozen=True, slots=True)
class Incoming:
    """A provider's answer. Header names are in lower case."""

    status: int
    body: bytes = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    secret: str | None = field(default=None, repr=False)
    """The key that it came for: whoever reads the body leaves it out of every text (`plain`)."""
    read: list[Mapping[str, object] | None] = field(
        default_factory=list[Mapping[str, object] | None], init=False, repr=False, compare=False
    )
    """The body as JSON once somebody has read it: an answer is asked for its error first, then for its images."""

    def plain(self, text: str) -> str:
        """A text of it that does not quote our key: logs, rows and callers get the provider's words."""
        return text if self.secret is None else text.replace(self.secret, "[key]")


@dataclass(frozen=True, slots=True)
class Pending:
    """The provider draws in the background: ask again by `poll`, in about `after_s` seconds."""

    upstream_id: str
    """Empty in an answer to `poll` that does not repeat it: go on asking as before."""
    poll: Outgoing
    after_s: float = 1.0
    cancel: Outgoing | None = None


@dataclass(frozen=True, slots=True)
class ProviderImage:
    """One image in a provider's answer: `url` or `data` is set."""

    url: str | None = None
    data: bytes | None = field(default=None, repr=False)
    size: Size | None = None
    format: ImageFormat | None = None


@dataclass(frozen=True, slots=True)
class ProviderResult:
    """A provider's answer, read. `images` holds errors in their places; it is never empty."""

    images: tuple[ProviderImage | DanqingError, ...]
    revised_prompt: str | None = None
    safety: tuple[SafetyLevel, ...] = ()
    upstream_id: str | None = None
    """The provider's own id of the request or task."""
    usage: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What the provider says it cost, as it says it."""


@dataclass(frozen=True, slots=True)
class ProviderLook:
    """A look at an unfinished image, in a provider's stream."""

    image: ProviderImage


@dataclass(frozen=True, slots=True)
class Target:
    """Where a task goes: the provider's name of the model, and the inputs, fetched and checked."""

    model: str
    references: tuple[InputImage, ...] = ()
    mask: InputImage | None = None
    background: bool = False
    """Use the provider's asynchronous route, where it has one."""


class ClientDialect(Protocol):
    """One provider's wire format, seen from its client.

    Law: what `encode_request` makes of a task that has no `unsupported` field, the server side's
    `decode_request` reads as the same task; likewise results and errors.
    """

    name: str

    @property
    def ratios(self) -> Mapping[str, Mapping[str, Size]]:
        """The sizes that this wire can say, by tier ("1K") and ratio; empty where any can be said."""
        return {}

    def unsupported(self, task: ImageTask, delivery: Delivery) -> frozenset[str]:
        """Names of the fields of `task` and `delivery` that are set and that this wire cannot say."""
        ...

    def encode_request(self, task: ImageTask, delivery: Delivery, target: Target) -> Outgoing:
        """The request that asks for `task`. Raises UnsupportedField for what `unsupported` names.

        `task.prompt` is the prompt to draw (already extended), `task.seed` set where seeds exist.
        """
        ...

    def decode_result(self, answer: Incoming, task: ImageTask) -> ProviderResult | Pending:
        """Read an answer, also one to `Pending.poll`. Raises what `decode_error` gives, ProviderFailed."""
        ...

    def decode_event(self, event: Incoming, name: str) -> ProviderLook | ProviderResult | None:
        """Read one event of a streamed answer: its data as the body, the stream's status and headers; None for
        one that says nothing of an image. Raises what `decode_error` gives, ProviderFailed.

        Called only where `unsupported` lets `delivery.stream` through.
        """
        raise TypeError(f"{self.name} does not stream")  # our own bug

    def decode_error(self, answer: Incoming) -> DanqingError | None:
        """The error that an answer means, whatever its status; None when it is none."""
        ...
