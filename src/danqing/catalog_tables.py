"""The catalog's TOML: the built-in tables with the operator's laid over them, `like` resolved. Knows no field but these."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

from danqing.settings import SettingsError


def read(path: Path | None) -> dict[str, Any]:
    """The tables as they count. Raises SettingsError; TOMLDecodeError; TypeError, AttributeError, KeyError where no table is."""
    tables = tomllib.loads(files("danqing").joinpath("catalog.toml").read_text("utf-8"))
    if path is not None:
        # First ours among themselves: a row of the operator's is for the model it names and for no
        # other that happens to be made like it.
        ours = _resolved(tables["models"])
        above = tomllib.loads(_read(path))
        for name, row in above.get("models", {}).items():
            if name in ours and "like" in row:
                ours[name] = {"aliases": ours[name].get("aliases", [])}
        tables = _merge(tables | {"models": ours}, above)
    tables["models"] = _resolved(tables["models"])
    return tables


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"catalog: cannot read {path}: {error}") from None


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Tables merge, anything else is replaced."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = (
            _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
        )
    return merged


def _resolved(models: dict[str, Any]) -> dict[str, Any]:
    return {name: _inherit(name, models) for name in models}


def _inherit(name: str, models: dict[str, Any], depth: int = 0) -> dict[str, Any]:
    """Resolve `like`: fields are replaced one by one; names (aliases, default) are not inherited."""
    row = dict(models[name])
    parent = row.pop("like", None)
    if parent is None:
        return row
    if parent not in models or depth > 8:
        raise SettingsError(f"catalog: models.{name}.like names no model: {parent}")
    base = _inherit(parent, models, depth + 1)
    base.pop("aliases", None)
    return base | row
