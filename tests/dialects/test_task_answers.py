"""Golden files of the asynchronous routes: what each provider's own route answers in every state of a task."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from danqing.dialects.registry import DIALECTS
from danqing.domain.errors import ContentRefused, EngineFailed
from danqing.domain.sizes import Size
from danqing.domain.task import DeliveredImage, ImageResult, SafetyLevel, TaskReport

GOLDEN = sorted((Path(__file__).parent / "golden" / "tasks").glob("*.json"))
STATES = ("queued", "running", "succeeded", "failed", "cancelled")


def report_in(state: str, golden: dict[str, Any]) -> TaskReport:
    """The golden file's task in a state; one of two images failed where it asks for that."""
    report = TaskReport(state=state, **golden["report"])  # type: ignore[arg-type]
    if state in ("queued", "running"):
        return report
    ended = replace(
        report, started_ms=report.created_ms + 27, finished_ms=report.created_ms + 12_277
    )
    if state == "cancelled":
        return ended
    if state == "failed":
        return replace(ended, error=ContentRefused("assistant", 1))
    image = DeliveredImage("i0", Size(1328, 1328), 7, "png", url="https://img.example/0.png")
    result = ImageResult(
        created=report.created_ms // 1000,
        model=report.model,
        images=(image, EngineFailed("It broke.")) if golden.get("one_fails") else (image,),
        prompt=report.prompt,
        revised_prompt=golden.get("revised_prompt"),
        safety=(SafetyLevel("user", 3),),
    )
    return replace(ended, result=result)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_task(path: Path, state: str) -> None:
    golden = json.loads(path.read_bytes())
    reply = DIALECTS[golden["dialect"]].encode_task(report_in(state, golden), "request-1")
    assert reply.status == 200
    assert reply.body == golden[state]


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_accepted(path: Path) -> None:
    golden = json.loads(path.read_bytes())
    reply = DIALECTS[golden["dialect"]].encode_accepted(report_in("queued", golden), "request-1")
    assert (reply.status, reply.body) == (200, golden["accepted"])
