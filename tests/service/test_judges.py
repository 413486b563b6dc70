"""The moderation API as a judge, over real HTTP: what is sent, what is read, and every way in which it fails."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image
from tests.net.servers import Answer, Received, Server, answer, serving

from danqing.domain.errors import ContentRefused, Unavailable
from danqing.domain.ports import JudgeFailed, Verdict
from danqing.domain.task import SafetyLevel
from danqing.net.outbound import Outbound
from danqing.observability.metrics import Metrics
from danqing.service.judges import PIECE_CHARS, ApiJudge, ClassifierJudge, level_of
from danqing.service.moderation import TextModerator
from danqing.service.remote import Remote
from danqing.service.screening import Screen
from danqing.service.wordlists import Entry
from danqing.settings import ModerationApiSettings

FINE = {"flagged": False, "categories": {"violence": False}, "category_scores": {"violence": 0.01}}


def scored(**scores: float) -> dict[str, Any]:
    return {"flagged": False, "categories": {}, "category_scores": scores}


def saying(*results: object, status: int = 200) -> Answer:
    return answer(status, json.dumps({"id": "m", "results": results}).encode())


def asking(
    handle: Answer, work: Callable[[ApiJudge, Server], Awaitable[None]], **options: Any
) -> None:
    async def inside() -> None:
        outbound = Outbound()
        try:
            async with serving(handle) as server:
                settings = ModerationApiSettings(base_url=f"{server.url}/v1", **options)
                remote = Remote(
                    f"{server.url}/v1", "sk-key", outbound, timeout_s=settings.timeout_s, tries=2
                )
                await work(ApiJudge(remote, settings), server)
        finally:
            await outbound.aclose()

    asyncio.run(inside())


def test_what_is_sent_and_read_of_texts() -> None:
    async def work(judge: ApiJudge, server: Server) -> None:
        verdicts = await judge.texts(["a cat", "  ", "一只狗"])
        assert verdicts == [Verdict(3), Verdict(3), Verdict(0, "violence")]
        (request,) = server.requests
        assert request.line.startswith("POST /v1/moderations ")
        assert request.headers["authorization"] == "Bearer sk-key"
        assert json.loads(request.body) == {
            "model": "omni-moderation-latest",
            "input": ["a cat", "一只狗"],
        }

    asking(saying(FINE, scored(violence=0.96, hate=0.5)), work)


def test_an_image_is_one_part_with_a_data_url() -> None:
    async def work(judge: ApiJudge, server: Server) -> None:
        pixels = np.full((600, 3000, 3), (200, 10, 10), np.uint8)
        assert await judge.image(pixels) == Verdict(1, "sexual")
        body = json.loads(server.requests[0].body)
        (part,) = body["input"]
        assert part["type"] == "image_url"
        head, _, data = part["image_url"]["url"].partition(",")
        assert head == "data:image/jpeg;base64"
        image = Image.open(io.BytesIO(base64.b64decode(data)))
        assert image.size == (1024, 205)
        assert np.abs(np.asarray(image)[100, 500].astype(int) - (200, 10, 10)).max() < 6

    asking(saying(scored(sexual=0.85)), work)


@pytest.mark.parametrize(
    ("result", "options", "verdict"),
    [
        (scored(hate=0.39), {}, Verdict(3)),
        (scored(hate=0.4), {}, Verdict(2, "hate")),
        (scored(hate=0.8), {}, Verdict(1, "hate")),
        (scored(hate=1), {}, Verdict(0, "hate")),
        (scored(hate=0.5, violence=0.9), {}, Verdict(1, "violence")),
        (scored(hate=0.5), {"category_levels": {"hate": (0.5, 0.2, 0.1)}}, Verdict(0, "hate")),
        (scored(hate=1), {"category_levels": {"hate": (2, 2, 2)}}, Verdict(3)),
        (scored(hate=0.2), {"levels": (0.2, 0.1, 0)}, Verdict(0, "hate")),
        # A flag is at least `flagged_level`; scores may be missing.
        ({"flagged": True, "categories": {"hate": True, "x": False}}, {}, Verdict(1, "hate")),
        ({"flagged": True, "categories": {"hate": True}}, {"flagged_level": 2}, Verdict(2, "hate")),
        ({"flagged": True, "categories": {"hate": True}}, {"flagged_level": 3}, Verdict(3)),
        (
            {"flagged": True, "categories": {"hate": True}, "category_scores": {"hate": 0.97}},
            {},
            Verdict(0, "hate"),
        ),
        ({"flagged": True}, {}, Verdict(1, "flagged")),
        ({"categories": {"illicit": None, "hate": True}}, {}, Verdict(1, "hate")),
        (scored(**{"\ud800\0\n暴力": 1}), {}, Verdict(0, "\ufffd\ufffd\ufffd暴力")),
        ({"flagged": False}, {}, Verdict(3)),
    ],
)
def test_levels_by_scores_and_flags(
    result: dict[str, Any], options: dict[str, Any], verdict: Verdict
) -> None:
    async def work(judge: ApiJudge, _: Server) -> None:
        assert await judge.texts(["x"]) == [verdict]

    asking(saying(result), work, **options)


def test_a_long_text_goes_in_pieces_and_the_worst_counts() -> None:
    async def write(request: Received, writer: asyncio.StreamWriter) -> None:
        pieces = json.loads(request.body)["input"]
        assert all(len(piece) <= PIECE_CHARS for piece in pieces)
        results = [scored(hate=0.99 if "!" in piece else 0.0) for piece in pieces]
        await saying(*results)(request, writer)

    async def work(judge: ApiJudge, server: Server) -> None:
        verdicts = await judge.texts(["x" * 50_000 + "!" + "x" * 5_000, "y"])
        assert [verdict.level for verdict in verdicts] == [0, 3]
        assert len(json.loads(server.requests[0].body)["input"]) == 4

    asking(write, work)


@pytest.mark.parametrize(
    ("handle", "why", "requests"),
    [
        (answer(401, b"{}"), "status 401", 1),
        (answer(500, b"oops"), "status 500", 2),
        (answer(429, b"{}"), "status 429", 2),
        (answer(302, b"", ["Location: http://127.0.0.1:1/"]), "status 302", 1),
        (answer(200, b"<html>"), "no JSON", 1),
        (answer(200, b"[" * 100_000), "no JSON", 1),
        (answer(200, b"[]"), "no object", 1),
        (answer(200, b"{}"), "not one result", 1),
        (saying(), "not one result", 1),
        (saying(FINE, FINE), "not one result", 1),
        (saying("fine"), "no object", 1),
        (saying({}), "without categories", 1),
        (saying({"categories": {"hate": None}}), "without categories", 1),
        (saying({"category_scores": {"hate": "0.99"}}), "wrong kind", 1),
        (saying({"flagged": False, "category_scores": {"hate": "0.99"}}), "wrong kind", 1),
        (saying({"flagged": "true", "categories": {"hate": "true"}}), "wrong kind", 1),
        (saying({"flagged": False, "category_scores": [0.99]}), "no object", 1),
    ],
)
def test_what_is_no_verdict(handle: Answer, why: str, requests: int) -> None:
    async def work(judge: ApiJudge, server: Server) -> None:
        with pytest.raises(JudgeFailed, match=why) as failed:
            await judge.texts(["a secret prompt"])
        assert "secret" not in str(failed.value)
        assert len(server.requests) == requests

    asking(handle, work)


def test_it_is_asked_again_once() -> None:
    async def write(request: Received, writer: asyncio.StreamWriter) -> None:
        handle = saying(FINE) if hasattr(write, "asked") else answer(503)
        write.asked = True  # type: ignore[attr-defined]
        await handle(request, writer)

    async def work(judge: ApiJudge, server: Server) -> None:
        assert await judge.texts(["x"]) == [Verdict(3)]
        assert len(server.requests) == 2

    asking(write, work)


def test_too_slow_is_no_verdict() -> None:
    async def never(_: Received, __: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    async def work(judge: ApiJudge, _: Server) -> None:
        with pytest.raises(JudgeFailed, match="timeout"):
            await judge.texts(["x"])

    asking(never, work, timeout_s=0.3)


RESULTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["flagged", "categories", "category_scores", "hate", "results"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.lists(RESULTS, max_size=2))
@hypothesis_settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_nonsense_is_no_verdict_or_a_sound_one(results: list[object]) -> None:
    class Said:
        async def post(self, path: str, body: object) -> dict[str, object]:
            return {"results": results}

    judge = ApiJudge(Said(), ModerationApiSettings(base_url="http://x"))  # type: ignore[arg-type]
    try:
        (verdict,) = asyncio.run(judge.texts(["x"]))
    except JudgeFailed:
        return
    assert verdict.level in (0, 1, 2, 3)


@given(st.floats(), st.lists(st.floats(0, 1), min_size=3, max_size=3).map(sorted))
def test_a_higher_score_is_never_milder(score: float, rising: list[float]) -> None:
    thresholds = (rising[2], rising[1], rising[0])
    level = level_of(score, thresholds)
    assert level in (0, 1, 2, 3)
    if score == score:
        assert level_of(score + 0.1, thresholds) <= level
    else:
        assert level == 0


# The screen: what a verdict comes to


class Says:
    source = "api"

    def __init__(self, *verdicts: Verdict | None) -> None:
        self.verdicts = verdicts
        self.asked: list[Any] = []

    async def texts(self, texts: list[str]) -> list[Verdict]:
        self.asked.append(list(texts))
        if self.verdicts[0] is None:
            raise JudgeFailed("timeout")
        return list(self.verdicts)  # type: ignore[arg-type]

    async def image(self, pixels: np.ndarray) -> Verdict:
        self.asked.append(pixels.shape)
        if self.verdicts[0] is None:
            raise JudgeFailed("timeout")
        return self.verdicts[0]


def screen(judge: Says, **options: Any) -> tuple[Screen, Metrics]:
    metrics = Metrics()
    lists = TextModerator(entries=[Entry("listed", 1, "x"), Entry("mild", 2, "x")])
    return (
        Screen(lambda: lists, metrics, text_judge=judge, image_judge=judge, **options),
        metrics,
    )


def counted(metrics: Metrics, source: str, outcome: str) -> float:
    labels = {"source": source, "outcome": outcome}
    return metrics.registry.get_sample_value("danqing_moderation_total", labels) or 0


def test_the_worst_of_lists_and_judge_counts() -> None:
    judge = Says(Verdict(2, "hate"), Verdict(3), Verdict(3))
    guard, metrics = screen(judge)
    texts = {"user": ("a cat", "dogs"), "history": ("hi", "mild"), "assistant": ()}
    levels = asyncio.run(guard.texts(texts))  # type: ignore[arg-type]
    assert set(levels) == {SafetyLevel("user", 2), SafetyLevel("history", 2)}
    assert judge.asked == [["a cat", "dogs", "hi\n\nmild"]]
    assert counted(metrics, "api", "passed") == 1


def test_what_the_lists_refuse_asks_nobody() -> None:
    judge = Says(Verdict(3))
    guard, metrics = screen(judge)
    with pytest.raises(ContentRefused) as refused:
        asyncio.run(guard.texts({"user": ("listed",)}))
    assert (refused.value.source, refused.value.category) == ("lists", "x")
    assert judge.asked == []
    assert counted(metrics, "lists", "refused") == 1


def test_what_the_judge_refuses_says_so() -> None:
    guard, metrics = screen(Says(Verdict(3), Verdict(1, "hate")))
    with pytest.raises(ContentRefused) as refused:
        asyncio.run(guard.texts({"user": ("a cat",), "history": ("hi",)}))
    error = refused.value
    assert (error.role, error.level, error.source, error.category) == ("history", 1, "api", "hate")
    assert counted(metrics, "api", "refused") == 1


@pytest.mark.parametrize("fails_open", [True, False])
def test_a_judge_that_fails(fails_open: bool) -> None:
    guard, metrics = screen(Says(None), fails_open=fails_open)
    pixels = np.zeros((8, 8, 3), np.uint8)
    outcome = "failed_open" if fails_open else "failed_closed"
    if fails_open:
        assert asyncio.run(guard.texts({"user": ("a cat",)})) == (SafetyLevel("user", 3),)
        assert asyncio.run(guard.image(pixels)) == ()
    else:
        with pytest.raises(Unavailable):
            asyncio.run(guard.texts({"user": ("a cat",)}))
        with pytest.raises(Unavailable):
            asyncio.run(guard.image(pixels))
    assert counted(metrics, "api", outcome) == 2
    # Who refuses nothing needs no verdict.
    assert asyncio.run(guard.image(pixels, block_level=-1)) == ()


def test_thresholds_of_images() -> None:
    guard, _ = screen(Says(Verdict(2, "hate")))
    pixels = np.zeros((8, 8, 3), np.uint8)
    assert asyncio.run(guard.image(pixels)) == (SafetyLevel("assistant", 2),)
    with pytest.raises(ContentRefused) as refused:
        asyncio.run(guard.image(pixels, block_level=2))
    assert (refused.value.role, refused.value.subject) == ("assistant", "image")


def test_a_clients_picture_is_decoded_small() -> None:
    out = io.BytesIO()
    Image.new("P", (5000, 300)).save(out, "PNG")
    judge = Says(Verdict(3))
    guard, _ = screen(judge)
    assert asyncio.run(guard.picture(out.getvalue())) == (SafetyLevel("user", 3),)
    assert judge.asked == [(61, 1024, 3)]


class Sees(Says):
    """Refuses what has both light and dark in it; fails of what is dark all over, where told to."""

    def __init__(self, *, fails: bool = False) -> None:
        super().__init__()
        self.fails = fails

    async def image(self, pixels: np.ndarray) -> Verdict:
        assert pixels.shape[2] == 3
        self.asked.append(pixels)
        if self.fails and pixels.max() < 50:
            raise JudgeFailed("timeout")
        return Verdict(0, "drawn") if np.ptp(pixels) > 150 else Verdict(3)


def square(ground: int, within: int) -> np.ndarray:
    plane = np.full((64, 64), ground, np.uint8)
    plane[16:48, 16:48] = within
    return plane


FLAT, WHITE, DRAWN = square(0, 0), square(255, 255), square(0, 255)


@pytest.mark.parametrize(
    ("colours", "opacity", "views", "refused"),
    [
        (FLAT, DRAWN, 3, True),  # black where there is anything: a picture on white
        (WHITE, DRAWN, 3, True),  # the same on black
        (DRAWN, FLAT, 3, True),  # nothing of it is shown, but it is delivered
        (FLAT, square(255, 200), 3, False),
        (DRAWN, WHITE, 1, True),
        (FLAT, WHITE, 1, False),
    ],
)
@pytest.mark.parametrize("fails", [False, True])
def test_what_opacity_shows_is_judged(
    colours: np.ndarray, opacity: np.ndarray, views: int, refused: bool, fails: bool
) -> None:
    pixels = np.dstack([colours, colours, colours, opacity])
    files = [io.BytesIO(), io.BytesIO(), io.BytesIO()]
    Image.fromarray(pixels).save(files[0], "PNG")
    Image.fromarray(pixels).save(files[1], "WEBP", lossless=True, exact=True)
    Image.fromarray(pixels[..., [0, 3]]).save(files[2], "PNG")
    for way in (None, *(file.getvalue() for file in files)):
        judge = Sees(fails=fails)
        guard, _ = screen(judge)
        asked = guard.image(pixels) if way is None else guard.picture(way)
        if refused:  # also where another view had no verdict
            with pytest.raises(ContentRefused):
                asyncio.run(asked)
        elif fails:
            with pytest.raises(Unavailable):
                asyncio.run(asked)
        else:
            assert [level.level for level in asyncio.run(asked)] == [3]
        assert len(judge.asked) == views


def test_a_classifier_that_crashes_is_no_verdict() -> None:
    class Broken:
        def __init__(self) -> None:
            self.levels = {"a": (0.9, 0.8, 0.7)}

        def scores(self, pixels: np.ndarray) -> dict[str, float]:
            raise RuntimeError("gone")

    with pytest.raises(JudgeFailed, match="RuntimeError"):
        asyncio.run(ClassifierJudge(Broken()).image(np.zeros((8, 8, 3), np.uint8)))
