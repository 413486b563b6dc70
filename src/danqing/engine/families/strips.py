"""Decodes large pictures strip by strip, and exactly. Knows torch and the two VAEs' decoders of diffusers, no family.

Tiles that are decoded apart differ at their seams, for group norms and attention look at the whole picture. Here each layer
looks at the whole before the next one begins: attention runs at the latents' size, where it is cheap, a norm's
numbers are taken of all rows, and only what looks at neighbouring rows (a convolution, with the norm and the activation before
it) goes by strips. So nothing differs but the order of sums, and beside what goes in and out of a layer only a strip is held.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIP_CELLS = 2**16
"""Rows x columns of a strip, about."""

LOOKS_MAX = 2**26
"""Pairs of cells that look at each other at once."""

Pointwise = Callable[[Tensor], Tensor]
"""Channels x rows x columns of any rows -> the same of these rows."""


def decode(decoder: Any, latents: Tensor, cells: int = STRIP_CELLS) -> Tensor:
    """What `decoder(latents)` gives, an AutoencoderKL's or a folded AutoencoderKLQwenImage's. 1 x channels x h x w."""
    x = _conv(latents[0], decoder.conv_in, cells)
    x = _middle(decoder.mid_block, x, cells)
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            x = _resnet(resnet, x, cells)
        if block.upsamplers is not None:
            x = _conv(x, _upsampling(block.upsamplers[0]), cells, up=True)
    norm = getattr(decoder, "conv_norm_out", None) or decoder.norm_out
    return _conv(x, decoder.conv_out, cells, _activated(norm, x, cells))[None]


def _middle(block: Any, x: Tensor, cells: int) -> Tensor:
    x = _resnet(block.resnets[0], x, cells)
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        if hasattr(attention, "to_qkv"):
            x = _attention(attention, x)
        elif attention is not None:
            x = attention(x[None])[0]
        x = _resnet(resnet, x, cells)
    return x


def _attention(block: Any, x: Tensor) -> Tensor:
    """Qwen's: every cell looks at all. Some cells at a time, for not every kernel spares the table of who looks at whom."""
    channels, height, width = x.shape
    fused = F.conv2d(block.norm(x[None]), block.to_qkv.weight, block.to_qkv.bias)
    query, key, value = fused[0].flatten(1).T.contiguous()[None, None].chunk(3, -1)
    seen = [
        F.scaled_dot_product_attention(part, key, value)
        for part in query.split(max(1, LOOKS_MAX // (height * width)), 2)
    ]
    out = torch.cat(seen, 2)[0, 0].T.reshape(1, channels, height, width)
    return x + F.conv2d(out, block.proj.weight, block.proj.bias)[0]


def _upsampling(module: Any) -> Any:
    """The convolution after neighbours were doubled."""
    return module.conv if hasattr(module, "conv") else module.resample[1]


def _resnet(block: Any, x: Tensor, cells: int) -> Tensor:
    """x + conv2(act(norm2(conv1(act(norm1(x)))))), into x where the channels are as many."""
    hidden = _conv(x, block.conv1, cells, _activated(block.norm1, x, cells))
    before = _activated(block.norm2, hidden, cells)
    shortcut = block.conv_shortcut
    if shortcut is None or isinstance(shortcut, nn.Identity):
        return _conv(hidden, block.conv2, cells, before, onto=x)
    onto = _conv(x, shortcut, cells)
    del x
    return _conv(hidden, block.conv2, cells, before, onto=onto)


def _conv(
    x: Tensor, conv: Any, cells: int, before: Pointwise | None = None, *, up: bool = False,
    onto: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """A convolution of 1 x 1 or 3 x 3 with zeros around. `up`: every cell doubled first. `onto`: added to it, in place."""
    times = 2 if up else 1
    height, width = x.shape[1:]
    reach = conv.weight.shape[-1] // 2
    out = onto
    for top, bottom in _strips(height, width * times * times, cells):
        piece = x[:, max(0, top - reach) : bottom + reach]
        if before is not None:
            piece = before(piece)
        if up:
            piece = F.interpolate(piece[None], scale_factor=2.0, mode="nearest")[0]
            cut = (times - 1) * reach  # a doubled neighbour is one row too many
            piece = piece[:, cut if top else 0 : piece.shape[1] - (cut if bottom < height else 0)]
        edges = (reach if top == 0 else 0, reach if bottom == height else 0)
        found = F.conv2d(F.pad(piece, (reach, reach, *edges))[None], conv.weight, conv.bias)[0]
        if out is None:
            out = found.new_empty((found.shape[0], height * times, width * times))
        rows = out[:, top * times : bottom * times]
        rows.copy_(found if onto is None else rows + found)
    assert out is not None
    return out


def _strips(height: int, width: int, cells: int) -> list[tuple[int, int]]:
    rows = max(1, cells // width)
    return [(top, min(top + rows, height)) for top in range(0, height, rows)]


def _activated(norm: Any, x: Tensor, cells: int) -> Pointwise:
    """SiLU of a norm of `x`, whose numbers are taken of all its rows now."""
    if not isinstance(norm, nn.GroupNorm):  # Qwen's: of each cell's channels
        gamma, scale, dtype = norm.gamma.reshape(-1, 1, 1), norm.scale, x.dtype
        return lambda piece: F.silu(F.normalize(piece.float(), dim=0).to(dtype) * scale * gamma)
    factor, shift = _group_norm(norm, x, cells)
    return lambda piece: F.silu((piece.float() * factor + shift).to(x.dtype))


def _group_norm(norm: nn.GroupNorm, x: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """A group norm of x as a factor and a shift for each channel, each channels x 1 x 1. Two passes, in float32."""
    channels, height, width = x.shape
    each = channels // norm.num_groups
    count = each * height * width
    strips = _strips(height, width, cells)

    def mean(of: Callable[[Tensor], Tensor]) -> Tensor:
        """Over a group, as channels x 1 x 1."""
        sums = x.new_zeros(norm.num_groups, dtype=torch.float64)
        for top, bottom in strips:
            sums += of(x[:, top:bottom].float()).reshape(norm.num_groups, -1).sum(1)
        return (sums / count).float().repeat_interleave(each).view(channels, 1, 1)

    middle = mean(lambda piece: piece)
    spread = mean(lambda piece: (piece - middle).square_())
    factor = torch.rsqrt(spread + norm.eps) * norm.weight.float().view(-1, 1, 1)
    return factor, norm.bias.float().view(-1, 1, 1) - middle * factor
