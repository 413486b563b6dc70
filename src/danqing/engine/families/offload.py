"""A network's blocks that stay in main memory and come to the device one after the other. Knows torch, no model.

While one block computes the next one is on its way, in a stream of its own, into one of two places that are used in turn.
So the device holds two blocks and not all, and their addresses stay the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PLACES = 2
ALIGNED = 128
"""Numbers at a multiple of which each tensor of a block begins."""

_T = TypeVar("_T")


class _Place:
    """Where a block is on the device: one long tensor, and the block as views of it."""

    def __init__(self, like: Any, device: torch.device) -> None:
        first = next(_tensors(like))
        self.flat = torch.empty(_length(like), dtype=first.dtype, device=device)
        self.block = _views(like, self.flat)
        is_cuda = device.type == "cuda"
        self.ready = torch.cuda.Event() if is_cuda else None
        self.free = torch.cuda.Event() if is_cuda else None


class Carried(Generic[_T]):
    """Blocks of one kind, each on the device while it is the one iterated.

    One iteration at a time, and by the thread that steps.
    """

    def __init__(
        self, blocks: list[_T], modules: Sequence[nn.Module], device: torch.device
    ) -> None:
        """`blocks`: nested tuples of tensors, of the same shapes and precision in each; the list is emptied, and `modules`,
        whose tensors they are, let go of them: so that they are in memory once."""
        self._device = device
        self._is_cuda = device.type == "cuda"
        self._places = [_Place(blocks[0], device) for _ in range(PLACES)]
        self._stream = torch.cuda.Stream(device) if self._is_cuda else None
        self._blocks: list[Tensor] = []
        for module in modules:
            block = blocks.pop(0)
            self._blocks.append(self._kept(block))
            _let_go(module, block)

    def __len__(self) -> int:
        return len(self._blocks)

    def __iter__(self) -> Iterator[_T]:
        self._bring(0)
        for index in range(len(self._blocks)):
            if index + 1 < len(self._blocks):
                self._bring(index + 1)
            place = self._places[index % PLACES]
            if place.ready is not None:
                torch.cuda.current_stream(self._device).wait_event(place.ready)
            try:
                yield place.block
            finally:
                if place.free is not None:
                    place.free.record(torch.cuda.current_stream(self._device))

    def _bring(self, index: int) -> None:
        """After whatever still reads what is there."""
        place, flat = self._places[index % PLACES], self._blocks[index]
        if self._stream is None or place.free is None or place.ready is None:
            place.flat.copy_(flat)
            return
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(place.free)
            place.flat.copy_(flat, non_blocking=True)
            place.ready.record(self._stream)

    def _kept(self, block: _T) -> Tensor:
        """In one piece, which a device can fetch by itself."""
        first = next(_tensors(block))
        flat = torch.empty(_length(block), dtype=first.dtype, pin_memory=self._is_cuda)
        for there, here in zip(_tensors(_views(block, flat)), _tensors(block), strict=True):
            there.copy_(here)
        return flat


def linear(module: Any, x: Tensor) -> Tensor:
    """A linear module over x, on x's device wherever the module is."""
    bias = None if module.bias is None else module.bias.to(x.device)
    return F.linear(x, module.weight.to(x.device), bias)


def _tensors(block: Any) -> Iterator[Tensor]:
    if isinstance(block, Tensor):
        yield block
    else:
        for part in block:
            yield from _tensors(part)


def _length(block: Any) -> int:
    return sum(-(-tensor.numel() // ALIGNED) * ALIGNED for tensor in _tensors(block))


def _views(like: Any, flat: Tensor) -> Any:
    """The block of which `flat` has the numbers, tensor by tensor."""
    at = 0

    def view(part: Any) -> Any:
        nonlocal at
        if not isinstance(part, Tensor):
            return tuple(map(view, part))
        start, at = at, at + -(-part.numel() // ALIGNED) * ALIGNED
        return flat[start : start + part.numel()].view(part.shape)

    return view(like)


def _let_go(module: nn.Module, block: Any) -> None:
    held = {tensor.untyped_storage().data_ptr() for tensor in _tensors(block)}
    for parameter in module.parameters():
        if parameter.untyped_storage().data_ptr() in held:
            parameter.data = parameter.data.new_empty(0)
