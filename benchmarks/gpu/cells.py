"""Which steps are measured, in the order of their worth: the time may end before the list does."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from benchmarks.gpu.part import Part

TITLES = {"tiny": "ViT-tiny", "small": "ViT-S", "base": "ViT-B", "large": "ViT-L"}

PAPER_BATCH = 24  # of each of eight GPUs, where launches may take longer than arithmetic


@dataclass(frozen=True)
class Cell:
    """One way to compute a step of `batch` clips."""

    task: str
    size: str
    batch: int
    recompute: str = "none"
    checkpoint: str = "none"
    compiled: bool = False
    captured: bool = False
    peer: bool = False

    def __str__(self) -> str:
        extras = [f"recompute {self.recompute}"] * (self.recompute != "none") + ["checkpointed"] * (self.checkpoint != "none")
        extras += ["compiled"] * self.compiled + ["captured"] * self.captured + ["beside Hugging Face"] * self.peer
        return f"{self.task} {TITLES[self.size]} x {self.batch}" + "".join(f", {extra}" for extra in extras)


def list_cells(part: Part) -> list[Cell]:
    """In the order of their worth."""
    if not part.on_gpu:  # without a compiled cell: a compiler for the CPU takes half a minute
        cells = [Cell("pretrain", "tiny", 2, peer=True), Cell("finetune", "tiny", 1)]
        cells += [Cell("pretrain", "tiny", 2, recompute=level) for level in ("pointwise", "mlp")]
        return [*cells, Cell("pretrain", "tiny", 2, checkpoint="all"), Cell("pretrain", "tiny", 8)]
    base = partial(Cell, "pretrain", "base")
    compiled, captured = {"compiled": True}, {"compiled": True, "captured": True}
    cells = [base(PAPER_BATCH), base(128), base(128, **compiled), base(PAPER_BATCH, **compiled), base(PAPER_BATCH, **captured)]
    cells += [base(64), base(256), Cell("pretrain", "base", 32, peer=True)]
    if part.quick:
        return cells
    cells += [base(128, recompute="mlp"), base(128, checkpoint="all"), Cell("finetune", "base", 16, **compiled)]
    cells += [
        Cell("pretrain", "large", 64),
        Cell("pretrain", "large", 64, **compiled),
        Cell("pretrain", "small", 256, **compiled),
    ]
    return [*cells, Cell("finetune", "large", 16, recompute="mlp"), base(128, recompute="pointwise"), base(128, **captured)]
