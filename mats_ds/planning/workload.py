"""The work of a planned training: the model, its clips and the tokens that it keeps. Recipe ->
Workload.

Counts of tokens and parameters in closed form; tests hold the parameters against the real modules.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mats_ds.core.token_grid import FINETUNE_KEEP_RATIO, TokenGrid, TokenPruning, count_tokens
from mats_ds.models.sizes import MLP_RATIO, MODEL_SIZES
from mats_ds.planning.flops import TASKS, StepFlops, step_flops

if TYPE_CHECKING:
    from mats_ds.config.recipe import Recipe

FINETUNE_DROP_PATH = 0.1  # METHOD section 5
DEFAULT_CLASSES = 400  # of Kinetics-400, where a plan for fine-tuning names no number


@dataclass(frozen=True)
class ParameterCounts:
    """Elements of the optimizer's two groups: matrices, which decay, and vectors, which do not.
    `largest`: of one tensor."""

    matrices: int
    vectors: int
    largest: int

    @property
    def total(self) -> int:
        return self.matrices + self.vectors


@dataclass(frozen=True)
class Workload:
    """One model at work. task "pretrain": the masked autoencoder; "finetune": the classifier on the
    pruning's `keep_ratio` of the tokens (1: all of them). `captured`: its passes are CUDA graphs
    (model.compile=graphs). The other fields are the recipe's. Raises ValueError for an unknown task
    or model.
    """

    task: str = "pretrain"
    model_name: str = "base"
    grid: TokenGrid = TokenGrid()
    candidate_grid: TokenGrid = TokenGrid()
    pruning: TokenPruning = TokenPruning()
    decoder_depth: int | None = None
    drop_path: float = 0.0
    recompute: str = "none"
    checkpoint_blocks: str | int = "none"
    num_classes: int = 0
    captured: bool = False

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"unknown task {self.task!r}: choose one of {', '.join(TASKS)}")
        if self.model_name not in MODEL_SIZES:
            raise ValueError(f"unknown model {self.model_name!r}: choose one of {', '.join(MODEL_SIZES)}")
        if self.task == "finetune":
            object.__setattr__(self, "pruning", self.pruning.keeping(self.pruning.keep_ratio))
        elif self.decoder_depth is None:
            object.__setattr__(self, "decoder_depth", MODEL_SIZES[self.model_name].decoder_depth)

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> Workload:
        """The pre-training of a recipe."""
        return cls(
            model_name=recipe.model.name,
            grid=recipe.clip.grid(),
            candidate_grid=recipe.candidate_grid(),
            pruning=recipe.selection.pruning(),
            decoder_depth=recipe.model.decoder_depth,
            drop_path=recipe.model.drop_path,
            recompute=recipe.model.recompute,
            checkpoint_blocks=recipe.model.checkpoint_blocks,
            captured=recipe.model.compile == "graphs",
        )

    @classmethod
    def from_finetuning(cls, recipe: Recipe, *, num_classes: int) -> Workload:
        """The fine-tuning of a recipe for it."""
        return cls.from_recipe(recipe).for_finetuning(
            keep_ratio=recipe.selection.keep_ratio, num_classes=num_classes, drop_path=recipe.model.drop_path
        )

    def for_finetuning(
        self,
        *,
        keep_ratio: float = FINETUNE_KEEP_RATIO,
        num_classes: int = DEFAULT_CLASSES,
        drop_path: float = FINETUNE_DROP_PATH,
    ) -> Workload:
        """The classifier that starts from this encoder."""
        return replace(
            self,
            task="finetune",
            pruning=self.pruning.keeping(keep_ratio),
            decoder_depth=None,
            num_classes=num_classes,
            drop_path=drop_path,
        )

    @property
    def visible(self) -> int:
        """Tokens that the encoder sees."""
        if self.task == "finetune":
            return count_tokens(self.pruning.keep_ratio, self.grid.num_tokens)
        return self.pruning.counts(self.grid).visible

    @property
    def targets(self) -> int:
        """Tokens that the decoder predicts; 0 in fine-tuning."""
        return 0 if self.task == "finetune" else self.pruning.counts(self.grid).targets

    @property
    def is_adaptive(self) -> bool:
        """More frames are read than used."""
        return self.candidate_grid.tau > self.grid.tau

    @property
    def scores_motion(self) -> bool:
        """Whether motion is scored before tokens are selected."""
        return self.is_adaptive or self.pruning.ranks_by_motion

    @property
    def clip_bytes(self) -> int:
        """One clip as it leaves the loader, uint8."""
        return self.candidate_grid.num_tokens * self.candidate_grid.patch_values

    def parameters(self) -> ParameterCounts:
        """Elements of all trained parameters."""
        size, patch = MODEL_SIZES[self.model_name], self.grid.patch_values
        width, decoder = size.width, size.decoder_width
        matrices = patch * width + size.depth * block_matrices(width)
        vectors = width + size.depth * block_vectors(width) + 2 * width
        largest = max(patch * width, MLP_RATIO * width**2)
        if self.task == "finetune":
            head = width * self.num_classes
            return ParameterCounts(matrices + head, vectors + self.num_classes, max(largest, head))
        matrices += width * decoder + self.decoder_depth * block_matrices(decoder) + decoder * patch
        vectors += decoder + self.decoder_depth * block_vectors(decoder) + 2 * decoder + patch
        return ParameterCounts(matrices, vectors, largest)

    def flops(self) -> StepFlops:
        """Of one clip."""
        return step_flops(
            self.model_name,
            self.grid,
            pruning=self.pruning,
            task=self.task,
            decoder_depth=self.decoder_depth,
            recompute=self.recompute,
            checkpoint_blocks=self.checkpoint_blocks,
            candidate_grid=self.candidate_grid,
            num_classes=self.num_classes,
        )


def block_matrices(width: int) -> int:
    """qkv, output projection, two layers of the MLP."""
    return (3 + 1 + 2 * MLP_RATIO) * width**2


def block_vectors(width: int) -> int:
    """Biases of q, v, the projection and the MLP, and two LayerNorms."""
    return (2 + 1 + MLP_RATIO + 1 + 4) * width
