"""No secret in any log line, whichever way it got there."""

from __future__ import annotations

import pytest

from danqing.observability.logging import redact

SECRET = "h7Jk2mPq9xYzAbCdEfGh"


@pytest.mark.parametrize(
    "event",
    [
        {"authorization": f"Bearer {SECRET}"},
        {"Token": SECRET},
        {"event": f"got Bearer {SECRET}"},
        {"event": f"token sk-0123abcd.{SECRET} was used"},
        {"url": f"/files/a.png?x-expires=5&x-signature={SECRET}"},
        {"exception": f"Traceback…\n  header = 'bearer {SECRET}'"},
    ],
)
def test_secrets_are_blanked_out(event: dict[str, str]) -> None:
    assert SECRET not in str(redact(None, "info", dict(event)))


def test_the_rest_stays() -> None:
    event = {"event": "request", "path": "/v1/images/generations", "ms": 1.5}
    assert redact(None, "info", dict(event)) == event
