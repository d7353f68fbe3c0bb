"""FLOPs of one clip in closed form: model sizes and token counts -> StepFlops.

Published "GFLOPs" of this field are multiply-adds (MACs); one MAC is two FLOPs. Only matrix
products count: norms, activations and the softmax are left out, as is usual. Three figures are kept
apart:
- `forward_macs`: the method's forward pass counted as the papers do (every token embedded once):
  19.8 G for MATS and 35.4 G for tube masking at ViT-B pre-training, 98.0 G and 180.3 G in
  fine-tuning;
- `training_flops`: useful forward and backward FLOPs of this implementation (the basis of MFU); the
  decoder's last block has queries for the targets alone, which the published figure does not take
  off;
- `hardware_flops`: what the device executes, with everything that is computed twice: what
  `recompute` and `checkpoint_blocks` do not keep, the visible tokens' second embedding, and the
  attention backward, which recomputes its scores.
Checked against torch's FlopCounterMode in tests/planning/test_flops.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mats_ds.core.format import format_count, format_part
from mats_ds.core.token_grid import FINETUNE_KEEP_RATIO, TokenGrid, TokenPruning, count_tokens
from mats_ds.models.sizes import MLP_RATIO, MODEL_SIZES

if TYPE_CHECKING:
    from mats_ds.config.recipe import Recipe

FLOPS_PER_MAC = 2
TASKS = ("pretrain", "finetune")


@dataclass(frozen=True)
class StepFlops:
    """Per clip. `forward_*`: one forward pass as published. `training_*`: useful forward +
    backward. `hardware_flops`: executed.
    """

    forward_macs: int
    training_macs: int
    hardware_macs: int

    @property
    def forward_flops(self) -> int:
        return FLOPS_PER_MAC * self.forward_macs

    @property
    def training_flops(self) -> int:
        return FLOPS_PER_MAC * self.training_macs

    @property
    def hardware_flops(self) -> int:
        return FLOPS_PER_MAC * self.hardware_macs


@dataclass(frozen=True)
class _Block:
    """MACs of one block: its dense layers (`linear`, of which `fc1` and `fc2` are the MLP's) and
    attention products."""

    linear: int
    attention: int
    fc1: int
    fc2: int
    recompute: str

    @classmethod
    def of(cls, width: int, *, length: int, queries: int, recompute: str) -> _Block:
        """A block on `length` tokens that computes what becomes of `queries` of them."""
        expand = queries * MLP_RATIO * width * width
        return cls(
            linear=2 * (length + queries) * width * width + 2 * expand,
            attention=2 * queries * length * width,
            fc1=expand,
            fc2=expand,
            recompute=recompute,
        )

    @property
    def forward(self) -> int:
        return self.linear + self.attention

    @property
    def hardware(self) -> int:
        # Backward of a product is two products of the same size. A fused attention backward
        # computes the scores again: five products where the forward has two, 2.5 times. A
        # checkpointed block is recomputed up to fc2, whose output nobody needs.
        again = {"none": 0, "pointwise": 0, "mlp": self.fc1, "block": self.forward - self.fc2}
        return 3 * self.linear + self.attention + self.attention * 5 // 2 + again[self.recompute]


@dataclass(frozen=True)
class _Stack:
    """MACs of a stack of blocks."""

    forward: int
    training: int
    hardware: int


def _stack(
    *, depth: int, width: int, length: int, recompute: str, checkpoint_blocks: str | int, num_outputs: int | None = None
) -> _Stack:
    """`depth` blocks on `length` tokens; the last one computes `num_outputs` of them only, if
    given."""
    every = {"none": depth + 1, "all": 1}.get(checkpoint_blocks, checkpoint_blocks)
    levels = ["block" if (index + 1) % int(every) == 0 else recompute for index in range(depth)]
    queries = [length] * (depth - 1) + [num_outputs or length]
    blocks = [_Block.of(width, length=length, queries=q, recompute=level) for q, level in zip(queries, levels, strict=True)]
    full = _Block.of(width, length=length, queries=length, recompute="none")
    return _Stack(
        forward=depth * full.forward,
        training=3 * sum(block.forward for block in blocks),
        hardware=sum(block.hardware for block in blocks),
    )


def step_flops(
    model_name: str,
    grid: TokenGrid,
    keep_ratio: float = 0.3,
    visible_ratio: float = 0.1,
    *,
    pruning: TokenPruning | None = None,
    task: str = "pretrain",
    decoder_depth: int | None = None,
    recompute: str = "none",
    checkpoint_blocks: str | int = "none",
    candidate_grid: TokenGrid | None = None,
    num_classes: int = 0,
    **options: Any,
) -> StepFlops:
    """FLOPs and multiply-adds of one clip, forward and training.

    The options of the method are `keep_ratio`, `visible_ratio` and `options` by name (strategy,
    feature, merge_dropped), or `pruning` instead of them. task "pretrain": the masked autoencoder.
    task "finetune": the encoder on int(keep_ratio N) tokens (1.0: all) and a linear head;
    `visible_ratio` and the decoder have no part in it. `candidate_grid` is the larger grid of
    adaptive frame selection. Decoder depth None is the size's own (4 for S and B, 12 for L and H):
    name it beside every figure of L and H. `merge_dropped` compares every dropped token with every
    kept one.
    Raises ValueError for an unknown model, task or strategy.
    """
    if model_name not in MODEL_SIZES:
        raise ValueError(f"unknown model {model_name!r}: choose one of {', '.join(MODEL_SIZES)}")
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}: choose one of {', '.join(TASKS)}")
    if pruning is None:
        pruning = TokenPruning(keep_ratio=keep_ratio, visible_ratio=visible_ratio, **options)
    size = MODEL_SIZES[model_name]
    candidates = candidate_grid or grid
    embed_token = grid.patch_values * size.width
    adaptive = candidates.tau > grid.tau
    policy = {"recompute": recompute, "checkpoint_blocks": checkpoint_blocks}
    if task == "finetune":
        pruning = pruning.keeping(pruning.keep_ratio)
        kept = count_tokens(pruning.keep_ratio, grid.num_tokens)
        stacks, dense = [_stack(depth=size.depth, width=size.width, length=kept, **policy)], size.width * num_classes
        embedded, merges = kept, pruning.merge_dropped and not pruning.keeps_all
    else:
        counts = pruning.counts(grid)
        depth = size.decoder_depth if decoder_depth is None else decoder_depth
        encoder = _stack(depth=size.depth, width=size.width, length=counts.visible, **policy)
        decoder = _stack(depth=depth, width=size.decoder_width, length=counts.kept, num_outputs=counts.targets, **policy)
        to_decoder = counts.visible * size.width * size.decoder_width
        head = counts.targets * size.decoder_width * grid.patch_values
        stacks, dense, embedded, merges = [encoder, decoder], to_decoder + head, counts.visible, False
    of_embedding = pruning.feature == "embedding"
    needs_features = pruning.ranks_by_motion or adaptive or merges
    scored = candidates.num_tokens * embed_token if needs_features and of_embedding else 0
    compared = (grid.num_tokens - embedded) * embedded * (size.width if of_embedding else grid.patch_values)
    matching = compared if merges else 0
    embedded *= embed_token

    forward = candidates.num_tokens * embed_token + sum(stack.forward for stack in stacks) + dense + matching
    # The embedding has a weight gradient but no input gradient; its scores have no gradient at all.
    embed_once = max(scored, embedded)
    training = matching + embed_once + embedded + sum(stack.training for stack in stacks) + 3 * dense
    hardware = matching + scored + 2 * embedded + sum(stack.hardware for stack in stacks) + 3 * dense
    return StepFlops(forward_macs=forward, training_macs=training, hardware_macs=hardware)


def recipe_flops(recipe: Recipe) -> StepFlops:
    """One pre-training clip of a recipe."""
    return step_flops(
        recipe.model.name,
        recipe.clip.grid(),
        pruning=recipe.selection.pruning(),
        decoder_depth=recipe.model.decoder_depth,
        recompute=recipe.model.recompute,
        checkpoint_blocks=recipe.model.checkpoint_blocks,
        candidate_grid=recipe.candidate_grid(),
    )


def describe_compute(recipe: Recipe) -> str:
    """One line: pre-training GMACs of a clip beside tube masking's, fine-tuning GMACs at 0.6 of the
    tokens beside all of them."""
    size, grid, selection = recipe.model.name, recipe.clip.grid(), recipe.selection
    depth = recipe.model.decoder_depth or MODEL_SIZES[size].decoder_depth
    flops = recipe_flops(recipe)
    tube = step_flops(size, grid, visible_ratio=selection.visible_ratio, strategy="tube", decoder_depth=depth)
    pruned, full = (step_flops(size, grid, ratio, task="finetune") for ratio in (FINETUNE_KEEP_RATIO, 1.0))
    return (
        f"forward GMACs per clip: pre-training {_giga(flops)} with {selection.strategy}, {_giga(tube)} with tube masking "
        f"({format_count(depth, 'decoder block')}); fine-tuning {_giga(pruned)} with "
        f"{format_part(FINETUNE_KEEP_RATIO, 'tokens')}, {_giga(full)} with all"
    )


def _giga(flops: StepFlops) -> str:
    value = flops.forward_macs / 1e9
    return f"{value:.1f}" if value >= 10 else f"{value:.3g}"
