"""Small random checkpoints in the true layout: every part, a real tokenizer, seconds to make. Needs torch and diffusers."""

from __future__ import annotations

import json
from pathlib import Path
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
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    GlmConfig,
    GlmModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
)

CORPUS = [
    "a red apple on a wooden table", "一只红色的苹果放在木桌上", "a cat, a dog and a horse beside the sea",
    "Describe the image by detailing the color, shape, size, texture, quantity, text, spatial",
    "relationships of the objects and background: system user assistant", "水墨画 山 水 丹青",
]  # fmt: skip
GLM_SPECIALS = ["<|endoftext|>", "[gMASK]", "<sop>", "<|user|>"]
QWEN_SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
                 "<|image_pad|>", "<|video_pad|>"]  # fmt: skip


def bpe(specials: list[str]) -> Tokenizer:
    """Byte-level pairs learnt from a few lines."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def widen(model: Any, seed: int) -> Any:
    """Weights large enough that every path shows in the output: fresh biases, norms and gates off their neutral values."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        drawn = torch.randn(parameter.shape, generator=generator)
        fan_in = parameter.shape[1:].numel() if parameter.dim() > 1 else 25
        parameter.data = parameter.data.mean() + drawn * fan_in**-0.5
    return model.eval()


def cogview4(folder: Path) -> Path:
    tokenizer = bpe(GLM_SPECIALS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[gMASK] <sop> $A", special_tokens=[("[gMASK]", 1), ("<sop>", 2)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|endoftext|>", eos_token="<|endoftext|>", padding_side="left"
    )  # fmt: skip
    glm = GlmModel(
        GlmConfig(
            vocab_size=len(fast), hidden_size=32, intermediate_size=48, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=2, head_dim=8, pad_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip
    transformer = CogView4Transformer2DModel(
        in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        text_embed_dim=32, time_embed_dim=16, condition_dim=4, rope_axes_dim=(64, 64),
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 16, 16), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=1, latent_channels=4, norm_num_groups=4,
        use_quant_conv=False, use_post_quant_conv=False, mid_block_add_attention=False, scaling_factor=0.7,
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(
        base_shift=0.25, max_shift=0.75, base_image_seq_len=256, use_dynamic_shifting=True,
        time_shift_type="linear",
    )  # fmt: skip
    CogView4Pipeline(
        tokenizer=fast, text_encoder=widen(glm, 1), vae=widen(vae, 2),
        transformer=widen(transformer, 3), scheduler=scheduler,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def qwen_image(folder: Path) -> Path:
    state = json.loads(bpe(QWEN_SPECIALS).to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=state["vocab"], merges=[tuple(pair) for pair in state["merges"]],
        extra_special_tokens=QWEN_SPECIALS[1:],
    )  # fmt: skip
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in QWEN_SPECIALS}
    encoder = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config={
                "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48,
                "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
                "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
            },
            vision_config={
                "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2,
                "out_hidden_size": 32, "fullatt_block_indexes": [0],
            },
            image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
            vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
        )
    )  # fmt: skip
    transformer = QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=3,
        joint_attention_dim=32, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    vae = AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 2, 2, 2], num_res_blocks=1,
        latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.1, 0.9, 1.3, 0.7],
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(
        base_shift=0.5, max_shift=0.9, base_image_seq_len=256, max_image_seq_len=8192,
        use_dynamic_shifting=True, time_shift_type="exponential", shift_terminal=0.02,
    )  # fmt: skip
    QwenImagePipeline(
        scheduler=scheduler, vae=widen(vae, 5), text_encoder=widen(encoder, 6), tokenizer=tokenizer,
        transformer=widen(transformer, 7),
    ).save_pretrained(folder)  # fmt: skip
    return folder
