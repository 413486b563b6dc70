"""The documents' own examples, run against a live server: each curl marked `tested` must give an image."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import httpx2
import pytest

from tests.conftest import ROOT, LiveServer

PAGES = sorted((ROOT / "docs").rglob("*.md"))
EXAMPLE = re.compile(r"<!-- tested -->\s*```bash\n(.*?)```", re.DOTALL)
CASES = [
    pytest.param(example, id=f"{page.stem}-{index}")
    for page in PAGES
    for index, example in enumerate(EXAMPLE.findall(page.read_text("utf-8")))
]
LINK = re.compile(r"http://[^\s\"')\\]+/files/[^\s\"')\\]+")


def test_every_dialect_page_has_an_example() -> None:
    for page in (ROOT / "docs" / "dialects").glob("*.md"):
        assert EXAMPLE.search(page.read_text("utf-8")), page.name


@pytest.mark.parametrize("example", CASES)
def test_example(server: LiveServer, example: str, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        if os.environ.get("CI"):
            pytest.fail("curl is missing")
        pytest.skip("the examples need curl: apt-get install curl")
    done = subprocess.run(
        ["bash", "-ec", example.replace("http://127.0.0.1:8000", server.url)],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=tmp_path,
        env=os.environ | {"DANQING_TOKEN": server.token},
    )
    assert done.returncode == 0, done.stderr
    links = LINK.findall(done.stdout)
    assert links or '"b64_json"' in done.stdout or "base64," in done.stdout, done.stdout[:500]
    for link in links:
        assert httpx2.get(link).status_code == 200
