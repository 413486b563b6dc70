"""Small random checkpoints for `diffusers_pipeline`, in the true layout: every part, real tokenizers. Needs torch and diffusers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLFlux2,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tokenizers import pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from tests.engine.checkpoints import QWEN_SPECIALS, bpe, widen

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def clip_tokenizer() -> CLIPTokenizer:
    """Letters and the pairs of a few words; 77 tokens at most, as OpenAI's."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("r", "e"), ("re", "d</w>"), ("c", "a"), ("ca", "t</w>")]
    words = letters + [letter + "</w>" for letter in letters]
    words += ["".join(pair) for pair in merges] + ["<|startoftext|>", "<|endoftext|>"]
    vocab = {word: i for i, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)


def clip_text(tokenizer: CLIPTokenizer, *, projected: bool = False) -> Any:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=37, num_hidden_layers=3,
        num_attention_heads=4, projection_dim=32, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def t5_tokenizer() -> T5Tokenizer:
    letters = [chr(code) for code in range(33, 127)]
    vocab = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("▁", -2.0),
        *((a, -3.0) for a in letters),
    ]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=512)


def t5_text(tokenizer: T5Tokenizer) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4)
    )


def qwen_tokenizer() -> Qwen2Tokenizer:
    state = json.loads(bpe([*QWEN_SPECIALS, "<think>", "</think>"]).to_str())["model"]
    return Qwen2Tokenizer(
        vocab=state["vocab"], merges=[tuple(pair) for pair in state["merges"]],
        extra_special_tokens=[*QWEN_SPECIALS[1:], "<think>", "</think>"], chat_template=CHAT,
        pad_token="<|endoftext|>",
    )  # fmt: skip


def qwen3(tokenizer: Qwen2Tokenizer, kind: Any, layers: int) -> Any:
    return kind(
        Qwen3Config(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=layers,
            num_attention_heads=4, num_key_value_heads=2, head_dim=8, tie_word_embeddings=True,
        )
    )  # fmt: skip


def kl(latent_channels: int = 4, blocks: int = 4, **options: Any) -> AutoencoderKL:
    """8 pixels a latent with 4 blocks, as all of them."""
    return AutoencoderKL(
        block_out_channels=(8,) * blocks, down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks, layers_per_block=1,
        latent_channels=latent_channels, norm_num_groups=4, **options,
    )  # fmt: skip


def unet(**options: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        block_out_channels=(8, 16), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), layers_per_block=1, sample_size=8,
        norm_num_groups=4, attention_head_dim=2, use_linear_projection=True, **options,
    )  # fmt: skip


def sd(folder: Path) -> Path:
    """As SD-Turbo's: Euler with trailing steps, no safety checker."""
    tokenizer = clip_tokenizer()
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        timestep_spacing="trailing", steps_offset=1,
    )  # fmt: skip
    StableDiffusionPipeline(
        vae=widen(kl(scaling_factor=0.18), 1), text_encoder=widen(clip_text(tokenizer), 2),
        tokenizer=tokenizer, unet=widen(unet(cross_attention_dim=32), 3), scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def sdxl(folder: Path) -> Path:
    first, second = clip_tokenizer(), clip_tokenizer()
    network = unet(
        cross_attention_dim=64, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=8 * 6 + 32, transformer_layers_per_block=(1, 2),
    )  # fmt: skip
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        timestep_spacing="leading", steps_offset=1,
    )  # fmt: skip
    StableDiffusionXLPipeline(
        vae=widen(kl(scaling_factor=0.13), 4), text_encoder=widen(clip_text(first), 5),
        text_encoder_2=widen(clip_text(second, projected=True), 6), tokenizer=first,
        tokenizer_2=second, unet=widen(network, 7), scheduler=scheduler,
        force_zeros_for_empty_prompt=True, add_watermarker=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def flux2_klein(folder: Path) -> Path:
    tokenizer = qwen_tokenizer()
    network = Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=3 * 32, timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
    )  # fmt: skip
    vae = AutoencoderKLFlux2(
        block_out_channels=(8,) * 4, layers_per_block=1, latent_channels=4, norm_num_groups=4,
        use_quant_conv=True, use_post_quant_conv=True,
    )  # fmt: skip
    vae = widen(vae, 8)
    generator = torch.Generator().manual_seed(9)
    vae.bn.running_mean.copy_(torch.randn(16, generator=generator) * 0.1)
    vae.bn.running_var.copy_(0.5 + torch.rand(16, generator=generator))
    Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae, text_encoder=widen(qwen3(tokenizer, Qwen3ForCausalLM, 28), 10),
        tokenizer=tokenizer, transformer=widen(network, 11), is_distilled=True,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def z_image(folder: Path) -> Path:
    tokenizer = qwen_tokenizer()
    network = ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2,
        cap_feat_dim=32, axes_dims=[4, 6, 6], axes_lens=[600, 64, 64],
    )  # fmt: skip
    ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=False),
        vae=widen(kl(scaling_factor=0.36, shift_factor=0.12, use_quant_conv=False, use_post_quant_conv=False), 12),
        text_encoder=widen(qwen3(tokenizer, Qwen3Model, 3), 13), tokenizer=tokenizer,
        transformer=widen(network, 14),
    ).save_pretrained(folder)  # fmt: skip
    return folder


def sd3(folder: Path, *, with_t5: bool = True) -> Path:
    first, second, third = clip_tokenizer(), clip_tokenizer(), t5_tokenizer()
    network = SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=16, num_layers=2, attention_head_dim=8,
        num_attention_heads=4, joint_attention_dim=64, caption_projection_dim=32,
        pooled_projection_dim=64, out_channels=16, pos_embed_max_size=32,
    )  # fmt: skip
    encoder = T5EncoderModel(
        T5Config(vocab_size=len(third), d_model=64, d_kv=8, d_ff=37, num_layers=2, num_heads=4)
    )
    StableDiffusion3Pipeline(
        transformer=widen(network, 15), scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=widen(kl(16, scaling_factor=1.5, shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False), 16),
        text_encoder=widen(clip_text(first, projected=True), 17), tokenizer=first,
        text_encoder_2=widen(clip_text(second, projected=True), 18), tokenizer_2=second,
        text_encoder_3=widen(encoder, 19) if with_t5 else None, tokenizer_3=third if with_t5 else None,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def flux(folder: Path) -> Path:
    first, second = clip_tokenizer(), t5_tokenizer()
    network = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32,
        axes_dims_rope=(4, 6, 6), guidance_embeds=True,
    )  # fmt: skip
    FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=widen(kl(scaling_factor=0.36, shift_factor=0.12, use_quant_conv=False, use_post_quant_conv=False), 20),
        text_encoder=widen(clip_text(first), 21), tokenizer=first,
        text_encoder_2=widen(t5_text(second), 22), tokenizer_2=second, transformer=widen(network, 23),
    ).save_pretrained(folder)  # fmt: skip
    return folder


def pixart_sigma(folder: Path) -> Path:
    tokenizer = t5_tokenizer()
    network = PixArtTransformer2DModel(
        sample_size=16, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=4,
        caption_channels=32, in_channels=4, cross_attention_dim=32, out_channels=8,
        norm_type="ada_norm_single", use_additional_conditions=False,
    )  # fmt: skip
    PixArtSigmaPipeline(
        tokenizer=tokenizer, text_encoder=widen(t5_text(tokenizer), 24),
        vae=widen(kl(scaling_factor=0.13), 25), transformer=widen(network, 26),
        scheduler=DPMSolverMultistepScheduler(algorithm_type="dpmsolver++"),
    ).save_pretrained(folder)  # fmt: skip
    return folder


def gemma_tokenizer() -> GemmaTokenizer:
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁"]
    letters = [chr(code) for code in range(33, 127)] + ["\n"]
    return GemmaTokenizer(vocab={word: i for i, word in enumerate([*special, *letters])}, merges=[])


def sana(folder: Path) -> Path:
    """32 pixels a latent, as its deep compression has it."""
    tokenizer = gemma_tokenizer()
    encoder = Gemma2Model(
        Gemma2Config(
            vocab_size=len(tokenizer), hidden_size=8, intermediate_size=16, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=2, head_dim=4, attn_implementation="eager",
        )
    )  # fmt: skip
    network = SanaTransformer2DModel(
        in_channels=8, out_channels=8, num_layers=1, num_attention_heads=2, attention_head_dim=4,
        num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8,
        caption_channels=8, sample_size=32,
    )  # fmt: skip
    kinds, widths, scales = ("ResBlock",) * 5, (8,) * 6, ((),) * 5
    vae = AutoencoderDC(
        latent_channels=8, attention_head_dim=2, encoder_block_types=(*kinds, "EfficientViTBlock"),
        decoder_block_types=(*kinds, "EfficientViTBlock"), encoder_block_out_channels=widths,
        decoder_block_out_channels=widths, encoder_qkv_multiscales=(*scales, (5,)),
        decoder_qkv_multiscales=(*scales, (5,)), encoder_layers_per_block=(1,) * 6,
        decoder_layers_per_block=(1,) * 6, downsample_block_type="conv",
        upsample_block_type="interpolate", scaling_factor=0.41,
    )  # fmt: skip
    SanaPipeline(
        tokenizer=tokenizer, text_encoder=widen(encoder, 27), vae=widen(vae, 28),
        transformer=widen(network, 29),
        scheduler=DPMSolverMultistepScheduler(
            use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
        ),
    ).save_pretrained(folder)  # fmt: skip
    return folder


MAKERS = {
    "sd": sd, "sdxl": sdxl, "sd3": sd3, "flux": flux, "flux2_klein": flux2_klein,
    "z_image": z_image, "pixart_sigma": pixart_sigma, "sana": sana,
}  # fmt: skip
