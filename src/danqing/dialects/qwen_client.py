"""DashScope's body on OpenAI's route, seen from its client: gateways that answer it in OpenAI's shape. Pure; knows no HTTP library."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace

from danqing.dialects.answers import check_extras, mapping_of, read_object
from danqing.dialects.client import ClientDialect, Incoming, Outgoing, ProviderResult, Target
from danqing.dialects.dashscope_client import FIELDS, DashScopeClient
from danqing.dialects.openai_client import OpenAIClient
from danqing.domain.errors import DanqingError
from danqing.domain.task import Delivery, ImageTask

_DASHSCOPE, _OPENAI = DashScopeClient(), OpenAIClient()
_LAST = re.compile(r"[a-z_]+$")


@dataclass(frozen=True)
class QwenClient(ClientDialect):
    """Says what DashScope's synchronous route would be told, and reads what OpenAI would answer."""

    name = "qwen"

    extras: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        check_extras(self.extras, frozenset())

    def unsupported(self, task: ImageTask, delivery: Delivery) -> frozenset[str]:
        return _DASHSCOPE.unsupported(task, delivery)

    def encode_request(self, task: ImageTask, delivery: Delivery, target: Target) -> Outgoing:
        sent = _DASHSCOPE.encode_request(task, delivery, replace(target, background=False))
        return replace(sent, path="/images/generations")

    def decode_result(self, answer: Incoming, task: ImageTask) -> ProviderResult:
        error = self.decode_error(answer)
        if error is not None:
            raise error
        return _OPENAI.decode_result(answer, task)

    def decode_error(self, answer: Incoming) -> DanqingError | None:
        """OpenAI's; a field is named by its whole path there: `parameters.size`."""
        stated = mapping_of((read_object(answer) or {}).get("error"))
        last = _LAST.search(str(stated.get("param") or ""))
        if last is None or last[0] not in FIELDS:
            return _OPENAI.decode_error(answer)
        said = {**stated, "param": FIELDS[last[0]]}
        return _OPENAI.decode_error(replace(answer, body=json.dumps({"error": said}).encode()))
