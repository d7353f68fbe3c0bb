"""Which tokens are kept: the authors' picks, a loop-written reference, and properties of every
strategy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mats_ds import TokenGrid, score_motion, select_tokens
from mats_ds.tokens.selection import running_cells

ORACLE = Path(__file__).resolve().parents[2].parent / "shared" / "oracle"
# 4 tubelets of 6 x 10 places: 240 tokens
GRID = TokenGrid(num_frames=8, height=24, width=40, tubelet=(2, 4, 4))
STRATEGIES = ("mats", "random_drop", "tube", "random", "running_cell")


def kept(selection):
    return torch.cat([selection.visible_BV, selection.target_BM], dim=1).sort(dim=1).values


@pytest.mark.parametrize("tag", ["randn_8x196x32", "randn_8x16x8", "exact_int_8x196x4", "demo_vits_seed1", "static_clip"])
def test_what_the_authors_code_keeps(tag):
    if not (ORACLE / f"{tag}.json").exists():
        pytest.skip("the recorded picks of the authors' code are not here")
    recorded = json.loads((ORACLE / f"{tag}.json").read_text())
    embedding = torch.load(ORACLE / f"{tag}.pt", weights_only=True)
    grid = TokenGrid(num_frames=2 * recorded["T"], height=16, width=16 * recorded["L"])
    motion = score_motion(embedding, grid)
    pretraining = select_tokens(motion, keep_ratio=0.3, visible_ratio=0.1)
    finetuning = select_tokens(motion, keep_ratio=0.6, visible_ratio=0.6)
    assert pretraining.visible_BV.shape[1] == recorded["V"]
    assert finetuning.target_BM.shape[1] == 0
    for ours, theirs, tied in (
        (kept(pretraining), recorded["pre_keep"], recorded["cut_tied_K_pre"]),
        (finetuning.visible_BV, recorded["ft_keep"], recorded["cut_tied_K_ft"]),
    ):
        for clip in range(len(ours)):
            # the cut falls between equal scores: the same scores are kept, whichever tokens bear
            # them
            if tied[clip]:
                same = motion[clip][ours[clip]].sort().values, motion[clip][torch.tensor(theirs[clip])].sort().values
                assert torch.equal(*same)
            else:
                assert ours[clip].tolist() == theirs[clip]


def test_mats_keeps_what_a_loop_keeps():
    motion = torch.rand(3, 240, generator=torch.Generator().manual_seed(1))
    selection = select_tokens(motion, keep_ratio=0.3, visible_ratio=0.1)
    for clip in range(3):
        ranked = sorted(range(240), key=lambda token, clip=clip: (-float(motion[clip, token]), token))
        assert kept(selection)[clip].tolist() == sorted(ranked[:72])
    assert selection.visible_BV.shape == (3, 24)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_picks_are_valid_ascending_disjoint_and_depend_on_the_seed_alone(strategy):
    motion = torch.rand(4, 240, generator=torch.Generator().manual_seed(2))
    seeds = torch.tensor([5, 6, 7, 8])
    selection = select_tokens(motion, strategy=strategy, grid=GRID, seed_B=seeds)
    for index in (selection.visible_BV, selection.target_BM):
        assert index.dtype == torch.int64
        assert (index.diff(dim=1) > 0).all()
        assert int(index.min()) >= 0 and int(index.max()) < 240
    for clip in range(4):
        assert not set(selection.visible_BV[clip].tolist()) & set(selection.target_BM[clip].tolist())
        alone = select_tokens(motion[clip : clip + 1], strategy=strategy, grid=GRID, seed_B=seeds[clip : clip + 1])
        assert torch.equal(alone.visible_BV[0], selection.visible_BV[clip])
        assert torch.equal(alone.target_BM[0], selection.target_BM[clip])
    other = select_tokens(motion, strategy=strategy, grid=GRID, seed_B=seeds + 100)
    assert not torch.equal(other.visible_BV, selection.visible_BV)


def test_a_generator_fixes_the_pick():
    motion = torch.rand(2, 240)
    picks = [select_tokens(motion, generator=torch.Generator().manual_seed(9)).visible_BV for _ in range(2)]
    assert torch.equal(*picks)


def test_every_kept_token_is_visible_equally_often():
    motion = torch.arange(240.0).expand(4000, 240)
    selection = select_tokens(motion, keep_ratio=0.05, visible_ratio=0.025, seed_B=torch.arange(4000))
    times = torch.bincount(selection.visible_BV.flatten(), minlength=240)
    assert times[:228].sum() == 0
    # each of the 12 kept tokens is visible in half of 4000 clips; 5 standard deviations are 158
    assert (times[228:] - 2000).abs().max() < 158


def test_random_drop_has_the_counts_of_mats_and_ignores_motion():
    seeds = torch.arange(2)
    one = select_tokens(torch.rand(2, 240), strategy="random_drop", seed_B=seeds)
    two = select_tokens(torch.zeros(2, 240), strategy="random_drop", seed_B=seeds)
    assert torch.equal(one.visible_BV, two.visible_BV)
    assert (one.visible_BV.shape[1], one.target_BM.shape[1]) == (24, 48)


def test_a_tube_shows_the_same_positions_in_every_tubelet():
    selection = select_tokens(torch.zeros(2, 240), strategy="tube", grid=GRID)
    places = (selection.visible_BV % 60).view(2, 4, 6)
    assert torch.equal(places, places[:, :1].expand_as(places))
    assert selection.visible_BV.shape[1] + selection.target_BM.shape[1] == 240


def test_a_running_cell_keeps_half_and_moves_on_by_one_position_each_tubelet():
    cells = running_cells(GRID, torch.arange(4)).view(4, 4, 6, 10)
    # over four tubelets every place is kept twice
    assert torch.equal(cells.sum(dim=1), torch.full((4, 6, 10), 2))
    first = [
        [False, False, True, True],  # a cell is 0 1 over 2 3
        [False, True, True, False],
        [True, True, False, False],
        [True, False, False, True],
    ]
    for phase in range(4):
        seen = [cells[phase, time, :2, :2].flatten().tolist() for time in range(4)]
        assert seen == first[phase:] + first[:phase]
    assert torch.equal(cells, cells[:, :, :2, :2].tile(1, 1, 3, 5))  # all cells run alike


def test_running_cell_reconstructs_one_phase_less_what_is_visible():
    """Where cells divide the grid, targets are exactly what VideoMAE V2's loss is taken over, at
    one of its four phases."""
    selection = select_tokens(torch.zeros(400, 240), strategy="running_cell", grid=GRID, seed_B=torch.arange(400))
    cells = running_cells(GRID, torch.arange(4))
    times = torch.zeros(4)
    for visible, target in zip(selection.visible_BV, selection.target_BM, strict=True):
        expected = cells.clone()
        expected[:, visible] = False
        found = torch.zeros(240, dtype=torch.bool).index_fill(0, target, True)
        (phase,) = [phase for phase in range(4) if torch.equal(expected[phase], found)]
        times[phase] += 1
    assert (times - 100).abs().max() < 5 * (400 * 0.25 * 0.75) ** 0.5


def test_running_cell_has_static_counts_on_a_grid_that_cells_do_not_divide():
    odd = TokenGrid(num_frames=6, height=20, width=12, tubelet=(2, 4, 4))
    selection = select_tokens(torch.zeros(3, 45), strategy="running_cell", grid=odd, visible_ratio=0.2)
    assert selection.visible_BV.shape == (3, 9) and selection.target_BM.shape == (3, 18)


def test_a_static_clip_gives_a_valid_deterministic_pick():
    picks = [kept(select_tokens(torch.zeros(1, 240))) for _ in range(2)]
    assert torch.equal(*picks)
    assert picks[0].unique().numel() == 72


def test_mistakes_are_refused():
    motion = torch.zeros(1, 240)
    with pytest.raises(ValueError, match="unknown selection strategy 'mat'"):
        select_tokens(motion, strategy="mat")
    with pytest.raises(ValueError, match="pass grid="):
        select_tokens(motion, strategy="tube")
    with pytest.raises(ValueError, match="240 tokens but the grid has 1568"):
        select_tokens(motion, grid=TokenGrid())
    with pytest.raises(ValueError, match="-24 target tokens"):
        select_tokens(motion, keep_ratio=0.1, visible_ratio=0.2)
