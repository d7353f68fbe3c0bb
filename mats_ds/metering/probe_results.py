"""What a probe of frozen features found, in words and for JSON."""

from __future__ import annotations

from dataclasses import dataclass

from mats_ds.metering.accuracy import Share


@dataclass(frozen=True)
class ProbeResult:
    """One probe of one set of weights. `weights`: "trained" or "fresh". `told`: the probe's settings, in words."""

    probe: str
    weights: str
    top1: Share
    told: str
    seconds: float

    def describe(self) -> str:
        return f"{self.probe:<10} {self.weights:<8} {self.top1.describe()}  ({self.told}; {self.seconds:.1f} s)"

    def as_json(self) -> dict[str, object]:
        return {
            "probe": self.probe,
            "weights": self.weights,
            "top1": self.top1.as_json(),
            "settings": self.told,
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class Chance:
    """What needs no features: guessing among all classes, and always saying the class that `val` has most of."""

    num_classes: int
    most_frequent: float

    def describe(self) -> str:
        return (
            f"{'chance':<10} {'':<8} {100 / self.num_classes:.2f}% by guessing, {100 * self.most_frequent:.2f}% by always saying "
            "the most frequent class"
        )

    def as_json(self) -> dict[str, float]:
        return {"guessing": 1 / self.num_classes, "most_frequent": self.most_frequent}
