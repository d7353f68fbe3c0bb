"""Activation memory of one micro-batch, moment by moment: Workload, clips, bytes of an element ->
Activations.

It follows models/mae.py, models/classifier.py and models/layers.py tensor by tensor: what each part
keeps for backward, and its temporaries. A step needs as much as its largest moment: selecting
tokens, the loss, or a block in backward. Checked against the real engine on fake tensors
(mats_ds/training/dry_run.py).

Letters: B clips, N tokens of a clip, K those of a block, Q its queries, D width, P values of a
patch.
"""

from __future__ import annotations

from dataclasses import dataclass

from mats_ds.models.sizes import MLP_RATIO, MODEL_SIZES
from mats_ds.planning.workload import Workload, block_matrices, block_vectors

FLOAT32, INT64 = 4, 8
NORM_STATS = 2  # mean and inverse spread of a LayerNorm's row, float32 each
# float32 temporaries as large as the difference while its square and its mean go backward
SQUARE_BACKWARD = 4
# A checkpointed block, in units of one [Q, D] activation, during its MLP's backward: the gradients
# of its output and of the MLP's hidden layer (MLP_RATIO), and the recomputed activations, by
# `recompute` level.
GRADIENTS_IN_MLP = 1 + MLP_RATIO
RECOMPUTED_IN_MLP = {"none": 0, "pointwise": MLP_RATIO, "mlp": 1 + 2 * MLP_RATIO}


@dataclass(frozen=True)
class Turn:
    """Backward of one block: the bytes alive at its peak, clips included, and the number of
    parameters that get gradients."""

    alive_bytes: int
    num_parameters: int


@dataclass(frozen=True)
class Activations:
    """Bytes of one rank's micro-batch. `blocks_bytes`: kept for backward by the blocks (encoder's
    first, then decoder's), one entry a block; `other_saved_bytes`: kept by all else. The others are
    the most that is alive, clips and `saved` included: while tokens are selected, in the loss, in
    the loss's backward, and in each of backward's `turns`, in its order.
    """

    blocks_bytes: tuple[int, ...]
    other_saved_bytes: int
    choosing_bytes: int
    loss_forward_bytes: int
    loss_backward_bytes: int
    turns: tuple[Turn, ...]

    @property
    def saved_bytes(self) -> int:
        """Kept for backward, the clips apart."""
        return sum(self.blocks_bytes) + self.other_saved_bytes


@dataclass(frozen=True)
class _Block:
    """One block on B clips of `tokens` tokens, `queries` of which go on."""

    clips: int
    tokens: int
    queries: int
    width: int
    heads: int
    element: int
    level: str  # a recompute level, or "block": checkpointed
    drops: bool = False  # drop path multiplies gradients into a copy

    def of(self, rows: float, columns: float = 1) -> int:
        """Bytes of [B, rows, columns * D]."""
        return int(self.clips * rows * columns * self.width * self.element)

    @property
    def saved(self) -> int:
        """Bytes of its input, keys, values, queries, attention's output and residual, and what the
        level keeps in addition."""
        if self.level == "block":
            return self.of(self.tokens)
        return self.of(self.tokens) + self.kept_inside(self.level)

    def kept_inside(self, level: str) -> int:
        """Bytes kept for backward beside the input at a recompute level."""
        tokens, queries = self.tokens, self.queries
        normaliser = self.clips * self.heads * queries * FLOAT32
        kept = self.of(tokens, 2) + self.of(queries, 3) + normaliser
        if level != "mlp":
            kept += self.of(queries, MLP_RATIO)  # fc1's output
        if level == "none":
            # keys and queries are normed apart
            normed = tokens if tokens == queries else tokens + queries
            kept += self.of(normed) + self.of(queries, 1 + MLP_RATIO)
            kept += self.clips * (normed + queries) * NORM_STATS * FLOAT32
        return kept

    @property
    def alive_in_backward(self) -> int:
        """The most that its backward pass adds to the saved bytes."""
        recomputed = self.kept_inside("none") if self.level == "block" else self.of(self.queries, RECOMPUTED_IN_MLP[self.level])
        return recomputed + self.of(self.queries, GRADIENTS_IN_MLP + self.drops)


def plan_activations(workload: Workload, *, micro_batch: int, element_bytes: int) -> Activations:
    """Activations of `micro_batch` clips in a model of `element_bytes` a number (2: bf16, 4:
    fp32)."""
    if workload.task == "finetune":
        return _plan_finetuning(workload, micro_batch, element_bytes)
    return _plan_pretraining(workload, micro_batch, element_bytes)


def _plan_pretraining(work: Workload, clips: int, element: int) -> Activations:
    size, patch = MODEL_SIZES[work.model_name], work.grid.patch_values
    kept = work.visible + work.targets
    encoder = _stack(work, clips, element, size.width, size.heads, size.depth, tokens=work.visible)
    decoder = _stack(
        work, clips, element, size.decoder_width, size.decoder_heads, work.decoder_depth, tokens=kept, outputs=work.targets
    )
    predicted = clips * work.targets * patch
    embedding = _embedding_saved(work, clips, element)
    # The last norms: input, and at level "none" what they put out, which the product behind them
    # keeps.
    norms = [clips * work.visible * size.width * element, clips * work.targets * size.decoder_width * element]
    doubled = 2 if work.recompute == "none" else 1
    indices = clips * kept * INT64
    difference = predicted * FLOAT32
    other = embedding + doubled * sum(norms) + difference + indices
    clip_bytes = clips * work.clip_bytes
    blocks = [block.saved for block in (*encoder, *decoder)]
    saved = sum(blocks) + other
    # The loss holds predictions (model's type and float32), their bytes, normalised targets and
    # their squares; the patches of all tokens are still there.
    in_float = 0 if element == FLOAT32 else FLOAT32
    at_loss = saved - difference + predicted * (1 + element + in_float + 2 * FLOAT32) + _used_patches(work, clips)
    head = size.decoder_width * patch
    first_turn = Turn(saved + clip_bytes + predicted * (element - FLOAT32) + norms[1], head)
    return Activations(
        blocks_bytes=tuple(blocks),
        other_saved_bytes=other,
        choosing_bytes=_choosing(work, clips, element) + clip_bytes,
        loss_forward_bytes=at_loss + clip_bytes,
        loss_backward_bytes=saved + SQUARE_BACKWARD * difference + clip_bytes,
        turns=(
            first_turn,
            *_turns(decoder, below=sum(blocks[: len(encoder)]) + embedding + doubled * norms[0] + clip_bytes),
            *_turns(encoder, below=embedding + clip_bytes),
        ),
    )


def _plan_finetuning(work: Workload, clips: int, element: int) -> Activations:
    size = MODEL_SIZES[work.model_name]
    encoder = _stack(work, clips, element, size.width, size.heads, size.depth, tokens=work.visible)
    embedding = _embedding_saved(work, clips, element)
    indices = clips * work.visible * INT64
    logits = clips * work.num_classes * FLOAT32
    other = embedding + indices + 2 * logits
    clip_bytes = clips * work.clip_bytes
    blocks = [block.saved for block in encoder]
    saved = sum(blocks) + other
    last = encoder[-1]
    output = last.of(last.tokens)
    forward_extra = last.of(last.tokens, 2 + 2 * MLP_RATIO) if last.level == "block" else last.of(last.tokens, MLP_RATIO)
    return Activations(
        blocks_bytes=tuple(blocks),
        other_saved_bytes=other,
        choosing_bytes=_choosing(work, clips, element) + clip_bytes,
        loss_forward_bytes=saved + output + forward_extra + _used_patches(work, clips) + clip_bytes,
        loss_backward_bytes=saved + 2 * output + clip_bytes,
        turns=_turns(encoder, below=other + clip_bytes),
    )


def _turns(blocks: list[_Block], *, below: int) -> tuple[Turn, ...]:
    """Backward through a stack, its last block first; `below`: bytes alive beside the stack."""
    turns = []
    for index in reversed(range(len(blocks))):
        block = blocks[index]
        alive = below + sum(lower.saved for lower in blocks[: index + 1]) + block.alive_in_backward
        turns.append(Turn(alive, block_matrices(block.width) + block_vectors(block.width)))
    return tuple(turns)


def _stack(
    work: Workload, clips: int, element: int, width: int, heads: int, depth: int, *, tokens: int, outputs: int | None = None
) -> list[_Block]:
    """The blocks of the encoder, or of the decoder with `outputs` output tokens."""
    every = {"none": depth + 1, "all": 1}.get(work.checkpoint_blocks, work.checkpoint_blocks)
    blocks = []
    for index in range(depth):
        level = "block" if (index + 1) % int(every) == 0 else work.recompute
        queries = outputs if outputs and index == depth - 1 else tokens
        drops = work.drop_path > 0 and index > 0
        blocks.append(_Block(clips, tokens, queries, width, heads, element, level, drops))
    return blocks


def _embedding_saved(work: Workload, clips: int, element: int) -> int:
    """The chosen patches: as numbers of the model's type at level "none", else as bytes."""
    return clips * work.visible * work.grid.patch_values * (element if work.recompute == "none" else 1)


def _used_patches(work: Workload, clips: int) -> int:
    """Patches of the frames that are used, as bytes: alive until the loss is computed."""
    return clips * work.grid.num_tokens * work.grid.patch_values


def _choosing(work: Workload, clips: int, element: int) -> int:
    """Bytes alive while tokens are selected: the clip's patches (a copy), and where motion is
    scored, patches as numbers and their embedding, then the embedding as float32 and the
    differences of neighbours.
    """
    grid = work.candidate_grid
    tokens, patch = clips * grid.num_tokens, grid.patch_values
    width = MODEL_SIZES[work.model_name].width
    patches = tokens * patch
    if not work.scores_motion:
        return patches
    later = clips * (grid.num_tokens - grid.tokens_per_tubelet)
    if work.pruning.feature == "pixels":
        return patches + (tokens + later) * patch * FLOAT32
    in_float = 0 if element == FLOAT32 else tokens * width * FLOAT32
    embedding = tokens * width * element
    return patches + embedding + max(tokens * patch * element, in_float + later * width * FLOAT32)
