"""Pocket's training, end to end but tiny: renders tell the truth, training learns, exports draw alike."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

torch = pytest.importorskip("torch", reason="training needs torch: make install-training")
pytest.importorskip("onnx", reason="exports need onnx: make install-training")

from training.pocket import (  # noqa: E402
    captions,
    clear,
    data,
    export,
    lexicon,
    probe,
    recogniser,
    scenes,
    shipped,
    train_text,
    vocabulary,
)
from training.pocket import networks as n  # noqa: E402
from training.pocket.backgrounds import background  # noqa: E402
from training.pocket.text_network import SLOTS, TextNetwork  # noqa: E402
from training.pocket.train_denoiser import loss_of, new_denoiser, new_optimizer  # noqa: E402

from danqing.engine.families import pocket_layout as layout  # noqa: E402
from danqing.engine.families.pocket_text import TOKENS_MAX, tokenize  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not Path(scenes.FONT_PATH).exists(), reason="needs Debian's fonts-noto-color-emoji"
    ),
    pytest.mark.skipif(not captions.CLDR.exists(), reason="needs Debian's unicode-cldr-core"),
]


@pytest.fixture(scope="module")
def basis() -> n.Basis:
    rng = np.random.default_rng(0)
    fitted = n.Basis()
    fitted.fit([picture for _ in range(20) for picture in data.batch(rng, 4)[1]])
    return fitted.eval()


def parity(session_path: Path, inputs: dict[str, np.ndarray], expected: list[np.ndarray]) -> None:
    session = onnxruntime.InferenceSession(session_path, providers=["CPUExecutionProvider"])
    for got, wanted in zip(session.run(None, inputs), expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-3)


def test_the_vocabulary_is_whole() -> None:
    things = vocabulary.concepts()
    assert len({c.key for c in things}) == len({c.glyph for c in things}) == len(things) >= 400
    for language in ("en", "zh"):
        named = [name for names in captions.names(language) for name in names]
        assert len(named) == len(set(named)), "one word names two things"
        assert all(captions.names(language))
    assert len(vocabulary.scenes()) >= 20


def test_a_render_is_the_same_every_time_and_shows_its_truth() -> None:
    for seed in range(20):
        scene = scenes.sample(np.random.default_rng(seed))
        again = scenes.sample(np.random.default_rng(seed))
        assert scene == again
        picture = scenes.render(scene)
        np.testing.assert_array_equal(picture, scenes.render(again))
        rows, columns = layout.GRIDS[scene.grid]
        assert picture.shape == (rows * 32, columns * 32, 3)
        # Without its things the picture differs exactly where the plan says that they stand.
        wish = scene.wish
        empty = scenes.render(
            replace(
                scene, wish=layout.Wish(0, scene=wish.scene, hour=wish.hour, weather=wish.weather)
            )
        )
        changed = (picture != empty).any(axis=2).reshape(rows, 32, columns, 32).any(axis=(1, 3))
        told = layout.plan(wish, scene.grid, scene.pose, scene.variant).contents != layout.EMPTY
        assert not (changed & ~told.reshape(rows, columns)).any()
        assert changed.any() == bool(wish.thing)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_captions_name_what_they_ask_for(language: str) -> None:
    rng = np.random.default_rng(3)
    for thing, concept in enumerate(vocabulary.concepts(), start=1):
        text = captions.caption(rng, layout.Wish(thing, scene=1), language).lower()
        words = {w.lower() for w in (*captions.names(language)[thing - 1], *concept.leads)}
        plurals = {captions._plural(w) for w in words}
        assert any(w in text for w in words | plurals), (concept.key, text)
        assert len(tokenize(text)) <= TOKENS_MAX


def test_a_few_steps_lower_the_loss(basis: n.Basis) -> None:
    torch.manual_seed(0)
    model = new_denoiser(width=64, depth=1)
    optimizer = new_optimizer(model, 3e-3)
    for group in optimizer.param_groups:
        group["lr"] = group["peak"]
    grid, pictures, plans = data.batch(np.random.default_rng(1), 8, drop=0.1)
    clean = basis.encode(pictures).flatten(2).transpose(1, 2)
    losses = []
    for step in range(30):
        optimizer.zero_grad()
        loss = loss_of(model, clean, plans, grid, torch.Generator().manual_seed(step % 3))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_the_basis_keeps_most_of_a_picture(basis: n.Basis) -> None:
    truth = data.batch(np.random.default_rng(2), 4)[1]
    half = torch.nn.functional.avg_pool2d(truth, 2)
    lost = (basis.decode(basis.encode(truth)) - half).square().mean()
    assert lost < 0.05 * half.var()


@torch.no_grad()
def test_exports_draw_as_torch_does(basis: n.Basis, tmp_path: Path) -> None:
    torch.manual_seed(0)
    decoder = n.Decoder(basis).eval()
    torch.nn.init.normal_(decoder.leave.weight, std=0.02)
    denoiser = new_denoiser(width=64, depth=2).eval()
    for parameter in denoiser.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.02)
    text = TextNetwork(train_text.slot_sizes()).eval()
    export.write_codec(basis, decoder, tmp_path, kinds=("float32", "float32"))
    export.write_denoiser(denoiser, tmp_path, kind="float32")
    export.write_text(text, tmp_path, kind="float32")

    grid, pictures, plans = data.batch(np.random.default_rng(4), 3)
    z = basis.encode(pictures)
    parity(tmp_path / "encoder.onnx", {"picture": pictures.numpy()}, [z.numpy()])
    parity(tmp_path / "decoder.onnx", {"latents": z.numpy()}, [decoder(z).numpy()])
    latents, t = z.flatten(2).transpose(1, 2), torch.rand(3)
    contents, grounds, airs, colours, place = plans
    positions = torch.from_numpy(layout.positions(grid))
    clean = denoiser(latents, t, contents, grounds, airs, colours, place, positions)
    inputs = {"latents": latents, "t": t, "contents": contents, "grounds": grounds, "airs": airs,
              "colours": colours, "place": place, "positions": positions}  # fmt: skip
    parity(tmp_path / "denoiser.onnx", {k: v.numpy() for k, v in inputs.items()}, [clean.numpy()])
    upscaler = n.Upscaler().eval()
    torch.nn.init.normal_(upscaler.leave.weight, std=0.02)
    export.write_upscaler(upscaler, tmp_path, kind="float32")
    small = pictures[:1, :, :96, :64].contiguous()
    parity(tmp_path / "upscaler.onnx", {"small": small.numpy()}, [upscaler(small).numpy()])
    tokens, _, _ = train_text.text_batch(np.random.default_rng(5), 5)
    answers = [logits.softmax(dim=1).numpy() for logits in text(tokens)]
    assert len(answers) == len(SLOTS)
    parity(tmp_path / "text.onnx", {"tokens": tokens.numpy()}, answers)


@torch.no_grad()
def test_small_weights_change_little(basis: n.Basis, tmp_path: Path) -> None:
    decoder = n.Decoder(basis).eval()
    export.write_codec(basis, decoder, tmp_path)
    z = basis.encode(data.batch(np.random.default_rng(6), 2)[1])
    session = onnxruntime.InferenceSession(
        tmp_path / "decoder.onnx", providers=["CPUExecutionProvider"]
    )
    got = session.run(None, {"latents": z.numpy()})[0]
    assert np.abs(got - decoder(z).numpy()).max() < 0.02
    assert (tmp_path / "decoder.onnx").stat().st_size < 5e6


@torch.no_grad()
def test_the_shipped_weights_are_a_start_that_draws_as_they_do() -> None:
    """What they know, the next version's networks know before any training."""
    basis = shipped.basis_of()
    decoder = n.Decoder(basis)
    shipped.start_decoder(decoder)
    pictures = data.batch(np.random.default_rng(6), 2)[1]
    z = basis.encode(pictures)
    session = onnxruntime.InferenceSession(
        shipped.PACKAGE / "decoder.onnx", providers=["CPUExecutionProvider"]
    )
    drawn = session.run(None, {"latents": z.numpy()})[0]
    np.testing.assert_allclose(decoder.eval()(z).numpy(), drawn, rtol=0, atol=2e-3)
    text = TextNetwork(train_text.slot_sizes())
    assert not shipped.start_text(text)
    tokens, _, _ = train_text.text_batch(np.random.default_rng(7), 4)
    session = onnxruntime.InferenceSession(
        shipped.PACKAGE / "text.onnx", providers=["CPUExecutionProvider"]
    )
    for own, said in zip(text(tokens), session.run(None, {"tokens": tokens.numpy()}), strict=True):
        np.testing.assert_allclose(own.softmax(dim=1).numpy(), said, rtol=0, atol=2e-3)


def test_every_hour_and_weather_looks_its_own() -> None:
    for key in vocabulary.OPEN_AIR:
        seen = [np.asarray(background(key, 0, 8, 8, hour, weather)).astype(int)
                for hour, weather in ((0, 0), (1, 0), (2, 0), (0, 1), (0, 2), (0, 3), (2, 1), (2, 2))]  # fmt: skip
        for i, one in enumerate(seen):
            assert all(np.abs(one - other).mean() > 1 for other in seen[:i]), key


def test_the_recogniser_resumes_and_ends_at_its_number_of_renders(tmp_path: Path) -> None:
    recogniser.train(tmp_path, 8, 3, 1, size=4)
    saved = data.load(tmp_path / "recogniser.pt")
    assert saved is not None
    assert saved["seen"] == 8
    model = recogniser.train(tmp_path, 16, 3, 1, size=4, workers=1)
    resumed = data.load(tmp_path / "recogniser.pt")
    assert resumed is not None
    assert resumed["seen"] == 16
    again = recogniser.train(tmp_path, 16, 3, 1, size=4)
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_the_recogniser_sees_a_picture_and_its_mirror_image_alike() -> None:
    rng = np.random.default_rng(4)
    held = recogniser.batch(rng, 3)
    model = recogniser.Recogniser().eval()
    mirrored = [np.ascontiguousarray(picture[:, ::-1]) for picture in held.pictures]
    assert recogniser.look(model, held.pictures, held.wishes) == recogniser.look(
        model, mirrored, held.wishes
    )


def test_where_things_are_is_what_differs_from_the_bare_ground() -> None:
    scene = scenes.Scene(layout.Wish(3, 2, 1, scene=1), 1, 2)
    things, colours = recogniser.cells_of(scene, scenes.render(scene))
    assert set(np.unique(things)) == {0, 3}
    assert set(np.unique(colours)) == {0, 1}
    boxes = layout.place(scene.wish, 0, 1)
    outside = np.ones_like(things, dtype=bool)
    for box in boxes:
        outside[box.top : box.top + box.side, box.left : box.left + box.side] = False
    assert not things[outside].any()
    assert (things > 0).sum() > 4


@pytest.mark.parametrize(
    ("own", "nearest", "asked", "right"),
    [(1, 1, 1, True), (0, 1, 1, True), (1, 1, 2, False), (0, 3, 0, True), (3, 3, 0, False)],
)
def test_a_colour_that_was_asked_for_must_be_the_nearest_one_and_no_other_thing_is_tinted(
    own: int, nearest: int, asked: int, right: bool
) -> None:
    seen = recogniser.Seen([7, 9, 1, 2, 3], {7: (own, nearest), 9: (0, 4)}, 1, 0, 0, 0)
    assert probe.is_coloured(seen, 7, asked) == right


def test_a_sky_without_clouds_takes_cells_of_the_same_place_that_have_none() -> None:
    pairs, worst = clear.stand_ins("cloud", grids=[0])
    sizes = layout.GRID_CELLS * layout.COMPOSITIONS
    assert ((pairs - 1) // sizes == ((pairs - 1) // sizes)[:, :1]).all(), "the same scene"
    assert len(set(pairs[:, 0])) == len(pairs)
    assert worst.max() < 60
    bare = background("meadow", 0, 8, 8, without="cloud")
    assert np.asarray(bare)[:96].min(axis=2).max() < 225


def test_a_night_without_the_moon_takes_cells_of_the_same_hour_that_show_none() -> None:
    pairs = clear.hour_stand_ins("moon", grids=[0])
    shown, instead = set(pairs[:, 0].tolist()), set(pairs[:, 1].tolist())
    night = {int(code) for k in range(layout.AIR_PATTERNS) for code in layout.airs(2, 0, k, 0)[0]}
    assert shown
    assert not shown & instead
    assert shown | instead <= night


def test_the_words_that_are_shipped_are_the_vocabularys() -> None:
    stored = json.loads((shipped.PACKAGE / "words.json").read_text("utf-8"))
    assert stored == lexicon.description()
