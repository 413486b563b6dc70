"""What speeds the torch families up and changes nothing: each trick beside the same work without it, on this machine's processor.

    .venv/bin/python -m bench.lossless [--write] [--rounds 7]

Networks of the published shapes, narrower (Qwen's VAE at full width), random weights, float32. Both ways take turns, so that other
programs disturb them alike. `--write` puts the table into bench/results/lossless.md. Needs `make install-engine`.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch._inductor.config
from diffusers import (
    AutoencoderKLQwenImage,
    CogView4Transformer2DModel,
    QwenImageTransformer2DModel,
    __version__,
)
from transformers import (
    GlmConfig,
    GlmModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from bench._without import halves_apart, whole_glm, whole_qwen, without_tables
from danqing.engine.families import strips
from danqing.engine.families.cogview4 import CogView4, CogView4Denoiser, CogView4Text
from danqing.engine.families.flow import FlowFamily
from danqing.engine.families.qwen_image import QwenDenoiser, QwenImage, QwenPictures, QwenText
from danqing.engine.messages import Job
from danqing.engine.samplers import FlowMatch

FAMILIES = ("cogview4", "qwen_image")
STEPS = 4


@dataclass(frozen=True, slots=True)
class Shape:
    """How large the networks are and what they draw."""

    width: int = 768
    heads: int = 12
    layers: int = 6
    small_side: int = 64
    vae_width: int = 96
    vae_side: int = 128
    text_width: int = 512
    text_layers: int = 6
    words: int = 32_000


SHAPE = Shape()


@contextmanager
def small() -> Iterator[None]:
    """Tiny networks, for a dry run."""
    global SHAPE
    kept = SHAPE
    SHAPE = Shape(
        width=48, heads=2, layers=2, vae_width=8, vae_side=64, text_width=64, text_layers=2, words=100,
    )  # fmt: skip
    try:
        yield
    finally:
        SHAPE = kept


@dataclass(frozen=True, slots=True)
class Row:
    """One trick. `without_s` and `with_s`: medians of the rounds, seconds."""

    name: str
    what: str
    without_s: float
    with_s: float
    error: float
    """The largest difference of the two results, of numbers of about 1."""
    test: str
    """What holds it, in tests/engine."""


class Prompts:
    """Texts that are read by nothing: embeddings by their length."""

    def __call__(self, prompt: str) -> torch.Tensor:
        generator = torch.Generator().manual_seed(len(prompt))
        return torch.randn((16 + len(prompt), 256), generator=generator)

    def measure(self, prompt: str) -> tuple[int, int]:
        return len(prompt), 1024


class Ids:
    """A tokenizer that reads the same whatever it is asked."""

    pad_token_id = 0

    def __init__(self, count: int) -> None:
        self.ids = torch.randint(10, SHAPE.words, (1, count))

    def __call__(self, text: str) -> Any:
        return type("Read", (), {"input_ids": self.ids[0].tolist()})


def in_turn(rounds: int, *ways: Callable[[], Any]) -> tuple[list[float], list[Any]]:
    """Medians of each way's seconds, after one round that does not count, and the last results."""
    times: list[list[float]] = [[] for _ in ways]
    found: list[Any] = [None for _ in ways]
    with torch.inference_mode():
        for number in range(rounds + 1):
            for place, way in enumerate(ways):
                began = time.perf_counter()
                found[place] = way()
                if number:
                    times[place].append(time.perf_counter() - began)
    return [median(each) for each in times], found


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference, in units of the numbers' own spread."""
    return float((one - other).abs().max() / one.std())


def compared(
    rounds: int, name: str, what: str, test: str, without: Callable[[], Any], with_: Callable[[], Any]
) -> Row:  # fmt: skip
    times, found = in_turn(rounds, without, with_)
    return Row(name, what, *times, apart(*found), test)


def folded_vae(rounds: int) -> Iterable[Row]:
    options: dict[str, Any] = {"base_dim": SHAPE.vae_width}
    plain, folding = (AutoencoderKLQwenImage(**options).eval() for _ in range(2))
    folding.load_state_dict(plain.state_dict())
    whole, folded = QwenPictures(plain, folded=False), QwenPictures(folding)
    latents = torch.randn((1, 16, SHAPE.vae_side // 8, SHAPE.vae_side // 8))
    what = f"decoding {SHAPE.vae_side}²"
    test = "test_torch_families.py::test_folded_vae_is_the_whole_one"
    yield compared(
        rounds, "folded VAE", what, test, lambda: whole.decode(latents), lambda: folded.decode(latents)
    )  # fmt: skip
    yield compared(
        rounds, "strips", f"{what}, for memory", "test_torch_strips.py::test_strips_are_the_whole",
        lambda: folding.decoder(latents.unsqueeze(2))[:, :, 0],
        lambda: strips.decode(folding.decoder, latents, 2**12),
    )  # fmt: skip


def text_encoders(rounds: int) -> Iterable[Row]:
    """The vocabulary's head at nearly the published size beside a narrow trunk costs more than its share there."""
    width, layers = SHAPE.text_width, SHAPE.text_layers
    sizes: dict[str, Any] = {
        "vocab_size": SHAPE.words, "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers,
        "num_attention_heads": 8, "num_key_value_heads": 2,
    }  # fmt: skip
    eighth = width // 16
    sections = [eighth - 2 * (eighth * 3 // 8), eighth * 3 // 8, eighth * 3 // 8]
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections}
    model = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config=sizes | {"rope_parameters": rope},
            vision_config={"depth": 2, "hidden_size": 64, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": width, "fullatt_block_indexes": [0]},
            image_token_id=1, video_token_id=2, vision_start_token_id=3, vision_end_token_id=4,
        )
    ).eval()  # fmt: skip
    tokens, what = Ids(200), "reading 200 tokens"
    qwen = QwenText(tokens, model)
    yield compared(
        rounds, "no LM head, no vision tower", what,
        "test_torch_lossless.py::test_a_prompt_is_read_the_same_without_head_and_vision_tower",
        lambda: whole_qwen(model, tokens.ids)[34:], lambda: qwen("x"),
    )  # fmt: skip
    tokens = Ids(208)
    config: dict[str, Any] = sizes | {"head_dim": width // 8, "pad_token_id": 0, "eos_token_id": 0}
    whole, part = (GlmModel(GlmConfig(**config)).eval() for _ in range(2))
    part.load_state_dict(whole.state_dict())
    glm = CogView4Text(tokens, part)
    yield compared(
        rounds, "no last layer", "reading 208 tokens (cogview4)",
        "test_torch_lossless.py::test_a_prompt_is_read_the_same_without_the_last_layer",
        lambda: whole_glm(whole, tokens.ids), lambda: glm("x"),
    )  # fmt: skip


def make_family(name: str, *, compiled: bool = False) -> FlowFamily:
    pictures: Any = type("None", (), {"channels": 16})()
    head = SHAPE.width // SHAPE.heads
    common: dict[str, Any] = {
        "num_layers": SHAPE.layers, "attention_head_dim": head, "num_attention_heads": SHAPE.heads
    }  # fmt: skip
    if name == "cogview4":
        network = CogView4Transformer2DModel(**common, text_embed_dim=256)
        network = network.eval().requires_grad_(False)
        denoiser = CogView4Denoiser(network, compiled=compiled)
        return CogView4(denoiser, pictures, Prompts(), FlowMatch(use_dynamic_shifting=True))
    axis = (head - head // 8) // 4 * 2
    network = QwenImageTransformer2DModel(
        **common, joint_attention_dim=256, axes_dims_rope=(head - 2 * axis, axis, axis)
    )
    denoiser = QwenDenoiser(network.eval().requires_grad_(False), compiled=compiled)
    sampling = FlowMatch(use_dynamic_shifting=True, max_image_seq_len=8192)
    return QwenImage(denoiser, pictures, Prompts(), sampling)


def make_job(side: int, prompt: str = "a cat", guidance: float = 4.0) -> Job:
    return Job("j", "j", "a", prompt, " ", side, side, STEPS, guidance, 7)


def drawn(family: FlowFamily, job: Job) -> torch.Tensor:
    state = family.start(job, family.encode([job])[0])
    for _ in range(job.steps):
        family.step([state])
    return state.latents


def tables(rounds: int, name: str) -> Iterable[Row]:
    """At a small size, where a step is short beside its modulation."""
    family, job = make_family(name), make_job(SHAPE.small_side)

    def without() -> torch.Tensor:
        with without_tables():
            return drawn(family, job)

    yield compared(
        rounds, f"AdaLN table, {name}", f"{STEPS} steps at {SHAPE.small_side}²",
        "test_torch_lossless.py::test_a_table_of_modulation_is_what_each_step_would_compute",
        without, lambda: drawn(family, job),
    )  # fmt: skip


def guidance(rounds: int, name: str) -> Iterable[Row]:
    """Halves of unequal text lengths: one forward of both, against one each."""
    family, job = make_family(name), make_job(SHAPE.small_side, "a long wish " * 4)

    def without() -> torch.Tensor:
        with halves_apart(family):
            return drawn(family, job)

    yield compared(
        rounds, f"batched CFG, {name}", f"{STEPS} steps at {SHAPE.small_side}²",
        "test_torch_lossless.py::test_both_guidance_halves_in_one_forward_are_two_forwards",
        without, lambda: drawn(family, job),
    )  # fmt: skip


def recompiles(name: str) -> Iterable[Row]:
    """Seconds of the first image of a new size, where the first size has been compiled and where sizes are compiled apart."""
    torch._dynamo.reset()
    torch._inductor.config.force_disable_caches = True  # what an earlier run left on disk
    family, plain = make_family(name, compiled=True), make_family(name)
    plain.denoiser._model.load_state_dict(family.denoiser._model.state_dict())  # type: ignore[attr-defined]
    seconds: list[float] = []
    latents = torch.zeros(())
    with torch.inference_mode():
        for side in (64, 96, 128):
            began = time.perf_counter()
            latents = drawn(family, make_job(side, "a cat " * (side // 32)))
            seconds.append(time.perf_counter() - began)
    error = apart(drawn(plain, make_job(128, "a cat " * 4)), latents)
    yield Row(
        f"no recompiles, {name}", "the first image of a size: the first, then a new one",
        seconds[0], max(seconds[1:]), error, "test_torch_families.py::test_compiled_blocks_draw_the_same",
    )  # fmt: skip


def measure(rounds: int) -> Iterator[Row]:
    for part in (folded_vae, text_encoders):
        yield from part(rounds)
    for name in FAMILIES:
        yield from tables(rounds, name)
        yield from guidance(rounds, name)
        yield from recompiles(name)


LOUD = "**The machine was loud: a ratio near 1 tells nothing, be it above or below.**"


def report(rows: Iterable[Row], rounds: int, loads: tuple[float, float]) -> str:
    lines = [
        "# Lossless speed, on a processor",
        "",
        f"`.venv/bin/python -m bench.lossless --rounds {rounds} --threads {torch.get_num_threads()} --write`, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {os.cpu_count()} cores ({platform.machine()}), Python "
        f"{platform.python_version()}, torch {torch.__version__}, diffusers {__version__}, {torch.get_num_threads()} threads, load average before {loads[0]:.1f}, after {loads[1]:.1f}. float32, random weights;",
        f"the transformers {SHAPE.layers} layers of width {SHAPE.width} (published: cogview4 28 of 4096, qwen_image 60 of 3072), Qwen's VAE as published. Medians of {rounds} rounds in turn.",
        "**On a processor, at these widths**: on a graphics card the shares differ, and none of these rows was measured there (`bench/gpu.py --lossless` has the cells).",
        *([LOUD] if max(loads) > (os.cpu_count() or 1) else []),
        "",
        "| what | work | without | with | without / with | largest difference |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row.name} | {row.what} | {row.without_s:.4f} s | {row.with_s:.4f} s | {row.without_s / row.with_s:.2f} | {row.error:.1e} |"
        )
    held = "; ".join(f"{row.name}: `{row.test}`" for row in rows)
    after = "Differences are in units of the result's spread. That nothing changes is held, in `tests/engine`, by a test each: "
    return "\n".join([*lines, "", f"{after}{held}.", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    asked = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(asked.threads)
    before = os.getloadavg()[0]
    rows: list[Row] = []
    for row in measure(asked.rounds):
        rows.append(row)
        print(replace(row, test=""), flush=True)
    text = report(rows, asked.rounds, (before, os.getloadavg()[0]))
    print(text)
    if asked.write:
        Path(__file__).with_name("results").joinpath("lossless.md").write_text(text, "utf-8")


if __name__ == "__main__":
    main()
