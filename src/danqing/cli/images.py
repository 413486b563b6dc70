"""Stored images on the command line: images, sweep. Knows no SQL; prints plain lines."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from danqing.cli.books import BY, Config, DataDir, moment, run_on_books, show
from danqing.domain.errors import DanqingError
from danqing.settings import Settings

if TYPE_CHECKING:
    from danqing.app import Books
    from danqing.storage.blobs import Blobs

T = TypeVar("T")

IMAGE_ROWS = 1000
ImageId = Annotated[str, typer.Argument(metavar="ID", help="As its link has it.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    images = typer.Typer(no_args_is_help=True, help="Stored images and their links.")
    app.add_typer(images, name="images")
    _add_images(images)
    _add_unlabelled(images)
    _add_sweep(app)


def _with_blobs(
    data_dir: Path | None,
    config: Path | None,
    deed: Callable[[Books, Blobs, Settings], Awaitable[T]],
    *,
    dry_run: bool = False,
) -> T:
    """What `deed` returns, done on the open books and the image store."""

    async def inside(books: Books, settings: Settings) -> T:
        from danqing.observability.logging import configure

        configure(settings)  # what housekeeping logs is no result: it goes to stderr
        async with books.open_blobs(settings, dry_run=dry_run) as blobs:
            return await deed(books, blobs, settings)

    return run_on_books(data_dir, config, inside)


async def delete_blobs(books: Books, blobs: Blobs, blob_keys: Iterable[str]) -> None:
    """Delete what ended images were in; what cannot be is told, and the sweep finds it."""
    from danqing.service.thumbnails import copies_of

    gone: list[str] = []
    for key in (key for one in blob_keys for key in (*copies_of(one), one)):
        try:
            await blobs.delete(key)
            gone.append(key)
        except DanqingError as error:
            typer.echo(f"{key}: {error}", err=True)
    await books.ledger.mark_deleted(gone)


def _add_images(images: typer.Typer) -> None:
    @images.command("list")
    def list_images(
        account: Annotated[str, typer.Option("--account", help="Whose.")],
        data_dir: DataDir = None,
        config: Config = None,
    ) -> None:
        """List an account's kept images, newest first: id, size, format, bytes, made, kept until, task; tab-separated."""

        async def deed(books: Books, _: Settings) -> None:
            account_id = (await books.accounts.get(account)).id
            after = ""
            while rows := await books.images.page(account_id, after, IMAGE_ROWS):
                for row in rows:
                    size = f"{row.width}x{row.height}"
                    times = moment(row.created_ms), moment(row.expires_ms)
                    show(row.id, size, row.format, row.bytes, *times, row.task_id)
                after = rows[-1].id

        run_on_books(data_dir, config, deed)

    @images.command("delete")
    def delete(image_id: ImageId, data_dir: DataDir = None, config: Config = None) -> None:
        """Delete an image: its links are dead at once. What it cost is not given back."""

        async def deed(books: Books, blobs: Blobs, _: Settings) -> None:
            await delete_blobs(books, blobs, [await books.images.delete(image_id, by=BY)])

        _with_blobs(data_dir, config, deed)
        typer.echo(f"image {image_id} deleted")

    @images.command("revoke")
    def revoke(
        image_id: Annotated[str | None, typer.Argument(metavar="[ID]", help="One image.")] = None,
        account: Annotated[
            str | None, typer.Option("--account", help="All images of this account.")
        ] = None,
        data_dir: DataDir = None,
        config: Config = None,
    ) -> None:
        """Void every link to an image, or to an account's images, that was given out until now; fresh ones can be had."""
        from danqing.cli.main import fail

        async def deed(books: Books, _: Settings) -> int:
            if image_id is not None:
                await books.images.revoke_links(image_id, by=BY)
                return 1
            row = await books.accounts.get(account or "")
            return await books.images.revoke_links_of(row.id, by=BY)

        if (image_id is None) == (account is None):
            fail("name an image, or an account by --account", 2)
        typer.echo(f"links revoked: {run_on_books(data_dir, config, deed)} images")


def _add_unlabelled(images: typer.Typer) -> None:
    @images.command("unlabelled")
    def unlabelled(
        account: Annotated[
            str | None,
            typer.Option("--account", help="Of this account only; a deleted one by its id."),
        ] = None,
        after: Annotated[str, typer.Option("--after", help="Behind the one with this id.")] = "",
        as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
        data_dir: DataDir = None,
        config: Config = None,
    ) -> None:
        """List every image given out without the AI label, oldest first, also of deleted accounts: id, time, account, account's id, end user, image, SHA-256, size, hidden label, model, waiver's version, who signed it, deleted when; tab-separated."""

        async def deed(books: Books, _: Settings) -> None:
            from danqing.api.shapes import unlabelled as shape

            account_id = None if account is None else (await books.accounts.get(account)).id
            last = after
            while rows := await books.images.unlabelled(last, IMAGE_ROWS, account_id):
                for row in rows:
                    if as_json:
                        typer.echo(json.dumps(shape(row), ensure_ascii=False))
                        continue
                    size = None if row.width is None else f"{row.width}x{row.height}"
                    hidden = None if row.label_metadata is None else str(row.label_metadata).lower()
                    whose = row.account_name, row.account_id, row.end_user
                    what = row.image_id, row.sha256, size, hidden, row.model
                    waived = row.waiver_version, row.signer
                    show(
                        row.id,
                        moment(row.created_ms),
                        *whose,
                        *what,
                        *waived,
                        moment(row.deleted_ms),
                    )
                last = rows[-1].id

        run_on_books(data_dir, config, deed)


def _add_sweep(app: typer.Typer) -> None:
    @app.command("sweep")
    def sweep(
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Say it, delete nothing.")] = False,
        as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
        data_dir: DataDir = None,
        config: Config = None,
    ) -> None:
        """Delete images past their time and blobs that nobody knows, and blank old prompts, beside running servers too. Blobs of tasks that this database does not know are named, never deleted; images whose blob is gone are named, and the exit code is 1."""
        from danqing.service.forgetting import Forgetting
        from danqing.service.retention import Retention, Swept

        async def deed(books: Books, blobs: Blobs, settings: Settings) -> tuple[Swept, int]:
            forgetting = Forgetting(books.db, settings.prompts_kept_days)
            swept = await Retention(books.db, books.ledger, blobs).sweep(dry_run=dry_run)
            return swept, await forgetting.sweep(dry_run=dry_run)

        swept, prompts = _with_blobs(data_dir, config, deed, dry_run=dry_run)
        if as_json:
            typer.echo(json.dumps({"dry_run": dry_run} | asdict(swept) | {"prompts": prompts}))
        else:
            show("expired images", swept.expired, f"{swept.expired_bytes} bytes")
            show("orphaned blobs", len(swept.orphans))
            show("prompts", prompts)
            show("half-written files", swept.parts)
            show("blobs of unknown tasks, kept", len(swept.strangers))
            show("images without a blob", len(swept.missing))
            for key in swept.orphans if dry_run else ():
                show("orphan", key)
            for key in swept.strangers:
                show("unknown", key)
            for image_id in swept.missing:
                show("missing", image_id)
        if swept.missing:
            raise typer.Exit(1)
