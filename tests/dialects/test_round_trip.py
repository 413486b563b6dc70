"""The law of the dialects: what a client side says, the server side of the same wire hears, and the other way round.

One law for every dialect that a relay can speak (`registry.CLIENTS`): whatever task `unsupported` lets through arrives
as the same task. What it names is refused by name, and leaving out what it names is always enough.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.dialects.cards import card
from tests.dialects.test_errors import CLASSES, instance

from danqing.dialects.base import Dialect, Reply, parse_json
from danqing.dialects.client import (
    ClientDialect,
    Incoming,
    Outgoing,
    Pending,
    ProviderImage,
    ProviderLook,
    ProviderResult,
    Target,
)
from danqing.dialects.forms import form_body
from danqing.dialects.jimeng_client import EXTRAS, SIZES, JimengClient
from danqing.dialects.registry import CLIENTS as SPOKEN
from danqing.dialects.registry import DIALECTS
from danqing.domain import errors
from danqing.domain.card import Backend, Card, Preset
from danqing.domain.errors import DanqingError
from danqing.domain.sizes import Size, SizeRange, SizeRule
from danqing.domain.task import (
    SEED_MAX,
    Broken,
    DeliveredImage,
    Delivery,
    FinishedImage,
    ImageResult,
    ImageSource,
    ImageTask,
    InputImage,
    PartialImage,
    SafetyLevel,
    StreamEvent,
    StreamHead,
    TaskReport,
)

CLIENTS: dict[str, ClientDialect] = {
    **SPOKEN,
    # With `width` its sizes are free; without, they are ratios.
    "jimeng-ratio": JimengClient(EXTRAS - {"width"}),
}
NAMES = sorted(CLIENTS)

MODEL = "qwen-image"
"""A name that each side takes as it is."""

RATIOS = {
    tier.upper(): {ratio: size for ratio, text in sizes.items() if (size := Size.parse(text))}
    for tier, sizes in SIZES.items()
}
CARD: Card = card(
    MODEL,
    sizes=SizeRule(
        default=Size(1024, 1024),
        free=SizeRange(side_min=512, side_max=2048, multiple=16, pixels_max=2048 * 2048),
        tiers=RATIOS,
    ),
    n_max=10,
    qualities={name: Preset(8, 4.0) for name in ("standard", "hd")},
    references_max=4,
    features=frozenset(
        {
            *("response_format", "output_format", "style", "watermark", "sequential"),
            *("transparent", "stream"),
        }
    ),
    backend=Backend(
        "far", "", dialect="openai", extras=frozenset({"input_fidelity", "moderation"})
    ),
)
"""A model that can do everything, so that only the wire sets limits."""
JIMENG: Card = replace(CARD, features=CARD.features | {"jimeng"})
CARDS = {"jimeng": JIMENG, "jimeng-ratio": JIMENG}
"""A card of its own for a wire whose habits go by the model."""

PLAIN: dict[str, Any] = {
    field.name: field.default for kind in (ImageTask, Delivery) for field in fields(kind)
} | {"quality": CARD.quality_default, "prompt": "a cat", "size": CARD.sizes.default}
"""Every field's value that says nothing."""


def storable(chars_max: int, chars_min: int = 0) -> st.SearchStrategy[str]:
    letters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
    return st.text(letters, min_size=chars_min, max_size=chars_max)


PICTURES = [base64.b64decode(text) for text in ("iVBORw0KGgo=", "/9j/4AAQSkZJRg==")]
pictures = st.builds(
    InputImage,
    data=st.sampled_from(PICTURES),
    format=st.just("png"),
    size=st.just(Size(64, 64)),
)


@st.composite
def tasks(draw: st.DrawFn) -> tuple[ImageTask, Target]:
    """A task with any of its fields set, and where it goes: the pictures fetched."""
    side = st.integers(32, 128).map(lambda tiles: tiles * 16)
    free = st.builds(Size, side, side)
    named = st.sampled_from([size for sizes in RATIOS.values() for size in sizes.values()])
    references = draw(st.just([]) | st.lists(pictures, min_size=1, max_size=3))
    mask = draw(st.none() | pictures) if references else None
    text = st.just("猫") | storable(40).map(lambda text: "猫" + text)
    # Without a prompt it is a variation: of one picture, all of it.
    varied = len(references) == 1 and mask is None
    prompt = draw(st.just("") | text if varied else text)
    # Nobody can ask for a variation's quality: it is the model's own.
    qualities = sorted(CARD.qualities) if prompt else [CARD.quality_default]
    task = ImageTask(
        model=MODEL,
        prompt=prompt,
        size=draw(free if draw(st.booleans()) else named),
        quality=draw(st.sampled_from(qualities)),
        n=draw(st.just(1) | st.integers(1, 10)),
        negative_prompt=draw(st.just("") | storable(40)),
        style=draw(st.none() | st.sampled_from(["vivid", "natural"])),
        seed=draw(st.none() | st.integers(0, SEED_MAX)),
        prompt_extend=draw(st.booleans()),
        ai_label=draw(st.booleans()),
        brand_mark=draw(st.sampled_from([False, False, True])),
        end_user=draw(st.none() | storable(40, 6)),
        client_request_id=draw(st.none() | storable(40, 6)),
        history=tuple(draw(st.just([]) | st.lists(storable(10, 1), max_size=2))),
        references=tuple(ImageSource(f"image[{i}]", one.data) for i, one in enumerate(references)),
        mask=None if mask is None else ImageSource("mask", mask.data),
        strength=draw(st.none() | st.sampled_from([0.25, 0.5, 0.75])),
        input_fidelity=draw(st.none() | st.sampled_from(["low", "high"])),
        moderation=draw(st.none() | st.just("low")),
        transparent=draw(st.booleans()),
    )
    return task, Target(MODEL, tuple(references), mask)


@st.composite
def deliveries(draw: st.DrawFn) -> Delivery:
    kind = draw(st.sampled_from(["png", "jpeg", "webp"]))
    stream = draw(st.booleans())
    return Delivery(
        form=draw(st.sampled_from(["url", "b64_json"])),
        format=kind,
        compression=None if kind == "png" else draw(st.none() | st.integers(0, 100)),
        stream=stream,
        partial_images=draw(st.integers(0, 3)) if stream else 0,
    )


def expressible(client: ClientDialect, task: ImageTask, delivery: Delivery) -> tuple[Any, Any]:
    """The two without what the wire cannot say. Fails where leaving out is not enough."""
    cannot = client.unsupported(task, delivery)
    for half in (task, delivery):
        names = {field.name for field in fields(half)} & cannot
        cut = replace(half, **{name: PLAIN[name] for name in names})
        task, delivery = (cut, delivery) if half is task else (task, cut)
    assert client.unsupported(task, delivery) == frozenset()
    return task, delivery


SERVERS = {
    ("openai", "/images/edits"): "openai_edits",
    ("openai", "/images/variations"): "openai_variations",
    ("dashscope", "/services/aigc/multimodal-generation/generation"): "dashscope_native",
    ("dashscope", "/services/aigc/image-generation/generation"): "dashscope_native",
    ("dashscope", "/services/aigc/text2image/image-synthesis"): "dashscope_synthesis",
    ("jimeng", "/images/generations"): "openai",
    ("jimeng-ratio", "/images/generations"): "openai",
    ("qwen", "/images/generations"): "dashscope",
}
"""The server side of a route, by client and path; where none is named it has the client's own name."""
TASKS = ("zhipu", "dashscope")
"""Clients whose providers have a route that answers at once and draws in the background."""


def server_of(name: str, sent: Outgoing) -> Dialect:
    return DIALECTS[SERVERS.get((name, sent.path), name)]


def heard(sent: Outgoing) -> Mapping[str, object]:
    """A request's body as the server's codec gets it: JSON through its bytes, a form's parts in order."""
    if sent.form is not None:
        assert sent.json is None
        return form_body(sent.form)
    return parse_json(json.dumps(sent.json).encode())


DELIVERY_LOST = dict.fromkeys(("chat", "draw", "jimeng", "jimeng-ratio"), ("format",))
"""What a wire does not carry of how to answer, and need not: the relay takes the pictures as they come."""


@pytest.mark.parametrize("name", NAMES)
@given(tasks(), deliveries(), st.booleans())
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=50)
def test_the_server_hears_what_the_client_says(
    name: str, said: tuple[ImageTask, Target], delivery: Delivery, background: bool
) -> None:
    client = CLIENTS[name]
    task, target = said
    task, delivery = expressible(client, task, delivery)
    target = Target(
        MODEL,
        target.references if task.references else (),
        target.mask if task.mask else None,
        background,
    )
    sent = client.encode_request(task, delivery, target)
    read, how = server_of(name, sent).decode_request(heard(sent), CARDS.get(name, CARD))
    assert read == task
    kept = {lost: getattr(how, lost) for lost in DELIVERY_LOST.get(name, ())}
    # The name that the client wrote is the server's to repeat; the relay knows it.
    assert how == replace(delivery, asked_model=how.asked_model, **kept)


@pytest.mark.parametrize("name", NAMES)
@given(tasks(), deliveries())
@settings(deadline=None, max_examples=50)
def test_what_the_wire_cannot_say_is_refused_by_name(
    name: str, said: tuple[ImageTask, Target], delivery: Delivery
) -> None:
    client = CLIENTS[name]
    task, target = said
    cannot = client.unsupported(task, delivery)
    assert cannot <= set(PLAIN)
    if cannot:
        with pytest.raises(errors.UnsupportedField) as refused:
            client.encode_request(task, delivery, target)
        assert refused.value.param in cannot


# Results. What each wire loses on the way back, which is all that is not compared.
RESULT_LOST: dict[str, frozenset[str]] = {
    "openai": frozenset({"safety"}),
    "draw": frozenset({"safety"}),
    "zhipu": frozenset(),
    "dashscope": frozenset({"safety"}),
    "ark": frozenset({"safety", "revised_prompt"}),
    "chat": frozenset({"safety", "revised_prompt"}),
    "jimeng": frozenset({"safety"}),
    "jimeng-ratio": frozenset({"safety"}),
    "qwen": frozenset({"safety"}),
}
ALWAYS_LOST = frozenset({"image_id", "seed", "created", "model", "prompt", "quality"})
"""Ours alone: no wire has them, or the relay knows them already."""


@st.composite
def results(draw: st.DrawFn, form: str) -> ImageResult:
    came = draw(st.lists(st.booleans(), min_size=1, max_size=4).filter(any))
    size = Size(1024, 768)

    def image(index: int) -> DeliveredImage:
        url, b64 = f"https://img.example/{index}.png", base64.b64encode(b"picture %d" % index)
        what: dict[str, str] = {"url": url} if form == "url" else {"b64": b64.decode()}
        return DeliveredImage(f"{index:011x}", size, index, "png", **what)

    return ImageResult(
        created=draw(st.integers(1, 2**31)),
        model=MODEL,
        images=tuple(image(i) if ok else errors.EngineFailed() for i, ok in enumerate(came)),
        prompt="a cat",
        revised_prompt=draw(st.none() | storable(20, 1)),
        safety=tuple(
            draw(
                st.lists(
                    st.builds(
                        SafetyLevel, st.sampled_from(["user", "assistant"]), st.integers(0, 3)
                    ),
                    max_size=2,
                )
            )
        ),
    )


def incoming(reply: Reply) -> Incoming:
    return Incoming(reply.status, json.dumps(reply.body).encode(), reply.headers)


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("name", NAMES)
@given(st.data(), st.sampled_from(["url", "b64_json"]))
@settings(deadline=None, max_examples=40)
def test_the_client_reads_what_the_server_gave(
    name: str, background: bool, data: st.DataObject, form: Any
) -> None:
    client = CLIENTS[name]
    asked, delivery = expressible(client, _task(), Delivery(form))
    result = data.draw(results(delivery.form))
    asked, _ = expressible(client, replace(asked, n=len(result.images)), delivery)
    if asked.n != len(result.images):  # this wire gives one image at a time
        result = replace(result, images=(result.delivered[0],))
    sent = client.encode_request(asked, delivery, Target(MODEL, background=background))
    server = server_of(name, sent)
    reply = server.encode_result(result, delivery, "reply-1")
    if background and name in TASKS:
        report = TaskReport("task-1", MODEL, "queued", 1, delivery=delivery)
        begun = client.decode_result(incoming(server.encode_accepted(report, "req-1")), asked)
        assert isinstance(begun, Pending)
        assert begun.upstream_id == "task-1"
        assert "task-1" in begun.poll.path
        for state in ("queued", "running"):
            still = server.encode_task(replace(report, state=state), "req-2")
            assert isinstance(client.decode_result(incoming(still), asked), Pending)
        ended = replace(report, state="succeeded", result=result)
        reply = server.encode_task(ended, "req-3")
    compare(name, client.decode_result(incoming(reply), asked), result)


@given(
    st.booleans(),
    st.none() | storable(20, 1),
    st.integers(0, 3),
    st.none() | st.sampled_from(CLASSES),
)
@settings(deadline=None, max_examples=40)
def test_the_client_reads_what_the_server_streams(
    edit: bool, revised: str | None, looks: int, broken: Any
) -> None:
    client, server = CLIENTS["openai"], DIALECTS["openai_edits" if edit else "openai"]
    size, delivery = Size(1024, 768), Delivery("b64_json", stream=True, partial_images=looks)
    head = StreamHead("task-1", 1, MODEL, "a cat", "standard", size, 1, is_edit=edit)
    b64 = [base64.b64encode(b"picture %d" % at).decode() for at in range(looks + 1)]
    told: list[StreamEvent] = [PartialImage(0, at, "png", size, b64[at]) for at in range(looks)]
    image = DeliveredImage("0" * 11, size, 1, "png", b64=b64[-1])
    error = None if broken is None else instance(broken)
    told.append(FinishedImage(0, image, revised) if error is None else Broken(error))
    sent = [one for event in told for one in server.encode_event(event, head, delivery)]
    *before, last = [
        (Incoming(200, json.dumps(one.data).encode(), {"x-request-id": "up-1"}), one.name or "")
        for one in sent
    ]
    seen = [client.decode_event(*one) for one in before]
    assert [one.image.data for one in seen if isinstance(one, ProviderLook)] == [
        base64.b64decode(one) for one in b64[:-1]
    ]
    if error is not None:
        with pytest.raises((*expected(error), errors.ProviderFailed)):
            client.decode_event(*last)
        return
    read = client.decode_event(*last)
    assert isinstance(read, ProviderResult)
    (found,) = read.images
    assert isinstance(found, ProviderImage)
    assert (found.data, found.size, found.format) == (base64.b64decode(b64[-1]), size, "png")
    assert (read.revised_prompt, read.upstream_id) == (revised, "up-1")
    assert read.usage["output_tokens"] == size.pixels // 256


def compare(name: str, read: ProviderResult | Pending, result: ImageResult) -> None:
    assert isinstance(read, ProviderResult)
    pictures = [one for one in read.images if isinstance(one, ProviderImage)]
    assert [one.url for one in pictures] == [one.url for one in result.delivered]
    assert [one.data for one in pictures] == [
        None if one.b64 is None else base64.b64decode(one.b64) for one in result.delivered
    ]
    assert len(read.images) == len(result.images)
    lost = RESULT_LOST[name]
    if "revised_prompt" not in lost:
        assert read.revised_prompt == result.revised_prompt
    if "safety" not in lost:
        assert read.safety == result.safety


def _sent(name: str) -> Outgoing:
    return CLIENTS[name].encode_request(_task(), Delivery(), Target(MODEL))


def _task() -> ImageTask:
    return ImageTask(MODEL, "a cat", Size(1024, 1024), CARD.quality_default)


# Errors. What the caller can mend comes back as theirs; our key, our money and our limits at the provider do not.
def expected(error: DanqingError) -> tuple[type[DanqingError], ...]:
    """What a client side may make of a server's error, the nearest first."""
    match error:
        case errors.ContentRefused():
            return (errors.ContentRefused,)
        case errors.Busy() | errors.RateLimited():
            return (errors.Busy,)
        case errors.Unavailable():
            return (errors.Unavailable, errors.ProviderFailed, errors.Busy)
        case errors.UnsupportedField() | errors.UnknownField() | errors.InvalidField():
            return (type(error), errors.UnsupportedField, errors.InvalidField)
        case errors.DuplicateRequestId():
            return (errors.DuplicateRequestId, errors.ProviderFailed, errors.InvalidField)
        case errors.RequestError():
            return (errors.InvalidField, errors.UnsupportedField, errors.ProviderFailed)
        case errors.EndUserBlocked():  # Zhipu has one code for whatever its policy blocks
            return (errors.ProviderFailed, errors.ContentRefused)
        case _:
            return (errors.ProviderFailed,)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_the_client_reads_the_error_that_the_server_meant(name: str, cls: Any) -> None:
    error = instance(cls)
    if isinstance(error, errors.RequestError) and error.param is None:
        error.param = "size"
    reply = server_of(name, _sent(name)).encode_error(error, "req-1")
    read = CLIENTS[name].decode_error(incoming(reply))
    assert isinstance(read, expected(error))
    if isinstance(error, errors.Busy | errors.RateLimited):
        assert isinstance(read, errors.Busy)
        assert read.retry_after_s == float(reply.headers["retry-after"])
    if isinstance(read, errors.InvalidField | errors.UnsupportedField) and cls not in NAMELESS:
        assert read.param == getattr(error, "param", None)
    assert CLIENTS[name].decode_result is not None
    with pytest.raises(type(read)):
        CLIENTS[name].decode_result(incoming(reply), _task())


NAMELESS = (errors.TooManyImages,)
"""Whose message for one image is the wire's own and names no field."""


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_is_no_error(name: str) -> None:
    image = DeliveredImage("0" * 11, Size(1024, 1024), 1, "png", url="https://img.example/1.png")
    result = ImageResult(1, MODEL, (image,), "a cat")
    reply = server_of(name, _sent(name)).encode_result(result, Delivery(), "reply-1")
    assert CLIENTS[name].decode_error(incoming(reply)) is None


def test_a_variation_is_of_one_picture() -> None:
    """Said by name: two pictures, or a mask, must not go where the wire has no place for them."""
    one = ImageSource("image", PICTURES[0])
    task = replace(_task(), prompt="", references=(one,))
    client = CLIENTS["openai"]
    assert client.unsupported(task, Delivery()) == frozenset()
    assert client.unsupported(replace(task, references=(one, one)), Delivery()) == {"references"}
    assert client.unsupported(replace(task, mask=one), Delivery()) == {"mask"}
    assert client.unsupported(task, Delivery(format="webp")) == {"format"}
