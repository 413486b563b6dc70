"""The text network in torch: hashed tokens -> what was asked, slot by slot. Knows no words and no training."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from danqing.engine.families.pocket_text import FEATURES, TOKENS_MAX

SLOTS: tuple[str, ...] = (
    "thing", "count", "colour", "second", "relation", "scene", "second_colour", "size", "hour", "weather",
)  # fmt: skip


class TextBlock(nn.Module):
    """Masked attention and an MLP, each behind a layer norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        b, n, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(b, n, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        x = x + self.out(mixed.transpose(1, 2).reshape(b, n, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class TextNetwork(nn.Module):
    """A few blocks over the tokens and one learned query a slot; every slot has its own answers."""

    def __init__(self, slot_sizes: dict[str, int], width: int = 128, depth: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(FEATURES, 64)
        self.enter = nn.Linear(64, width)
        self.place = nn.Embedding(TOKENS_MAX, width)
        self.queries = nn.Parameter(torch.randn(len(SLOTS), width) * 0.3)
        self.blocks = nn.ModuleList(TextBlock(width, 4) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleList(nn.Linear(width, slot_sizes[name]) for name in SLOTS)
        nn.init.normal_(self.embedding.weight, std=0.3)
        nn.init.normal_(self.place.weight, std=0.1)

    def forward(self, tokens: Tensor) -> list[Tensor]:
        """tokens (b, n, features) int64, 0 where nothing is -> logits of every slot."""
        known = (tokens > 0).any(dim=2)
        there = (tokens > 0).unsqueeze(3).float()
        x = self.enter((self.embedding(tokens) * there).sum(dim=2))
        x = x + self.place.weight[: tokens.shape[1]][None]
        b = tokens.shape[0]
        x = torch.cat([self.queries[None].expand(b, -1, -1), x], dim=1)
        ones = torch.ones(b, len(SLOTS), dtype=torch.bool, device=x.device)
        bias = torch.cat([ones, known], dim=1)[:, None, None, :].float()
        bias = (bias - 1.0) * 1e4
        for block in self.blocks:
            x = block(x, bias)
        return [head(self.norm(x[:, i])) for i, head in enumerate(self.heads)]
