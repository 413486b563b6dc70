"""`danqing inspect`: which AI labels an image file carries. Knows no account and no server; believes no file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from danqing.cli.books import printable

FILE_BYTES_MAX = 64 * 2**20
_MEANINGS = {"1": "made by AI", "2": "possibly made by AI", "3": "suspected to be made by AI"}
_IMAGE_ID = re.compile(r"[0-9a-f]{11}")


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""

    @app.command("inspect")
    def inspect(
        file: Annotated[Path, typer.Argument(metavar="FILE", help="A PNG, JPEG or WebP file.")],
        as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
    ) -> None:
        """Show the AI label in an image's metadata; what cannot be told is null."""
        from danqing.cli.main import fail

        try:
            facts = label_facts(_read(file))
        except OSError as error:
            fail(f"{file}: {error.strerror or error}")
        except ValueError as error:
            fail(f"{file}: {error}")
        # ASCII: a stranger's text may hold terminal controls and lone surrogates.
        for line in [json.dumps(facts)] if as_json else _lines(facts["metadata"]):
            typer.echo(line)


def label_facts(data: bytes) -> dict[str, object]:
    """What an image file says of its labels. Raises ValueError where it is no image.

    `metadata` is the AIGC fields or None; `image_id` is what they claim, where it is an id of our
    form. The visible label, the pixel mark and changed pixels can't be told yet: None.
    """
    from danqing.service import labels  # loads numpy and Pillow: not for `--help`
    from danqing.storage import metadata

    found = metadata.read(data)
    fields = None if found.xmp is None else labels.read_xmp(found.xmp)
    if fields is None and found.aigc is not None:
        fields = labels.read_value(found.aigc)
    claimed = (fields or {}).get("ProduceID", "")
    return {
        "image_id": claimed if _IMAGE_ID.fullmatch(claimed) else None,
        "visible": None,
        "metadata": fields,
        "pixel_mark": None,
        "pixels_unchanged": None,
    }


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(FILE_BYTES_MAX + 1)
    if len(data) > FILE_BYTES_MAX:
        raise ValueError(f"larger than {FILE_BYTES_MAX >> 20} MiB")
    return data


def _lines(fields: object) -> list[str]:
    if not isinstance(fields, dict):
        return ["no AI label in the metadata"]
    meaning = _MEANINGS.get(fields["Label"], "of unknown meaning")
    return [
        f"AI label in the metadata: {meaning}",
        *(f"  {printable(key)}: {printable(value)}" for key, value in fields.items()),
    ]
