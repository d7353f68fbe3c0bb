"""What a probe is asked for, checked before anything heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass

COMMAND = "probe"
PROBES = ("knn", "linear", "attentive")
NUM_NEIGHBOURS = 20


@dataclass(frozen=True)
class ProbeOptions:
    """Options of the probes.

    `probes`: in the order of PROBES. `baseline`: also with fresh weights. `keep_ratio` None: the
    encoder's own. `neighbours`: of k-NN. `allow_overlap`: only warn of videos in both manifests.
    `seed`: of the attentive probe and of fresh weights. `token_gib`: memory that the tokens of a
    manifest may take.
    """

    probes: tuple[str, ...]
    baseline: bool
    keep_ratio: float | None
    neighbours: int
    allow_overlap: bool
    seed: int
    token_gib: float

    def __post_init__(self) -> None:
        if self.neighbours < 1:
            raise ValueError(f"--neighbours is at least 1, got {self.neighbours}")
