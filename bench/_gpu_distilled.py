"""FLUX.2-klein-4B and Z-Image-Turbo end to end: a prompt's text in, a PNG in hand. Random weights, full size, text encoders too.

The configs are those of the published checkpoints' config.json files. Speed does not depend on the weights' values. The tokenizer is a
small one of bytes: both pipelines pad what they read to 512 tokens (Z-Image's network then takes only the prompt's own).
Needs torch, diffusers and transformers; no web stack, so HTTP is not in these figures.
"""

from __future__ import annotations

import io
import statistics
import threading
import time
from typing import TYPE_CHECKING, Any

import diffusers
import torch
import transformers
from PIL import Image
from tokenizers import pre_tokenizers

from danqing.domain.pipelines import PIPELINES
from danqing.engine.core import EngineCore
from danqing.engine.families.diffusers_pipeline import DiffusersPipeline
from danqing.engine.messages import Job, JobDrawn, JobFailed, Submit

if TYPE_CHECKING:
    from bench._gpu_measure import Bench

NAMES = ("flux2_klein", "z_image_turbo")
STEPS = {"flux2_klein": 4, "z_image_turbo": 8}
GUIDANCE = {"flux2_klein": 1.0, "z_image_turbo": 0.0}
MARKS_S = {"flux2_klein": 0.5, "z_image_turbo": 1.0}
"""What row 6 of the list asks for at 1024 pixels a side on an H200."""
ROUNDS = 5
DRAWN_S_MAX = 300.0

QWEN3_4B: dict[str, Any] = {
    "vocab_size": 151936, "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True,
    "max_position_embeddings": 40960,
}  # fmt: skip
KL: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512), "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4, "layers_per_block": 2, "norm_num_groups": 32,
}  # fmt: skip
CONFIGS: dict[str, dict[str, dict[str, Any]]] = {
    "flux2_klein": {
        "transformer": {
            "in_channels": 128, "num_layers": 5, "num_single_layers": 20, "attention_head_dim": 128,
            "num_attention_heads": 24, "joint_attention_dim": 7680, "timestep_guidance_channels": 256,
            "mlp_ratio": 3.0, "axes_dims_rope": (32, 32, 32, 32), "rope_theta": 2000, "guidance_embeds": False,
        },
        "vae": {**KL, "latent_channels": 32},
        "scheduler": {"shift": 3.0, "use_dynamic_shifting": True},
    },
    "z_image_turbo": {
        "transformer": {
            "in_channels": 16, "dim": 3840, "n_layers": 30, "n_refiner_layers": 2, "n_heads": 30,
            "n_kv_heads": 30, "cap_feat_dim": 2560, "axes_dims": [32, 48, 48], "axes_lens": [1536, 512, 512],
        },
        "vae": {
            **KL, "latent_channels": 16, "scaling_factor": 0.3611, "shift_factor": 0.1159,
            "use_quant_conv": False, "use_post_quant_conv": False,
        },
        "scheduler": {"shift": 3.0},
    },
}  # fmt: skip
_SMALL_TEXT: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 28, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 300,
}  # fmt: skip
_SMALL_KL: dict[str, Any] = {
    "block_out_channels": (8,) * 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
TINY: dict[str, dict[str, dict[str, Any]]] = {
    "flux2_klein": {
        "transformer": {
            "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
            "num_attention_heads": 2, "joint_attention_dim": 96, "axes_dims_rope": (4, 4, 4, 4),
        },
        "vae": {**_SMALL_KL, "latent_channels": 4},
        "text_encoder": _SMALL_TEXT,
    },
    "z_image_turbo": {
        "transformer": {
            "in_channels": 4, "dim": 32, "n_layers": 1, "n_refiner_layers": 1, "n_heads": 2,
            "n_kv_heads": 2, "cap_feat_dim": 32, "axes_dims": [4, 6, 6],
        },
        "vae": {**_SMALL_KL, "latent_channels": 4},
        "text_encoder": _SMALL_TEXT,
    },
}  # fmt: skip
CLASSES: dict[str, tuple[Any, Any]] = {
    "flux2_klein": (diffusers.Flux2Transformer2DModel, diffusers.AutoencoderKLFlux2),
    "z_image_turbo": (diffusers.ZImageTransformer2DModel, diffusers.AutoencoderKL),
}
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PROMPT = "a red apple and a glass of water on a wooden table by the window, morning light, {}"


def sizes_of(name: str, *, tiny: bool = False) -> dict[str, dict[str, Any]]:
    """The configs of the parts."""
    sizes = {**CONFIGS[name], "text_encoder": QWEN3_4B}
    small = TINY[name] if tiny else {}
    return {part: {**config, **small.get(part, {})} for part, config in sizes.items()}


def tokenizer() -> Any:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return transformers.Qwen2Tokenizer(
        vocab={word: i for i, word in enumerate([*letters, *special])}, merges=[],
        pad_token="<|endoftext|>", chat_template=CHAT, extra_special_tokens=special[1:],
    )  # fmt: skip


def build(bench: Bench, name: str, *, compiled: bool) -> DiffusersPipeline:
    """The family over random weights, straight on the device."""
    from bench._gpu_models import made_on

    sizes = sizes_of(name, tiny=bench.tiny)
    dtype = torch.float32 if bench.device.type == "cpu" else torch.bfloat16
    transformer_class, vae_class = CLASSES[name]
    torch.manual_seed(0)
    with made_on(bench.device, dtype):
        parts: dict[str, Any] = {
            "transformer": transformer_class(**sizes["transformer"]),
            "vae": vae_class(**sizes["vae"]),
            "text_encoder": transformers.Qwen3Model(
                transformers.Qwen3Config(**sizes["text_encoder"])
            ),
        }
    for part in parts.values():
        part.eval().requires_grad_(False)
    parts["tokenizer"] = tokenizer()
    parts["scheduler"] = diffusers.FlowMatchEulerDiscreteScheduler(**sizes["scheduler"])
    if name == "flux2_klein":
        parts["is_distilled"] = True
    if compiled:
        parts["transformer"].compile_repeated_blocks(fullgraph=True, dynamic=True)
    return DiffusersPipeline(PIPELINES[name], parts, bench.device)


class _Served:
    """The engine around a family: a prompt in, a PNG out."""

    def __init__(self, family: DiffusersPipeline, name: str, side: int) -> None:
        self._name, self._side = name, side
        self._core = EngineCore(lambda: family, warm_up=None, batch_max=1)
        self._ended = threading.Event()
        self._end: Any = None
        self._core.listen(self._listen)
        self._core.start()
        self._core.loaded.result()

    def _listen(self, event: object) -> None:
        if isinstance(event, JobDrawn | JobFailed):
            self._end = event
            self._ended.set()

    def draw(self, number: int, prompt: str) -> dict[str, float]:
        """Seconds of an image until its PNG is there, and of its stages."""
        self._ended.clear()
        job = Job(
            id=str(number), task_id=str(number), account_id="a", prompt=prompt, negative_prompt="",
            width=self._side, height=self._side, steps=STEPS[self._name],
            guidance=GUIDANCE[self._name], seed=number,
        )  # fmt: skip
        started_s = time.perf_counter()
        self._core.submit(Submit((job,)))
        if not self._ended.wait(DRAWN_S_MAX):
            raise TimeoutError("no image came")
        drawn_s = time.perf_counter() - started_s
        if isinstance(self._end, JobFailed):
            raise RuntimeError(self._end.message)
        out = io.BytesIO()
        Image.fromarray(self._end.pixels).save(out, "PNG", compress_level=1)
        png_s = time.perf_counter() - started_s - drawn_s
        stages = {f"{key}_s": ms / 1000 for key, ms in self._end.timing_ms.items()}
        return {
            "whole_s": drawn_s + png_s,
            "png_s": png_s,
            "png_bytes": len(out.getvalue()),
            **stages,
        }

    def stop(self) -> None:
        self._core.stop()


def distilled(bench: Bench, name: str, side: int, *, compiled: bool = False) -> dict[str, Any]:
    """One image after the other, each with a prompt of its own, then one whose text was read before; medians of ROUNDS."""
    bench.reset_peak()
    started_s = time.perf_counter()
    family = build(bench, name, compiled=compiled)
    bench.wait()
    built_s = time.perf_counter() - started_s
    served = _Served(family, name, side)
    try:
        first = served.draw(0, PROMPT.format("warm-up"))
        served.draw(1, PROMPT.format("warm-up"))
        rounds = [served.draw(i + 2, PROMPT.format(i)) for i in range(ROUNDS)]
        again = [served.draw(i + 20, PROMPT.format(0)) for i in range(ROUNDS)]
    finally:
        served.stop()
    row: dict[str, Any] = {
        key: round(statistics.median(each[key] for each in rounds), 4) for key in rounds[0]
    }
    row |= {
        "side": side, "steps": STEPS[name], "compiled": compiled, "built_s": round(built_s, 1),
        "first_s": round(first["whole_s"], 2), "rounds_s": [round(each["whole_s"], 4) for each in rounds],
        "read_before_s": round(statistics.median(each["whole_s"] for each in again), 4),
    }  # fmt: skip
    if bench.device.type == "cuda":
        row["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        if side == 1024:
            row |= {"mark_s": MARKS_S[name], "reached": row["whole_s"] <= MARKS_S[name]}
        del family, served
        torch._dynamo.reset()
        torch.cuda.empty_cache()
    return row
