"""What an unknown field was probably meant to be: by its letters, by another API's word for it, or by where it stands. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from typing import get_args

from pydantic import BaseModel

_CHARS_MAX = 40
_LIKENESS_MIN = 0.75
_BETWEEN = re.compile(r"[_\-. ]")

# What other image APIs call it: ours in order of likelihood, the first that is known here counts.
_SYNONYMS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("numimages", "numoutputs", "numimagesperprompt", "batchsize", "count", "number"),
        ("n", "max_images"),
    ),
    **dict.fromkeys(
        ("imagesize", "resolution", "dimensions", "width", "height", "aspectratio", "ratio"),
        ("size",),
    ),
    **dict.fromkeys(("text", "description", "query", "caption"), ("prompt",)),
    **dict.fromkeys(("negative", "negativetext"), ("negative_prompt",)),
    **dict.fromkeys(
        ("img", "file", "picture", "initimage", "imageurl", "imageurls", "referenceimages"),
        ("image", "images"),
    ),
    **dict.fromkeys(("denoisingstrength", "samplestrength"), ("strength",)),
    **dict.fromkeys(("format", "outputtype"), ("output_format", "response_format")),
    **dict.fromkeys(("enduser", "userid", "user"), ("user", "user_id")),
    "watermark": ("watermark_enabled",),
    "watermarkenabled": ("watermark",),
    "promptextend": ("optimize_prompt",),
}


def meant(name: str, known: Iterable[str]) -> str | None:
    """The known name that an unknown one was probably meant to be, if there is one."""
    if len(name) > _CHARS_MAX:
        return None
    plain = {_plain(one): one for one in known}
    likely = get_close_matches(_plain(name), plain, 1, _LIKENESS_MIN)
    if likely:
        return plain[likely[0]]
    return next((word for word in _SYNONYMS.get(_plain(name), ()) if word in plain.values()), None)


def meant_at(
    place: Sequence[int | str], model: type[BaseModel], also: Iterable[str] = ()
) -> tuple[int | str, ...] | None:
    """Where the field at `place` of a body was probably meant to stand.

    First among its own neighbours (and `also`, what the top of the body takes beside the model's fields),
    then, by its very name, anywhere else in the body.
    """
    *above, name = (part for part in place if isinstance(part, str))
    there: type[BaseModel] | None = model
    for part in above:
        there = None if there is None else _inner(there, part)
    if there is not None:
        neighbours = [*names_of(there), *(also if not above else ())]
        if found := meant(name, neighbours):
            return (*place[:-1], found)
    elsewhere = [path for path in _paths(model) if path[-1] == name and path[:-1] != tuple(above)]
    return elsewhere[0] if elsewhere else None


def names_of(model: type[BaseModel]) -> list[str]:
    """A body's fields as they stand on the wire."""
    return [field.alias or own for own, field in model.model_fields.items()]


def _plain(name: str) -> str:
    return _BETWEEN.sub("", name.lower())


def _paths(model: type[BaseModel], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name in names_of(model):
        yield (*above, name)
        inner = _inner(model, name)
        if inner is not None:
            yield from _paths(inner, (*above, name))


def _inner(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """The model of a field that is an object, or a list of objects."""
    field = model.model_fields.get(name)
    return None if field is None else _model_in(field.annotation)


def _model_in(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for one in get_args(annotation) if (found := _model_in(one))), None)
