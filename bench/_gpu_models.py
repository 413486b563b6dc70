"""Full-size CogView4-6B and Qwen-Image-20B with random weights, ours and diffusers' pipelines over the same ones. Needs torch.

The configs are those of the published checkpoints' config.json files. Speed does not depend on the weights' values. The text
encoders (GLM-4-9B, Qwen2.5-VL-7B) are not built: prompts are random embeddings of their width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLQwenImage,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)

from danqing.engine.families.cogview4 import CogView4, CogView4Denoiser, CogView4Pictures
from danqing.engine.families.flow import Conditioning, FlowFamily, FlowState, unpack
from danqing.engine.families.qwen_image import QwenDenoiser, QwenImage, QwenPictures
from danqing.engine.messages import Job
from danqing.engine.samplers import FlowMatch

TEXT_TOKENS = 256
NEGATIVE_TOKENS = 16
GUIDANCE = {"cogview4": 3.5, "qwen_image": 4.0}

CONFIGS: dict[str, dict[str, dict[str, Any]]] = {
    "cogview4": {
        "transformer": {
            "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 28,
            "attention_head_dim": 128, "num_attention_heads": 32, "text_embed_dim": 4096,
            "time_embed_dim": 512, "condition_dim": 256, "pos_embed_max_size": 128, "sample_size": 128,
            "rope_axes_dim": (256, 256),
        },
        "vae": {
            "in_channels": 3, "out_channels": 3, "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4, "block_out_channels": (128, 512, 1024, 1024),
            "layers_per_block": 3, "act_fn": "silu", "latent_channels": 16, "norm_num_groups": 32,
            "sample_size": 1024, "scaling_factor": 1.0, "shift_factor": 0.0, "force_upcast": True,
            "use_quant_conv": False, "use_post_quant_conv": False, "mid_block_add_attention": False,
        },
        "scheduler": {
            "base_image_seq_len": 256, "base_shift": 0.25, "max_shift": 0.75, "use_dynamic_shifting": True,
            "time_shift_type": "linear",
        },
    },
    "qwen_image": {
        "transformer": {
            "patch_size": 2, "in_channels": 64, "out_channels": 16, "num_layers": 60,
            "attention_head_dim": 128, "num_attention_heads": 24, "joint_attention_dim": 3584,
            "guidance_embeds": False, "axes_dims_rope": (16, 56, 56),
        },
        "vae": {
            "base_dim": 96, "z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_scales": [],
            "temperal_downsample": [False, True, True], "dropout": 0.0,
        },
        "scheduler": {
            "base_image_seq_len": 256, "max_image_seq_len": 8192, "base_shift": 0.5, "max_shift": 0.9,
            "use_dynamic_shifting": True, "time_shift_type": "exponential", "shift_terminal": 0.02,
        },
    },
}  # fmt: skip
TINY: dict[str, dict[str, dict[str, Any]]] = {
    "cogview4": {
        "transformer": {"num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2, "text_embed_dim": 32,
                        "time_embed_dim": 16, "condition_dim": 8},
        "vae": {"block_out_channels": (8, 8, 16, 16), "norm_num_groups": 4, "layers_per_block": 1},
    },
    "qwen_image": {
        "transformer": {"num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
                        "joint_attention_dim": 32, "axes_dims_rope": (4, 6, 6)},
        "vae": {"base_dim": 8, "num_res_blocks": 1},
    },
}  # fmt: skip
CLASSES: dict[str, tuple[Any, Any, Any]] = {
    "cogview4": (CogView4Transformer2DModel, AutoencoderKL, CogView4Pipeline),
    "qwen_image": (QwenImageTransformer2DModel, AutoencoderKLQwenImage, QwenImagePipeline),
}


@dataclass
class Built:
    """One family's weights on the device, and all that runs on them."""

    name: str
    transformer: Any
    families: dict[str, FlowFamily]
    """Way of running ours -> the family; all share the weights.

    "ours": as it is served, compiled and with cuDNN's attention; "ours-flash": with the flash kernel in its place;
    "ours-eager": compiled nowhere.
    """
    pipeline: Any
    """diffusers' own, with the VAE as diffusers runs it."""
    weights_bytes: int
    text: torch.Tensor
    negative: torch.Tensor
    compiled_calls: list[Any] = field(default_factory=list[Any])


@contextmanager
def made_on(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Modules made here have their weights on the device in this precision from the start."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def build(
    name: str, device: torch.device, dtype: torch.dtype, *, tiny: bool, compiled: bool,
    layers: int | None = None,
) -> Built:  # fmt: skip
    """Random weights, straight on the device. `layers`: of the transformer, where not all."""
    sizes = {part: dict(config) for part, config in CONFIGS[name].items()}
    if layers is not None:
        sizes["transformer"]["num_layers"] = layers
    if tiny:
        for part, config in TINY[name].items():
            sizes[part] |= config
    transformer_class, vae_class, pipeline_class = CLASSES[name]
    torch.manual_seed(0)
    with made_on(device, dtype):
        transformer = transformer_class(**sizes["transformer"]).eval().requires_grad_(False)
        vae = vae_class(**sizes["vae"]).eval().requires_grad_(False)
        folded = vae_class(**sizes["vae"]).eval().requires_grad_(False)
    folded.load_state_dict(vae.state_dict())
    scheduler = FlowMatchEulerDiscreteScheduler(**sizes["scheduler"])
    pipeline = pipeline_class(
        tokenizer=None, text_encoder=None, vae=vae, transformer=transformer, scheduler=scheduler
    )
    pipeline.set_progress_bar_config(disable=True)
    sampling = FlowMatch.read(
        dict(sizes["scheduler"]) | {"_class_name": "FlowMatchEulerDiscreteScheduler"}
    )
    families: dict[str, FlowFamily] = {}
    pictures: Any = (CogView4Pictures if name == "cogview4" else QwenPictures)(folded)
    for way, options in {
        "ours": {"compiled": compiled}, "ours-flash": {"compiled": compiled, "attention": "flash"}, "ours-eager": {},
    }.items():  # fmt: skip
        denoiser: Any = (CogView4Denoiser if name == "cogview4" else QwenDenoiser)(
            transformer, **options
        )
        family_class: Any = CogView4 if name == "cogview4" else QwenImage
        families[way] = family_class(denoiser, pictures, _no_text, sampling)
        families[way]._tables = families["ours"]._tables
    width = (
        sizes["transformer"].get("text_embed_dim") or sizes["transformer"]["joint_attention_dim"]
    )
    generator = torch.Generator().manual_seed(1)
    text = torch.randn((1, TEXT_TOKENS, width), generator=generator).to(device, dtype)
    negative = torch.randn((1, NEGATIVE_TOKENS, width), generator=generator).to(device, dtype)
    weights_bytes = sum(p.nbytes for m in (transformer, vae) for p in m.parameters())
    return Built(name, transformer, families, pipeline, weights_bytes, text, negative)


def _no_text(prompt: str) -> torch.Tensor:
    raise ValueError("no text encoder was built")


def states(
    built: Built, way: str, side: int, batch: int, steps: int, *, guided: bool = True
) -> list[FlowState]:
    """`batch` images ready for their first step."""
    family = built.families[way]
    with torch.inference_mode():
        text = family.denoiser.project(built.text[0])
        negative = family.denoiser.project(built.negative[0]) if guided else None
    found = []
    for i in range(batch):
        job = Job(
            id=f"{way}-{i}", task_id="", account_id="", prompt="", negative_prompt=" " if guided else "",
            width=side, height=side, steps=steps, guidance=GUIDANCE[built.name] if guided else 1.0, seed=i,
        )  # fmt: skip
        found.append(family.start(job, Conditioning(text, negative)))
    return found


def compile_blocks(built: Built, *, enabled: bool) -> None:
    """diffusers' blocks compiled one by one, by hand: CogView4's compile_repeated_blocks() raises."""
    blocks = list(built.transformer.transformer_blocks)
    if enabled and not built.compiled_calls:
        for block in blocks:
            block.compile(fullgraph=True, dynamic=True)
        built.compiled_calls = [block._compiled_call_impl for block in blocks]
    for i, block in enumerate(blocks):
        block._compiled_call_impl = built.compiled_calls[i] if enabled else None


def run_pipeline(
    built: Built, side: int, noise: list[FlowState], steps: int, on_step: Any = None, *,
    text_rows: int = TEXT_TOKENS, guidance: float | None = None,
) -> torch.Tensor:  # fmt: skip
    """diffusers' own loop over the same noise and embeddings -> its latents, in ours' packing for one image."""
    if guidance is None:
        guidance = GUIDANCE[built.name]
    latents = torch.stack([state.latents for state in noise])
    options: dict[str, Any] = {
        "prompt_embeds": built.text[:, :text_rows], "negative_prompt_embeds": built.negative, "width": side, "height": side,
        "num_inference_steps": steps, "num_images_per_prompt": len(noise), "output_type": "latent",
        "return_dict": False, "callback_on_step_end": on_step,
    }  # fmt: skip
    if built.name == "cogview4":
        grids = torch.stack([unpack(tokens, noise[0].grid) for tokens in latents])
        return built.pipeline(**options, latents=grids, guidance_scale=guidance)[0]
    return built.pipeline(**options, latents=latents, true_cfg_scale=guidance)[0]


def teraflop(name: str, side: int, batch: int, *, tiny: bool = False, guided: bool = True) -> float:
    """Of one step of the transformer: matrix products over the rows there really are, and attention."""
    config = CONFIGS[name]["transformer"] | (TINY[name]["transformer"] if tiny else {})
    width = config["num_attention_heads"] * config["attention_head_dim"]
    total = 0.0
    for text in (TEXT_TOKENS, NEGATIVE_TOKENS) if guided else (TEXT_TOKENS,):
        rows = text + (side // 16) ** 2
        total += config["num_layers"] * (24 * rows * width**2 + 4 * rows**2 * width)
    return total * batch / 1e12
