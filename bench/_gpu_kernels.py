"""How far each hand-written kernel is from its plain form, on random rows. Needs torch."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from danqing.engine.families.kernels import Kernels

PARTS = ("norm", "turn", "gelu")
Found = dict[str, list[Tensor]]


def difference(
    part: str, device: torch.device, dtype: torch.dtype, *, rows: int, heads: int, width: int
) -> float:
    """The largest relative error of one part, against the plain form in float32."""
    generator = torch.Generator(device).manual_seed(rows)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    size = heads * width
    index = torch.randint(0, 4, (rows,), generator=generator, device=device)
    order = torch.randperm(rows + 5, generator=generator, device=device)
    x, y, mods, fused = (
        random(rows, size),
        random(rows, size),
        random(4, 6, size),
        random(rows, 3 * size),
    )
    weights, angle = random(2, width), random(rows + 5, 1, width).float()
    matrix, bias = random(2 * size, size) / size**0.5, random(2 * size)

    def run(kernels: Kernels, kind: torch.dtype) -> list[Tensor]:
        if part == "norm":
            table = mods.to(kind)
            scale, shift = table[:, 4], table[:, 3]
            found: list[Tensor] = []
            for update in (None, (y.to(kind), table[:, 2])):
                found += kernels.norm_modulate(x.to(kind), update, scale, shift, index, 1e-5)
            return found
        if part == "gelu":
            return [kernels.gelu_linear(x.to(kind), matrix.to(kind), bias.to(kind))]
        # Rows that nothing is written to stay as they were; all others must be written.
        placed = torch.full((3, rows + 5, heads, width), 7.0, device=device, dtype=kind)
        half = angle[..., : width // 2].contiguous()
        kernels.turn_heads(
            fused.to(kind), placed, order[:rows], half.cos(), half.sin(), weights.to(kind), 1e-6
        )
        plain = torch.full((2, rows, heads, width), torch.nan, device=device, dtype=kind)
        whole = angle[:rows].contiguous()
        kernels.turn_heads(fused.to(kind), plain, None, whole.cos(), whole.sin(), None, 1e-5)
        return [placed, plain]

    with torch.inference_mode():
        by_hand = run(replace(Kernels(), **{part: True}), dtype)
        wanted = run(Kernels(), torch.float32)
    errors = [
        ((mine.float() - right).norm() / right.norm()).item()
        for mine, right in zip(by_hand, wanted, strict=True)
    ]
    return max(errors, key=lambda error: float("inf") if error != error else error)


def timed_ms(part: str, device: torch.device, *, rows: int, heads: int, width: int) -> list[float]:
    """Milliseconds of one call by hand and in plain torch: medians of ten, in bfloat16, on rows larger than the cache."""
    size = heads * width
    x, y, mods, fused = (
        torch.randn(shape, device=device).bfloat16()
        for shape in ((rows, size), (rows, size), (4, 6, size), (rows, 3 * size))
    )
    index = torch.arange(rows, device=device) % 4
    out = torch.empty((3, rows, heads, width), device=device, dtype=torch.bfloat16)
    order = torch.randperm(rows, device=device)
    half = torch.randn((rows, 1, width // 2), device=device)
    weights = torch.randn((2, width), device=device).bfloat16()
    matrix, bias = (
        torch.randn((4 * size, size), device=device).bfloat16(),
        mods.flatten()[: 4 * size],
    )
    times: list[float] = []
    for kernels in (replace(Kernels(), **{part: True}), Kernels()):

        def call(kernels: Kernels = kernels) -> object:
            if part == "norm":
                return kernels.norm_modulate(
                    x, (y, mods[:, 2]), mods[:, 4], mods[:, 3], index, 1e-5
                )
            if part == "turn":
                return kernels.turn_heads(fused, out, order, half, half, weights, 1e-6)
            return kernels.gelu_linear(x, matrix, bias)

        spans: list[float] = []
        with torch.inference_mode():
            for _ in range(13):
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                call()
                end.record()
                end.synchronize()
                spans.append(start.elapsed_time(end))
        times.append(round(sorted(spans[3:])[5], 4))
    return times
