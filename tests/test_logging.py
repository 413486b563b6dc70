"""No secret in any log line, whichever way it got there."""

from __future__ import annotations

import json
import subprocess
import sys

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


@pytest.mark.parametrize("format", ["console", "json"])
def test_no_secret_in_a_traceback(format: str) -> None:
    """Through the real configuration: a pretty traceback would show local variables."""
    code = (
        "import logging; from danqing import settings; from danqing.observability import logging as l\n"
        f"l.configure(settings.load(log_format={format!r}))\n"
        "def work(header):\n    raise RuntimeError('no ' + header)\n"
        f"for log in (l.get_logger('x'), logging.getLogger('uvicorn.error')):\n"
        f"    try:\n        work('Bearer {SECRET}')\n"
        "    except RuntimeError:\n        log.exception('failed')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.count("RuntimeError") == 2
    assert SECRET not in done.stderr


def test_a_line_that_cannot_be_written_breaks_nothing() -> None:
    """Nor what comes after it: the reader of stderr is gone, or its disk full."""
    code = (
        "import logging; from danqing import settings; from danqing.observability import logging as l\n"
        "l.configure(settings.load(log_format='json'))\n"
        "for _ in range(3):\n"
        "    l.get_logger('x').warning('lost'); logging.getLogger('y').warning('lost')\n"
        "print('done')\n"
    )
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=full, text=True, check=True
        )
    assert done.stdout == "done\n"


def test_lines_below_the_level_are_not_written_and_the_context_is() -> None:
    code = (
        "import logging, structlog; from danqing import settings\n"
        "from danqing.observability import logging as l\n"
        "l.configure(settings.load(log_format='json', log_level='warning'))\n"
        "structlog.contextvars.bind_contextvars(request_id='r1')\n"
        "for log in (l.get_logger('x'), logging.getLogger('y')):\n"
        "    log.info('quiet'); log.warning('loud')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(one["event"], one["level"], one["request_id"]) for one in lines] == [
        ("loud", "warning", "r1")
    ] * 2
    assert all(one["timestamp"].endswith("Z") for one in lines)


def test_the_rest_stays() -> None:
    event = {"event": "request", "path": "/v1/images/generations", "ms": 1.5}
    assert redact(None, "info", dict(event)) == event
