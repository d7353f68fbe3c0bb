"""Checks across ranks: sentences on missing records, the balance of the ranks' steps, and their
waiting for data. An advice is given only where the figures are beyond chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import accumulate, pairwise

import numpy as np

from mats_ds.core.format import format_count, format_figure
from mats_ds.core.run_dir import Outcome, RunFile
from mats_ds.metering.chance import LEVEL, MIN_STEPS, exceeds_chance
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
    names = [f"{first:,}" if first == last else f"{first:,} to {last:,}" for first, last in gaps[:NUM_NAMED]]
    more = f" and {format_count(len(gaps) - NUM_NAMED, 'more stretch')}" if len(gaps) > NUM_NAMED else ""
    return f"{format_count(num, 'step')}: {', '.join(names)}{more}"


NOTABLE_FRACTION = 0.03


@dataclass(frozen=True)
class Balance:
    """`lost_fraction`: of a step, that ranks on average wait for the last one.
    `last_fractions[rank]`: of the steps, in which that rank was the last. `late_seconds[rank]`: how
    much later than the average it arrives, on average (negative: earlier). `num_steps`: steps that
    all ranks recorded. `step_seconds`: mean of the longest rank's. `is_beyond_chance`: whether the
    worst rank is later by more than chance gives (metering/chance.py). `late_waits`: how much of
    the worst rank's lateness is waiting for data, in seconds.
    """

    lost_fraction: float
    last_fractions: dict[int, float]
    late_seconds: dict[int, float]
    num_steps: int = 0
    step_seconds: float = 0.0
    is_beyond_chance: bool = False
    late_waits: float = 0.0
    on_gpu: bool = False

    @property
    def worst_rank(self) -> int:
        """The rank that arrives latest."""
        return max(self.late_seconds, key=lambda rank: self.late_seconds[rank])

    @property
    def late_rank(self) -> int | None:
        """The rank that holds the others up: later than chance gives, and by a notable part of a
        step. None where there is no such rank."""
        late = self.late_seconds[self.worst_rank]
        is_notable = min(self.lost_fraction, late / self.step_seconds if self.step_seconds else 0.0) >= NOTABLE_FRACTION
        return self.worst_rank if self.is_beyond_chance and is_notable else None

    @property
    def text(self) -> str:
        """One sentence."""
        worst, num_ranks = self.worst_rank, len(self.late_seconds)
        start = f"Ranks wait {100 * self.lost_fraction:.1f}% of a step for the last of them"
        if self.lost_fraction < NOTABLE_FRACTION:
            return f"{start}: well balanced."
        share = f"is the last in {100 * self.last_fractions[worst]:.0f}% of"
        by_chance = f"(1 of {num_ranks} ranks: {100 / num_ranks:.0f}% by chance)"
        if self.late_rank is None:
            why = describe_doubt(self.num_steps, f"rank {worst} {share} them {by_chance}, and is no later than chance explains")
            return f"{start}; no single rank is to blame: {why}."
        late, waits = 1e3 * self.late_seconds[worst], 1e3 * self.late_waits
        steps, where = format_count(self.num_steps, "step"), "what else runs on its cores"
        if self.on_gpu:
            where += ", and its GPU's clocks (nvidia-smi -q -d CLOCK,PERFORMANCE)"
        if self.late_waits > self.late_seconds[worst] / 2:
            where = f"its disk and its cores: {format_figure(waits, 3)} ms of that it waits longer for its clips"
        return (
            f"{start}; rank {worst} {share} {steps} {by_chance}, {format_figure(late, 3)} ms later than the average, {BEYOND}: "
            f"look at {where}."
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
    latest, total, waits = np.full(len(steps), -np.inf), np.zeros(len(steps)), np.zeros(len(steps))
    last, longest = np.zeros(len(steps), dtype=np.int64), np.zeros(len(steps))
    arrivals: dict[int, np.ndarray] = {}
    for rank in timed:
        indices = np.searchsorted(rank.steps, steps)
        arrivals[rank.rank] = arrival = rank.arrivals[indices]
        last[arrival > latest] = rank.rank
        latest = np.maximum(latest, arrival)
        total += arrival
        waits += rank.waits[indices]
        longest = np.maximum(longest, rank.seconds[indices])
    mean = total / len(timed)
    total_seconds = float(longest.sum())
    late_seconds = {rank: float((arrival - mean).mean()) for rank, arrival in arrivals.items()}
    worst = max(timed, key=lambda rank: late_seconds[rank.rank])
    worst_waits = worst.waits[np.searchsorted(worst.steps, steps)] - waits / len(timed)
    return Balance(
        lost_fraction=float((latest - mean).sum()) / total_seconds if total_seconds >= MIN_SECONDS else 0.0,
        last_fractions={rank: float((last == rank).mean()) for rank in arrivals},
        late_seconds=late_seconds,
        num_steps=len(steps),
        step_seconds=total_seconds / len(steps),
        is_beyond_chance=exceeds_chance(arrivals[worst.rank] - mean, num_compared=len(timed)),
        late_waits=float(worst_waits.mean()),
        on_gpu=any(rank.on_gpu for rank in timed),
    )


@dataclass(frozen=True)
class Waiting:
    """`fraction`: of the step time of all ranks, that they wait for data; `is_beyond_chance`:
    whether that is more than LOW_FRACTION by more than chance gives. `slowest_rank` waits most, in
    `slowest_fraction` of its time; None where that is chance, or no more than twice the others.
    """

    fraction: float
    num_steps: int
    is_beyond_chance: bool
    slowest_rank: int | None = None
    slowest_fraction: float = 0.0


LOW_FRACTION, HIGH_FRACTION = 0.05, 0.2  # of a step: nothing to do below, the bottleneck above


def find_waiting(ranks: list[RankFigures], *, fraction: float) -> Waiting:
    """The waiting for data of the steps after the warm-up; `fraction`: of all ranks' time."""
    timed = [rank for rank in ranks if len(rank.steps)]
    if not timed:
        return Waiting(fraction, 0, False)
    steps = reduce(np.intersect1d, [rank.steps for rank in timed])
    indices = [np.searchsorted(rank.steps, steps) for rank in timed]
    waits = [rank.waits[index] for rank, index in zip(timed, indices, strict=True)]
    seconds = sum(rank.seconds[index] for rank, index in zip(timed, indices, strict=True))
    excess = sum(waits) - LOW_FRACTION * seconds
    slowest = max(range(len(timed)), key=lambda number: timed[number].waiting_fraction)
    # the other ranks then wait for this one in the backward pass
    stands_out = len(timed) > 1 and timed[slowest].waiting_fraction > max(LOW_FRACTION, 2 * fraction)
    stands_out = stands_out and exceeds_chance(waits[slowest] - sum(waits) / len(timed), num_compared=len(timed))
    return Waiting(
        fraction,
        num_steps=len(steps),
        is_beyond_chance=exceeds_chance(excess),
        slowest_rank=timed[slowest].rank if stands_out else None,
        slowest_fraction=timed[slowest].waiting_fraction,
    )


def describe_waiting(waiting: Waiting, *, who: str, remedy: str) -> str:
    """One sentence on the time spent waiting for data. who: "GPU" or "model"; remedy: what to
    do."""
    percent = 100 * waiting.fraction
    most = "" if waiting.slowest_rank is None else f" (rank {waiting.slowest_rank} most, {100 * waiting.slowest_fraction:.0f}%)"
    if waiting.fraction < LOW_FRACTION and not most:
        return f"Data loading keeps up: the {who} waits for {percent:.1f}% of a step."
    if not waiting.is_beyond_chance and not most:
        bound = f"that is not above {100 * LOW_FRACTION:.0f}% by more than chance gives"
        return f"The {who} waits for data during {percent:.0f}% of a step: {describe_doubt(waiting.num_steps, bound)}."
    if waiting.fraction < HIGH_FRACTION:
        return f"The {who} waits for data during {percent:.0f}% of a step{most}, {BEYOND}; to avoid that, {remedy}."
    return f"Data loading is the bottleneck: the {who} is idle for {percent:.0f}% of a step{most}, {BEYOND}; {remedy}."


BEYOND = f"more than chance gives (t-test at {100 * LEVEL:g}%)"


def describe_doubt(num_steps: int, finding: str) -> str:
    """Why nothing is advised: too few steps, or a finding of so many that may be chance."""
    if num_steps < MIN_STEPS:
        return f"{format_count(num_steps, 'step')} after the warm-up: too few to judge, {MIN_STEPS} are needed"
    return f"in {format_count(num_steps, 'step')} {finding} (t-test at {100 * LEVEL:g}%)"
