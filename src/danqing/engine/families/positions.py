"""The longest side that a network can tell positions along, by its config alone. Knows no torch, no weights.

Beyond it some networks raise in the middle of a drawing, some read past a table's end (which ends a graphics device's
context for everybody), and CogView4 puts two columns at one place. Networks that are not here compute a turn for any
position. By diffusers' sources (0.42); each latent is 8 x 8 pixels in all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from danqing.engine.families.weights import CheckpointError, read_json

LATENT_PX = 8
QWEN_POSITIONS = 4096
"""Of its table. Half a picture's longer side and then the text stand on them."""
QWEN_TEXT = 1024


def _cogview4(config: Mapping[str, Any]) -> int:
    """Positions are spread over the picture, as many whatever its size (CogView4RotaryPosEmbed)."""
    return min(config.get("rope_axes_dim", (256, 256))) * _patch(config)


def _qwen_image(config: Mapping[str, Any]) -> int:
    return 2 * (QWEN_POSITIONS - QWEN_TEXT) * _patch(config)


def _sd3(config: Mapping[str, Any]) -> int:
    """A window of a table of so many patches a side (PatchEmbed.cropped_pos_embed)."""
    return config.get("pos_embed_max_size", 96) * _patch(config)


def _z_image(config: Mapping[str, Any]) -> int:
    """Rows of a table for each axis; the first is the text's (RopeEmbedder)."""
    return min(config.get("axes_lens", (1024, 512, 512))[1:]) * min(
        config.get("all_patch_size", (2,))
    )


def _patch(config: Mapping[str, Any]) -> int:
    return config.get("patch_size", 2)


_LATENTS: Mapping[str, Callable[[Mapping[str, Any]], int]] = {
    "CogView4Transformer2DModel": _cogview4,
    "QwenImageTransformer2DModel": _qwen_image,
    "SD3Transformer2DModel": _sd3,
    "ZImageTransformer2DModel": _z_image,
}


def side_max(checkpoint: Path) -> int | None:
    """Pixels; None = any. Raises CheckpointError for a config that cannot be read."""
    part = checkpoint / "transformer"
    if not part.is_dir():  # a UNet looks at neighbours and knows no places
        return None
    config = read_json(part / "config.json")
    latents = _LATENTS.get(config.get("_class_name", ""))
    try:
        return None if latents is None else latents(config) * LATENT_PX
    except (TypeError, ValueError, IndexError):
        raise CheckpointError(f"{part / 'config.json'}: its positions are no numbers") from None
