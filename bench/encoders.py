"""Which image encoder serves best: time and bytes of PNG, JPEG and WebP variants at 1024x1024, one thread.

    .venv/bin/python -m bench.encoders [--rounds 9] [--out bench/results/encoders.md]

Every variant encodes the same three pictures in every round, in turn, so a busy moment of the machine
hits all of them alike; the table shows medians of processor time. Nothing of danqing is imported but the encoder chosen.
Libraries that were tried and not chosen join in where they are installed:

    .venv/bin/pip install zlib-ng deflate fpng simplejpeg imagecodecs opencv-python-headless
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import importlib.metadata
import io
import os
import platform
import statistics
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from isal import isal_zlib
from PIL import Image, ImageDraw, features

from danqing.domain.task import Pixels
from danqing.storage import codecs

SIDE = 1024
Encoder = Callable[[Pixels], bytes]


def flat() -> Pixels:
    """A vector scene: gradient sky, ground, discs."""
    image = Image.new("RGB", (SIDE, SIDE))
    draw = ImageDraw.Draw(image)
    for y in range(SIDE):
        draw.line((0, y, SIDE, y), fill=(90 + y // 12, 150 + y // 16, 230))
    draw.rectangle((0, 700, SIDE, SIDE), fill=(94, 160, 72))
    for i in range(9):
        x, y, r = 80 + 110 * i, 300 + (i * 211) % 500, 40 + 13 * (i % 4)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(230, (40 * i) % 255, (90 * i) % 255))
    return np.asarray(image)


def pocket() -> Pixels:
    """What a small network gives: the scene at 256 px with faint noise, resized to 1024."""
    small = np.asarray(Image.fromarray(flat()).resize((256, 256))).astype(np.float32)
    small += np.random.default_rng(1).normal(0, 2.0, small.shape)
    image = Image.fromarray(small.clip(0, 255).astype(np.uint8))
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def photo() -> Pixels:
    """Photograph-like: noise with a 1/f spectrum, as natural images have, plus sensor grain."""
    rng = np.random.default_rng(2)
    fy, fx = np.meshgrid(np.fft.fftfreq(SIDE), np.fft.fftfreq(SIDE), indexing="ij")
    falloff = 1 / np.maximum(np.hypot(fx, fy), 1 / SIDE) ** 1.2
    grey = np.fft.ifft2(np.fft.fft2(rng.normal(size=(SIDE, SIDE))) * falloff).real
    tint = np.fft.ifft2(np.fft.fft2(rng.normal(size=(SIDE, SIDE))) * falloff).real
    grey, tint = grey / grey.std(), tint / tint.std()
    rgb = np.stack([grey + 0.3 * tint, grey, grey - 0.3 * tint], axis=-1) * 45 + 125
    return (rgb + rng.normal(0, 2.5, rgb.shape)).clip(0, 255).astype(np.uint8)


def pillow(format: str, **options: object) -> Encoder:
    """Pillow's own encoder."""

    def encode(pixels: Pixels) -> bytes:
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, format, **options)
        return out.getvalue()

    return encode


def filtered(pixels: Pixels, filter_type: int) -> Pixels:
    """The picture's rows under one PNG filter, by numpy, each behind its filter's number."""
    height, width = pixels.shape[:2]
    rows = np.empty((height, 1 + width * 3), np.uint8)
    rows[:, 0] = filter_type
    raw = pixels.reshape(height, width * 3)
    rows[:, 1:] = raw
    if filter_type == 1:
        rows[:, 4:] -= raw[:, :-3]
    elif filter_type == 2:
        rows[1:, 1:] -= raw[:-1]
    elif filter_type == 3:
        up, left = np.zeros_like(raw), np.zeros_like(raw)
        up[1:], left[:, 3:] = raw[:-1], raw[:, :-3]
        rows[:, 1:] -= (up & left) + ((up ^ left) >> 1)  # the mean, without a wider type
    return rows


def png(filter_type: int, deflate: Callable[[Pixels], bytes]) -> Encoder:
    """One PNG filter for all rows, and a deflate of the zlib format."""

    def encode(pixels: Pixels) -> bytes:
        height, width = pixels.shape[:2]
        data = deflate(filtered(pixels, filter_type))
        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        out = b"\x89PNG\r\n\x1a\n"
        for kind, body in ((b"IHDR", header), (b"IDAT", data), (b"IEND", b"")):
            crc = zlib.crc32(body, zlib.crc32(kind))
            out += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)
        return out

    return encode


def packer(
    level: int, strategy: int = zlib.Z_DEFAULT_STRATEGY, module: Any = zlib
) -> Callable[[Pixels], bytes]:
    """zlib's deflate, or that of a module with its face."""

    def deflate(rows: Pixels) -> bytes:
        one = module.compressobj(level, zlib.DEFLATED, 15, 9, strategy)
        return one.compress(rows.data) + one.flush()

    return deflate


def optional() -> dict[str, Encoder]:
    """The libraries that are installed but not chosen."""
    table: dict[str, Encoder] = {}

    def module(name: str) -> Any:
        try:
            return importlib.import_module(name)
        except ImportError:
            return None

    if zlib_ng := module("zlib_ng.zlib_ng"):
        table["png up, zlib-ng 1"] = png(2, packer(1, module=zlib_ng))
        table["png up, zlib-ng 2"] = png(2, packer(2, module=zlib_ng))
        table["png up, zlib-ng rle"] = png(2, packer(1, zlib.Z_RLE, zlib_ng))
    if deflate := module("deflate"):
        for level in (1, 2):
            table[f"png up, libdeflate {level}"] = png(
                2, lambda rows, level=level: bytes(deflate.zlib_compress(rows.tobytes(), level))
            )
    if fpng := module("fpng"):
        table["png fpng"] = lambda p: fpng.from_ndarray(p)
    if imagecodecs := module("imagecodecs"):
        table["png imagecodecs level 1"] = lambda p: imagecodecs.png_encode(p, level=1)
        table["jpeg imagecodecs q90 4:4:4"] = lambda p: imagecodecs.jpeg8_encode(
            p, level=90, subsampling="444"
        )
    if cv2 := module("cv2"):
        cv2.setNumThreads(1)
        level = [cv2.IMWRITE_PNG_COMPRESSION, 1]
        table["png opencv level 1"] = lambda p: cv2.imencode(".png", p[..., ::-1], level)[
            1
        ].tobytes()
        full = [cv2.IMWRITE_JPEG_QUALITY, 90, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x111111]
        table["jpeg opencv q90 4:4:4"] = lambda p: cv2.imencode(".jpg", p[..., ::-1], full)[
            1
        ].tobytes()
    if simplejpeg := module("simplejpeg"):
        table["jpeg simplejpeg q90 4:4:4"] = lambda p: simplejpeg.encode_jpeg(
            p, 90, "RGB", "444", False
        )
    return table


def variants() -> dict[str, Encoder]:
    table: dict[str, Encoder] = {"png danqing": lambda p: codecs.encode(p, "png", xmp=None)}
    for level in (1, 3, 6):
        table[f"png pillow level {level}"] = pillow("PNG", compress_level=level)
    table["png pillow level 1 rle"] = pillow("PNG", compress_level=1, compress_type=3)
    table["png no filter, zlib 1"] = png(0, packer(1))
    table["png sub, zlib 1"] = png(1, packer(1))
    for level in (1, 2, 3):
        table[f"png up, zlib {level}"] = png(2, packer(level))
    table["png up, zlib rle"] = png(2, packer(1, zlib.Z_RLE))
    table["png sub, zlib rle"] = png(1, packer(1, zlib.Z_RLE))
    table["png average, zlib rle"] = png(3, packer(1, zlib.Z_RLE))
    table["png up, zlib huffman"] = png(2, packer(1, zlib.Z_HUFFMAN_ONLY))
    for level in (0, 1, 2):
        table[f"png up, isal {level}"] = png(
            2, lambda rows, level=level: isal_zlib.compress(rows.data, level)
        )
    table["png sub, isal 1"] = png(1, lambda rows: isal_zlib.compress(rows.data, 1))
    for quality in (85, 90, 95):
        for name, sampling in (("4:4:4", 0), ("4:2:0", 2)):
            table[f"jpeg q{quality} {name}"] = pillow("JPEG", quality=quality, subsampling=sampling)
    table["jpeg q90 4:4:4 optimize"] = pillow("JPEG", quality=90, subsampling=0, optimize=True)
    table["jpeg danqing"] = lambda p: codecs.encode(p, "jpeg", xmp=None)
    table["webp danqing"] = lambda p: codecs.encode(p, "webp", xmp=None)
    table["webp lossless m0"] = pillow("WEBP", lossless=True, method=0, quality=0)
    table["webp lossless m1"] = pillow("WEBP", lossless=True, method=1, quality=20)
    for method in (0, 2, 4):
        table[f"webp q90 m{method}"] = pillow("WEBP", quality=90, method=method)
    return table | optional()


def psnr_db(a: Pixels, b: Pixels) -> float:
    error = float(np.mean((a.astype(np.float32) - b.astype(np.float32)) ** 2))
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))


def measure(rounds: int) -> str:
    """The table as markdown: median ms, KB and PSNR for each variant and picture."""
    pictures = {"flat": flat(), "pocket-like": pocket(), "photo-like": photo()}
    table = variants()
    times_ms = {(v, p): list[float]() for v in table for p in pictures}
    data = dict[tuple[str, str], bytes]()
    for _ in range(rounds):
        for variant, encode in table.items():
            for name, pixels in pictures.items():
                started = time.process_time()
                data[variant, name] = encode(pixels)
                times_ms[variant, name].append((time.process_time() - started) * 1000)
    lines = ["| encoder | " + " | ".join(f"{p}: ms | KB | PSNR dB" for p in pictures) + " |"]
    lines.append("|---|" + "---:|---:|---:|" * len(pictures))
    for variant in table:
        cells = list[str]()
        for name, pixels in pictures.items():
            encoded = data[variant, name]
            decoded = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
            quality = psnr_db(pixels, decoded)
            cells += [
                f"{statistics.median(times_ms[variant, name]):.1f}",
                f"{len(encoded) / 1024:.0f}",
                "lossless" if quality == float("inf") else f"{quality:.1f}",
            ]
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    tried = [
        "isal",
        "zlib-ng",
        "deflate",
        "fpng",
        "simplejpeg",
        "imagecodecs",
        "opencv-python-headless",
    ]
    versions = [f"{name} {_version(name)}" for name in tried if _version(name)]
    zlib_name = f"zlib {zlib.ZLIB_RUNTIME_VERSION} (Python), {features.version('zlib')} (Pillow)"
    text = f"""# Image encoders at {SIDE}x{SIDE}, one thread

- command: `python -m bench.encoders --rounds {arguments.rounds}`
- date: {datetime.datetime.now(datetime.UTC):%Y-%m-%d}; {os.cpu_count()} cores, {platform.machine()}, \
load {os.getloadavg()[0]:.1f}
- Python {platform.python_version()}, Pillow {PIL.__version__}, numpy {np.__version__}, {zlib_name}, \
libjpeg-turbo {features.version("libjpeg_turbo")}, libwebp {features.version("webp")}, {", ".join(versions)}
- medians of processor time over {arguments.rounds} rounds, all variants side by side in each round

{measure(arguments.rounds)}
"""
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
