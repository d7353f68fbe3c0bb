"""Clips of any length, resolution and tubelet train and are classified; what does not divide is
told."""

from __future__ import annotations

import pytest
import torch

from mats_ds import MaskedAutoencoder, TokenGrid, VideoClassifier

SIZES = dict(width=12, depth=1, heads=3)
DECODER = dict(decoder_width=8, decoder_depth=1, decoder_heads=2)
GRIDS = [
    TokenGrid(4, 16, 16, (2, 8, 8)),
    TokenGrid(64, 16, 24, (2, 8, 8)),
    TokenGrid(5, 21, 35, (1, 7, 5)),  # one frame a tubelet, odd sides
    TokenGrid(12, 24, 16, (4, 8, 4)),  # four frames a tubelet, tall
    TokenGrid(9, 33, 15, (3, 11, 15)),  # one column
    TokenGrid(16, 64, 176, (2, 16, 16)),
    TokenGrid(32, 8, 8, (2, 8, 8)),  # one place
]
STRATEGIES = ("mats", "random_drop", "tube", "random")


def name_of(grid):
    return f"{grid.num_frames}x{grid.height}x{grid.width}/{'x'.join(map(str, grid.tubelet))}"


def random_frames(grid, batch=2, frames=None):
    shape = (batch, frames or grid.num_frames, grid.height, grid.width, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("grid", GRIDS, ids=name_of)
def test_pretraining_trains(grid, strategy):
    options = dict(strategy=strategy, keep_ratio=0.75, visible_ratio=0.5)
    # a tube mask of one place shows all, and its loss would be no number
    if strategy == "tube" and grid.tokens_per_tubelet == 1:
        with pytest.raises(ValueError, match="16 visible, 0 targets"):
            MaskedAutoencoder(grid=grid, **SIZES, **DECODER, **options)
        return
    model = MaskedAutoencoder(grid=grid, **SIZES, **DECODER, **options)
    loss = model(random_frames(grid))
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("keep_ratio", [0.6, 0.99, 1.0])
@pytest.mark.parametrize("grid", GRIDS, ids=name_of)
def test_classification_trains_on_the_fraction_that_was_asked_for(grid, keep_ratio):
    model = VideoClassifier(grid=grid, **SIZES, num_classes=3, keep_ratio=keep_ratio)
    frames = random_frames(grid)
    assert model.encode(frames).index_BK.shape == (2, int(round(keep_ratio * 100) * grid.num_tokens // 100))
    torch.nn.functional.cross_entropy(model(frames), torch.tensor([0, 2])).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("grid", GRIDS, ids=name_of)
def test_a_static_video_gives_a_valid_pick_and_always_the_same(grid):
    frames = torch.full_like(random_frames(grid), 90)
    model = VideoClassifier(grid=grid, **SIZES, num_classes=3).eval()
    first, second = (model.encode(frames).index_BK for _ in range(2))
    assert torch.equal(first, second)
    assert (first.diff(dim=1) > 0).all() and int(first.max()) < grid.num_tokens
    assert first[0].tolist() == list(range(first.shape[1]))  # of equal scores the earlier
    autoencoder = MaskedAutoencoder(grid=grid, **SIZES, **DECODER, keep_ratio=0.75, visible_ratio=0.5)
    assert autoencoder(frames).isfinite()


@pytest.mark.parametrize("candidates, used", [(4, 2), (9, 6), (32, 8)])
def test_adaptive_frames_of_any_number(candidates, used):
    grid = TokenGrid(2 * used, 16, 24, (2, 8, 8))
    model = VideoClassifier(grid=grid, **SIZES, num_classes=3, candidate_grid=grid.with_tau(candidates))
    frames = random_frames(grid, frames=2 * candidates)
    for clip in (model.train().encode(frames), model.eval().encode(frames)):
        assert clip.tubelets_BT.shape == (2, used) and (clip.tubelets_BT.diff(dim=1) > 0).all()
        assert clip.tokens_BKD.shape == (2, int(0.6 * grid.num_tokens), 12)


@pytest.mark.parametrize(
    "arguments, reason",
    [
        ((15, 16, 16, (2, 8, 8)), "num_frames=15 .* multiple of 2"),
        ((16, 20, 16, (2, 8, 8)), "height=20 .* multiple of 8"),
        ((16, 16, 4, (2, 8, 8)), "width=4 .* multiple of 8"),
        ((16, 16, 16, (2, 8)), "tubelet is .frames, height, width."),
    ],
)
def test_what_does_not_divide_is_refused(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        TokenGrid(*arguments)


def test_one_tubelet_has_no_motion_but_can_be_classified_with_all_tokens():
    grid = TokenGrid(4, 16, 24, (4, 8, 8))
    with pytest.raises(ValueError, match="at least two tubelets along time, the grid has 1"):
        VideoClassifier(grid=grid, **SIZES, num_classes=3)(random_frames(grid))
    assert VideoClassifier(grid=grid, **SIZES, num_classes=3, keep_ratio=1.0)(random_frames(grid)).shape == (2, 3)


def test_frames_of_another_size_are_refused():
    grid = GRIDS[0]
    model = VideoClassifier(grid=grid, **SIZES, num_classes=3)
    with pytest.raises(ValueError, match=r"\[B, 4, 16, 16, 3\], got \[2, 6, 16, 16, 3\]"):
        model(random_frames(grid, frames=6))
    with pytest.raises(ValueError, match="must be uint8"):
        model(random_frames(grid).float())
