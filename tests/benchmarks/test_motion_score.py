"""The ways of benchmarks/motion_score.py compute the score that they say."""

from __future__ import annotations

import torch

from benchmarks import motion_score
from benchmarks.motion_score import WAYS, clip_by_clip, count_changes, differences, make_clips, of_half_size, tubelet_by_tubelet
from mats_ds import TokenGrid
from mats_ds.models.vit import PatchEmbed


@torch.no_grad()
def test_ways_that_leave_out_nothing_change_no_token(monkeypatch):
    grid = TokenGrid(num_frames=8, height=64, width=96, tubelet=(2, 16, 16))  # 96 tokens
    monkeypatch.setattr(motion_score, "GRID", grid)
    monkeypatch.setattr(motion_score, "NUM_KEPT", 29)
    torch.manual_seed(0)
    count, changed, _ = count_changes(PatchEmbed(grid, 24), list(make_clips(4))[1::2])  # noise
    assert count == 2 and set(changed) == set(WAYS)
    for way in (clip_by_clip, tubelet_by_tubelet, differences):
        assert changed[way] == [0, 0], way.__name__
    assert min(changed[of_half_size]) > 0, "and others would be seen"
