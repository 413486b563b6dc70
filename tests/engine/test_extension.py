"""Rule-based extension and the network that the product comes with: the words change nothing of what pocket draws."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from danqing.engine.families.pocket import Pocket
from danqing.engine.messages import Job
from danqing.service.prompts import extend

PROMPTS = [
    *("a red apple on a table", "a blue car", "three green trees in the snow", "a cat", "two dogs"),
    *("a yellow house on the beach", "a flower and a tree", "a kitten on a windowsill", "a star"),
    *("一只可爱的小猫咪", "水墨山水", "一只黑色的狗在草地上", "红色的苹果", "两辆汽车", "花和树"),
    "一只可爱的小猫咪，坐在阳光明媚的窗台上，背景是蓝天白云.",
    *("画一个房子，晚上", "三颗星星在房子上面", "五个气球"),
]


@cache
def pocket() -> Pocket:
    return Pocket()


def job(prompt: str) -> Job:
    return Job(
        id="j",
        task_id="t",
        account_id="a",
        prompt=prompt,
        negative_prompt="",
        width=256,
        height=256,
        steps=4,
        guidance=3.0,
        seed=7,
    )


@pytest.mark.parametrize("style", ["vivid", "natural"])
def test_pocket_reads_the_same_wish(style: str) -> None:
    for prompt in PROMPTS:
        extended = extend(prompt, style, 4000)
        assert extended != prompt
        plain, more = (pocket().encode([job(text)])[0] for text in (prompt, extended))
        assert more.wish == plain.wish, extended


def test_pocket_draws_the_same_picture() -> None:
    def drawn(prompt: str) -> np.ndarray:
        (conditioning,) = pocket().encode([job(prompt)])
        state = pocket().start(job(prompt), conditioning)
        for _ in range(4):
            pocket().step([state])
        return pocket().decode([state])[0]

    for prompt in ("a red apple on a table", "一只可爱的小猫咪"):
        assert (drawn(prompt) == drawn(extend(prompt, "vivid", 4000))).all()
