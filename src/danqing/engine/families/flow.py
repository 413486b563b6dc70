"""What flow-matching transformer families share: noise, steps, guidance, previews, pixels. Knows torch, no one model.

A picture is a grid of tokens, 16 x 16 pixels each. Latents are kept as one row of 4 x channels a token, in float32
whatever the network computes in: 50 roundings to bfloat16 would add up.
"""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ParamSpec, Protocol, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from danqing.domain.task import Pixels
from danqing.engine.families.base import DeviceLost, preview_size
from danqing.engine.families.flow_edit import Canvas, make_canvas, rest
from danqing.engine.families.packing import Layout, Layouts
from danqing.engine.families.streams import Streams
from danqing.engine.messages import Job
from danqing.engine.samplers import Schedule

PIXELS_PER_TOKEN = 16
EMBEDDINGS_BYTES_MAX = 2**29
TABLES_BYTES_MAX = 2**30
"""Both are within memory.ROOM_BYTES, with as much for layouts and the runtime's own; the newest one is kept whatever its size."""
TABLE_STEPS_MAX = 128
"""A table of more steps than this is not kept."""
SEEDS = 2**63

_P = ParamSpec("_P")
_R = TypeVar("_R")


class Denoiser(Protocol):
    """A transformer that tells velocities. S segments: the guidance halves of B images of one grid."""

    device: torch.device

    def projects_like(self, other: Any) -> bool:
        """Whether `project` is the other's: texts are kept once for both."""
        ...

    def project(self, embedding: Tensor) -> Tensor:
        """A text's embedding, T x E -> the rows that the blocks take, T x D."""
        ...

    def modulations(self, timesteps: Sequence[float], width: int, height: int) -> Tensor:
        """All that the blocks need to know of time and size: one row a timestep."""
        ...

    def rope(self, grid: tuple[int, int], text_rows: int) -> tuple[Tensor, Tensor]:
        """(cos, sin), (text rows + tokens) x head width: the turns of a text's rows and then an image's."""
        ...

    def velocity(
        self, latents: Tensor, texts: Sequence[Tensor], layout: Layout, modulations: Tensor
    ) -> Tensor:
        """Latents, S x tokens x 4 channels, in the layout's order -> d latents / d noise level.

        `modulations`: one row of each image, B of them.
        """
        ...


class Pictures(Protocol):
    """A VAE as a family uses it: latents 1 x channels x h x w, pixels 1 x 3 x 8h x 8w in -1..1."""

    channels: int

    def decode(self, latents: Tensor) -> Tensor: ...
    def encode(self, pixels: Tensor) -> Tensor: ...


class TextReader(Protocol):
    """A text encoder with its tokenizer."""

    def __call__(self, prompt: str) -> Tensor:
        """Its embedding, T x E. Raises PromptTooLong."""
        ...

    def measure(self, prompt: str) -> tuple[int, int]:
        """(tokens, tokens at most). Any thread may ask."""
        ...


@dataclass(frozen=True, slots=True)
class Conditioning:
    """Projected texts, T x D each; None where there is no guidance."""

    text: Tensor
    negative: Tensor | None


@dataclass(slots=True, eq=False)
class FlowState:
    """One image in the making."""

    job: Job
    step: int
    grid: tuple[int, int]
    """Tokens down and across."""
    latents: Tensor
    """Tokens x 4 channels, float32."""
    schedule: Schedule
    table: Tensor | None
    """A row of modulation for each step; None where there are too many to keep."""
    texts: tuple[Tensor, ...]
    """The prompt's rows, and the negative prompt's with guidance."""
    velocity: Tensor | None = None
    """The last step's, for previews."""
    finite: bool = True
    canvas: Canvas | None = None
    """What an edit is laid on."""


def memory_error(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """A family's way to say that the device's memory was too small: MemoryError, with the memory given back; a device in error is DeviceLost."""

    @functools.wraps(function)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return function(*args, **kwargs)
        except torch.OutOfMemoryError as error:
            reason = str(error).split(". ")[0]
        except torch.AcceleratorError as error:  # the device's context is in error for good
            raise DeviceLost(str(error).splitlines()[0]) from error
        # Out of the handler, so that the traceback holds no tensors any more.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        raise MemoryError(reason)

    return wrapped


def grid_of(width: int, height: int) -> tuple[int, int]:
    """(tokens down, tokens across) that cover a picture."""
    return -(-height // PIXELS_PER_TOKEN), -(-width // PIXELS_PER_TOKEN)


def pack(latents: Tensor) -> Tensor:
    """Channels x h x w -> (h/2 x w/2) x (4 channels)."""
    channels, height, width = latents.shape
    cells = latents.reshape(channels, height // 2, 2, width // 2, 2)
    return cells.permute(1, 3, 0, 2, 4).reshape(height * width // 4, channels * 4)


def unpack(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """(rows x columns) x (4 channels) -> channels x 2 rows x 2 columns."""
    rows, columns = grid
    cells = tokens.reshape(rows, columns, -1, 2, 2)
    return cells.permute(2, 0, 3, 1, 4).reshape(-1, 2 * rows, 2 * columns)


def noise(seed: int, channels: int, grid: tuple[int, int]) -> Tensor:
    """Channels x 2 rows x 2 columns of a CPU generator: the same on every device. Any integer is a seed."""
    generator = torch.Generator("cpu").manual_seed(seed % SEEDS)
    return torch.randn((channels, 2 * grid[0], 2 * grid[1]), generator=generator)


class FlowFamily:
    """A Family (see base.py) but for what makes each model itself: `guided`, `schedule`, `combine`."""

    name = "flow"

    def __init__(self, denoiser: Denoiser, pictures: Pictures, read: TextReader) -> None:
        self.denoiser = denoiser
        self.adapted: dict[str, Denoiser] = {}
        """The denoiser with a LoRA each, by name. They share its weights."""
        self.pictures = pictures
        self._painting = threading.Lock()
        """Of `pictures`: an edit's reference is encoded while another image is decoded."""
        self.pixels_max: int | None = None
        self.overlaps = True
        """Let itself be called beside its steps."""
        self._streams = Streams(denoiser.device)
        self._read = read
        self._layouts = Layouts()
        self._embeddings: OrderedDict[tuple[str, str], Tensor] = OrderedDict()
        self._tables: OrderedDict[tuple[str, int, int, int], Tensor] = OrderedDict()
        self._projection: Tensor | None = None

    def guided(self, job: Job) -> bool:
        """Whether the job's steps have two halves."""
        raise NotImplementedError

    def schedule(self, steps: int, tokens: int, lora: str = "") -> Schedule:
        raise NotImplementedError

    def combine(self, wanted: Tensor, unwanted: Tensor, guidance: Tensor) -> Tensor:
        """Both halves' velocities, B x tokens x 4 channels in float32, and B x 1 x 1 scales -> the guided one."""
        raise NotImplementedError

    def batch_key(self, job: Job) -> Hashable:
        return (self.name, *grid_of(job.width, job.height), self.guided(job), job.lora)

    def _denoiser(self, lora: str) -> Denoiser:
        """Raises KeyError for a LoRA that the backend has not."""
        return self.adapted[lora] if lora else self.denoiser

    def measure(self, prompt: str) -> tuple[int, int]:
        return self._read.measure(prompt)

    def beside(self) -> AbstractContextManager[None] | None:
        return self._streams.beside() if self.overlaps else None

    @memory_error
    @torch.inference_mode()
    def encode(self, jobs: Sequence[Job]) -> list[Conditioning]:
        return [
            Conditioning(
                self._embedding(job.prompt, job.lora),
                self._embedding(job.negative_prompt, job.lora) if self.guided(job) else None,
            )
            for job in jobs
        ]

    @memory_error
    @torch.inference_mode()
    def start(self, job: Job, conditioning: Conditioning) -> FlowState:
        grid = grid_of(job.width, job.height)
        schedule = self.schedule(job.steps, grid[0] * grid[1], job.lora)
        latents = pack(noise(job.seed, self.pictures.channels, grid)).to(self.denoiser.device)
        texts = (conditioning.text,)
        if conditioning.negative is not None:
            texts += (conditioning.negative,)
        table = self._table(job, grid, schedule)
        canvas = None
        if job.reference is not None:
            with self._painting:
                canvas = make_canvas(job, grid, latents, self.pictures.encode, pack)
            skipped = job.steps - job.steps_drawn
            schedule = rest(schedule, skipped)
            table = None if table is None else table[skipped:]
            latents = canvas.noised(schedule.sigmas[0])
        return FlowState(job, 0, grid, latents, schedule, table, texts, canvas=canvas)

    @memory_error
    @torch.inference_mode()
    def step(self, states: Sequence[FlowState]) -> None:
        velocity = self._velocity(states)
        latents = torch.stack([state.latents for state in states])
        deltas = [s.schedule.sigmas[s.step + 1] - s.schedule.sigmas[s.step] for s in states]
        latents = latents + velocity.new_tensor(deltas).view(-1, 1, 1) * velocity
        for i, state in enumerate(states):
            if state.canvas is not None:
                level = state.schedule.sigmas[state.step + 1]
                latents[i] = state.canvas.put_back(latents[i], level)
        # The one wait for the device: a step's time is its work's, and a fault shows before a state has changed.
        finite = torch.isfinite(latents).flatten(1).all(1).tolist()
        for i, state in enumerate(states):
            state.latents, state.velocity, state.finite = latents[i], velocity[i], finite[i]
            state.step += 1
        self._streams.stepped()

    def is_finite(self, state: FlowState) -> bool:
        return state.finite

    @memory_error
    @torch.inference_mode()
    def preview(self, state: FlowState) -> Pixels:
        """The guess at the finished picture through a linear map of its latents, one colour for each 8 x 8 pixels."""
        clean = state.latents
        if state.velocity is not None:
            clean = clean - state.schedule.sigmas[state.step] * state.velocity
        if self._projection is None:
            with self._painting:
                self._projection = fit_projection(self.pictures, self.denoiser.device)
        latents = unpack(clean, state.grid).flatten(1)
        ones = torch.ones_like(latents[:1])
        rgb = (self._projection @ torch.cat([latents, ones])).unflatten(
            1, (2 * state.grid[0], 2 * state.grid[1])
        )
        rows, columns = -(-state.job.height // 8), -(-state.job.width // 8)
        small = Image.fromarray(to_pixels(rgb[:, :rows, :columns]))
        look = np.asarray(small.resize(preview_size(state.job), Image.Resampling.BICUBIC))
        return look if state.canvas is None else state.canvas.laid(look, state.job.strength)

    @memory_error
    @torch.inference_mode()
    def decode(self, states: Sequence[FlowState]) -> list[Pixels]:
        return [self._decoded(state) for state in states]

    def _decoded(self, state: FlowState) -> Pixels:
        with self._painting:
            rgb = self.pictures.decode(unpack(state.latents, state.grid)[None])[0]
        drawn = to_pixels(rgb)[: state.job.height, : state.job.width]
        return drawn if state.canvas is None else state.canvas.laid(drawn, state.job.strength)

    def _embedding(self, text: str, lora: str) -> Tensor:
        denoiser = self._denoiser(lora)
        key = (text, "" if denoiser.projects_like(self.denoiser) else lora)
        found = self._embeddings.get(key)
        if found is None:
            found = self._embeddings[key] = denoiser.project(self._read(text))
            _forget_oldest(self._embeddings, EMBEDDINGS_BYTES_MAX)
        self._embeddings.move_to_end(key)
        return found

    def _table(self, job: Job, grid: tuple[int, int], schedule: Schedule) -> Tensor | None:
        """Modulation depends on time and size alone: computed once for all steps and all images of a size."""
        if job.steps > TABLE_STEPS_MAX:
            return None
        key = (job.lora, job.steps, *grid)
        found = self._tables.get(key)
        if found is None:
            found = self._tables[key] = self._modulations(schedule.timesteps, grid, job.lora)
            _forget_oldest(self._tables, TABLES_BYTES_MAX)
        self._tables.move_to_end(key)
        return found

    def _modulations(self, timesteps: Sequence[float], grid: tuple[int, int], lora: str) -> Tensor:
        width, height = grid[1] * PIXELS_PER_TOKEN, grid[0] * PIXELS_PER_TOKEN
        return self._denoiser(lora).modulations(timesteps, width, height)

    def _row(self, state: FlowState) -> Tensor:
        if state.table is not None:
            return state.table[state.step]
        now = state.schedule.timesteps[state.step : state.step + 1]
        return self._modulations(now, state.grid, state.job.lora)[0]

    def _velocity(self, states: Sequence[FlowState]) -> Tensor:
        """B x tokens x 4 channels in float32, guided where a member's step is: all members' halves in one forward."""
        halves = [(i, text) for i, state in enumerate(states) for text in _texts(state)]
        order = sorted(range(len(halves)), key=lambda place: len(halves[place][1]))
        members = [halves[place][0] for place in order]
        texts = [halves[place][1] for place in order]
        grid = states[0].grid
        layout = self._layouts.get(
            grid,
            [len(text) for text in texts],
            members,
            lambda rows: self.denoiser.rope(grid, rows),
        )
        found = (
            self._denoiser(states[0].job.lora)
            .velocity(
                torch.stack([states[i].latents for i in members]),
                texts,
                layout,
                torch.stack([self._row(state) for state in states]),
            )
            .float()
        )
        back = torch.empty(len(order), dtype=torch.long)
        back[torch.tensor(order)] = torch.arange(len(order))
        found = found[back.to(found.device)]
        owners = [i for i, _ in halves]
        guided = [i for i in range(len(states)) if owners.count(i) == 2]
        if not guided:
            return found
        first = [owners.index(i) for i in range(len(states))]
        wanted, unwanted = [first[i] for i in guided], [first[i] + 1 for i in guided]
        guidance = found.new_tensor([states[i].job.guidance for i in guided]).view(-1, 1, 1)
        velocity = found[first]
        velocity[guided] = self.combine(found[wanted], found[unwanted], guidance)
        return velocity


def _texts(state: FlowState) -> tuple[Tensor, ...]:
    """What the next step reads: outside of the job's interval the prompt alone (Kynkäänniemi et al. 2024, arXiv:2404.07724)."""
    low, high = state.job.guidance_interval
    is_guided = low <= state.schedule.sigmas[state.step] <= high
    return state.texts if is_guided else state.texts[:1]


def _forget_oldest(kept: OrderedDict[Any, Tensor], bytes_max: int) -> None:
    """All but the newest go, the one unused for longest first, until the rest are within so many bytes."""
    held = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    while len(kept) > 1 and held > bytes_max:
        held -= kept.popitem(last=False)[1].untyped_storage().nbytes()


def to_pixels(rgb: Tensor) -> Pixels:
    """3 x H x W in -1..1 -> H x W x 3 uint8, on the CPU. Raises FloatingPointError for what is no number: it would come out black."""
    if not torch.isfinite(rgb).all():
        raise FloatingPointError("the picture's numbers are not finite")
    scaled = (rgb.float() / 2 + 0.5).clamp(0, 1) * 255
    return np.ascontiguousarray(scaled.round().to(torch.uint8).permute(1, 2, 0).cpu().numpy())


def fit_projection(pictures: Pictures, device: torch.device) -> Tensor:
    """3 x (channels + 1): the linear map, with a constant, from latents to the mean colour of their 8 x 8 pixels.

    Fitted to what the VAE makes of smooth random latents, so that it holds for any checkpoint.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    coarse = torch.randn((32, pictures.channels, 3, 3), generator=generator)
    smooth = F.interpolate(coarse, scale_factor=4, mode="bilinear").to(device)
    seen = torch.cat([pictures.decode(latents[None]).float() for latents in smooth])
    colours = F.avg_pool2d(seen, seen.shape[-1] // smooth.shape[-1])
    inputs = smooth.permute(0, 2, 3, 1).flatten(0, 2)
    inputs = torch.cat([inputs, torch.ones_like(inputs[:, :1])], 1)
    wanted = colours.permute(0, 2, 3, 1).flatten(0, 2)
    return torch.linalg.lstsq(inputs.cpu(), wanted.cpu()).solution.T.contiguous().to(device)


@functools.cache
def regional(function: Callable[..., Any], *, enabled: bool) -> Callable[..., Any]:
    """A part of a block, compiled once for all blocks and all numbers of rows."""
    if not enabled:
        return function
    options: dict[str, Any] = {"assert_indirect_indexing": False}
    return torch.compile(function, fullgraph=True, options=options)


def rows_vary(*tensors: Tensor) -> None:
    """Tell the compiler that the first dimension is no constant, lest it compile anew for each batch."""
    for tensor in tensors:
        torch._dynamo.maybe_mark_dynamic(tensor, 0)
