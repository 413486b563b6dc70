"""Settings and catalog: where values come from, and that a bad one refuses to start."""

from __future__ import annotations

from pathlib import Path

import pytest

from danqing import catalog, settings
from danqing.domain.errors import InvalidField, ModelNotFound, Unavailable
from danqing.domain.sizes import Size
from danqing.settings import SettingsError


def test_order_of_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "danqing.toml"
    file.write_text('port = 1\nhost = "127.0.0.2"\n[engine]\nqueue_max = 7\nlive_max = 3\n')
    assert settings.load(file).port == 1
    monkeypatch.setenv("DANQING_PORT", "2")
    monkeypatch.setenv("DANQING_ENGINE__QUEUE_MAX", "9")
    assert settings.load(file).port == 2
    loaded = settings.load(file, port=3)
    assert (loaded.port, loaded.host) == (3, "127.0.0.2")
    assert (loaded.engine.queue_max, loaded.engine.live_max) == (9, 3)
    assert loaded.engine.batch_max == 8


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("port = 70000", "port"),
        ('port = "x"', "port"),
        ("prot = 1", "prot"),
        ("[engine]\nqueue_max = 0", "engine.queue_max"),
        ("[engine]\nqueue = 5", "engine.queue"),
        ('public_url = "ftp://x"', "public_url"),
        ('trusted_proxies = ["all"]', "trusted_proxies"),
        ("port = ", "danqing.toml"),
        ('[labels]\nproducer = "two words"', "labels.producer"),
    ],
)
def test_a_bad_value_refuses_to_start(tmp_path: Path, text: str, name: str) -> None:
    file = tmp_path / "danqing.toml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=name):
        settings.load(file)


def test_all_that_is_wrong_is_named_at_once(tmp_path: Path) -> None:
    file = tmp_path / "danqing.toml"
    file.write_text("prot = 1\nport = 70000\n[engine]\nqueue_mx = 5\n")
    with pytest.raises(SettingsError) as caught:
        settings.load(file)
    for words in (
        "port: ",
        "prot: there is no such setting; did you mean port?",
        "engine.queue_mx: there is no such setting; did you mean queue_max?",
    ):
        assert words in str(caught.value)


def test_a_list_that_is_no_json_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DANQING_TRUSTED_PROXIES", "10.0.0.1")
    with pytest.raises(SettingsError, match="trusted_proxies"):
        settings.load()


def test_a_mistyped_variable_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DANQING_PROT", "1")
    with pytest.raises(SettingsError, match="DANQING_PROT"):
        settings.load()


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        settings.load().port = 5  # type: ignore[misc]


def load_with(tmp_path: Path, text: str, **more) -> catalog.Catalog:
    file = tmp_path / "models.toml"
    file.write_text(text)
    return catalog.load(settings.load(catalog_file=file, **more))


def test_names_match_without_regard_to_case() -> None:
    models = catalog.load(settings.load())
    assert models.find("cogView-4-250304", "zhipu").name == "cogview-4-250304"
    assert models.find("bc-img", "draw").name == "draw"
    assert models.find(None, "draw").name == "draw"
    assert models.find("", "zhipu").name == "cogview-4-250304"
    with pytest.raises(ModelNotFound):
        models.find("nothing", "openai")


def test_the_operators_file_merges_over_ours(tmp_path: Path) -> None:
    models = load_with(
        tmp_path,
        '[models.dall-e-3.price]\nstandard = 7\n[models.house]\nlike = "pocket"\nowner = "us"\n',
    )
    assert models.find("dall-e-3", "openai").price.characters == {"standard": 7, "hd": 10_000}
    assert models.find("house", "openai").owner == "us"
    assert models.find("house", "openai").backend.stand_in is False


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("[models.dall-e-3]\nprise = 5", "prise"),
        ("[models.dall-e-3]\nprise = 5\nowner = 7", "owner: .*; models.dall-e-3.prise: "),
        ('[models.x]\nlike = "nothing"', "like"),
        ('[models.x]\nlike = "x"', "like"),
        ('[models.x]\nlike = "pocket"\naliases = ["draw"]', "draw"),
        ('[models.x]\nlike = "pocket"\nbackend = "nothing"', "nothing"),
        ('[models.x]\nlike = "pocket"\nsize_default = "big"', "big"),
        ('[models.dall-e-3]\nqualities = { standard = "none" }', "none"),
        ('[defaults]\nopenai = "nothing"', "nothing"),
        ("[models", "catalog"),
        ("[models]\nfoo = 5", "catalog"),
        ("models = 5", "catalog"),
        ('[models.x]\nlike = "pocket"\nsize_default = "90000x90000"', "90000"),
    ],
)
def test_a_bad_catalog_refuses_to_start(tmp_path: Path, text: str, word: str) -> None:
    with pytest.raises(SettingsError, match=word):
        load_with(tmp_path, text)


def test_stand_ins_can_be_turned_off(tmp_path: Path) -> None:
    models = catalog.load(settings.load())
    card = models.find("dall-e-3", "openai")
    assert models.drawable(card, standin=True) is card
    with pytest.raises(Unavailable):
        models.drawable(card, standin=False)
    assert models.drawable(models.find("pocket", "openai"), standin=False).name == "pocket"


def test_every_card_takes_its_own_sizes() -> None:
    for card in catalog.load(settings.load()).cards.values():
        rule = card.sizes
        assert (
            rule.resolve(str(rule.default)) == rule.default or rule.default in rule.named.values()
        )
        for size in rule.listed:
            assert rule.resolve(str(size)) == size
        for name, size in rule.named.items():
            assert rule.resolve(name) == size
        with pytest.raises(InvalidField):
            rule.resolve("10000x10000")
        assert set(card.price.characters) == set(card.qualities)


def test_sizes_by_the_seeds() -> None:
    models = catalog.load(settings.load())
    cogview = models.find("cogview-4", "zhipu").sizes
    assert cogview.resolve("512x512") == Size(512, 512)
    assert cogview.resolve("2048x1024") == Size(2048, 1024)
    for bad in ("2048x2048", "496x512", "520x512", "2064x512"):
        with pytest.raises(InvalidField):
            cogview.resolve(bad)
    assert models.find("jimeng-4.0", "openai").sizes.resolve("2:3") == Size(832, 1248)
    assert models.find("glm-image", "zhipu").sizes.resolve("1728x960") == Size(1728, 960)


@pytest.mark.parametrize(
    "origin",
    ["https://App.example.com", "https://app.example.com/", "https://*.example.com", "null"],
)
def test_an_origin_that_no_browser_sends_is_refused(tmp_path: Path, origin: str) -> None:
    with pytest.raises(SettingsError, match="cors_origins"):
        settings.load(data_dir=tmp_path, cors_origins=[origin])
