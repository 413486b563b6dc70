"""The invisible pixel mark on 200 pictures: how unseen it is, what it outlives, what it costs. `python -m bench.marks [--output FILE]`

No photograph is in this repository: ten in eleven pictures have photographs' statistics or a drawing's (bench/_pictures.py), the others are
drawn by the pocket model. Times are CPU time of all threads, so a busy machine changes them little and a thread that spins shows.
"""

from __future__ import annotations

import argparse
import io
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from bench._pictures import KINDS, Pixels, picture
from danqing.catalog import load
from danqing.domain.sizes import Size
from danqing.labelling import sizes_of
from danqing.service.finishing import Finisher, LabelPlan, Secrets
from danqing.service.hidden_label import Sealer
from danqing.service.pixel_crop import CutReader
from danqing.service.pixel_mark import Found, PixelMarker
from danqing.settings import LabelSettings, Settings
from danqing.storage import codecs

SIZES = (Size(512, 512), Size(1024, 1024), Size(768, 512), Size(640, 960))
COUNT = 200
MARKER = PixelMarker(b"bench" * 8)
MODELS_SIZES = sizes_of(load(Settings()))
CUT = CutReader(MARKER, MODELS_SIZES | set(SIZES))
CUT_OTHERS = [CutReader(PixelMarker(bytes([number]) * 32), MODELS_SIZES) for number in range(2)]
OTHERS = [PixelMarker(bytes([number]) * 32) for number in range(20)]

Change = Callable[[Pixels], Pixels]


def _coded(format: str, quality: int) -> Change:
    def change(pixels: Pixels) -> Pixels:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, format, quality=quality)
        return np.asarray(Image.open(file).convert("RGB"))

    return change


def _resized(factor: float) -> Change:
    def change(pixels: Pixels) -> Pixels:
        height, width, _ = pixels.shape
        return np.asarray(
            Image.fromarray(pixels).resize((round(width * factor), round(height * factor)))
        )

    return change


def _brightness(factor: float) -> Change:
    return lambda pixels: np.asarray(
        ImageEnhance.Brightness(Image.fromarray(pixels)).enhance(factor)
    )


def _cropped(share: float) -> Change:
    def change(pixels: Pixels) -> Pixels:
        height, width, _ = pixels.shape
        y, x = round(height * share), round(width * share)
        return pixels[y : height - y, x : width - x]

    return change


CHANGES: dict[str, Change] = {
    "none": lambda pixels: pixels,
    "JPEG q75": _coded("JPEG", 75),
    "JPEG q50": _coded("JPEG", 50),
    "WebP q80": _coded("WEBP", 80),
    "resized to 50 %": _resized(0.5),
    "resized to 200 %": _resized(2),
    "brightness -20 %": _brightness(0.8),
    "brightness +20 %": _brightness(1.2),
    "50 %, then JPEG q75": lambda pixels: _coded("JPEG", 75)(_resized(0.5)(pixels)),
}
CROPS: dict[str, Change] = {
    "cropped by 0.1 % a side": _cropped(0.001),
    "cropped by 0.3 % a side": _cropped(0.003),
    "cropped by 1 % a side": _cropped(0.01),
    "cropped by 5 % a side": _cropped(0.05),
    "cropped by 10 % a side": _cropped(0.1),
    "cropped by 20 % a side": _cropped(0.2),
    "the lowest 8 % cut off": lambda pixels: pixels[: pixels.shape[0] * 92 // 100],
    "cropped by 10 % a side, then JPEG q75": lambda pixels: _coded("JPEG", 75)(
        _cropped(0.1)(pixels)
    ),
    "cropped by 10 % a side, then 90 % of the size": lambda pixels: _resized(0.9)(
        _cropped(0.1)(pixels)
    ),
}


def pictures(count: int, pocket: Path | None) -> Iterator[tuple[str, Pixels]]:
    """`count` pictures of all kinds and sizes in turn; `pocket` is a folder of the pocket model's."""
    drawings = sorted(pocket.glob("*.png")) if pocket else []
    kinds = [*KINDS, "pocket"] if drawings else list(KINDS)
    for number in range(count):
        kind = kinds[number % len(kinds)]
        size = SIZES[(number // len(kinds)) % len(SIZES)]
        if kind == "pocket":
            file = drawings[(number // len(kinds)) % len(drawings)]
            yield kind, np.asarray(Image.open(file).convert("RGB"))
        else:
            yield kind, picture(kind, 10_000 + number, size.height, size.width)


def psnr(one: Pixels, other: Pixels) -> float:
    error = float(((one.astype(np.float32) - other) ** 2).mean())
    return 10 * float(np.log10(255**2 / max(error, 1e-9)))


def robustness(count: int, pocket: Path | None) -> list[str]:
    found: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    seen: dict[str, list[float]] = defaultdict(list)
    false = false_cut = 0
    for number, (kind, plain) in enumerate(pictures(count, pocket)):
        image_id = f"{number * 88_888_888_887 % 2**44:011x}"
        marked = MARKER.mark(plain, image_id)
        seen[kind].append(psnr(plain, marked))
        false += sum(marker.find(plain) is not None for marker in OTHERS)
        part = CROPS["cropped by 5 % a side"](plain)
        false_cut += sum(reader.find(part) is not None for reader in CUT_OTHERS)
        for name, change in (CHANGES | CROPS).items():
            changed = change(marked)
            read: Found | None = MARKER.find(changed)
            if read is None and name in CROPS:
                read = CUT.find(changed)
            found[name][kind].append(read is not None and read.image_id == image_id)
    kinds = list(seen)
    lines = [f"| | all {count} | {' | '.join(kinds)} |", "|---|---" + "|---" * len(kinds) + "|"]
    lowest = [f"{min(values):.1f}" for values in seen.values()]
    everywhere = min(min(values) for values in seen.values())
    lines.append(f"| lowest PSNR, dB | {everywhere:.1f} | {' | '.join(lowest)} |")
    for name, by_kind in found.items():
        whole = [one for values in by_kind.values() for one in values]
        cells = [f"{sum(by_kind[kind])}/{len(by_kind[kind])}" for kind in kinds]
        lines.append(f"| {name} | {100 * sum(whole) / len(whole):.1f} % | {' | '.join(cells)} |")
    trials = count * len(OTHERS)
    lines += [
        "",
        f"Marks found in the pictures before they were marked, under {len(OTHERS)} other keys each: {false} of {trials}; "
        f"when they were cropped by 5 % a side, under {len(CUT_OTHERS)} each: {false_cut} of {count * len(CUT_OTHERS)}.",
    ]
    return lines


def speed(rounds: int = 7) -> list[str]:
    """CPU milliseconds at 1024x1024, the median of several rounds over three kinds."""
    plain = LabelPlan(visible=False, metadata=False, producer="Danqing")
    full = LabelPlan(visible=True, metadata=True, producer="Danqing", pixel=True)
    finisher = Finisher(LabelSettings(), Secrets(MARKER, Sealer(b"s" * 32)))
    images = [picture(kind, 3, 1024, 1024) for kind in ("landscape", "leaves", "poster")]
    lines = ["| CPU ms at 1024x1024 | ms |", "|---|---|"]

    def median(work: Callable[[Pixels], object]) -> float:
        times: list[float] = []
        for pixels in images * rounds:
            started = time.process_time()
            work(pixels)
            times.append((time.process_time() - started) * 1000)
        return float(np.median(times))

    marked = [MARKER.mark(pixels, "0a1b2c3d4e5") for pixels in images]
    lines.append(f"| mark | {median(lambda pixels: MARKER.mark(pixels, '0a1b2c3d4e5')):.0f} |")
    lines.append(f"| find | {median(lambda pixels: MARKER.find(marked[0])):.0f} |")
    part = CROPS["cropped by 5 % a side"](marked[0])
    lines.append(f"| find in a cropped picture | {median(lambda pixels: CUT.find(part)):.0f} |")
    nothing = median(lambda pixels: CUT.find(CROPS["cropped by 5 % a side"](pixels)))
    lines.append(f"| find no crop, in as many sizes as are tried | {nothing:.0f} |")
    for format in ("png", "jpeg", "webp"):
        alone = median(lambda pixels, format=format: codecs.encode(pixels, format))
        lines.append(f"| {format}: the encoder alone | {alone:.0f} |")
        for name, plan in (("labels, mark, seal and encoder", full), ("no label", plain)):
            taken = median(
                lambda pixels, format=format, plan=plan: finisher.finish(
                    pixels,
                    image_id="0a1b2c3d4e5",
                    format=format,
                    compression=None,
                    plan=plan,
                    prompt="a cat",
                )
            )
            lines.append(f"| {format}: {name} | {taken:.0f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--pocket", type=Path, help="a folder of PNGs that the pocket model drew")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    command = f"python -m bench.marks --count {arguments.count}" + (
        " --pocket FOLDER" if arguments.pocket else ""
    )
    text = "\n".join(
        [
            "# The pixel mark",
            "",
            f"`{command}`; a mark counts as recovered when its own id is read.",
            "",
            *robustness(arguments.count, arguments.pocket),
            "",
            *speed(),
            "",
        ]
    )
    if arguments.output:
        arguments.output.write_text(text, "utf-8")
    print(text)


if __name__ == "__main__":
    main()
