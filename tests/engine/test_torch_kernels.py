"""A block's fused parts: their plain form is what the families compute, and the Triton form is the plain one.

Without a GPU the Triton form is tested where Triton is installed and TRITON_INTERPRET=1.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the engine extra: make install-engine")
pytest.importorskip("diffusers", reason="the engine extra: make install-engine")

from bench._gpu_kernels import difference  # noqa: E402

from danqing.engine.families.flow import FlowFamily  # noqa: E402
from danqing.engine.families.graphs import USES_BEFORE, Graphed  # noqa: E402
from danqing.engine.families.kernels import Kernels  # noqa: E402
from tests.engine.torch_families import FAMILIES, make_job  # noqa: E402

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HAS_TRITON = importlib.util.find_spec("triton") is not None and (
    DEVICE.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
)
STEPS = 5


def latents_of(family: FlowFamily) -> list[torch.Tensor]:
    """Two images of one batch, one with a longer text, after all steps."""
    jobs = [
        make_job(id="a", negative_prompt="blue", steps=STEPS),
        make_job(id="b", prompt="a horse " * 20, negative_prompt=" ", steps=STEPS, seed=8),
    ]
    states = [family.start(job, family.encode([job])[0]) for job in jobs]
    for _ in range(STEPS):
        family.step(states)
    return [state.latents for state in states]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_plain_form_is_what_the_family_computes(name: str, folders: dict[str, Path]) -> None:
    ordinary, fused = (FAMILIES[name].load(folders[name]) for _ in range(2))
    fused.denoiser = type(fused.denoiser)(fused.denoiser._model, kernels=Kernels())  # type: ignore[attr-defined]
    for found, wanted in zip(latents_of(fused), latents_of(ordinary), strict=True):
        assert (found - wanted).norm() / wanted.norm() < 1e-5
        assert found.isfinite().all()


@pytest.mark.skipif(not HAS_TRITON, reason="Triton with a GPU, or TRITON_INTERPRET=1")
@pytest.mark.parametrize("part", ["norm", "turn"])
@pytest.mark.parametrize(("rows", "heads", "width"), [(1, 3, 16), (13, 4, 32), (7, 24, 128)])
def test_a_kernel_is_its_plain_form(part: str, rows: int, heads: int, width: int) -> None:
    assert difference(part, DEVICE, torch.float32, rows=rows, heads=heads, width=width) < 1e-5
    assert difference(part, DEVICE, torch.bfloat16, rows=rows, heads=heads, width=width) < 4e-3


@pytest.mark.skipif(DEVICE.type != "cuda", reason="a GPU")
def test_gelu_in_the_epilogue_is_the_tanh_form() -> None:
    assert difference("gelu", DEVICE, torch.bfloat16, rows=512, heads=4, width=128) < 4e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_a_graph_that_cannot_be_had_changes_nothing(name: str, folders: dict[str, Path]) -> None:
    ordinary, graphed = (FAMILIES[name].load(folders[name], device=str(DEVICE)) for _ in range(2))
    graphed.denoiser = Graphed(graphed.denoiser, rows_max=10**6)
    for found, wanted in zip(latents_of(graphed), latents_of(ordinary), strict=True):
        assert (found - wanted).norm() / wanted.norm() < 1e-5
    assert (graphed.denoiser.fault is None) == (DEVICE.type == "cuda")
    assert graphed.denoiser.captures == int(DEVICE.type == "cuda")


def test_a_large_batch_is_not_captured(folders: dict[str, Path]) -> None:
    assert STEPS > USES_BEFORE
    family = FAMILIES["cogview4"].load(folders["cogview4"], device=str(DEVICE))
    family.denoiser = Graphed(family.denoiser, rows_max=10)
    latents_of(family)
    assert family.denoiser.fault is None
    assert not family.denoiser.captures
