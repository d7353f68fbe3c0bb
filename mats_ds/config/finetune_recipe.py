"""The recipe of a fine-tuning: a Recipe with three more sections, and another meaning of
`selection`.

Numbers of the paper are in METHOD section 5 of arXiv 2211.10636 and in `recipes/finetune_*.yaml`.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from mats_ds.config.recipe import ClipSection, Recipe, SelectionSection, _Section
from mats_ds.core.token_grid import FINETUNE_KEEP_RATIO, KEEPING_STRATEGIES, TokenPruning


class FinetuneClip(ClipSection):
    """A clip as in pre-training, except that half of the training clips are mirrored by default."""

    flip: bool = True


class FinetuneSelection(SelectionSection):
    """Selection of the frames and tokens that the encoder sees: int(keep_ratio N) of them, 1 for
    all. `visible_ratio` has no meaning here."""

    strategy: Literal[KEEPING_STRATEGIES] = "mats"
    keep_ratio: float = Field(FINETUNE_KEEP_RATIO, gt=0, le=1)

    def pruning(self) -> TokenPruning:
        """As in pre-training, but all kept tokens are visible."""
        return super().pruning().keeping(self.keep_ratio)


class FinetuneSection(_Section):
    """The weights that training starts from, and its loss.

    `weights`: a run, a checkpoint, a .safetensors or .pth file, a Hugging Face folder; none: from
    scratch. `weights_from`: which weights of a run, as `--weights_from` of the other scripts (None:
    the best of its tests where it has them, else the last ones, averaged where the run keeps an
    average). A classifier's head is kept unless `new_head`. `num_classes` None: the number in the
    labels (or in the manifest's .classes.txt). `layer_decay` is the factor on the learning rate
    from one block to the one below it (1: none). `ema_decay` None keeps no average of the weights;
    where there is one, it is what is tested and what other scripts take of the run.
    """

    weights: str | None = None
    weights_from: Literal["last", "average", "unaveraged", "best"] | None = None
    new_head: bool = False
    num_classes: int | None = Field(None, ge=2, le=1_000_000)
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    layer_decay: float = Field(0.75, gt=0, le=1)
    head_dropout: float = Field(0.0, ge=0, lt=1)
    ema_decay: float | None = Field(None, gt=0, lt=1)


class RandAugmentPlan(NamedTuple):
    """`num_operations` random ones per clip, used with `probability` at `magnitude` (0 to 10,
    normal with deviation `spread`)."""

    magnitude: float
    num_operations: int
    spread: float
    probability: float


class AugmentSection(_Section):
    """Augmentation of training clips beyond `clip.crop_scales` and `clip.flip`; the same for all
    frames of a clip.

    `random_resized_crop` is the smallest and the largest fraction of the frame's area that a crop
    shows, which is 3/4 to 4/3 as wide as high before it is scaled; it replaces `clip.crop_scales`.
    VideoMAE fine-tunes with [0.08, 1.0]; none: not used. `rand_augment` is written as in timm, for
    example rand-m7-n4-mstd0.5-inc1, and applied to full frames, before the crop; none: not used.
    `random_erasing` is the fraction of clips with an erased box. `mixup` and `cutmix` are the
    parameters of their beta distributions (0: off); where both are on, a micro-batch takes one of
    the two, cutmix with the probability `cutmix_share`.
    """

    random_resized_crop: tuple[float, float] | None = None
    rand_augment: str | None = None
    random_erasing: float = Field(0.0, ge=0, le=1)
    mixup: float = Field(0.0, ge=0)
    cutmix: float = Field(0.0, ge=0)
    cutmix_share: float = Field(0.5, ge=0, le=1)

    @field_validator("random_resized_crop")
    @classmethod
    def _areas(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not 0 < value[0] <= value[1] <= 1:
            raise ValueError("random_resized_crop is [smallest, largest] fraction of the frame, above 0 and at most 1")
        return value

    @field_validator("rand_augment")
    @classmethod
    def _readable(cls, value: str | None) -> str | None:
        if value is not None:
            parse_rand_augment(value)
        return value

    @property
    def rand_augment_plan(self) -> RandAugmentPlan | None:
        return parse_rand_augment(self.rand_augment) if self.rand_augment else None

    @property
    def mixes(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0


class EvaluationSection(_Section):
    """The test: which videos, and how many views of each, clips along time x crops along the longer
    side.

    `clips` x `crops` are the published protocol of a data set: what `evaluate.py --model RUN` takes
    (neither given: 5 x 3, as on UCF101 and K400; one of the two given: the other is 1). During the
    training, every `every_epochs` and at the end, `training_clips` x `training_crops` are enough to
    see where it goes (None: as many as `clips` and `crops`, and one where these are not given
    either).

    No `manifest`: no test, and no best weights are kept. Its videos choose best.safetensors; the
    result is that of the last weights. Videos that are trained on as well are refused, or warned of
    with `allow_overlap`.
    """

    manifest: str | None = None
    root: str | None = None
    clips: int | None = Field(None, ge=1, le=64)
    crops: int | None = Field(None, ge=1, le=16)
    training_clips: int | None = Field(None, ge=1, le=64)
    training_crops: int | None = Field(None, ge=1, le=16)
    every_epochs: float = Field(1.0, gt=0)
    allow_overlap: bool = False

    @property
    def training_views(self) -> tuple[int, int]:
        """Clips and crops of a test during the training."""
        return self.training_clips or self.clips or 1, self.training_crops or self.crops or 1


class FinetuneRecipe(Recipe):
    """One fine-tuning."""

    clip: FinetuneClip = FinetuneClip()
    selection: FinetuneSelection = FinetuneSelection()
    finetune: FinetuneSection = FinetuneSection()
    augment: AugmentSection = AugmentSection()
    evaluation: EvaluationSection = EvaluationSection()

    @model_validator(mode="after")
    def _selection_fits_clip(self) -> FinetuneRecipe:
        self.selection.pruning().check_finetuning(self.clip.grid(), self.candidate_grid())
        return self


def parse_rand_augment(text: str) -> RandAugmentPlan:
    """timm's notation: rand-m7-n4-mstd0.5-inc1, p for the probability (0.5). Raises ValueError for
    anything else.

    Only the increasing variant (inc1), in which every operation grows stronger with the magnitude,
    is there.
    """
    first, *parts = text.split("-")
    values = {"m": 10.0, "n": 2.0, "mstd": 0.0, "inc": 0.0, "p": 0.5}
    for part in parts:
        match = re.fullmatch(r"(mstd|inc|m|n|p)(\d{1,9}(?:\.\d{1,9})?)", part)
        if match is None:
            raise ValueError(f"rand_augment knows no {part!r}: write m, n, mstd, inc1 and p as in rand-m7-n4-mstd0.5-inc1")
        values[match[1]] = float(match[2])
    plan = RandAugmentPlan(values["m"], int(values["n"]), values["mstd"], values["p"])
    if first != "rand" or values["inc"] != 1:
        raise ValueError("rand_augment begins with rand and has inc1, as in rand-m7-n4-mstd0.5-inc1")
    if not (0 <= plan.magnitude <= 10 and 1 <= plan.num_operations == values["n"] <= 100 and plan.probability <= 1):
        raise ValueError("rand_augment: m is 0 to 10, n an integer from 1 to 100, p at most 1")
    return plan
