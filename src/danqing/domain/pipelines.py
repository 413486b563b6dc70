"""diffusers' text-to-image pipelines that the family `diffusers_pipeline` runs: what requests may ask of each. Pure data.

A name stands for a pipeline class and a way of drawing with it: `sd` and `sd_turbo` are one class with different presets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from danqing.domain.sizes import Size


@dataclass(frozen=True, slots=True)
class PipelineFacts:
    """One pipeline class of diffusers, by its source (0.42)."""

    text_to_image: str
    """The class, as a checkpoint's model_index.json names it."""
    parts: tuple[str, ...]
    """Folders with weights."""
    tokenizers: tuple[str, ...] = ("tokenizer",)
    """Those whose limit is the prompt's, if they are there: what is longer is refused. Another's text is a summary beside theirs."""
    tokens_max: int = 512
    """Of a prompt, with what stands around it."""
    image_to_image: str | None = None
    """The class that edits; the same as `text_to_image` where that reads references."""
    inpaint: str | None = None
    multiple_px: int = 16
    """Each side is a multiple of this; other sizes are drawn larger and cut."""
    negative_above: float | None = 1.0
    """There is a negative prompt where guidance is above this; None = never."""
    optional: tuple[str, ...] = ()
    """What a checkpoint may lack."""
    compiles: bool = True
    """Its network says which of its blocks are alike, so that they can be compiled as one."""
    look_side_min: int = 0
    """Of a picture that it looks at, the shortest side, pixels. A mask needs no look."""
    look_ratio_max: float = math.inf
    """The longer side of one over the shorter at most."""

    @property
    def edits(self) -> bool:
        return self.image_to_image is not None

    @property
    def reads_references(self) -> bool:
        """It looks at a reference beside the noise, instead of beginning with it: there is no strength."""
        return self.image_to_image == self.text_to_image

    def drawn(self, size: Size) -> Size:
        """A size on its grid: what is drawn and cut."""
        side = self.multiple_px
        return Size(-(-size.width // side) * side, -(-size.height // side) * side)

    def look_fault(self, size: Size) -> str | None:
        """Why it cannot look at a picture of this size; None where it can, or looks at none."""
        width, height = self.drawn(size)
        if min(width, height) < self.look_side_min:
            return f"each side must be {self.look_side_min} pixels at least"
        if max(width, height) > self.look_ratio_max * min(width, height):
            return f"the sides' ratio may be at most {self.look_ratio_max:g}:1"
        return None

    def takes_negative(self, guidance: float) -> bool:
        return self.negative_above is not None and guidance > self.negative_above


_SD = PipelineFacts(
    "StableDiffusionPipeline",
    ("unet", "vae", "text_encoder"),
    tokens_max=77,
    image_to_image="StableDiffusionImg2ImgPipeline",
    inpaint="StableDiffusionInpaintPipeline",
    multiple_px=8,
)
_SDXL = PipelineFacts(
    "StableDiffusionXLPipeline",
    ("unet", "vae", "text_encoder", "text_encoder_2"),
    tokenizers=("tokenizer", "tokenizer_2"),
    tokens_max=77,
    image_to_image="StableDiffusionXLImg2ImgPipeline",
    inpaint="StableDiffusionXLInpaintPipeline",
    multiple_px=8,
)
_SD3 = PipelineFacts(
    "StableDiffusion3Pipeline",
    ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"),
    tokenizers=("tokenizer_3",),
    tokens_max=256,
    image_to_image="StableDiffusion3Img2ImgPipeline",
    inpaint="StableDiffusion3InpaintPipeline",
    optional=("text_encoder_3", "tokenizer_3"),
    compiles=False,
)
_FLUX = PipelineFacts(
    "FluxPipeline",
    ("transformer", "vae", "text_encoder", "text_encoder_2"),
    tokenizers=("tokenizer_2",),
    image_to_image="FluxImg2ImgPipeline",
    inpaint="FluxInpaintPipeline",
    negative_above=None,  # true_cfg_scale is another guidance, and none of its checkpoints wants it
)
_KLEIN = PipelineFacts(
    "Flux2KleinPipeline",
    ("transformer", "vae", "text_encoder"),
    image_to_image="Flux2KleinPipeline",
    inpaint="Flux2KleinInpaintPipeline",
    negative_above=None,  # guidance is away from "", whatever is asked
    look_side_min=64,  # Flux2ImageProcessor.check_image_input
    look_ratio_max=8.0,
)
_Z_IMAGE = PipelineFacts(
    "ZImagePipeline",
    ("transformer", "vae", "text_encoder"),
    image_to_image="ZImageImg2ImgPipeline",
    inpaint="ZImageInpaintPipeline",
    negative_above=0.0,
)
_SANA = PipelineFacts(
    "SanaPipeline",
    ("transformer", "vae", "text_encoder"),
    tokens_max=300,
    multiple_px=32,
    compiles=False,
)
_PIXART = PipelineFacts(
    "PixArtSigmaPipeline",
    ("transformer", "vae", "text_encoder"),
    tokens_max=300,
    compiles=False,
)

PIPELINES: Mapping[str, PipelineFacts] = {
    "sd": _SD,
    "sd_turbo": _SD,
    "sdxl": _SDXL,
    "sdxl_turbo": _SDXL,
    "sd3": _SD3,
    "sd3_turbo": _SD3,
    "flux": _FLUX,
    "flux_schnell": _FLUX,
    "flux2_klein": _KLEIN,
    "flux2_klein_base": _KLEIN,
    "z_image": _Z_IMAGE,
    "z_image_turbo": _Z_IMAGE,
    "sana": _SANA,
    "pixart_sigma": _PIXART,
}
"""A backend's `pipeline` -> what it is."""
