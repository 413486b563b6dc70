"""What the lossless tricks are measured and tested against: the same work without them. Needs torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from danqing.engine.families import flow
from danqing.engine.families.flow import FlowFamily, FlowState


@contextmanager
def without_tables() -> Iterator[None]:
    """Modulation is computed anew in each step of an image that is started here."""
    kept, flow.TABLE_STEPS_MAX = flow.TABLE_STEPS_MAX, 0
    try:
        yield
    finally:
        flow.TABLE_STEPS_MAX = kept


@contextmanager
def halves_apart(family: FlowFamily) -> Iterator[None]:
    """A forward for each guidance half, not one for both."""
    both = family._velocity

    def apart(states: Sequence[FlowState]) -> torch.Tensor:
        texts = [state.texts for state in states]
        if len(texts[0]) == 1:
            return both(states)
        found: list[torch.Tensor] = []
        try:
            for half in (0, 1):
                for state, each in zip(states, texts, strict=True):
                    state.texts = (each[half],)
                found.append(both(states))
        finally:
            for state, each in zip(states, texts, strict=True):
                state.texts = each
        guidance = found[0].new_tensor([state.job.guidance for state in states]).view(-1, 1, 1)
        return family.combine(found[0], found[1], guidance)

    family._velocity = apart  # type: ignore[method-assign]
    try:
        yield
    finally:
        del family._velocity


def whole_qwen(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """1 x T tokens -> T x E, by all of Qwen2.5-VL: through the vocabulary's head, whose answer nobody wants."""
    found = model(input_ids=ids, output_hidden_states=True, use_cache=False)
    assert found.logits.shape[:2] == ids.shape
    return found.hidden_states[-1][0]


def whole_glm(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """The same by all of GLM, of whose states those before the last layer are wanted."""
    return model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states[-2][0]
