"""The command line in this process, without starting another: what a command says, and nothing left behind."""

from __future__ import annotations

import logging
import os

import structlog
from typer.testing import CliRunner, Result

from danqing.cli.main import app


def invoke(*args: str, input: str | None = None) -> Result:
    """Run a command with no DANQING_* variable set.

    A command may have the log sent to its stderr, which is gone when it is over: then the log goes back to where
    it went before.
    """
    unset = {name: None for name in os.environ if name.startswith("DANQING_")}
    root, configured = logging.getLogger(), structlog.get_config()
    handlers, level = root.handlers[:], root.level
    try:
        return CliRunner().invoke(app, list(args), input=input, env=unset)
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        structlog.configure(**configured)


def run(*args: str, code: int = 0) -> Result:
    """The same, and how it must end. What fails says so in its own words."""
    result = invoke(*args)
    assert result.exit_code == code, (result.output, result.exception)
    if code:
        assert "Traceback" not in result.stderr
    return result


def one_line(result: Result) -> str:
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    return line
