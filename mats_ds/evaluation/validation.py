"""Testing a classifier during its training: an observer that counts right answers over all ranks and keeps the best weights.

Legend: S videos of the test, B clips of a batch, C classes. A video's scores are the mean of its views' softmax.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from tqdm import tqdm

from mats_ds.core.clips import BadClip, ClipBatch
from mats_ds.core.events import RunInfo, StepEvent
from mats_ds.core.storage.documents import parse_json
from mats_ds.core.storage.files import open_regular, open_to_append, write_text

logger = logging.getLogger("mats_ds")

EVALUATION_FILE = "evaluation.jsonl"
TOP = 5


@dataclass(frozen=True)
class Evaluation:
    """One test, a line of evaluation.jsonl. Shares are of the `num_videos` videos that could be read; `num_unreadable` could not.

    `loss` is the mean cross-entropy of the videos' mean softmax, without label smoothing. `is_best`: no test before was as good.
    `measured_on`: the manifest; `clips` x `crops` views of each video; `averaged`: whether the average of the weights was tested.
    None: the line is of version 0.1, which did not say it.
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


@dataclass(frozen=True)
class Scores:
    """sum_SC: float64, the sum of the softmax of a video's views; views_S: how many there are. The same on all ranks.

    bad: the videos of which a view could not be read, each once.
    """

    sum_SC: torch.Tensor
    views_S: torch.Tensor
    bad: tuple[BadClip, ...] = ()


@torch.no_grad()
def score_videos(
    model: nn.Module, batches: Iterator[ClipBatch], *, num_videos: int, num_classes: int, device: torch.device
) -> Scores:
    """One pass over a test set, each rank its share. `batches`: of a ViewSampler; padding and blank clips count nothing."""
    sum_SC = torch.zeros(num_videos, num_classes, dtype=torch.float64, device=device)
    views_S = torch.zeros(num_videos, dtype=torch.float64, device=device)
    bad: list[BadClip] = []
    for batch in batches:
        bad.extend(batch.bad)
        counts_B = (batch.valid_B & (batch.sample_B >= 0)).double()
        scores_BC = model(batch.frames_BTHWC, batch.seed_B).double().softmax(dim=1)
        sample_B = batch.sample_B.clamp(min=0)
        # where, not a product: a blank clip's scores may be no numbers
        sum_SC.index_add_(0, sample_B, torch.where(counts_B[:, None] > 0, scores_BC, 0.0))
        views_S.index_add_(0, sample_B, counts_B)
    dist.all_reduce(sum_SC)
    dist.all_reduce(views_S)
    return Scores(sum_SC, views_S, _gather_bad(bad))


def _gather_bad(bad: list[BadClip]) -> tuple[BadClip, ...]:
    """Those of all ranks, each file once."""
    gathered: list[list[BadClip]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, bad)
    by_path: dict[str, BadClip] = {}
    for each in (each for part in gathered for each in part):
        by_path.setdefault(each.path, each)
    return tuple(by_path.values())


def judge(scores: Scores, label_S: torch.Tensor, *, step: int, epoch: float, seconds: float) -> Evaluation:
    """Right answers among the videos that could be read. Of equal scores the lower class comes first."""
    read_S = scores.views_S > 0
    mean_SC = (scores.sum_SC / scores.views_S.clamp(min=1)[:, None])[read_S].cpu()
    true_S1 = label_S[read_S.cpu()][:, None]
    top = mean_SC.argsort(dim=1, descending=True, stable=True)[:, :TOP]
    hits = top == true_S1
    count = max(1, len(true_S1))
    return Evaluation(
        step=step,
        epoch=epoch,
        top1=int(hits[:, 0].sum()) / count,
        top5=int(hits.sum()) / count,
        loss=float(-mean_SC.gather(1, true_S1).clamp(min=1e-12).log().sum()) / count,
        num_videos=len(true_S1),
        num_unreadable=len(label_S) - len(true_S1),
        seconds=seconds,
    )


@dataclass
class Evaluator:
    """Tests every `every_steps` steps and after the last one; what it finds goes to the console and into evaluation.jsonl. Each
    unreadable video is named once.

    model: what is tested (the engine's module, or the average of its weights); engine: put back into training afterwards,
    and its monitors get the figures.
    batches: gives one pass of this rank. keep_best: called on every rank after a test that is better than all before it.
    measured_on, clips, crops, averaged: what an Evaluation says of itself.
    List it before the Checkpointer, so that a run that is resumed does not test the same step twice.
    """

    engine: Any
    model: nn.Module
    batches: Callable[[], Iterator[ClipBatch]]
    label_S: torch.Tensor
    num_classes: int
    every_steps: int
    run_dir: Path
    num_batches: int
    keep_best: Callable[[Evaluation], None]
    measured_on: str = ""
    clips: int = 1
    crops: int = 1
    averaged: bool = False

    def on_start(self, run: RunInfo) -> None:
        """Forget the tests of steps that are now done again."""
        self.run = run
        self._named: set[str] = set()
        best = [0.0]
        if run.rank == 0:
            past = [each for each in read_evaluations(self.run_dir) if each.step <= run.first_step]
            write_evaluations(self.run_dir, past)
            same = [each for each in past if each.measured_on in (None, self.measured_on)]  # another test is no comparison
            best = [max((each.top1 for each in same), default=-1.0)]
        dist.broadcast_object_list(best, src=0)
        self.best = best[0]

    def on_step(self, event: StepEvent) -> None:
        if event.step % self.every_steps and event.step != self.run.total_steps:
            return
        began = time.perf_counter()
        was_training = self.engine.module.training
        self.model.eval()
        batches = self.batches()
        if self.run.rank == 0:
            batches = tqdm(batches, total=self.num_batches, desc="test", unit="batch", leave=False, disable=None)
        scores = score_videos(
            self.model,
            batches,
            num_videos=len(self.label_S),
            num_classes=self.num_classes,
            device=torch.device(self.run.device),
        )
        self.engine.module.train(was_training)
        found = judge(
            scores,
            self.label_S,
            step=event.step,
            epoch=event.step / self.run.steps_per_epoch,
            seconds=time.perf_counter() - began,
        )
        is_best = found.top1 > self.best
        views = {"clips": self.clips, "crops": self.crops}
        found = replace(found, is_best=is_best, measured_on=self.measured_on, averaged=self.averaged, **views)
        if is_best:
            self.best = found.top1
            self.keep_best(found)
        if self.run.rank == 0:
            self._name_bad(scores.bad)
            append_evaluation(self.run_dir, found)
            logger.info("%s", describe_evaluation(found, best=self.best))
            if self.engine.monitor.enabled:
                figures = {"mats/test_top1": found.top1, "mats/test_top5": found.top5, "mats/test_loss": found.loss}
                clips = event.step * self.run.global_batch
                self.engine.monitor.write_events([(name, value, clips) for name, value in figures.items()])

    def _name_bad(self, bad: tuple[BadClip, ...]) -> None:
        """Every test finds them again; once is enough for a reader."""
        for each in bad:
            if each.path not in self._named:
                logger.warning("unreadable in the test: %s: %s (it is left out)", each.path, each.reason)
                self._named.add(each.path)

    def on_end(self, outcome: str) -> None:
        """Nothing: every test has been written."""


def describe_evaluation(found: Evaluation, *, best: float) -> str:
    unreadable = f", {found.num_unreadable} unreadable" if found.num_unreadable else ""
    ending = "the best so far" if found.is_best else f"best {100 * best:.2f}%"
    return (
        f"test after step {found.step} (epoch {found.epoch:.1f}): top-1 {100 * found.top1:.2f}%, top-5 {100 * found.top5:.2f}%, "
        f"loss {found.loss:.3f} on {found.num_videos} videos of {found.measured_on}{unreadable}, {found.seconds:.1f} s; {ending}"
    )


def read_evaluations(run_dir: Path) -> list[Evaluation]:
    """The tests of a run, oldest first; none where there is no file. A last line that was cut off is passed over, and so is, with
    a word, one that is no test. Keys that this version does not know are ignored.
    """
    path = run_dir / EVALUATION_FILE
    try:
        with open_regular(path) as stream:
            lines = stream.read().decode("utf-8", "replace").splitlines(keepends=True)
    except FileNotFoundError:
        return []
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.endswith("\n"):
            continue
        try:
            tree = parse_json(line)
            found.append(Evaluation(**{field.name: tree[field.name] for field in fields(Evaluation) if field.name in tree}))
        except (ValueError, TypeError) as error:
            logger.warning("%s line %d is passed over: %s", path, number, str(error)[:200])
    return found


def write_evaluations(run_dir: Path, evaluations: list[Evaluation]) -> None:
    """Replace the file, in one go."""
    write_text(run_dir / EVALUATION_FILE, "".join(json.dumps(asdict(each)) + "\n" for each in evaluations))


def append_evaluation(run_dir: Path, evaluation: Evaluation) -> None:
    with open_to_append(run_dir / EVALUATION_FILE) as file:
        file.write(json.dumps(asdict(evaluation)) + "\n")
