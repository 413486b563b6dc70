"""Makes the moderation that the settings ask for. Like app.py it may know every floor below; it knows no server."""

from __future__ import annotations

from functools import partial
from importlib.resources import files
from pathlib import Path

from danqing.observability.metrics import Metrics
from danqing.service.moderation import TextModerator
from danqing.service.screening import Screen
from danqing.settings import Settings, SettingsError


def make_moderator(settings: Settings) -> TextModerator:
    """The word-list moderator of these settings. Raises SettingsError naming a list's bad lines."""
    paths = list(settings.moderation.word_lists)
    if settings.moderation.bundled_list:
        paths.insert(0, Path(str(files("danqing.service").joinpath("assets", "wordlist.txt"))))
    try:
        return TextModerator(
            paths,
            allow_paths=settings.moderation.allow_lists,
            block_level=settings.moderation.block_level,
        )
    except ValueError as error:
        raise SettingsError(f"moderation: {error}") from None


def make_screen(settings: Settings, metrics: Metrics) -> Screen:
    """Raises SettingsError."""
    return Screen(partial(make_moderator, settings), metrics)
