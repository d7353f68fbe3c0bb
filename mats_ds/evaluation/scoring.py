"""Scores of videos: the mean softmax of a video's views, bit-equal on any number of ranks.

The one implementation for evaluate.py and for validation during fine-tuning. Scores of views are
float64 and are added in the order of the views, whichever rank read them (mean over views:
VideoMAE, arXiv 2203.12602).

Legend: B clips of a batch, C classes, R videos that could be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from mats_ds.core.clips import BadClip, ClipBatch
from mats_ds.data.loading.build import ViewBatch
from mats_ds.distributed.collectives import gather_on_first
from mats_ds.distributed.ranks import RankInfo


@dataclass(frozen=True)
class VideoScore:
    """`mean`: float64 scores, None if no view could be read. `num_read`: number of readable
    views."""

    mean: np.ndarray | None
    num_read: int


@dataclass(frozen=True)
class ScoredVideos:
    """`videos`: one entry per row of the manifest. `bad`: one entry per unreadable video, by
    row."""

    videos: list[VideoScore]
    bad: list[BadClip]

    @property
    def readable_R(self) -> np.ndarray:
        """Rows of the videos that have a score, int64."""
        return np.array([sample for sample, video in enumerate(self.videos) if video.mean is not None], np.int64)

    def stack(self) -> np.ndarray:
        """The scores of the readable videos, first dimension R; [0, 1] if there are none."""
        means = [video.mean for video in self.videos if video.mean is not None]
        return np.stack(means) if means else np.zeros((0, 1))


class VideoScores:
    """Scores of the views that one rank has read; `merge` adds those of another rank.

    A video is averaged as soon as all of its views are there, so that a large test keeps one row
    per video.
    """

    def __init__(self, num_views: int) -> None:
        self.num_views = num_views
        self._views: dict[int, dict[int, np.ndarray | None]] = {}
        self._finished: dict[int, VideoScore] = {}

    def add(self, sample: int, view: int, scores: np.ndarray | None) -> None:
        """Add the scores (of any shape) of a view of video `sample`; None if it could not be
        read."""
        views = self._views.setdefault(sample, {})
        assert sample not in self._finished and view not in views, f"view {view} of video {sample} was counted twice"
        views[view] = scores if scores is None else scores.astype(np.float64)
        if len(views) == self.num_views:
            self._finished[sample] = mean_score([views[number] for number in range(self.num_views)])
            del self._views[sample]

    def merge(self, other: VideoScores) -> None:
        """Add the views of another rank."""
        assert not self._finished.keys() & (other._finished.keys() | other._views.keys()), "a video was counted twice"
        self._finished |= other._finished
        for sample, views in other._views.items():
            for view, scores in views.items():
                self.add(sample, view, scores)

    def finish(self, num_videos: int) -> list[VideoScore]:
        """One entry per video, in the order of the manifest; nothing is missing."""
        assert not self._views, f"views of videos {sorted(self._views)} are missing"
        assert self._finished.keys() == set(range(num_videos)), "videos are missing"
        return [self._finished[sample] for sample in range(num_videos)]


def mean_score(views: list[np.ndarray | None]) -> VideoScore:
    """The mean over the readable views, added one after the other."""
    read = [scores for scores in views if scores is not None]
    if not read:
        return VideoScore(None, 0)
    total = np.zeros_like(read[0])
    for scores in read:
        total += scores
    return VideoScore(total / len(read), len(read))


@torch.no_grad()
def softmax_scores(model: nn.Module, clips: ClipBatch) -> torch.Tensor:
    """scores_BC float64: the softmax of the model's logits, computed in float64."""
    return model(clips.frames_BTHWC, clips.seed_B).double().softmax(dim=-1)


def score_videos(
    batches: Iterable[ViewBatch],
    score: Callable[[ClipBatch], torch.Tensor],
    *,
    num_videos: int,
    num_clips: int,
    num_crops: int,
    ranks: RankInfo,
) -> ScoredVideos | None:
    """Scores of all videos on rank 0, None on the others.

    batches: of one pass of this rank. score: the scores of a batch, first dimension B. Padding and
    blank clips do not count. Raises RanksLost if a rank has died.
    """
    scores, bad = VideoScores(num_clips * num_crops), []
    for batch in batches:
        bad += batch.clips.bad
        scores_B = score(batch.clips).cpu().numpy()
        for view, is_readable, view_scores in zip(batch.views, batch.readable, scores_B, strict=True):
            if view is not None:
                scores.add(view.sample, view.clip * num_crops + view.crop, view_scores if is_readable else None)
    gathered = gather_on_first((scores, bad), ranks)
    if gathered is None:
        return None
    merged = VideoScores(num_clips * num_crops)
    for rank_scores, _ in gathered:
        merged.merge(rank_scores)
    all_bad = sorted((clip for _, rank_bad in gathered for clip in rank_bad), key=lambda clip: (clip.sample, clip.reason))
    all_bad = [clip for clip in all_bad if clip.sample >= 0]  # padding of a last batch is no video
    # one per video, the same on any number of ranks
    first_bad = {clip.sample: clip for clip in reversed(all_bad)}
    return ScoredVideos(merged.finish(num_videos), [first_bad[sample] for sample in sorted(first_bad)])
