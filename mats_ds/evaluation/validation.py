"""Validation during fine-tuning: evaluate the classifier, keep the best weights, log results.

Scores and counts are those of evaluate.py (see scoring and accuracy). Legend: S videos, R readable
ones, C classes.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mats_ds.core.clips import BadClip
from mats_ds.core.events import RunInfo, StepEvent
from mats_ds.core.format import format_count, format_seconds
from mats_ds.core.progress import show_progress
from mats_ds.core.storage.documents import parse_json
from mats_ds.core.storage.files import open_regular, open_to_append, write_text
from mats_ds.data.loading.build import ViewBatch
from mats_ds.distributed.collectives import gather_on_all
from mats_ds.distributed.ranks import RankInfo
from mats_ds.evaluation.accuracy import TOP, measure_accuracy
from mats_ds.evaluation.scoring import ScoredVideos, score_videos, softmax_scores

logger = logging.getLogger("mats_ds")

EVALUATION_FILE = "evaluation.jsonl"
MIN_SCORE = 1e-12  # of the true class, so that its loss is finite


@dataclass(frozen=True)
class Evaluation:
    """One line of evaluation.jsonl. Fractions are of the `num_videos` readable videos.

    `loss` is the mean cross-entropy of the videos' mean softmax, without label smoothing.
    `is_best`: better than all before. `measured_on`: the manifest; `clips` x `crops` views of each
    video; `averaged`: whether the averaged weights were used. These are None in lines of version
    0.1.
    """

    step: int
    epoch: float
    top1: float
    top5: float
    loss: float
    num_videos: int
    num_unreadable: int
    seconds: float
    is_best: bool = False
    measured_on: str | None = None
    clips: int | None = None
    crops: int | None = None
    averaged: bool | None = None


def judge(scored: ScoredVideos, label_S: np.ndarray, *, step: int, epoch: float, seconds: float) -> Evaluation:
    """The evaluation of scored videos; its numbers do not depend on the number of ranks."""
    label_R, scores_RC = label_S[scored.readable_R], scored.stack()
    accuracy, count = measure_accuracy(scores_RC, label_R), max(1, len(label_R))
    true_R = torch.from_numpy(scores_RC[np.arange(len(label_R)), label_R]).clamp(min=MIN_SCORE)
    return Evaluation(
        step=step,
        epoch=epoch,
        top1=accuracy.top1.hits / count,
        top5=accuracy.top5.hits / count,
        loss=float(-true_R.log().sum()) / count,
        num_videos=len(label_R),
        num_unreadable=len(label_S) - len(label_R),
        seconds=seconds,
    )


@dataclass
class Evaluator:
    """Observer that evaluates every `every_steps` steps and after the last one.

    It writes to the console, evaluation.jsonl and the monitors.

    model: what is evaluated (the engine's module, or the average of its weights). engine: put back
    into training afterwards. batches: gives one pass of this rank over its views (`read_pass`).
    label_S: int64 labels of the videos. keep_best: called on every rank after an evaluation that is
    better than all before it. measured_on, clips, crops, averaged: fields of each Evaluation. List
    it before the Checkpointer, so that a resumed run does not repeat the evaluation of its first
    step.
    """

    engine: Any
    model: nn.Module
    batches: Callable[[], Iterator[ViewBatch]]
    label_S: np.ndarray
    every_steps: int
    run_dir: Path
    num_batches: int
    keep_best: Callable[[Evaluation], None]
    ranks: RankInfo
    measured_on: str = ""
    clips: int = 1
    crops: int = 1
    averaged: bool = False

    def on_start(self, run: RunInfo) -> None:
        """Drop the evaluations of steps that will be repeated."""
        self.run = run
        self._logged_paths: set[str] = set()
        best = 0.0
        if self.ranks.rank == 0:
            past = [line for line in read_evaluations(self.run_dir) if line.step <= run.first_step]
            write_evaluations(self.run_dir, past)
            # other videos do not compare
            same = [line for line in past if line.measured_on in (None, self.measured_on)]
            best = max((line.top1 for line in same), default=-1.0)
        self.best = gather_on_all(best, self.ranks)[0]

    def on_step(self, event: StepEvent) -> None:
        if event.step % self.every_steps and event.step != self.run.total_steps:
            return
        began = time.perf_counter()
        was_training = self.engine.module.training
        self.model.eval()
        batches = self.batches()
        if self.ranks.rank == 0:
            batches = show_progress(batches, total=self.num_batches, label="test", unit="batch")
        scored = score_videos(
            batches,
            partial(softmax_scores, self.model),
            num_videos=len(self.label_S),
            num_clips=self.clips,
            num_crops=self.crops,
            ranks=self.ranks,
        )
        self.engine.module.train(was_training)
        evaluation = self._judge(event.step, scored, seconds=time.perf_counter() - began) if scored else None
        evaluation = gather_on_all(evaluation, self.ranks)[0]
        if evaluation.is_best:
            self.best = evaluation.top1
            self.keep_best(evaluation)
        if scored:
            self._write(evaluation, scored.bad, num_classes=scored.stack().shape[1])

    def _judge(self, step: int, scored: ScoredVideos, *, seconds: float) -> Evaluation:
        evaluation = judge(scored, self.label_S, step=step, epoch=step / self.run.steps_per_epoch, seconds=seconds)
        views = {"clips": self.clips, "crops": self.crops}
        is_best = evaluation.top1 > self.best
        return replace(evaluation, is_best=is_best, measured_on=self.measured_on, averaged=self.averaged, **views)

    def _write(self, evaluation: Evaluation, bad: list[BadClip], *, num_classes: int) -> None:
        """Write and log an evaluation; each unreadable video is logged once per run."""
        for clip in bad:
            if clip.path not in self._logged_paths:
                logger.warning("in the test, %s (it is left out)", clip.verdict)
                self._logged_paths.add(clip.path)
        append_evaluation(self.run_dir, evaluation)
        logger.info("%s", describe_evaluation(evaluation, best=self.best, num_classes=num_classes))
        if self.engine.monitor.enabled:
            values = {"top1": evaluation.top1, "top5": evaluation.top5, "loss": evaluation.loss}
            clips = evaluation.step * self.run.global_batch
            self.engine.monitor.write_events([(f"mats/test_{name}", value, clips) for name, value in values.items()])

    def on_end(self, outcome: str) -> None:
        """Nothing: every evaluation has been written."""


def describe_evaluation(evaluation: Evaluation, *, best: float, num_classes: int) -> str:
    """One line for the console; of so few classes that five are all of them, the top-1 alone."""
    top1 = 100 * evaluation.top1
    top5 = f"top-{TOP} {100 * evaluation.top5:.2f}%, " if num_classes > TOP else ""
    unreadable = f", {evaluation.num_unreadable:,} unreadable" if evaluation.num_unreadable else ""
    ending = "the best so far" if evaluation.is_best else f"best {100 * best:.2f}%"
    return (
        f"test after step {evaluation.step:,} (epoch {evaluation.epoch:.1f}): top-1 {top1:.2f}%, {top5}"
        f"loss {evaluation.loss:.3f} on {format_count(evaluation.num_videos, 'video')} of {evaluation.measured_on}{unreadable}, "
        f"{format_seconds(evaluation.seconds)}; {ending}"
    )


def read_evaluations(run_dir: Path) -> list[Evaluation]:
    """The evaluations of a run, oldest first; none if there is no file.

    An incomplete last line is skipped, and so is, with a warning, any other line that is no
    evaluation. Unknown keys are ignored.
    """
    path = run_dir / EVALUATION_FILE
    try:
        with open_regular(path) as stream:
            lines = stream.read().decode("utf-8", "replace").splitlines(keepends=True)
    except FileNotFoundError:
        return []
    evaluations = []
    for number, line in enumerate(lines, start=1):
        if not line.endswith("\n"):
            continue
        try:
            tree = parse_json(line)
            known = {field.name: tree[field.name] for field in fields(Evaluation) if field.name in tree}
            evaluations.append(Evaluation(**known))
        except (ValueError, TypeError) as error:
            logger.warning("%s line %d is skipped: %s", path, number, str(error)[:200])
    return evaluations


def write_evaluations(run_dir: Path, evaluations: list[Evaluation]) -> None:
    """Replace the file atomically."""
    write_text(run_dir / EVALUATION_FILE, "".join(format_line(evaluation) for evaluation in evaluations))


def append_evaluation(run_dir: Path, evaluation: Evaluation) -> None:
    """Add one line to the file."""
    with open_to_append(run_dir / EVALUATION_FILE) as file:
        file.write(format_line(evaluation))


def format_line(evaluation: Evaluation) -> str:
    """One line of evaluation.jsonl."""
    return json.dumps(asdict(evaluation)) + "\n"
