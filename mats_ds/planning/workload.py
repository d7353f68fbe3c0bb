"""What is planned: the model, its clips and what it keeps of them, for pre-training or fine-tuning. Recipe -> Workload.

Counts of tokens and parameters in closed form; tests hold the parameters against the real modules.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mats_ds.config.recipe import Recipe
from mats_ds.core.token_grid import TokenGrid, count_selection, count_tokens
from mats_ds.models.sizes import MLP_RATIO, MODEL_SIZES
from mats_ds.planning.flops import FINETUNE_KEEP_RATIO, TASKS, StepFlops, step_flops

FINETUNE_DROP_PATH = 0.1  # METHOD section 5
DEFAULT_CLASSES = 400  # of Kinetics-400, where a plan for fine-tuning names no number


@dataclass(frozen=True)
class ParameterCounts:
    """Elements of the optimizer's two groups: matrices, which decay, and vectors, which do not. `largest`: of one tensor."""

    matrices: int
    vectors: int
    largest: int

    @property
    def total(self) -> int:
        return self.matrices + self.vectors


@dataclass(frozen=True)
class Workload:
    """One model at work. task "pretrain": the masked autoencoder; "finetune": the classifier on `keep_ratio` of the tokens
    (1: all of them). The other fields are the recipe's. Raises ValueError for an unknown task or model.
    """

    task: str = "pretrain"
    model_name: str = "base"
    grid: TokenGrid = TokenGrid()
    candidate_grid: TokenGrid = TokenGrid()
    strategy: str = "mats"
    keep_ratio: float = 0.3
    visible_ratio: float = 0.1
    feature: str = "embedding"
    decoder_depth: int | None = None
    drop_path: float = 0.0
    recompute: str = "none"
    checkpoint_blocks: str | int = "none"
    num_classes: int = 0

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"unknown task {self.task!r}: choose one of {', '.join(TASKS)}")
        if self.model_name not in MODEL_SIZES:
            raise ValueError(f"unknown model {self.model_name!r}: choose one of {', '.join(MODEL_SIZES)}")
        if self.task == "pretrain" and self.decoder_depth is None:
            object.__setattr__(self, "decoder_depth", MODEL_SIZES[self.model_name].decoder_depth)

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> Workload:
        """Pre-training as the recipe says."""
        return cls(
            model_name=recipe.model.name,
            grid=recipe.clip.grid(),
            candidate_grid=recipe.candidate_grid(),
            strategy=recipe.selection.strategy,
            keep_ratio=recipe.selection.keep_ratio,
            visible_ratio=recipe.selection.visible_ratio,
            feature=recipe.selection.feature,
            decoder_depth=recipe.model.decoder_depth,
            drop_path=recipe.model.drop_path,
            recompute=recipe.model.recompute,
            checkpoint_blocks=recipe.model.checkpoint_blocks,
        )

    @classmethod
    def from_finetuning(cls, recipe: Recipe, *, num_classes: int) -> Workload:
        """Fine-tuning as a recipe for it says."""
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
            keep_ratio=keep_ratio,
            visible_ratio=keep_ratio,
            decoder_depth=None,
            num_classes=num_classes,
            drop_path=drop_path,
        )

    @property
    def visible(self) -> int:
        """Tokens that the encoder sees."""
        if self.task == "finetune":
            return count_tokens(self.keep_ratio, self.grid.num_tokens)
        return self._counts.visible

    @property
    def targets(self) -> int:
        """Tokens that the decoder predicts; 0 in fine-tuning."""
        return 0 if self.task == "finetune" else self._counts.targets

    @property
    def is_adaptive(self) -> bool:
        """More frames are read than used."""
        return self.candidate_grid.tau > self.grid.tau

    @property
    def scores_motion(self) -> bool:
        """Whether motion is looked at before tokens are chosen."""
        keeps_all = self.task == "finetune" and self.visible == self.grid.num_tokens
        return self.is_adaptive or (self.strategy == "mats" and not keeps_all)

    @property
    def clip_bytes(self) -> int:
        """One clip as the loader hands it over, uint8."""
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
            self.keep_ratio,
            self.visible_ratio,
            strategy=self.strategy,
            task=self.task,
            decoder_depth=self.decoder_depth,
            feature=self.feature,
            recompute=self.recompute,
            checkpoint_blocks=self.checkpoint_blocks,
            candidate_grid=self.candidate_grid,
            num_classes=self.num_classes,
        )

    @property
    def _counts(self):
        return count_selection(self.grid, strategy=self.strategy, keep_ratio=self.keep_ratio, visible_ratio=self.visible_ratio)


def block_matrices(width: int) -> int:
    """qkv, output projection, two layers of the MLP."""
    return (3 + 1 + 2 * MLP_RATIO) * width**2


def block_vectors(width: int) -> int:
    """Biases of q, v, the projection and the MLP, and two LayerNorms."""
    return (2 + 1 + MLP_RATIO + 1 + 4) * width
