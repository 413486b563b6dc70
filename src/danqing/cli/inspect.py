"""`danqing inspect`: which AI labels an image file carries. Knows no account and no server; believes no file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from danqing.cli.books import Config, DataDir, printable

if TYPE_CHECKING:
    from danqing.service.inspection import Inspection

FILE_BYTES_MAX = 256 * 2**20
PIXELS_MAX = 100_000_000
_MEANINGS = {"1": "made by AI", "2": "possibly made by AI", "3": "suspected to be made by AI"}
_UNCHANGED = {True: "unchanged since it was labelled", False: "CHANGED since it was labelled"}


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""

    @app.command("inspect")
    def inspect(
        file: Annotated[Path, typer.Argument(metavar="FILE", help="A PNG, JPEG or WebP file.")],
        as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
        data_dir: DataDir = None,
        config: Config = None,
    ) -> None:
        """Show an image's AI labels: visible, in its metadata, in its pixels; what cannot be told is null."""
        from dataclasses import asdict

        from danqing import catalog
        from danqing.cli.main import fail, read_settings
        from danqing.labelling import found_keys, make_inspector
        from danqing.settings import SettingsError

        settings = read_settings(config, data_dir)
        keys = found_keys(settings)
        try:
            inspector = make_inspector(settings, keys, catalog.load(settings))
        except SettingsError as error:
            fail(str(error))
        try:
            found = inspector.inspect(_read(file), pixels_max=PIXELS_MAX)
        except OSError as error:
            fail(f"{file}: {error.strerror or error}")
        except ValueError as error:
            fail(f"{file}: {error}")
        # ASCII: a stranger's text may hold terminal controls and lone surrogates.
        for line in [json.dumps(asdict(found))] if as_json else _lines(found):
            typer.echo(line)
        if keys is None:
            why = f"no key file at {settings.key_file}: pixel marks and seals cannot be checked"
            typer.echo(why, err=True)


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(FILE_BYTES_MAX + 1)
    if len(data) > FILE_BYTES_MAX:
        raise ValueError(f"larger than {FILE_BYTES_MAX >> 20} MiB")
    return data


def _lines(found: Inspection) -> list[str]:
    lines = [f"visible label: {'yes' if found.visible else 'none of ours'}"]
    if found.metadata is None:
        lines.append("AI label in the metadata: none")
    else:
        meaning = _MEANINGS.get(found.metadata["Label"], "of unknown meaning")
        lines.append(f"AI label in the metadata: {meaning}")
        lines += [f"  {printable(name)}: {printable(v)}" for name, v in found.metadata.items()]
    if found.ours is not None:
        lines.append(f"mark in the pixels: {found.pixel_mark or 'none'}")
        lines.append(f"ours: {'yes' if found.ours else 'no'}")
    if found.pixels_unchanged is not None:
        lines.append(f"pixels: {_UNCHANGED[found.pixels_unchanged]}")
    return lines
