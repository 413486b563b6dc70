"""Chat's messages: what front ends really send, pictures as parts, follow-up edits, and what is told back as unused."""

from __future__ import annotations

import base64
import time
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.dialects.cards import CARDS

from danqing.dialects.chat_messages import UNUSED
from danqing.dialects.registry import DIALECTS
from danqing.domain.card import Card
from danqing.domain.errors import InvalidField, InvalidImage, RequestError, UnsupportedField
from danqing.domain.task import Delivery, ImageSource, ImageTask

CHAT = DIALECTS["chat"]
EDITOR = replace(CARDS["gpt-image-1"], references_max=2)
PIXEL = base64.b64encode(b"\x89PNG picture").decode()
DATA = f"data:image/png;base64,{PIXEL}"
LINK = "https://img.example/a.png"
OURS = "![image](http://here/files/0123456789a.png?x-expires=1&x-signature=s)"


def decode(
    messages: list[Any], card: Card = EDITOR, **fields: object
) -> tuple[ImageTask, Delivery]:
    return CHAT.decode_request({"messages": messages} | fields, card)


def user(*parts: object) -> dict[str, object]:
    return {"role": "user", "content": list(parts)}


def text(words: str) -> dict[str, object]:
    return {"type": "text", "text": words}


def picture(url: str = DATA, **more: object) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": url} | more}


# The bodies of three front ends: the fields that their sources put in, with a picture and a history.
FRONT_ENDS: dict[str, dict[str, Any]] = {
    "NextChat": {
        "messages": [
            {"role": "system", "content": "You are a painter."},
            {"role": "user", "content": "a cat"},
            {"role": "assistant", "content": OURS},
            user(text("make it blue"), picture()),
        ],
        "stream": True,
        "model": "gpt-image-1",
        "temperature": 0.5,
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "top_p": 1,
        "max_tokens": 4000,
    },
    "Open WebUI": {
        "model": "gpt-image-1",
        "messages": [
            user(text("a cat"), picture(LINK)),
            {"role": "assistant", "content": OURS},
            user(text("make it blue"), picture()),
        ],
        "stream": True,
        "stream_options": {"include_usage": True},
        "reasoning": {"effort": "low"},
        "temperature": 0.8,
        "logit_bias": {},
        "stop": ["END"],
        "seed": 7,
    },
    "LobeChat": {
        "messages": [
            {"role": "system", "content": "You are a painter."},
            user(text("make it blue"), picture(DATA, detail="auto")),
        ],
        "model": "gpt-image-1",
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 1,
        "top_p": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "reasoning_effort": "low",
        "thinking": {"type": "disabled", "budget_tokens": 0},
        "tools": None,
        "user": "u-1",
    },
}


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_front_ends(name: str) -> None:
    body = FRONT_ENDS[name]
    task, delivery = CHAT.decode_request(body, EDITOR)
    assert task.prompt == "make it blue"
    assert task.references == (ImageSource("", data=b"\x89PNG picture"),)
    assert task.fit_reference
    assert delivery.stream
    assert delivery.echo == ("stream_options" in body)
    honoured = {"messages", "model", "stream", "stream_options", "seed", "user", "tools"}
    ignored = set(body) - honoured | ({UNUSED} if name == "Open WebUI" else set())
    assert set(delivery.ignored) == ignored
    plain, _ = CHAT.decode_request(body | {"stream": False}, EDITOR)
    assert plain == task


def test_parts_of_a_turn() -> None:
    task, _ = decode([user(picture(), text("a"), picture(LINK), text("b"))], size="1536x1024")
    assert task.prompt == "a\nb"
    assert task.references == (ImageSource("", data=b"\x89PNG picture"), ImageSource("", url=LINK))
    assert [source.param for source in task.references] == [
        "messages[0].content[0].image_url.url",
        "messages[0].content[2].image_url.url",
    ]
    assert not task.fit_reference  # a size was asked for
    bare, _ = decode([user({"type": "image_url", "image_url": LINK}, text("a"))])
    assert bare.references == (ImageSource("", url=LINK),)
    assert bare.references[0].param == "messages[0].content[0].image_url"


@pytest.mark.parametrize("words", [[], [text("")], [text("  \n")]])
def test_a_picture_without_words_asks_for_a_variation(words: list[object]) -> None:
    task, _ = decode([user(*words, picture())])
    assert (task.prompt, len(task.references)) == ("", 1)


def test_pictures_of_earlier_turns_are_told_and_not_used() -> None:
    task, delivery = decode(
        [
            user(text("a cat"), picture("not even an address")),
            {"role": "assistant", "content": None, "images": [picture() | {"index": 0}]},
            {"role": "user", "content": "a dog"},
        ]
    )
    assert (task.references, task.history) == ((), ("a cat",))
    assert delivery.ignored == (UNUSED,)


@pytest.mark.parametrize(
    ("earlier", "found"),
    [
        ([{"role": "assistant", "content": OURS}], "http://here/files/0123456789a.png"),
        ([{"role": "assistant", "content": f"![a]({LINK}) and ![b](<{LINK}?2> 'x')"}], f"{LINK}?2"),
        ([{"role": "assistant", "content": f"![image]({DATA})"}], b"\x89PNG picture"),
        ([{"role": "assistant", "content": [text(f"![image]({DATA})")]}], b"\x89PNG picture"),
        ([{"role": "assistant", "content": None, "images": [picture(LINK)]}], LINK),
        ([user(text("this"), picture(LINK)), {"role": "assistant", "content": "Nice."}], LINK),
        ([user(picture(LINK)), {"role": "assistant", "content": OURS}], "http://here/files"),
        (
            [{"role": "user", "content": f"![mine]({LINK})"}],
            None,
        ),  # somebody's words, not a picture of ours
        ([{"role": "assistant", "content": "![a](no) ![b] ![]( ) !["}], None),
        ([{"role": "assistant", "content": f"[a]({LINK})"}], None),
        ([], None),
    ],
)
def test_a_follow_up_edits_the_last_picture_where_asked(
    earlier: list[Any], found: str | bytes | None
) -> None:
    turns = [*earlier, {"role": "user", "content": "make it blue"}]
    if found is None and "![a](no)" in str(earlier):
        with pytest.raises(InvalidImage):
            decode(turns, edit_last_image=True)
        return
    task, _ = decode(turns, edit_last_image=True)
    if found is None:
        assert task.references == ()
    elif isinstance(found, bytes):
        assert task.references[0].data == found
    else:
        assert task.references[0].url is not None
        assert task.references[0].url.startswith(found)
    for off in ({}, {"edit_last_image": False}, {"edit_last_image": None}):
        assert decode(turns, **off)[0].references == ()


def test_the_turns_own_picture_wins() -> None:
    turns = [{"role": "assistant", "content": OURS}, user(text("this one"), picture(LINK))]
    task, _ = decode(turns, edit_last_image=True)
    assert [source.url for source in task.references] == [LINK]


@pytest.mark.parametrize(
    ("messages", "card", "kind", "param"),
    [
        ([user(text("a"), picture())], CARDS["dall-e-3"], UnsupportedField, "messages[0].content"),
        ([user(*[picture()] * 3)], EDITOR, InvalidField, "messages[0].content"),
        (
            [user(picture("ftp://a/b"))],
            EDITOR,
            InvalidImage,
            "messages[0].content[0].image_url.url",
        ),
        (
            [user(picture("data:image/png;base64,*"))],
            EDITOR,
            InvalidImage,
            "messages[0].content[0].image_url.url",
        ),
        ([user({"type": "image_url"})], EDITOR, RequestError, "messages[0].content[0].image_url"),
        (
            [user({"type": "image_url", "image_url": {"url": 7}})],
            EDITOR,
            InvalidField,
            "messages[0].content[0].image_url.url",
        ),
        (
            [user({"type": "image_url", "image_url": {}})],
            EDITOR,
            RequestError,
            "messages[0].content[0].image_url.url",
        ),
        ([user({"type": "file", "file": {}})], EDITOR, UnsupportedField, "messages[0].content[0]"),
        (
            [user({"type": "input_audio", "input_audio": {}})],
            EDITOR,
            UnsupportedField,
            "messages[0].content[0]",
        ),
        ([user({"type": "video_url"})], EDITOR, InvalidField, "messages[0].content[0].type"),
    ],
)
def test_what_is_refused(
    messages: list[Any], card: Card, kind: type[RequestError], param: str
) -> None:
    with pytest.raises(kind) as refused:
        decode(messages, card)
    assert refused.value.param == param


def test_a_model_that_edits_nothing_says_so() -> None:
    turns = [{"role": "assistant", "content": OURS}, {"role": "user", "content": "make it blue"}]
    with pytest.raises(UnsupportedField) as refused:
        decode(turns, CARDS["dall-e-3"], edit_last_image=True)
    assert refused.value.param == "edit_last_image"


@pytest.mark.parametrize(
    ("options", "kind"),
    [("yes", InvalidField), ({"include_usage": "yes"}, InvalidField), ({"more": 1}, RequestError)],
)
def test_stream_options(options: object, kind: type[RequestError]) -> None:
    with pytest.raises(kind) as refused:
        decode([{"role": "user", "content": "a"}], stream=True, stream_options=options)
    assert refused.value.param is not None
    assert refused.value.param.startswith("stream_options")
    _, plain = decode([{"role": "user", "content": "a"}], stream_options={"include_usage": True})
    assert plain.ignored == ("stream_options",)  # it says nothing of an answer that is no stream


def test_base64_is_not_read_as_words() -> None:
    """A word list finds anything in megabytes of letters; and they are no words of anybody's."""
    task, _ = decode(
        [
            {"role": "assistant", "content": f"Here: ![image]({DATA}) it is."},
            {"role": "user", "content": "a dog"},
        ]
    )
    assert task.history == ("Here: ![image]() it is.",)


@pytest.mark.parametrize("shred", ["![", "![]", "![a](", "data:image/png;base64,"])
def test_strange_histories_take_no_time(shred: str) -> None:
    turns = [{"role": "assistant", "content": shred * 300_000}, {"role": "user", "content": "a"}]
    began = time.process_time()
    with suppress(InvalidImage):
        decode(turns, edit_last_image=True)
    assert time.process_time() - began < 20


@given(
    st.lists(
        st.fixed_dictionaries(
            {"role": st.sampled_from(["system", "user", "assistant", "tool"])},
            optional={
                "content": st.one_of(
                    st.none(),
                    st.text(max_size=8),
                    st.lists(
                        st.one_of(
                            st.builds(text, st.text(max_size=4)),
                            st.builds(picture, st.sampled_from([DATA, LINK, "", "data:", "x"])),
                            st.dictionaries(
                                st.sampled_from(["type", "text", "image_url"]), st.text(max_size=5)
                            ),
                            st.integers(),
                        ),
                        max_size=3,
                    ),
                ),
                "images": st.lists(
                    st.builds(picture, st.sampled_from([DATA, LINK, "x"])), max_size=2
                ),
            },
        ),
        max_size=4,
    ),
    st.booleans(),
)
def test_any_conversation_is_a_task_or_a_named_fault(messages: list[Any], follow_up: bool) -> None:
    fault: RequestError | None = None
    try:
        task, _ = decode(messages, edit_last_image=follow_up)
    except RequestError as error:
        fault = error
    assert fault.param if fault else task.prompt or task.references
