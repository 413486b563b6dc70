"""What a task's row keeps comes back as it was: requests, results, every error of the tree."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.dialects.test_errors import CLASSES, instance

from danqing.domain import errors
from danqing.domain.errors import DanqingError
from danqing.domain.sizes import Size
from danqing.domain.task import SEED_MAX, Delivery, ImageSource, ImageTask, SafetyLevel
from danqing.service.finishing import LabelPlan
from danqing.service.records import (
    StoredRequest,
    StoredResult,
    error_json,
    error_of_json,
    is_kept,
)

CASES = [instance(cls) for cls in CLASSES]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)
SEEDS = st.integers(0, SEED_MAX)
SIZES = st.builds(Size, st.integers(16, 8192), st.integers(16, 8192))
SOURCES = st.builds(ImageSource, param=TEXT, data=st.none(), url=st.none(), blob_key=TEXT)
TASKS = st.builds(
    ImageTask,
    size=SIZES,
    prompt=TEXT,
    history=st.just(()),
    seed=st.none() | SEEDS,
    references=st.lists(SOURCES, max_size=3).map(tuple),
    mask=st.none() | SOURCES,
    strength=st.none() | st.floats(0, 1),
)
DELIVERIES = st.builds(
    Delivery, ignored=st.lists(TEXT).map(tuple), truncated=st.lists(TEXT).map(tuple)
)
REQUESTS = st.builds(
    StoredRequest,
    task=TASKS,
    delivery=DELIVERIES,
    plan=st.builds(LabelPlan),
    seeds=st.lists(SEEDS).map(tuple),
    received_s=st.floats(0, 1e10),
)


@given(REQUESTS)
def test_a_request_comes_back(request: StoredRequest) -> None:
    assert StoredRequest.of_json(json.loads(json.dumps(request.as_json()))) == request


def test_a_request_of_version_0_1_0_is_refused() -> None:
    with pytest.raises(ValueError, match="another version"):
        StoredRequest.of_json({"prompt": "a cat", "n": 1})


@pytest.mark.parametrize("error", CASES, ids=lambda error: type(error).__name__)
def test_an_error_comes_back(error: DanqingError) -> None:
    again = error_of_json(json.loads(json.dumps(error_json(error))))
    assert type(again) is type(error)
    assert str(again) == error.message
    assert vars(again) == vars(error)


def test_an_error_of_another_version_is_our_fault() -> None:
    again = error_of_json({"code": "who_knows", "message": "It was so.", "more": 1})
    assert isinstance(again, errors.ServerFault)
    assert again.message == "It was so."


def test_which_errors_a_key_keeps() -> None:
    kept = {type(error).__name__ for error in CASES if is_kept(error)}
    assert {"ContentRefused", "Cancelled", "InvalidField"} <= kept
    assert not kept & {"ServerFault", "EngineFailed", "Unavailable", "Busy", "RateLimited"}
    assert not kept & {"QuotaExceeded", "TokenBudgetExceeded", "ConcurrencyExceeded"}


def test_a_result_comes_back() -> None:
    result = StoredResult(
        "a fat cat", (SafetyLevel("user", 3),), {"queue": 1.5}, {2: errors.EngineFailed("NaN")}
    )
    again = StoredResult.of_json(json.loads(json.dumps(result.as_json())))
    assert (again.revised_prompt, again.safety) == (result.revised_prompt, result.safety)
    assert again.timing_ms == result.timing_ms
    assert [(at, error.code, error.message) for at, error in again.failed.items()] == [
        (2, "engine_failed", "NaN")
    ]
    assert StoredResult.of_json(None).failed == {}
