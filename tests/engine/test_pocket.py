"""The pocket family on its shipped weights: the seed law, sizes, prompts, and how quickly it loads."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danqing.engine.families import pocket_layout as layout
from danqing.engine.families.pocket import Pocket, PocketState
from danqing.engine.messages import Job
from danqing.engine.pixels import fit

PROMPTS = ("一只可爱的小猪", "a red car in the city", "三只企鹅在雪地里", "glorbnak", "")


@pytest.fixture(scope="module")
def pocket() -> Pocket:
    return Pocket(threads=2)


def job(
    prompt: str = "a cat",
    *,
    seed: int = 1,
    steps: int = 2,
    size: tuple[int, int] = (96, 96),
    guidance: float = 1.0,
    negative: str = "",
) -> Job:
    return Job("j", "t", "a", prompt, negative, size[0], size[1], steps, guidance, seed)


def begin(pocket: Pocket, asked: Job) -> PocketState:
    return pocket.start(asked, pocket.encode([asked])[0])


def finish(pocket: Pocket, states: list[PocketState]) -> list[np.ndarray]:
    """Step all, together while they last, then decode them together."""
    while left := [state for state in states if state.step < state.job.steps]:
        pocket.step(left)
    return pocket.decode(states)


def drawn(pocket: Pocket, asked: Job) -> np.ndarray:
    return finish(pocket, [begin(pocket, asked)])[0]


jobs = st.builds(
    job,
    prompt=st.sampled_from(PROMPTS),
    seed=st.integers(-(2**63), 2**64),
    steps=st.integers(1, 9),
    size=st.sampled_from([(96, 96), (128, 64), (64, 128)]),
    guidance=st.sampled_from([1.0, 1.5, 4.0]),
    negative=st.sampled_from(["", "snow", "猫"]),
)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(jobs, st.integers(0, 3)), min_size=2, max_size=6))
def test_a_picture_is_the_same_alone_and_in_any_company(
    pocket: Pocket, asked: list[tuple[Job, int]]
) -> None:
    key = pocket.batch_key(asked[0][0])
    chosen = [(one, head) for one, head in asked if pocket.batch_key(one) == key]
    alone = [begin(pocket, one) for one, _ in chosen]
    alone_pixels = [finish(pocket, [state])[0] for state in alone]
    together = [begin(pocket, one) for one, _ in chosen]
    for state, (one, head) in zip(together, chosen, strict=True):  # some are further along
        for _ in range(min(head, one.steps - 1)):
            pocket.step([state])
    together_pixels = finish(pocket, together)
    for i in range(len(chosen)):
        np.testing.assert_allclose(together[i].latents, alone[i].latents, rtol=0, atol=1e-5)
        difference = together_pixels[i].astype(int) - alone_pixels[i].astype(int)
        assert np.abs(difference).max() <= 1


@pytest.mark.parametrize(
    "size", [(64, 64), (256, 256), (1024, 1024), (1344, 768), (100, 300), (300, 100), (2048, 64)]
)
def test_any_size_is_exact(pocket: Pocket, size: tuple[int, int]) -> None:
    pixels = drawn(pocket, job(size=size, steps=1))
    assert pixels.shape == (size[1], size[0], 3)
    assert pixels.dtype == np.uint8


def test_the_same_seed_draws_the_same_and_another_seed_another(pocket: Pocket) -> None:
    first, again, other = (drawn(pocket, job(seed=seed)) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first.astype(int) - other.astype(int)).mean() > 1


def test_different_prompts_draw_different_pictures(pocket: Pocket) -> None:
    pictures = [drawn(pocket, job(prompt, seed=3, steps=4)) for prompt in PROMPTS[:3]]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(pictures[a].astype(int) - pictures[b].astype(int)).mean() > 10


def _sky_white(pixels: np.ndarray) -> float:
    """The share of the upper third that is as white as a cloud."""
    return float((pixels[: len(pixels) // 3].min(axis=2) > 225).mean())


@pytest.mark.parametrize(
    ("prompt", "negative"),
    [
        ("a dog in a meadow, no clouds", ""),
        ("草地上的一只狗，没有云", ""),
        ("a dog in a meadow", "blurry, clouds"),
        ("草地上的一只狗", "不要云"),
    ],
)
def test_no_clouds_means_a_clear_sky(pocket: Pocket, prompt: str, negative: str) -> None:
    size, seeds = (256, 256), (1, 2)
    for seed in seeds:
        cloudy = drawn(pocket, job("a dog in a meadow", seed=seed, steps=4, size=size))
        clear = drawn(pocket, job(prompt, seed=seed, steps=4, size=size, negative=negative))
        assert _sky_white(cloudy) > 0.03
        assert _sky_white(clear) < 0.003
        below = np.abs(cloudy.astype(int) - clear)[140:].mean()
        assert below < 4, "the dog and the meadow stay"


@pytest.mark.parametrize(
    ("prompt", "negative"),
    [("night sky with no moon", ""), ("海滩的夜晚，没有月亮", ""), ("a castle on the beach at night", "moon")],
)  # fmt: skip
def test_no_moon_means_a_night_without_one(pocket: Pocket, prompt: str, negative: str) -> None:
    def moonlight(text: str, denied: str) -> float:
        """The share of the upper third, away from the middle, that is as pale as the moon."""
        pixels = drawn(pocket, job(text, seed=2, steps=4, size=(256, 256), negative=denied))
        return float((pixels[:85].min(axis=2) > 150).mean())

    assert moonlight("a castle on the beach at night", "") > 0.012
    assert moonlight(prompt, negative) < 0.006


def test_what_a_negative_prompt_names_is_not_drawn(pocket: Pocket) -> None:
    def wish(prompt: str, negative: str) -> layout.Wish:
        return pocket.encode([job(prompt, negative=negative)])[0].wish

    assert wish("a cat and a dog on the beach", "dog") == wish("a cat on the beach", "")
    assert wish("a cat next to a red dog", "cats, text") == wish("a red dog", "")
    assert wish("a castle on the beach at night", "night").hour == 0
    assert wish("a cat in the snow", "snow").scene == 0
    assert wish("a red car", "red").colour == 0
    assert wish("a cat", "cat") == wish("a cat", ""), "what alone is asked for stays"
    for words in ("a cat", "a dog and no cat", "一只狗，不要猫"):
        assert pocket.things[wish(words, "blurry, ugly, bad hands").thing] in ("cat", "dog")
    assert wish("a dog and no cat", "").second == 0


def test_a_prompt_that_is_all_denial_is_drawn_unless_it_names_what_pocket_knows(
    pocket: Pocket,
) -> None:
    for title in ("No fear", "没有脸"):  # nobody's things: the second is read as a meadow
        assert pocket.encode([job(title)])[0].wish == pocket.prompts.read(title), title
    for denial in ("no cats", "没有猫", "no clouds"):
        asked = pocket.encode([job(denial)])[0]
        assert not asked.understood, denial
        assert asked.wish == pocket.prompts.read(""), denial


def test_a_landscape_of_the_seeds_choosing_is_not_one_that_is_denied(pocket: Pocket) -> None:
    for seed in range(12):
        plan = begin(pocket, job("glorbnak", seed=seed, negative="beach, sea, snow")).plan
        assert pocket.scenes[plan.scene] not in ("beach", "sea", "snow")


def test_steps_previews_and_finiteness(pocket: Pocket) -> None:
    state = begin(pocket, job(steps=3))
    for done in range(3):
        assert state.step == done
        pocket.step([state])
        preview = pocket.preview(state)
        assert preview.dtype == np.uint8
        assert preview.shape == (96, 96, 3)
    assert pocket.is_finite(state)
    state.latents = np.full_like(state.latents, np.nan)
    assert not pocket.is_finite(state)


@pytest.mark.parametrize(
    ("size", "look"),
    [((1024, 1024), (512, 512)), ((1344, 768), (512, 293)), ((64, 128), (64, 128))],
)
def test_a_preview_has_the_shape_of_the_picture_and_shows_progress(
    pocket: Pocket, size: tuple[int, int], look: tuple[int, int]
) -> None:
    state = begin(pocket, job("a red apple", size=size, steps=8))
    distances: list[float] = []
    for _ in range(8):
        pocket.step([state])
        preview = pocket.preview(state)
        assert preview.shape == (look[1], look[0], 3)
        final = fit(pocket._picture(state, state.clean, *look), *look)
        distances.append(float(np.abs(preview.astype(int) - final.astype(int)).mean()))
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 1 < distances[0]


def test_a_failed_step_changes_nothing(pocket: Pocket) -> None:
    good, bad = begin(pocket, job()), begin(pocket, job())
    bad.latents = bad.latents[:3]
    before = good.latents
    with pytest.raises(ValueError, match="shape"):
        pocket.step([good, bad])
    assert good.step == 0
    assert good.latents is before


def test_guided_and_unguided_jobs_do_not_share_a_batch(pocket: Pocket) -> None:
    assert pocket.batch_key(job(guidance=1.0)) != pocket.batch_key(job(guidance=2.0))
    assert pocket.batch_key(job(size=(96, 96))) != pocket.batch_key(job(size=(128, 64)))
    assert pocket.batch_key(job(guidance=3.0)) == pocket.batch_key(job(guidance=2.0, seed=9))


@pytest.mark.parametrize(
    ("prompt", "thing", "count", "scene"),
    [
        ("一只可爱的小猫咪，坐在阳光明媚的窗台上，背景是蓝天白云.", "kitty", 1, "windowsill"),
        ("画一个钢铁侠", "superhero", 1, "plain"),
        ("一只可爱的小猪", "pig", 1, "plain"),
        ("请帮我画三只企鹅在雪地里", "penguin", 3, "snow"),
        ("Two cute puppies on the beach", "dog", 2, "beach"),
        ("a wizard on a stage", "wizard", 1, "stage"),
        ("三个苹果放在桌子上", "apple", 3, "table"),
        ("a cup of bubble tea in the library", "bubble tea", 1, "library"),
    ],
)
def test_prompts_are_read(pocket: Pocket, prompt: str, thing: str, count: int, scene: str) -> None:
    wish = pocket.encode([job(prompt)])[0].wish
    assert pocket.things[wish.thing] == thing
    assert wish.count == count
    assert pocket.scenes[wish.scene] == scene


def test_hours_weathers_colours_sizes_and_depth_are_read(pocket: Pocket) -> None:
    def read(prompt: str) -> layout.Wish:
        return pocket.encode([job(prompt)])[0].wish

    night = read("a castle on the beach at night")
    assert (pocket.scenes[night.scene], layout.HOURS[night.hour]) == ("beach", "night")
    rain = read("下雨天的森林里有一只长颈鹿")
    assert (pocket.scenes[rain.scene], layout.WEATHERS[rain.weather]) == ("forest", "rain")
    cars = read("a blue car next to a green dragon")
    colours = [pocket.colours[k] for k in (cars.colour, cars.second_colour)]
    assert colours == ["blue", "green"]
    assert layout.SIZES[read("a huge dog in the snow").size] == "big"
    assert layout.RELATIONS[read("a dog in front of a house").relation] == "front"
    assert read("a cat in the kitchen at night").hour == 0, "no hour indoors"


def test_a_prompt_of_strange_words_still_gets_a_landscape(pocket: Pocket) -> None:
    pixels = drawn(pocket, job("qqqq wwww zzzz", steps=4, size=(256, 256)))
    assert pixels.std() > 5


def test_loading_is_quick() -> None:
    started = time.process_time()
    Pocket(threads=2)
    assert time.process_time() - started < 10  # a bound for slow test machines; usually 0.5
