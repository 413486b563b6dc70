"""Whether a checkpoint fits: the arithmetic, the cards, and the plain message."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from danqing.cli import models
from danqing.cli.main import app
from danqing.engine.families import load, memory
from danqing.engine.families.load import Fit
from danqing.engine.families.memory import GIB, PUBLISHED
from danqing.engine.families.weights import Part

FAMILIES = list(PUBLISHED)


def test_weights_are_parameters_times_bytes() -> None:
    parts = PUBLISHED["cogview4"]
    found = memory.need("cogview4", parts, "bfloat16", text_on_cpu=False)
    assert found.weights_bytes == 2 * (6_369_118_272 + 8_779_194_368 + 406_100_643)
    assert found.beside_bytes == 0
    apart = memory.need("cogview4", parts, "float32", text_on_cpu=True)
    assert apart.weights_bytes == 4 * (6_369_118_272 + 406_100_643)
    assert apart.beside_bytes == 4 * 8_779_194_368


def test_a_small_network_takes_little() -> None:
    parts = (Part("transformer", 1000, 0), Part("vae", 10, 0))
    found = memory.need("cogview4", parts, "float32", text_on_cpu=False)
    assert found.device_bytes == 2 * 4040


@given(st.sampled_from(FAMILIES), st.booleans(), st.floats(0, 200), st.floats(0, 50))
def test_more_memory_never_draws_smaller(
    family: str, text_on_cpu: bool, there: float, more: float
) -> None:
    parts = PUBLISHED[family]
    small, large = (
        memory.largest_side(family, parts, gib * GIB, text_on_cpu=text_on_cpu)
        for gib in (there, there + more)
    )
    assert small <= large <= 2048
    if small:
        wanted = memory.need(family, parts, "bfloat16", text_on_cpu=text_on_cpu, side=small)
        assert wanted.device_bytes <= there * GIB


@given(
    st.sampled_from(FAMILIES),
    st.sampled_from(["bfloat16", "float32"]),
    st.booleans(),
    st.integers(16, 2000),
    st.floats(0, 60),
)
def test_the_largest_picture_is_the_last_that_fits(
    family: str, dtype: str, text_on_cpu: bool, side: int, gib: float
) -> None:
    parts = PUBLISHED[family]
    wanted = memory.need(family, parts, dtype, text_on_cpu=text_on_cpu, side=side)
    there = wanted.weights_bytes + gib * GIB
    most = memory.pixels_max(family, parts, dtype, there, text_on_cpu=text_on_cpu)
    assert (wanted.device_bytes <= there) == (most is None or side * side <= most)


def test_any_picture_fits_beside_a_small_network() -> None:
    """Its work is bounded by itself, as when it is loaded."""
    parts = (Part("transformer", 1000, 0), Part("vae", 10, 0))
    assert memory.pixels_max("cogview4", parts, "float32", 10_000, text_on_cpu=False) is None


def test_the_cards() -> None:
    rows = {(row["family"], row["card_gib"]): row for row in memory.cards()}
    assert rows["cogview4", 12]["side_text_on_cpu"] == 0
    assert rows["cogview4", 24]["side"] == 0 < rows["cogview4", 24]["side_text_on_cpu"]
    assert rows["qwen_image", 48]["side"] == 0 < rows["qwen_image", 48]["side_text_on_cpu"]
    assert rows["qwen_image", 80]["side"] == 2048
    for family in ("cogview4", "qwen_image"):
        assert rows[family, 12]["side_text_on_cpu"] == 0 < 1024 <= rows[family, 12]["side_offload"]
    assert rows["sdxl", 12]["side"] >= 768
    here = {row["family"]: row for row in memory.cards(16 * GIB) if row["card_gib"] == 16.0}
    assert set(here) == set(PUBLISHED)
    assert rows["sdxl", 12]["side"] < here["sdxl"]["side"] < rows["sdxl", 24]["side"]
    assert rows["sdxl", 12]["side_offload"] == 0  # its blocks do not stay in main memory


def test_main_memory_counts_for_what_stays_there() -> None:
    def sides(main_gib: float | None) -> dict[str, int]:
        main = None if main_gib is None else round(main_gib * GIB)
        rows = {row["family"]: row for row in memory.cards_here(24 * GIB, main)}
        row = rows["cogview4"]
        return {name: int(row[name]) for name in ("side", "side_text_on_cpu", "side_offload")}

    assert sides(None) == {"side": 0, "side_text_on_cpu": 2048, "side_offload": 2048}
    assert sides(20) == {"side": 0, "side_text_on_cpu": 2048, "side_offload": 0}  # text: 16.4 GiB
    assert sides(10) == {"side": 0, "side_text_on_cpu": 0, "side_offload": 0}


def test_the_card_here_is_told_with_the_backends(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    check = ["models", "check"]
    monkeypatch.setenv("DANQING_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(load, "_card_bytes", lambda: None)
    assert "GiB" not in CliRunner().invoke(app, check).output
    monkeypatch.setattr(load, "_card_bytes", lambda: 24 * GIB)
    monkeypatch.setattr(memory, "free_here", lambda: 20 * GIB)
    told = CliRunner().invoke(app, check).output
    assert ["cogview4", "24.0", "GiB", "-", "2048", "px", "-"] in [
        line.split() for line in told.splitlines()
    ]
    assert json.loads(CliRunner().invoke(app, [*check, "--json"]).output)[0]["backend"]
    every = json.loads(CliRunner().invoke(app, [*check, "--cards", "--json"]).output)
    assert [row["side_offload"] for row in every if row["family"] == "cogview4"][-2:] == [2048, 0]


def test_the_cards_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    models._print_cards(as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert ["cogview4", "12", "GiB", "-", "-", "1984", "px"] in [line.split() for line in lines]
    assert len(lines) >= 2 + 4 * len(PUBLISHED)
    models._print_cards(as_json=True)
    assert json.loads(capsys.readouterr().out) == load.cards()


def test_offloaded_blocks_take_main_memory_instead() -> None:
    parts = PUBLISHED["cogview4"]
    whole, apart = (
        memory.need("cogview4", parts, "bfloat16", text_on_cpu=True, offload=offload)
        for offload in (False, True)
    )
    assert apart.beside_bytes - whole.beside_bytes == 2 * 6_344_196_096
    assert whole.weights_bytes - apart.weights_bytes == 2 * 26 * 226_578_432
    assert (apart.work_bytes, apart.overlap_bytes) == (whole.work_bytes, whole.overlap_bytes)


def test_the_message_is_plain() -> None:
    wanted = memory.need("qwen_image", PUBLISHED["qwen_image"], "bfloat16", text_on_cpu=False)
    assert memory.shortage("cuda:0", wanted, 100 * GIB) is None
    fault = memory.shortage("cuda:0", wanted, 24 * GIB)
    assert fault == (
        "cuda:0 has 24.0 GiB free, but the weights take 53.7 GiB and drawing 2.5 GiB at 512x512"
    )


@given(st.sampled_from(FAMILIES), st.floats(0, 100))
def test_decoding_beside_steps_needs_its_own_memory(family: str, gib: float) -> None:
    """Where there is none, it takes turns with them; what fits with turns is not refused for that."""
    wanted = memory.need(family, PUBLISHED[family], "bfloat16", text_on_cpu=False)
    alone = memory.need(family, PUBLISHED[family], "bfloat16", text_on_cpu=False, side=1024)
    fit = Fit(wanted, round(wanted.weights_bytes + gib * GIB))
    assert wanted.overlap_bytes + wanted.work_bytes > alone.work_bytes
    assert fit.overlaps == (gib * GIB > wanted.work_bytes + wanted.overlap_bytes - 1)
    assert not fit.overlaps or memory.shortage("cuda:0", wanted, fit.free_bytes or 0) is None
    assert Fit(wanted, None).overlaps


def test_this_machine_has_memory() -> None:
    free = memory.free_here()
    assert free is None or free > 0


@pytest.mark.parametrize(
    ("most", "used", "free"),
    [("max", 9000, 8000), ("10000", 3500, 7500), ("10000", 9500, 1500), ("10000", 500, 8000),
     ("1000", 2500, 0), (None, 0, 8000), ("many", 0, 8000)],
)  # fmt: skip
def test_files_that_a_control_group_merely_caches_are_room(
    tmp_path: Path, most: str | None, used: int, free: int
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 8000 kB\n")
    if most is not None:
        kibibytes = most.isdigit()
        (tmp_path / "memory.max").write_text(f"{int(most) * 1024 if kibibytes else most}\n")
    (tmp_path / "memory.current").write_text(f"{used * 1024}\n")
    (tmp_path / "memory.stat").write_text("anon 7\nfile 2\ninactive_file 1024000\nactive_file 9\n")
    assert memory.free_here(tmp_path, tmp_path) == free * 1024


def test_no_memory_is_known_without_proc(tmp_path: Path) -> None:
    assert memory.free_here(tmp_path, tmp_path) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flux2_klein", "z_image_turbo"])
def test_the_distilled_ones_are_counted_from_their_configs(name: str) -> None:
    torch = pytest.importorskip("torch", reason="the engine extra: make install-engine")
    pytest.importorskip("diffusers", reason="the engine extra: make install-engine")
    import transformers
    from bench._gpu_distilled import CLASSES, sizes_of

    sizes = sizes_of(name)
    transformer, vae = CLASSES[name]
    with torch.device("meta"):
        models = {
            "transformer": transformer(**sizes["transformer"]),
            "vae": vae(**sizes["vae"]),
            "text_encoder": transformers.Qwen3Model(
                transformers.Qwen3Config(**sizes["text_encoder"])
            ),
        }
    assert {part.name: part.parameters for part in PUBLISHED[name]} == {
        part: sum(parameter.numel() for parameter in model.parameters())
        for part, model in models.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("family", ["cogview4", "qwen_image"])
def test_the_published_counts_are_those_of_the_configs(family: str) -> None:
    torch = pytest.importorskip("torch", reason="the engine extra: make install-engine")
    pytest.importorskip("diffusers", reason="the engine extra: make install-engine")
    from bench._gpu_models import CLASSES, CONFIGS

    counts = {part.name: part.parameters for part in PUBLISHED[family]}
    for kind, part in zip(CLASSES[family][:2], ("transformer", "vae"), strict=True):
        with torch.device("meta"):
            model = kind(**CONFIGS[family][part])
        assert sum(parameter.numel() for parameter in model.parameters()) == counts[part]
        if part == "transformer":
            blocks = model.transformer_blocks
            held = sum(parameter.numel() for parameter in blocks.parameters())
            assert (len(blocks), held) == (
                PUBLISHED[family][0].blocks,
                PUBLISHED[family][0].in_blocks,
            )
