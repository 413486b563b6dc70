"""Writes docs/reference.md from the code: settings, commands, metrics, catalog fields; and docs/parameters.md. `make docs`; tests compare."""

from __future__ import annotations

import inspect
import types
import typing
from pathlib import Path

import typer.main
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from danqing.backends import FamilyRow, RelayRow
from danqing.catalog import ModelRow, PresetRow, StrengthRow
from danqing.cli.main import app
from danqing.observability.metrics import Metrics
from danqing.settings import Settings
from tools import parameters

TARGET = Path(__file__).parent.parent / "docs" / "reference.md"


def settings_table(model: type[BaseModel], prefix: str = "", env: str = "DANQING_") -> list[str]:
    rows = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if inspect.isclass(kind) and issubclass(kind, BaseModel):
            rows += settings_table(kind, f"{prefix}{name}.", f"{env}{name.upper()}__")
            continue
        assert field.description, f"undocumented setting {prefix}{name}"
        meaning = " ".join(field.description.split())
        rows.append(
            f"| `{prefix}{name}` | `{env}{name.upper()}` | {_shown(field.default)} | {meaning} |"
        )
    return rows


def catalog_table(model: type[BaseModel], prefix: str = "") -> list[str]:
    rows = []
    for name, field in model.model_fields.items():
        assert field.description, f"undocumented catalog field {prefix}{name}"
        meaning = " ".join(field.description.split())
        rows.append(f"| `{prefix}{name}` | {_shown(field.default)} | {meaning} |")
        for part in typing.get_args(field.annotation) or (field.annotation,):
            plain = inspect.isclass(part) and not isinstance(part, types.GenericAlias)
            if plain and issubclass(part, BaseModel):
                rows += catalog_table(part, f"{prefix}{name}.")
    return rows


def commands() -> list[str]:
    rows = []

    def walk(command, words: list[str]) -> None:
        for name, child in sorted(getattr(command, "commands", {}).items()):
            walk(child, [*words, name])
        if not getattr(command, "commands", None):
            assert command.help, f"undocumented command {words}"
            usage = " ".join(
                [f"danqing {' '.join(words)}"]
                + [
                    (p.metavar or p.name.upper())
                    for p in command.params
                    if p.param_type_name == "argument"
                ]
                + [
                    f"{p.opts[0]} {p.name.upper()}" if p.required else f"[{p.opts[0]}]"
                    for p in command.params
                    if p.param_type_name == "option" and p.name != "help"
                ]
            )
            rows.append(f"| `{usage}` | {inspect.cleandoc(command.help)} |")

    walk(typer.main.get_command(app), [])
    return rows


def metrics() -> list[str]:
    rows = []
    for family in Metrics().registry.collect():
        suffix = "_total" if family.type == "counter" else ""
        rows.append(f"| `{family.name}{suffix}` | {family.type} | {family.documentation} |")
    return rows


def _shown(value: object) -> str:
    if value is PydanticUndefined:
        return "required"
    if value in (None, (), {}, ""):
        return "–"
    return f"`{value}`"


def render() -> str:
    return "\n".join(
        [
            "# Reference",
            "",
            "Made from the code by `make docs`; a test fails when it is out of date.",
            "",
            "## Settings",
            "",
            "A TOML file (`--config`) under `DANQING_*` variables under the command line. A bad or unknown",
            "one refuses to start. Lists in a variable are JSON: `DANQING_TRUSTED_PROXIES='[\"10.0.0.0/8\"]'`.",
            "",
            "| setting | variable | default | meaning |",
            "|---|---|---|---|",
            *settings_table(Settings),
            "",
            "## Commands",
            "",
            "| command | what it does |",
            "|---|---|",
            *commands(),
            "",
            "## Metrics",
            "",
            "`GET /metrics`, from loopback or with `metrics_token`.",
            "",
            "| metric | type | meaning |",
            "|---|---|---|",
            *metrics(),
            "",
            "## Catalog fields",
            "",
            "One `[models.NAME]` table per model, in `catalog_file`, merged over the built-in catalog.",
            "",
            "| field | default | meaning |",
            "|---|---|---|",
            *catalog_table(ModelRow),
            "",
            "One `[backends.NAME]` table per backend: a model of this machine's own, with",
            "",
            "| field | default | meaning |",
            "|---|---|---|",
            *catalog_table(FamilyRow),
            "",
            "or a relay to a provider ([how to set one up](relays.md)), with",
            "",
            "| field | default | meaning |",
            "|---|---|---|",
            *catalog_table(RelayRow),
            "",
            "Tables `[presets.FAMILY]` say how a local network draws a quality; their names are what `qualities` names.",
            "",
            "| field | default | meaning |",
            "|---|---|---|",
            *catalog_table(PresetRow),
            "",
            "One `[strengths.FAMILY]` table per family of local networks: how far its edits leave their reference",
            "where a request names no strength, from 0 (it stays as it is) to 1 (drawn anew).",
            "",
            "| field | default | meaning |",
            "|---|---|---|",
            *catalog_table(StrengthRow),
            "",
        ]
    )


if __name__ == "__main__":
    TARGET.write_text(render(), "utf-8")
    parameters.TARGET.write_text(parameters.render(), "utf-8")
