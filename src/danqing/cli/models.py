"""`danqing models`: what the catalog offers, and whether this machine can draw it. Knows no server."""

from __future__ import annotations

import asyncio
import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from danqing.domain.errors import ModelNotFound
from danqing.settings import Settings, SettingsError

if TYPE_CHECKING:
    from danqing.backends import FamilyRow, RelayRow
    from danqing.catalog import Catalog
    from danqing.domain.card import Backend

AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable.")]
Config = Annotated[Path | None, typer.Option("--config", help="Settings file (TOML).")]
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Where everything is kept.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    models = typer.Typer(help="The models of the catalog.", no_args_is_help=True)
    app.add_typer(models, name="models")
    _register_pull(models)
    _register_check(models)

    @models.command("list")
    def list_models(
        as_json: AsJson = False, data_dir: DataDir = None, config: Config = None
    ) -> None:
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
            for card in _catalog(config, data_dir)[1].cards.values()
        ]
        if as_json:
            typer.echo(json.dumps(rows, ensure_ascii=False, indent=2))
            return
        widest = max(len(row["model"]) for row in rows)
        for row in rows:
            prices = ", ".join(f"{quality} {price}" for quality, price in row["price"].items())
            backend = row["backend"] + (" (stand-in)" if row["stand_in"] else "")
            backend += "".join(f", else {name}" for name in row["fallbacks"])
            line = f"{row['model']:<{widest}} {backend:<20} {prices} characters per {row['per']}"
            if len(row["pixels"]) > 1:
                line += f", large sizes up to {row['pixels'][-1]['permille'] / 1000:g} times that"
            typer.echo(line)


def _register_pull(models: typer.Typer) -> None:
    @models.command("pull")
    def pull(
        model: Annotated[
            str,
            typer.Argument(
                help="ORG/NAME, or the address of its page at a hub or at ModelScope; ORG/NAME/FILE.safetensors for a LoRA."
            ),
        ],
        revision: Annotated[
            str | None,
            typer.Option(
                "--revision",
                help="A branch, tag or commit; main (ModelScope: master) if not given.",
            ),
        ] = None,
        data_dir: DataDir = None,
        config: Config = None,
    ) -> None:
        """Download a checkpoint into DATA_DIR/models, pinned to its commit; safetensors only. Run it again after a break: what came whole stays."""
        from danqing.app import LoadError
        from danqing.cli.main import fail, read_settings
        from danqing.cli.pull import run
        from danqing.net.hub import PullError

        try:
            for line in run(read_settings(config, data_dir), model, revision):
                typer.echo(line)
        except (PullError, LoadError, OSError) as error:
            fail(str(error))
        except KeyboardInterrupt:
            raise typer.Exit(130) from None


def _register_check(models: typer.Typer) -> None:
    @models.command("check")
    def check(
        cards: Annotated[
            bool,
            typer.Option(
                "--cards",
                help="What published models fit on which graphics card, the one here included.",
            ),
        ] = False,
        ask: Annotated[
            bool,
            typer.Option(
                "--ask",
                help="Ask each relay's provider for its models, too: free, 10 seconds a key at most.",
            ),
        ] = False,
        as_json: AsJson = False,
        data_dir: DataDir = None,
        config: Config = None,
    ) -> None:
        """Whether each backend can draw here: pocket is loaded; of other families packages, checkpoint, device and memory are looked at; of a relay its keys, and with --ask whether its provider is there. Exit code 1 if one cannot. Then what published models fit on the graphics card here, if there is one; with --cards, on cards of 12 to 80 GiB: computed, not measured."""
        from danqing.app import cards_here

        if cards:
            _print_cards(as_json)
            return
        settings, catalog = _catalog(config, data_dir)
        rows = [
            _keyed(backend, catalog.relays[backend.name])
            if backend.is_relay
            else _fitted(backend, catalog.families[backend.name], settings)
            if catalog.families[backend.name].checkpoint is not None
            else _loaded(backend, catalog.families[backend.name], settings)
            for backend in catalog.backends.values()
        ]
        rows = [row | {"warnings": _misfits(str(row["backend"]), catalog)} for row in rows]
        if ask:
            asyncio.run(_ask(rows, catalog))
        if as_json:
            typer.echo(json.dumps(rows, ensure_ascii=False, indent=2))
        for row in [] if as_json else rows:
            typer.echo(_line(row))
            for warning in _misfits(str(row["backend"]), catalog):
                typer.echo(f"{'':<20} warning: {warning}")
        if not as_json and (here := cards_here()):
            typer.echo("")
            _print_sides(here)
        if not all(row["loads"] for row in rows):
            raise typer.Exit(1)


def _catalog(config: Path | None, data_dir: Path | None) -> tuple[Settings, Catalog]:
    """The settings and the catalog, or one clear line and exit code 2."""
    from danqing import catalog
    from danqing.cli.main import fail, read_settings

    settings = read_settings(config, data_dir)
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


def _misfits(backend: str, catalog: Catalog) -> list[str]:
    """Fields of a relay's `extras` that a model of ours by the provider's name for it does not take: copied, as a rule."""
    relay = catalog.relays.get(backend)
    if relay is None or relay.dialect != "openai":
        return []
    found = list[str]()
    for card in catalog.cards.values():
        for mine in (card.backend, *card.fallbacks):
            named = mine.model or card.name
            if mine.name != backend:
                continue
            try:
                features = catalog.find(named, "openai").features
            except ModelNotFound:
                continue
            for extra in ("output_format", "response_format", "style"):
                if extra in relay.extras and extra not in features:
                    found.append(
                        f"extras has {extra}, which {named} does not take: what {card.name} asks for will be refused there"
                    )
    return found


async def _ask(rows: list[dict[str, object]], catalog: Catalog) -> None:
    """Put into the relays' rows what their providers say; all are asked at once."""
    from danqing.backends import read_keys
    from danqing.net.outbound import Outbound
    from danqing.providers.probe import probe

    outbound = Outbound()

    async def ask_one(row: dict[str, object]) -> None:
        name = str(row["backend"])
        relay = catalog.relays[name]
        keys = [key for key, _ in read_keys(name, relay, os.environ)]
        is_there, told = await probe(relay, keys, outbound)
        row |= {"loads": is_there, "answers": told, "fault": None if is_there else told}

    try:
        await asyncio.gather(*(ask_one(row) for row in rows if row.get("relay") and row["loads"]))
    finally:
        await outbound.aclose()


def _print_cards(as_json: bool) -> None:
    from danqing.app import cards

    rows = cards()
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    _print_sides(rows)


def _print_sides(rows: list[dict[str, str | float]]) -> None:
    typer.echo("The largest square in bfloat16, computed from the configs, not measured:")
    heads = ("all on the card", "text encoder on cpu", "and offload")
    typer.echo(f"{'family':<14} {'card':>8} {heads[0]:>18} {heads[1]:>22} {heads[2]:>14}")
    for row in rows:
        sides = [row[name] for name in ("side", "side_text_on_cpu", "side_offload")]
        told = [f"{side} px" if side else "-" for side in sides]
        card = f"{row['card_gib']} GiB"
        typer.echo(f"{row['family']:<14} {card:>8} {told[0]:>18} {told[1]:>22} {told[2]:>14}")


def _fitted(backend: Backend, family_row: FamilyRow, settings: Settings) -> dict[str, object]:
    """A torch family's backend: all is looked at, no weight is loaded."""
    from danqing.app import LoadError, check_fit, commit_of

    row: dict[str, object] = {"backend": backend.name, "family": backend.family}
    row |= {"checkpoint": str(family_row.folder(settings.data_dir)), "device": family_row.device}
    row |= {"dtype": family_row.dtype, "commit": commit_of(family_row, settings)}
    row |= {"pinned": family_row.revision is not None}
    try:
        fit = check_fit(family_row, settings)
    except LoadError as error:
        row |= {"overlaps": None}
        return row | {"loads": False, "needs_mib": None, "free_mib": None, "fault": str(error)}
    row |= {"overlaps": fit.overlaps}
    free_mib = None if fit.free_bytes is None else fit.free_bytes // 2**20
    needs_mib = -(-fit.need.device_bytes // 2**20)
    return row | {"loads": True, "needs_mib": needs_mib, "free_mib": free_mib, "fault": None}


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
        told = f"; {row['answers']}" if "answers" in row else ""
        return f"{row['backend']:<20} asks {row['base_url']} ({row['relay']}), {keys}{told}"
    if "needs_mib" in row:
        there = "" if row["free_mib"] is None else f" of {row['free_mib']} MiB free"
        held = (
            f"; at {row['commit']}, held by no revision"
            if row["commit"] and not row["pinned"]
            else ""
        )
        turns = "beside" if row["overlaps"] else "between"
        return (
            f"{row['backend']:<20} can draw on {row['device']}: {row['family']} in {row['dtype']} needs {row['needs_mib']} MiB{there};"
            f" reads and decodes {turns} the steps{held}"
        )
    memory = "unknown memory" if row["resident_mib"] is None else f"{row['resident_mib']} MiB"
    return f"{row['backend']:<20} can draw: loads in {row['load_s']} s, takes {memory}"


def _resident_bytes() -> int | None:
    """This process's resident memory by Linux's /proc (proc(5)); None on other systems."""
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
