"""Does a checkpoint fit? Arithmetic over parameters and pixels, and what is free here. Knows no torch.

Weights are exact: parameters times the bytes of a number. What drawing takes beside them is a rough bound, from the peaks of
an H200 at 512 and 1024 pixels a side (bench/gpu.py): most of it is the picture's decoding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from danqing.engine.families.weights import Part

GIB = 2**30
NUMBER_BYTES = {"float32": 4, "bfloat16": 2}
PIXEL_BYTES = {"cogview4": 5 * 1024, "qwen_image": 2 * 1024}
"""Of one picture in bfloat16, while it is drawn and decoded at once."""
WIDE_PIXEL_BYTES = {"cogview4": 2 * 1024, "qwen_image": 3 * 512}
"""The same of a larger picture: steps take 1.5 and 1.1 KiB a pixel, decoding in strips 1.5 and 0.4, by the tensors' shapes."""
PIXEL_BYTES_OTHERS = 5 * 1024
"""Of what diffusers' pipelines draw, of any size: their decoders are CogView4's kind and no larger."""
STEP_PIXEL_BYTES = {"cogview4": 3 * 512, "qwen_image": 9 * 128}
STEP_PIXEL_BYTES_OTHERS = 2 * 1024
"""Of one picture's step, for those that are drawn while another is decoded."""
PLAIN_PIXELS_MAX = 1024 * 1024
"""Larger pictures are decoded in strips."""
ROOM_BYTES = 2 * GIB
"""Tables, embeddings, the runtime's own."""
SMALLEST_PX = 512
"""A device with no room for a square of this side is refused."""
SIDE_MAX = 2048
CARDS_GIB = (12, 24, 48, 80)
PLACES = 2
"""Blocks on the device where the others stay in main memory."""
USABLE = 0.95
"""Of a card; the driver keeps the rest."""

PUBLISHED: Mapping[str, tuple[Part, ...]] = {
    "cogview4": (
        Part("transformer", 6_369_118_272, 0, 28, 6_344_196_096),
        Part("text_encoder", 8_779_194_368, 0),
        Part("vae", 406_100_643, 0),
    ),
    "qwen_image": (
        Part("transformer", 20_430_401_088, 0, 60, 20_389_877_760),
        Part("text_encoder", 8_292_166_656, 0),
        Part("vae", 126_892_531, 0),
    ),
    "flux2_klein": (
        Part("transformer", 3_875_544_576, 0),
        Part("text_encoder", 4_022_468_096, 0),
        Part("vae", 84_046_115, 0),
    ),
    "z_image_turbo": (
        Part("transformer", 6_154_908_736, 0),
        Part("text_encoder", 4_022_468_096, 0),
        Part("vae", 83_819_683, 0),
    ),
    "sdxl": (
        Part("unet", 2_567_463_684, 0),
        Part("text_encoder", 123_060_480, 0),
        Part("text_encoder_2", 694_659_840, 0),
        Part("vae", 83_653_863, 0),
    ),
    "sd_turbo": (
        Part("unet", 865_910_724, 0),
        Part("text_encoder", 340_387_840, 0),
        Part("vae", 83_653_863, 0),
    ),
}
"""CogView4-6B with GLM-4-9B, Qwen-Image with Qwen2.5-VL-7B, FLUX.2-klein-4B and Z-Image-Turbo with Qwen3-4B, SDXL 1.0, SD-Turbo: counted
from their configs."""


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes on the device, and in main memory where the text encoder or the network's blocks stay there."""

    weights_bytes: int
    work_bytes: int
    """For a square of SMALLEST_PX."""
    beside_bytes: int
    overlap_bytes: int = 0
    """On the device, more: to decode a picture of a megapixel beside the steps of another, not between them."""

    @property
    def device_bytes(self) -> int:
        return self.weights_bytes + self.work_bytes


def need(
    family: str, parts: Sequence[Part], dtype: str, *, text_on_cpu: bool, offload: bool = False,
    side: int = SMALLEST_PX,
) -> Need:  # fmt: skip
    """What a checkpoint takes to draw squares of this side. A network smaller than the work it would do takes no more than itself."""
    number = NUMBER_BYTES[dtype]
    beside = sum(
        part.parameters for part in parts if text_on_cpu and part.name.startswith("text_encoder")
    )
    here = sum(part.parameters for part in parts) - beside
    work_max = number * here
    if offload:
        for part in parts:
            beside += part.in_blocks
            here -= part.in_blocks - PLACES * -(-part.in_blocks // max(1, part.blocks))
    weights = number * here
    work = ROOM_BYTES + _work_bytes(family, side * side) * number // 2
    work = min(work, work_max)
    both = _work_bytes(family, PLAIN_PIXELS_MAX)
    both += STEP_PIXEL_BYTES.get(family, STEP_PIXEL_BYTES_OTHERS) * PLAIN_PIXELS_MAX
    overlap = min(ROOM_BYTES + both * number // 2, 2 * work_max) - work
    return Need(weights, work, number * beside, max(0, overlap))


def pixels_max(
    family: str, parts: Sequence[Part], dtype: str, there: float, *, text_on_cpu: bool, offload: bool = False
) -> int | None:  # fmt: skip
    """The pixels of the largest picture that fits; None = any, for a network smaller than the work it would do."""
    wanted = need(family, parts, dtype, text_on_cpu=text_on_cpu, offload=offload, side=1 << 20)
    room = there - wanted.weights_bytes
    if wanted.work_bytes <= room:
        return None
    room = (room - ROOM_BYTES) * 2 / NUMBER_BYTES[dtype]
    plain = int(room // PIXEL_BYTES.get(family, PIXEL_BYTES_OTHERS))
    if plain < PLAIN_PIXELS_MAX:
        return max(0, plain)
    return max(PLAIN_PIXELS_MAX, int(room // WIDE_PIXEL_BYTES.get(family, PIXEL_BYTES_OTHERS)))


def largest_side(
    family: str, parts: Sequence[Part], there: float, *, text_on_cpu: bool, offload: bool = False
) -> int:
    """The side of the largest square, a multiple of 64 and SIDE_MAX at most, that fits in bfloat16; 0 = none."""
    wanted = need(family, parts, "bfloat16", text_on_cpu=text_on_cpu, offload=offload)
    weights = wanted.weights_bytes
    room = there - weights - ROOM_BYTES
    sides = range(SMALLEST_PX, SIDE_MAX + 1, 64)
    return max((side for side in sides if _work_bytes(family, side * side) <= room), default=0)


def _work_bytes(family: str, pixels: int) -> int:
    """In bfloat16."""
    plain = PIXEL_BYTES.get(family, PIXEL_BYTES_OTHERS) * min(pixels, PLAIN_PIXELS_MAX)
    return max(plain, WIDE_PIXEL_BYTES.get(family, PIXEL_BYTES_OTHERS) * pixels)


def cards(here_bytes: int | None = None, main_bytes: int | None = None) -> list[dict[str, str | float]]:  # fmt: skip
    """The published checkpoints on cards of 12 to 80 GiB, and of `here_bytes`: largest squares, by what stays in main memory. Computed, not measured."""
    sizes = [(card, None) for card in CARDS_GIB]
    return _rows(sizes) + ([] if here_bytes is None else cards_here(here_bytes, main_bytes))


def cards_here(here_bytes: int, main_bytes: int | None) -> list[dict[str, str | float]]:
    """The same of one card beside this much main memory; None = enough of it."""
    return _rows([(round(here_bytes / GIB, 1), main_bytes)])


def _rows(sizes: Sequence[tuple[float, int | None]]) -> list[dict[str, str | float]]:
    return [
        {"family": family, "card_gib": card} | _sides(family, parts, USABLE * card * GIB, main)
        for family, parts in PUBLISHED.items()
        for card, main in sizes
    ]


def _sides(
    family: str, parts: Sequence[Part], there: float, main_bytes: int | None
) -> dict[str, str | float]:
    def side(*, text_on_cpu: bool, offload: bool = False) -> int:
        place = {"text_on_cpu": text_on_cpu, "offload": offload}
        beside = need(family, parts, "bfloat16", **place).beside_bytes
        if main_bytes is not None and beside > main_bytes:
            return 0
        return largest_side(family, parts, there, **place)

    can_offload = any(part.blocks for part in parts)
    return {
        "side": side(text_on_cpu=False),
        "side_text_on_cpu": side(text_on_cpu=True),
        "side_offload": side(text_on_cpu=True, offload=True) if can_offload else 0,
    }


def free_here(proc: Path = Path("/proc"), group: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes of main memory that can be had: by Linux's /proc and the control group; None on other systems.

    The group's use counts files that are merely cached: those not read of late (`inactive_file`) make room when it is wanted.
    """
    found: list[int] = []
    try:
        for line in (proc / "meminfo").read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
    except (OSError, ValueError):
        return None
    try:
        most = (group / "memory.max").read_text("ascii").strip()
        if most != "max":
            used = int((group / "memory.current").read_text("ascii"))
            lines = (group / "memory.stat").read_text("ascii").splitlines()
            cached = next((int(x.split()[1]) for x in lines if x.startswith("inactive_file ")), 0)
            found.append(int(most) - max(0, used - cached))
    except (OSError, ValueError):
        pass
    return max(0, min(found)) if found else None


def shortage(device: str, wanted: Need, there: int) -> str | None:
    """Why it does not fit on the device, in a plain line; None where it does."""
    if wanted.device_bytes <= there:
        return None
    return (
        f"{device} has {there / GIB:.1f} GiB free, but the weights take {wanted.weights_bytes / GIB:.1f} GiB"
        f" and drawing {wanted.work_bytes / GIB:.1f} GiB at {SMALLEST_PX}x{SMALLEST_PX}"
    )
