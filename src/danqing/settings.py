"""One frozen settings object from defaults, a TOML file and DANQING_* variables. Knows no floor above it; a bad value refuses to start."""

from __future__ import annotations

import os
import re
import tomllib
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic import model_validator as _model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings import SettingsError as UnreadableVariable

from danqing.dialects.hints import meant

_FAULTS_SHOWN = 10

_SECTION = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


_BASE_URL = r"^https?://[^\s/?#@]+(/[^\s?#]*)?$"


def sendable(key: SecretStr | None) -> SecretStr | None:
    """The key. Raises ValueError for one that no header takes; it is not in the message."""
    if key is not None and not re.fullmatch(r"[\x21-\x7e]{1,4096}", key.get_secret_value()):
        raise ValueError("a key is 1 to 4096 printable ASCII characters without blanks")
    return key


class SettingsError(Exception):
    """The settings cannot be used; the message says which and why."""


class EngineSettings(BaseModel):
    """How local drawing runs."""

    model_config = _SECTION

    queue_max: int = Field(default=256, ge=1, le=100_000)
    """Images waiting or being drawn at most; beyond it clients get "busy"."""
    live_max: int = Field(default=64, ge=1, le=1024)
    """Images being drawn at once at most: each holds its latents in memory."""
    batch_max: int = Field(default=8, ge=1, le=256)
    """Images in one denoising step at most."""
    threads: int = Field(default=0, ge=0, le=512)
    """CPU threads of the model runtime; 0 = one per core."""
    process: Literal["auto", "thread", "child"] = "auto"
    """"thread": draw within the server; "child": in a process of its own, which is replaced when it dies or hangs; "auto": pocket within the server, every other family in a process."""
    step_timeout_s: float = Field(default=120, ge=0.5, le=3600)
    """A step, reading or decoding that takes longer hangs: /healthz says so, and a "child" is replaced."""
    load_timeout_s: float = Field(default=600, ge=1, le=86_400)
    """A "child" that takes longer to load its model is replaced."""


Corner = Literal["top-left", "top-right", "bottom-left", "bottom-right"]


class LabelSettings(BaseModel):
    """The AI-content labels (GB 45438-2025)."""

    model_config = _SECTION

    policy: Literal["card", "cn"] = "card"
    """"card": each model's own rule; "cn": a visible label on everything."""
    producer: str = Field(
        "Danqing", min_length=1, max_length=100, pattern=r"^[\x21\x23-\x5b\x5d-\x7e]+$"
    )
    """ContentProducer of the hidden label: your name or code, printable ASCII without blanks."""
    waiver_drops_metadata: bool = False
    """Let a signed waiver drop the hidden label too."""
    text_chinese: str = Field("AI生成", min_length=4, max_length=30)
    """The visible label where the prompt is Chinese; says "AI" or "人工智能", and "生成" or "合成"."""
    text_english: str = Field("AI-generated", min_length=4, max_length=30)
    """The visible label where the prompt is in another language; says "AI" and "generated" or "made" (or as in Chinese)."""
    corner: Corner = "bottom-right"
    """Where the visible label is: "top-left", "top-right", "bottom-left" or "bottom-right"."""
    margin_share: float = Field(default=0.02, ge=0, le=0.1)
    """Between the visible label and the image's edges, as a share of its shorter side."""
    pixel_mark: bool = True
    """Hide the image's id in its pixels."""

    @field_validator("text_chinese", "text_english")
    @classmethod
    def _says_so(cls, value: str) -> str:
        folded = value.casefold()
        who = any(
            word in folded for word in ("ai", "人工智能", "人工智慧", "artificial intelligence")
        )
        what = any(
            word in folded for word in ("生成", "合成", "generated", "made", "created", "synthetic")
        )
        if not (who and what) or not value.isprintable():
            raise ValueError("the label must say that AI generated the image (GB 45438-2025)")
        return value


class BrandSettings(BaseModel):
    """Your mark in a corner, on the images of requests that ask for it (DashScope's `watermark`). It is no AI label."""

    model_config = _SECTION

    text: str = Field("Danqing", min_length=1, max_length=40)
    """The brand mark's words."""
    picture: Path | None = None
    """A PNG, WebP or JPEG file in place of the words: 4 MB and 4096 pixels a side at most, with transparency where the image is to show through."""
    corner: Corner | None = None
    """Where the brand mark is: another corner than the visible label's; the one across from it by default."""
    height_share: float = Field(default=0.045, ge=0.01, le=0.25)
    """The brand mark's height, as a share of the image's shorter side."""
    opacity: float = Field(default=0.9, ge=0.1, le=1)
    """How much of the image it hides."""

    @field_validator("text")
    @classmethod
    def _shows(cls, value: str) -> str:
        if not value.isprintable() or not value.strip():
            raise ValueError("the brand mark's words must be words that can be seen")
        return value


Score = Annotated[float, Field(ge=0, le=2)]


class ModerationApiSettings(BaseModel):
    """A moderation API of OpenAI's shape."""

    model_config = _SECTION

    base_url: str | None = Field(default=None, pattern=_BASE_URL)
    """What `/moderations` follows: `https://api.openai.com/v1`. Without it nobody is asked."""
    key: SecretStr | None = None
    """Its key, sent as a bearer token."""
    model: str = Field(default="omni-moderation-latest", min_length=1, max_length=200)
    """The model that judges."""
    texts: bool = True
    """Ask it about texts."""
    timeout_s: float = Field(default=5, ge=0.1, le=60)
    """It has failed when no answer came after this long."""
    levels: tuple[Score, Score, Score] = (0.95, 0.8, 0.4)
    """A category's scores from which a text or image has level 0, 1 and 2; above 1 is never reached."""
    category_levels: dict[str, tuple[Score, Score, Score]] = {}
    """The same for single categories: `{"sexual/minors" = [0.3, 0.1, 0.05]}`."""
    flagged_level: int = Field(default=1, ge=0, le=3)
    """The level, or a worse one, of what it flags."""

    @field_validator("key")
    @classmethod
    def _sendable(cls, value: SecretStr | None) -> SecretStr | None:
        return sendable(value)

    @field_validator("levels", "category_levels")
    @classmethod
    def _falling(cls, value: Any) -> Any:
        for levels in value.values() if isinstance(value, dict) else (value,):
            if list(levels) != sorted(levels, reverse=True):
                raise ValueError("thresholds fall, as in [0.9, 0.7, 0.4]")
        return value


class ExtensionSettings(BaseModel):
    """Who extends prompts (docs/moderation.md)."""

    model_config = _SECTION

    base_url: str | None = Field(default=None, pattern=_BASE_URL)
    """A chat model of OpenAI's shape extends prompts: what `/chat/completions` follows. Without it rules do."""
    key: SecretStr | None = None
    """Its key, sent as a bearer token."""
    model: str = Field(default="gpt-4.1-mini", min_length=1, max_length=200)
    """The chat model."""
    timeout_s: float = Field(default=10, ge=0.1, le=60)
    """The prompt stays as it was when no answer came after this long."""
    chars_max: int = Field(default=800, ge=50, le=10_000)
    """Characters of a prompt that the model extended at most; the drawing model's own limit counts too."""

    @field_validator("key")
    @classmethod
    def _sendable(cls, value: SecretStr | None) -> SecretStr | None:
        return sendable(value)


class ModerationSettings(BaseModel):
    """What texts and images are checked against (docs/moderation.md)."""

    model_config = _SECTION

    block_level: int = Field(default=1, ge=-1, le=3)
    """Refuse at this level or worse (0 is the worst, 3 is harmless); -1 refuses nothing. An account may have its own."""
    word_lists: tuple[Path, ...] = ()
    """Your own lists, one `term<TAB>level<TAB>category` a line, beside the bundled one."""
    bundled_list: bool = True
    """Use the bundled list."""
    allow_lists: tuple[Path, ...] = ()
    """Your lists of harmless phrases, one a line: a listed term within one of them is no hit."""
    images: Literal["none", "api", "classifier"] = "none"
    """Who judges images, clients' pictures and previews: nobody, the moderation API, or your own classifier."""
    classifier: Path | None = None
    """Your classifier: an ONNX file, with a TOML file of the same name beside it (docs/moderation.md)."""
    on_failure: Literal["closed", "open"] = "closed"
    """Where the API or the classifier gives no verdict: "closed" answers 503 and draws nothing, "open" lets it through; both are counted and logged."""
    api: ModerationApiSettings = ModerationApiSettings()

    @_model_validator(mode="after")
    def _whole(self) -> ModerationSettings:
        if self.images == "api" and self.api.base_url is None:
            raise ValueError('images = "api" needs api.base_url')
        if (self.images == "classifier") != (self.classifier is not None):
            raise ValueError('images = "classifier" and classifier = FILE need each other')
        return self


class UploadSettings(BaseModel):
    """Pictures that clients send along: uploaded, in base64, or by their address."""

    model_config = _SECTION

    image_bytes_max: int = Field(default=50_000_000, ge=1_000, le=1_000_000_000)
    """One picture at most."""
    request_bytes_max: int = Field(default=100_000_000, ge=1_000, le=2_000_000_000)
    """A request with pictures at most, all told."""
    bytes_at_once_max: int = Field(default=400_000_000, ge=1_000, le=10**12)
    """Such bytes in memory at once, over all requests; beyond it clients get "busy"."""
    pixels_max: int = Field(default=50_000_000, ge=64, le=2**28)
    """Width times height of one picture at most."""
    fetch_s_max: float = Field(default=20, ge=0.1, le=600)
    """A picture's address must have given it after this long."""
    fetch_allow_hosts: tuple[str, ...] = ()
    """Hosts (`HOST` or `HOST:PORT`) that pictures may be fetched from though they are not public."""


class Settings(BaseSettings):
    """All settings. Environment: `DANQING_DATA_DIR`, nested ones as `DANQING_ENGINE__QUEUE_MAX`."""

    model_config = SettingsConfigDict(
        env_prefix="DANQING_",
        env_nested_delimiter="__",
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
    )

    data_dir: Path = Path("data")
    """Where the database, the key file and the images live."""
    database_url: str | None = None
    """SQLite by default, in the data directory: `sqlite:///PATH`; or `postgresql://USER@HOST/NAME`."""
    keys_file: Path | None = None
    """The keys behind all tokens and links; `keys.json` in the data directory by default. Servers on one database share it."""
    blob_url: str | None = None
    """Where images are kept: a folder (in the data directory by default), or `s3://BUCKET/PREFIX?endpoint=URL&region=NAME`, whose credentials are in `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`."""
    blob_fsync: bool = True
    """Have an image that is kept in a folder on the disk before it is paid for, so that a power cut loses none; S3 does so anyhow."""
    image_days_max: float | None = Field(default=None, gt=0, le=3650)
    """No image is kept for longer than this many days, whatever its model or its account says."""
    public_url: str | None = Field(default=None, pattern=r"^https?://[^\s/?#]+(/[^\s?#]*)?$")
    """The address clients reach the server by; links begin with it."""
    host: str = "127.0.0.1"
    """The address to listen on."""
    port: int = Field(default=8000, ge=0, le=65535)
    """The port to listen on; 0 = any free one."""
    cors_origins: tuple[
        Annotated[str, Field(pattern=r"^(\*|https?://[a-z0-9.\[\]:-]+)$")], ...
    ] = ()
    """Web pages that may call the APIs from a browser, as browsers write them, in small letters, e.g. `https://app.example.com`; `*` = all. Stored images are open to every page."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses or networks whose forwarded headers count."""
    catalog_file: Path | None = None
    """Your own models and backends, merged over the built-in catalog."""
    standin: bool = True
    """Let pocket answer for models that have nothing configured."""
    body_bytes_max: int = Field(default=1_000_000, ge=1_000, le=100_000_000)
    """A text request's body at most."""
    request_timeout_s: float = Field(default=600, ge=1, le=86_400)
    """A drawing is given up after this long."""
    webhook_allow_hosts: tuple[str, ...] = ()
    """Hosts (`HOST` or `HOST:PORT`) that webhooks may go to though they are not public."""
    task_lease_s: float = Field(default=30, ge=0.1, le=600)
    """A task is its server's for so long, renewed every third of it. One whose lease is over and has not moved for as long again is taken over by another server, or ended."""
    prompts_kept_days: int = Field(default=180, ge=0, le=36_500)
    """Prompts, and what they were extended to, are blanked in the books this long after their task; 0 = never."""
    operator_characters: int = Field(default=1_000_000, ge=0, le=10**15)
    """What the operator's account starts with."""
    account_characters: int = Field(default=15_000, ge=0, le=10**15)
    """What a new account starts with."""
    sign_up: Literal["closed", "invite", "open"] = "invite"
    """Who may make an account: nobody, who has an invite, or anybody."""
    sign_ups_per_address_max: int = Field(default=3, ge=1, le=1_000_000)
    """Accounts made from one address (of IPv6 a /64) within a day at most."""
    password_length_min: int = Field(default=10, ge=8, le=128)
    """Characters of a new password at least."""
    session_hours: float = Field(default=12, ge=0.1, le=8760)
    """How long one stays signed in."""
    payments_secret: Annotated[
        str | None,
        Field(
            pattern=r"^whsec_([A-Za-z0-9+/]{4}){8,}([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$",
            max_length=1024,
        ),
    ] = None
    """What your payment provider's webhooks are signed with: `whsec_` and base64 of 24 bytes or more."""
    rate_limit_url: Annotated[str | None, Field(pattern=r"^rediss?://")] = None
    """Redis that counts requests per minute for all servers together; each counts for itself by default."""
    metrics_token: Annotated[str | None, Field(min_length=16)] = None
    """A bearer token (16 characters at least) that opens /metrics to other machines; loopback needs none."""
    log_format: Literal["auto", "console", "json"] = "auto"
    """"auto": console on a terminal, JSON elsewhere."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe line that is logged."""
    engine: EngineSettings = EngineSettings()
    labels: LabelSettings = LabelSettings()
    brand: BrandSettings = BrandSettings()
    moderation: ModerationSettings = ModerationSettings()
    extension: ExtensionSettings = ExtensionSettings()
    uploads: UploadSettings = UploadSettings()

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for item in value:
            ip_network(item, strict=False)
        return value

    @_model_validator(mode="after")
    def _apart(self) -> Settings:
        if self.brand.corner == self.labels.corner:
            raise ValueError("brand.corner: the visible label's (labels.corner) is another one")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # Strongest first: the command line's own values, then the environment. The file comes in by `load`.
        return init_settings, env_settings

    @property
    def brand_corner(self) -> Corner:
        """The brand mark's: across from the visible label's unless it is set."""
        across: dict[Corner, Corner] = {
            "top-left": "top-right",
            "top-right": "top-left",
            "bottom-left": "bottom-right",
            "bottom-right": "bottom-left",
        }
        return self.brand.corner or across[self.labels.corner]

    @property
    def database_url_effective(self) -> str:
        return self.database_url or f"sqlite:///{(self.data_dir / 'danqing.db').absolute()}"

    @property
    def blob_root(self) -> str:
        return self.blob_url or str((self.data_dir / "images").absolute())

    @property
    def key_file(self) -> Path:
        return self.keys_file or self.data_dir / "keys.json"

    @property
    def trusted_networks(self) -> tuple[IPv4Network | IPv6Network, ...]:
        return tuple(ip_network(item, strict=False) for item in self.trusted_proxies)


def load(config: Path | None = None, **overrides: Any) -> Settings:
    """Read the settings: `overrides` (command line) over DANQING_* over the TOML file over defaults.

    Raises SettingsError naming the setting. An unknown DANQING_* name is an error, so a typo shows.
    """
    try:
        file_values = tomllib.loads(config.read_text("utf-8")) if config is not None else {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"cannot read {config}: {error}") from None
    _refuse_unknown_environment()
    given = {key: value for key, value in overrides.items() if value is not None}
    try:
        env_values = Settings(**given).model_dump(exclude_unset=True)
        return Settings(**_merged(file_values, env_values))
    except UnreadableVariable as error:  # a list or table that is not JSON
        raise SettingsError(f"{error}: lists and tables are written as JSON") from None
    except ValidationError as error:
        faults = [
            f"{'.'.join(map(str, one['loc'])) or 'settings'}: {_said(one)}"
            for one in error.errors()[:_FAULTS_SHOWN]
        ]
        raise SettingsError("; ".join(faults)) from None


def _said(fault: ErrorDetails) -> str:
    """What is wrong with a setting; of an unknown one also which was probably meant."""
    if fault["type"] != "extra_forbidden":
        return fault["msg"]
    known: type[BaseModel] | None = Settings
    *above, name = map(str, fault["loc"])
    for part in above:
        known = (
            known.model_fields[part].annotation if known and part in known.model_fields else None
        )
    found = meant(name, known.model_fields) if known else None
    return "there is no such setting" + (f"; did you mean {found}?" if found else "")


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = (
            _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
        )
    return merged


def _refuse_unknown_environment() -> None:
    for name in os.environ:
        if not name.startswith("DANQING_") or name == "DANQING_TOKEN":  # the client's, in examples
            continue
        field = name.removeprefix("DANQING_").lower().split("__")[0]
        if field not in Settings.model_fields:
            raise SettingsError(f"unknown setting {name}")
