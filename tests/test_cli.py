"""The command line, as a user types it: real processes, real files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import cli


def test_draw_writes_pictures_and_prints_their_paths(tmp_path: Path) -> None:
    done = cli(
        "draw", "一只可爱的小猫", "--size", "512x512", "--n", "2", "--seed", "5", cwd=tmp_path
    )
    paths = done.stdout.split()
    assert len(paths) == 2
    for path in paths:
        assert Image.open(tmp_path / path).size == (512, 512)
    assert "steps" in done.stderr
    again = cli(
        "draw", "一只可爱的小猫", "--size", "512x512", "--seed", "5", "-o", "b.png", cwd=tmp_path
    )
    assert again.stdout.strip() == "b.png"
    first, second = (Image.open(tmp_path / name).convert("RGB") for name in (paths[0], "b.png"))
    assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize(("name", "format"), [("a.jpg", "JPEG"), ("sub/a.webp", "WEBP")])
def test_draw_output_formats(tmp_path: Path, name: str, format: str) -> None:
    cli("draw", "a dog", "--size", "256x256", "--output", name, cwd=tmp_path)
    assert Image.open(tmp_path / name).format == format


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["", "--size", "256x256"], "PROMPT"),
        (["x", "--size", "10000x10000"], "--size"),
        (["x", "--n", "0"], "--n"),
        (["x", "--n", "99"], "--n"),
        (["x", "--seed", "-1"], "--seed"),
        (["x", "--model", "nothing"], "'nothing' does not exist: `danqing models list`"),
        (["x", "--quality", "ultra"], "--quality"),
        (["x", "--output", "a.bmp"], "--output"),
        (["x" * 5000], "PROMPT"),
        (["x", "--config", "nowhere.toml"], "nowhere.toml"),
    ],
)
def test_draw_says_what_is_wrong(tmp_path: Path, args: list[str], word: str) -> None:
    done = cli("draw", *args, check=False, cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert word in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_draw_edits_varies_and_repaints(tmp_path: Path) -> None:
    cli("draw", "a red apple", "--size", "320x256", "--seed", "5", "-o", "apple.png", cwd=tmp_path)
    apple = np.asarray(Image.open(tmp_path / "apple.png").convert("RGB")).astype(int)
    mask = Image.new("RGBA", (320, 256), "black")
    mask.paste((0, 0, 0, 0), (160, 0, 320, 256))
    mask.save(tmp_path / "mask.png")
    edit = ("--reference", "apple.png", "--seed", "1")
    cli("draw", "a green apple", *edit, "-o", "green.png", cwd=tmp_path)
    cli("draw", "", *edit, "--strength", "0.4", "-o", "varied.png", cwd=tmp_path)
    cli("draw", "a dog", *edit, "--mask", "mask.png", "-o", "dog.png", cwd=tmp_path)
    green, varied, dog = (
        np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB")).astype(int)
        for name in ("green", "varied", "dog")
    )
    red = (apple[:, :, 0] - apple[:, :, 1]) > 90
    assert (green[red][:, 1] > green[red][:, 0]).mean() > 0.9
    assert green.shape == varied.shape == apple.shape
    assert np.abs(varied - apple).mean() > 1
    np.testing.assert_array_equal(dog[:, :160], apple[:, :160])
    assert np.abs(dog[:, 160:] - apple[:, 160:]).mean() > 4


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["x", "--mask", "mask.png"], "--reference"),
        (["x", "--strength", "0.5"], "--reference"),
        (["x", "--reference", "mask.png", "--strength", "1.5"], "--strength"),
        (["x", "--reference", "nowhere.png"], "nowhere.png"),
        (["x", "--reference", "text.png"], "--reference"),
        (["x", "--reference", "mask.png", "--mask", "other.png"], "--mask"),
        (["x", "--reference", "mask.png", "--mask", "opaque.png"], "transparent"),
    ],
)
def test_draw_says_what_is_wrong_with_an_edit(tmp_path: Path, args: list[str], word: str) -> None:
    Image.new("RGBA", (64, 64)).save(tmp_path / "mask.png")
    Image.new("RGBA", (64, 32)).save(tmp_path / "other.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "opaque.png")
    (tmp_path / "text.png").write_text("no picture")
    done = cli("draw", *args, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert word in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("danqing-*"))


def test_accounts_and_tokens(tmp_path: Path) -> None:
    where = ("--data-dir", str(tmp_path / "data"))
    cli("account", "create", "alice", *where)
    shown = cli("account", "show", "alice", *where).stdout
    assert "balance: 15000" in shown.splitlines()
    cli("grant", "alice", "5000", *where)
    assert json.loads(cli("account", "show", "alice", "--json", *where).stdout)["balance"] == 20_000
    token = cli("token", "create", "--account", "alice", *where).stdout
    assert token.strip().startswith("sk-")
    assert len(token.split()) == 1
    cli("token", "revoke", token.split(".")[0], *where)
    assert cli("ledger", "check", *where).returncode == 0


def test_a_mistyped_folder_does_not_pass_for_books(tmp_path: Path) -> None:
    done = cli("ledger", "check", "--data-dir", str(tmp_path / "typo"), check=False)
    assert done.returncode == 1
    assert "typo" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "args",
    [
        ["account", "show", "nobody"],
        ["grant", "nobody", "5"],
        ["token", "create", "--account", "nobody"],
        ["token", "revoke", "nothing"],
        ["account", "create", ""],
    ],
)
def test_account_errors_are_one_clear_line(tmp_path: Path, args: list[str]) -> None:
    cli("account", "create", "somebody", "--data-dir", str(tmp_path))
    done = cli(*args, "--data-dir", str(tmp_path), check=False)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1


def test_models_list() -> None:
    assert "pocket (stand-in)" in cli("models", "list").stdout
    rows = json.loads(cli("models", "list", "--json").stdout)
    assert {row["model"] for row in rows} >= {"draw", "jimeng-4.0", "qwen-image"}


def test_a_taken_port_is_one_clear_line(server, tmp_path: Path) -> None:
    port = server.url.rsplit(":", 1)[1]
    done = cli("serve", "--port", port, "--data-dir", str(tmp_path / "data"), check=False)
    assert done.returncode == 1
    assert "cannot listen" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_lost_key_file_is_not_replaced_in_silence(tmp_path: Path) -> None:
    where = ("--data-dir", str(tmp_path))
    cli("account", "create", "somebody", *where)
    (tmp_path / "keys.json").unlink()
    for args in (["serve", "--port", "0"], ["account", "create", "other"], ["ledger", "check"]):
        done = cli(*args, *where, check=False)
        assert done.returncode == 1
        assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "keys.json").exists()
