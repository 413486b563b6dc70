"""bench/gpu.py's dry run: every path on the CPU with small networks, so that time with a GPU is spent measuring."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the engine extra: make install-engine")
pytest.importorskip("diffusers", reason="the engine extra: make install-engine")

from bench import gpu  # noqa: E402
from bench._gpu_measure import is_failed  # noqa: E402

pytestmark = pytest.mark.slow

TINY = ["--tiny", "--no-compile", "--steps", "8"]


def test_every_path_runs_and_resumes(tmp_path: Path) -> None:
    results, tables = tmp_path / "gpu.jsonl", tmp_path / "gpu.md"
    where = ["--results", str(results), "--tables", str(tables)]
    gpu.main([*TINY, *where, "--smoke", "--profile", "--grid", "--trace"])
    rows = {row["key"]: row for row in map(json.loads, results.read_text("utf-8").splitlines())}
    faults = {
        key: row for key, row in rows.items() if "error" in row and isinstance(row["error"], str)
    }
    assert not faults
    assert not any(name.endswith("_fault") for row in rows.values() for name in row)
    kinds = [key.split()[0] for key in rows]
    counts = {kind: kinds.count(kind) for kind in kinds}
    assert counts == {
        "environment": 1, "smoke": 4, "whole": 2, "profile": 4, "served": 4, "mixed": 2,
        "precision": 2, "trace": 2, "vae": 2, "cell": 24,
    }  # fmt: skip
    for row in rows.values():
        assert row["versions"]["torch"] == torch.__version__
        assert row["card"] == "none"
        assert re.fullmatch(r"[0-9a-f]{12}\+?|unknown", row["commit"])
        assert row["load"] >= 0
        assert {"date", "driver"} <= row.keys()
    for name in gpu.FAMILIES:
        assert rows[f"smoke {name} 64"]["ours_error"] < 1e-5
        assert rows[f"precision {name} 64"]["diffusers_error"] < 1e-5
        assert rows[f"precision {name} 64"]["ours_error"] < 1e-5
        assert not rows[f"served {name} 64"]["failed"]
    text = tables.read_text("utf-8")
    assert "not measured" in text, "nothing was compiled"
    assert text.count("| cogview4 | ") == text.count("| qwen_image | ") == 4, text
    # one cell failed, one of its ways did in another, one was served in part: those are tried again
    again = {"vae cogview4 96", "smoke qwen_image 64", "served cogview4 64"}
    spoilt = [{"error": "RuntimeError: no"}, {"ours_fault": "no"}, {"failed": ["no"]}]
    lines = [
        json.dumps({"key": key} | fault) for key, fault in zip(sorted(again), spoilt, strict=True)
    ]
    results.write_text(results.read_text("utf-8") + "\n".join(lines) + "\n", "utf-8")
    before = len(results.read_text("utf-8").splitlines())
    gpu.main([*TINY, *where, "--smoke", "--profile", "--grid", "--trace"])
    new = [json.loads(line) for line in results.read_text("utf-8").splitlines()[before:]]
    assert {row["key"] for row in new} == again | {"environment"}, "the others are measured once"
    assert not any(is_failed(row) for row in new)


def test_the_distilled_ones_are_drawn_to_the_end(tmp_path: Path) -> None:
    results, tables = tmp_path / "gpu.jsonl", tmp_path / "gpu.md"
    where = ["--results", str(results), "--tables", str(tables)]
    gpu.main([*TINY, *where, "--distilled"])
    rows = {row["key"]: row for row in map(json.loads, results.read_text("utf-8").splitlines())}
    assert set(rows) == {"environment", "distilled flux2_klein 64", "distilled z_image_turbo 64"}
    for key in set(rows) - {"environment"}:
        row = rows[key]
        assert "error" not in row, row
        assert row["png_bytes"] > 1000
        stages = sum(row[name] for name in ("encode_s", "denoise_s", "decode_s", "png_s"))
        assert stages > 0
        assert len(row["rounds_s"]) == 5
    text = tables.read_text("utf-8")
    assert "| flux2_klein 64 | " in text
    assert "| z_image_turbo 64 | " in text


def test_what_has_no_record_on_a_card_is_held_against_the_plain_way(tmp_path: Path) -> None:
    results = tmp_path / "gpu.jsonl"
    gpu.main([*TINY, "--paths", "--results", str(results)])
    rows = {row["key"]: row for row in map(json.loads, results.read_text("utf-8").splitlines())}
    kinds = {"overlap": ("cogview4", "qwen_image", "flux2_klein"), "offload": gpu.FAMILIES}
    cells = {f"{kind} {name} 64" for kind, names in kinds.items() for name in names}
    assert rows.keys() == cells | {"environment"}
    for key in cells:
        assert not is_failed(rows[key]), rows[key]
        found = {name: rows[key].get(name, 0) for name in ("differs", "error", "again_error")}
        assert max(found.values()) <= 1e-5, (key, found)
        assert rows[key].get("blocks", rows[key].get("jobs", 0)) > 1


def test_every_way_to_save_work_is_measured_alone_and_together(tmp_path: Path) -> None:
    results, tables = tmp_path / "gpu.jsonl", tmp_path / "gpu.md"
    gpu.main([*TINY, "--tricks", "--results", str(results), "--tables", str(tables)])
    rows = {row["key"]: row for row in map(json.loads, results.read_text("utf-8").splitlines())}
    tricks = {"cogview4": {"table", "cfg", "interval", "together"}}
    tricks["qwen_image"] = tricks["cogview4"] | {"vae"}
    wanted = {
        f"trick {name} {side} {trick}"
        for name in gpu.FAMILIES
        for side in (64, 96)
        for trick in tricks[name]
    }
    assert rows.keys() == wanted | {"environment"}
    for key in wanted:
        row = rows[key]
        assert not is_failed(row), row
        assert min(row["without_s"], row["with_s"]) > 0
        lossless = key.split()[-1] in ("table", "cfg", "vae")
        # a pixel rounded the other way at most; an interval moves the latents, which is what its error is there to say
        assert (row["error"] <= 1e-3) is lossless, row
    assert "| cogview4 64 together | 8 |" in tables.read_text("utf-8")


def test_nothing_is_begun_after_the_budget(tmp_path: Path) -> None:
    results = tmp_path / "gpu.jsonl"
    gpu.main([*TINY, "--smoke", "--grid", "--budget-s", "0", "--results", str(results)])
    assert not results.exists()


def test_without_a_gpu_nothing_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    gpu.main(["--smoke", "--results", str(tmp_path / "gpu.jsonl")])
    assert capsys.readouterr().out == "not measured: there is no GPU here\n"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", gpu.FAMILIES)
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles with a C++ compiler")
def test_what_is_compiled_runs_too(name: str, tmp_path: Path) -> None:
    """The trace. The whole grid and the distilled ones, compiled, take minutes of compiling each, too long for every
    change: before time on a card, `python -m bench.gpu --tiny --steps 8 --grid --distilled --results /tmp/tiny.jsonl` runs them here."""
    results, tables = tmp_path / "gpu.jsonl", tmp_path / "gpu.md"
    only = ["--tiny", "--steps", "8", "--families", name]
    gpu.main([*only, "--trace", "--results", str(results), "--tables", str(tables)])
    rows = {row["key"]: row for row in map(json.loads, results.read_text("utf-8").splitlines())}
    servers = ("ours", "fifo-diffusers-compiled")
    assert set(rows) == {"environment", *(f"trace {name} 64 96 {server}" for server in servers)}
    assert not any(is_failed(row) for row in rows.values()), rows
    assert re.search(r"fifo-diffusers-compiled \| 12 \|.*\dx, \d", tables.read_text("utf-8"))
