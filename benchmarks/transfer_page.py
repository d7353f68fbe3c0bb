"""The page of `transfer.py`: right and wrong answers of every run -> accuracies, their difference,
and how certain both are.

K seeds, S videos of the validation set. A single run's accuracy has Wilson's interval over videos.
Means over seeds and the difference between the two arms have a bootstrap interval (B. Efron, Ann.
Stat. 7, 1979) that resamples seeds and videos, the same for both arms: they share seeds, clips and
videos. Chance is one over the number of classes.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mats_ds.core.storage.files import write_text
from mats_ds.metering.proportion import Proportion

PRETRAINED, SCRATCH = "pre-trained", "from scratch"
NUM_RESAMPLES = 20_000
BOUNDS = (2.5, 97.5)  # percent: a 95% interval
ENOUGH_SEEDS = 5


@dataclass(frozen=True)
class Run:
    """One fine-tuning and its test: of every video whether the likeliest class was the true one."""

    seed: int
    arm: str
    hits: list[bool]
    pretraining_cpu_seconds: float
    finetuning_cpu_seconds: float

    @property
    def top1(self) -> Proportion:
        return Proportion(sum(self.hits), len(self.hits))


@dataclass(frozen=True)
class SetResult:
    """All runs on one set. `plan` is transfer.py's."""

    name: str
    plan: Any
    num_classes: int
    num_training_videos: int
    runs: list[Run]

    def hits_KS(self, arm: str) -> np.ndarray:
        """float64, a row a seed, in the order of the seeds."""
        return np.array([run.hits for run in sorted(self.runs, key=lambda run: run.seed) if run.arm == arm], dtype=np.float64)


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and videos with its 95% interval, all as fractions (a difference may be
    negative)."""

    value: float
    low: float
    high: float

    def describe(self, *, sign: str = "") -> str:
        """In percent, or points: "61.2 (58.0 to 64.3)"; sign "+" shows that of a difference."""
        value, low, high = (format(100 * number, f"{sign}.1f") for number in (self.value, self.low, self.high))
        return f"{value} ({low} to {high})"


def estimate_mean(values_KS: np.ndarray, *, seed: int = 0) -> Estimate:
    """The mean of values that vary with seed and video, and its percentile interval over resampled
    seeds and videos."""
    num_seeds, num_videos = values_KS.shape
    rng = np.random.default_rng(seed)
    seeds_RK = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=NUM_RESAMPLES) / num_seeds
    videos_RS = rng.multinomial(num_videos, np.full(num_videos, 1 / num_videos), size=NUM_RESAMPLES) / num_videos
    means_R = ((seeds_RK @ values_KS) * videos_RS).sum(axis=1)
    low, high = np.percentile(means_R, BOUNDS)
    return Estimate(float(values_KS.mean()), float(low), float(high))


def judge_difference(difference: Estimate) -> str:
    """The conclusion that it allows."""
    if difference.low > 0:
        return "pre-training helps: the interval lies above zero"
    if difference.high < 0:
        return "pre-training harms: the interval lies below zero"
    return "no difference is shown: the interval holds zero"


def judge_chance(mean: Estimate, *, chance: float) -> str:
    if mean.low > chance:
        return "above chance"
    return "below chance" if mean.high < chance else "not distinguishable from chance"


def lines_of_set(result: SetResult) -> list[str]:
    """Tables and verdicts of one set, in Markdown."""
    chance, plan = 1 / result.num_classes, result.plan
    estimates = {arm: estimate_mean(result.hits_KS(arm)) for arm in (PRETRAINED, SCRATCH)}
    difference = estimate_mean(result.hits_KS(PRETRAINED) - result.hits_KS(SCRATCH))
    num_seeds, num_videos = result.hits_KS(SCRATCH).shape
    lines = [
        f"## {result.name}",
        "",
        f"{result.num_classes} classes (chance {100 * chance:.0f}%), {result.num_training_videos} training videos, {num_videos} "
        f"validation videos, {plan.num_views} view{'s' if plan.num_views > 1 else ''} of each; {plan.pretrain_steps} steps of "
        f"pre-training, {plan.finetune_steps} of fine-tuning in both arms.",
        "",
        "| seed | arm | right | top-1, % (95% interval over videos) | CPU seconds, pre-training | fine-tuning |",
        "|---|---|---|---|---|---|",
    ]
    for run in sorted(result.runs, key=lambda run: (run.seed, run.arm != PRETRAINED)):
        low, high = run.top1.interval
        cells = [str(run.seed), run.arm, f"{run.top1.hits} of {run.top1.total}"]
        cells += [f"{100 * run.top1.value:.1f} ({100 * low:.1f} to {100 * high:.1f})"]
        cells += [f"{run.pretraining_cpu_seconds:.0f}" if run.arm == PRETRAINED else "-", f"{run.finetuning_cpu_seconds:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", f"Mean of {num_seeds} seed{'s' if num_seeds > 1 else ''}, 95% interval over seeds and videos:", ""]
    for arm, estimate in estimates.items():
        lines.append(f"- {arm}: {estimate.describe()}%, {judge_chance(estimate, chance=chance)}")
    lines.append(f"- {PRETRAINED} minus {SCRATCH}: {difference.describe(sign='+')} points; {judge_difference(difference)}")
    if num_seeds < ENOUGH_SEEDS:
        lines += [
            "",
            f"With fewer than {ENOUGH_SEEDS} seeds these intervals are rather too narrow: how much seeds vary is hardly known.",
        ]
    overrides = {"both recipes": plan.clip, "tiny": plan.pretraining, "finetune_tiny": plan.finetuning}
    lines += [
        "",
        "Changes to the recipes. " + " ".join(f"{name}: `{' '.join(words)}`." for name, words in overrides.items() if words),
    ]
    return lines


def write_page(out: Path, results: Sequence[SetResult], *, command: str, versions: dict[str, str]) -> Path:
    """The page and, beside it, all figures as JSON; returns the page."""
    stem = f"transfer-{time.strftime('%Y-%m-%d')}"
    packages = ", ".join(f"{name} {versions[name]}" for name in ("torch", "deepspeed") if name in versions)
    commit = f", commit {versions['commit'][:10]}" if "commit" in versions else ""
    lines = [
        f"# What pre-training is worth on small sets, {time.strftime('%Y-%m-%d')}",
        "",
        f"`{command}`; {platform.machine()}, float32, one thread a run, Python {platform.python_version()}, {packages}{commit}. "
        "Model tiny, 1.9 M parameters as a classifier. Pre-training sees the training videos without their labels; both arms "
        "begin with the same random weights and see the same clips; the last weights are tested. The page is written by the "
        "program.",
    ]
    for result in results:
        lines += ["", *lines_of_set(result)]
    figures = {
        "command": command,
        "date": time.strftime("%Y-%m-%d"),
        "versions": versions,
        "sets": [figures_of_set(result) for result in results],
    }
    out.mkdir(parents=True, exist_ok=True)
    page = out / f"{stem}.md"
    write_text(page, "\n".join([*lines, ""]))
    write_text(out / f"{stem}.json", json.dumps(figures, indent=1) + "\n")
    return page


def figures_of_set(result: SetResult) -> dict[str, Any]:
    """Of every run its answers as a string of 1 and 0, in the order of the validation list."""
    difference = estimate_mean(result.hits_KS(PRETRAINED) - result.hits_KS(SCRATCH))
    runs = [
        {**asdict(run), "hits": "".join(str(int(hit)) for hit in run.hits), "top1": run.top1.as_json()} for run in result.runs
    ]
    return {
        "name": result.name,
        "classes": result.num_classes,
        "training_videos": result.num_training_videos,
        "plan": asdict(result.plan),
        "means": {arm: asdict(estimate_mean(result.hits_KS(arm))) for arm in (PRETRAINED, SCRATCH)},
        "difference": asdict(difference),
        "runs": runs,
    }
