"""The schema of a recipe: everything that changes the learned weights, typed and checked.

How the hardware runs it (ZeRO stage, precision, buckets, micro-batch, monitors) is in the DeepSpeed
JSON, which this package never edits. `load_recipe` (load.py) reads recipes from YAML.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from mats_ds.core.storage.files import why_no_file_name
from mats_ds.core.token_grid import (
    DISTANCES,
    FEATURES,
    MAX_TOKENS,
    RUN_THRESHOLD,
    STRATEGIES,
    TokenGrid,
    TokenPruning,
)

YEAR_SECONDS = 31_536_000  # longer waits are none, and Python's clocks end somewhere
MOST_STEPS = 10**12


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class ModelSection(_Section):
    """The network. `decoder_depth` None takes the size's own.

    Two keys trade computation for memory and change no result: `recompute` is what every block
    computes again in backward instead of keeping it (nothing; LayerNorm and GELU; the first layer
    of the MLP too), and `checkpoint_blocks` are the blocks that keep nothing but their input.
    `compile` has torch compile the model.
    """

    name: Literal["tiny", "small", "base", "large", "huge"] = "base"
    decoder_depth: int | None = Field(None, ge=1, le=64)
    drop_path: float = Field(0.0, ge=0, lt=1)
    recompute: Literal["none", "pointwise", "mlp"] = "none"
    checkpoint_blocks: Literal["none", "all"] | int = "none"
    compile: bool = False

    @field_validator("checkpoint_blocks")
    @classmethod
    def _every_nth(cls, value: str | int) -> str | int:
        if isinstance(value, int) and value < 1:
            raise ValueError("checkpoint_blocks is none, all, or n for every n-th block with n >= 1")
        return value


class ClipSection(_Section):
    """A training clip in frames and pixels. `stride_seconds`, where given, replaces `stride`:
    frames are then that far apart in time, whatever the frame rate. `flip` mirrors half of the
    clips, which pre-training does not do (METHOD section 5).
    """

    num_frames: int = Field(16, ge=1, le=4096)
    stride: int = Field(4, ge=1, le=1_000_000)
    stride_seconds: float | None = Field(None, gt=0, le=86_400)
    sampling: Literal["dense", "uniform"] = "dense"
    height: int = Field(224, ge=1, le=16_384)
    width: int = Field(224, ge=1, le=16_384)
    tubelet: tuple[int, int, int] = (2, 16, 16)
    crop_scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)
    flip: bool = False

    @field_validator("crop_scales")
    @classmethod
    def _scales(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or not all(0 < scale <= 1 for scale in value):
            raise ValueError("crop_scales are fractions of the shorter side, above 0 and at most 1")
        return value

    @model_validator(mode="after")
    def _divides(self) -> ClipSection:
        num_tokens = self.grid().num_tokens
        if num_tokens > MAX_TOKENS:
            raise ValueError(f"a clip has {num_tokens:,} tokens, expected {MAX_TOKENS:,} at most: make it smaller")
        return self

    def grid(self) -> TokenGrid:
        return TokenGrid(self.num_frames, self.height, self.width, self.tubelet)


class SelectionSection(_Section):
    """Selection of frames and tokens (ratios are fractions of all tokens of the clip).

    Beyond the paper, off by default: `compensate_camera` subtracts each tubelet's median change;
    the strategy run_length ranks by the change since a patch's run began, a run ending where the
    change passes `run_threshold` (of the range from black to white; arXiv 2411.05222);
    `merge_dropped` averages dropped tokens into kept ones, in fine-tuning only (arXiv 2210.09461).
    """

    strategy: Literal[STRATEGIES] = "mats"
    keep_ratio: float = Field(0.3, gt=0, le=1)
    visible_ratio: float = Field(0.1, gt=0, lt=1)
    distance: Literal[DISTANCES] = "l2"
    feature: Literal[FEATURES] = "embedding"
    frame_candidates: float = Field(1.0, ge=1, le=8)
    compensate_camera: bool = False
    run_threshold: float = Field(RUN_THRESHOLD, gt=0, lt=1)
    merge_dropped: bool = False

    @model_validator(mode="after")
    def _options_go_together(self) -> SelectionSection:
        self.pruning()
        return self

    def pruning(self) -> TokenPruning:
        """The options as models take them. Raises ValueError where they exclude each other."""
        return TokenPruning(**{field.name: getattr(self, field.name) for field in fields(TokenPruning)})


class DataSection(_Section):
    """The source of the videos. `manifest` is a .csv, a list of `path label` lines, or a folder;
    none: the synthetic set.

    `repeats` clips of every video are taken one after the other, decoded in one pass: an epoch
    shows every video that often (repeated augmentation, Hoffer et al., arXiv 1901.09335).
    `max_bad_fraction` of the data set may be unreadable before all ranks stop. `num_workers` None:
    as many as the cores allow.
    """

    manifest: str | None = None
    root: str | None = None
    repeats: int = Field(1, ge=1, le=32)
    max_bad_fraction: float = Field(0.01, ge=0, le=1)
    num_workers: int | None = Field(None, ge=0, le=4096)
    prefetch: int = Field(2, ge=1, le=4096)
    clip_timeout_seconds: float = Field(60.0, gt=0, le=YEAR_SECONDS)


class OptimSection(_Section):
    """AdamW with linear warm-up and cosine decay. The three learning rates are per 256 videos of
    the global batch.

    `global_batch` counts clips, `data.repeats` of each video: 128 clips are 64 videos where every
    video gives two, and the learning rates are then a quarter of those given here. The length is
    `epochs` passes over the videos, of which `warmup_epochs` warm up; or, where `steps` is given,
    `steps` and `warmup_steps`.
    """

    base_lr: float = Field(1.5e-4, gt=0)
    min_lr: float = Field(1e-5, ge=0)
    warmup_lr: float = Field(1e-6, ge=0)
    warmup_epochs: float = Field(40, ge=0)
    epochs: float = Field(800, gt=0, le=1_000_000)
    steps: int | None = Field(None, ge=1, le=MOST_STEPS)
    warmup_steps: int = Field(0, ge=0)
    global_batch: int = Field(192, ge=1, le=1 << 24)
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(0.05, ge=0)
    eps: float = Field(1e-8, gt=0)

    @model_validator(mode="after")
    def _warmup_fits(self) -> OptimSection:
        if self.steps is None and self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs} must be below epochs {self.epochs}")
        if self.steps is not None and self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} must be below steps {self.steps}")
        return self


class RunSection(_Section):
    """Seeds, checkpoints and logs, and time limits. `max_steps` ends a run early, on an unchanged
    schedule; `checkpoint_steps` 0 saves only at the end; the last `keep_checkpoints` stay, and
    those at multiples of `keep_every_steps` (0: none) for good. A rank that waits `hang_seconds`
    for its clips or for the other ranks ends the run.
    """

    seed: int = Field(0, ge=0, lt=1 << 63)
    max_steps: int | None = Field(None, ge=1, le=MOST_STEPS)
    checkpoint_steps: int = Field(1000, ge=0)
    keep_checkpoints: int = Field(3, ge=1)
    keep_every_steps: int = Field(0, ge=0)
    hang_seconds: float = Field(1800.0, gt=0, le=YEAR_SECONDS)
    log_steps: int = Field(10, ge=1)


class Recipe(_Section):
    """One experiment. `name` begins the names of its run folders below `runs/`."""

    name: str = "unnamed"
    model: ModelSection = ModelSection()
    clip: ClipSection = ClipSection()
    selection: SelectionSection = SelectionSection()
    data: DataSection = DataSection()
    optim: OptimSection = OptimSection()
    run: RunSection = RunSection()

    @field_validator("name")
    @classmethod
    def _is_a_file_name(cls, value: str) -> str:
        if why := why_no_file_name(value):
            raise ValueError(f"{why}: it becomes the name of a folder")
        return value

    @model_validator(mode="after")
    def _frames_can_be_selected(self) -> Recipe:
        if self.selection.frame_candidates > 1 and self.clip.grid().tau < 2:
            raise ValueError("selection.frame_candidates needs a clip of at least two tubelets")
        return self

    @model_validator(mode="after")
    def _selection_fits_clip(self) -> Recipe:
        self.selection.pruning().check_pretraining(self.clip.grid())
        return self

    def candidate_grid(self) -> TokenGrid:
        """The grid of the frames that are read: alpha times as many tubelets as are used, at least
        one more if alpha > 1."""
        grid = self.clip.grid()
        alpha = self.selection.frame_candidates
        tau = grid.tau if alpha == 1 else max(grid.tau + 1, round(alpha * grid.tau))
        return grid.with_tau(tau)
