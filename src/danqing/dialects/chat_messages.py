"""What a chat's `messages` ask for: the last user turn's words and pictures, and what came before. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

from danqing.dialects.fields import Wire, read_source, validate
from danqing.domain.errors import InvalidField, MissingField, UnsupportedField
from danqing.domain.task import ImageSource

UNUSED = "messages.image_url"
"""How the pictures of earlier turns, which are not used, are told back."""

_LOOKS_BACK_MAX = 100
# From a picture's Markdown on; where it ends is plain from the address.
_MARKDOWN = re.compile(r"!\[[^\]\n]{0,1000}\]\(\s{0,8}<?([^\s()<>\"]+)")
# Megabytes of base64 are no words: a word list would find some in them by chance.
_DATA_URL = re.compile(r"data:[a-z]+/[a-z0-9.+-]+;base64,[A-Za-z0-9+/=]+", re.I)


class Message(Wire):
    """One turn. `content` is a string or a list of parts; the other fields belong to a chat's history."""

    role: Literal["system", "developer", "user", "assistant"]
    content: object = None
    name: str | None = None
    refusal: str | None = None
    annotations: list[object] | None = None
    reasoning: object = None
    reasoning_content: str | None = None
    reasoning_details: object = None
    images: list[object] | None = None
    """OpenRouter's way for an assistant's pictures."""


class Part(Wire):
    """A part of a message. The kinds that are neither text nor picture are known only to be refused by name."""

    type: Literal["text", "image_url", "input_audio", "file"]
    text: str | None = None
    image_url: object = None
    input_audio: object = None
    file: object = None
    cache_control: object = None
    index: int | None = None


class ImageUrl(Wire):
    """OpenAI's `image_url`. `detail` is for models that look; drawing takes a picture as it is."""

    url: str
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """One message, read. Nothing of its pictures has been looked at yet."""

    role: str
    path: str
    text: str | None
    pictures: tuple[tuple[str, str], ...]
    """Each picture's path on the wire, and its address."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """All turns, and which of them is the one that asks."""

    turns: tuple[Turn, ...]
    asked: int

    @property
    def asking(self) -> Turn:
        return self.turns[self.asked]

    @property
    def history(self) -> tuple[str, ...]:
        """The words of all other turns."""
        others = (turn for index, turn in enumerate(self.turns) if index != self.asked)
        return tuple(_DATA_URL.sub("", turn.text) for turn in others if turn.text)

    @property
    def has_earlier_pictures(self) -> bool:
        return any(turn.pictures for index, turn in enumerate(self.turns) if index != self.asked)

    def pictures(self) -> list[ImageSource]:
        """The asking turn's own. Raises InvalidImage."""
        return [read_source(url, path) for path, url in self.asking.pictures]

    def last_picture(self) -> ImageSource | None:
        """The latest picture before the asking turn: a part, or Markdown in an assistant's words.

        Raises InvalidImage for one that is no http or data URL.
        """
        for turn in reversed(self.turns[: self.asked]):
            if turn.pictures:
                path, url = turn.pictures[-1]
                return read_source(url, path)
            if turn.role == "assistant" and turn.text and (url := _last_markdown(turn.text)):
                return read_source(url, f"{turn.path}.content")
        return None


def read_messages(messages: list[object]) -> Conversation:
    """Raises InvalidField, MissingField, UnknownField or UnsupportedField, naming the place."""
    turns = tuple(_read_turn(raw, f"messages[{index}]") for index, raw in enumerate(messages))
    asked = [index for index, turn in enumerate(turns) if turn.role == "user"]
    if not asked:
        raise InvalidField("'messages' must hold a message of the role 'user'.", "messages")
    return Conversation(turns, asked[-1])


def _read_turn(raw: object, path: str) -> Turn:
    message = validate(Message, raw, path)
    content, pictures = message.content, _read_pictures(message.images, f"{path}.images")
    if content is None or isinstance(content, str):
        return Turn(message.role, path, content, pictures)
    at = f"{path}.content"
    if not isinstance(content, list):
        raise InvalidField(f"'{at}' must be a string or a list of parts.", at)
    texts: list[str] = []
    parts = cast("list[object]", content)
    for index, raw_part in enumerate(parts):
        part = validate(Part, raw_part, f"{at}[{index}]")
        if part.type not in ("text", "image_url"):
            raise UnsupportedField(
                f"'{at}[{index}]': only parts of type 'text' and 'image_url' are read.",
                f"{at}[{index}]",
            )
        if part.type == "text":
            if part.text is None:
                raise MissingField(f"{at}[{index}].text")
            texts.append(part.text)
    return Turn(message.role, path, "\n".join(texts), pictures + _read_pictures(parts, at))


def _read_pictures(parts: Sequence[object] | None, path: str) -> tuple[tuple[str, str], ...]:
    """The `image_url` parts of a list: `{url}` as OpenAI has it, or the address itself."""
    found: list[tuple[str, str]] = []
    for index, raw in enumerate(parts or ()):
        at = f"{path}[{index}].image_url"
        part = validate(Part, raw, f"{path}[{index}]")
        if part.type != "image_url":
            continue
        if part.image_url is None:
            raise MissingField(at)
        if isinstance(part.image_url, str):
            found.append((at, part.image_url))
        else:
            found.append((f"{at}.url", validate(ImageUrl, part.image_url, at).url))
    return tuple(found)


def _last_markdown(text: str) -> str | None:
    """The address of the last Markdown picture in a text, looking back from its end."""
    at = len(text)
    for _ in range(_LOOKS_BACK_MAX):
        at = text.rfind("![", 0, at)
        if at < 0:
            return None
        match = _MARKDOWN.match(text, at)
        if match is not None:
            return match[1]
    return None
