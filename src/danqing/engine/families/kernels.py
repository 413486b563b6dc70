"""Row-wise parts of a transformer block in one pass each: residual + norm + modulation, and query-key norm + rope.

Written in Triton, for a GPU; each has a plain version in torch beside it, which says what it computes and runs
everywhere else. Off unless a denoiser is given a `Kernels`. Knows torch and the packed rows, no one model.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

try:
    import triton  # pyright: ignore[reportMissingImports]
    import triton.language as tl  # pyright: ignore[reportMissingImports]
except ImportError:  # torch for a CPU comes without it
    triton = tl = None

WARPS = 8
Pair = tuple[Tensor, Tensor]
"""A weight and its bias; or two tables."""


@dataclass(frozen=True, slots=True)
class Kernels:
    """Which parts run as written by hand; the others run as plain torch."""

    norm: bool = False
    turn: bool = False
    gelu: bool = False

    def norm_modulate(
        self, x: Tensor, update: Pair | None, scale: Tensor, shift: Tensor,
        rows: Tensor, eps: float,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """x, N x D, with its update (y, gate) added: x + y gate; and that, normed over D and modulated.

        `gate`, `scale`, `shift`: tables, R x D; `rows`, N: each row's row of them.
        """
        if self.norm:
            return _norm_modulate(x, update, scale, shift, rows, eps)
        if update is not None:
            x = x + update[0] * update[1][rows]
        normed = F.layer_norm(x, x.shape[-1:], eps=eps)
        return x, normed * (1 + scale[rows]) + shift[rows]

    def turn_heads(
        self, fused: Tensor, out: Tensor, where: Tensor | None, cos: Tensor, sin: Tensor,
        weights: Tensor | None, eps: float,
    ) -> None:  # fmt: skip
        """Split n rows of query-key-value, n x (3 heads width), into `out`: norm and turn query and key, copy the value.

        `out`: (2 or 3) x N x heads x width, 2 where no value is wanted; row i goes to row `where[i]`, or to row i.
        With `weights`, 2 x width, the norm is RMS and neighbours turn together; without, it is a layer norm and a
        head's halves do. `cos`, `sin`: N x 1 x (width / 2 or width), of the rows of `out`, float32.
        """
        if self.turn:
            _turn_heads(fused, out, where, cos, sin, weights, eps)
            return
        parts, _, heads, width = out.shape
        split = fused.unflatten(-1, (3, heads, width))
        place = slice(None) if where is None else where
        cos, sin = cos[place], sin[place]
        for part in range(2):
            x = split[:, part].float()
            if weights is None:
                x = F.layer_norm(x, x.shape[-1:], eps=eps)
                turned = torch.cat([-x[..., width // 2 :], x[..., : width // 2]], -1)
                out[part, place] = (x * cos + turned * sin).to(out.dtype)
            else:
                x = F.rms_norm(x, x.shape[-1:], weights[part].float(), eps=eps)
                real, imaginary = x.unflatten(-1, (-1, 2)).unbind(-1)
                turned = torch.stack(
                    (real * cos - imaginary * sin, real * sin + imaginary * cos), -1
                )
                out[part, place] = turned.flatten(-2).to(out.dtype)
        if parts == 3:
            out[2, place] = split[:, 2]

    def gelu_linear(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """tanh-GELU of a linear layer; by hand: in the matrix product's own epilogue, which on a GPU is that form."""
        if self.gelu:
            return torch._addmm_activation(bias, x, weight.t(), use_gelu=True)
        return F.gelu(F.linear(x, weight, bias), approximate="tanh")

    def finish(
        self, x: Tensor, seen: Tensor, mods: Tensor, opening: Pair, rows: Tensor,
        linears: tuple[Pair, Pair, Pair], eps: float,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """A block after attention: what the rows saw, then the feed-forward half -> x, and x as what follows takes it.

        `mods`: R x 6 x D, shift, scale, gate of attention and of feed-forward; `opening`: scale, shift of what follows.
        """
        out, up, down = linears
        update = F.linear(seen, *out), mods[:, 2]
        x, normed = self.norm_modulate(x, update, mods[:, 4], mods[:, 3], rows, eps)
        update = F.linear(self.gelu_linear(normed, *up), *down), mods[:, 5]
        return self.norm_modulate(x, update, *opening, rows, eps)


@cache
def _compiled() -> tuple[Any, Any]:
    """The two kernels. Raises RuntimeError without Triton."""
    if triton is None:
        raise RuntimeError("Triton is not installed")
    return triton.jit(_norm_modulate_kernel), triton.jit(_turn_heads_kernel)


def _power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _norm_modulate(
    x: Tensor, update: Pair | None, scale: Tensor, shift: Tensor, rows: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    count, width = x.shape
    x = x.contiguous()
    y, gate = update or (x, scale)
    y = y.contiguous()
    summed = x if update is None else torch.empty_like(x)
    normed = torch.empty_like(x)
    assert y.shape == x.shape
    assert all(table.stride(-1) == 1 for table in (gate, scale, shift))
    assert scale.stride(0) == shift.stride(0)
    _compiled()[0][(count,)](
        x, y, gate, scale, shift, rows, summed, normed, gate.stride(0), scale.stride(0), eps,
        WIDTH=width, BLOCK=_power_of_2(width), ADD=update is not None, num_warps=WARPS,
    )  # fmt: skip
    return summed, normed


def _turn_heads(
    fused: Tensor, out: Tensor, where: Tensor | None, cos: Tensor, sin: Tensor,
    weights: Tensor | None, eps: float,
) -> None:  # fmt: skip
    parts, total, heads, width = out.shape
    assert fused.shape[1] == 3 * heads * width
    assert all(tensor.is_contiguous() for tensor in (fused, out, cos, sin))
    _compiled()[1][(fused.shape[0], parts)](
        fused, out, fused if where is None else where, cos, sin,
        fused if weights is None else weights, total, eps,
        HEADS=heads, BLOCK=_power_of_2(heads), WIDTH=width, PLACED=where is not None,
        NEIGHBOURS=weights is not None, num_warps=WARPS,
    )  # fmt: skip


def _norm_modulate_kernel(
    x, y, gate, scale, shift, rows, summed, normed, gate_step, table_step, eps,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """One row a program, held in registers."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    at = row * WIDTH + column
    table = tl.load(rows + row)
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        opened = tl.load(gate + table * gate_step + column, mask=inside, other=0.0).to(tl.float32)
        value += tl.load(y + at, mask=inside, other=0.0).to(tl.float32) * opened
        kept = value.to(summed.dtype.element_ty)
        tl.store(summed + at, kept, mask=inside)
        value = kept.to(tl.float32)
    mean = tl.sum(value, 0) / WIDTH
    centred = tl.where(inside, value - mean, 0.0)
    deviation = tl.sqrt(tl.sum(centred * centred, 0) / WIDTH + eps)
    factor = tl.load(scale + table * table_step + column, mask=inside, other=0.0).to(tl.float32)
    offset = tl.load(shift + table * table_step + column, mask=inside, other=0.0).to(tl.float32)
    found = centred / deviation * (1 + factor) + offset
    tl.store(normed + at, found.to(normed.dtype.element_ty), mask=inside)


def _turn_heads_kernel(
    fused, out, where, cos, sin, weights, total, eps,
    HEADS: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr, PLACED: tl.constexpr,
    NEIGHBOURS: tl.constexpr,
):  # fmt: skip
    """One row's query, key or value a program: heads x width."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    place = row
    if PLACED:
        place = tl.load(where + row)
    HALF: tl.constexpr = WIDTH // 2
    head = tl.arange(0, BLOCK)[:, None]
    source = fused + (row * 3 + part) * (HEADS * WIDTH) + head * WIDTH
    target = out + (part * total + place) * (HEADS * WIDTH) + head * WIDTH
    whole = tl.arange(0, WIDTH)[None, :]
    half = tl.arange(0, HALF)[None, :]
    inside = head < HEADS
    if part == 2:
        tl.store(target + whole, tl.load(source + whole, mask=inside), mask=inside)
    else:
        if NEIGHBOURS:
            both = tl.load(source + whole, mask=inside, other=0.0).to(tl.float32)
            weight = tl.load(weights + part * WIDTH + whole).to(tl.float32)
            square = tl.sum(both * both, 1)[:, None] / WIDTH
            both = both / tl.sqrt(square + eps) * weight
            real, imaginary = tl.split(tl.reshape(both, [BLOCK, HALF, 2]))
            c = tl.load(cos + place * HALF + half)
            s = tl.load(sin + place * HALF + half)
            turned = tl.interleave(real * c - imaginary * s, real * s + imaginary * c)
            tl.store(target + whole, turned.to(out.dtype.element_ty), mask=inside)
        else:
            first = tl.load(source + half, mask=inside, other=0.0).to(tl.float32)
            second = tl.load(source + HALF + half, mask=inside, other=0.0).to(tl.float32)
            mean = (tl.sum(first, 1) + tl.sum(second, 1))[:, None] / WIDTH
            first -= mean
            second -= mean
            square = (tl.sum(first * first, 1) + tl.sum(second * second, 1))[:, None] / WIDTH
            deviation = tl.sqrt(square + eps)
            first /= deviation
            second /= deviation
            c1 = tl.load(cos + place * WIDTH + half)
            s1 = tl.load(sin + place * WIDTH + half)
            c2 = tl.load(cos + place * WIDTH + HALF + half)
            s2 = tl.load(sin + place * WIDTH + HALF + half)
            element = out.dtype.element_ty
            tl.store(target + half, (first * c1 - second * s1).to(element), mask=inside)
            tl.store(target + HALF + half, (second * c2 + first * s2).to(element), mask=inside)
