"""What a task's row keeps as JSON, both ways: its request, its result, its error. Knows no database.

The request is enough to draw the task again, the result to answer it again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from danqing.db.rows import TaskRow, values_of
from danqing.domain import errors
from danqing.domain.errors import DanqingError, NotFound
from danqing.domain.sizes import Size
from danqing.domain.task import Delivery, ImageSource, ImageTask, SafetyLevel, StreamHead
from danqing.service.calls import Work
from danqing.service.delivery import Life
from danqing.service.finishing import LabelPlan
from danqing.service.upstream import Upstream

Json = Mapping[str, Any]

_UNKEPT = (
    errors.ServerFault,
    errors.Busy,
    errors.RateLimited,
    errors.QuotaExceeded,
)
"""Errors that trying again may cure: a client's key is free again after them."""


@dataclass(frozen=True, slots=True)
class StoredRequest:
    """A request as its row keeps it. `received_s` is Unix seconds."""

    task: ImageTask
    delivery: Delivery
    plan: LabelPlan
    seeds: tuple[int, ...]
    held: int
    received_s: float
    life: Life
    input_pixels: int = 0
    """Of the pictures that an edit starts from."""
    block_level: int | None = None
    """The account's own, when the request came."""

    def as_json(self) -> dict[str, Any]:
        return {
            # Earlier chat turns were moderated; they are not drawn, so they are not kept.
            "task": values_of(self.task)
            | {
                "size": str(self.task.size),
                "history": (),
                "references": [_kept_source(source) for source in self.task.references],
                "mask": self.task.mask and _kept_source(self.task.mask),
            },
            "delivery": values_of(self.delivery),
            "plan": values_of(self.plan),
            "seeds": list(self.seeds),
            "held": self.held,
            "received_s": self.received_s,
            "link_ttl_s": self.life.link_s,
            "image_ttl_s": self.life.image_s,
            "input_pixels": self.input_pixels,
        } | ({} if self.block_level is None else {"block_level": self.block_level})

    @classmethod
    def of_json(cls, kept: Json) -> StoredRequest:
        """Raises ValueError for a row that another version wrote, with other fields."""
        try:
            return cls._of_json(kept)
        except (KeyError, TypeError) as error:
            raise ValueError("this request was kept by another version") from error

    @classmethod
    def _of_json(cls, kept: Json) -> StoredRequest:
        task: dict[str, Any] = dict(kept["task"])
        size = Size.parse(task.pop("size"))
        assert size is not None
        mask: Json | None = task.get("mask")
        task |= {
            "size": size,
            "history": tuple(task["history"]),
            "references": tuple(ImageSource(**kept) for kept in task.get("references", ())),
            "mask": None if mask is None else ImageSource(**mask),
        }
        delivery: dict[str, Any] = dict(kept["delivery"])
        delivery |= {name: tuple(delivery[name]) for name in ("ignored", "truncated")}
        return cls(
            task=ImageTask(**task),
            delivery=Delivery(**delivery),
            plan=LabelPlan(**kept["plan"]),
            seeds=tuple(kept["seeds"]),
            held=kept["held"],
            received_s=kept["received_s"],
            life=Life(kept.get("image_ttl_s", kept["link_ttl_s"]), kept["link_ttl_s"]),
            input_pixels=kept.get("input_pixels", 0),
            block_level=kept.get("block_level"),
        )


def _kept_source(source: ImageSource) -> dict[str, str]:
    """A picture from the client as its row keeps it: by its blob. Its bytes never lie in a row."""
    assert source.blob_key is not None
    return {"param": source.param, "blob_key": source.blob_key}


def stream_head(task_id: str, task: ImageTask, received_s: float, input_pixels: int) -> StreamHead:
    """What a task's stream begins with."""
    return StreamHead(
        reply_id=task_id,
        created=int(received_s),
        model=task.model,
        prompt=task.prompt,
        quality=task.quality,
        size=task.size,
        n=task.n,
        is_edit=task.is_edit,
        input_pixels=input_pixels,
        transparent=task.transparent,
    )


def stored_head(row: TaskRow) -> StreamHead:
    """The same of a task's row. Raises NotFound where another version kept the request."""
    try:
        stored = StoredRequest.of_json(row.request)
    except ValueError:
        raise NotFound("The answer of this task is no longer kept.") from None
    return stream_head(row.id, stored.task, stored.received_s, stored.input_pixels)


@dataclass(frozen=True, slots=True)
class StoredResult:
    """What a drawing came to, beside its images: what was drawn, found, took how long, and failed."""

    revised_prompt: str | None
    safety: tuple[SafetyLevel, ...]
    timing_ms: dict[str, float]
    failed: dict[int, DanqingError]
    upstream: Upstream = field(default_factory=Upstream)
    extension: str | None = None
    """How the prompt was extended; None where that was not asked for."""

    @classmethod
    def of(cls, work: Work, only: Collection[int] | None = None) -> StoredResult:
        """`only`: of the links that were passed on, those of these indexes."""
        failed = {
            index: image for index, image in work.images.items() if isinstance(image, DanqingError)
        }
        upstream = work.upstream if only is None else work.upstream.keeping(only)
        return cls(work.revised, work.safety, work.timing_ms, failed, upstream, work.extension)

    def as_json(self) -> dict[str, Any]:
        kept: dict[str, Any] = {
            "revised_prompt": self.revised_prompt,
            "safety": [[found.role, found.level] for found in self.safety],
            "timing_ms": {stage: round(ms, 1) for stage, ms in self.timing_ms.items()},
            "failed": {str(index): error_json(error) for index, error in self.failed.items()},
        }
        if upstream := self.upstream.as_json():
            kept["upstream"] = upstream
        if self.extension is not None:
            kept["extension"] = self.extension
        return kept

    @classmethod
    def of_json(cls, kept: Json | None) -> StoredResult:
        """Of a row; one that kept nothing, or less, gives empty parts."""
        kept = kept or {}
        return cls(
            revised_prompt=kept.get("revised_prompt"),
            safety=tuple(SafetyLevel(role, level) for role, level in kept.get("safety", ())),
            timing_ms=dict(kept.get("timing_ms", {})),
            failed={
                int(index): error_of_json(error) for index, error in kept.get("failed", {}).items()
            },
            upstream=Upstream.of_json(kept.get("upstream", {})),
            extension=kept.get("extension"),
        )


def is_kept(error: DanqingError) -> bool:
    """Whether a client's key answers this error again, rather than trying again."""
    return not isinstance(error, _UNKEPT)


def error_json(error: DanqingError) -> dict[str, Any]:
    """An error with its fields (`param`, `level`, …), all of them plain."""
    return {"code": error.code, **vars(error)}


def error_of_json(kept: Json) -> DanqingError:
    """The error again, of its own class; ServerFault where no class has its code."""
    kind = _BY_CODE.get(kept["code"], errors.ServerFault)
    error = kind.__new__(kind)
    DanqingError.__init__(error, kept["message"])
    for name, value in kept.items():
        if name != "code":
            setattr(error, name, value)
    return error


def _classes(root: type[DanqingError]) -> Iterator[type[DanqingError]]:
    yield root
    for child in root.__subclasses__():
        yield from _classes(child)


_BY_CODE = {
    # Classes without a code of their own (the ledger's) answer as their parents do.
    kind.code: kind
    for kind in _classes(DanqingError)
    if "code" in vars(kind)
}
