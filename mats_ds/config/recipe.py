"""The schema of a recipe: everything that changes the learned weights, typed and checked.

How the hardware runs it (ZeRO stage, precision, buckets, micro-batch, monitors) is in the DeepSpeed
JSON, which this package never edits. `load_recipe` (load.py) reads recipes from YAML.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator

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
    """The network, and what its blocks keep in memory."""

    name: Literal["tiny", "small", "base", "large", "huge"] = Field(
        "base", description="the size of the vision transformer (arXiv 2203.12602)"
    )
    decoder_depth: int | None = Field(
        None,
        ge=1,
        le=64,
        description="blocks of the decoder; null: 2 of tiny, 4 of small and base, 12 of large and huge (arXiv 2203.12602)",
    )
    drop_path: float = Field(
        0.0, ge=0, lt=1, description="probability of leaving a block out for a clip, growing with depth (arXiv 1603.09382)"
    )
    recompute: Literal["none", "pointwise", "mlp"] = Field(
        "none",
        description="what a block computes again in backward instead of keeping it: nothing, LayerNorm and GELU, or the first "
        "layer of the MLP too; changes no result",
    )
    checkpoint_blocks: Literal["none", "all"] | int = Field(
        "none",
        description="blocks that keep nothing but their input: none, all, or every n-th; changes no result (arXiv 1604.06174)",
    )
    compile: Literal["auto", True, False, "graphs"] = Field(
        "auto",
        description="have torch compile the transformer blocks; auto: on a GPU where a compiler is; graphs: capture forward and "
        "backward as CUDA graphs, too, which no GPU has run yet",
    )

    @field_validator("compile", mode="before")
    @classmethod
    def _as_bool(cls, value: Any) -> Any:
        """Whatever a field of true or false takes, as this one was: 1, "on"."""
        try:
            return TypeAdapter(bool).validate_python(value)
        except ValidationError:
            return value

    @field_validator("checkpoint_blocks")
    @classmethod
    def _every_nth(cls, value: str | int) -> str | int:
        if isinstance(value, int) and value < 1:
            raise ValueError("checkpoint_blocks is none, all, or n for every n-th block with n >= 1")
        return value


class ClipSection(_Section):
    """A training clip in frames and pixels."""

    num_frames: int = Field(16, ge=1, le=4096, description="frames of a clip")
    stride: int = Field(4, ge=1, le=1_000_000, description="video frames from one frame of the clip to the next")
    stride_seconds: float | None = Field(
        None, gt=0, le=86_400, description="the same in seconds, whatever the frame rate; replaces stride"
    )
    sampling: Literal["dense", "uniform"] = Field(
        "dense",
        description="dense: frames a stride apart, from a random beginning; uniform: one out of each of num_frames equal parts "
        "of the video (arXiv 1608.00859)",
    )
    height: int = Field(224, ge=1, le=16_384, description="pixels of a frame, as the model sees it")
    width: int = Field(224, ge=1, le=16_384, description="pixels of a frame, as the model sees it")
    tubelet: tuple[int, int, int] = Field(
        (2, 16, 16), description="frames, rows and columns of pixels that make one token (arXiv 2203.12602)"
    )
    crop_scales: tuple[float, ...] = Field(
        (1.0, 0.875, 0.75, 0.66),
        description="multi-scale crops: fractions of the shorter side, one chosen for each clip (arXiv 1507.02159)",
    )
    flip: bool = Field(False, description="mirror half of the clips; pre-training does not")

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
    """Selection of frames and tokens; ratios are fractions of all tokens of the clip. Beyond the
    paper, and off by default: `compensate_camera`, `merge_dropped`, and the strategy run_length,
    which ranks by the change since a patch's run began.
    """

    strategy: Literal[STRATEGIES] = Field(
        "mats", description="how tokens are chosen: by motion (mats), or as other methods choose them (arXiv 2211.10636)"
    )
    keep_ratio: float = Field(0.3, gt=0, le=1, description="fraction of the clip's tokens that is kept (arXiv 2211.10636)")
    visible_ratio: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="fraction of the clip's tokens that the encoder sees in pre-training; no meaning in fine-tuning (arXiv "
        "2211.10636)",
    )
    distance: Literal[DISTANCES] = Field("l2", description="distance between a token and the one before it (arXiv 2211.10636)")
    feature: Literal[FEATURES] = Field(
        "embedding", description="what the distance is of: the patch embedding, or the pixels (arXiv 2211.10636)"
    )
    frame_candidates: float = Field(
        1.0,
        ge=1,
        le=8,
        description="frames that are read for each one that is used; above 1, those with the most change are taken (arXiv "
        "2211.10636)",
    )
    compensate_camera: bool = Field(
        False, description="subtract each tubelet's median change, so that a moving camera does not score everywhere"
    )
    run_threshold: float = Field(
        RUN_THRESHOLD,
        gt=0,
        lt=1,
        description="of run_length: the change, of the range from black to white, that ends a run (arXiv 2411.05222)",
    )
    merge_dropped: bool = Field(
        False, description="average dropped tokens into kept ones, in fine-tuning only (arXiv 2210.09461)"
    )

    @model_validator(mode="after")
    def _options_go_together(self) -> SelectionSection:
        self.pruning()
        return self

    def pruning(self) -> TokenPruning:
        """The options as models take them. Raises ValueError where they exclude each other."""
        return TokenPruning(**{field.name: getattr(self, field.name) for field in fields(TokenPruning)})


class DataSection(_Section):
    """The source of the videos, and how they are read."""

    manifest: str | None = Field(None, description="a .csv, a list of `path label` lines, or a folder; null: the synthetic set")
    root: str | None = Field(None, description="folder that relative paths start from; null: the manifest's")
    repeats: int = Field(1, ge=1, le=32, description="clips of a video in an epoch, decoded in one pass (arXiv 1901.09335)")
    max_bad_fraction: float = Field(
        0.01, ge=0, le=1, description="fraction of the set that may be unreadable before all ranks stop"
    )
    num_workers: int | None = Field(
        None, ge=0, le=4096, description="processes that decode on a rank; null: as many as the cores allow"
    )
    prefetch: int = Field(2, ge=1, le=4096, description="micro-batches that are read ahead")
    clip_timeout_seconds: float = Field(
        60.0, gt=0, le=YEAR_SECONDS, description="a clip that takes longer to read counts as unreadable"
    )


class OptimSection(_Section):
    """AdamW with linear warm-up and cosine decay. The three learning rates are per 256 videos of
    the global batch.

    `global_batch` counts clips, `data.repeats` of each video: 128 clips are 64 videos where every
    video gives two, and the learning rates are then a quarter of those given here. The length is
    `epochs` passes over the videos, of which `warmup_epochs` warm up; or, where `steps` is given,
    `steps` and `warmup_steps`.
    """

    base_lr: float = Field(1.5e-4, gt=0, description="peak learning rate for 256 videos of the global batch (arXiv 1706.02677)")
    min_lr: float = Field(1e-5, ge=0, description="learning rate at the end, for 256 videos")
    warmup_lr: float = Field(1e-6, ge=0, description="learning rate of the first step, for 256 videos")
    warmup_epochs: float = Field(40, ge=0, description="epochs in which the rate rises, of `epochs`")
    epochs: float = Field(800, gt=0, le=1_000_000, description="passes over the videos (arXiv 2211.10636)")
    steps: int | None = Field(None, ge=1, le=MOST_STEPS, description="length of the run in steps; replaces epochs")
    warmup_steps: int = Field(0, ge=0, description="steps in which the rate rises, of `steps`")
    global_batch: int = Field(192, ge=1, le=1 << 24, description="clips of a step on all ranks; `data.repeats` of each video")
    betas: tuple[float, float] = Field((0.9, 0.95), description="AdamW's (arXiv 1711.05101)")
    weight_decay: float = Field(0.05, ge=0, description="AdamW's; none on biases, norms and positions (arXiv 1711.05101)")
    eps: float = Field(1e-8, gt=0, description="AdamW's (arXiv 1711.05101)")

    @model_validator(mode="after")
    def _warmup_fits(self) -> OptimSection:
        if self.steps is None and self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs} must be below epochs {self.epochs}")
        if self.steps is not None and self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} must be below steps {self.steps}")
        return self


class RunSection(_Section):
    """Seeds, checkpoints, logs and time limits."""

    seed: int = Field(0, ge=0, lt=1 << 63, description="of weights, clips, crops, masks and augmentation")
    max_steps: int | None = Field(None, ge=1, le=MOST_STEPS, description="end early, on an unchanged schedule")
    checkpoint_steps: int = Field(1000, ge=0, description="save every so many steps; 0: only at the end")
    keep_checkpoints: int = Field(3, ge=1, description="newest whole checkpoints that stay")
    keep_every_steps: int = Field(0, ge=0, description="checkpoints at multiples of it stay for good; 0: none")
    hang_seconds: float = Field(
        1800.0, gt=0, le=YEAR_SECONDS, description="a rank that waits so long for clips or for other ranks ends the run"
    )
    log_steps: int = Field(10, ge=1, description="steps from one line on the console to the next")


class Recipe(_Section):
    """One experiment."""

    name: str = Field("unnamed", description="begins the names of its run folders below `runs/`; null: the file's")
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
