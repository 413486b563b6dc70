"""Golden transcripts: what each dialect streams, byte for byte, for one history of events.

A history is a JSON file under golden/streams with a request and what came of it; beside it lies the transcript.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.dialects.cards import CARDS

from danqing.api.streams import encode
from danqing.dialects.registry import DIALECTS
from danqing.domain import errors
from danqing.domain.sizes import Size
from danqing.domain.task import (
    Begun,
    Broken,
    DeliveredImage,
    Delivery,
    FailedImage,
    Finished,
    FinishedImage,
    ImageResult,
    ImageTask,
    PartialImage,
    StreamEvent,
    StreamHead,
)

HISTORIES = sorted((Path(__file__).parent / "golden" / "streams").glob("*.json"))
CREATED = 1_790_000_000


def failure(told: dict[str, Any]) -> errors.DanqingError:
    kind: type[errors.DanqingError] = getattr(errors, told["error"])
    return kind(*told.get("args", ()))


def delivered(told: dict[str, Any], task: ImageTask, delivery: Delivery) -> DeliveredImage:
    key = "url" if delivery.form == "url" else "b64"
    size = Size(*told["size"]) if "size" in told else task.size
    index = told["index"]
    return DeliveredImage(f"i{index}", size, index, delivery.format, **{key: told["image"]})


def events(
    history: list[dict[str, Any]], task: ImageTask, delivery: Delivery, model: str
) -> list[StreamEvent]:
    """What the pipeline would tell; the result is made of what came before it."""
    told: list[StreamEvent] = []
    images: dict[int, DeliveredImage | errors.DanqingError] = {}
    revised: str | None = None
    for step in history:
        match step["event"]:
            case "begun":
                told.append(Begun())
            case "look":
                size = Size(512, 512)
                look = PartialImage(
                    step["index"], step["number"], delivery.format, size, step["image"]
                )
                told.append(look)
            case "image":
                revised = step.get("revised_prompt")
                images[step["index"]] = image = delivered(step, task, delivery)
                told.append(FinishedImage(step["index"], image, revised))
            case "failed":
                images[step["index"]] = error = failure(step)
                told.append(FailedImage(step["index"], error))
            case "finished":
                ends = tuple(images[index] for index in range(task.n))
                result = ImageResult(
                    CREATED, model, ends, task.prompt, revised, quality=task.quality
                )
                told.append(Finished(result))
            case _:
                told.append(Broken(failure(step)))
    return told


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
def test_transcript(path: Path) -> None:
    golden = json.loads(path.read_bytes())
    dialect = DIALECTS[golden["dialect"]]
    card = CARDS[golden["card"]]
    task, delivery = dialect.decode_request(golden["request"], card)
    assert delivery.stream
    head = StreamHead(
        "task-1",
        CREATED,
        card.name,
        task.prompt,
        task.quality,
        task.size,
        task.n,
        is_edit=golden.get("is_edit", task.is_edit),
    )
    sent = b"".join(
        encode(one)
        for event in events(golden["history"], task, delivery, card.name)
        for one in dialect.encode_event(event, head, delivery)
    )
    assert sent.decode("ascii") == path.with_suffix(".txt").read_text("ascii")
