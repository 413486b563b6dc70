"""Large pictures decoded in strips: the whole decode's pixels, and far fewer of its bytes."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the engine extra: make install-engine")
pytest.importorskip("diffusers", reason="the engine extra: make install-engine")

from diffusers import AutoencoderKL, AutoencoderKLQwenImage  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

from danqing.engine.families import cogview4, memory, qwen_image, strips  # noqa: E402
from tests.engine.checkpoints import widen  # noqa: E402
from tests.engine.torch_families import FAMILIES, make_job  # noqa: E402

pytestmark = pytest.mark.slow

TOLERANCE = 2e-5
"""Of pixels in -1..1, in float32: sums in another order."""
COGVIEW4 = {
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 3, "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False,
}  # fmt: skip
"""CogView4-6B's, but for its widths."""


def cogview4_vae(widths: tuple[int, ...], groups: int, **more: Any) -> Any:
    options = COGVIEW4 | {"mid_block_add_attention": False} | more
    return AutoencoderKL(block_out_channels=widths, norm_num_groups=groups, **options)


def qwen_vae(**options: Any) -> Any:
    vae = AutoencoderKLQwenImage(**options)
    qwen_image.fold(vae.decoder)
    return vae


SMALL: dict[str, Callable[[], Any]] = {
    "cogview4": lambda: cogview4_vae((8, 16, 24, 24), 4),
    "cogview4 with attention": lambda: cogview4_vae(
        (8, 16, 24, 24), 4, mid_block_add_attention=True
    ),
    "qwen_image": lambda: qwen_vae(base_dim=8),
}


def whole(decoder: Any, latents: Any) -> Any:
    if isinstance(decoder.conv_in, torch.nn.Conv2d):
        return decoder(latents)
    return decoder(latents.unsqueeze(2))[:, :, 0]


@pytest.mark.parametrize("cells", [40, 777, 2**16])
@pytest.mark.parametrize(("rows", "columns"), [(7, 9), (2, 13), (1, 1)])
@pytest.mark.parametrize("name", SMALL)
def test_strips_are_the_whole(
    name: str, rows: int, columns: int, cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strips, "LOOKS_MAX", 500)
    decoder = widen(SMALL[name](), 3).decoder
    latents = torch.randn((1, 16, rows, columns), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        plain = whole(decoder, latents)
        found = strips.decode(decoder, latents, cells)
    assert found.shape == plain.shape == (1, 3, 8 * rows, 8 * columns)
    scale = max(1.0, float(plain.abs().max()))
    assert (found - plain).abs().max() <= TOLERANCE * scale


@pytest.mark.parametrize("name", FAMILIES)
def test_a_large_picture_is_decoded_in_strips(
    name: str, families: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    family = families[name]
    state = family.start(make_job(width=112, height=80), family.encode([make_job()])[0])
    plain = family.decode([state])[0]
    seen: list[Any] = []
    real = strips.decode
    monkeypatch.setattr(strips, "decode", lambda *args: seen.append(args) or real(*args, 500))
    assert np.array_equal(family.decode([state])[0], plain)
    assert not seen
    for module in (cogview4, qwen_image):
        monkeypatch.setattr(module, "PLAIN_PIXELS_MAX", 112 * 80 - 1)
    found = family.decode([state])[0]
    assert len(seen) == 1
    assert np.abs(found.astype(int) - plain.astype(int)).max() <= 1


class Live(TorchDispatchMode):
    """Bytes of the tensors that live at once; on the device `meta` it computes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in self._known:
                self._known.add(key)
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, key, size)
        return out

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


FULL: dict[str, Callable[[], Any]] = {
    "cogview4": lambda: cogview4_vae((128, 512, 1024, 1024), 32),
    "qwen_image": qwen_vae,
}


@pytest.mark.parametrize("side", [1280, 2048])
@pytest.mark.parametrize("name", FULL)
def test_the_published_decoders_stay_within_what_the_memory_check_takes_them_to_need(
    name: str, side: int
) -> None:
    with torch.device("meta"):
        vae = FULL[name]().to(torch.bfloat16)
        latents = torch.empty((1, 16, side // 8, side // 8), dtype=torch.bfloat16)
    parameters = sum(parameter.numel() for parameter in vae.parameters())
    published = {part.name: part.parameters for part in memory.PUBLISHED[name]}["vae"]
    if name == "cogview4":  # the other one is folded
        assert parameters == published
    with torch.no_grad(), Live() as live:
        strips.decode(vae.decoder, latents)
    assert live.peak <= memory.WIDE_PIXEL_BYTES[name] * side * side
    with torch.no_grad(), Live() as at_once:
        whole(vae.decoder, latents)
    assert live.peak <= 0.6 * at_once.peak
