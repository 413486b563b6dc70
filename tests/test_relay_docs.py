"""The page on relays: its configurations load as they stand, and every dialect and extra is on it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import get_args

import pytest

from danqing import catalog, settings
from danqing.backends import FamilyRow
from danqing.dialects.registry import CLIENTS
from danqing.domain.pipelines import PIPELINES
from danqing.engine.families import memory
from tests.conftest import ROOT

PAGE = (Path(__file__).parents[1] / "docs" / "relays.md").read_text("utf-8")
BLOCKS = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
ROW = {name: re.search(rf"^\| `{name}` \| (.*) \|$", PAGE, re.MULTILINE) for name in CLIENTS}


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.splitlines()[0])
def test_the_configuration_loads(tmp_path: Path, block: str) -> None:
    path = tmp_path / "catalog.toml"
    path.write_text(block, "utf-8")
    loaded = catalog.load(settings.load(catalog_file=path))
    named = re.findall(r"^\[backends\.([\w-]+)\]", block, re.MULTILINE)
    assert set(named) <= set(loaded.relays)
    drawn = {card.backend.name for card in loaded.cards.values()}
    assert set(named) <= drawn
    for card in loaded.cards.values():
        if card.backend.is_relay:
            assert card.backend.extras == set(loaded.relays[card.backend.name].extras)


FAMILIES = (Path(__file__).parents[1] / "docs" / "families.md").read_text("utf-8")


@pytest.mark.parametrize("block", re.findall(r"```toml\n(.*?)```", FAMILIES, re.DOTALL))
def test_the_configuration_of_a_family_loads(tmp_path: Path, block: str) -> None:
    path = tmp_path / "catalog.toml"
    path.write_text(block, "utf-8")
    loaded = catalog.load(settings.load(catalog_file=path))
    named = re.findall(r"^\[backends\.([\w-]+)\]", block, re.MULTILINE)
    assert named
    assert {card.backend.name for card in loaded.cards.values()} >= set(named)


def part_of(family: str) -> str:
    return FAMILIES.partition(f"\n## {family}\n")[2].partition("\n## ")[0]


def test_every_family_tells_its_memory_steps_presets_and_licence() -> None:
    names = get_args(FamilyRow.model_fields["family"].annotation)
    assert len(names) > 1
    for name in names:
        words = re.findall(r"\*\*(\w+)\*\*", part_of(name).lower())
        assert {"memory", "steps", "presets", "licence"} <= set(words), name
    for name in ("cogview4", "qwen_image"):
        gib = [2 * part.parameters / memory.GIB for part in memory.PUBLISHED[name]]
        network, text, vae = (f"{each:.1f}" for each in gib)
        parts = f"(network {network}, text encoder {text}, VAE {vae})"
        assert f"weights of {sum(gib):.1f} GiB in bfloat16 {parts}" in part_of(name)


def test_every_preset_of_a_family_stands_as_it_is() -> None:
    rows = tomllib.loads((ROOT / "src/danqing/catalog.toml").read_text("utf-8"))["presets"]
    for family in ("pocket", "cogview4", "qwen_image"):
        part = part_of(family)
        for name, row in rows[family].items():
            assert f"| `{name}` | {row['steps']} | {row['guidance']} |" in part


def test_every_pipeline_of_diffusers_stands_as_it_is() -> None:
    tables = tomllib.loads((ROOT / "src/danqing/catalog.toml").read_text("utf-8"))["presets"]
    for name, facts in PIPELINES.items():
        rows = [tables[name][quality] for quality in ("draft", "standard", "fine")]
        steps = ", ".join(str(row["steps"]) for row in rows)
        guidances = [str(row["guidance"]) for row in rows]
        guidance = guidances[0] if len(set(guidances)) == 1 else ", ".join(guidances)
        negative = "yes" if facts.takes_negative(rows[1]["guidance"]) else "-"
        edits = "looks at it" if facts.reads_references else "yes" if facts.edits else "-"
        line = f"| `{name}` | {facts.text_to_image} | {steps} | {guidance} | {negative} | {edits} | {facts.tokens_max} | "
        assert line in FAMILIES


def test_the_table_of_cards_is_what_is_computed() -> None:
    for row in memory.cards():
        sides = [f"{side} px" if side else "-" for side in (row["side"], row["side_text_on_cpu"])]
        assert f"| {row['family']} | {row['card_gib']} GiB | {sides[0]} | {sides[1]} |" in FAMILIES


def test_every_dialect_has_its_extras_in_the_table() -> None:
    for name, client in CLIENTS.items():
        row = ROW[name]
        assert row is not None, name
        missing = [extra for extra in type(client)().extras if f"`{extra}`" not in row[1]]
        assert not missing, (name, missing)


def test_the_table_has_no_more() -> None:
    for name, client in CLIENTS.items():
        row = ROW[name]
        assert row is not None
        for extra in re.findall(r"`(\w+)`", row[1]):
            type(client)(frozenset({extra}))  # raises ValueError for one that it has not
