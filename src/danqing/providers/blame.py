"""Whose a provider's refusal of a field is: the caller's, who said it, or this server's own configuration. Makes no request."""

from __future__ import annotations

import re
from dataclasses import dataclass

from danqing.backends import RelayRow
from danqing.domain.errors import DanqingError, ProviderFailed, RequestError, WaiverRequired
from danqing.domain.ports import DrawOrder
from danqing.observability.logging import get_logger

log = get_logger(__name__)

_ROOT = re.compile(r"[^.\[]*")
_FIELD_CHARS_MAX = 100
LABEL_SWITCHES = frozenset({"watermark", "watermark_enabled"})
"""What providers call the switch of their AI label."""


@dataclass(frozen=True, slots=True)
class Caller:
    """What of a task's fields its caller said; the rest comes from the catalog: from a card's defaults, from
    a backend's `extras` and `qualities`, from how its images are to come."""

    said: frozenset[str]
    """Fields by the names that client sides have for them."""
    label_switch: str = "watermark"
    """The caller's own name for the switch of the AI label."""

    @classmethod
    def of(cls, order: DrawOrder, row: RelayRow) -> Caller:
        """A value that is the card's default counts as the card's: who says it again can mend nothing."""
        task, card = order.task, order.card
        labels = row.labels == "provider" and not task.ai_label
        said = {
            # What is missing of these, only the caller can add.
            **dict.fromkeys(("prompt", "image", "images", "mask"), True),
            "n": task.n != card.n_default,
            "size": task.size != card.sizes.default and not order.is_fitted,
            # What stands in `qualities` goes as the operator's word.
            "quality": task.quality != card.quality_default and task.quality not in row.qualities,
            "style": task.style is not None,
            "seed": task.seed is not None,
            "negative_prompt": bool(task.negative_prompt),
            "strength": task.strength is not None,
            "background": task.transparent,
            "input_fidelity": task.input_fidelity is not None,
            "moderation": task.moderation is not None,
            **dict.fromkeys(("user", "user_id"), task.end_user is not None),
            **dict.fromkeys(LABEL_SWITCHES, labels),
        }
        return cls(frozenset(name for name, is_said in said.items() if is_said), order.label_switch)

    def hears(self, error: DanqingError, backend: str) -> DanqingError:
        """A provider's error as the caller is told it: never as their fault for what they did not say."""
        if not isinstance(error, RequestError | WaiverRequired):
            return error
        match = _ROOT.match(error.param or "")
        field = match[0][:_FIELD_CHARS_MAX] if match else ""
        if field in self.said:
            if field not in LABEL_SWITCHES:
                return error
            return WaiverRequired(
                self.label_switch,
                "The provider of this model leaves its AI label off only for accounts that it "
                f"permits to: do not set '{self.label_switch}' to false.",
            )
        log.error("provider_refuses_our_field", backend=backend, field=field or None)
        return ProviderFailed(
            "The provider of this model refuses what this server's configuration adds to requests."
        )
