"""Accuracy of classification scores: top-1, top-5, per class, with confidence intervals.

The one implementation for evaluate.py, validation during fine-tuning and the probes.
Legend: S videos, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mats_ds.metering.proportion import Proportion

TOP = 5


@dataclass(frozen=True)
class Accuracy:
    """Accuracy over the videos with scores.

    `classes`: top-1 of every class. confusion_CC: int64, true class by predicted class.


    `mean_class` is the mean over the classes that have videos; `num_top` is 5, or the number of
    classes if there are fewer.
    """

    top1: Proportion
    top5: Proportion
    num_top: int
    classes: tuple[Proportion, ...]
    confusion_CC: np.ndarray

    @property
    def mean_class(self) -> float:
        present = [proportion.value for proportion in self.classes if proportion.total]
        return sum(present) / len(present) if present else math.nan


def rank_labels(scores_SC: np.ndarray, label_S: np.ndarray) -> np.ndarray:
    """rank_S: the number of classes before the true one; of equal scores the lower class is first.

    NaN ranks before every number, as in torch and NumPy, so that a diverged model predicts class 0.
    """
    scores_SC = np.where(np.isnan(scores_SC), np.inf, scores_SC)
    rows = np.arange(len(label_S))
    true_S1 = scores_SC[rows, label_S][:, None]
    before_SC = np.arange(scores_SC.shape[1])[None] < label_S[:, None]
    return ((scores_SC > true_S1) | ((scores_SC == true_S1) & before_SC)).sum(axis=1)


def top_classes(scores_C: np.ndarray, count: int = TOP) -> list[int]:
    """The most likely classes, best first. Of equal scores the lower class ranks first."""
    return np.argsort(-scores_C, kind="stable")[:count].tolist()


def measure_accuracy(scores_SC: np.ndarray, label_S: np.ndarray) -> Accuracy:
    """Accuracy of the scores of S videos against labels from 0 to C - 1."""
    num_videos, num_classes = scores_SC.shape
    rank_S = rank_labels(scores_SC, label_S) if num_videos else np.zeros(0, np.int64)
    num_top = min(TOP, num_classes)
    confusion_CC = np.zeros((num_classes, num_classes), np.int64)
    if num_videos:
        np.add.at(confusion_CC, (label_S, scores_SC.argmax(axis=1)), 1)
    classes = tuple(Proportion(int(confusion_CC[label, label]), int(confusion_CC[label].sum())) for label in range(num_classes))
    return Accuracy(
        top1=Proportion(int((rank_S == 0).sum()), num_videos),
        top5=Proportion(int((rank_S < num_top).sum()), num_videos),
        num_top=num_top,
        classes=classes,
        confusion_CC=confusion_CC,
    )


def summarize_accuracy(accuracy: Accuracy) -> Mapping[str, object]:
    """Fields of results.json for one accuracy."""
    mean_class = accuracy.mean_class
    return {
        "top1": accuracy.top1.as_json(),
        "top5": accuracy.top5.as_json() | {"k": accuracy.num_top},
        "mean_class_accuracy": None if math.isnan(mean_class) else mean_class,
    }
