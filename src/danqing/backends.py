"""`[backends.NAME]` of the catalog: what draws. Local families, and relays to providers. Opens no connection."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator
from pydantic import model_validator as _model_validator

from danqing.dialects.client import ClientDialect
from danqing.dialects.registry import CLIENTS, client_of
from danqing.domain.card import ALL_LEVELS, Preset
from danqing.domain.pipelines import PIPELINES, PipelineFacts
from danqing.settings import SettingsError

STRICT = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

_KEY = re.compile(r"[\x21-\x7e]{1,4096}")  # what a header takes, and no blank

LORA_FAMILIES = ("qwen_image",)
"""What takes LoRAs."""

_LIGHTNING = re.compile(r"(?:qwen-image(?:-\d{4})?-)?lightning-([1-9]\d?)(?:steps(?:-.*)?)?")
LIGHTNING_SHIFT = 3.0
"""What Qwen-Image-Lightning was distilled with: base and max shift are ln 3 in its script (generate_with_diffusers.py)."""

INTERVALS = ("cogview4", "qwen_image")
"""Whose guidance may be kept to an interval of noise levels."""

OFFLOADED = ("cogview4", "qwen_image")
"""Whose blocks may stay in main memory."""

LABELLING = frozenset({"zhipu", "ark"})
"""Whose APIs have a visible AI label: Zhipu's is there unless it is declined, Ark is asked for it."""

RelayDialect = Literal["openai", "zhipu", "dashscope", "ark", "chat", "draw", "jimeng", "qwen"]


class LoraRow(BaseModel):
    """One of a backend's `loras`: small matrices that are added to its network for the qualities that name it."""

    model_config = STRICT
    file: Path
    """Safetensors, or a folder that holds one file of them; absolute or below `DATA_DIR/models`."""
    scale: float = Field(default=1.0, gt=0, le=10)
    """How much of it is added."""
    shift: float | None = Field(default=None, ge=0, le=100)
    """The noise schedule's shift that it was trained with, whatever the size; 0 = the checkpoint's own. By default 3 for Qwen-Image-Lightning and the
    checkpoint's own for others; what draws without guidance must have one."""


def lightning_steps(name: str) -> int | None:
    """The steps that Qwen-Image-Lightning of this name was distilled to; None for what is something else.

    A file without its suffix, or a LoRA's own name: `lightning-8`.
    """
    plain = name.lower().replace(".", "-").replace("_", "-").replace(" ", "-")
    found = _LIGHTNING.fullmatch(plain)
    return None if found is None else int(found[1])


class FamilyRow(BaseModel):
    """A model of this machine's own."""

    model_config = STRICT
    family: Literal["pocket", "cogview4", "qwen_image", "diffusers_pipeline"]
    """The network that draws (docs/families.md)."""
    pipeline: str | None = None
    """Which of diffusers' pipelines, where `family` is `diffusers_pipeline`; its `[presets.NAME]` are used."""
    checkpoint: Path | None = None
    """Its weights, for every family but pocket: a folder in diffusers' layout, absolute or below `DATA_DIR/models`."""
    revision: str | None = Field(default=None, pattern=r"^[0-9a-f]{7,64}$")
    """The commit that the checkpoint must be, as `danqing models pull` recorded it (`danqing.json`); by default any."""
    device: str = Field(default="cuda:0", pattern=r"^(cpu|cuda:\d{1,2})$")
    """Where it draws: `cuda:0` is the first graphics card, `cpu` the processor. Pocket knows only the processor."""
    text_encoder_device: Literal["cpu"] | None = None
    """`cpu` reads prompts on the processor, seconds each time for a new one, and leaves the card's memory to the pictures."""
    offload: bool = False
    """Keep the network's blocks in main memory and bring each to the card as its turn comes; `cogview4` and `qwen_image` only."""
    overlap: bool | None = None
    """Read prompts and decode pictures beside the steps of others, where there is memory for both; by default on the processor alone: on a graphics card
    it has never run."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """The precision of its weights."""
    loras: dict[str, LoraRow] = {}
    """LoRAs by the names that presets call them by; `qwen_image` only."""
    compile: bool | None = None
    """Compile parts of the network, which takes a while at the start; by default on a graphics card alone, and never for `diffusers_pipeline`."""

    @field_validator("pipeline")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if value is not None and value not in PIPELINES:
            raise ValueError(f"{value} is none of {', '.join(PIPELINES)}")
        return value

    @_model_validator(mode="after")
    def _has_weights(self) -> FamilyRow:
        if self.family == "pocket":
            if needless := self.model_fields_set - {"family"}:
                raise ValueError(f"pocket has no {min(needless)}: it is in the package")
        elif self.checkpoint is None:
            raise ValueError(f"{self.family} needs a checkpoint: the folder with its weights")
        if self.loras and self.family not in LORA_FAMILIES:
            raise ValueError(f"loras: {self.family} takes none")
        if self.offload and (self.family not in OFFLOADED or self.device == "cpu"):
            raise ValueError(f"offload: that is for {' and '.join(OFFLOADED)} on a graphics card")
        if self.family == "diffusers_pipeline" and self.pipeline is None:
            raise ValueError(f"{self.family} needs a pipeline: one of {', '.join(PIPELINES)}")
        if self.family != "diffusers_pipeline" and self.pipeline is not None:
            raise ValueError(f"{self.family} has no pipeline: that is for diffusers_pipeline")
        if self.compile and self.facts is not None and not self.facts.compiles:
            raise ValueError(f"compile: diffusers cannot compile the blocks of {self.pipeline}")
        return self

    @property
    def is_compiled(self) -> bool:
        if self.compile is None:
            return self.device != "cpu" and self.pipeline is None
        return self.compile

    @property
    def overlaps(self) -> bool:
        """Whether calls may be made beside its steps, as far as the operator goes."""
        return self.device == "cpu" if self.overlap is None else self.overlap

    @property
    def presets(self) -> str:
        """The NAME of its `[presets.NAME]` and `[strengths.NAME]`."""
        return self.pipeline or self.family

    @property
    def facts(self) -> PipelineFacts | None:
        """What its pipeline can, where it has one."""
        return None if self.pipeline is None else PIPELINES[self.pipeline]

    def distilled_to(self, lora: str) -> int | None:
        """The steps that one of its LoRAs must be drawn in, where its file's name or its own tells."""
        by_file = lightning_steps(self.loras[lora].file.stem)
        return lightning_steps(lora) if by_file is None else by_file

    def shift_of(self, lora: str) -> float | None:
        """Of the noise schedule of one of its LoRAs; None = the checkpoint's own."""
        said = self.loras[lora].shift
        if said is None:
            return None if self.distilled_to(lora) is None else LIGHTNING_SHIFT
        return said or None

    def preset_fault(self, preset: Preset) -> str | None:
        """`FIELD: what is wrong` with drawing in this way, which a picture would tell too late; None = nothing."""
        low, high = preset.guidance_interval
        if low > high:
            return "guidance_interval: its first noise level is the higher one"
        if (low, high) != ALL_LEVELS and self.family not in INTERVALS:
            return f"guidance_interval: that is for {' and '.join(INTERVALS)}"
        facts = self.facts
        if preset.negative_prompt and facts and not facts.takes_negative(preset.guidance):
            return "negative_prompt: it has none"
        fault = self._lora_fault(preset.lora, preset) if preset.lora else None
        return fault and f"lora: {fault}"

    def _lora_fault(self, lora: str, preset: Preset) -> str | None:
        if lora not in self.loras:
            return f"its backend has no LoRA {lora} in its `loras`"
        wanted = self.distilled_to(lora)
        if wanted is not None and (preset.steps, preset.guidance > 1) != (wanted, False):
            return f"{lora} was distilled to {wanted} steps without guidance (guidance = 1)"
        if wanted is None and preset.guidance <= 1 and self.loras[lora].shift is None:
            return f"it is drawn without guidance, so {lora} needs the `shift` that it was distilled with (0 = the checkpoint's own)"
        return None

    def folder(self, data_dir: Path) -> Path:
        """The checkpoint's folder. Only for a family that has one."""
        assert self.checkpoint is not None
        return data_dir / "models" / self.checkpoint

    def options(self, data_dir: Path) -> dict[str, Any]:
        """What loading takes, of JSON's types. Only for a family that has a checkpoint."""
        loras = {
            name: {
                "path": str((data_dir / "models" / row.file).absolute()),
                "scale": row.scale,
                "shift": self.shift_of(name),
            }
            for name, row in self.loras.items()
        }
        return {
            "checkpoint": str(self.folder(data_dir).absolute()),
            "device": self.device,
            "dtype": self.dtype,
            "compiled": self.is_compiled,
            "text_encoder_device": self.text_encoder_device,
            "loras": loras,
            "pipeline": self.pipeline,
            "revision": self.revision,
            "offload": self.offload,
            "overlap": self.overlaps,
        }


class KeyRow(BaseModel):
    """Where one key to a provider is found; the catalog never holds the key itself."""

    model_config = STRICT
    env: str | None = Field(default=None, min_length=1)
    """The environment variable that holds it."""
    file: Path | None = None
    """The file that holds it."""
    weight: int = Field(default=1, strict=True, ge=1, le=1000)
    """How often it is used, beside the others'."""

    @_model_validator(mode="after")
    def _one_place(self) -> KeyRow:
        if (self.env is None) == (self.file is None):
            raise ValueError("either env or file says where the key is")
        return self


class RelayRow(BaseModel):
    """A provider that draws for us."""

    model_config = STRICT
    dialect: RelayDialect
    """The API it speaks."""
    base_url: str = Field(pattern=r"^https?://[^\s/?#@]+(/[^\s?#]*)?$", max_length=1000)
    """What the dialect's paths follow: `https://api.openai.com/v1`."""
    key_env: str | None = Field(default=None, min_length=1)
    """The environment variable that holds the key."""
    key_file: Path | None = None
    """The file that holds the key."""
    keys: tuple[KeyRow, ...] = ()
    """Several keys, used in turn by their weights. No key at all = the provider wants none."""
    model: str | None = Field(default=None, min_length=1, max_length=200)
    """The provider's name of the model; a model's `backend_model` goes before it, its own name comes last."""
    timeout_s: float = Field(default=300, ge=1, le=86_400)
    """How long a request and its polling may take, seconds."""
    fetch_timeout_s: float = Field(default=30, ge=0.1, le=600)
    """How long a result's link may take to work, seconds."""
    idle_timeout_s: float = Field(default=120, ge=1, le=86_400)
    """How long a provider's stream may stand still, seconds (docs/relays.md)."""
    concurrency_max: int = Field(default=16, strict=True, ge=1, le=1000)
    """Requests at the provider at once at most."""
    queue_max: int = Field(default=256, strict=True, ge=0, le=100_000)
    """Requests that wait for that at most; beyond it clients get "busy"."""
    n_max: int = Field(default=10, strict=True, ge=1, le=16)
    """Images in one request to the provider at most; a task of more is split."""
    background: bool = False
    """Use the provider's asynchronous route and poll, where the dialect has one."""
    allow_hosts: tuple[str, ...] = ()
    """Hosts (`HOST` or `HOST:PORT`) that results' links may point to though they are not public."""
    rehost: bool = True
    """Fetch, label and store the images; `false` passes the provider's links on (needs `labels = "provider"`)."""
    labels: Literal["ours", "provider"] = "ours"
    """Who puts the visible AI label on: `provider` = its own are kept, and ours is added only where its API has none."""
    extras: tuple[str, ...] = ()
    """Optional fields that the provider knows beyond the dialect's common ones (docs/relays.md)."""
    qualities: dict[str, str] = {}
    """The provider's word for a quality; `""` leaves the field out. A quality not here goes as it is."""

    @field_validator("dialect")
    @classmethod
    def _spoken(cls, value: str) -> str:
        if value not in CLIENTS:
            raise ValueError(f"this version does not speak {value} as a client")
        return value

    @_model_validator(mode="after")
    def _agrees(self) -> RelayRow:
        if sum((self.key_env is not None, self.key_file is not None, bool(self.keys))) > 1:
            raise ValueError("only one of key_env, key_file and keys may be set")
        if not self.rehost and self.labels != "provider":
            raise ValueError('rehost = false needs labels = "provider": nobody else can label them')
        try:
            self.client()
        except ValueError as error:
            raise ValueError(f"extras: {error}") from None
        return self

    @property
    def labelled(self) -> bool:
        """Its images come with the provider's visible label: its API has one, and is not asked to leave it off."""
        return self.labels == "provider" and self.dialect in LABELLING

    @property
    def host(self) -> str:
        """`HOST:PORT` of the base URL."""
        url = urlsplit(self.base_url)
        return (
            f"{url.netloc}:{443 if url.scheme == 'https' else 80}" if not url.port else url.netloc
        )

    def client(self) -> ClientDialect:
        """The dialect, as the provider speaks it. Raises ValueError for an extra it has not."""
        return client_of(self.dialect, frozenset(self.extras))

    def key_rows(self) -> tuple[tuple[str, KeyRow], ...]:
        """Each key's field and place."""
        if self.key_env is not None:
            return (("key_env", KeyRow(env=self.key_env)),)
        if self.key_file is not None:
            return (("key_file", KeyRow(file=self.key_file)),)
        return tuple((f"keys.{index}", row) for index, row in enumerate(self.keys))


def _kind(table: Any) -> str:
    names = table if isinstance(table, Mapping) else vars(table)
    return "dialect" if "dialect" in names else "family"


BackendRow = Annotated[
    Annotated[FamilyRow, Tag("family")] | Annotated[RelayRow, Tag("dialect")], Discriminator(_kind)
]
"""A table with `dialect` is a relay, any other a family."""
KINDS = ("family", "dialect")
"""The tags that pydantic puts into the place of an error."""


def read_keys(name: str, row: RelayRow, environ: Mapping[str, str]) -> list[tuple[str, int]]:
    """Every key of a relay and its weight. Raises SettingsError naming the field; the key is never told."""
    found: list[tuple[str, int]] = []
    for field, key in row.key_rows():
        where = f"catalog: backends.{name}.{field}"
        if key.env is not None:
            text = environ.get(key.env, "")
            place = f"the environment variable {key.env}"
        else:
            assert key.file is not None
            place = str(key.file)
            try:
                text = key.file.read_text("utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise SettingsError(f"{where}: cannot read {place}: {error}") from None
        text = text.strip()
        if not text:
            raise SettingsError(f"{where}: {place} is empty or not set")
        if not _KEY.fullmatch(text):
            raise SettingsError(f"{where}: {place} holds something that is no key")
        found.append((text, key.weight))
    return found
