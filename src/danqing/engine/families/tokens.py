"""A prompt's tokens by the checkpoint's own tokenizer: the one place that counts them. Knows no torch and no model."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from danqing.engine.families.base import PromptTooLong


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a text encoder reads of a prompt. Any thread may ask: the engine's reads while the service's counts."""

    tokenizer: Any
    """One of transformers'."""
    tokens_max: int
    template: str = "{}"
    """What a prompt stands in."""
    dropped: int = 0
    """Tokens of the template before the prompt, which the limit does not count."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def ids(self, prompt: str) -> list[int]:
        """All tokens, the template's among them. Raises PromptTooLong."""
        found = self._read(prompt)
        if len(found) - self.dropped > self.tokens_max:
            raise PromptTooLong(len(found) - self.dropped, self.tokens_max)
        return found

    def measure(self, prompt: str) -> tuple[int, int]:
        """(tokens, tokens at most)."""
        return len(self._read(prompt)) - self.dropped, self.tokens_max

    def _read(self, prompt: str) -> list[int]:
        with self._lock:  # a tokenizer in use by two threads raises
            return self.tokenizer(self.template.format(prompt)).input_ids
