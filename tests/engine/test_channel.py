"""The channel between two processes: every message survives it, and nothing is left behind."""

from __future__ import annotations

import dataclasses
import gc
import os
import socket
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danqing.engine import messages
from danqing.engine.channel import Channel, ChannelClosed
from danqing.engine.messages import (
    Begin,
    Cancel,
    Fault,
    Job,
    JobDrawn,
    JobPreview,
    JobQueued,
    Loaded,
    StepDone,
    Stop,
    Submit,
)
from tests.engine.null_family import make_job


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    one, other = (Channel(sock, timeout_s=10) for sock in socket.socketpair())
    yield one, other
    one.close()
    other.close()


def pixels(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def same(a: Any, b: Any) -> bool:
    """Equal to the last pixel; a dataclass's own `==` leaves pixels out."""
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(map(same, a, b))
    if dataclasses.is_dataclass(a):
        names = [field.name for field in dataclasses.fields(a)]
        return type(a) is type(b) and all(same(getattr(a, n), getattr(b, n)) for n in names)
    return a == b


jobs = st.builds(
    make_job,
    st.text(min_size=1),
    prompt=st.text(),
    negative_prompt=st.text(st.characters()),  # lone surrogates too
    seed=st.integers(-(2**70), 2**70),
    strength=st.floats(0, 1),
    guidance=st.floats(0, 30),
    priority=st.sampled_from(["interactive", "background"]),
    reference=st.sampled_from([None, pixels(8, 16)]),
    mask=st.sampled_from([None, np.eye(8, 16, dtype=bool)]),
)
sent = st.one_of(
    st.builds(Submit, st.lists(jobs, max_size=4).map(tuple)),
    st.builds(Cancel, st.lists(st.text()).map(tuple)),
    st.builds(JobQueued, st.text(), st.integers(), st.floats(allow_nan=False)),
    st.builds(JobPreview, st.text(), st.integers(), st.integers(), st.integers(),
              st.just(pixels(5, 7))),
    st.builds(JobDrawn, st.text(), st.just(pixels(3, 2)), st.dictionaries(st.text(), st.floats(0))),
    st.builds(StepDone, st.floats(0), st.integers()),
    st.builds(Fault, st.text()),
    st.builds(Begin, st.text(), st.dictionaries(st.text(), st.none() | st.text() | st.integers()),
              st.integers(), st.integers(), st.integers(), st.none() | jobs),
    st.sampled_from([Loaded(), Loaded(1_048_576), Stop()]),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(sent, min_size=1, max_size=5))
def test_what_is_sent_arrives(told: list[object]) -> None:
    one, other = (Channel(sock, timeout_s=10) for sock in socket.socketpair())
    try:
        for message in told:
            one.send(message)
        for message in told:
            assert same(other.receive(), message)
    finally:
        one.close()
        other.close()


def test_a_task_of_large_prompts_and_one_reference_goes_whole(
    ends: tuple[Channel, Channel],
) -> None:
    reference = pixels(2048, 1024)
    message = Submit(
        tuple(make_job(f"t.{i}", prompt="画" * 32_000, reference=reference) for i in range(16))
    )
    ends[0].send(message)
    got = ends[1].receive()
    assert same(got, message)
    assert isinstance(got, Submit)
    assert all(job.reference is got.jobs[0].reference for job in got.jobs)  # sent once
    assert not got.jobs[0].reference.flags.writeable  # type: ignore[union-attr]


def test_nothing_is_left_behind(ends: tuple[Channel, Channel]) -> None:
    files = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        ends[0].send(JobDrawn("x", pixels(64, 64)))
        assert isinstance(ends[1].receive(), JobDrawn)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= files + 1


def test_silence_is_no_message_and_an_end_is_told(ends: tuple[Channel, Channel]) -> None:
    assert ends[0].receive(0.0) is None
    ends[1].send(Stop())
    ends[1].finish()
    assert ends[0].receive() == Stop()
    with pytest.raises(ChannelClosed):
        ends[0].receive()
    ends[0].send(Stop())  # goes nowhere


@pytest.mark.parametrize(
    "data",
    [
        b"\0\0\0\2\0[]x",
        b"\0\0\0\5\0[1,2",
        b"\0\0\0\2\1{}",
        b"\xff\xff\xff\xff\0",
        b'\0\0\0\x20\0{"class":"Job"              }   ',
        b'\0\0\0\x20\0{"class":"field","fields":{}   }',
        b'\0\0\0\x20\0{"class":"nothing","fields":{} }',
    ],
)
def test_nonsense_closes(data: bytes) -> None:
    sock, end = socket.socketpair()
    channel = Channel(end, timeout_s=0.2)
    sock.sendall(data)
    if data.endswith(b"x"):
        assert channel.receive() == ()  # no message either; who gets it refuses it
    with pytest.raises(ChannelClosed):
        channel.receive()
    sock.close()
    channel.close()


def test_every_message_can_be_named() -> None:
    for name in ("Submit", "Cancel", "JobRefused", "JobStarted", "JobStepped", "JobFailed"):
        assert dataclasses.is_dataclass(getattr(messages, name))
    assert isinstance(make_job("x"), Job)
