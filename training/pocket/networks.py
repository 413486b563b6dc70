"""The networks of pocket in torch: codec (encoder, decoder) and denoiser. Knows no data and no training.

The text network is in text_network.py; both sides' shapes meet only in export.py.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LATENT_CHANNELS = 96
CELL_PX = 32
CODE_WIDTH = 128  # numbers in a row of the codebook of things
GROUND_WIDTH = 64  # and of grounds
AIR_WIDTH = 48  # and of airs
PATCH_PX = 16  # a cell at half size: what the latents describe linearly


class Basis(nn.Module):
    """Principal components of half-size cells: the fixed linear part of the codec.

    It is fitted in closed form in seconds, so the denoiser can train before any decoder exists.
    Channels are scaled by the root of their spread: fine detail counts, but less than shape.
    """

    def __init__(self) -> None:
        super().__init__()
        values = PATCH_PX * PATCH_PX * 3
        self.mean: Tensor
        self.analysis: Tensor
        self.synthesis: Tensor
        self.register_buffer("mean", torch.zeros(values))
        self.register_buffer("analysis", torch.zeros(LATENT_CHANNELS, values))
        self.register_buffer("synthesis", torch.zeros(values, LATENT_CHANNELS))

    @torch.no_grad()
    def fit(self, pictures: list[Tensor]) -> None:
        """pictures: (3, h, w) in -1..1 at full size."""
        cells = torch.cat([self._cells(p[None])[0].flatten(1).T for p in pictures]).double()
        self.mean.copy_(cells.mean(0))
        centred = cells - cells.mean(0)
        spread, axes = torch.linalg.eigh(centred.T @ centred / len(cells))
        axes = axes.flip(1)[:, :LATENT_CHANNELS]
        sigma = spread.flip(0)[:LATENT_CHANNELS].clamp_min(1e-8).sqrt()
        scale = (sigma / sigma.mean()).sqrt() / sigma  # makes the mean square 1
        self.analysis.copy_((axes * scale).T)
        self.synthesis.copy_(axes / scale)

    @staticmethod
    def _cells(x: Tensor) -> Tensor:
        return F.pixel_unshuffle(F.avg_pool2d(x, 2), PATCH_PX)

    def encode(self, x: Tensor) -> Tensor:
        """(b, 3, rows*32, columns*32) in -1..1 -> (b, channels, rows, columns)."""
        weight = self.analysis[:, :, None, None]
        return F.conv2d(self._cells(x), weight, -(self.analysis @ self.mean))

    def decode(self, z: Tensor) -> Tensor:
        """The linear picture, at half size."""
        return F.pixel_shuffle(F.conv2d(z, self.synthesis[:, :, None, None], self.mean), PATCH_PX)


class ResidualConv(nn.Module):
    """x + conv(silu(conv(silu(x)))), starting as the identity so that no norm is needed."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(F.silu(x))))


class Upsample(nn.Module):
    """Twice the size by nearest neighbour, then a convolution that overlaps the old borders."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(into, out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Decoder(nn.Module):
    """Latents -> RGB in -1..1 at 32 px a cell: the linear picture, sharpened by convolutions.

    The convolutions overlap, so cells leave no borders.
    """

    def __init__(self, basis: Basis) -> None:
        super().__init__()
        self.basis = basis
        self.deep = nn.Sequential(
            nn.Conv2d(LATENT_CHANNELS, 192, 3, padding=1), ResidualConv(192),
            Upsample(192, 128), ResidualConv(128),
            Upsample(128, 64), ResidualConv(64),
        )  # fmt: skip
        self.shallow = nn.Conv2d(12, 48, 3, padding=1)
        self.fine = nn.Sequential(
            Upsample(64, 48), ResidualConv(48), nn.SiLU(), nn.Conv2d(48, 48, 3, padding=1)
        )
        self.join = nn.Sequential(nn.Conv2d(96, 48, 1), ResidualConv(48), nn.SiLU())
        self.leave = nn.Conv2d(48, 48, 3, padding=1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, z: Tensor) -> Tensor:
        linear = self.basis.decode(z)
        detail = self.fine(self.deep(z))
        local = self.shallow(F.pixel_unshuffle(linear, 2))
        sharp = self.leave(self.join(torch.cat([detail, local], dim=1)))
        base = F.interpolate(linear, scale_factor=2.0, mode="bilinear", align_corners=False)
        return base + F.pixel_shuffle(sharp, 4)


def timestep_features(t: Tensor, width: int) -> Tensor:
    """Sines and cosines of the noise level t in 0..1."""
    rates = torch.exp(
        torch.arange(width // 2, device=t.device) * (-math.log(1000.0) / (width // 2))
    )
    angles = t[:, None] * 250.0 * rates[None, :]
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def position_features(positions: Tensor, width: int) -> Tensor:
    """(cells, 4) distances from the four edges -> sines and cosines that work for any grid."""
    eighth = width // 8
    rates = torch.exp(torch.arange(eighth, device=positions.device) * (-math.log(30.0) / eighth))
    angles = (positions[:, :, None] * rates).flatten(1) * 1.5
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class Block(nn.Module):
    """Attention and MLP, both scaled, shifted and gated by the condition (adaLN-zero)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        b, n, width = x.shape
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)[:, None, :].chunk(
            6, dim=2
        )
        qkv = self.qkv(self.norm1(x) * (1 + scale1) + shift1)
        q, k, v = qkv.view(b, n, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, width)
        x = x + gate1 * self.out(mixed)
        hidden = F.gelu(self.up(self.norm2(x) * (1 + scale2) + shift2), approximate="tanh")
        return x + gate2 * self.down(hidden)


class Denoiser(nn.Module):
    """Noisy latents + a plan -> clean latents (x0), one token a cell.

    Looks live in three codebooks: one row for every (thing, size, part of it), one for every
    (scene, composition, place in it) and one for every (hour or weather, pattern, place in it), read by the
    cell that shows the part. Rows cost no
    arithmetic, and codebook.py starts them from the renders' own latents, so that the few
    exposures a CPU affords go into what the blocks must learn: putting things into places,
    colours, and telling all that from noise.
    """

    def __init__(
        self, contents: int, grounds: int, airs: int, colours: int, scenes: int, variants: int,
        hours: int, weathers: int,
        width: int = 256, depth: int = 4, heads: int = 4,
    ) -> None:  # fmt: skip
        super().__init__()
        self.width = width
        self.content = nn.Embedding(contents, CODE_WIDTH)
        self.content_in = nn.Linear(CODE_WIDTH, width)
        self.ground = nn.Embedding(grounds, GROUND_WIDTH)
        self.ground_in = nn.Linear(GROUND_WIDTH, width)
        self.air = nn.Embedding(airs, AIR_WIDTH)
        self.air_in = nn.Linear(AIR_WIDTH, width)
        self.colour = nn.Embedding(colours, width)
        self.scene = nn.Embedding(scenes + 1, width)  # the last row: dropped, for guidance
        self.variant = nn.Embedding(variants + 1, width)
        self.hour = nn.Embedding(hours, width)
        self.weather = nn.Embedding(weathers, width)
        self.enter = nn.Linear(LATENT_CHANNELS, width)
        self.place = nn.Linear(width, width)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.mix = nn.Sequential(nn.Linear(3 * width, width), nn.SiLU())
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.last_norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.last_modulation = nn.Linear(width, 2 * width)
        self.leave = nn.Linear(width, LATENT_CHANNELS)
        for table in (self.content, self.ground, self.air, self.colour, self.scene, self.variant):
            nn.init.normal_(table.weight, std=0.5)
        for table in (self.hour, self.weather):
            nn.init.zeros_(table.weight)
        for layer in (self.last_modulation, self.leave):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, latents: Tensor, t: Tensor, contents: Tensor, grounds: Tensor, airs: Tensor,
        colours: Tensor, place: Tensor, positions: Tensor,
    ) -> Tensor:  # fmt: skip
        """latents (b, cells, channels), t (b), contents, grounds and colours (b, cells), airs (b, 2, cells),
        place (b, 4): scene, variant, hour and weather; positions (cells, 4)."""
        time = self.time(timestep_features(t, self.width))
        scene = self.scene(place[:, 0]) + self.hour(place[:, 2]) + self.weather(place[:, 3])
        condition = self.mix(torch.cat([time, scene, self.variant(place[:, 1])], dim=1))
        x = self.enter(latents) + self.content_in(self.content(contents)) + self.colour(colours)
        x = x + self.ground_in(self.ground(grounds)) + self.air_in(self.air(airs).sum(dim=1))
        x = x + self.place(position_features(positions, self.width))[None]
        for block in self.blocks:
            x = block(x, condition)
        shift, scale = self.last_modulation(condition)[:, None, :].chunk(2, dim=2)
        return self.leave(self.last_norm(x) * (1 + scale) + shift)


class Upscaler(nn.Module):
    """A picture in -1..1 -> four times as wide and high, its edges sharp again."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.Sequential(*(ResidualConv(width) for _ in range(3)), nn.SiLU())
        self.leave = nn.Conv2d(width, 3 * 16, 3, padding=1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, x: Tensor) -> Tensor:
        smooth = F.interpolate(x, scale_factor=4.0, mode="bilinear", align_corners=False)
        return smooth + F.pixel_shuffle(self.leave(self.body(self.enter(x))), 4)
