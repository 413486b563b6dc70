"""The sending end of a stream by itself: clients and servers that misbehave, and our own bugs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import pytest

from danqing.api import streams
from danqing.api.streams import EventStream, begin_stream
from danqing.dialects.openai import OpenAIDialect
from danqing.domain.errors import Busy, Cancelled, EngineFailed
from danqing.domain.sizes import Size
from danqing.domain.task import (
    DeliveredImage,
    Delivery,
    FinishedImage,
    ImageResult,
    ImageTask,
    StreamHead,
)
from danqing.service.auth import Principal
from danqing.service.budget import ByteBudget
from danqing.service.calls import Call, Outcome
from danqing.service.streaming import Feed
from tests.dialects.cards import CARDS
from tests.dialects.test_streams import CREATED

IMAGE = DeliveredImage("i", Size(64, 64), 0, "png", b64="AAAA")
RESULT = ImageResult(CREATED, "gpt-image-1", (IMAGE,), "a cat")
HEAD = StreamHead("task-1", CREATED, "gpt-image-1", "a cat", "high", Size(64, 64), 1)


class Stage:
    """A pipeline that does what it is told, and the connection of one client."""

    def __init__(self, play: Callable[[Stage], Awaitable[None]]) -> None:
        self.play = play
        self.feed = Feed()
        self.uploads = ByteBudget(100)
        self.sent: list[dict[str, Any]] = []
        self.gone = asyncio.Event()
        self.reads = asyncio.Event()
        self.reads.set()
        self.ends: list[str] = []
        self.is_drawing = self.is_answered = False
        self.was_cancelled = False
        principal = Principal("a", "a", "t", None, frozenset(), False, 1000, None, None)
        card = CARDS["gpt-image-1"]
        task = ImageTask(card.name, "a cat", Size(64, 64), "high")
        delivery = Delivery("b64_json", stream=True)
        self.call = Call(
            "openai", principal, card, task, delivery, "http://here", CREATED, feed=self.feed
        )

    async def draw(self, call: Call) -> Outcome:
        """The pipeline's face."""
        assert call is self.call
        self.is_drawing = True
        try:
            await self.play(self)
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise
        self.feed.finish(RESULT)
        return Outcome(RESULT, "task-1", 5000, (0,), {})

    async def receive(self) -> dict[str, Any]:
        """The request's face."""
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        self.is_answered = True
        await self.reads.wait()
        self.sent.append(message)

    async def begin(self) -> EventStream:
        with self.uploads.share() as share:  # as the handler has it
            share.add(50)
            answer = await begin_stream(
                self,  # type: ignore[arg-type]
                self,  # type: ignore[arg-type]
                OpenAIDialect(),
                self.call,
                self.ends.append,
                share,
            )
        assert isinstance(answer, EventStream)
        return answer

    async def run(self) -> None:
        await (await self.begin())({}, self.receive, self.send)  # type: ignore[arg-type]

    @property
    def text(self) -> str:
        return b"".join(message.get("body", b"") for message in self.sent).decode()

    @property
    def is_whole(self) -> bool:
        return not self.sent[-1].get("more_body", True)


async def well(stage: Stage) -> None:
    stage.feed.open(HEAD)
    stage.feed.admit()
    await asyncio.sleep(0)
    stage.feed.tell(FinishedImage(0, IMAGE))


async def forever(stage: Stage) -> None:
    await well(stage)
    await asyncio.Event().wait()


async def silent(stage: Stage) -> None:
    await asyncio.Event().wait()


async def until(happened: Callable[[], bool]) -> None:
    while not happened():
        await asyncio.sleep(0.002)


def failing(error: Exception, *, begun: bool = True) -> Callable[[Stage], Awaitable[None]]:
    async def play(stage: Stage) -> None:
        stage.feed.open(HEAD)
        if begun:
            stage.feed.admit()
            await until(lambda: stage.is_answered)
        raise error

    return play


def on_stage(
    play: Callable[[Stage], Awaitable[None]], deed: Callable[[Stage], Awaitable[None]]
) -> Stage:
    async def run() -> Stage:
        stage = Stage(play)
        async with asyncio.timeout(60):
            await deed(stage)
        return stage

    return asyncio.run(run())


def test_all_well() -> None:
    stage = on_stage(well, Stage.run)
    assert stage.text.startswith("event: image_generation.completed\n")
    assert stage.is_whole
    assert stage.ends == ["ok"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (EngineFailed(), "engine_failed"),
        (Cancelled(), "cancelled"),
        (RuntimeError(), "server_fault"),
    ],
)
def test_a_task_that_ends_badly_still_ends_its_stream(error: Exception, code: str) -> None:
    """Also one that somebody deleted: the client that reads has not left."""
    stage = on_stage(failing(error), Stage.run)
    assert stage.text.startswith("event: error\n")
    assert stage.is_whole
    assert stage.ends == [code]


@pytest.mark.parametrize("error", [Busy(3), EngineFailed(), RuntimeError("a bug")])
def test_what_fails_before_it_begins_is_raised(error: Exception) -> None:
    async def deed(stage: Stage) -> None:
        with pytest.raises(type(error)):
            await stage.begin()

    stage = on_stage(failing(error, begun=False), deed)
    assert (stage.sent, stage.ends) == ([], [])


def test_the_stream_begins_without_a_word_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "PATIENCE_S", 0.05)

    async def slow(stage: Stage) -> None:
        stage.feed.open(HEAD)
        await until(lambda: stage.is_answered)
        raise EngineFailed

    stage = on_stage(slow, Stage.run)
    assert stage.sent[0]["status"] == 200
    assert stage.text.startswith("event: error\n")


def test_silence_is_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "KEEP_ALIVE_S", 0.02)

    async def slow(stage: Stage) -> None:
        await well(stage)
        await until(lambda: stage.text.count(": keep-alive\n\n") >= 2)

    assert on_stage(slow, Stage.run).is_whole


@pytest.mark.parametrize("begun", [False, True])
def test_the_client_leaves(begun: bool) -> None:
    async def deed(stage: Stage) -> None:
        running = asyncio.create_task(stage.run())
        await until(lambda: stage.is_answered if begun else stage.is_drawing)
        stage.gone.set()
        if begun:
            await running
        else:
            with pytest.raises(Cancelled):
                await running

    stage = on_stage(forever if begun else silent, deed)
    assert stage.call.hung_up.is_set()
    assert stage.was_cancelled
    assert stage.ends == (["cancelled"] if begun else [])


@pytest.mark.parametrize("begun", [False, True])
def test_the_server_stops(begun: bool) -> None:
    async def deed(stage: Stage) -> None:
        running = asyncio.create_task(stage.run())
        await until(lambda: stage.is_answered if begun else stage.is_drawing)
        running.cancel()
        if begun:
            await running
        else:
            with pytest.raises(asyncio.CancelledError):
                await running

    stage = on_stage(forever if begun else silent, deed)
    assert not stage.call.hung_up.is_set()
    assert stage.was_cancelled
    if begun:
        assert "image_generation.completed" in stage.text
        assert '"code":"server_is_overloaded"' in stage.text
        assert stage.is_whole
        assert stage.ends == ["unavailable"]


def test_the_server_stops_before_a_reader_that_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "FAREWELL_S", 0.1)

    async def deed(stage: Stage) -> None:
        stage.reads.clear()
        running = asyncio.create_task(stage.run())
        await until(lambda: stage.is_answered)
        running.cancel()
        await asyncio.wait({running}, timeout=60)
        assert running.done()

    stage = on_stage(forever, deed)
    assert stage.was_cancelled
    assert stage.ends == ["unavailable"]


def test_the_server_stops_when_the_client_has_just_left() -> None:
    async def deed(stage: Stage) -> None:
        running = asyncio.create_task(stage.run())
        await until(lambda: stage.is_answered)
        stage.gone.set()
        running.cancel()
        await running

    assert on_stage(forever, deed).was_cancelled


def test_a_codec_that_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our bug: nobody pays, and the stream still says so and ends."""
    encode = OpenAIDialect.encode_event

    def broken(self: OpenAIDialect, event: object, *rest: Any) -> Any:
        if isinstance(event, FinishedImage):
            raise KeyError("a bug")
        return encode(self, event, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(OpenAIDialect, "encode_event", broken)
    stage = on_stage(forever, Stage.run)
    assert stage.was_cancelled
    assert not stage.call.hung_up.is_set()
    assert '"code":"server_error"' in stage.text
    assert stage.is_whole
    assert stage.ends == ["server_fault"]


def test_a_connection_that_cannot_be_written_to() -> None:
    """Other servers than ours raise where nobody listens any more."""

    async def deed(stage: Stage) -> None:
        async def send(message: dict[str, Any]) -> NoReturn:
            raise OSError("gone")

        answer = await stage.begin()
        await answer({}, stage.receive, send)  # type: ignore[arg-type]

    stage = on_stage(forever, deed)
    assert stage.was_cancelled
    assert stage.ends == ["cancelled"]
    assert stage.call.hung_up.is_set()


def test_pictures_count_until_the_drawing_is_over_and_no_longer() -> None:
    """However long its reader sleeps: or who streams edits and never reads would fill the memory, uncounted."""

    async def deed(stage: Stage) -> None:
        stage.reads.clear()
        answer = await stage.begin()
        sending = asyncio.ensure_future(answer({}, stage.receive, stage.send))  # type: ignore[arg-type]
        await until(lambda: stage.is_answered)
        assert stage.uploads.taken == 50
        drawn.set()
        await until(lambda: stage.uploads.taken == 0)
        assert stage.sent == []
        held = [name for one in (answer, answer._running) for name in vars(one)]  # type: ignore[attr-defined]
        assert "call" not in held, "whose task has the pictures"
        stage.reads.set()
        await sending

    async def play(stage: Stage) -> None:
        await well(stage)
        await drawn.wait()

    drawn = asyncio.Event()
    assert on_stage(play, deed).is_whole
