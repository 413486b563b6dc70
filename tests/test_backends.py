"""`[backends.NAME]`: relays as data, their keys, and what a bad one is refused for. Nothing is called."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from danqing import catalog, settings
from danqing.app import check_backend
from danqing.backends import RelayRow, read_keys
from danqing.domain.card import RELAYED, Preset, Strength
from danqing.domain.pipelines import PIPELINES
from danqing.settings import SettingsError
from tests.conftest import clean_environment, cli

RELAY = '[backends.far]\ndialect = "openai"\nbase_url = "https://img.example/v1"\n'
MODEL = '[models.house]\nlike = "dall-e-3"\nbackend = "far"\n'


def load(folder: Path, text: str, **options) -> catalog.Catalog:
    path = folder / "catalog.toml"
    path.write_text(text, "utf-8")
    return catalog.load(settings.load(catalog_file=path, **options))


def test_a_relay_draws_a_model(tmp_path: Path) -> None:
    models = load(tmp_path, RELAY + 'model = "theirs"\nkey_env = "FAR_KEY"\n' + MODEL)
    backend = models.find("house", "openai").backend
    assert (backend.name, backend.dialect, backend.model, backend.stand_in) == (
        *("far", "openai", "theirs"),
        False,
    )
    assert dict(backend.presets) == {"standard": RELAYED, "hd": RELAYED}
    assert models.relays["far"].host == "img.example:443"
    assert models.find("dall-e-3", "openai").backend.stand_in is True


def test_a_relay_draws_the_named_model_and_none_that_was_made_like_it(tmp_path: Path) -> None:
    """Else a row for dall-e-3 would quietly send every GPT image model to the same paid provider."""
    models = load(
        tmp_path,
        RELAY
        + '[models.dall-e-3]\nbackend = "far"\nbackend_model = "mine"\nfallbacks = ["pocket"]\n'
        "price = { per = 'image', standard = 1, hd = 2 }\n",
    )
    assert models.find("dall-e-3", "openai").backend.name == "far"
    plain = catalog.load(settings.load())
    others = [name for name in plain.cards if name != "dall-e-3"]
    assert [models.cards[name] for name in others] == [plain.cards[name] for name in others]


def test_what_the_operator_makes_like_a_model_is_like_the_operators(tmp_path: Path) -> None:
    text = RELAY + '[models.dall-e-3]\nbackend = "far"\n[models.house]\nlike = "dall-e-3"\n'
    assert load(tmp_path, text).find("house", "openai").backend.name == "far"


def test_a_model_of_ours_can_be_made_like_another(tmp_path: Path) -> None:
    models = load(tmp_path, '[models.draw]\nlike = "jimeng-4.0"\nn_default = 2\n')
    draw, jimeng = models.find("bc-Img", "draw"), models.find("jimeng-4.0", "openai")
    assert (draw.name, draw.n_default) == ("draw", 2)
    assert (draw.sizes, draw.price, draw.owner) == (jimeng.sizes, jimeng.price, jimeng.owner)


def test_the_models_own_name_for_the_provider_goes_first(tmp_path: Path) -> None:
    own = load(tmp_path, RELAY + 'model = "theirs"\n' + MODEL + 'backend_model = "mine"\n')
    assert own.find("house", "openai").backend.model == "mine"
    plain = load(tmp_path, RELAY + MODEL)
    assert plain.find("house", "openai").backend.model == "house"


def test_fallbacks_in_order(tmp_path: Path) -> None:
    second = RELAY.replace("far", "near").replace("https://img", "http://near")
    models = load(tmp_path, RELAY + second + MODEL + 'fallbacks = ["near", "pocket"]\n')
    card = models.find("house", "openai")
    assert [backend.name for backend in card.fallbacks] == ["near", "pocket"]
    assert card.fallbacks[1].presets["hd"] == Preset(20, 1.0)
    assert {"far", "near", "pocket"} <= set(models.backends)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ('[backends.far]\ndialect = "openai"', r"backends\.far\.base_url"),
        (RELAY.replace("openai", "klingon"), r"backends\.far\.dialect"),
        (RELAY.replace("https://img.example/v1", "img.example"), r"backends\.far\.base_url"),
        (RELAY.replace("https://", "https://me:secret@"), r"backends\.far\.base_url"),
        (RELAY + 'key = "sk-in-the-clear"', r"backends\.far\.key"),
        (RELAY + 'keys = ["sk-in-the-clear"]', r"backends\.far\.keys"),
        (RELAY + 'keys = [{ env = "A", file = "b" }]', r"backends\.far\.keys"),
        (RELAY + 'keys = [{ env = "A", weight = 0 }]', r"backends\.far\.keys\.0\.weight"),
        (RELAY + 'key_env = "A"\nkey_file = "b"', "key_env"),
        (RELAY + "timeout_s = 0", r"backends\.far\.timeout_s"),
        (RELAY + "concurrency_max = 0", r"backends\.far\.concurrency_max"),
        (RELAY + "rehost = false", "labels"),
        (RELAY + 'extras = ["steps"]', "extras.*steps"),
        (RELAY + 'family = "pocket"', r"backends\.far\.family"),
        ('[backends.x]\nfamily = "none"', r"backends\.x\.family"),
        (MODEL, "far"),
        (RELAY + MODEL + 'fallbacks = ["gone"]', "gone"),
        (RELAY + 'labels = "provider"\n' + MODEL + 'fallbacks = ["pocket"]', "labels"),
        ('[models.house]\nlike = "pocket"\nbackend_model = "x"', "backend_model"),
    ],
)
def test_a_bad_relay_refuses_to_start(tmp_path: Path, text: str, word: str) -> None:
    with pytest.raises(SettingsError, match=word) as refused:
        load(tmp_path, text)
    assert "sk-in-the-clear" not in str(refused.value)


def test_a_visible_label_on_everything_and_links_passed_on_do_not_go_together(
    tmp_path: Path,
) -> None:
    text = RELAY + 'rehost = false\nlabels = "provider"\n' + MODEL
    assert load(tmp_path, text).find("house", "openai").backend.rehost is False
    with pytest.raises(SettingsError, match="rehost"):
        load(tmp_path, text, labels={"policy": "cn"})
    with pytest.raises(SettingsError, match="label_visible"):
        load(tmp_path, text + "label_visible = true\n")
    ark = text.replace('dialect = "openai"', 'dialect = "ark"')
    assert load(tmp_path, ark + "label_visible = true\n").find("house", "openai").comes_labelled


def test_keys_come_from_the_environment_and_from_files(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("from-a-file\n", "utf-8")
    row = RelayRow(
        dialect="openai",
        base_url="http://127.0.0.1:1/v1",
        keys=({"env": "ONE", "weight": 3}, {"file": str(file)}),  # type: ignore[arg-type]
    )
    assert read_keys("far", row, {"ONE": "first"}) == [("first", 3), ("from-a-file", 1)]
    with pytest.raises(SettingsError, match=r"backends\.far\.keys\.0.*ONE"):
        read_keys("far", row, {})
    with pytest.raises(SettingsError, match="no key") as refused:
        read_keys("far", row, {"ONE": "two words"})
    assert "two words" not in str(refused.value)
    file.unlink()
    with pytest.raises(SettingsError, match=r"backends\.far\.keys\.1"):
        read_keys("far", row, {"ONE": "first"})


def test_the_command_line_shows_relays_and_misses_their_keys(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(RELAY + 'key_env = "FAR_KEY"\n' + MODEL + 'fallbacks = ["pocket"]\n', "utf-8")
    env = clean_environment(DANQING_CATALOG_FILE=str(file))
    listed = cli("models", "list", env=env).stdout
    assert "far, else pocket" in listed
    (row,) = [
        row
        for row in json.loads(cli("models", "list", "--json", env=env).stdout)
        if row["model"] == "house"
    ]
    assert (row["relay"], row["backend_model"], row["fallbacks"]) == (
        *("openai", "house"),
        ["pocket"],
    )
    missing = cli("models", "check", env=env, check=False)
    assert missing.returncode == 1
    assert "backends.far.key_env" in missing.stdout
    assert "FAR_KEY" not in os.environ
    found = cli("models", "check", env=env | {"FAR_KEY": "sk-0123456789"})
    assert "https://img.example/v1 (openai), keys: 1" in found.stdout
    assert "sk-0123456789" not in found.stdout


# models of this machine

LOCAL = '[backends.far]\nfamily = "cogview4"\ncheckpoint = "/models/cogview"\n'


def test_a_local_family_draws_a_model(tmp_path: Path) -> None:
    models = load(tmp_path, LOCAL + MODEL)
    backend = models.find("house", "openai").backend
    assert (backend.name, backend.family, backend.stand_in, backend.is_relay) == (
        *("far", "cogview4"),
        *(False, False),
    )
    assert dict(backend.presets) == {"standard": Preset(30, 3.5), "hd": Preset(50, 3.5)}
    row = models.families["far"]
    assert (row.device, row.dtype, row.is_compiled) == ("cuda:0", "bfloat16", True)
    assert row.folder(Path("/data")) == Path("/models/cogview")
    below = load(tmp_path, LOCAL.replace("/models/", "org/") + 'device = "cpu"\n' + MODEL)
    row = below.families["far"]
    assert row.folder(Path("/data")) == Path("/data/models/org/cogview")
    assert row.is_compiled is False


def test_qwen_image_is_guided_by_a_blank_negative_prompt(tmp_path: Path) -> None:
    models = load(tmp_path, LOCAL.replace("cogview4", "qwen_image") + MODEL)
    presets = models.find("house", "openai").backend.presets
    assert dict(presets) == {"standard": Preset(30, 4.0, " "), "hd": Preset(50, 4.0, " ")}


def test_blocks_stay_in_main_memory_where_the_family_lets_them(tmp_path: Path) -> None:
    pinned = 'offload = true\nrevision = "0123abc"\n'
    row = load(tmp_path, LOCAL + pinned).families["far"]
    options = row.options(tmp_path)
    assert (options["offload"], options["revision"]) == (True, "0123abc")
    assert options["overlap"] is False  # it has no record on a card
    for switches, overlaps in (
        ("overlap = true", True),
        ('device = "cpu"', True),
        ('device = "cpu"\noverlap = false', False),
    ):
        row = load(tmp_path, f"{LOCAL}{switches}\n").families["far"]
        assert row.options(tmp_path)["overlap"] is overlaps
    for bad in (
        LOCAL.replace('family = "cogview4"', 'family = "diffusers_pipeline"\npipeline = "sdxl"'),
        LOCAL + 'device = "cpu"\n',
    ):
        with pytest.raises(SettingsError, match=r"backends\.far: .*offload: that is for cogview4"):
            load(tmp_path, bad + pinned)
    with pytest.raises(SettingsError, match=r"backends\.far\.revision"):
        load(tmp_path, LOCAL + 'revision = "main"\n')


LORA = """
[backends.far.loras]
lightning-8 = { file = "org/lightning.safetensors", shift = 3.0 }
"""


def test_a_lora_of_the_backend_draws_the_qualities_that_name_it(tmp_path: Path) -> None:
    qwen = LOCAL.replace("cogview4", "qwen_image")
    model = '[models.fast]\nlike = "pocket"\nbackend = "far"\nqualities = {{ standard = "{}", hd = "fine" }}\n'
    models = load(tmp_path, qwen + LORA + model.format("lightning-8"))
    presets = models.find("fast", "openai").backend.presets
    assert presets["standard"] == Preset(8, 1.0, lora="lightning-8")
    assert presets["hd"].lora == ""
    row = models.families["far"].loras["lightning-8"]
    assert (row.file, row.scale, row.shift) == (Path("org/lightning.safetensors"), 1.0, 3.0)
    for loras in ("", LORA):
        with pytest.raises(SettingsError, match=r"models\.fast: qualities\.standard: presets\.qwen_image\.lightning-4\.lora: .*no LoRA lightning-4"):  # fmt: skip
            load(tmp_path, qwen + loras + model.format("lightning-4"))
    with pytest.raises(SettingsError, match=r"backends\.far: .*loras: cogview4 takes none"):
        load(tmp_path, LOCAL + LORA)
    for bad in ("scale = 0", "shift = -1", "weight = 2"):
        with pytest.raises(SettingsError, match=r"backends\.far\.loras\.lightning-8\."):
            load(tmp_path, qwen + LORA.replace("shift = 3.0", bad) + model.format("lightning-8"))


QWEN = LOCAL.replace("cogview4", "qwen_image")
FILE_8 = "org/Qwen-Image-Lightning-8steps-V2.0.safetensors"


@pytest.mark.parametrize(
    ("name", "file", "said", "shift"),
    [
        ("lightning-8", FILE_8, "", 3.0),
        ("lightning-8", FILE_8, ", shift = 2.5", 2.5),
        ("lightning-8", FILE_8, ", shift = 0", None),
        ("lightning-8", "org/renamed.safetensors", "", 3.0),
        ("lightning-8", "org/a-folder", "", 3.0),
        ("fast", "Qwen-Image-2512-Lightning-8steps-V1.0-bf16.safetensors", "", 3.0),
        ("fast", "org/other.safetensors", ", shift = 2.0", 2.0),
        ("fast", "org/other.safetensors", ", shift = 0", None),
    ],
)
def test_a_distilled_lora_is_drawn_by_its_own_schedule(
    name: str, file: str, said: str, shift: float | None, tmp_path: Path
) -> None:
    """With its base's it would draw wrongly, in silence."""
    text = QWEN + f'[backends.far.loras]\n{name} = {{ file = "{file}"{said} }}\n'
    text += f'[presets.qwen_image]\nmine = {{ steps = 8, guidance = 1.0, lora = "{name}" }}\n'
    text += '[models.fast]\nlike = "pocket"\nbackend = "far"\nqualities = { standard = "mine", hd = "fine" }\n'
    row = load(tmp_path, text).families["far"]
    assert row.options(tmp_path)["loras"][name]["shift"] == shift


@pytest.mark.parametrize(
    ("lora", "drawn", "word"),
    [
        (f'x = {{ file = "{FILE_8}" }}', "steps = 30, guidance = 1.0", "distilled to 8 steps without"),
        (f'x = {{ file = "{FILE_8}" }}', "steps = 8, guidance = 4.0", "distilled to 8 steps without"),
        ('x = { file = "Qwen-Image-Lightning-4steps.safetensors" }', "steps = 8, guidance = 0.0", "distilled to 4 steps"),
        ('x = { file = "org/other.safetensors" }', "steps = 8, guidance = 1.0", "needs the `shift`"),
    ],
)  # fmt: skip
def test_a_distilled_lora_that_would_be_drawn_otherwise_is_refused(
    lora: str, drawn: str, word: str, tmp_path: Path
) -> None:
    text = QWEN + f"[backends.far.loras]\n{lora}\n"
    text += f'[presets.qwen_image]\nmine = {{ {drawn}, lora = "x" }}\n'
    text += '[models.fast]\nlike = "pocket"\nbackend = "far"\nqualities = { standard = "mine", hd = "fine" }\n'
    where = r"models\.fast: qualities\.standard: presets\.qwen_image\.mine\.lora: .*"
    with pytest.raises(SettingsError, match=where + word):
        load(tmp_path, text)


def test_guidance_may_be_kept_to_an_interval_where_the_family_can(tmp_path: Path) -> None:
    def text(backend: str, family: str, interval: str) -> str:
        mine = f"mine = {{ steps = 30, guidance = 4.0, guidance_interval = {interval} }}"
        return f'{backend}[presets.{family}]\n{mine}\n[models.fast]\nlike = "pocket"\nbackend = "far"\nqualities = {{ standard = "mine", hd = "fine" }}\n'

    for backend, family in ((QWEN, "qwen_image"), (LOCAL, "cogview4")):
        presets = load(tmp_path, text(backend, family, "[0.2, 0.9]")).cards["fast"].qualities
        assert presets["standard"].guidance_interval == (0.2, 0.9)
        assert presets["hd"].guidance_interval == (0.0, 1.0), "off unless it is asked for"
    plain = catalog.load(settings.load()).cards.values()
    assert {p.guidance_interval for card in plain for p in card.qualities.values()} == {(0.0, 1.0)}
    where = r"presets\.{}\.mine\.guidance_interval"
    for bad, word in (("[0.9, 0.2]", ": its first"), ("[0.2, 1.1]", ""), ("[0.2]", "")):
        with pytest.raises(SettingsError, match=where.format("qwen_image") + word):
            load(tmp_path, text(QWEN, "qwen_image", bad))
    with pytest.raises(SettingsError, match=where.format("sdxl") + ": that is for cogview4"):
        load(tmp_path, text(PIPE + 'pipeline = "sdxl"\n', "sdxl", "[0.2, 0.9]"))


def test_a_lora_beside_guidance_has_the_checkpoints_schedule(tmp_path: Path) -> None:
    text = QWEN + '[backends.far.loras]\nink = { file = "ink.safetensors" }\n'
    text += '[presets.qwen_image]\nmine = { steps = 30, guidance = 4.0, lora = "ink" }\n'
    text += '[models.fast]\nlike = "pocket"\nbackend = "far"\nqualities = { standard = "mine", hd = "fine" }\n'
    assert load(tmp_path, text).families["far"].options(tmp_path)["loras"]["ink"]["shift"] is None


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ('[backends.x]\nfamily = "cogview4"', r"backends\.x: .*needs a checkpoint"),
        ('[backends.x]\nfamily = "pocket"\ncheckpoint = "/x"', r"backends\.x: .*no checkpoint"),
        ('[backends.x]\nfamily = "pocket"\ndevice = "cpu"', r"backends\.x: .*no device"),
        (LOCAL + 'device = "tpu"', r"backends\.far\.device"),
        (LOCAL + 'dtype = "float16"', r"backends\.far\.dtype"),
        (LOCAL + 'lora = "x"', r"backends\.far\.lora"),
    ],
)
def test_a_bad_local_backend_is_refused_by_name(tmp_path: Path, text: str, word: str) -> None:
    with pytest.raises(SettingsError, match=word):
        load(tmp_path, text)


PIPE = '[backends.far]\nfamily = "diffusers_pipeline"\ncheckpoint = "/models/x"\n'


def test_a_pipeline_of_diffusers_draws_by_its_own_presets(tmp_path: Path) -> None:
    models = load(tmp_path, PIPE + 'pipeline = "sdxl"\n' + MODEL)
    backend = models.find("house", "openai").backend
    assert dict(backend.presets) == {"standard": Preset(30, 5.0), "hd": Preset(50, 5.0)}
    assert backend.pipeline is PIPELINES["sdxl"]
    assert models.families["far"].is_compiled is False, "only where it is asked for"
    ours = "[presets.sdxl]\nstandard = { steps = 8, guidance = 2.0 }\n"
    own = load(tmp_path, PIPE + 'pipeline = "sdxl"\ncompile = true\n' + MODEL + ours)
    assert own.find("house", "openai").backend.presets["standard"] == Preset(8, 2.0)
    assert own.families["far"].is_compiled is True


def test_what_a_pipeline_cannot_edit_its_models_do_not(tmp_path: Path) -> None:
    for pipeline, pictures in (("sdxl", 1), ("flux2_klein", 1), ("pixart_sigma", 0)):
        models = load(tmp_path, PIPE + f'pipeline = "{pipeline}"\n' + MODEL)
        assert models.find("house", "openai").references_max == pictures
    klein = load(tmp_path, PIPE + 'pipeline = "flux2_klein"\n' + MODEL)
    assert klein.find("house", "openai").backend.strength == Strength(1.0, 1.0, 1.0)


def test_every_pipeline_has_presets_for_every_model(tmp_path: Path) -> None:
    everything = "".join(
        f'[models."{name}"]\nbackend = "far"\n' for name in catalog.load(settings.load()).cards
    )
    for pipeline in PIPELINES:
        load(tmp_path, PIPE + f'pipeline = "{pipeline}"\n' + everything)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (PIPE, r"backends\.far: .*needs a pipeline: one of sd, sd_turbo"),
        (PIPE + 'pipeline = "dalle"', r"backends\.far\.pipeline: .*dalle is none of sd"),
        (LOCAL + 'pipeline = "sdxl"', r"backends\.far: .*cogview4 has no pipeline"),
        (PIPE + 'pipeline = "sd3"\ncompile = true', r"backends\.far: .*compile: diffusers cannot compile the blocks of sd3"),
        (
            PIPE + 'pipeline = "sd_turbo"\n' + MODEL
            + '[presets.sd_turbo]\nstandard = { steps = 1, guidance = 0, negative_prompt = "x" }',
            r"presets\.sd_turbo\.standard\.negative_prompt",
        ),
    ],
)  # fmt: skip
def test_a_bad_pipeline_is_refused_by_name(tmp_path: Path, text: str, word: str) -> None:
    with pytest.raises(SettingsError, match=word):
        load(tmp_path, text)


def test_a_family_whose_packages_are_missing_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "danqing.engine.families.load.find_spec", lambda name: None if name == "torch" else name
    )
    models = load(tmp_path, LOCAL + MODEL)
    with pytest.raises(SettingsError, match=r"backends\.far\.family: cogview4 needs torch, not"):
        check_backend("far", models.families["far"], settings.load())
