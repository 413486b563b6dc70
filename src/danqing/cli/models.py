"""`danqing models`: what the catalog offers, and whether this machine can draw it. Knows no server."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from danqing.settings import Settings, SettingsError

if TYPE_CHECKING:
    from danqing.backends import FamilyRow, RelayRow
    from danqing.catalog import Catalog
    from danqing.domain.card import Backend

AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable.")]
Config = Annotated[Path | None, typer.Option("--config", help="Settings file (TOML).")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    models = typer.Typer(help="The models of the catalog.", no_args_is_help=True)
    app.add_typer(models, name="models")

    @models.command("list")
    def list_models(as_json: AsJson = False, config: Config = None) -> None:
        """Every model, what draws it, and its price in characters."""
        rows = [
            {
                "model": card.name,
                "aliases": list(card.aliases),
                "backend": card.backend.name,
                "stand_in": card.backend.stand_in,
                "relay": card.backend.dialect,
                "backend_model": card.backend.model or None,
                "fallbacks": [backend.name for backend in card.fallbacks],
                "price": dict(card.price.characters),
                "per": card.price.per,
                "edit": dict(card.price.edit),
                "pixels": [asdict(tier) for tier in card.price.pixels],
            }
            for card in _catalog(config)[1].cards.values()
        ]
        if as_json:
            typer.echo(json.dumps(rows, ensure_ascii=False, indent=2))
            return
        for row in rows:
            prices = ", ".join(f"{quality} {price}" for quality, price in row["price"].items())
            backend = row["backend"] + (" (stand-in)" if row["stand_in"] else "")
            backend += "".join(f", else {name}" for name in row["fallbacks"])
            line = f"{row['model']:<30} {backend:<20} {prices} characters per {row['per']}"
            if len(row["pixels"]) > 1:
                line += f", large sizes up to {row['pixels'][-1]['permille'] / 1000:g} times that"
            typer.echo(line)

    @models.command("check")
    def check(as_json: AsJson = False, config: Config = None) -> None:
        """Load each backend: can it draw here, how long it takes, what memory; of a relay, whether its keys are there. Exit code 1 if not."""
        settings, catalog = _catalog(config)
        rows = [
            _keyed(backend, catalog.relays[backend.name])
            if backend.is_relay
            else _loaded(backend, catalog.families[backend.name], settings)
            for backend in catalog.backends.values()
        ]
        if as_json:
            typer.echo(json.dumps(rows, ensure_ascii=False, indent=2))
        for row in [] if as_json else rows:
            typer.echo(_line(row))
        if not all(row["loads"] for row in rows):
            raise typer.Exit(1)


def _catalog(config: Path | None) -> tuple[Settings, Catalog]:
    """The settings and the catalog, or one clear line and exit code 2."""
    from danqing import catalog
    from danqing.cli.main import fail, read_settings

    settings = read_settings(config)
    try:
        return settings, catalog.load(settings)
    except SettingsError as error:
        fail(str(error), 2)


def _keyed(backend: Backend, relay: RelayRow) -> dict[str, object]:
    """A relay's keys are looked for; the provider is not called."""
    from danqing.backends import read_keys

    row: dict[str, object] = {"backend": backend.name, "relay": backend.dialect}
    row |= {"base_url": relay.base_url}
    try:
        keys = read_keys(backend.name, relay, os.environ)
    except SettingsError as error:
        return row | {"loads": False, "keys": 0, "fault": str(error)}
    return row | {"loads": True, "keys": len(keys), "fault": None}


def _loaded(backend: Backend, family_row: FamilyRow, settings: Settings) -> dict[str, object]:
    """Load a backend's family, with the runtime it needs, and let it go."""
    from danqing.app import load_family

    row: dict[str, object] = {"backend": backend.name, "family": backend.family}
    before_bytes = _resident_bytes()
    started = time.perf_counter()
    try:
        family = load_family(family_row, settings)
    except Exception as error:  # whatever a runtime raises, the answer is that it cannot draw
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return row | {"loads": False, "load_s": None, "resident_mib": None, "fault": reason}
    load_s = time.perf_counter() - started
    after_bytes = _resident_bytes()
    del family  # kept until its memory was measured
    grown_mib = None
    if before_bytes is not None and after_bytes is not None:
        grown_mib = round(max(0, after_bytes - before_bytes) / 2**20, 1)
    return row | {
        "loads": True,
        "load_s": round(load_s, 3),
        "resident_mib": grown_mib,
        "fault": None,
    }


def _line(row: dict[str, object]) -> str:
    if not row["loads"]:
        return f"{row['backend']:<20} cannot draw here: {row['fault']}"
    if "relay" in row:
        keys = "no key" if not row["keys"] else f"keys: {row['keys']}"
        return f"{row['backend']:<20} asks {row['base_url']} ({row['relay']}), {keys}"
    memory = "unknown memory" if row["resident_mib"] is None else f"{row['resident_mib']} MiB"
    return f"{row['backend']:<20} can draw: loads in {row['load_s']} s, takes {memory}"


def _resident_bytes() -> int | None:
    """This process's resident memory by Linux's /proc (proc(5)); None on other systems."""
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
