"""How evenly ranks share a step: data parallel ranks wait for the last of them in every backward pass.

A rank arrives there after it has waited for its data and done its forward pass, so a slow disk, a busy core or a throttled
card shows as late arrivals, while the steps of all ranks last equally long.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import numpy as np
from report_ranks import MIN_SECONDS, RankFigures

NOTABLE_SHARE = 0.03


@dataclass(frozen=True)
class Balance:
    """`lost_share`: part of a step that ranks on average wait for the last one. `last_shares[rank]`: part of the steps in which
    that rank was the last. `late_seconds[rank]`: how much later than the average it arrives, on average (negative: earlier).
    """

    lost_share: float
    last_shares: dict[int, float]
    late_seconds: dict[int, float]

    @property
    def worst_rank(self) -> int:
        """The rank that arrives latest."""
        return max(self.late_seconds, key=lambda rank: self.late_seconds[rank])

    @property
    def text(self) -> str:
        """One sentence."""
        worst = self.worst_rank
        start = f"Ranks wait {100 * self.lost_share:.1f}% of a step for the last of them"
        if self.lost_share < NOTABLE_SHARE:
            return f"{start}: well balanced."
        return (
            f"{start}; rank {worst} is the last in {100 * self.last_shares[worst]:.0f}% of the steps, "
            f"{1e3 * self.late_seconds[worst]:.3g} ms later than the average: look at its disk, its cores and its card's clocks."
        )


def find_balance(ranks: list[RankFigures]) -> Balance | None:
    """The balance of the steps after the warm-up that all ranks recorded; None where there is one rank or no such step."""
    timed = [rank for rank in ranks if len(rank.steps)]
    if len(timed) < 2:
        return None
    steps = reduce(np.intersect1d, [rank.steps for rank in timed])
    if len(steps) == 0:
        return None
    latest, total = np.full(len(steps), -np.inf), np.zeros(len(steps))
    last, longest = np.zeros(len(steps), dtype=np.int64), np.zeros(len(steps))
    arrivals: dict[int, np.ndarray] = {}
    for rank in timed:
        places = np.searchsorted(rank.steps, steps)
        arrivals[rank.rank] = arrival = rank.arrivals[places]
        last[arrival > latest] = rank.rank
        latest = np.maximum(latest, arrival)
        total += arrival
        longest = np.maximum(longest, rank.seconds[places])
    mean = total / len(timed)
    whole = float(longest.sum())
    return Balance(
        lost_share=float((latest - mean).sum()) / whole if whole >= MIN_SECONDS else 0.0,
        last_shares={rank: float((last == rank).mean()) for rank in arrivals},
        late_seconds={rank: float((arrival - mean).mean()) for rank, arrival in arrivals.items()},
    )
