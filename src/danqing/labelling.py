"""Makes what labels images and reads labels, as the settings ask for. Like app.py it may know every floor below; it knows no server."""

from __future__ import annotations

from danqing.catalog import Catalog
from danqing.domain.errors import DanqingError
from danqing.domain.sizes import Size
from danqing.service import labels
from danqing.service.brand import BrandMark
from danqing.service.finishing import Finisher, Secrets
from danqing.service.inspection import Inspector
from danqing.service.keys import KeyFile
from danqing.settings import Settings, SettingsError


def make_finisher(settings: Settings, keys: KeyFile | None) -> Finisher:
    """Raises SettingsError where the label's font cannot write a text, or the brand mark's picture cannot be shown."""
    for name in ("text_chinese", "text_english"):
        if missing := labels.unprintable(getattr(settings.labels, name)):
            raise SettingsError(f"labels.{name}: the label's font has no '{missing}'")
    try:
        brand = BrandMark(settings.brand, settings.brand_corner, settings.labels.margin_share)
    except ValueError as error:
        raise SettingsError(str(error)) from None
    return Finisher(settings.labels, None if keys is None else Secrets.of(keys), brand)


def make_inspector(settings: Settings, keys: KeyFile | None, models: Catalog) -> Inspector:
    secrets = None if keys is None else Secrets.of(keys)
    return Inspector(settings.labels, secrets, sizes_of(models))


def sizes_of(models: Catalog) -> set[Size]:
    """Every size that a model names."""
    return {size for card in models.cards.values() for size in card.sizes.known()}


def found_keys(settings: Settings) -> KeyFile | None:
    """The key file of these settings; None where there is none that can be read."""
    try:
        return KeyFile(settings.key_file)
    except DanqingError:
        return None
