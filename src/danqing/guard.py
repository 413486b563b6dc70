"""Makes the moderation and the prompt extension that the settings ask for. Like app.py it may know every floor below; it knows no server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from importlib.resources import files
from pathlib import Path

from danqing.catalog import Catalog
from danqing.domain.ports import ImageJudge
from danqing.net.outbound import Outbound
from danqing.observability.metrics import Metrics
from danqing.service.extension import Extender
from danqing.service.judges import ApiJudge, ClassifierJudge
from danqing.service.moderation import TextModerator
from danqing.service.remote import Remote
from danqing.service.screening import Screen
from danqing.settings import Settings, SettingsError

_ASSETS = Path(str(files("danqing.service").joinpath("assets")))
ASKED_AT_ONCE = 256
"""Requests to the operator's own services over connections that are kept."""
API_TRIES = 2
"""Judging twice costs nothing."""


def make_moderator(settings: Settings) -> TextModerator:
    """The word-list moderator of these settings. Raises SettingsError naming a list's bad lines."""
    paths, allow_paths = [*settings.moderation.word_lists], [*settings.moderation.allow_lists]
    if settings.moderation.bundled_list:
        paths.insert(0, _ASSETS / "wordlist.txt")
        allow_paths.insert(0, _ASSETS / "allowlist.txt")
    try:
        return TextModerator(
            paths,
            allow_paths=allow_paths,
            block_level=settings.moderation.block_level,
        )
    except ValueError as error:
        raise SettingsError(f"moderation: {error}") from None


def make_screen(
    settings: Settings, metrics: Metrics, outbound: Outbound, models: Catalog
) -> Screen:
    """All that judges texts and images; `outbound` asks the API. Raises SettingsError naming the field."""
    _check_relays(settings, models)
    wanted = settings.moderation
    api = _api(settings, outbound)
    images: ImageJudge | None = None
    if wanted.images == "api":
        images = api
    elif wanted.images == "classifier":
        from danqing.engine.classifier import Classifier, ClassifierError  # loads onnxruntime

        assert wanted.classifier is not None
        try:
            images = ClassifierJudge(Classifier(wanted.classifier, settings.engine.threads))
        except ClassifierError as error:
            raise SettingsError(f"moderation.classifier: {error}") from None
    return Screen(
        partial(make_moderator, settings),
        metrics,
        text_judge=api if wanted.api.texts else None,
        image_judge=images,
        fails_open=wanted.on_failure == "open",
    )


def make_extender(settings: Settings, metrics: Metrics, outbound: Outbound) -> Extender:
    """What extends prompts; `outbound` asks the model."""
    wanted = settings.extension
    remote = None
    if wanted.base_url is not None:
        key = None if wanted.key is None else wanted.key.get_secret_value()
        remote = Remote(wanted.base_url, key, outbound, timeout_s=wanted.timeout_s)
    return Extender(remote, wanted, metrics)


def _api(settings: Settings, outbound: Outbound) -> ApiJudge | None:
    wanted = settings.moderation.api
    if wanted.base_url is None:
        return None
    key = None if wanted.key is None else wanted.key.get_secret_value()
    remote = Remote(wanted.base_url, key, outbound, timeout_s=wanted.timeout_s, tries=API_TRIES)
    return ApiJudge(remote, wanted)


def _check_relays(settings: Settings, models: Catalog) -> None:
    """Images that never come here cannot be judged. Raises SettingsError naming the field."""
    if settings.moderation.images == "none":
        return
    for name, row in models.relays.items():
        if not row.rehost:
            raise SettingsError(
                f"catalog: backends.{name}.rehost: its images must come here to be judged "
                f'(moderation.images is "{settings.moderation.images}")'
            )


@asynccontextmanager
async def open_screen(settings: Settings, models: Catalog) -> AsyncIterator[Screen]:
    """The same without a server. Raises SettingsError."""
    outbound = Outbound()
    try:
        yield make_screen(settings, Metrics(), outbound, models)
    finally:
        await outbound.aclose()
