"""The test during training: exact over ranks, padding and unreadable views left out, the best weights kept."""

from __future__ import annotations

import dataclasses
import json
import logging
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mats_ds.core.clips import BadClip, ClipBatch
from mats_ds.distributed.ranks import start_distributed
from mats_ds.evaluation.validation import (
    EVALUATION_FILE,
    Evaluation,
    Evaluator,
    Scores,
    append_evaluation,
    judge,
    read_evaluations,
    score_videos,
    write_evaluations,
)


def test_right_answers_are_counted_among_the_videos_that_could_be_read():
    sum_SC = torch.tensor([[1.6, 0.4, 0.0], [0.2, 0.2, 0.6], [0.0, 0.0, 0.0], [0.5, 0.5, 0.0]], dtype=torch.float64)
    scores = Scores(sum_SC, torch.tensor([2.0, 1.0, 0.0, 1.0], dtype=torch.float64))
    found = judge(scores, torch.tensor([0, 1, 2, 1]), step=7, epoch=1.5, seconds=0.1)
    assert (found.num_videos, found.num_unreadable, found.step) == (3, 1, 7)
    assert found.top1 == pytest.approx(1 / 3), "of equal scores the lower class comes first"
    assert found.top5 == 1.0
    expected = -torch.tensor([0.8, 0.2, 0.5]).log().mean()
    assert found.loss == pytest.approx(float(expected))


def test_a_test_of_which_nothing_could_be_read_is_0_and_says_so():
    scores = Scores(torch.zeros(2, 3, dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
    found = judge(scores, torch.tensor([0, 1]), step=1, epoch=1, seconds=0)
    assert (found.top1, found.num_videos, found.num_unreadable) == (0.0, 0, 2)


class PixelModel(nn.Module):
    """The logits of a clip are its first three bytes."""

    def forward(self, frames_BTHWC, seed_B):
        return frames_BTHWC.flatten(1)[:, :3].float().where(frames_BTHWC.flatten(1)[:, :3] < 250, torch.nan)


def make_batch(logits, samples, valid):
    frames = torch.tensor(logits, dtype=torch.uint8).reshape(len(logits), 1, 1, 1, 3)
    return ClipBatch(frames, torch.zeros(len(logits)), torch.tensor(samples), torch.tensor(valid), torch.zeros(len(logits)))


# Views of three videos: the first has two, the second one (the other is blank), the third none that can be read; then padding.
VIEWS = [([4, 0, 0], 0, True), ([0, 2, 0], 0, True), ([0, 3, 0], 1, True), ([255, 0, 0], 1, False), ([255, 0, 0], 2, False),
         ([9, 0, 0], -1, True)]  # fmt: skip


def score_share(world_size):
    place = start_distributed()
    mine = VIEWS[place.rank :: world_size]
    batch = make_batch(*zip(*mine, strict=True))
    scores = score_videos(PixelModel(), iter([batch]), num_videos=3, num_classes=3, device=place.device)
    return scores.sum_SC.tolist(), scores.views_S.tolist()


def test_ranks_find_together_what_one_rank_finds_alone(ranks):
    [(alone_SC, alone_S)] = ranks(score_share, 1, 1)
    assert alone_S == [2, 1, 0]
    expected = torch.tensor([4.0, 0, 0]).softmax(0) + torch.tensor([0, 2.0, 0]).softmax(0)
    assert alone_SC[0] == pytest.approx(expected.tolist(), abs=1e-6) and alone_SC[2] == [0, 0, 0]
    for sums, views in ranks(score_share, 2, 2):
        assert views == alone_S
        assert torch.allclose(torch.tensor(sums), torch.tensor(alone_SC), atol=1e-12)


def name_bad_videos(folder):
    """What rank 0 says of the unreadable videos of three tests; the second rank finds one more than the first."""
    place = start_distributed()
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("mats_ds").addHandler(handler)
    bad = tuple(BadClip(f"{name}.mp4", sample, "torn") for sample, name in enumerate("ab"[: place.rank + 1]))

    def batches():
        batch = make_batch([[255, 0, 0]] * 2, [0, 1], [False, False])
        yield dataclasses.replace(batch, bad=bad)
        yield make_batch([[0, 5, 0]], [2], [True])

    engine = SimpleNamespace(module=PixelModel().train(), monitor=SimpleNamespace(enabled=False))
    evaluator = Evaluator(
        engine, engine.module, batches, label_S=torch.tensor([1, 1, 1]), num_classes=3, every_steps=1, run_dir=folder,
        num_batches=2, keep_best=lambda found: None,
    )  # fmt: skip
    evaluator.on_start(
        SimpleNamespace(rank=place.rank, first_step=0, total_steps=3, steps_per_epoch=1, device="cpu", global_batch=8)
    )
    for step in range(1, 4):
        evaluator.on_step(SimpleNamespace(step=step))
    return [line for line in said if line.startswith("unreadable")]


def test_rank_0_names_each_unreadable_video_once(ranks, tmp_path):
    first, second = ranks(name_bad_videos, 2, tmp_path)
    assert [line.split(" (")[0] for line in first] == [f"unreadable in the test: {name}.mp4: torn" for name in "ab"]
    assert second == []


def run_evaluator(folder, *, first_step, wrong_until):
    """Tests after every second of 5 steps; before step `wrong_until` the model is wrong. Returns when weights were kept."""
    start_distributed()
    written = []
    monitor = SimpleNamespace(enabled=True, write_events=written.extend)
    engine = SimpleNamespace(module=PixelModel().train(), monitor=monitor)
    state = SimpleNamespace(step=0)
    kept = []

    def batches():
        yield make_batch([[0, 5, 0] if state.step >= wrong_until else [5, 0, 0]] * 2, [0, 1], [True, True])

    evaluator = Evaluator(
        engine, engine.module, batches, label_S=torch.tensor([1, 1]), num_classes=3, every_steps=2, run_dir=folder,
        num_batches=1, keep_best=lambda found: kept.append(found.step),
    )  # fmt: skip
    evaluator.on_start(
        SimpleNamespace(rank=0, first_step=first_step, total_steps=5, steps_per_epoch=2, device="cpu", global_batch=8)
    )
    for state.step in range(first_step + 1, 6):
        evaluator.on_step(SimpleNamespace(step=state.step))
    return kept, engine.module.training, written


def test_tests_come_when_due_and_at_the_end_and_the_best_is_kept_once(ranks, tmp_path):
    [(kept, is_training, written)] = ranks(run_evaluator_with, 1, {"folder": tmp_path, "first_step": 0, "wrong_until": 3})
    found = read_evaluations(tmp_path)
    assert [each.step for each in found] == [2, 4, 5]
    assert [each.top1 for each in found] == [0.0, 1.0, 1.0] and [each.is_best for each in found] == [True, True, False]
    assert kept == [2, 4] and is_training
    assert [(clips, value) for name, value, clips in written if name == "mats/test_top1"] == [(16, 0.0), (32, 1.0), (40, 1.0)]


def run_evaluator_with(options):
    return run_evaluator(options.pop("folder"), **options)


def test_a_resumed_run_forgets_later_tests_and_remembers_the_best(ranks, tmp_path):
    ranks(run_evaluator_with, 1, {"folder": tmp_path, "first_step": 0, "wrong_until": 0})
    [(kept, *_)] = ranks(run_evaluator_with, 1, {"folder": tmp_path, "first_step": 2, "wrong_until": 0})
    assert [each.step for each in read_evaluations(tmp_path)] == [2, 4, 5]
    assert kept == [], "step 2 was as good"


def test_a_line_that_was_cut_off_is_passed_over(tmp_path):
    whole = Evaluation(step=1, epoch=1, top1=0.5, top5=1, loss=1, num_videos=2, num_unreadable=0, seconds=1)
    (tmp_path / EVALUATION_FILE).write_text(json.dumps(whole.__dict__) + "\n" + '{"step": 2, "ep')
    assert read_evaluations(tmp_path) == [whole]
    assert read_evaluations(tmp_path / "none") == []


def test_lines_that_are_no_test_are_passed_over_with_a_word(tmp_path, caplog):
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
