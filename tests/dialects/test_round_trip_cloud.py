"""The law, for Zhipu and DashScope: what our client says our server reads, and the other way round."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.dialects.cards import card
from tests.dialects.test_errors import CLASSES, instance

from danqing.dialects.base import Reply, parse_json
from danqing.dialects.client import Incoming, Pending, ProviderImage, ProviderResult, Target
from danqing.dialects.dashscope_client import DashScopeClient
from danqing.dialects.dashscope_native import DashScopeMessages, DashScopePrompt
from danqing.dialects.zhipu import ZhipuDialect
from danqing.dialects.zhipu_client import EXTRAS, ZhipuClient
from danqing.domain import errors
from danqing.domain.card import Preset
from danqing.domain.sizes import Size, SizeRange, SizeRule
from danqing.domain.task import (
    SEED_MAX,
    DeliveredImage,
    Delivery,
    ImageResult,
    ImageSource,
    ImageTask,
    InputImage,
    SafetyLevel,
    TaskReport,
)

CARD = card(
    "model",
    sizes=SizeRule(
        default=Size(1024, 1024),
        free=SizeRange(side_min=64, side_max=4096, multiple=1, pixels_max=2**24, ratio_max=64.0),
    ),
    n_max=6,
    n_default=4,
    qualities={name: Preset(8, 4.0) for name in ("standard", "hd")},
    references_max=3,
    features=frozenset({"style", "revised_prompt"}),
)

storable = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
prompts = storable.map(lambda text: "猫" + text)
sizes = st.builds(Size, st.integers(64, 4096), st.integers(64, 4096))
seeds = st.none() | st.integers(0, SEED_MAX)
pictures = st.binary(min_size=1, max_size=20).map(lambda data: ImageSource("image", data=data))

zhipu_tasks = st.builds(
    ImageTask,
    model=st.just("model"),
    prompt=prompts,
    size=sizes,
    quality=st.sampled_from(["standard", "hd"]),
    negative_prompt=storable,
    style=st.sampled_from([None, "vivid", "natural"]),
    seed=seeds,
    ai_label=st.booleans(),
    end_user=st.none() | st.text("abc", min_size=1, max_size=512),
    client_request_id=st.none() | st.text("abc", min_size=1, max_size=64),
)
dashscope_tasks = st.builds(
    ImageTask,
    model=st.just("model"),
    prompt=prompts,
    size=sizes,
    quality=st.just("standard"),
    n=st.integers(1, 6),
    negative_prompt=storable,
    seed=seeds,
    prompt_extend=st.booleans(),
    brand_mark=st.booleans(),
    references=st.lists(pictures, max_size=3).map(tuple),
)
forms = st.sampled_from(["url", "b64_json"])


def target_of(task: ImageTask, background: bool) -> Target:
    given = tuple(InputImage(one.data or b"", "png", Size(8, 8)) for one in task.references)
    return Target("model", references=given, background=background)


def sent_body(sent: Any) -> dict[str, object]:
    return parse_json(json.dumps(sent.json).encode())


def incoming(reply: Reply) -> Incoming:
    return Incoming(reply.status, json.dumps(reply.body).encode(), reply.headers)


# Tasks


@given(zhipu_tasks, forms, st.booleans())
def test_zhipu_tasks(task: ImageTask, form: Any, background: bool) -> None:
    client, delivery = ZhipuClient(), Delivery(form)
    assert client.unsupported(task, delivery) == frozenset()
    sent = client.encode_request(task, delivery, target_of(task, background))
    assert ZhipuDialect().decode_request(sent_body(sent), CARD) == (task, delivery)


@given(zhipu_tasks, forms, st.sets(st.sampled_from(sorted(EXTRAS))))
def test_what_a_zhipu_server_does_not_know_is_refused_by_name(
    task: ImageTask, form: Any, extras: set[str]
) -> None:
    client, delivery = ZhipuClient(frozenset(extras)), Delivery(form)
    if cannot := client.unsupported(task, delivery):
        with pytest.raises(errors.UnsupportedField) as refused:
            client.encode_request(task, delivery, target_of(task, False))
        assert refused.value.param in cannot
        return
    sent = client.encode_request(task, delivery, target_of(task, False))
    assert not set(sent.json or {}) & (EXTRAS - extras)
    assert ZhipuDialect().decode_request(sent_body(sent), CARD) == (task, delivery)


@given(dashscope_tasks, st.booleans(), st.booleans())
def test_dashscope_tasks(task: ImageTask, background: bool, message_tasks: bool) -> None:
    client = DashScopeClient(frozenset({"message_tasks"} if message_tasks else ()))
    assert client.unsupported(task, Delivery()) == frozenset()
    sent = client.encode_request(task, Delivery(), target_of(task, background))
    by_prompt = sent.path.endswith("image-synthesis")
    assert by_prompt == (background and not task.references and not message_tasks)
    assert ("X-DashScope-Async" in sent.headers) == background
    server = DashScopePrompt() if by_prompt else DashScopeMessages()
    assert server.decode_request(sent_body(sent), CARD) == (task, Delivery())


PLAIN = ImageTask("model", "猫", Size(1024, 1024), "standard")
PICTURE = ImageSource("image", data=b"png")


@pytest.mark.parametrize(
    ("field", "changes", "clients"),
    [
        ("prompt", {"prompt": ""}, "zd"),
        ("quality", {"quality": "high"}, "zd"),
        ("quality", {"quality": "hd"}, "d"),
        ("n", {"n": 2}, "z"),
        ("negative_prompt", {"negative_prompt": "狗" * 501}, "d"),
        ("style", {"style": "vivid"}, "d"),
        ("prompt_extend", {"prompt_extend": True}, "z"),
        ("ai_label", {"ai_label": False}, "d"),
        ("brand_mark", {"brand_mark": True}, "z"),
        ("end_user", {"end_user": "somebody"}, "d"),
        ("client_request_id", {"client_request_id": "r-1"}, "d"),
        ("client_request_id", {"client_request_id": "r" * 65}, "zd"),
        ("history", {"history": ("earlier",)}, "zd"),
        ("references", {"references": (PICTURE,)}, "z"),
        ("mask", {"references": (PICTURE,), "mask": PICTURE}, "zd"),
        ("strength", {"strength": 0.5}, "zd"),
        ("fit_reference", {"references": (PICTURE,), "fit_reference": True}, "d"),
    ],
)
def test_what_a_wire_cannot_say_of_a_task(field: str, changes: Any, clients: str) -> None:
    for letter, client in (("z", ZhipuClient()), ("d", DashScopeClient())):
        task = replace(PLAIN, **changes)
        cannot = client.unsupported(task, Delivery())
        assert (field in cannot) == (letter in clients)
        if letter in clients:
            with pytest.raises(errors.UnsupportedField):
                client.encode_request(task, Delivery(), target_of(task, False))


@pytest.mark.parametrize(
    ("field", "delivery", "clients"),
    [
        ("form", Delivery("b64_json"), "d"),
        ("format", Delivery(format="jpeg"), "zd"),
        ("compression", Delivery(format="webp", compression=50), "zd"),
        ("stream", Delivery(stream=True), "zd"),
        ("partial_images", Delivery(partial_images=1), "zd"),
    ],
)
def test_what_a_wire_cannot_say_of_a_delivery(field: str, delivery: Delivery, clients: str) -> None:
    for letter, client in (("z", ZhipuClient()), ("d", DashScopeClient())):
        assert (field in client.unsupported(PLAIN, delivery)) == (letter in clients)


# Results


def image(index: int, form: str = "url") -> DeliveredImage:
    url, b64 = (f"https://img.example/{index}.png", None) if form == "url" else (None, "cG5n")
    return DeliveredImage(f"{index:011x}", Size(1328, 928), index, "png", url=url, b64=b64)


def urls(result: ProviderResult | Pending) -> list[str | bytes | None]:
    assert isinstance(result, ProviderResult)
    return [
        (one.url or one.data) if isinstance(one, ProviderImage) else None for one in result.images
    ]


def report(result: ImageResult, form: Any = "url") -> TaskReport:
    return TaskReport(
        task_id="task-1",
        model="model",
        state="succeeded",
        created_ms=1,
        finished_ms=2,
        prompt=result.prompt,
        delivery=Delivery(form),
        result=result,
    )


safeties = st.lists(
    st.builds(SafetyLevel, st.sampled_from(["user", "assistant", "history"]), st.integers(0, 3)),
    max_size=3,
).map(tuple)


@given(forms, safeties, st.none() | prompts, st.booleans())
def test_zhipu_results(form: Any, safety: Any, revised: str | None, background: bool) -> None:
    """All but the image's size, which the wire does not carry."""
    result = ImageResult(1, "model", (image(0, form),), "猫", revised, safety)
    server, delivery = ZhipuDialect(), Delivery(form)
    reply = (
        server.encode_task(report(result, form), "r")
        if background
        else server.encode_result(result, delivery, "task-1")
    )
    read = ZhipuClient().decode_result(incoming(reply), PLAIN)
    assert urls(read) == [image(0).url if form == "url" else b"png"]
    assert isinstance(read, ProviderResult)
    assert (read.safety, read.revised_prompt) == (safety, revised)


came = st.lists(st.booleans(), min_size=1, max_size=6).filter(any)


@given(came, st.none() | prompts)
def test_dashscope_results(came: list[bool], revised: str | None) -> None:
    """The images that came, in order; those that did not are missing at the end, their reasons unsaid."""
    images = [image(k) if ok else errors.EngineFailed() for k, ok in enumerate(came)]
    result = ImageResult(1, "model", tuple(images), "猫", revised)
    task = replace(PLAIN, n=len(came))
    server = DashScopeMessages()
    for reply, upstream_id in (
        (server.encode_result(result, Delivery(), "id-1"), "id-1"),
        (server.encode_task(report(result), "r"), "task-1"),
    ):
        read = DashScopeClient().decode_result(incoming(reply), task)
        missing = [None] * came.count(False)
        assert urls(read) == [*(one.url for one in result.delivered), *missing]
        assert isinstance(read, ProviderResult)
        assert (read.revised_prompt, read.upstream_id) == (revised, upstream_id)
        sizes = {one.size for one in read.images if isinstance(one, ProviderImage)}
        assert sizes == {Size(1328, 928)}


@given(came, st.none() | prompts)
def test_dashscope_results_of_a_prompt_task(came: list[bool], revised: str | None) -> None:
    """Every image in its own place, and in the others' places their reasons."""
    refused = errors.ContentRefused("assistant", 1)
    images = [image(k) if ok else refused for k, ok in enumerate(came)]
    result = ImageResult(1, "model", tuple(images), "猫", revised)
    reply = DashScopePrompt().encode_task(report(result), "r")
    read = DashScopeClient().decode_result(incoming(reply), replace(PLAIN, n=len(came)))
    assert urls(read) == [image(k).url if ok else None for k, ok in enumerate(came)]
    assert isinstance(read, ProviderResult)
    assert read.revised_prompt == revised
    for one in read.images:
        if isinstance(one, errors.DanqingError):
            assert isinstance(one, errors.ContentRefused)
            assert one.role == "assistant"


@pytest.mark.parametrize("state", ["queued", "running"])
def test_tasks_under_way(state: Any) -> None:
    standing = TaskReport("task-1", "model", state, 1)
    for client, server in (
        (ZhipuClient(), ZhipuDialect()),
        (DashScopeClient(), DashScopePrompt()),
        (DashScopeClient(), DashScopeMessages()),
    ):
        taken = client.decode_result(incoming(server.encode_accepted(standing, "r")), PLAIN)
        assert isinstance(taken, Pending)
        assert taken.upstream_id == "task-1"
        assert "task-1" in taken.poll.path
        later = client.decode_result(incoming(server.encode_task(standing, "r")), PLAIN)
        assert isinstance(later, Pending)
        assert later.upstream_id in ("", "task-1")


# Errors


@pytest.mark.parametrize("failed", [False, True], ids=["answer", "task"])
@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("wire", ["zhipu", "dashscope"])
def test_errors(wire: str, cls: type[errors.DanqingError], failed: bool) -> None:
    """The caller's own faults, refusals and "busy" come back as they were; what is ours there, and every fault, as the
    provider's failure. The wires carry no finer classes: DashScope has one code for all that is wrong with a field."""
    error = instance(cls)
    if isinstance(error, errors.TooManyImages):
        error.param = "n"
    elif isinstance(error, errors.InvalidField | errors.UnsupportedField):
        error.param = "size"
    server = ZhipuDialect() if wire == "zhipu" else DashScopeMessages()
    client = ZhipuClient() if wire == "zhipu" else DashScopeClient()
    standing = TaskReport("task-1", "model", "failed", 1, finished_ms=2, error=error)
    reply = server.encode_task(standing, "r") if failed else server.encode_error(error, "r")
    read = client.decode_error(incoming(reply))
    assert read is not None
    match error:
        case errors.ContentRefused() if wire == "zhipu":
            assert (type(read), read.role, read.level) == (type(error), error.role, error.level)  # type: ignore[attr-defined]
        case errors.EndUserBlocked() if wire == "zhipu":
            assert type(read) is errors.ContentRefused
        case errors.ContentRefused():
            assert (type(read), read.role) == (type(error), error.role)  # type: ignore[attr-defined]
        case errors.Busy() | errors.RateLimited():
            assert type(read) is errors.Busy
            assert failed or read.retry_after_s == float(reply.headers["retry-after"])
        case errors.Unavailable() if wire == "dashscope" or not failed:
            assert type(read) is errors.Unavailable
        case errors.TooManyImages():
            assert (type(read), read.param) == (errors.TooManyImages, "n")  # type: ignore[attr-defined]
        case errors.DuplicateRequestId() if wire == "zhipu":
            assert (type(read), read.message) == (errors.DuplicateRequestId, error.message)
        case errors.UnknownField() | errors.UnsupportedField() if wire == "zhipu":
            assert (type(read), read.param) == (errors.UnsupportedField, "size")  # type: ignore[attr-defined]
        case errors.RequestError(param="size"):
            assert (type(read), read.param) == (errors.InvalidField, "size")  # type: ignore[attr-defined]
        case _:
            assert type(read) is errors.ProviderFailed
