"""The house rules, checked: floors, first lines, lengths, no machine paths, docs that match the code."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, clean_environment

SOURCES = sorted((ROOT / "src").rglob("*.py"))


def test_floors() -> None:
    """import-linter's contracts (pyproject.toml)."""
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, env=clean_environment()
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_say_what_they_are_and_stay_small(path: Path) -> None:
    text = path.read_text("utf-8")
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "the first line says what the file is"
    assert len(text.splitlines()) <= 500
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < 70, node.name


def test_reference_matches_the_code() -> None:
    """An undocumented setting, command, metric or catalog field fails here; `make docs` writes the page."""
    from tools.make_docs import TARGET, render

    assert TARGET.read_text("utf-8") == render(), "run `make docs`"


def test_links_between_pages_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        text = page.read_text("utf-8")
        for target in re.findall(r"\]\(([^)#\s]+)", text) + re.findall(r'src="([^"]+)"', text):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} → {target}"


def test_engine_needs_no_web_stack() -> None:
    """The GPU machine has none: domain and engine import without it, without the database, and uninstalled."""
    code = (
        "import sys, importlib.metadata as metadata\n"
        "found = metadata.version\n"
        "def version(name):\n"
        "    if name == 'danqing':\n"
        "        raise metadata.PackageNotFoundError(name)\n"
        "    return found(name)\n"
        "metadata.version = version\n"
        "for name in ('fastapi', 'starlette', 'uvicorn', 'sqlalchemy', 'structlog', 'obstore',"
        " 'prometheus_client', 'pydantic_settings'):\n"
        "    sys.modules[name] = None\n"
        "import danqing.domain.ports, danqing.engine.client, danqing.engine.families.pocket\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=clean_environment()
    )
    assert done.returncode == 0, done.stderr
