"""Validation during fine-tuning: bit-equal over ranks, padding and unreadable views left out, the
best weights kept."""

from __future__ import annotations

import dataclasses
import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from mats_ds.core.clips import BadClip, ClipBatch
from mats_ds.data.loading.build import ViewBatch
from mats_ds.data.view_sampler import View
from mats_ds.distributed.ranks import start_distributed
from mats_ds.evaluation.scoring import ScoredVideos, VideoScore
from mats_ds.evaluation.validation import (
    EVALUATION_FILE,
    Evaluation,
    Evaluator,
    append_evaluation,
    judge,
    read_evaluations,
    write_evaluations,
)


def test_right_answers_are_counted_among_the_videos_that_could_be_read():
    means = [[0.8, 0.2, 0.0], [0.2, 0.2, 0.6], None, [0.5, 0.5, 0.0]]
    scored = ScoredVideos([VideoScore(None if mean is None else np.array(mean), mean is not None) for mean in means], [])
    evaluation = judge(scored, np.array([0, 1, 2, 1]), step=7, epoch=1.5, seconds=0.1)
    assert (evaluation.num_videos, evaluation.num_unreadable, evaluation.step) == (3, 1, 7)
    assert evaluation.top1 == pytest.approx(1 / 3), "of equal scores the lower class ranks first"
    assert evaluation.top5 == 1.0
    assert evaluation.loss == pytest.approx(-np.log([0.8, 0.2, 0.5]).mean())


def test_an_evaluation_of_which_nothing_could_be_read_is_0():
    evaluation = judge(ScoredVideos([VideoScore(None, 0)] * 2, []), np.array([0, 1]), step=1, epoch=1, seconds=0)
    assert (evaluation.top1, evaluation.loss, evaluation.num_videos, evaluation.num_unreadable) == (0.0, 0.0, 0, 2)


class PixelModel(nn.Module):
    """The logits of a clip are its first three bytes."""

    def forward(self, frames_BTHWC, seed_B):
        return frames_BTHWC.flatten(1)[:, :3].float().where(frames_BTHWC.flatten(1)[:, :3] < 250, torch.nan)


def make_batch(logits, views, readable, bad=()):
    """A batch of clips whose logits are given; views: (sample, clip), None for padding."""
    frames = torch.tensor(logits, dtype=torch.uint8).reshape(len(logits), 1, 1, 1, 3)
    samples = torch.tensor([-1 if view is None else view[0] for view in views])
    zeros = torch.zeros(len(logits), dtype=torch.int64)
    clips = ClipBatch(frames, zeros, samples, torch.tensor(readable), zeros, bad=tuple(bad))
    return ViewBatch(clips, tuple(view and View(*view, 0) for view in views), tuple(readable))


def make_evaluator(ranks, folder, batches, *, label_S, clips=1, every_steps=1, keep_best=lambda evaluation: None, monitor=None):
    monitor = monitor or SimpleNamespace(enabled=False)
    engine = SimpleNamespace(module=PixelModel().train(), monitor=monitor)
    return Evaluator(
        engine, engine.module, batches, label_S=np.array(label_S), every_steps=every_steps, run_dir=folder,
        num_batches=1, keep_best=keep_best, ranks=ranks, clips=clips,
    )  # fmt: skip


def make_run(*, first_step=0, total_steps=1, steps_per_epoch=1):
    return SimpleNamespace(
        first_step=first_step, total_steps=total_steps, steps_per_epoch=steps_per_epoch, global_batch=8
    )  # fmt: skip


# Five clips each of three videos, in batches of two: the views of a video are on both ranks. Video
# 1 has three readable views and video 2 none; the last batch is padded. Added rank by rank, the
# scores of video 0 and the loss have other last bits.
LOGITS = [[3, 1, 0], [3, 0, 0], [3, 3, 0], [3, 2, 3], [4, 2, 3], [0, 3, 0], [2, 2, 1], [1, 0, 3], *[[255, 0, 0]] * 7, [9, 0, 0]]
VIEWS = [*((sample, clip) for sample in range(3) for clip in range(5)), None]
READABLE = [*[True] * 8, *[False] * 7, True]
LABELS = [0, 2, 1]


def evaluate_pixels(folder):
    """The one Evaluation that this rank learns, without its time, and the steps at which it kept
    weights."""
    ranks = start_distributed()
    kept = []

    def batches():
        for first in range(2 * ranks.rank, len(VIEWS), 2 * ranks.world_size):
            part = slice(first, first + 2)
            yield make_batch(LOGITS[part], VIEWS[part], READABLE[part])

    evaluator = make_evaluator(ranks, folder, batches, label_S=LABELS, clips=5, keep_best=kept.append)
    evaluator.on_start(make_run())
    evaluator.on_step(SimpleNamespace(step=1))
    return [dataclasses.replace(evaluation, seconds=0) for evaluation in kept]


def test_an_evaluation_has_the_same_bits_on_one_and_on_two_ranks(ranks, tmp_path):
    [[alone]] = ranks(evaluate_pixels, 1, tmp_path)
    assert (alone.num_videos, alone.num_unreadable, alone.top1, alone.is_best) == (2, 1, 0.5, True)
    scores = torch.tensor(LOGITS[:8], dtype=torch.float64).softmax(dim=1)
    wanted = -(scores[:5].mean(dim=0)[0].log() + scores[5:].mean(dim=0)[2].log()) / 2
    assert alone.loss == pytest.approx(float(wanted), rel=1e-12)
    for [evaluation] in ranks(evaluate_pixels, 2, tmp_path):
        assert evaluation == alone, "equal bit for bit, and known to every rank"


def name_bad_videos(folder):
    """What rank 0 logs of the unreadable videos of three evaluations; the second rank finds one
    more than the first."""
    ranks = start_distributed()
    logged = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append(record.getMessage())
    logging.getLogger("mats_ds").addHandler(handler)
    bad = [BadClip(f"{name}.mp4", sample, "torn") for sample, name in enumerate("ab"[: ranks.rank + 1])]

    def batches():
        yield make_batch([[0, 5, 0], [255, 0, 0]], [(2 + ranks.rank, 0), (ranks.rank, 0)], [True, False], bad)

    evaluator = make_evaluator(ranks, folder, batches, label_S=[1, 1, 1, 1])
    evaluator.on_start(make_run(total_steps=3))
    for step in range(1, 4):
        evaluator.on_step(SimpleNamespace(step=step))
    return [line for line in logged if "unreadable" in line]


def test_rank_0_names_each_unreadable_video_once(ranks, tmp_path):
    first, second = ranks(name_bad_videos, 2, tmp_path)
    assert [line.split(" (")[0] for line in first] == [f"in the test, unreadable: {name}.mp4: torn" for name in "ab"]
    assert second == []


def run_evaluator(options):
    """Evaluates after every second of 5 steps; before step `wrong_until` the model is wrong.
    Returns when weights were kept."""
    written, kept, state = [], [], SimpleNamespace(step=0)
    first_step, wrong_until = options["first_step"], options["wrong_until"]

    def batches():
        yield make_batch([[0, 5, 0] if state.step >= wrong_until else [5, 0, 0]] * 2, [(0, 0), (1, 0)], [True, True])

    evaluator = make_evaluator(
        start_distributed(), options["folder"], batches, label_S=[1, 1], every_steps=2,
        keep_best=lambda evaluation: kept.append(evaluation.step),
        monitor=SimpleNamespace(enabled=True, write_events=written.extend),
    )  # fmt: skip
    evaluator.on_start(make_run(first_step=first_step, total_steps=5, steps_per_epoch=2))
    for state.step in range(first_step + 1, 6):
        evaluator.on_step(SimpleNamespace(step=state.step))
    return kept, evaluator.engine.module.training, written


def test_tests_come_when_due_and_at_the_end_and_the_best_is_kept_once(ranks, tmp_path):
    [(kept, is_training, written)] = ranks(run_evaluator, 1, {"folder": tmp_path, "first_step": 0, "wrong_until": 3})
    found = read_evaluations(tmp_path)
    assert [each.step for each in found] == [2, 4, 5]
    assert [each.top1 for each in found] == [0.0, 1.0, 1.0] and [each.is_best for each in found] == [True, True, False]
    assert kept == [2, 4] and is_training
    assert [(clips, value) for name, value, clips in written if name == "mats/test_top1"] == [(16, 0.0), (32, 1.0), (40, 1.0)]


def test_a_resumed_run_forgets_later_tests_and_remembers_the_best(ranks, tmp_path):
    ranks(run_evaluator, 1, {"folder": tmp_path, "first_step": 0, "wrong_until": 0})
    [(kept, *_)] = ranks(run_evaluator, 1, {"folder": tmp_path, "first_step": 2, "wrong_until": 0})
    assert [each.step for each in read_evaluations(tmp_path)] == [2, 4, 5]
    assert kept == [], "step 2 was as good"


def test_a_line_that_was_cut_off_is_skipped(tmp_path):
    whole = Evaluation(step=1, epoch=1, top1=0.5, top5=1, loss=1, num_videos=2, num_unreadable=0, seconds=1)
    (tmp_path / EVALUATION_FILE).write_text(json.dumps(whole.__dict__) + "\n" + '{"step": 2, "ep')
    assert read_evaluations(tmp_path) == [whole]
    assert read_evaluations(tmp_path / "none") == []


def test_lines_that_are_no_evaluation_are_skipped_with_a_warning(tmp_path, caplog):
    """A run goes on, whatever somebody has written between its lines."""
    test = Evaluation(step=3, epoch=1.0, top1=0.5, top5=1.0, loss=0.7, num_videos=6, num_unreadable=0, seconds=0.1)
    later = {**dataclasses.asdict(test), "of a later version": 1}
    lines = ["[]", "{}", "nonsense", "[" * 100_000, json.dumps(later), json.dumps(later)[:20]]
    (tmp_path / EVALUATION_FILE).write_text("\n".join(lines))
    with caplog.at_level(logging.WARNING):
        assert read_evaluations(tmp_path) == [test]
    assert [record.args[1] for record in caplog.records] == [1, 2, 3, 4]


def test_a_link_is_not_followed_into_another_file(tmp_path):
    (tmp_path / "private").write_text("mine\n")
    (tmp_path / EVALUATION_FILE).symlink_to(tmp_path / "private")
    test = Evaluation(step=3, epoch=1.0, top1=0.5, top5=1.0, loss=0.7, num_videos=6, num_unreadable=0, seconds=0.1)
    for use in (lambda: append_evaluation(tmp_path, test), lambda: write_evaluations(tmp_path, [test])):
        with pytest.raises(ValueError, match="symbolic link"):
            use()
    assert (tmp_path / "private").read_text() == "mine\n"
