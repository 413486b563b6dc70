"""The loop of a driver: one JSON call a line in, one JSON answer a line out. Runs inside an SDK's environment: standard library only."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any


def serve(calls: dict[str, Callable[..., Any]]) -> None:
    """Answer calls until the input ends. What a call raises is an answer too."""
    out, sys.stdout = sys.stdout, sys.stderr  # an SDK's own prints must not come between
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"value": calls[request["call"]](**request["arguments"])}
        except Exception as error:
            answer = {"error": described(error)}
        out.write(json.dumps(answer, default=str) + "\n")
        out.flush()


def described(error: Exception) -> dict[str, Any]:
    """The class (and its bases), HTTP status, and the answer's JSON as the SDK shows them."""
    response = getattr(error, "response", None)
    try:
        body = response.json() if response is not None else getattr(error, "body", None)
    except Exception:
        body = None
    return {
        "types": [cls.__name__ for cls in type(error).__mro__],
        "status": getattr(error, "status_code", None),
        "code": getattr(error, "code", None),
        "param": getattr(error, "param", None),
        "message": str(error),
        "body": body,
        "headers": {} if response is None else {k.lower(): v for k, v in response.headers.items()},
    }
