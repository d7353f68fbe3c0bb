"""What the page of the transfer benchmark says of right and wrong answers."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.transfer import SYNTHETIC_PLAN, choose_plan, read_hits
from benchmarks.transfer_page import PRETRAINED, SCRATCH, Run, SetResult, estimate_mean, lines_of_set, write_page


def make_result(right_of: dict[str, list[int]], *, num_videos=40) -> SetResult:
    """One run a seed and arm; `right_of` says how many of the first videos are right."""
    runs = [
        Run(seed, arm, [video < right for video in range(num_videos)], 9.0, 5.0)
        for arm, of_seeds in right_of.items()
        for seed, right in enumerate(of_seeds)
    ]
    return SetResult("five", SYNTHETIC_PLAN, num_classes=5, num_training_videos=77, runs=runs)


def test_an_estimate_is_the_mean_with_an_interval_of_the_known_width():
    """Values that vary over videos alone: the interval is that of a share of 400, plus or minus
    1.96 standard errors."""
    values_KS = np.repeat((np.arange(400) % 4 == 0)[None].astype(float), 3, axis=0)
    found = estimate_mean(values_KS)
    half = 1.96 * (0.25 * 0.75 / 400) ** 0.5
    assert found.value == 0.25
    assert (found.low, found.high) == (pytest.approx(0.25 - half, abs=0.004), pytest.approx(0.25 + half, abs=0.004))


def test_seeds_that_disagree_widen_the_interval():
    alike, apart = np.full((4, 50), 0.5), np.array([[0.0], [0.0], [1.0], [1.0]]).repeat(50, axis=1)
    assert estimate_mean(alike).high - estimate_mean(alike).low == pytest.approx(0)
    assert estimate_mean(apart).low == 0 and estimate_mean(apart).high == 1


def test_a_difference_is_taken_video_by_video():
    """Two arms that are right on the same videos differ by nothing for certain, however few the
    videos are."""
    page = "\n".join(lines_of_set(make_result({PRETRAINED: [20, 20], SCRATCH: [20, 20]})))
    assert "+0.0 (+0.0 to +0.0) points; no difference" in page


@pytest.mark.parametrize(
    ("right_of", "words"),
    [
        ({PRETRAINED: [39, 38], SCRATCH: [12, 13]}, ["pre-training helps", "pre-trained: 96.2", "above chance"]),
        ({PRETRAINED: [9, 8], SCRATCH: [32, 33]}, ["pre-training harms", "from chance"]),
    ],
)
def test_the_page_says_what_the_interval_says(right_of, words):
    lines = lines_of_set(make_result(right_of))
    assert all(word in "\n".join(lines) for word in words), lines
    assert f"| 0 | pre-trained | {right_of[PRETRAINED][0]} of 40 |" in "\n".join(lines)
    assert "chance 20%" in lines[2] and "77 training videos, 40 validation videos" in lines[2]


def test_few_seeds_are_called_few():
    of_two, of_five = ("\n".join(lines_of_set(make_result({PRETRAINED: [9] * k, SCRATCH: [8] * k}))) for k in (2, 5))
    assert "rather too narrow" in of_two and "rather too narrow" not in of_five


def test_page_and_figures_are_written_side_by_side(tmp_path):
    result = make_result({PRETRAINED: [3], SCRATCH: [2]}, num_videos=5)
    page = write_page(tmp_path / "out", [result], command="python x", versions={"torch": "2.15.0"})
    assert "`python x`" in page.read_text() and "torch 2.15.0" in page.read_text()
    figures = json.loads(page.with_suffix(".json").read_text())
    assert [run["hits"] for run in figures["sets"][0]["runs"]] == ["11100", "11000"]
    assert figures["sets"][0]["difference"]["value"] == pytest.approx(0.2)


def test_a_video_that_was_left_out_is_not_passed_over(tmp_path):
    (tmp_path / "predictions.csv").write_text("label,predicted\n1,1\n0,1\n")
    assert read_hits(tmp_path / "predictions.csv", num_videos=2) == [True, False]
    with pytest.raises(SystemExit, match="2 of 3 videos"):
        read_hits(tmp_path / "predictions.csv", num_videos=3)


def test_the_command_line_changes_the_plan_of_a_set():
    options = SimpleNamespace(pretrain_steps=7, finetune_steps=None, clip=["clip.stride=3"])
    plan = choose_plan("synthetic", options)
    assert (plan.pretrain_steps, plan.finetune_steps) == (7, SYNTHETIC_PLAN.finetune_steps)
    assert plan.clip == (*SYNTHETIC_PLAN.clip, "clip.stride=3")
