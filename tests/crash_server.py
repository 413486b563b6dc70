"""`python -m tests.crash_server serve …`: the null server, which kills itself (SIGKILL) at one point of the pipeline.

CRASH_AT names the point, CRASH_NTH says at which passing of it. Points: after_inputs (an edit's pictures are stored,
its task is not), after_hold, during_steps, after_store, before_post, before_answer (the charge is written, the
client has no answer).
"""

from __future__ import annotations

import importlib
import os
import signal
from collections.abc import Callable
from typing import Any

from danqing.__main__ import main
from danqing.service.delivery import Deliverer
from danqing.service.ledger import Ledger
from danqing.service.references import References
from tests.engine.null_family import NullFamily

POINTS = (
    "after_inputs",
    "after_hold",
    "during_steps",
    "after_store",
    "before_post",
    "before_answer",
)

_left = int(os.environ.get("CRASH_NTH", "1"))


def _pass() -> None:
    global _left
    _left -= 1
    if _left == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def _around(owner: Any, name: str, *, before: bool) -> None:
    """Wrap a coroutine method so that passing its start or its end counts."""
    method: Callable[..., Any] = getattr(owner, name)

    async def wrapped(*args: Any, **kwargs: Any) -> Any:
        if before:
            _pass()
        value = await method(*args, **kwargs)
        if not before:
            _pass()
        return value

    setattr(owner, name, wrapped)


def arm(point: str) -> None:
    """Set the trap. Raises ValueError for a name that is no point."""
    match point:
        case "after_inputs":
            _around(References, "store", before=False)
        case "after_hold":
            _around(Ledger, "open_task", before=False)
        case "during_steps":
            step = NullFamily.step

            def stepped(self: NullFamily, batch: Any) -> Any:
                _pass()
                return step(self, batch)

            NullFamily.step = stepped  # type: ignore[method-assign]
        case "after_store":
            _around(Deliverer, "store", before=False)
        case "before_post":
            _around(Ledger, "settle", before=True)
        case "before_answer":
            _around(Ledger, "settle", before=False)
        case _:
            raise ValueError(point)


if __name__ == "__main__":
    importlib.import_module("tests.null_server")  # makes every family the null one
    if "CRASH_AT" in os.environ:
        arm(os.environ["CRASH_AT"])
    main()
