"""Structured logs with the request id in each line and no secret in any. Knows no floor above settings."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog
from structlog.typing import FilteringBoundLogger

from danqing.settings import Settings

_SECRET = re.compile(r"(?i)(bearer\s+|\bsk-)[A-Za-z0-9._~+/=-]{6,}|(x-signature=)[^&\s\"']+")
_SECRET_KEYS = frozenset({"authorization", "token", "secret", "password", "cookie", "api_key"})


def redact(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Blank out tokens wherever they got into a log line: by key, or by their look inside a text."""
    for key, value in event.items():
        if key.lower() in _SECRET_KEYS:
            event[key] = "[redacted]"
        elif isinstance(value, str):
            event[key] = _SECRET.sub(lambda match: (match[1] or match[2]) + "[redacted]", value)
    return event


class _Lines(logging.Handler):
    """Writes to stderr: the standard library's records as their handler, and structlog's lines as its logger.

    The two share its lock. What cannot be written (a full disk, a reader that is gone) is lost: no request
    fails for it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._file = sys.stderr

    def emit(self, record: logging.LogRecord) -> None:
        self.msg(self.format(record))

    def msg(self, line: str) -> None:
        self.acquire()
        try:
            self._file.write(line + "\n")
            self._file.flush()
        except (OSError, ValueError):
            pass
        finally:
            self.release()

    debug = info = warning = error = critical = msg


def _as_json(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> str:
    return _JSON.encode(event)


_JSON = json.JSONEncoder(ensure_ascii=False, default=repr)


def configure(settings: Settings) -> None:
    """Send everything, uvicorn's lines too, to stderr in one format.

    Our own lines do not pass through the standard library: it took two thirds of what a line costs.
    """
    console = settings.log_format == "console" or (
        settings.log_format == "auto" and sys.stderr.isatty()
    )
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    # redact stands behind the traceback's text, so that nothing slips past it; and tracebacks are
    # plain: a pretty one shows local variables, whole headers among them.
    last: list[Any] = [
        structlog.processors.format_exc_info,
        redact,
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        if console
        else _as_json,
    ]
    lines = _Lines()
    structlog.configure(
        processors=[*shared, *last],
        logger_factory=lambda *_: lines,
        wrapper_class=structlog.make_filtering_bound_logger(settings.log_level),
        cache_logger_on_first_use=True,
    )
    lines.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [lines]
    root.setLevel(settings.log_level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers[:] = []
        logging.getLogger(name).propagate = name != "uvicorn.access"  # our own access line has more


def get_logger(name: str) -> FilteringBoundLogger:
    return structlog.get_logger(name)
