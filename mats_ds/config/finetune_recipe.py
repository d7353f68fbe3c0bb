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

    flip: bool = Field(True, description="mirror half of the training clips")


class FinetuneSelection(SelectionSection):
    """Selection of the frames and tokens that the encoder sees: int(keep_ratio N) of them, 1 for
    all. `visible_ratio` has no meaning here."""

    strategy: Literal[KEEPING_STRATEGIES] = Field(
        "mats", description="how tokens are chosen: by motion (mats), or as other methods choose them (arXiv 2211.10636)"
    )
    keep_ratio: float = Field(
        FINETUNE_KEEP_RATIO,
        gt=0,
        le=1,
        description="fraction of the clip's tokens that the encoder sees; 1: all (arXiv 2211.10636)",
    )

    def pruning(self) -> TokenPruning:
        """As in pre-training, but all kept tokens are visible."""
        return super().pruning().keeping(self.keep_ratio)


class FinetuneSection(_Section):
    """The weights that training starts from, and its loss.

    `weights_from` None takes the best of the run's tests where it has them, else the last ones,
    averaged where the run keeps an average.
    """

    weights: str | None = Field(
        None, description="a run, a checkpoint, a .safetensors or .pth file, a Hugging Face folder; null: from scratch"
    )
    weights_from: Literal["last", "average", "unaveraged", "best"] | None = Field(
        None, description="which weights of a run, as --weights_from of the programs; null: the best where it has them, else last"
    )
    new_head: bool = Field(False, description="replace the head of a classifier by a fresh one")
    num_classes: int | None = Field(
        None, ge=2, le=1_000_000, description="classes; null: the number in the labels, or in the manifest's .classes.txt"
    )
    label_smoothing: float = Field(
        0.1, ge=0, lt=1, description="probability that is spread over the other classes (arXiv 1512.00567)"
    )
    layer_decay: float = Field(
        0.75, gt=0, le=1, description="factor on the learning rate from one block to the one below it; 1: none (arXiv 2106.08254)"
    )
    head_dropout: float = Field(0.0, ge=0, lt=1, description="dropout before the head")
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="decay of an average of the weights, which is then tested and taken by other programs; null: none",
    )


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

    VideoMAE fine-tunes with a `random_resized_crop` of [0.08, 1.0]. Where mixup and cutmix are both
    on, a micro-batch takes one of the two.
    """

    random_resized_crop: tuple[float, float] | None = Field(
        None,
        description="smallest and largest fraction of the frame's area that a crop shows, 3/4 to 4/3 as wide as high; "
        "replaces clip.crop_scales; null: not used (arXiv 1409.4842)",
    )
    rand_augment: str | None = Field(
        None,
        description="in timm's notation, for example rand-m7-n4-mstd0.5-inc1; on whole frames, before the crop; null: not "
        "used (arXiv 1909.13719)",
    )
    random_erasing: float = Field(0.0, ge=0, le=1, description="fraction of the clips with an erased box (arXiv 1708.04896)")
    mixup: float = Field(0.0, ge=0, description="parameter of its beta distribution; 0: off (arXiv 1710.09412)")
    cutmix: float = Field(0.0, ge=0, description="parameter of its beta distribution; 0: off (arXiv 1905.04899)")
    cutmix_share: float = Field(0.5, ge=0, le=1, description="probability of cutmix in a micro-batch where both are on")

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

    manifest: str | None = Field(None, description="labelled videos to test on; null: no test, and no best weights are kept")
    root: str | None = Field(None, description="folder that its relative paths start from")
    clips: int | None = Field(None, ge=1, le=64, description="views along time of the final test, and of `evaluate`; null: 5")
    crops: int | None = Field(None, ge=1, le=16, description="views along the longer side; null: 3 (1 where only clips is given)")
    training_clips: int | None = Field(None, ge=1, le=64, description="of the tests during training; null: as clips")
    training_crops: int | None = Field(None, ge=1, le=16, description="of the tests during training; null: as crops")
    every_epochs: float = Field(1.0, gt=0, description="epochs from one test to the next")
    allow_overlap: bool = Field(False, description="only warn of videos that are trained on as well")

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
