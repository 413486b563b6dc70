"""`danqing`: serve and draw, and where the other commands join. Prints results on stdout, everything else on stderr."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from danqing import __version__, settings
from danqing.settings import Settings, SettingsError

app = typer.Typer(
    name="danqing",
    help="Danqing 丹青: an image-generation service that draws with a real model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Config = Annotated[Path | None, typer.Option("--config", help="Settings file (TOML).")]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Where the database, keys and images live.")
]


def fail(message: str, code: int = 1) -> NoReturn:
    """One clear line on stderr, then out."""
    typer.echo(f"danqing: {message}", err=True)
    raise typer.Exit(code)


def read_settings(config: Path | None, data_dir: Path | None = None, **overrides: Any) -> Settings:
    """The settings, or one clear line and exit code 2."""
    try:
        return settings.load(config, data_dir=data_dir, **overrides)
    except SettingsError as error:
        fail(str(error), 2)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"danqing {__version__}")
        raise typer.Exit


@app.callback()
def root(
    _version_wanted: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Danqing 丹青: an image-generation service that draws with a real model."""


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 = any free one.")] = None,
    data_dir: DataDir = None,
    config: Config = None,
) -> None:
    """Start the server. The first start makes an operator account and shows its token once."""
    from danqing.cli.serve import new_event_loop, run
    from danqing.domain.errors import DanqingError

    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(run(read_settings(config, data_dir, host=host, port=port)))
    except (SettingsError, DanqingError, OSError, ValueError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        pass


@app.command()
def draw(
    prompt: Annotated[str, typer.Argument(help="What to draw, in Chinese or English.")],
    model: Annotated[str, typer.Option("--model", "-m", help="A model of the catalog.")] = "pocket",
    size: Annotated[str | None, typer.Option("--size", "-s", help="WIDTHxHEIGHT.")] = None,
    n: Annotated[int | None, typer.Option("--n", "-n", help="How many images.")] = None,
    quality: Annotated[str | None, typer.Option("--quality", "-q", help="E.g. hd.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed draws the same image.")] = None,
    negative: Annotated[str, typer.Option("--negative", help="What to keep out.")] = "",
    reference: Annotated[
        Path | None,
        typer.Option(help="A picture to start from; with an empty PROMPT it is varied."),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(help="A picture of its size, transparent where it is to be repainted."),
    ] = None,
    strength: Annotated[
        float | None, typer.Option(help="How far to leave the reference, 0 to 1.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A file (its ending picks the format) or a folder."),
    ] = None,
    data_dir: DataDir = None,
    config: Config = None,
) -> None:
    """Draw without a server and without an account; prints the path of each image."""
    from danqing.cli.draw import DrawOptions, run
    from danqing.domain.errors import DanqingError, RequestError

    options = DrawOptions(
        prompt, model, size, n, quality, seed, negative, output, reference, mask, strength
    )
    try:
        for path in asyncio.run(run(read_settings(config, data_dir), options)):
            typer.echo(path)
    except RequestError as error:
        named = error.param is None or error.param in error.message
        fail(error.message if named else f"{error.param}: {error.message}")
    except (SettingsError, DanqingError, OSError, ValueError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _add_commands() -> None:
    from danqing.cli import accounts, images, inspect, models, moderation, redeem, tokens, upkeep

    for commands in (models, accounts, tokens, redeem, images, moderation, upkeep, inspect):
        commands.register(app)


_add_commands()
