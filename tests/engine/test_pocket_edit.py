"""Edits by the pocket family: what stays, what changes, the seed law, and reading its own pictures back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danqing.domain.task import Pixels
from danqing.engine.families import pocket_edit as edit
from danqing.engine.families import pocket_layout as layout
from danqing.engine.families.pocket import Pocket, PocketState
from danqing.engine.families.pocket_cut import cut_out, filled
from danqing.engine.messages import Job, Mask
from danqing.engine.pixels import fit

SQUARE, WIDE = (256, 256), (256, 144)


@pytest.fixture(scope="module")
def pocket() -> Pocket:
    return Pocket(threads=2)


def job(
    prompt: str, *, seed: int = 1, steps: int = 8, size: tuple[int, int] = SQUARE, **more: Any
) -> Job:
    guidance = more.pop("guidance", 1.0)
    return Job("j", "t", "a", prompt, "", size[0], size[1], steps, guidance, seed, **more)


def begin(pocket: Pocket, asked: Job) -> PocketState:
    return pocket.start(asked, pocket.encode([asked])[0])


def finish(pocket: Pocket, states: list[PocketState]) -> list[Pixels]:
    while left := [state for state in states if state.step < state.job.steps_drawn]:
        pocket.step(left)
    return pocket.decode(states)


def drawn(pocket: Pocket, asked: Job) -> Pixels:
    return finish(pocket, [begin(pocket, asked)])[0]


def difference(a: Pixels, b: Pixels) -> float:
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


def box(size: tuple[int, int], left: int, top: int, right: int, bottom: int) -> Mask:
    mask = np.zeros((size[1], size[0]), bool)
    mask[top:bottom, left:right] = True
    return mask


@pytest.fixture(scope="module")
def apple(pocket: Pocket) -> Pixels:
    return drawn(pocket, job("a red apple on a table", seed=5))


@pytest.fixture(scope="module")
def cat(pocket: Pocket) -> Pixels:
    return drawn(pocket, job("a cat on the beach", seed=7))


@pytest.fixture(scope="module")
def foreign() -> Pixels:
    """A picture that pocket could never have drawn."""
    down, across = np.mgrid[0:256, 0:256]
    picture = np.stack([down, across, (down * across) % 256], axis=2).astype(np.uint8)
    picture[60:120, 90:200] = (255, 0, 255)
    return picture


def test_a_red_apple_becomes_green_and_stays_where_it_is(pocket: Pocket, apple: Pixels) -> None:
    green = drawn(pocket, job("a green apple on a table", reference=apple, strength=0.75))
    was_red = (apple[:, :, 0].astype(int) - apple[:, :, 1]) > 90
    is_green = (green[:, :, 1].astype(int) - green[:, :, 0]) > 30
    assert is_green[was_red].mean() > 0.9
    assert difference(green[:40], apple[:40]) < 5  # the ground around it


def test_a_prompt_changes_only_what_it_names(pocket: Pocket, cat: Pixels) -> None:
    began = begin(pocket, job("make it night", reference=cat, strength=0.75))
    assert pocket.scenes[began.plan.scene] == "beach"
    assert layout.HOURS[began.plan.hour] == "night"
    assert (began.plan.contents > layout.DROPPED).any()  # the cat, read in the picture
    night = finish(pocket, [began])[0]
    assert night[:40].mean() < 90 < cat[:40].mean()
    dog = begin(pocket, job("a dog", reference=cat, strength=0.75))
    assert pocket.scenes[dog.plan.scene] == "beach"


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_variation_shows_the_same_thing_and_scene_placed_anew(
    pocket: Pocket, cat: Pixels, seed: int
) -> None:
    state = begin(pocket, job("", seed=seed, reference=cat, strength=0.5))
    same = layout.plan(pocket.prompts.read("a cat on the beach"), 0, 1, 0)
    assert state.plan.scene == same.scene
    assert set(state.plan.contents) == set(same.contents)
    varied = finish(pocket, [state])[0]
    assert difference(varied, cat) > 5


def test_variations_by_two_seeds_differ(pocket: Pocket, cat: Pixels, foreign: Pixels) -> None:
    for reference in (cat, foreign):
        one, two = (
            drawn(pocket, job("", seed=seed, reference=reference, strength=0.5)) for seed in (1, 4)
        )
        assert difference(one, two) > 4


def test_a_picture_of_another_origin_keeps_its_content(pocket: Pocket, foreign: Pixels) -> None:
    state = begin(pocket, job("", reference=foreign, strength=0.5))
    assert state.canvas is not None
    assert state.canvas.adds_detail
    varied = finish(pocket, [state])[0]
    magenta = (varied[:, :, 0] > 180) & (varied[:, :, 1] < 80) & (varied[:, :, 2] > 180)
    assert magenta.mean() > 0.05  # the box is still there
    assert difference(varied, foreign) > 4


@pytest.mark.parametrize(
    ("prompt", "size", "mask"),
    [
        ("a dog", SQUARE, (128, 0, 256, 256)),
        ("", SQUARE, (40, 40, 200, 250)),
        ("five dogs", SQUARE, (100, 100, 130, 130)),
        ("a cat under a tree", WIDE, (0, 90, 256, 144)),
    ],
)
def test_what_a_mask_keeps_is_the_reference_to_the_pixel(
    pocket: Pocket, cat: Pixels, prompt: str, size: tuple[int, int], mask: tuple[int, ...]
) -> None:
    reference, repaint = fit(cat, *size), box(size, *mask)
    state = begin(pocket, job(prompt, size=size, reference=reference, mask=repaint))
    look = pocket.preview(state)
    painted = finish(pocket, [state])[0]
    for picture in (look, painted):
        np.testing.assert_array_equal(picture[~repaint], reference[~repaint])
    assert difference(painted[repaint], reference[repaint]) > 4


def test_a_thing_is_painted_into_the_mask(pocket: Pocket, cat: Pixels) -> None:
    repaint = box(SQUARE, 128, 0, 256, 256)
    state = begin(pocket, job("a red balloon", reference=cat, mask=repaint))
    contents = state.plan.contents.reshape(8, 8)
    columns = np.flatnonzero((contents > layout.DROPPED).any(0))
    inside = slice(0, 4) if state.mirrored else slice(4, 8)
    assert set(columns) <= set(range(8)[inside])
    painted = finish(pocket, [state])[0]
    red = (painted[:, :, 0] > 180) & (painted[:, :, 1] < 90)
    assert red[repaint].mean() > 0.05


def test_a_strange_picture_keeps_its_ground_behind_what_is_painted(pocket: Pocket) -> None:
    """No scene of pocket's is like it, so none is painted into it."""
    down = np.linspace(40, 220, 256)[:, None]
    strange = np.stack([down, 130 - 0 * down, 250 - down], axis=2).repeat(256, axis=1)
    strange = np.round(strange).astype(np.uint8)
    strange[::16] //= 2
    repaint = box(SQUARE, 96, 60, 240, 240)
    asked = job("a red balloon", reference=strange, mask=repaint)
    painted = drawn(pocket, asked)
    np.testing.assert_array_equal(painted[~repaint], strange[~repaint])
    red = (painted[:, :, 0] > 180) & (painted[:, :, 1] < 90) & (painted[:, :, 2] < 90)
    assert 0.1 < red[repaint].mean() < 0.8
    emptied = drawn(pocket, job("", reference=strange, mask=repaint))
    np.testing.assert_array_equal(emptied[~repaint], strange[~repaint])
    assert difference(emptied[repaint], strange[repaint]) < 30
    rim = painted[228:238, 100:236].astype(int)  # beside the balloon: the picture's own tones
    assert np.abs(rim - emptied[228:238, 100:236]).mean() < 10


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_a_hole_is_filled_with_tones_of_the_rest(
    height: int, width: int, seed: int, share: float
) -> None:
    rng = np.random.default_rng(seed)
    picture = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    mask = rng.random((height, width)) < share
    whole = filled(picture, mask)
    np.testing.assert_array_equal(whole[~mask], picture[~mask])
    if mask.any() and not mask.all():
        for c in range(3):
            seen = picture[:, :, c][~mask]
            assert seen.min() <= whole[:, :, c].min()
            assert whole[:, :, c].max() <= seen.max()


def test_a_thing_is_cut_out_with_all_that_it_encloses() -> None:
    picture = np.full((64, 64, 3), 230, np.uint8)
    picture[20:44, 20:44] = (200, 20, 20)
    picture[28:36, 28:36] = 230  # a pale eye
    alpha = cut_out(picture)[:, :, 0]
    assert alpha[22:42, 22:42].min() == 1
    assert alpha[:16].max() == 0
    assert cut_out(np.full((8, 8, 3), 9, np.uint8)).max() == 0


def test_an_empty_mask_and_no_strength_keep_the_whole_picture(pocket: Pocket, cat: Pixels) -> None:
    nowhere = np.zeros((256, 256), bool)
    kept = drawn(pocket, job("a dog", reference=cat, mask=nowhere))
    np.testing.assert_array_equal(kept, cat)
    np.testing.assert_array_equal(drawn(pocket, job("a dog", reference=cat, strength=0.0)), cat)


def test_a_little_strength_leaves_the_picture_a_little(pocket: Pocket, apple: Pixels) -> None:
    distances = [
        difference(
            drawn(pocket, job("a green apple", reference=apple, strength=strength, steps=20)), apple
        )
        for strength in (0.0, 0.1, 0.25, 0.5)
    ]
    assert distances == sorted(distances)
    assert distances[1] < 0.4 * distances[3]
    assert distances[2] < 0.8 * distances[3]


@pytest.mark.parametrize("size", [(256, 256), (344, 192), (192, 344), (512, 128), (100, 300)])
def test_the_frame_is_where_the_picture_is_decoded_to(
    pocket: Pocket, cat: Pixels, size: tuple[int, int]
) -> None:
    """Into the network's frame and back: nothing moves."""
    picture = fit(cat, *size)
    frame = edit.framed(picture, layout.nearest_grid(*size))
    assert difference(fit(frame, *size), picture) < 4


@given(st.data())
def test_every_wish_finds_room_in_every_area(data: st.DataObject) -> None:
    grid = data.draw(st.integers(0, len(layout.GRIDS) - 1))
    rows, columns = layout.GRIDS[grid]
    cells = np.zeros((rows, columns), bool)
    for _ in range(data.draw(st.integers(1, 4))):
        cells[data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))] = True
    area = edit.area_of(cells)
    assert area is not None
    left, top, wide, high = area
    asked = layout.Wish(
        data.draw(st.integers(1, 541)),
        data.draw(st.integers(1, 5)),
        second=data.draw(st.sampled_from([0, 3])),
        relation=data.draw(st.integers(0, len(layout.RELATIONS) - 1)),
        size=data.draw(st.integers(0, len(layout.SIZES) - 1)),
    )
    wish = edit.that_fits(asked, area)
    assert wish.thing == asked.thing
    for pose in range(layout.POSES):
        for placed in layout.place(wish, grid, pose, area):
            assert placed.side >= 2
            assert left <= placed.left <= placed.left + placed.side <= left + wide
            assert top <= placed.top <= placed.top + placed.side <= top + high
        layout.plan(wish, grid, pose, 0, area)


@pytest.mark.parametrize(
    "prompt",
    ["a dog on the beach", "三只企鹅在雪地里", "a house in the mountains", "two cars in the city",
     "a bird in the forest", "a robot in space"],
)  # fmt: skip
def test_its_own_pictures_are_read_back(pocket: Pocket, prompt: str) -> None:
    for seed in (1, 2):
        picture = drawn(pocket, job(prompt, seed=seed))
        wanted = pocket.prompts.read(prompt)
        state = begin(pocket, job("", reference=picture, strength=0.5))
        assert state.plan.scene == wanted.scene
        assert set(state.plan.contents) == set(layout.plan(wanted, 0, 1, 0).contents)


edits = st.builds(
    lambda prompt, seed, steps, strength, which, masked, guidance: (
        {
            "prompt": prompt,
            "seed": seed,
            "steps": steps,
            "strength": strength,
            "guidance": guidance,
        },
        which,
        masked,
    ),
    prompt=st.sampled_from(["", "a dog", "night", "a green apple", "qwertz"]),
    seed=st.integers(0, 2**31 - 1),
    steps=st.integers(1, 9),
    strength=st.floats(0, 1),
    which=st.sampled_from(["none", "apple", "cat", "foreign"]),
    masked=st.booleans(),
    guidance=st.sampled_from([1.5, 3.0]),
)


@settings(max_examples=12, deadline=None)
@given(st.lists(edits, min_size=2, max_size=5))
def test_an_edit_is_the_same_alone_and_in_any_company(
    pocket: Pocket,
    apple: Pixels,
    cat: Pixels,
    foreign: Pixels,
    asked: list[tuple[dict[str, Any], str, bool]],
) -> None:
    pictures = {"apple": apple, "cat": cat, "foreign": foreign}
    jobs: list[Job] = []
    for fields, which, masked in asked:
        reference = pictures.get(which)
        mask = box(SQUARE, 60, 100, 190, 256) if masked and reference is not None else None
        jobs.append(job(**fields, reference=reference, mask=mask))
    assert len({pocket.batch_key(one) for one in jobs}) == 1
    alone = [begin(pocket, one) for one in jobs]
    alone_pixels = [finish(pocket, [state])[0] for state in alone]
    together = [begin(pocket, one) for one in jobs]
    together_pixels = finish(pocket, together)
    for i in range(len(jobs)):
        assert together[i].step == jobs[i].steps_drawn
        np.testing.assert_allclose(together[i].latents, alone[i].latents, rtol=0, atol=1e-5)
        off = np.abs(together_pixels[i].astype(int) - alone_pixels[i].astype(int))
        assert off.max() <= 1
