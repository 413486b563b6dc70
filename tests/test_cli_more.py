"""The commands redeem, inspect and models: in this process where it can be, in real ones where they race."""

from __future__ import annotations

import io
import json
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from danqing.backends import FamilyRow
from danqing.cli.inspect import FILE_BYTES_MAX
from danqing.service import hidden_label
from danqing.settings import Settings
from tests.commands import one_line, run
from tests.conftest import ROOT, clean_environment

# redeem


def test_redeem(tmp_path: Path) -> None:
    where = ("--data-dir", str(tmp_path))
    run("account", "create", "alice", *where)
    codes = run("redeem", "create", "500", "--count", "3", *where).stdout.splitlines()
    assert len(set(codes)) == 3
    first = run("redeem", "use", codes[0], "--account", "alice", *where)
    assert first.stdout == "balance: 15500\n"
    typed = f" {codes[1].lower().replace('-', ' ')} "
    assert run("redeem", "use", typed, "--account", "alice", *where).stdout == "balance: 16000\n"

    def refused(code: str, account: str = "alice") -> str:
        return one_line(run("redeem", "use", code, "--account", account, *where, code=1))

    assert "used already" in refused(codes[0])
    assert "no such code" in refused("A" * 20)
    assert "not a redeem code" in refused("hello")
    assert "'nobody'" in refused(codes[2], "nobody")
    assert "characters" in one_line(run("redeem", "create", "0", *where, code=1))
    assert run("redeem", "create", "5", "--count", "0", *where, code=2).stdout == ""
    assert len(run("redeem", "create", "1", *where).stdout.splitlines()) == 1
    assert "balance: 16000" in run("account", "show", "alice", *where).stdout.splitlines()
    run("ledger", "check", *where)


def test_processes_that_race_for_one_code(tmp_path: Path) -> None:
    where = ("--data-dir", str(tmp_path))
    run("account", "create", "alice", *where)
    code = run("redeem", "create", "500", *where).stdout.strip()
    racers = [
        subprocess.Popen(
            [sys.executable, "-m", "danqing", "redeem", "use", code, "--account", "alice", *where],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=clean_environment(),
        )
        for _ in range(3)
    ]
    told = [racer.communicate(timeout=240) for racer in racers]
    assert sorted(racer.returncode for racer in racers) == [0, 1, 1]
    assert [out for out, _ in told if out] == ["balance: 15500\n"]
    assert all("used already" in error for out, error in told if not out)
    assert "balance: 15500" in run("account", "show", "alice", *where).stdout


# inspect


def png(path: Path, info: PngInfo | None = None) -> str:
    Image.new("RGB", (40, 30)).save(path, pnginfo=info)
    return str(path)


def labelled(path: Path, packet: str) -> str:
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", packet)
    return png(path, info)


FACTS = ("image_id", "visible", "metadata", "pixel_mark", "pixels_unchanged")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_inspect_reads_our_own_label(tmp_path: Path, name: str) -> None:
    packet = hidden_label.xmp(hidden_label.label_fields(producer="丹青", produce_id="0123456789a"))
    path = str(tmp_path / name)
    if name == "a.png":
        labelled(tmp_path / name, packet)
    else:
        Image.new("RGB", (40, 30)).save(path, xmp=packet.encode())
    facts = json.loads(run("inspect", path, "--json").stdout)
    assert list(facts) == [*FACTS, "ours"]
    assert facts["image_id"] == "0123456789a"
    assert facts["metadata"]["Label"] == "1"
    assert facts["metadata"]["ContentProducer"] == "丹青"
    assert facts["visible"] is False
    assert facts["pixel_mark"] is facts["pixels_unchanged"] is facts["ours"] is None  # no keys
    told = run("inspect", path)
    assert "no key file" in told.stderr
    shown = told.stdout.splitlines()
    assert shown[1].endswith("made by AI")
    assert "  ContentProducer: 丹青" in shown


def test_inspect_of_a_drawing(tmp_path: Path) -> None:
    path = str(tmp_path / "a.png")
    run("draw", "a dog", "--size", "256x256", "--output", path)
    assert json.loads(run("inspect", path, "--json").stdout)["image_id"] is not None


def test_inspect_reads_the_deviant_forms(tmp_path: Path) -> None:
    fields = {"Label": "2", "ProduceID": "somebody else's"}
    for number, value in enumerate((fields, {"AIGC": fields})):
        info = PngInfo()
        info.add_text("AIGC", json.dumps(value))
        path = png(tmp_path / f"{number}.png", info)
        facts = json.loads(run("inspect", path, "--json").stdout)
        assert facts["metadata"] == fields
        assert facts["image_id"] is None
    assert "possibly" in run("inspect", path).stdout


def test_inspect_of_an_image_without_a_label(tmp_path: Path) -> None:
    bomb = '<!DOCTYPE a [<!ENTITY b "1">]>' + hidden_label.xmp(
        hidden_label.label_fields(producer="x", produce_id="y")
    )
    for path in (png(tmp_path / "a.png"), labelled(tmp_path / "b.png", bomb)):
        facts = json.loads(run("inspect", path, "--json").stdout)
        assert facts == dict.fromkeys([*FACTS, "ours"]) | {"visible": False}
        assert "AI label in the metadata: none" in run("inspect", path).stdout


def test_inspect_shows_no_strangers_terminal_codes(tmp_path: Path) -> None:
    value = {"Label": "1", "ContentProducer": "\x1b[2J\ud800\u202e\x9b", "\x1b]0;": "x\ny"}
    info = PngInfo()
    info.add_text("AIGC", json.dumps(value))
    path = png(tmp_path / "a.png", info)
    shown = run("inspect", path).stdout
    assert all(sign.isprintable() or sign == "\n" for sign in shown)
    assert len(shown.splitlines()) == 5
    told = run("inspect", path, "--json").stdout
    assert told.isascii()
    half = value["ContentProducer"].replace("\ud800", "\ufffd")  # half a pair is no text
    assert json.loads(told)["metadata"] == value | {"ContentProducer": half}


def test_inspect_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(FILE_BYTES_MAX + 1)
    header = io.BytesIO()
    Image.new("1", (1, 1)).save(header, "PNG")
    huge = header.getvalue()[:16] + b"\0\0\xff\xff" * 2 + header.getvalue()[24:]
    (tmp_path / "huge.png").write_bytes(huge)
    for name, word in (
        ("text.png", "not a PNG, JPEG or WebP"),
        ("large.png", "256 MiB"),
        ("huge.png", "65535 x 65535"),
        ("missing.png", "No such file"),
        ("", "directory"),
    ):
        line = one_line(run("inspect", str(tmp_path / name), code=1))
        assert line.startswith(f"danqing: {tmp_path / name}: ")
        assert word in line


# models


def test_models_check() -> None:
    assert run("models", "check").stdout.startswith("pocket ")
    (row,) = json.loads(run("models", "check", "--json").stdout)
    assert (row["backend"], row["family"], row["loads"]) == ("pocket", "pocket", True)
    assert row["load_s"] > 0
    assert row["resident_mib"] >= 0
    assert row["fault"] is None


def test_models_check_where_one_cannot_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(row: FamilyRow, settings: Settings) -> None:
        raise RuntimeError(f"{row.family}: the weights\nare damaged")

    monkeypatch.setattr("danqing.app.load_family", broken)
    result = run("models", "check", code=1)
    assert result.stdout.split() == (
        [
            "pocket",
            "cannot",
            "draw",
            "here:",
            "RuntimeError:",
            "pocket:",
            "the",
            "weights",
            "are",
            "damaged",
        ]
    )
    (row,) = json.loads(run("models", "check", "--json", code=1).stdout)
    assert (row["loads"], row["load_s"], row["resident_mib"]) == (False, None, None)


class _Models(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        status = {"/v1/models": 200, "/bare/models": 404, "/moved/models": 301}.get(self.path, 503)
        if self.headers["authorization"] != "Bearer good":
            status = 401
        self.send_response(status)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        pass


def test_models_check_asks_the_providers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is not there, or that does not take the key, is found before a client finds it; nothing is drawn."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Models)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with socket.socket() as closed:  # bound and not listening: nobody answers there
        closed.bind(("127.0.0.1", 0))
        here, nowhere = server.server_port, closed.getsockname()[1]
        extras = 'extras = ["output_format", "style"]\n'
        bases = {
            "fine": (f"{here}/v1", "good"),
            "bare": (f"{here}/bare", "good"),
            "moved": (f"{here}/moved", "good"),
            "ill": (f"{here}/ill", "good"),
            "barred": (f"{here}/v1", "bad"),
            "away": (f"{nowhere}/v1", "good"),
        }
        rows = list[str]()
        for name, (base, key) in bases.items():
            (tmp_path / f"{name}.key").write_text(key)
            rows.append(
                f'[backends.{name}]\ndialect = "openai"\nbase_url = "http://127.0.0.1:{base}"\n'
                f'{extras if name == "fine" else ""}model = "dall-e-3"\n'
                f'key_file = "{tmp_path / name}.key"\n[models.{name}]\nlike = "dall-e-2"\nbackend = "{name}"\n'
            )
        (tmp_path / "catalog.toml").write_text("\n".join(rows))
        config = tmp_path / "danqing.toml"
        config.write_text(f'catalog_file = "{tmp_path / "catalog.toml"}"')
        plain = run("models", "check", "--json", "--config", str(config))
        assert all(row["loads"] for row in json.loads(plain.stdout))
        warned = {row["backend"]: row["warnings"] for row in json.loads(plain.stdout)}
        assert [name for name in warned if warned[name]] == ["fine"]
        (warning,) = warned["fine"]
        assert "output_format, which dall-e-3 does not take" in warning
        asked = run("models", "check", "--ask", "--json", "--config", str(config), code=1)
        found = {row["backend"]: row for row in json.loads(asked.stdout) if "relay" in row}
        lines = run("models", "check", "--ask", "--config", str(config), code=1).stdout
    server.shutdown()
    server.server_close()
    loads = {name: row["loads"] for name, row in found.items()}
    assert loads == dict.fromkeys(bases, False) | {"fine": True, "bare": True}
    assert "404" in found["bare"]["answers"]
    assert "301" in found["moved"]["fault"]
    assert "503" in found["ill"]["fault"]
    assert "does not take the key" in found["barred"]["fault"]
    assert "127.0.0.1" in found["away"]["fault"]
    assert "away" in lines
    assert "cannot draw here: no answer" in lines


@pytest.mark.parametrize("command", ["list", "check"])
def test_models_with_a_bad_catalog(tmp_path: Path, command: str) -> None:
    (tmp_path / "catalog.toml").write_text("models = 5")
    config = tmp_path / "danqing.toml"
    config.write_text(f'catalog_file = "{tmp_path / "catalog.toml"}"')
    assert "catalog" in one_line(run("models", command, "--config", str(config), code=2))
