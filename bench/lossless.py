"""What speeds Qwen-Image up and changes nothing: each trick beside the same work without it, on this machine's processor.

    .venv/bin/python -m bench.lossless [--write] [--rounds 7]

Networks of the published shapes, narrower (the VAE at full width), random weights, float32. Both ways take turns, so that other
programs disturb them alike. `--write` puts the table into bench/results/lossless.md. Needs `make install-engine`.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch
from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel, __version__
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from danqing.engine.families import flow, strips
from danqing.engine.families.qwen_image import QwenDenoiser, QwenImage, QwenPictures, QwenText
from danqing.engine.messages import Job
from danqing.engine.samplers import FlowMatch

WIDTH, HEADS, LAYERS = 768, 12, 6
SIDE, VAE_SIDE = 256, 128
STEPS = 4


@dataclass(frozen=True, slots=True)
class Row:
    """One trick. `without_s` and `with_s`: medians of the rounds, seconds."""

    name: str
    what: str
    without_s: float
    with_s: float
    error: float
    """The largest difference of the two results, of numbers of about 1."""


class Prompts:
    """Texts that are read by nothing: embeddings by their length."""

    def __call__(self, prompt: str) -> torch.Tensor:
        generator = torch.Generator().manual_seed(len(prompt))
        return torch.randn((16 + len(prompt), 256), generator=generator)

    def measure(self, prompt: str) -> tuple[int, int]:
        return len(prompt), 1024


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


def folded_vae(rounds: int) -> Iterable[Row]:
    plain, folding = AutoencoderKLQwenImage().eval(), AutoencoderKLQwenImage().eval()
    folding.load_state_dict(plain.state_dict())
    whole, folded = QwenPictures(plain, folded=False), QwenPictures(folding)
    latents = torch.randn((1, 16, VAE_SIDE // 8, VAE_SIDE // 8))
    (without, with_), (one, other) = in_turn(
        rounds, lambda: whole.decode(latents), lambda: folded.decode(latents)
    )
    yield Row("folded VAE", f"decoding {VAE_SIDE}²", without, with_, apart(one, other))
    (without, with_), (one, other) = in_turn(
        rounds,
        lambda: folding.decoder(latents.unsqueeze(2))[:, :, 0],
        lambda: strips.decode(folding.decoder, latents, 2**12),
    )
    yield Row("strips (for memory)", f"decoding {VAE_SIDE}²", without, with_, apart(one, other))


def text_encoder(rounds: int) -> Iterable[Row]:
    """The vocabulary's head at the published size beside a narrow trunk costs more than its share there."""
    model = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config={
                "vocab_size": 32_000, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6,
                "num_attention_heads": 8, "num_key_value_heads": 2,
                "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 12, 12]},
            },
            vision_config={"depth": 2, "hidden_size": 64, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 512, "fullatt_block_indexes": [0]},
            image_token_id=1, video_token_id=2, vision_start_token_id=3, vision_end_token_id=4,
        )
    ).eval()  # fmt: skip
    ids = torch.randint(10, 32_000, (1, 200))

    class Tokenizer:
        def __call__(self, text: str) -> Any:
            return type("Read", (), {"input_ids": ids[0].tolist()})

    ours = QwenText(Tokenizer(), model)
    (without, with_), (one, other) = in_turn(
        rounds,
        lambda: model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states[-1][0, 34:],
        lambda: ours("x"),
    )  # fmt: skip
    yield Row(
        "no LM head, no vision tower", "reading 200 tokens", without, with_, apart(one, other)
    )


def make_family(*, compiled: bool = False) -> QwenImage:
    transformer = QwenImageTransformer2DModel(
        num_layers=LAYERS, attention_head_dim=WIDTH // HEADS, num_attention_heads=HEADS,
        joint_attention_dim=256, axes_dims_rope=(8, 28, 28),
    ).eval().requires_grad_(False)  # fmt: skip
    pictures: Any = type("None", (), {"channels": 16})()
    sampling = FlowMatch(use_dynamic_shifting=True, max_image_seq_len=8192)
    return QwenImage(QwenDenoiser(transformer, compiled=compiled), pictures, Prompts(), sampling)


def make_job(side: int = SIDE, prompt: str = "a cat", guidance: float = 4.0) -> Job:
    return Job("j", "j", "a", prompt, " ", side, side, STEPS, guidance, 7)


def drawn(family: QwenImage, job: Job) -> torch.Tensor:
    state = family.start(job, family.encode([job])[0])
    for _ in range(job.steps):
        family.step([state])
    return state.latents


def tables(rounds: int) -> Iterable[Row]:
    family, job = make_family(), make_job()

    def without() -> torch.Tensor:
        kept, flow.TABLE_STEPS_MAX = flow.TABLE_STEPS_MAX, 0
        try:
            return drawn(family, job)
        finally:
            flow.TABLE_STEPS_MAX = kept

    (plain, quick), (one, other) = in_turn(rounds, without, lambda: drawn(family, job))
    yield Row("AdaLN table", f"{STEPS} steps at {SIDE}²", plain, quick, apart(one, other))


def guidance(rounds: int) -> Iterable[Row]:
    """Halves of unequal text lengths: one forward of both, against one each."""
    family, job = make_family(), make_job(64, "a long wish " * 4)
    state = family.start(job, family.encode([job])[0])
    texts = state.texts

    def apart_() -> torch.Tensor:
        halves = []
        for text in texts:
            state.texts = (text,)
            halves.append(family._velocity([state])[0])
        state.texts = texts
        scale = torch.full((1, 1, 1), job.guidance)
        return family.combine(halves[0][None], halves[1][None], scale)

    (plain, quick), (one, other) = in_turn(rounds, apart_, lambda: family._velocity([state]))
    yield Row("batched CFG", "a step at 64²", plain, quick, apart(one, other))


def recompiles() -> Iterable[Row]:
    """Seconds of the first image of a new size, where the first size has been compiled and where sizes are compiled apart."""
    torch._dynamo.reset()
    family, plain = make_family(compiled=True), make_family()
    plain.denoiser._model.load_state_dict(family.denoiser._model.state_dict())  # type: ignore[attr-defined]
    seconds: list[float] = []
    for side in (64, 96, 128):
        began = time.perf_counter()
        latents = drawn(family, make_job(side, "a cat " * (side // 32)))
        seconds.append(time.perf_counter() - began)
    error = apart(drawn(plain, make_job(128, "a cat " * 4)), latents)
    yield Row("no recompiles", "the first image of a size: the first, then a new one", seconds[0], max(seconds[1:]), error)  # fmt: skip


def report(rows: Iterable[Row], rounds: int, load: str) -> str:
    lines = [
        "# Lossless speed, on a processor",
        "",
        f"`.venv/bin/python -m bench.lossless --rounds {rounds} --threads {torch.get_num_threads()} --write`, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {os.cpu_count()} cores ({platform.machine()}), Python "
        f"{platform.python_version()}, torch {torch.__version__}, diffusers {__version__}, {torch.get_num_threads()} threads, {load}. float32, random weights;",
        f"the transformer {LAYERS} layers of width {WIDTH} (published: 60 of 3072), the VAE as published. Medians of {rounds} rounds in turn.",
        "**On a processor, at these widths**: on a graphics card the shares differ, and none of these rows was measured there.",
        "",
        "| what | work | without | with | without / with | largest difference |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row.name} | {row.what} | {row.without_s:.4f} s | {row.with_s:.4f} s | {row.without_s / row.with_s:.2f} | {row.error:.1e} |"
        )
    return "\n".join([*lines, "", "Differences are in units of the result's spread. What they change is held by `tests/engine/test_torch_families.py` (the folded VAE, the AdaLN",
                      "table and the compiled blocks have a test each; the skipped LM head is held by the one that reads the template's tokens;",
                      "batched CFG by the one that compares every step with the pipelines'), `test_torch_strips.py` (strips) and `test_torch_batching.py`",
                      "(the seed law, which batched CFG is held by too).", ""])  # fmt: skip


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
    for part in (folded_vae, text_encoder, tables, guidance):
        rows += part(asked.rounds)
        print(rows[-1], flush=True)
    rows += recompiles()
    load = f"load average before {before:.1f}, after {os.getloadavg()[0]:.1f}"
    text = report(rows, asked.rounds, load)
    print(text)
    if asked.write:
        Path(__file__).with_name("results").joinpath("lossless.md").write_text(text, "utf-8")


if __name__ == "__main__":
    main()
