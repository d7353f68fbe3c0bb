"""The division of a clip into tokens, the options of the method, and token counts: TokenGrid,
TokenPruning, TokenSelection, TokenCounts.

Tensor names carry the suffixes of core/clips.py. Source: arXiv 2211.10636, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

RGB_CHANNELS = 3
# of a clip: 128 frames of 1024 x 1024; attention over as many fits into no memory
MAX_TOKENS = 1 << 18
# those that keep `keep_ratio` of the tokens and drop the others
KEEPING_STRATEGIES = ("mats", "random_drop", "run_length")
STRATEGIES = (*KEEPING_STRATEGIES, "tube", "random", "running_cell")
DISTANCES = ("l2", "l1", "cosine")
# lengths of a difference, from which the camera's part can be subtracted
CAMERA_DISTANCES = DISTANCES[:2]
FEATURES = ("embedding", "pixels")
FINETUNE_KEEP_RATIO = 0.6  # METHOD of arXiv 2211.10636: rho_pre in fine-tuning
# Run-length tokenization's published 0.1 of ImageNet-normalised pixels, times the mean of
# ImageNet's standard deviations.
RUN_THRESHOLD = 0.0226


def count_tokens(ratio: float, num_tokens: int) -> int:
    """The number of tokens in a fraction of a clip: the integer part of `ratio * num_tokens`,
    without rounding noise.

    The product is exact (0.1 means one tenth): 0.1 of 10 tokens is 1 and 0.3 of 10 is 3, not what
    binary floating point would give. Source: METHOD of arXiv 2211.10636, counts are int(rho * N) of
    all tokens of the clip.

    Raises ValueError when the ratio is outside 0 to 1.
    """
    if not 0.0 <= ratio <= 1.0:
        raise ValueError(f"a ratio of tokens is between 0 and 1, got {ratio}")
    return int(Fraction(ratio).limit_denominator(1_000_000) * num_tokens)


@dataclass(frozen=True)
class TokenGrid:
    """The division of a clip into tubelets: `tubelet` = (frames, height, width) of one token, in
    frames and pixels.

    Tokens are numbered time first, then row, then column: token = (i * rows + row) * columns +
    column.
    Raises ValueError when a side is not a multiple of the tubelet's.
    """

    num_frames: int = 16
    height: int = 224
    width: int = 224
    tubelet: tuple[int, int, int] = (2, 16, 16)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tubelet", tuple(self.tubelet))
        if len(self.tubelet) != 3:
            raise ValueError(f"tubelet is (frames, height, width), got {self.tubelet}")
        sides = (("num_frames", self.num_frames), ("height", self.height), ("width", self.width))
        for (name, size), step in zip(sides, self.tubelet, strict=True):
            if step < 1 or size < step or size % step:
                raise ValueError(
                    f"{name}={size} is not a multiple of the tubelet's {step}: "
                    f"choose a multiple of {step}, or another tubelet than {self.tubelet}"
                )

    @property
    def tau(self) -> int:
        """Tubelets along time."""
        return self.num_frames // self.tubelet[0]

    @property
    def rows(self) -> int:
        return self.height // self.tubelet[1]

    @property
    def columns(self) -> int:
        return self.width // self.tubelet[2]

    @property
    def tokens_per_tubelet(self) -> int:
        """Tokens of one time step: rows * columns."""
        return self.rows * self.columns

    @property
    def num_tokens(self) -> int:
        """N, all tokens of the clip."""
        return self.tau * self.tokens_per_tubelet

    @property
    def patch_values(self) -> int:
        """P, values of one token's pixels: tubelet frames * height * width * 3 colours."""
        frames, height, width = self.tubelet
        return frames * height * width * RGB_CHANNELS

    def with_tau(self, tau: int) -> TokenGrid:
        """The same grid with another number of tubelets along time."""
        return TokenGrid(tau * self.tubelet[0], self.height, self.width, self.tubelet)


@dataclass(frozen=True)
class TokenPruning:
    """The options of the method, named as in the recipe's section `selection`.

    strategy: which tokens are kept, one of STRATEGIES. keep_ratio, visible_ratio: fractions of all
    tokens of the clip, those kept and those that the encoder sees; a classifier's are equal.
    distance, feature: how far apart two tokens are, by their patch embeddings or pixels.
    compensate_camera: subtract each tubelet's median change from the motion. run_threshold: the
    change at which run_length begins a new run, as a fraction of the range from black to white.
    merge_dropped: average dropped tokens into kept ones (classifiers only).
    Raises ValueError for an unknown name, a ratio outside 0 to 1, and options that exclude each
    other.
    """

    strategy: str = "mats"
    keep_ratio: float = 0.3
    visible_ratio: float = 0.1
    distance: str = "l2"
    feature: str = "embedding"
    compensate_camera: bool = False
    run_threshold: float = RUN_THRESHOLD
    merge_dropped: bool = False

    def __post_init__(self) -> None:
        for name, known in (("strategy", STRATEGIES), ("distance", DISTANCES), ("feature", FEATURES)):
            if getattr(self, name) not in known:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}: choose one of {', '.join(known)}")
        for name in ("keep_ratio", "visible_ratio"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} is above 0 and at most 1, got {getattr(self, name)}")
        if self.compensate_camera and self.strategy == "run_length":
            raise ValueError("compensate_camera changes the score of mats, run_length has its own: choose one of the two")
        if self.compensate_camera and self.distance not in CAMERA_DISTANCES:
            raise ValueError(
                f"compensate_camera subtracts differences, and distance {self.distance!r} has none: choose "
                f"{' or '.join(CAMERA_DISTANCES)}"
            )

    def keeping(self, ratio: float) -> TokenPruning:
        """The same for a classifier that keeps `ratio` of the tokens: all kept tokens are
        visible."""
        return replace(self, keep_ratio=ratio, visible_ratio=ratio)

    @property
    def keeps_all(self) -> bool:
        """Whether no token is dropped or hidden, so that none needs a score."""
        return self.keep_ratio == 1 == self.visible_ratio

    @property
    def ranks_by_motion(self) -> bool:
        """Whether tokens are kept by their motion."""
        return self.strategy == "mats" and not self.keeps_all

    def counts(self, grid: TokenGrid) -> TokenCounts:
        """The number of visible and of target tokens of a clip."""
        return count_selection(grid, strategy=self.strategy, keep_ratio=self.keep_ratio, visible_ratio=self.visible_ratio)

    def check_pretraining(self, grid: TokenGrid) -> None:
        """Raises ValueError for options that leave a masked autoencoder on `grid` nothing to see or
        nothing to reconstruct."""
        if self.merge_dropped:
            raise ValueError("merge_dropped is for fine-tuning: pre-training has no use for dropped tokens")
        counts, num_tokens = self.counts(grid), grid.num_tokens
        if counts.visible < 1:
            raise ValueError(f"visible_ratio {self.visible_ratio} of {num_tokens} tokens is no token at all: raise it")
        if counts.targets < 1:
            raise ValueError(
                f"{self.strategy} with keep_ratio={self.keep_ratio} and visible_ratio={self.visible_ratio} of {num_tokens} "
                f"tokens: {counts.visible} visible, {counts.targets} targets, nothing would be left to reconstruct; "
                "visible_ratio must be below keep_ratio"
            )

    def check_finetuning(self, grid: TokenGrid, candidate_grid: TokenGrid) -> None:
        """Raises ValueError where a classifier would keep no token, or would select frames although
        it keeps all tokens."""
        if count_tokens(self.keep_ratio, grid.num_tokens) < 1:
            raise ValueError(f"keep_ratio {self.keep_ratio} of {grid.num_tokens} tokens is no token at all: raise it")
        if candidate_grid.tau > grid.tau and self.keep_ratio == 1:
            raise ValueError(
                "frames are selected by their kept tokens, and keep_ratio 1 keeps all: lower keep_ratio, or read no more frames "
                "than are used"
            )


@dataclass(frozen=True)
class TokenSelection:
    """Token indices of each clip, ascending and disjoint: visible_BV to the encoder, target_BM to
    be reconstructed; int64."""

    visible_BV: torch.Tensor
    target_BM: torch.Tensor


@dataclass(frozen=True)
class TokenCounts:
    """Token counts of a clip, kept = visible + targets; the same for every clip."""

    visible: int
    targets: int

    @property
    def kept(self) -> int:
        return self.visible + self.targets


def count_selection(grid: TokenGrid, *, strategy: str, keep_ratio: float, visible_ratio: float) -> TokenCounts:
    """The static token counts of a strategy.

    mats, random_drop, run_length: int(keep_ratio N) kept, int(visible_ratio N) of them visible
    (METHOD).
    random: int(visible_ratio N) visible, all others are targets.
    tube: per tubelet all but int((1 - visible_ratio) tokens) visible, all others are targets
    (VideoMAE, arXiv 2203.12602).
    running_cell: visible as tube, targets are the half of the tokens that a running cell keeps,
    less the visible ones among them (VideoMAE V2, arXiv 2303.16727). For tube, random and
    running_cell `keep_ratio` has no meaning.
    """
    num_tokens = grid.num_tokens
    if strategy in KEEPING_STRATEGIES:
        visible = count_tokens(visible_ratio, num_tokens)
        return TokenCounts(visible, count_tokens(keep_ratio, num_tokens) - visible)
    if strategy == "random":
        visible = count_tokens(visible_ratio, num_tokens)
        return TokenCounts(visible, num_tokens - visible)
    visible = grid.tau * (grid.tokens_per_tubelet - count_tokens(1 - visible_ratio, grid.tokens_per_tubelet))
    if strategy == "tube":
        return TokenCounts(visible, num_tokens - visible)
    if strategy == "running_cell":
        return TokenCounts(visible, num_tokens // 2 - visible // 2)
    raise ValueError(f"unknown selection strategy {strategy!r}: choose one of {', '.join(STRATEGIES)}")
