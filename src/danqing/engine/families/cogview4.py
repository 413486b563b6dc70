"""The family `cogview4`: CogView4-6B's transformer, VAE and GLM text encoder, from diffusers' layout. Knows torch.

Facts that the network was trained with and that must hold: a text is padded on the left to a multiple of 16 tokens and
its pads are attended like words; the network hears unshifted whole timesteps; guidance is on above 1, the
negative prompt being "" where there is none. Text and image rows share all weights but their modulation.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from danqing.engine import samplers
from danqing.engine.families import offload, strips
from danqing.engine.families.checkpoint import Checkpoint
from danqing.engine.families.flow import (
    FlowFamily,
    Pictures,
    TextReader,
    regional,
    rows_vary,
)
from danqing.engine.families.memory import PLAIN_PIXELS_MAX
from danqing.engine.families.packing import (
    Attention,
    Layout,
    attend,
    backends,
    joined,
    layer_norm,
    modulate,
)
from danqing.engine.families.tokens import Tokens
from danqing.engine.messages import Job

TOKENS_MAX = 1024
PAD_MULTIPLE = 16
EPS = 1e-5


class CogView4Text:
    """Prompts through GLM. The network wants the states before the last layer, so that layer is never run."""

    def __init__(self, tokenizer: Any, encoder: Any) -> None:
        """`encoder`: a GlmModel; its last layer and final norm are taken off."""
        self._tokens = Tokens(tokenizer, TOKENS_MAX)
        self._pad: int = tokenizer.pad_token_id
        self._encoder = encoder
        encoder.layers = encoder.layers[:-1]
        encoder.norm = torch.nn.Identity()
        encoder.config.num_hidden_layers -= 1

    def measure(self, prompt: str) -> tuple[int, int]:
        return self._tokens.measure(prompt)

    def __call__(self, prompt: str) -> Tensor:
        """T x E, T a multiple of 16. Raises PromptTooLong."""
        tokens = self._tokens.ids(prompt)
        ids = torch.tensor([[self._pad] * (-len(tokens) % PAD_MULTIPLE) + tokens])
        return self._encoder(ids.to(self._encoder.device), use_cache=False).last_hidden_state[0]


class CogView4Pictures:
    """The 16-channel VAE."""

    def __init__(self, vae: Any) -> None:
        self._vae = vae
        self.channels: int = vae.config.latent_channels

    def decode(self, latents: Tensor) -> Tensor:
        scaled = latents.to(self._vae.dtype) / self._vae.config.scaling_factor
        if latents[0, 0].numel() * 64 <= PLAIN_PIXELS_MAX:
            return self._vae.decode(scaled, return_dict=False)[0]
        if self._vae.post_quant_conv is not None:
            scaled = self._vae.post_quant_conv(scaled)
        return torch.cat([strips.decode(self._vae.decoder, each[None]) for each in scaled])

    def encode(self, pixels: Tensor) -> Tensor:
        """The likeliest latents: an edit's reference is the same each time."""
        seen = self._vae.encode(pixels.to(self._vae.dtype)).latent_dist.mode()
        return seen * self._vae.config.scaling_factor


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position: halves of the head width are the real and the imaginary part."""
    real, imaginary = x.chunk(2, -1)
    turned = torch.cat([-imaginary, real], -1)
    return (x.float() * cos + turned.float() * sin).to(x.dtype)


def _before(
    x: Tensor, mods: Tensor, rows: Tensor, cos: Tensor, sin: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows N x D -> query, key, value, each N x heads x width."""
    normed = modulate(layer_norm(x, EPS), mods[:, 1], mods[:, 0], rows)
    width = cos.shape[-1]
    query, key, value = F.linear(normed, weight, bias).chunk(3, -1)
    query, key, value = (y.unflatten(-1, (-1, width)) for y in (query, key, value))
    query = _turn(layer_norm(query, EPS), cos, sin)
    return query, _turn(layer_norm(key, EPS), cos, sin), value


def _after(
    x: Tensor, seen: Tensor, mods: Tensor, rows: Tensor, out: tuple[Tensor, Tensor],
    up: tuple[Tensor, Tensor], down: tuple[Tensor, Tensor],
) -> Tensor:  # fmt: skip
    """What the rows saw, and the feed-forward half of the block."""
    x = x + F.linear(seen, *out) * mods[:, 2][rows]
    normed = modulate(layer_norm(x, EPS), mods[:, 4], mods[:, 3], rows)
    return x + F.linear(F.gelu(F.linear(normed, *up), approximate="tanh"), *down) * mods[:, 5][rows]


class CogView4Denoiser:
    """Runs a CogView4Transformer2DModel's weights over packed rows. The model's own modules keep working."""

    def __init__(
        self, transformer: Any, *, compiled: bool = False, attention: Attention = "auto",
        offloaded: bool = False,
    ) -> None:  # fmt: skip
        """`offloaded`: its blocks are in main memory and stay there."""
        self._model = transformer
        self.device: torch.device = transformer.device
        self._dtype: torch.dtype = transformer.dtype
        modules = transformer.transformer_blocks
        blocks = [(_fuse(block.attn1), _linears(block)) for block in modules]
        self._blocks = offload.Carried(blocks, modules, self.device) if offloaded else blocks
        self._backends = backends(attention, self.device)
        self._before = regional(_before, enabled=compiled)
        self._after = regional(_after, enabled=compiled)

    def projects_like(self, other: Any) -> bool:
        return other is self

    def project(self, embedding: Tensor) -> Tensor:
        return self._model.patch_embed.text_proj(embedding.to(self.device, self._dtype))

    def modulations(self, timesteps: Sequence[float], width: int, height: int) -> Tensor:
        """steps x (blocks x 12 D + 2 D): shift, scale, gate of both halves of a block, image and text; the output's."""
        count = len(timesteps)
        size = torch.tensor([[height, width]], dtype=self._dtype, device=self.device)
        size = size.expand(count, 2)
        time = torch.tensor(timesteps, dtype=torch.float32, device=self.device)
        embedding = self._model.time_condition_embed(
            time, size, size, torch.zeros_like(size), self._dtype
        )
        embedding = F.silu(embedding)
        parts = [
            offload.linear(block.norm1.linear, embedding)
            for block in self._model.transformer_blocks
        ]
        return torch.cat([*parts, self._model.norm_out.linear(embedding)], 1)

    def rope(self, grid: tuple[int, int], text_rows: int) -> tuple[Tensor, Tensor]:
        """A text's rows do not turn."""
        patch = self._model.config.patch_size
        cos, sin = self._model.rope(torch.empty(1, 1, grid[0] * patch, grid[1] * patch))
        width = cos.shape[-1]
        cos = torch.cat([torch.ones(text_rows, width), cos.cpu()])
        sin = torch.cat([torch.zeros(text_rows, width), sin.cpu()])
        return cos.to(self.device), sin.to(self.device)

    def velocity(
        self, latents: Tensor, texts: Sequence[Tensor], layout: Layout, modulations: Tensor
    ) -> Tensor:
        segments, tokens, _ = latents.shape
        images = self._model.patch_embed.proj(latents.to(self._dtype).flatten(0, 1))
        x = torch.cat([*texts, images])[layout.order]
        blocks, final = self._split(modulations)
        rows, cos, sin = layout.rows, layout.cos, layout.sin
        for (fused, linears), mods in zip(self._blocks, blocks, strict=True):
            rows_vary(x, mods, rows, cos, sin)
            query, key, value = self._before(x, mods, rows, cos, sin, *fused)
            seen = attend(query, key, value, layout.groups, self._backends)
            rows_vary(seen)
            x = self._after(x, seen, mods, rows, *linears)
        return self._output(x[layout.images], rows[layout.images], final).view(segments, tokens, -1)

    def _split(self, modulations: Tensor) -> tuple[Tensor, Tensor]:
        """(blocks x 2B x 6 x D, 2B x 2 x D): rows are image and text of each member in turn."""
        width = self._model.norm_out.linear.out_features // 2
        members = modulations.shape[0]
        # In the checkpoint: shift, scale, gate, shift, scale, gate, each for image and text.
        blocks = modulations[:, : -2 * width].view(members, -1, 6, 2, width)
        blocks = blocks.permute(1, 0, 3, 2, 4).reshape(-1, 2 * members, 6, width).contiguous()
        final = modulations[:, -2 * width :].view(members, 2, width)
        return blocks, final.repeat_interleave(2, 0)

    def _output(self, x: Tensor, rows: Tensor, final: Tensor) -> Tensor:
        return self._model.proj_out(modulate(layer_norm(x, EPS), final[:, 0], final[:, 1], rows))


def _fuse(attention: Any) -> tuple[Tensor, Tensor]:
    """One matrix for query, key and value; the three modules become views of it, so nothing is held twice."""
    parts = (attention.to_q, attention.to_k, attention.to_v)
    weight = joined([part.weight.data for part in parts])
    bias = joined([part.bias.data for part in parts])
    for part, own_weight, own_bias in zip(parts, weight.chunk(3), bias.chunk(3), strict=True):
        part.weight.data, part.bias.data = own_weight, own_bias
    return weight, bias


def _linears(block: Any) -> tuple[tuple[Tensor, Tensor], ...]:
    """Weight and bias of the attention's output and of the feed-forward's two."""
    parts = (block.attn1.to_out[0], block.ff.net[0].proj, block.ff.net[2])
    return tuple((part.weight.data, part.bias.data) for part in parts)


class CogView4(FlowFamily):
    """The family `cogview4`."""

    name = "cogview4"

    def __init__(
        self, denoiser: CogView4Denoiser, pictures: Pictures, read: TextReader,
        sampling: samplers.FlowMatch,
    ) -> None:  # fmt: skip
        super().__init__(denoiser, pictures, read)
        self._sampling = sampling

    @classmethod
    def load(
        cls, folder: Path, *, device: str = "cpu", dtype: str = "float32", compiled: bool = False,
        text_device: str | None = None, offloaded: bool = False,
    ) -> CogView4:  # fmt: skip
        """From a folder in diffusers' layout. Raises CheckpointError."""
        found = Checkpoint.open(
            folder, "CogView4Pipeline", device=device, dtype=dtype, text_device=text_device
        )
        return cls(
            CogView4Denoiser(
                found.model("transformer", "CogView4Transformer2DModel", offloaded=offloaded),
                compiled=compiled,
                offloaded=offloaded,
            ),
            CogView4Pictures(found.model("vae", "AutoencoderKL")),
            CogView4Text(
                found.tokenizer(),
                found.text_encoder({"GlmModel": "GlmModel", "GlmForCausalLM": "GlmModel"}),
            ),
            found.sampling(),
        )

    def guided(self, job: Job) -> bool:
        return job.guidance > 1

    def schedule(self, steps: int, tokens: int, lora: str = "") -> samplers.Schedule:
        return samplers.cogview4(self._sampling, steps, tokens)

    def combine(self, wanted: Tensor, unwanted: Tensor, guidance: Tensor) -> Tensor:
        return unwanted + guidance * (wanted - unwanted)
