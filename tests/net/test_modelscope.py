"""`danqing models pull` from ModelScope, against a server of ours that has its files' API: pinned, checked, resumed, refused by name."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from danqing.cli.progress import FileBars
from danqing.net import modelscope
from danqing.net.hub import Place, PullError
from tests.conftest import clean_environment, cli

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "89abcdef0123456789abcdef0123456789abcdef"
WEIGHTS = "transformer/model.safetensors"
KINDS = frozenset({"CogView4Pipeline"})


class Scope:
    """ModelScope's answers for org/model: pages of a listing, files by redirect to a store that knows ranges."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.sums: dict[str, str] = {}
        """What the listing says of a file that is not what comes."""
        self.commit: dict[str, str] = {"Id": COMMIT, "ShortId": COMMIT[:8]}
        self.fetched: list[tuple[str, str | None]] = []
        self.revisions: set[str] = set()
        self.cut_at: dict[str, list[int]] = {}
        """A file's name -> where its next answers break off."""
        scope = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: object) -> None: ...

            def do_GET(self) -> None:
                url = urlsplit(self.path)
                query = {key: values[0] for key, values in parse_qs(url.query).items()}
                if url.path == "/api/v1/models/org/model/repo/files":
                    scope.revisions.add(query["Revision"])
                    self.say(*scope.listing(query))
                elif url.path == "/api/v1/models/org/model/repo":
                    scope.revisions.add(query["Revision"])
                    self.send_response(302)
                    self.send_header("location", f"/store/{query['FilePath']}")
                    self.send_header("content-length", "0")
                    self.end_headers()
                elif url.path.startswith("/store/"):
                    self.file(url.path.removeprefix("/store/"))
                else:
                    self.say({"Code": 10010205001, "Message": "record not found"}, 404)

            def say(self, body: dict[str, Any], status: int = 200) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def file(self, name: str) -> None:
                data, asked = scope.files[name], self.headers.get("range")
                first = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
                scope.fetched.append((name, asked))
                self.send_response(206)
                self.send_header("content-range", f"bytes {first}-{len(data) - 1}/{len(data)}")
                self.send_header("content-length", str(len(data) - first))
                self.end_headers()
                cuts = scope.cut_at.get(name)
                end = cuts.pop(0) if cuts else len(data)
                self.wfile.write(data[first:end])
                self.close_connection = end < len(data)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def listing(self, query: dict[str, str]) -> tuple[dict[str, Any], int]:
        if query["Revision"] not in ("master", COMMIT, OTHER):
            return {"Code": 10010205002, "Message": "revision not exists", "Success": False}, 404
        size, page = int(query["PageSize"]), int(query["PageNumber"])
        rows: list[dict[str, Any]] = [{"Path": "transformer", "Type": "tree", "Size": 0}]
        for name, data in self.files.items():
            digest = self.sums.get(name, hashlib.sha256(data).hexdigest())
            rows.append({"Path": name, "Type": "blob", "Size": len(data), "Sha256": digest})
        rows = rows[(page - 1) * size : page * size]
        asked = query["Revision"]
        last = self.commit if asked == "master" else {"Id": asked}
        data = {"Files": rows, "TotalCount": len(rows), "LatestCommitter": last}
        return {"Code": 200, "Success": True, "Message": "success", "Data": data}, 200

    def place(self, revision: str | None = None, file: str | None = None) -> Place:
        named = revision is not None
        return Place(self.url, "org/model", revision or "master", file, True, is_named=named)


@pytest.fixture
def scope() -> Iterator[Scope]:
    live = Scope(
        {
            "model_index.json": json.dumps({"_class_name": "CogView4Pipeline"}).encode(),
            "README.md": b"# a model",
            WEIGHTS: bytes(range(256)) * 40,
            "transformer/config.json": b"{}",
            "transformer/old.bin": b"pickled",
            "transformer/x/deep.safetensors": b"too deep",
            "transformer/../../evil.json": b"{}",
            "/etc/evil.json": b"{}",
            "code.py": b"import os",
            "fast.safetensors": b"small matrices",
        }
    )
    yield live
    live.server.shutdown()
    live.server.server_close()


def pulled(scope: Scope, folder: Path, place: Place | None = None) -> tuple[Any, dict[str, int]]:
    far: dict[str, int] = {}

    def told(name: str, done: int, total: int) -> None:
        assert far.get(name, 0) <= done <= total == len(scope.files[name])
        far[name] = done

    return modelscope.pull(place or scope.place(), folder, KINDS, told), far


def test_what_draws_is_pulled_pinned_and_whole(
    scope: Scope, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modelscope, "PAGE_FILES", 3)
    folder = tmp_path / "a" / "model"
    folder.mkdir(parents=True)
    found, far = pulled(scope, folder)
    assert (found.folder, found.commit, found.kind) == (folder, COMMIT, "CogView4Pipeline")
    wanted = {"model_index.json", "README.md", WEIGHTS, "transformer/config.json"}
    came = {p.relative_to(tmp_path / "a").as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert came == {f"model/{name}" for name in (*wanted, "danqing.json")}
    assert all((folder / name).read_bytes() == scope.files[name] for name in wanted)
    assert far == {name: len(scope.files[name]) for name in wanted}
    record = json.loads((folder / "danqing.json").read_text())
    assert (record["commit"], record["id"]) == (COMMIT, "org/model")
    assert set(record["files"]) == wanted
    assert scope.revisions == {"master", COMMIT}
    scope.fetched.clear()
    pulled(scope, folder)
    assert scope.fetched == []


def test_a_connection_that_breaks_is_taken_up_where_it_was(scope: Scope, tmp_path: Path) -> None:
    scope.cut_at[WEIGHTS] = [4000, 9000]
    pulled(scope, tmp_path)
    assert (tmp_path / WEIGHTS).read_bytes() == scope.files[WEIGHTS]
    asked = [range_ for name, range_ in scope.fetched if name == WEIGHTS]
    assert asked[0] == "bytes=0-"
    assert len(asked) == 3
    assert all(0 < int(each.removeprefix("bytes=").removesuffix("-")) <= 9000 for each in asked[1:])
    assert not list(tmp_path.rglob("*.part"))


def test_a_run_that_failed_goes_on_from_its_part(scope: Scope, tmp_path: Path) -> None:
    scope.cut_at[WEIGHTS] = [5000, *[5000] * modelscope.TRIES]
    with pytest.raises(PullError, match="org/model at master"):
        pulled(scope, tmp_path)
    part = tmp_path / f"{WEIGHTS}.part"
    there = part.stat().st_size
    assert 0 < there <= 5000
    record = json.loads((tmp_path / "danqing.json").read_text())
    assert (record["commit"], record["is_whole"]) == (COMMIT, False)
    scope.cut_at.clear()
    scope.fetched.clear()
    scope.revisions.clear()
    scope.commit = {"Id": OTHER}  # the branch moved meanwhile: what comes must not be a mixture
    found, _ = pulled(scope, tmp_path)
    assert found.commit == COMMIT
    assert scope.revisions == {COMMIT}
    assert json.loads((tmp_path / "danqing.json").read_text())["is_whole"] is True
    assert (WEIGHTS, f"bytes={there}-") in scope.fetched
    assert (tmp_path / WEIGHTS).read_bytes() == scope.files[WEIGHTS]


@pytest.mark.parametrize("file", [None, "fast.safetensors"])
def test_a_commit_changes_only_where_somebody_says_so(
    scope: Scope, tmp_path: Path, file: str | None
) -> None:
    pulled(scope, tmp_path, scope.place(file=file))
    record = tmp_path / ("danqing.json" if file is None else f"{file}.danqing.json")
    before = record.read_bytes()
    scope.commit = {"Id": OTHER}
    scope.fetched.clear()
    told = f"org/model is here at {COMMIT} of {scope.url}, and master of {scope.url} is {OTHER}: "
    told += f"--revision {OTHER} takes that, --revision {COMMIT} keeps this"
    with pytest.raises(PullError) as refused:
        pulled(scope, tmp_path, scope.place(file=file))
    assert str(refused.value) == told
    assert [name for name, _ in scope.fetched if name != "model_index.json"] == []
    assert record.read_bytes() == before
    for revision in (COMMIT, "master"):  # named, so it may
        found, _ = pulled(scope, tmp_path, scope.place(revision, file))
        assert found.commit == {"master": OTHER}.get(revision, revision)
        assert json.loads(record.read_text())["commit"] == found.commit


def test_the_same_name_at_another_hub_is_another_checkpoint(scope: Scope, tmp_path: Path) -> None:
    here = {"endpoint": "https://hub.example", "id": "org/model", "commit": COMMIT}
    (tmp_path / "danqing.json").write_text(json.dumps(here))
    with pytest.raises(PullError, match=r"of https://hub\.example, and master of"):
        pulled(scope, tmp_path)


def test_what_is_not_what_was_listed_is_refused(scope: Scope, tmp_path: Path) -> None:
    scope.sums[WEIGHTS] = "0" * 64
    with pytest.raises(PullError, match=f"{WEIGHTS} is not what the hub lists"):
        pulled(scope, tmp_path)
    assert not list(tmp_path.rglob("model.safetensors*"))


def test_where_the_hub_names_no_commit_the_files_sums_are_the_record(
    scope: Scope, tmp_path: Path
) -> None:
    scope.commit = {"Id": "", "ShortId": "0123456"}
    found, _ = pulled(scope, tmp_path)
    assert found.commit == "0123456"
    assert scope.revisions == {"master"}
    record = json.loads((tmp_path / "danqing.json").read_text())
    assert record["files"][WEIGHTS] == hashlib.sha256(scope.files[WEIGHTS]).hexdigest()


def test_one_file_alone(scope: Scope, tmp_path: Path) -> None:
    pulled(scope, tmp_path, scope.place(file="fast.safetensors"))
    there = {"fast.safetensors", "fast.safetensors.danqing.json"}
    assert {path.name for path in tmp_path.iterdir()} == there
    with pytest.raises(PullError, match=r"org/model has no slow\.safetensors"):
        pulled(scope, tmp_path, scope.place(file="slow.safetensors"))


def test_every_file_has_its_bar(
    scope: Scope, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FileBars() as bars:
        modelscope.pull(scope.place(), tmp_path, KINDS, bars.on_bytes)
        shown = {task.description: task for task in bars._progress.tasks}
    wanted = {"model_index.json", "README.md", WEIGHTS, "transformer/config.json"}
    assert set(shown) == wanted
    for name, task in shown.items():
        assert (task.completed, task.total) == (len(scope.files[name]),) * 2
        assert task.finished
    told = capsys.readouterr()
    assert (told.out, WEIGHTS in told.err) == ("", True)  # what is told is on stdout alone


def test_errors_say_what_the_hub_says(scope: Scope, tmp_path: Path) -> None:
    with pytest.raises(PullError, match="org/model at v9: 404, revision not exists"):
        pulled(scope, tmp_path, scope.place("v9"))
    other = Place(scope.url, "org/other", "master", None, True)
    with pytest.raises(PullError, match="org/other at master: 404, record not found"):
        pulled(scope, tmp_path, other)
    scope.files["model_index.json"] = b'{"_class_name": "FluxPipeline"}'
    with pytest.raises(
        PullError, match="org/model is a FluxPipeline, and none of CogView4Pipeline"
    ):
        pulled(scope, tmp_path)
    del scope.files["model_index.json"]
    with pytest.raises(PullError, match=r"has no model_index\.json"):
        pulled(scope, tmp_path)
    scope.server.shutdown()
    scope.server.server_close()
    with pytest.raises(PullError, match="ConnectError"):
        pulled(scope, tmp_path)


@pytest.mark.slow
def test_the_command_pulls_by_a_pages_address(tmp_path: Path) -> None:
    pytest.importorskip("diffusers", reason="the engine extra: make install-engine")
    from tests.engine import checkpoints

    made = checkpoints.cogview4(tmp_path / "made")
    files = {
        path.relative_to(made).as_posix(): path.read_bytes()
        for path in made.rglob("*")
        if path.is_file()
    }
    live = Scope(files)
    try:
        done = cli(
            *("models", "pull", f"{live.url}/models/org/model", "--data-dir", str(tmp_path)),
            env=clean_environment(),
        )
    finally:
        live.server.shutdown()
        live.server.server_close()
    assert f"org/model at {COMMIT}" in done.stdout
    assert 'family = "cogview4"\ncheckpoint = "org/model"' in done.stdout
    came = (
        tmp_path
        / "models"
        / "org"
        / "model"
        / WEIGHTS.replace("model.", "diffusion_pytorch_model.")
    )
    assert came.is_file()
