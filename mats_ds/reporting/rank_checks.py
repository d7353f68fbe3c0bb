"""Checks across ranks: sentences on missing records, and the balance of the ranks' steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import accumulate, pairwise

import numpy as np

from mats_ds.core.run_dir import Outcome, RunFile
from mats_ds.reporting.ranks import MIN_SECONDS, RankFigures, Span

# Records of step k are written when step k+1 arrives, so a run killed right after saving a
# checkpoint and resumed from it can lack the records of the steps just before the resume. That is
# no fault of the run.
STEPS_LOST_BY_A_KILL = 2
NUM_NAMED = 5
Stretch = tuple[int, int]  # the first and the last step


def find_missing(run: RunFile, outcome: Outcome | None, span: Span, ranks: list[RankFigures]) -> tuple[str, ...]:
    """One sentence a rank that lacks some steps, and one for each row of ranks that have none."""
    last_steps = [rank.last_step for rank in ranks if rank.last_step is not None]
    # While a run goes on its ranks are a step or two apart; once it has ended every rank owes the
    # last step.
    last_step = min(last_steps) if outcome is None else max(span.last_step, outcome.last_step or 0)
    owed = _stretches_owed(run, last_step)
    num_ranks = max((world_size for _, world_size in owed), default=0)
    got = {rank.rank: rank.got for rank in ranks if rank.got}
    missing = {}
    for rank in (rank for rank in got if rank < num_ranks):
        gaps = _subtract([stretch for stretch, world_size in owed if rank < world_size], got[rank])
        if gaps:
            missing[rank] = f"rank {rank} lacks {_name_steps(gaps)}"
    for first, last in _list_rows(sorted(set(range(num_ranks)) - got.keys())):
        missing[first] = f"rank {first} has no records" if first == last else f"ranks {first} to {last} have no records"
    return tuple(missing[rank] for rank in sorted(missing))


def _stretches_owed(run: RunFile, last_step: int) -> list[tuple[Stretch, int]]:
    """The stretches of steps that were to be recorded, in ascending order, and the number of ranks
    that had to do it; a resumed run may have another number of ranks."""
    firsts = [part.first_step for part in run.parts]
    # of each part but the last: the least first step of those after it
    later = [*accumulate(firsts[:0:-1], min)][::-1]
    ends = [min(last_step, first - 1 - STEPS_LOST_BY_A_KILL) for first in later] + [last_step]
    parts = zip(run.parts, ends, strict=False)  # a run.json without parts has no end either
    return [((part.first_step, end), part.world_size) for part, end in parts if part.first_step <= end]


def _subtract(owed: Sequence[Stretch], got: Sequence[Stretch]) -> list[Stretch]:
    """Stretches of `owed` that `got` does not cover; both in ascending order."""
    gaps, index = [], 0
    for first, last in owed:
        while index < len(got) and got[index][1] < first:
            index += 1
        at = index
        while at < len(got) and got[at][0] <= last:
            if got[at][0] > first:
                gaps.append((first, got[at][0] - 1))
            first = got[at][1] + 1
            at += 1
        index = max(index, at - 1)  # the last one may reach into the next stretch
        if first <= last:
            gaps.append((first, last))
    return gaps


def _list_rows(numbers: Sequence[int]) -> list[Stretch]:
    """Ascending numbers as rows of neighbours."""
    breaks = [index for index, (left, right) in enumerate(pairwise(numbers), start=1) if right != left + 1]
    bounds = [0, *breaks, len(numbers)] if numbers else []
    return [(numbers[start], numbers[stop - 1]) for start, stop in pairwise(bounds)]


def _name_steps(gaps: list[Stretch]) -> str:
    num = sum(last - first + 1 for first, last in gaps)
    names = [str(first) if first == last else f"{first} to {last}" for first, last in gaps[:NUM_NAMED]]
    more = f" and {len(gaps) - NUM_NAMED} more stretches" if len(gaps) > NUM_NAMED else ""
    return f"{num} step{'s' if num > 1 else ''}: {', '.join(names)}{more}"


NOTABLE_FRACTION = 0.03


@dataclass(frozen=True)
class Balance:
    """`lost_fraction`: of a step, that ranks on average wait for the last one.
    `last_fractions[rank]`: of the steps, in which that rank was the last. `late_seconds[rank]`: how
    much later than the average it arrives, on average (negative: earlier).
    """

    lost_fraction: float
    last_fractions: dict[int, float]
    late_seconds: dict[int, float]

    @property
    def worst_rank(self) -> int:
        """The rank that arrives latest."""
        return max(self.late_seconds, key=lambda rank: self.late_seconds[rank])

    @property
    def text(self) -> str:
        """One sentence."""
        worst = self.worst_rank
        start = f"Ranks wait {100 * self.lost_fraction:.1f}% of a step for the last of them"
        if self.lost_fraction < NOTABLE_FRACTION:
            return f"{start}: well balanced."
        return (
            f"{start}; rank {worst} is the last in {100 * self.last_fractions[worst]:.0f}% of the steps, "
            f"{1e3 * self.late_seconds[worst]:.3g} ms later than the average: look at its disk, its cores and its GPU's clocks."
        )


def find_balance(ranks: list[RankFigures]) -> Balance | None:
    """The balance of the steps after the warm-up that all ranks recorded; None where there is one
    rank or no such step."""
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
        indices = np.searchsorted(rank.steps, steps)
        arrivals[rank.rank] = arrival = rank.arrivals[indices]
        last[arrival > latest] = rank.rank
        latest = np.maximum(latest, arrival)
        total += arrival
        longest = np.maximum(longest, rank.seconds[indices])
    mean = total / len(timed)
    total_seconds = float(longest.sum())
    return Balance(
        lost_fraction=float((latest - mean).sum()) / total_seconds if total_seconds >= MIN_SECONDS else 0.0,
        last_fractions={rank: float((last == rank).mean()) for rank in arrivals},
        late_seconds={rank: float((arrival - mean).mean()) for rank, arrival in arrivals.items()},
    )
