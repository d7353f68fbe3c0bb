"""The other projects' rules, as docs/explanation/differences.md states them, and the figures that
are taken from them."""

from __future__ import annotations

import pytest

from benchmarks import differences
from benchmarks.differences import compare_lengths, finetune_numbers, multi_scale_box, pretrain_numbers, their_beginning
from mats_ds.data.synthetic import write_synthetic_set


def test_dense_clips_of_fine_tuning_and_pre_training():
    assert finetune_numbers(100, 7).tolist() == [7 + n for n in (0, 4, 8, 12, 17, 21, 25, 29, 34, 38, 42, 46, 51, 55, 59, 63)]
    assert finetune_numbers(40).tolist() == [0, 4, 8, 13, 17, 22, 26, 31, 35, *7 * [39]]
    assert pretrain_numbers(100, 7).tolist() == list(range(7, 71, 4))
    assert pretrain_numbers(40).tolist() == [*range(0, 40, 4), *6 * [36]]
    assert len(set(pretrain_numbers(32))) == 8


def test_test_clips_lie_on_the_stride():
    assert [their_beginning(300, clip, stride=4, num_clips=5) for clip in range(5)] == [0, 56, 116, 176, 236]
    assert [differences.our_beginning(300, clip, stride=4, num_clips=5) for clip in range(5)] == [0, 59, 118, 177, 236]


def test_boxes_snap_to_the_output_and_to_whole_quarters():
    assert multi_scale_box((256, 340), (0.875, 1.0), (2, 4)) == (2 * 8, 4 * 21, 224, 256)
    assert multi_scale_box((301, 340), (0.75, 0.66), (1, 1)) == (19, 35, 224, 198)  # 225 became 224


def test_figures_of_lengths():
    figures = compare_lengths([50, 64, 100])
    assert figures["share shorter than 64 frames"] == pytest.approx(1 / 3)
    assert figures["uniform, frames never shown: mean, max"] == pytest.approx((0.08 / 3, 0.04))
    assert figures["last beginning, its share of all"] == pytest.approx(1 / 37)


@pytest.mark.slow
def test_it_runs_over_folders_of_videos(tmp_path, capsys):
    write_synthetic_set(tmp_path, num_videos=2, num_frames=90, height=240, width=320)
    differences.main([str(tmp_path), "--every", "1"])
    out = capsys.readouterr().out
    assert "2 clips" in out and "40 frames, pre: still tubelets: 2.00000" in out
