"""A proportion of counted trials and its confidence interval."""

from __future__ import annotations

import math
from dataclasses import dataclass

# 95% of a normal distribution lie within so many standard deviations
CONFIDENCE_Z = 1.959963984540054


@dataclass(frozen=True)
class Proportion:
    """`hits` of `total`, with its 95% interval."""

    hits: int
    total: int

    @property
    def value(self) -> float:
        return self.hits / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        return wilson_interval(self.hits, self.total)

    def describe(self) -> str:
        """In percent: "61.2% (95% interval 58.0 to 64.3)"."""
        low, high = self.interval
        return f"{100 * self.value:.2f}% (95% interval {100 * low:.2f} to {100 * high:.2f})"

    def as_json(self) -> dict[str, float | int | None]:
        low, high = self.interval if self.total else (None, None)
        return {"value": self.value if self.total else None, "low": low, "high": high, "hits": self.hits, "total": self.total}


def wilson_interval(hits: int, total: int, *, z: float = CONFIDENCE_Z) -> tuple[float, float]:
    """Wilson's score interval of a proportion (J. Am. Stat. Assoc. 22, 1927): right for small
    counts, never outside 0 to 1."""
    if total == 0:
        return math.nan, math.nan
    rate = hits / total
    centre = rate + z * z / (2 * total)
    spread = z * math.sqrt(rate * (1 - rate) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    low, high = (centre - spread) / scale, (centre + spread) / scale
    # exact at the ends, where rounding would leave 1e-17
    return (0.0 if hits == 0 else low), (1.0 if hits == total else high)
