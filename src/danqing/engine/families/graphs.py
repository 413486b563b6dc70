"""A denoiser's whole call as one CUDA graph, for batches so small that launching kernels takes longer than they do.

A layout that comes back is captured once, on buffers that stay, and replayed from then on. Knows torch, no one model.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from danqing.engine.families.flow import Denoiser
from danqing.engine.families.packing import Layout

GRAPHS_MAX = 8
SEEN_MAX = 64
USES_BEFORE = 2
"""Calls of a layout that run as ever, and so build every plan and kernel, before it is captured."""

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Captured:
    graph: torch.cuda.CUDAGraph
    latents: Tensor
    text: Tensor
    modulations: Tensor
    velocity: Tensor
    layout: Layout
    """Held, since the graph reads its tensors and it is known by its identity."""


class Graphed:
    """A Denoiser around another one, the same but for how its velocity is launched."""

    def __init__(self, denoiser: Denoiser, *, rows_max: int) -> None:
        """`rows_max`: batches of more packed rows are launched as ever."""
        self._denoiser = denoiser
        self._rows_max = rows_max
        self._captured: OrderedDict[int, _Captured] = OrderedDict()
        self._seen: OrderedDict[int, tuple[Layout, int]] = OrderedDict()
        self._pool: tuple[int, int] | None = None
        self.device = denoiser.device
        self.fault: str | None = None
        """Why nothing is captured any more."""
        self.captures = 0

    def project(self, embedding: Tensor) -> Tensor:
        return self._denoiser.project(embedding)

    def modulations(self, timesteps: Sequence[float], width: int, height: int) -> Tensor:
        return self._denoiser.modulations(timesteps, width, height)

    def rope(self, grid: tuple[int, int], text_rows: int) -> tuple[Tensor, Tensor]:
        return self._denoiser.rope(grid, text_rows)

    def velocity(
        self, latents: Tensor, texts: Sequence[Tensor], layout: Layout, modulations: Tensor
    ) -> Tensor:
        if self.fault is not None or layout.total > self._rows_max:
            return self._denoiser.velocity(latents, texts, layout, modulations)
        key = id(layout)
        found = self._captured.get(key)
        if found is None:
            if self._uses(layout) <= USES_BEFORE:
                return self._denoiser.velocity(latents, texts, layout, modulations)
            try:
                found = self._captured[key] = self._capture(latents, texts, layout, modulations)
            except RuntimeError as error:  # also when the memory is too small: it goes on without
                self.fault = " ".join(str(error).split())[:300]
                log.warning("no more CUDA graphs: %s", self.fault)
                self._captured.clear()
                return self._denoiser.velocity(latents, texts, layout, modulations)
            self._seen.pop(key)
            if len(self._captured) > GRAPHS_MAX:
                self._captured.popitem(last=False)
        self._captured.move_to_end(key)
        found.latents.copy_(latents)
        torch.cat(list(texts), out=found.text)
        found.modulations.copy_(modulations)
        found.graph.replay()
        return found.velocity.clone()

    def _uses(self, layout: Layout) -> int:
        """How often a layout was asked for, this time included."""
        uses = self._seen.get(id(layout), (layout, 0))[1] + 1
        self._seen[id(layout)] = (layout, uses)
        self._seen.move_to_end(id(layout))
        if len(self._seen) > SEEN_MAX:
            self._seen.popitem(last=False)
        return uses

    def _capture(
        self, latents: Tensor, texts: Sequence[Tensor], layout: Layout, modulations: Tensor
    ) -> _Captured:
        """The graphs share one pool of memory: they never run at once, and each one's output is copied out."""
        latents, modulations, text = latents.clone(), modulations.clone(), torch.cat(list(texts))
        parts = text.split([len(part) for part in texts])
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            velocity = self._denoiser.velocity(latents, parts, layout, modulations)
        self.captures += 1
        return _Captured(graph, latents, text, modulations, velocity, layout)
