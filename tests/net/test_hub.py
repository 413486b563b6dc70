"""`danqing models pull`, against a hub of our own on loopback: pinned, safetensors only, resumed, and refused by name."""

from __future__ import annotations

import hashlib
import json
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path

import pytest

from danqing.app import pipelines
from danqing.backends import LoraRow
from danqing.cli.pull import _likely, _lora
from danqing.net.hub import Place, Pulled, PullError, place_of
from danqing.net.hub import pull as pull_here
from tests.conftest import clean_environment, cli

WEIGHTS = "text_encoder/model.safetensors"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "revision", "expected"),
    [
        ("org/name", None, Place("https://huggingface.co", "org/name", "main")),
        ("org/name", "v1", Place("https://huggingface.co", "org/name", "v1")),
        ("https://hub.example/org/na.me", None, Place("https://hub.example", "org/na.me", "main")),
        (
            "o/n/x-V2.0.safetensors",
            None,
            Place("https://huggingface.co", "o/n", "main", "x-V2.0.safetensors"),
        ),
        (
            "https://hub.example/o/n/blob/v1/a/x.safetensors",
            None,
            Place("https://hub.example", "o/n", "v1", "a/x.safetensors"),
        ),
        (
            "https://modelscope.cn/models/o/n",
            None,
            Place("https://modelscope.cn", "o/n", "master", None, True),
        ),
        (
            "https://www.modelscope.cn/models/o/n/summary",
            "v1",
            Place("https://www.modelscope.cn", "o/n", "v1", None, True),
        ),
        (
            "https://modelscope.cn/models/o/n/tree/v1",
            None,
            Place("https://modelscope.cn", "o/n", "v1", None, True),
        ),
        ("https://hub.example/o/n/tree/v1/x", None, Place("https://hub.example", "o/n", "v1/x")),
    ],
)
def test_what_names_a_model(text: str, revision: str | None, expected: Place) -> None:
    assert place_of(text, revision) == expected


@pytest.mark.parametrize(
    ("text", "revision", "word"),
    [
        ("name", None, "ORG/NAME"),
        ("../..", None, "ORG/NAME"),
        ("org/..", None, "ORG/NAME"),
        ("a/b/c", None, "ORG/NAME"),
        ("ftp://hub.example/a/b", None, "address"),
        ("https://me:pw@hub.example/a/b", None, "address"),
        ("https://hub.example/a/b/blob/main/x.bin", None, "page"),
        ("https://hub.example/a/b/tree/v1", "v2", "--revision v2"),
        ("a/b", "x y", "revision"),
        ("a/../x.safetensors", None, "ORG/NAME"),
        ("a/b/../x.safetensors", None, "file"),
        ("https://www.modelscope.cn/models/a/b/reviews", None, "page"),
    ],
)
def test_what_names_none(text: str, revision: str | None, word: str) -> None:
    with pytest.raises(PullError, match=word):
        place_of(text, revision)


class Hub:
    """The routes of the hub that a download needs, over one folder's files as org/model."""

    def __init__(self, folder: Path) -> None:
        self.files = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }
        self.fetched: list[tuple[str, str | None]] = []
        self.refused: set[str] = set()
        self.cut_at: dict[str, int] = {}
        """A file's name -> at which of its bytes its next answer breaks off."""
        self.cut_for_good = False
        """Every answer does."""
        self.commit = COMMIT
        """Of main."""
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: object) -> None: ...

            def do_HEAD(self) -> None:
                self.answer(with_body=False)

            def do_GET(self) -> None:
                self.answer(with_body=True)

            def answer(self, *, with_body: bool) -> None:
                path = self.path.partition("?")[0]
                head = "/api/models/org/model/revision/"
                if path.startswith(head):
                    asked = path.removeprefix(head)
                    sha = hub.commit if asked == "main" else asked
                    siblings = [{"rfilename": name} for name in hub.files]
                    self.say({"id": "org/model", "sha": sha, "siblings": siblings})
                elif path == f"/api/models/org/model/tree/{COMMIT}":
                    self.say(
                        [
                            {"type": "file", "path": n, "size": len(d), "oid": tag(d)}
                            for n, d in hub.files.items()
                        ]
                    )
                elif path.rpartition(f"/{COMMIT}/")[2] in hub.refused:
                    self.say({"error": "Forbidden"}, 403)
                elif path.startswith(f"/org/model/resolve/{COMMIT}/"):
                    self.file(path.removeprefix(f"/org/model/resolve/{COMMIT}/"), with_body)
                else:
                    self.say({"error": "Repository not found"}, 404, "RepoNotFound")

            def say(self, body: object, status: int = 200, code: str | None = None) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                if code:
                    self.send_header("x-error-code", code)
                self.end_headers()
                self.wfile.write(data)

            def file(self, name: str, with_body: bool) -> None:
                data, asked = hub.files[name], self.headers.get("range")
                first = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
                self.send_response(206 if asked else 200)
                self.send_header("etag", f'"{tag(data)}"')
                self.send_header("x-repo-commit", COMMIT)
                self.send_header("accept-ranges", "bytes")
                if asked:
                    self.send_header("content-range", f"bytes {first}-{len(data) - 1}/{len(data)}")
                self.send_header("content-length", str(len(data) - first))
                self.end_headers()
                if not with_body:
                    return
                hub.fetched.append((name, asked))
                end = hub.cut_at.get(name, len(data))
                if not hub.cut_for_good:
                    hub.cut_at.pop(name, None)
                self.wfile.write(data[first:end])
                if end < len(data):
                    self.close_connection = True

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def tag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    pytest.importorskip("huggingface_hub", reason="the engine extra: make install-engine")
    pytest.importorskip("diffusers", reason="the engine extra: make install-engine")
    from tests.engine import checkpoints

    folder = checkpoints.cogview4(tmp_path / "made")
    (folder / "transformer" / "old.bin").write_bytes(b"pickled")
    (folder / "model.ckpt").write_bytes(b"pickled")
    (folder / "code.py").write_text("import os")
    live = Hub(folder)
    yield live
    live.server.shutdown()
    live.server.server_close()


def pull(hub: Hub, data_dir: Path, *args: str, **options: bool):
    return cli(
        *("models", "pull", "org/model", "--data-dir", str(data_dir), *args),
        env=clean_environment(HF_ENDPOINT=hub.url, HF_HUB_DISABLE_XET="1"),
        **options,
    )


@pytest.mark.slow
def test_a_checkpoint_is_pulled_pinned_and_whole(hub: Hub, tmp_path: Path) -> None:
    done = pull(hub, tmp_path / "data")
    said = done.stdout
    wanted = len(hub.files) - 3
    assert (
        f"| {wanted}/{wanted} [" in done.stderr
    )  # the bar, to its end; stdout is for what is told
    assert "| 0/" in done.stderr
    assert "/s]" not in said
    assert COMMIT in said
    assert 'family = "cogview4"\ncheckpoint = "org/model"' in said
    folder = tmp_path / "data" / "models" / "org" / "model"
    came = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".cache" not in path.parts
    }
    record = json.loads(came.pop("danqing.json"))
    assert record.pop("files") == {}
    assert record == {"endpoint": hub.url, "id": "org/model", "commit": COMMIT, "is_whole": True}
    assert f'revision = "{COMMIT}"' in said
    unwanted = {"transformer/old.bin", "model.ckpt", "code.py"}
    assert came == {name: data for name, data in hub.files.items() if name not in unwanted}
    hub.fetched.clear()
    pull(hub, tmp_path / "data")
    assert {name for name, _ in hub.fetched} <= {"model_index.json"}  # looked at, nothing more
    hub.commit = "f" * 40  # main moves: that is for the operator to want
    done = pull(hub, tmp_path / "data", check=False)
    assert done.returncode == 1
    assert f"--revision {'f' * 40} takes that, --revision {COMMIT} keeps this" in done.stderr
    assert COMMIT in pull(hub, tmp_path / "data", "--revision", COMMIT).stdout


@pytest.mark.slow
def test_a_pipeline_of_diffusers_is_pulled_whole_and_named(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub", reason="the engine extra: make install-engine")
    pytest.importorskip("diffusers", reason="the engine extra: make install-engine")
    from tests.engine.pipeline_checkpoints import sdxl

    folder = sdxl(tmp_path / "made")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(weights.read_bytes())
    (folder / "sd_xl_base_1.0.safetensors").write_bytes(b"all of it once more")
    live = Hub(folder)
    try:
        said = pull(live, tmp_path / "data").stdout
    finally:
        live.server.shutdown()
        live.server.server_close()
    assert 'family = "diffusers_pipeline"\ncheckpoint = "org/model"\npipeline = "sdxl"' in said
    assert "# or sdxl_turbo: by its page" in said
    came = tmp_path / "data" / "models" / "org" / "model"
    assert (came / "tokenizer_2").is_dir()
    assert (came / "unet" / weights.name).read_bytes() == weights.read_bytes()
    assert not list(came.rglob("*.fp16.*"))
    assert not list(came.glob("*.safetensors"))


@pytest.mark.parametrize(
    ("model", "kind", "expected"),
    [
        ("stabilityai/sd-turbo", "StableDiffusionPipeline", "sd_turbo"),
        ("sd-legacy/stable-diffusion-v1-5", "StableDiffusionPipeline", "sd"),
        ("stabilityai/stable-diffusion-3.5-large-turbo", "StableDiffusion3Pipeline", "sd3_turbo"),
        ("black-forest-labs/FLUX.2-klein-4B", "Flux2KleinPipeline", "flux2_klein"),
        ("black-forest-labs/FLUX.2-klein-base-4B", "Flux2KleinPipeline", "flux2_klein_base"),
        ("black-forest-labs/FLUX.1-schnell", "FluxPipeline", "flux_schnell"),
        ("Tongyi-MAI/Z-Image-Turbo", "ZImagePipeline", "z_image_turbo"),
        ("Tongyi-MAI/Z-Image", "ZImagePipeline", "z_image"),
        ("zai-org/CogView4-6B", "CogView4Pipeline", None),
    ],
)
def test_a_checkpoints_name_says_how_it_is_drawn(
    model: str, kind: str, expected: str | None
) -> None:
    assert _likely(pipelines()[kind], model)[1] == expected


@pytest.mark.slow
def test_a_connection_that_breaks_is_taken_up_again(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest is asked for, from the last whole piece on: huggingface_hub's are of 10 MB, here of 4 KB."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4096)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    hub.cut_at[WEIGHTS] = 3 * 4096 + 1
    kinds = frozenset({"CogView4Pipeline"})
    pull_here(Place(hub.url, "org/model", "main"), tmp_path / "model", kinds)
    assert (tmp_path / "model" / WEIGHTS).read_bytes() == hub.files[WEIGHTS]
    asked = [span for name, span in hub.fetched if name == WEIGHTS]
    assert asked == [None, f"bytes={3 * 4096}-"]


@pytest.mark.slow
def test_a_run_that_failed_within_a_file_leaves_none_half_done(hub: Hub, tmp_path: Path) -> None:
    """huggingface_hub keeps no part of it: the next run brings it from its first byte, and no other again."""
    hub.cut_at[WEIGHTS], hub.cut_for_good = len(hub.files[WEIGHTS]) // 2, True
    done = pull(hub, tmp_path / "data", check=False)
    assert done.returncode == 1
    assert "org/model at main" in done.stderr.strip().splitlines()[-1]
    folder = tmp_path / "data" / "models" / "org" / "model"
    assert not (folder / WEIGHTS).exists()
    whole = {path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors")}
    hub.cut_at.clear()
    hub.fetched.clear()
    pull(hub, tmp_path / "data")
    assert (folder / WEIGHTS).read_bytes() == hub.files[WEIGHTS]
    assert not whole & {name for name, _ in hub.fetched}


@pytest.mark.slow
def test_after_a_run_that_failed_what_came_whole_stays(hub: Hub, tmp_path: Path) -> None:
    hub.refused = {WEIGHTS}
    done = pull(hub, tmp_path / "data", "--revision", "main", check=False)
    assert done.returncode == 1
    assert "org/model at main" in done.stderr.strip().splitlines()[-1]
    first = {name for name, _ in hub.fetched}
    hub.commit = "f" * 40  # and yet it goes on with the commit that it began
    hub.refused.clear()
    hub.fetched.clear()
    pull(hub, tmp_path / "data")
    came = {
        path.relative_to(folder).as_posix()
        for folder in [tmp_path / "data" / "models" / "org" / "model"]
        for path in folder.rglob("*.safetensors")
    }
    assert WEIGHTS in came
    assert WEIGHTS in {name for name, _ in hub.fetched}
    assert len({name for name, _ in hub.fetched} & first) < len(first)


@pytest.mark.slow
def test_what_no_family_draws_is_refused_before_anything_large(hub: Hub, tmp_path: Path) -> None:
    hub.files["model_index.json"] = b'{"_class_name": "WanPipeline"}'
    done = pull(hub, tmp_path / "data", check=False)
    assert done.returncode == 1
    assert "org/model is a WanPipeline" in done.stderr
    assert [name for name, _ in hub.fetched] == ["model_index.json"]


@pytest.mark.slow
def test_a_model_that_is_not_there(hub: Hub, tmp_path: Path) -> None:
    done = cli(
        *("models", "pull", f"{hub.url}/org/other", "--data-dir", str(tmp_path)),
        check=False,
        env=clean_environment(),
    )
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("danqing: org/other at main: ")


@pytest.mark.slow
def test_one_file_is_pulled_for_a_backends_loras(hub: Hub, tmp_path: Path) -> None:
    hub.files["fast-V2.0.safetensors"] = b"small matrices"
    done = cli(
        *("models", "pull", "org/model/fast-V2.0.safetensors", "--data-dir", str(tmp_path)),
        env=clean_environment(HF_ENDPOINT=hub.url, HF_HUB_DISABLE_XET="1"),
    )
    assert 'fast-v2-0 = { file = "org/model/fast-V2.0.safetensors" }' in done.stdout
    came = tmp_path / "models" / "org" / "model" / "fast-V2.0.safetensors"
    assert came.read_bytes() == b"small matrices"
    assert {name for name, _ in hub.fetched} == {"fast-V2.0.safetensors"}


@pytest.mark.parametrize(
    ("stem", "name", "shift"),
    [
        ("Qwen-Image-Lightning-8steps-V2.0", "lightning-8", 3.0),
        ("Qwen-Image-Lightning-4steps-V1.0-bf16", "lightning-4", 3.0),
        ("Qwen-Image-Edit-Lightning-4steps-V1.0", "qwen-image-edit-lightning-4steps-v1-0", None),
        ("Fast Thing", "fast-thing", None),
    ],
)
def test_the_line_of_a_lora_can_be_used_as_it_is(
    stem: str, name: str, shift: float | None, tmp_path: Path
) -> None:
    """Lightning draws with another schedule than its base: without the shift it would be the wrong one, in silence."""
    file = f"{stem}.safetensors"
    place = Place("", "org/model", "main", file)
    lines = _lora(place, Pulled(tmp_path, "c0ffee", ""))
    table = tomllib.loads("\n".join(lines[2:]))["backends"]["BACKEND"]["loras"]
    assert {key: LoraRow(**row) for key, row in table.items()} == {
        name: LoraRow(file=Path("org/model", file), shift=shift)
    }
    presets = tomllib.loads((resources.files("danqing") / "catalog.toml").read_text("utf-8"))
    drawn_by = {row.get("lora") for row in presets["presets"]["qwen_image"].values()}
    assert (shift is not None) == (name in drawn_by)
    assert (shift is not None) == any(f'"{name}"' in line for line in lines[-1:])
