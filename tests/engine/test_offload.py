"""Blocks that come to the device one by one: the same pictures, less of the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the engine extra: make install-engine")
pytest.importorskip("diffusers", reason="the engine extra: make install-engine")

from torch import nn  # noqa: E402

from danqing.engine.families import offload  # noqa: E402
from tests.engine.torch_families import FAMILIES, alone, make_job  # noqa: E402

pytestmark = pytest.mark.slow


def test_each_block_is_whole_while_it_is_used() -> None:
    blocks = [
        ((torch.randn(3, 5), torch.randn(3)), (torch.randn(257),), torch.full((2, 2), float(i)))
        for i in range(5)
    ]
    expected = [[part.clone() for part in (*a, *b, c)] for a, b, c in blocks]
    modules = nn.ModuleList(nn.Linear(5, 3) for _ in blocks)
    for module, block in zip(modules, blocks, strict=True):
        module.weight.data, module.bias.data = block[0]
    given = list(blocks)
    carried = offload.Carried(given, modules, torch.device("cpu"))
    assert given == []
    assert len(carried) == 5
    assert [parameter.numel() for parameter in modules.parameters()] == [0] * 10  # held once
    for _ in range(2):
        addresses = set()
        for (a, b, c), wanted in zip(carried, expected, strict=True):
            found = (*a, *b, c)
            assert all(torch.equal(x, y) for x, y in zip(found, wanted, strict=True))
            addresses.add(found[0].data_ptr())
        assert len(addresses) == offload.PLACES


@pytest.mark.parametrize("name", FAMILIES)
def test_offloaded_networks_draw_the_same(
    name: str, folders: dict[str, Path], families: dict[str, Any]
) -> None:
    family = FAMILIES[name].load(folders[name], offloaded=True)
    assert isinstance(family.denoiser._blocks, offload.Carried)
    for job in (make_job(negative_prompt="blue"), make_job(guidance=1.0, width=48, seed=3)):
        ours, whole = alone(family, job), alone(families[name], job)
        for one, other in zip(ours, whole, strict=True):
            assert torch.equal(one, other)
