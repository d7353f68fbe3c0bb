"""Which steps are measured, in the order of their worth: the time may end before the list does."""

from __future__ import annotations

from dataclasses import dataclass

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
    sizes, batch = (["small", "base", "large"], 32) if part.on_gpu else (["tiny"], 2)
    with_peer = [Cell("pretrain", size, batch, peer=True) for size in sizes]
    compiled = [Cell("pretrain", size, 2 * batch, compiled=True) for size in sizes[:2]]
    ways = ({}, {"compiled": True}, {"compiled": True, "captured": True})
    launched = [Cell("pretrain", "base", PAPER_BATCH, **way) for way in ways]
    tuned = [Cell("finetune", size, max(1, batch // 2), peer=True) for size in sizes]
    lean = [Cell("pretrain", size, batch, recompute=level) for size in sizes for level in ("pointwise", "mlp")]
    lean += [Cell("pretrain", size, batch, checkpoint="all") for size in sizes]
    lean += [Cell("finetune", size, max(1, batch // 2), recompute="mlp") for size in sizes]
    batches = [Cell("pretrain", size, count) for size in sizes for count in (batch // 4, 4 * batch) if count]
    later = [Cell("finetune", size, max(1, batch // 2), compiled=True) for size in sizes[:1]]
    last = [Cell("pretrain", size, batch, compiled=True) for size in sizes[2:]]
    if not part.on_gpu:  # a compiler for the CPU takes half a minute
        return with_peer + tuned + lean + batches + compiled
    if part.quick:
        return launched + with_peer[:2] + compiled[:1] + lean[:2] + tuned[:1]
    return launched + with_peer + compiled + tuned + lean + batches + later + last
