"""All dialects by name. Pure data; knows no route."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from danqing.dialects.ark import ArkDialect
from danqing.dialects.ark_client import ArkClient
from danqing.dialects.base import Dialect
from danqing.dialects.chat import ChatDialect, DrawDialect
from danqing.dialects.chat_client import ChatClient, DrawClient
from danqing.dialects.client import ClientDialect
from danqing.dialects.dashscope import DashScopeDialect
from danqing.dialects.dashscope_client import DashScopeClient
from danqing.dialects.dashscope_native import DashScopeMessages, DashScopePrompt
from danqing.dialects.jimeng_client import JimengClient
from danqing.dialects.openai import OpenAIDialect
from danqing.dialects.openai_client import OpenAIClient
from danqing.dialects.openai_edits import OpenAIEditsDialect, OpenAIVariationsDialect
from danqing.dialects.qwen_client import QwenClient
from danqing.dialects.zhipu import ZhipuDialect
from danqing.dialects.zhipu_client import ZhipuClient

_ALL: tuple[Dialect, ...] = (
    OpenAIDialect(),
    OpenAIEditsDialect(),
    OpenAIVariationsDialect(),
    ChatDialect(),
    DrawDialect(),
    ZhipuDialect(),
    DashScopeDialect(),
    ArkDialect(),
    DashScopeMessages(),
    DashScopePrompt(),
)

_Client = (
    OpenAIClient
    | ArkClient
    | ChatClient
    | DrawClient
    | ZhipuClient
    | DashScopeClient
    | JimengClient
    | QwenClient
)
_CLIENTS: tuple[_Client, ...] = (
    OpenAIClient(),
    ArkClient(),
    ChatClient(),
    DrawClient(),
    ZhipuClient(),
    DashScopeClient(),
    JimengClient(),
    QwenClient(),
)

DIALECTS: Mapping[str, Dialect] = MappingProxyType({dialect.name: dialect for dialect in _ALL})
CLIENTS: Mapping[str, _Client] = MappingProxyType({one.name: one for one in _CLIENTS})
"""What a relay can speak."""


def client_of(name: str, extras: frozenset[str]) -> ClientDialect:
    """A client dialect for a server that knows `extras` beyond the common fields.

    Raises KeyError for a dialect that has no client side, ValueError for an extra it has not.
    """
    client = CLIENTS[name]
    return type(client)(extras)
