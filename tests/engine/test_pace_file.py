"""Step times that outlive an engine: through restarts, in a thread and in a process; and whatever else may be in the file."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danqing.engine.child import ChildCore
from danqing.engine.messages import (
    Begin,
    JobDrawn,
    JobEvent,
    JobQueued,
    JobRefused,
    KeptPace,
    Submit,
)
from danqing.engine.pace import KEYS_MAX, TRIALS, Known, Pace
from danqing.engine.pace_file import BYTES_MAX, SAVE_EVERY_S, PaceFile, kept
from tests.engine.null_family import NullFamily, make_job
from tests.engine.test_core import Desk

STEP_S, DECODE_S = 0.7, 0.4
WAIT_S = 60
KEY = (16, 8)
"""Of the null family's batches of `make_job`."""


def desk_on(pace: KeptPace, step_s: float = STEP_S, **options: Any) -> Desk:
    """A started engine on whose clock nothing but steps and decodings takes time."""
    family = NullFamily(gated=options.pop("gated", False))
    clock = lambda: step_s * len(family.calls) + DECODE_S * len(family.decoded)  # noqa: E731
    return Desk(family, pace=pace, clock=clock, **options).start()


def eta_s(desk: Desk, **changes: Any) -> float:
    """What is said of a job's end when it comes."""
    desk.submit(make_job("asked", **changes))
    queued = desk.of("asked")[0]
    assert isinstance(queued, JobQueued)
    return queued.eta_s


def measured(tmp_path: Path) -> KeptPace:
    """The file of an engine that has drawn an image and ended."""
    pace = kept(tmp_path / "step_times", "null", {"checkpoint": "one"})
    desk = desk_on(pace)
    desk.submit(make_job("x", steps=5))
    desk.wait_ended("x")
    desk.stop()
    return pace


def test_a_restart_knows_how_long_images_take(tmp_path: Path) -> None:
    pace = measured(tmp_path)
    desk = desk_on(pace, gated=True, queue_max=1)
    assert eta_s(desk, steps=100) == pytest.approx(100 * STEP_S + DECODE_S)
    desk.submit(make_job("refused"))
    refused = desk.last("refused")
    assert isinstance(refused, JobRefused)
    assert refused.retry_after_s == pytest.approx(100 * STEP_S + DECODE_S)
    desk.stop()


def test_a_restart_knows_which_batches_pay(tmp_path: Path) -> None:
    pace = kept(tmp_path, "null", {})
    desk = desk_on(pace, batch_max=4)
    for size, seconds in ((1, STEP_S), (2, 1.1 * STEP_S), (4, 1.2 * STEP_S)):
        for _ in range(TRIALS):
            desk.core._scheduler.pace.learn(KEY, size, seconds)
    desk.stop()
    for batch_max, first in ((4, 4), (2, 2)):  # the setting may have changed
        desk = desk_on(pace, batch_max=batch_max)
        desk.submit(*(make_job(f"x.{number}", steps=1) for number in range(4)))
        desk.wait_ended(*(f"x.{number}" for number in range(4)))
        assert len(desk.family.calls[0]) == first
        desk.stop()


def test_what_the_warm_up_measures_wins(tmp_path: Path) -> None:
    pace = measured(tmp_path)
    desk = desk_on(pace, step_s=2 * STEP_S, warm_up=make_job("w", steps=3), gated=False)
    assert eta_s(desk, steps=10) == pytest.approx(10 * 2 * STEP_S + DECODE_S)
    desk.stop()


def test_a_file_that_the_warm_up_contradicts_is_another_device_s(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """All of it, for what was not measured is no truer."""
    pace = measured(tmp_path)
    PaceFile(pace).save({KEY: Known({1: 9.0}, None), (99, 99): Known({1: 9.0}, None)}, 0.0)
    desk = desk_on(pace, warm_up=make_job("w", steps=3))
    assert "took 9 s" in caplog.text
    assert eta_s(desk, width=99, height=99, steps=10) == pytest.approx(10 * STEP_S)
    desk.stop()


def test_another_checkpoint_s_times_are_not_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    measured(tmp_path)
    other = kept(tmp_path / "step_times", "null", {"checkpoint": "other"})
    desk = desk_on(other)
    assert "another checkpoint" in caplog.text
    assert eta_s(desk, steps=10) == pytest.approx(10 * 0.1)  # as nothing is known
    desk.wait_ended("asked")
    desk.stop()
    assert json.loads(Path(other.path).read_text())["of"] == other.of
    assert [path.name for path in (tmp_path / "step_times").iterdir()] == ["null.json"]


def _changed(change: Callable[[Any], object]) -> Callable[[bytes], bytes]:
    def write(data: bytes) -> bytes:
        found = json.loads(data)
        change(found)
        return json.dumps(found).encode()

    return write


BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "torn": lambda data: data[: len(data) // 2],
    "no text": lambda data: b"\xff\xfe\x00",
    "a list": lambda data: b"[]",
    "deep": lambda data: b"[" * 200_000,
    "large": lambda data: data + b" " * BYTES_MAX,
    "newer": _changed(lambda found: found.update(version=2)),
    "no version": _changed(lambda found: found.pop("version")),
    "keys of no list": _changed(lambda found: found.update(keys={"a": 1})),
    "a row of no object": _changed(lambda found: found["keys"].append(7)),
    "a key of no kind": _changed(lambda found: found["keys"][0].update(key={"a": 1})),
    "a key of no text": _changed(lambda found: found["keys"][0].update(key=["\ud800", 1])),
    "a deep key": lambda data: data.replace(b"[16, 8]", b"[" * 900 + b"16, 8" + b"]" * 900),
    "a long key": _changed(lambda found: found["keys"][0].update(key=["x" * 9000, 8])),
    "a key of many": _changed(lambda found: found["keys"][0].update(key=[1] * 9000)),
    "a key of a large number": _changed(lambda found: found["keys"][0].update(key=[10**4000])),
    "a key without end": _changed(lambda found: found["keys"][0].update(key=[float("inf"), 8])),
    "a large size": _changed(lambda found: found["keys"][0].update(step_s={"9" * 4000: 1.0})),
    "no sizes": _changed(lambda found: found["keys"][0].update(step_s={})),
    "size 0": _changed(lambda found: found["keys"][0].update(step_s={"0": 1.0})),
    "size of words": _changed(lambda found: found["keys"][0].update(step_s={"one": 1.0})),
    "negative": _changed(lambda found: found["keys"][0].update(step_s={"1": -1.0})),
    "not a number": _changed(lambda found: found["keys"][0].update(step_s={"1": float("nan")})),
    "without end": _changed(lambda found: found["keys"][0].update(decode_s=float("inf"))),
    "text": _changed(lambda found: found["keys"][0].update(decode_s="1")),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_file_is_told_and_written_anew(
    fault: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pace = measured(tmp_path)
    path = Path(pace.path)
    good = path.read_bytes()
    path.write_bytes(BROKEN[fault](good))
    desk = desk_on(pace)
    (record,) = [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert record.getMessage().startswith(f"step times in {path} are not used: ")
    assert eta_s(desk, steps=5) == pytest.approx(5 * 0.1)
    desk.wait_ended("asked")
    desk.stop()
    assert path.read_bytes() == good


def test_what_is_no_plain_file_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pace = kept(tmp_path, "null", {})
    Path(pace.path).mkdir()
    desk = desk_on(pace)
    desk.submit(make_job("x"))
    desk.wait_ended("x")
    desk.stop()
    assert isinstance(desk.last("x"), JobDrawn)
    texts = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    assert [text.split(":")[0] for text in texts] == [
        f"step times in {pace.path} are not used",
        "step times cannot be written",
    ]
    assert list(tmp_path.iterdir()) == [Path(pace.path)]  # no pieces


def test_keys_that_no_file_can_have_are_left_out(tmp_path: Path) -> None:
    deep: Hashable = 1
    for _ in range(5000):
        deep = (deep,)
    one = Known({1: 1.0}, None)
    pace = kept(tmp_path, "null", {})
    PaceFile(pace).save({("\ud800", 1): one, ("x" * 9000,): one, deep: one, KEY: one}, 0.0)
    restored = Pace(4)
    PaceFile(pace).restore(restored)
    assert list(restored._keys) == [KEY]


@pytest.mark.parametrize("error", [OSError, ValueError, RecursionError, MemoryError])
def test_whatever_writing_raises_is_told_once_and_leaves_no_pieces(
    error: type[Exception],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise error("no")

    monkeypatch.setattr("danqing.engine.pace_file.os.replace", fail)
    file = PaceFile(kept(tmp_path, "null", {}))
    for seconds in (1.0, 2.0):
        file.save({KEY: Known({1: seconds}, None)}, 0.0)
    assert [each.getMessage() for each in caplog.records] == ["step times cannot be written: no"]
    assert not list(tmp_path.iterdir())


def test_it_is_written_while_the_engine_runs_not_only_at_its_end(tmp_path: Path) -> None:
    """Who is killed never comes to an end."""
    pace = kept(tmp_path, "null", {})
    desk = desk_on(pace, step_s=SAVE_EVERY_S / 2)
    desk.submit(make_job("x", steps=4), make_job("y", steps=4))
    desk.wait_ended("x", "y")
    (row,) = json.loads(Path(pace.path).read_text())["keys"]
    assert row["key"] == list(KEY)
    assert row["step_s"]["1"] == pytest.approx(SAVE_EVERY_S / 2)
    desk.stop()


def test_the_file_is_bounded(tmp_path: Path) -> None:
    pace = Pace(256)
    name = "a family of a rather long name"
    for key in range(KEYS_MAX + 9):
        for size in range(1, 10):
            for _ in range(2):
                pace.learn((name, key, key, True, "a LoRA"), size, 0.123456789)
    place = kept(tmp_path, "null", {})
    PaceFile(place).save(pace.known(), 0.0)
    assert Path(place.path).stat().st_size < BYTES_MAX / 2
    restored = Pace(256)
    restored.learn("measured now", 1, 0.1)
    PaceFile(place).restore(restored)
    assert len(restored._keys) == KEYS_MAX
    assert "measured now" in restored._keys
    newest = (name, KEYS_MAX + 8, KEYS_MAX + 8, True, "a LoRA")
    assert restored.single_step_s(newest) == pytest.approx(0.1235)


def test_any_name_of_a_backend_is_a_file_s(tmp_path: Path) -> None:
    names = ["pocket", "qwen-image_2", "a/../b", "", "..", "清", "x" * 500, "a.b"]
    paths = [Path(kept(tmp_path, name, {}).path) for name in names]
    assert {path.parent for path in paths} == {tmp_path}
    assert len(set(paths)) == len(names)
    assert paths[0].name == "pocket.json"
    for path in paths:
        path.touch()


plain = st.none() | st.booleans() | st.integers(-9, 9999) | st.text(max_size=5)
keys = plain | st.recursive(st.tuples(plain, plain), lambda inner: st.tuples(inner, plain))
seconds = st.floats(1e-6, 80_000).map(lambda value: float(f"{value:.4g}"))
rows = st.builds(
    Known, st.dictionaries(st.integers(1, 64), seconds, min_size=1), st.none() | seconds
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> KeptPace:
    return kept(tmp_path_factory.mktemp("step_times"), "null", {"a": ("b", 1)})


@settings(max_examples=40, deadline=None)
@given(known=st.dictionaries(keys, rows, min_size=1, max_size=5))
def test_law_what_was_known_is_known_again(place: KeptPace, known: dict[Hashable, Known]) -> None:
    no_json = {frozenset({1}): Known({1: 1.0}, None)}
    PaceFile(place).save(known | no_json, 0.0)
    pace = Pace(64)
    PaceFile(place).restore(pace)
    assert pace.known() == known


def test_a_process_knows_what_the_one_before_it_measured(tmp_path: Path) -> None:
    """And says how long a queue that is full will be."""
    place = kept(tmp_path, "null", {"threads": 1})
    told: list[JobEvent] = []
    changed = threading.Condition()

    def listen(event: JobEvent) -> None:
        with changed:
            told.append(event)
            changed.notify_all()

    def started(step_s: float) -> ChildCore:
        begin = Begin(
            "tests.engine.null_family:NullFamily", {"step_s": step_s}, 2, 16, 1, None, pace=place
        )
        core = ChildCore(begin, hang_s=600, load_s=600)
        core.listen(listen)
        core.start()
        core.loaded.result(WAIT_S)
        return core

    first = started(0.0)
    first.submit(Submit((make_job("one", steps=3),)))
    with changed:
        assert changed.wait_for(lambda: any(isinstance(e, JobDrawn) for e in told), WAIT_S)
    assert first.stop(WAIT_S)
    (row,) = json.loads(Path(place.path).read_text())["keys"]
    assert (row["key"], list(row["step_s"])) == (list(KEY), ["1"])
    PaceFile(place).save({KEY: Known({1: 1000.0}, 50.0)}, 0.0)
    told.clear()
    second = started(30.0)  # a step that is not over before all is asked
    try:
        second.submit(Submit((make_job("a", steps=2), make_job("b", steps=3))))
        with changed:
            assert changed.wait_for(lambda: sum(isinstance(e, JobQueued) for e in told) == 2, 60)
        queued = [event for event in told if isinstance(event, JobQueued)]
        assert [event.eta_s for event in queued] == [2050.0, 5100.0]
        second.submit(Submit((make_job("c"),)))
        refused = [event for event in told if isinstance(event, JobRefused)]
        assert [event.job_id for event in refused] == ["c"]
        assert 1000.0 < refused[0].retry_after_s <= 2050.0
    finally:
        second.stop(0.1)
