"""The family `qwen_image`: Qwen-Image's transformer, VAE and Qwen2.5-VL text encoder, from diffusers' layout.

Facts that the network was trained with and that must hold: a prompt stands in a chat template, whose first 34 tokens
are dropped after encoding; guidance is on only with a negative prompt (" " counts), and the guided velocity is scaled
back to the length of the wanted one, token by token. Text and image rows have weights of their own.
Knows torch.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danqing.engine import samplers
from danqing.engine.families import lora_weights, offload, strips
from danqing.engine.families.checkpoint import Checkpoint
from danqing.engine.families.flow import FlowFamily, Pictures, TextReader, regional, rows_vary
from danqing.engine.families.lora import Fit
from danqing.engine.families.lora_weights import Added, plus
from danqing.engine.families.memory import PLAIN_PIXELS_MAX
from danqing.engine.families.packing import (
    Attention,
    Layout,
    attend,
    backends,
    joined,
    layer_norm,
    modulate,
    rms_norm,
)
from danqing.engine.families.tokens import Tokens
from danqing.engine.messages import Job

TOKENS_MAX = 1024
EPS = 1e-6
TEMPLATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, "
    "text, spatial relationships of the objects and background:<|im_end|>\n"
    "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
TEMPLATE_TOKENS = 34
"""Tokens of the template before the prompt, with Qwen's own tokenizer; diffusers drops this many with any."""

Pair = tuple[Tensor, Tensor]
"""A weight and its bias."""
Linear = tuple[Tensor, Tensor, Added]
"""A weight, its bias, and what a LoRA adds to the weight."""


class QwenText:
    """Prompts through the language half of Qwen2.5-VL. The vision tower and the vocabulary's head are never run."""

    def __init__(self, tokenizer: Any, encoder: Any) -> None:
        """`encoder`: a Qwen2_5_VLForConditionalGeneration; only its language model is kept."""
        self._tokens = Tokens(tokenizer, TOKENS_MAX, TEMPLATE, TEMPLATE_TOKENS)
        self._encoder = encoder.model.language_model

    def measure(self, prompt: str) -> tuple[int, int]:
        return self._tokens.measure(prompt)

    def __call__(self, prompt: str) -> Tensor:
        """T x E. Raises PromptTooLong."""
        ids = torch.tensor([self._tokens.ids(prompt)], device=self._encoder.device)
        states = self._encoder(input_ids=ids, use_cache=False).last_hidden_state[0]
        return states[TEMPLATE_TOKENS:]


class FoldedConv(nn.Module):
    """A causal convolution over one frame: the frames before it are zeros, so only the last slice of time counts."""

    def __init__(self, conv: nn.Conv3d, padding: tuple[int, int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(conv.weight.data[:, :, -1].contiguous(), requires_grad=False)
        self.bias = conv.bias
        self._padding = padding

    def forward(self, x: Tensor) -> Tensor:
        """B x C x 1 x h x w, like the module it stands for."""
        return F.conv2d(x.squeeze(2), self.weight, self.bias, padding=self._padding).unsqueeze(2)


def fold(module: nn.Module) -> None:
    """Put FoldedConv in the place of every causal 3-d convolution below `module` that a single frame passes.

    Those of a stride in time, and those that only later frames pass, stay.
    """
    for name, child in module.named_children():
        if type(child).__name__ == "QwenImageCausalConv3d" and child.stride == (1, 1, 1):
            left, _, top, _, _, _ = child._padding
            setattr(module, name, FoldedConv(child, (top, left)))
        else:
            fold(child)


class QwenPictures:
    """The 16-channel video VAE, used for one frame."""

    def __init__(self, vae: Any, *, folded: bool = True) -> None:
        self._vae = vae
        self._folded = folded
        self.channels: int = vae.config.z_dim
        self._mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1)
        self._deviation = torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1)
        if folded:
            fold(vae.decoder)
            vae.post_quant_conv = FoldedConv(vae.post_quant_conv, (0, 0))

    def decode(self, latents: Tensor) -> Tensor:
        dtype: torch.dtype = self._vae.dtype
        scaled = latents.unsqueeze(2).float() * self._deviation.to(latents.device)
        scaled = (scaled + self._mean.to(latents.device)).to(dtype)
        if not self._folded:
            return self._vae.decode(scaled, return_dict=False)[0][:, :, 0]
        # Without a cache of earlier frames the decoder does for a first frame what it does with an empty one.
        ready = self._vae.post_quant_conv(scaled)
        if latents[0, 0].numel() * 64 <= PLAIN_PIXELS_MAX:
            return self._vae.decoder(ready).clamp(-1, 1)[:, :, 0]
        decoder = self._vae.decoder
        return torch.cat([strips.decode(decoder, each[None, :, 0]) for each in ready]).clamp(-1, 1)

    def encode(self, pixels: Tensor) -> Tensor:
        """The likeliest latents: an edit's reference is the same each time."""
        seen = self._vae.encode(pixels.to(self._vae.dtype).unsqueeze(2)).latent_dist.mode().float()
        return ((seen - self._mean.to(seen.device)) / self._deviation.to(seen.device))[:, :, 0]


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position: neighbours are the real and the imaginary part. `cos`, `sin`: one number a pair."""
    real, imaginary = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((real * cos - imaginary * sin, real * sin + imaginary * cos), -1)
    return turned.flatten(-2).to(x.dtype)


def _linear(x: Tensor, linear: Linear) -> Tensor:
    return plus(F.linear(x, linear[0], linear[1]), x, linear[2])


def _stream(
    x: Tensor, mods: Tensor, rows: Tensor, fused: Pair, norms: Pair, added: Sequence[Added]
) -> tuple[Tensor, Tensor, Tensor]:
    """One stream's rows -> its query, key, value, each rows x heads x width."""
    normed = modulate(layer_norm(x, EPS), mods[:, 1], mods[:, 0], rows)
    width = norms[0].shape[0]
    parts = F.linear(normed, *fused).chunk(3, -1)
    query, key, value = (
        plus(y, normed, extra).unflatten(-1, (-1, width))
        for y, extra in zip(parts, added, strict=True)
    )
    return rms_norm(query, norms[0], EPS), rms_norm(key, norms[1], EPS), value


def _before(
    text: Tensor, image: Tensor, mods: Tensor, text_rows: Tensor, image_rows: Tensor, order: Tensor,
    cos: Tensor, sin: Tensor, fused: tuple[Pair, Pair], norms: tuple[Pair, Pair],
    added: tuple[Sequence[Added], Sequence[Added]],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Both streams' rows -> packed query, key, value, each N x heads x width."""
    texts = _stream(text, mods, text_rows, fused[0], norms[0], added[0])
    images = _stream(image, mods, image_rows, fused[1], norms[1], added[1])
    query, key, value = (torch.cat(pair)[order] for pair in zip(texts, images, strict=True))
    return _turn(query, cos, sin), _turn(key, cos, sin), value


def _after(
    x: Tensor, seen: Tensor, where: Tensor, mods: Tensor, rows: Tensor, linears: Any
) -> Tensor:
    """What one stream's rows saw (the packed rows at `where`), and its feed-forward half of the block."""
    out, up, down = linears
    x = x + _linear(seen[where], out) * mods[:, 2][rows]
    normed = modulate(layer_norm(x, EPS), mods[:, 4], mods[:, 3], rows)
    return x + _linear(F.gelu(_linear(normed, up), approximate="tanh"), down) * mods[:, 5][rows]


class QwenDenoiser:
    """Runs a QwenImageTransformer2DModel's weights over packed rows. The model's own modules keep working."""

    def __init__(
        self, transformer: Any, *, compiled: bool = False, attention: Attention = "auto",
        offloaded: bool = False,
    ) -> None:  # fmt: skip
        """`offloaded`: its blocks are in main memory and stay there.

        Raises ValueError for a variant that takes more than a time and a text.
        """
        config = transformer.config
        for name in ("guidance_embeds", "zero_cond_t", "use_additional_t_cond", "use_layer3d_rope"):
            if getattr(config, name, False):
                raise ValueError(f"the transformer's {name} is not supported")
        self._model = transformer
        self.device: torch.device = transformer.device
        self._dtype: torch.dtype = transformer.dtype
        self._added: Mapping[str, tuple[Tensor, Tensor]] = {}
        modules = transformer.transformer_blocks
        blocks = [_weights(block) for block in modules]
        self._blocks = offload.Carried(blocks, modules, self.device) if offloaded else blocks
        self._extras = self._laid_out()
        self._backends = backends(attention, self.device)
        self._before = regional(_before, enabled=compiled)
        self._after = regional(_after, enabled=compiled)

    def with_lora(self, added: Mapping[str, tuple[Tensor, Tensor]]) -> QwenDenoiser:
        """The same weights, and beside them what a LoRA adds, by their names."""
        other = copy.copy(self)
        other._added = added
        other._extras = other._laid_out()
        return other

    def projects_like(self, other: QwenDenoiser) -> bool:
        return self._added.get("txt_in") is other._added.get("txt_in")

    def project(self, embedding: Tensor) -> Tensor:
        embedding = embedding.to(self.device, self._dtype)
        return self._run("txt_in", self._model.txt_norm(embedding))

    def _run(self, name: str, x: Tensor) -> Tensor:
        """One of the model's linear modules by its name."""
        return plus(offload.linear(self._model.get_submodule(name), x), x, self._added.get(name))

    def _time(self, timesteps: Tensor) -> Tensor:
        """The embedding of a time, steps x D."""
        embed = self._model.time_text_embed
        x = embed.time_proj(timesteps).to(self._dtype)
        x = embed.timestep_embedder.act(self._run(f"{_TIME}.linear_1", x))
        return self._run(f"{_TIME}.linear_2", x)

    def modulations(self, timesteps: Sequence[float], width: int, height: int) -> Tensor:
        """steps x (blocks x 2 x 6 D + 2 D): image's then text's shift, scale, gate, twice; the output's."""
        # The rounding of the time to the network's precision, twice, is diffusers'.
        time = torch.tensor(timesteps, dtype=torch.float32, device=self.device).to(self._dtype)
        time = (time / self._model_timesteps).to(self._dtype)
        embedding = F.silu(self._time(time))
        parts = [
            self._run(f"transformer_blocks.{index}.{part}.1", embedding)
            for index in range(len(self._model.transformer_blocks))
            for part in ("img_mod", "txt_mod")
        ]
        return torch.cat([*parts, self._run("norm_out.linear", embedding)], 1)

    _model_timesteps = 1000

    def rope(self, grid: tuple[int, int], text_rows: int) -> tuple[Tensor, Tensor]:
        """The image's positions are centred on 0, the text's follow its larger half side."""
        image, text = self._model.pos_embed(
            [[(1, *grid)]], device=torch.device("cpu"), max_txt_seq_len=text_rows
        )
        turns = torch.cat([text, image])
        return turns.real.float().to(self.device), turns.imag.float().to(self.device)

    def velocity(
        self, latents: Tensor, texts: Sequence[Tensor], layout: Layout, modulations: Tensor
    ) -> Tensor:
        segments, tokens, _ = latents.shape
        image = self._run("img_in", latents.to(self._dtype).flatten(0, 1))
        text = torch.cat(list(texts))
        blocks, final = self._split(modulations)
        order, cos, sin = layout.order, layout.cos, layout.sin
        text_rows, image_rows = layout.rows[layout.texts], layout.rows[layout.images]
        for (fused, norms, pairs), (added, extras), mods in zip(
            self._blocks, self._extras, blocks, strict=True
        ):
            linears = tuple(tuple(map(_with, *each)) for each in zip(pairs, extras, strict=True))
            rows_vary(text, image, mods, text_rows, image_rows, order, cos, sin)
            rows_vary(layout.texts, layout.images)
            query, key, value = self._before(
                text, image, mods, text_rows, image_rows, order, cos, sin, fused, norms, added
            )
            seen = attend(query, key, value, layout.groups, self._backends)
            rows_vary(seen)
            text = self._after(text, seen, layout.texts, mods, text_rows, linears[0])
            image = self._after(image, seen, layout.images, mods, image_rows, linears[1])
        image = modulate(layer_norm(image, EPS), final[:, 0], final[:, 1], image_rows)
        return self._run("proj_out", image).view(segments, tokens, -1)

    def _laid_out(self) -> list[Any]:
        """(added to query, key, value; added to the other linears) of each block, each for text and image."""

        def added(index: int, names: Sequence[str], prefix: str = "") -> tuple[Added, ...]:
            block = f"transformer_blocks.{index}.{prefix}"
            return tuple(self._added.get(block + name) for name in names)

        return [
            (
                tuple(added(index, names, "attn.") for names in _FUSED),
                tuple(added(index, names) for names in _LINEARS),
            )
            for index in range(len(self._model.transformer_blocks))
        ]

    def _split(self, modulations: Tensor) -> tuple[Tensor, Tensor]:
        """(blocks x 2B x 6 x D, 2B x 2 x D): rows are image and text of each member in turn."""
        width = self._model.inner_dim
        members = modulations.shape[0]
        blocks = modulations[:, : -2 * width].view(members, -1, 2, 6, width)
        blocks = blocks.permute(1, 0, 2, 3, 4).reshape(-1, 2 * members, 6, width).contiguous()
        final = modulations[:, -2 * width :].view(members, 2, width)
        return blocks, final.repeat_interleave(2, 0)


def _fuse(*parts: Any) -> Pair:
    """One matrix for all; the modules become views of it, so nothing is held twice."""
    weight = joined([part.weight.data for part in parts])
    bias = joined([part.bias.data for part in parts])
    count = len(parts)
    for part, own_weight, own_bias in zip(
        parts, weight.chunk(count), bias.chunk(count), strict=True
    ):
        part.weight.data, part.bias.data = own_weight, own_bias
    return weight, bias


# A block's modules for text and image.
_FUSED = (("add_q_proj", "add_k_proj", "add_v_proj"), ("to_q", "to_k", "to_v"))
_NORMS = (("norm_added_q", "norm_added_k"), ("norm_q", "norm_k"))
_LINEARS = (
    ("attn.to_add_out", "txt_mlp.net.0.proj", "txt_mlp.net.2"),
    ("attn.to_out.0", "img_mlp.net.0.proj", "img_mlp.net.2"),
)
_TIME = "time_text_embed.timestep_embedder"


def _fused(attention: Any) -> tuple[Pair, Pair]:
    """Query, key and value in one matrix, for text and image."""
    text, image = (_fuse(*(getattr(attention, name) for name in names)) for names in _FUSED)
    return text, image


def _weights(block: Any) -> Any:
    """(query-key-value, norms, other linears) of a block, each for text and image."""
    norms = tuple(
        tuple(block.get_submodule(f"attn.{name}").weight.data for name in names) for names in _NORMS
    )
    modules = [[block.get_submodule(name) for name in names] for names in _LINEARS]
    linears = tuple(
        tuple((module.weight.data, module.bias.data) for module in each) for each in modules
    )
    return _fused(block.attn), norms, linears


def _with(pair: Pair, added: Added) -> Linear:
    return *pair, added


class QwenImage(FlowFamily):
    """The family `qwen_image`."""

    name = "qwen_image"

    def __init__(
        self, denoiser: QwenDenoiser, pictures: Pictures, read: TextReader,
        sampling: samplers.FlowMatch,
    ) -> None:  # fmt: skip
        super().__init__(denoiser, pictures, read)
        self._sampling = sampling
        self._shifted: dict[str, samplers.FlowMatch] = {}

    @classmethod
    def load(
        cls, folder: Path, *, device: str = "cpu", dtype: str = "float32", compiled: bool = False,
        text_device: str | None = None, loras: Sequence[Fit] = (), offloaded: bool = False,
    ) -> QwenImage:  # fmt: skip
        """From a folder in diffusers' layout, with LoRAs that fit it. Raises CheckpointError."""
        found = Checkpoint.open(
            folder, "QwenImagePipeline", device=device, dtype=dtype, text_device=text_device
        )
        kind = "Qwen2_5_VLForConditionalGeneration"
        family = cls(
            QwenDenoiser(
                found.model("transformer", "QwenImageTransformer2DModel", offloaded=offloaded),
                compiled=compiled,
                offloaded=offloaded,
            ),
            QwenPictures(found.model("vae", "AutoencoderKLQwenImage")),
            QwenText(found.tokenizer(), found.text_encoder({kind: kind})),
            found.sampling(),
        )
        for fit in loras:
            family.add_lora(lora_weights.load(fit, found.device, found.dtype))
        return family

    def add_lora(self, lora: lora_weights.Loaded) -> None:
        """Jobs that name it are drawn with it; nothing changes for others."""
        assert isinstance(self.denoiser, QwenDenoiser)
        self.adapted[lora.name] = self.denoiser.with_lora(lora.added)
        if lora.shift is not None:
            self._shifted[lora.name] = samplers.FlowMatch(
                num_train_timesteps=self._sampling.num_train_timesteps, shift=lora.shift
            )

    def guided(self, job: Job) -> bool:
        return job.guidance > 1 and bool(job.negative_prompt)

    def schedule(self, steps: int, tokens: int, lora: str = "") -> samplers.Schedule:
        return samplers.qwen_image(self._shifted.get(lora, self._sampling), steps, tokens)

    def combine(self, wanted: Tensor, unwanted: Tensor, guidance: Tensor) -> Tensor:
        guided = unwanted + guidance * (wanted - unwanted)
        return guided * (wanted.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))
