"""Texts and images of unequal lengths in one forward without a pad: rows laid end to end. Knows torch, no model.

A segment is one guidance half of one image: its text's rows, then its image's rows. Everything but attention works
row by row, so it sees one long matrix; attention is run for segments of one length together, over their own rows only.
No row is added and no mask is needed, so a picture is what it is alone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

LAYOUTS_MAX = 16

Attention = Literal["auto", "flash"]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the rows of S segments stand. Segments are in order of text length."""

    lengths: tuple[int, ...]
    """Text rows of each segment, ascending."""
    image_rows: int
    """Rows of each image, the same for all."""
    groups: tuple[tuple[int, int], ...]
    """(segments, rows of each) for each run of segments of one length."""
    order: Tensor
    """N: packed row -> its row in cat(texts, images)."""
    texts: Tensor
    """Packed rows of all texts, as cat(texts) has them."""
    images: Tensor
    """Packed rows of all images, as cat(images) has them."""
    rows: Tensor
    """N: packed row -> its row of modulation: 2 x member for an image, 2 x member + 1 for a text."""
    cos: Tensor
    """N x 1 x head width, float32."""
    sin: Tensor

    @property
    def total(self) -> int:
        """N, all rows."""
        return sum(self.lengths) + self.image_rows * len(self.lengths)


def make_layout(
    lengths: Sequence[int], members: Sequence[int], rope: Callable[[int], tuple[Tensor, Tensor]]
) -> Layout:
    """Lay out segments. `lengths` ascending; `members`: which image each segment is a half of.

    `rope(n)` gives (cos, sin), each (n + image rows) x head width, for n text rows and then the image's.
    """
    tables = {length: rope(length) for length in set(lengths)}
    device = tables[lengths[0]][0].device
    image_rows = tables[lengths[0]][0].shape[0] - lengths[0]
    order: list[Tensor] = []
    rows: list[Tensor] = []
    is_text: list[Tensor] = []
    text_at, image_at = 0, sum(lengths)
    for length, member in zip(lengths, members, strict=True):
        order += [torch.arange(text_at, text_at + length)]
        order += [torch.arange(image_at, image_at + image_rows)]
        rows += [torch.full((length,), 2 * member + 1), torch.full((image_rows,), 2 * member)]
        is_text += [torch.ones(length, dtype=torch.bool), torch.zeros(image_rows, dtype=torch.bool)]
        text_at, image_at = text_at + length, image_at + image_rows
    groups: list[tuple[int, int]] = []
    for length in sorted(set(lengths)):
        groups.append((lengths.count(length), length + image_rows))
    texts = torch.cat(is_text)
    return Layout(
        lengths=tuple(lengths),
        image_rows=image_rows,
        groups=tuple(groups),
        order=torch.cat(order).to(device),
        texts=texts.nonzero().flatten().to(device),
        images=(~texts).nonzero().flatten().to(device),
        rows=torch.cat(rows).to(device),
        cos=torch.cat([tables[length][0] for length in lengths]).unsqueeze(1),
        sin=torch.cat([tables[length][1] for length in lengths]).unsqueeze(1),
    )


class Layouts:
    """The layouts used last, by what makes them: steps of one batch use the same."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[object, ...], Layout] = OrderedDict()

    def get(
        self,
        grid: tuple[int, int],
        lengths: Sequence[int],
        members: Sequence[int],
        rope: Callable[[int], tuple[Tensor, Tensor]],
    ) -> Layout:
        key = (grid, tuple(lengths), tuple(members))
        found = self._kept.get(key)
        if found is None:
            found = self._kept[key] = make_layout(lengths, members, rope)
            if len(self._kept) > LAYOUTS_MAX:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return found


def backends(attention: Attention, device: torch.device) -> list[SDPBackend]:
    """The attention kernels to use, the first that can do it; "auto" has cuDNN's first on a GPU."""
    found = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    if attention == "auto" and device.type == "cuda":
        found.insert(0, SDPBackend.CUDNN_ATTENTION)
    return found


def attend(
    query: Tensor, key: Tensor, value: Tensor, groups: Sequence[tuple[int, int]],
    kernels: list[SDPBackend],
) -> Tensor:  # fmt: skip
    """Each segment's rows look at that segment's rows. N x heads x width each -> N x (heads x width)."""
    start = 0
    parts: list[Tensor] = []
    with sdpa_kernel(kernels, set_priority=True):
        for count, rows in groups:
            part = slice(start, start + count * rows)
            heads = (
                x[part].unflatten(0, (count, rows)).transpose(1, 2) for x in (query, key, value)
            )
            found = F.scaled_dot_product_attention(*heads)
            parts.append(found.transpose(1, 2).flatten(2).flatten(0, 1))
            start = part.stop
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def joined(parts: Sequence[Tensor]) -> Tensor:
    """torch.cat; or, where the parts already lie end to end in one storage, the view that covers them: no copy."""
    first, at = parts[0], parts[0].storage_offset()
    for part in parts:
        if not part.is_contiguous() or (part.untyped_storage().data_ptr(), part.storage_offset()) != (
            first.untyped_storage().data_ptr(), at,
        ):  # fmt: skip
            return torch.cat(list(parts))
        at += part.numel()
    rows = sum(len(part) for part in parts)
    return first.as_strided((rows, *first.shape[1:]), first.stride(), first.storage_offset())


def layer_norm(x: Tensor, eps: float) -> Tensor:
    """Over the last dimension, without weights."""
    return F.layer_norm(x, x.shape[-1:], eps=eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Over the last dimension, in float32 inside."""
    variance = x.float().pow(2).mean(-1, keepdim=True)
    return (x * torch.rsqrt(variance + eps)).to(weight.dtype) * weight


def modulate(x: Tensor, scale: Tensor, shift: Tensor, rows: Tensor) -> Tensor:
    """x (1 + scale) + shift, each row by its own row of the tables."""
    return x * (1 + scale[rows]) + shift[rows]
