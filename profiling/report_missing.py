"""Which ranks lack which steps: the parts of a run and the steps that were recorded -> words."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

from report_ranks import RankFigures, Span

from mats_ds.metering.run_files import Outcome, RunFile

# Records of step k are written when step k+1 arrives, so a run killed right after saving a checkpoint and resumed from it
# can lack the records of the steps just before the resume. That is no fault of the run.
STEPS_LOST_BY_A_KILL = 2
NUM_NAMED = 5
Stretch = tuple[int, int]  # the first and the last step


def find_missing(run: RunFile, outcome: Outcome | None, span: Span, ranks: list[RankFigures]) -> tuple[str, ...]:
    """One sentence a rank that lacks some steps, and one for each row of ranks that have none."""
    last_steps = [rank.last_step for rank in ranks if rank.last_step is not None]
    # While a run goes on its ranks are a step or two apart; once it has ended every rank owes the last step.
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
    """The stretches of steps that were to be recorded, in ascending order, and the number of ranks that had to do it; a resumed
    run may have another number of ranks."""
    firsts = [part.first_step for part in run.parts]
    later = [*accumulate(firsts[:0:-1], min)][::-1]  # of each part but the last: the least first step of those after it
    ends = [min(last_step, first - 1 - STEPS_LOST_BY_A_KILL) for first in later] + [last_step]
    parts = zip(run.parts, ends, strict=False)  # a run.json without parts has no end either
    return [((part.first_step, end), part.world_size) for part, end in parts if part.first_step <= end]


def _subtract(owed: Sequence[Stretch], got: Sequence[Stretch]) -> list[Stretch]:
    """Stretches of `owed` that `got` does not cover; both in ascending order."""
    gaps, place = [], 0
    for first, last in owed:
        while place < len(got) and got[place][1] < first:
            place += 1
        at = place
        while at < len(got) and got[at][0] <= last:
            if got[at][0] > first:
                gaps.append((first, got[at][0] - 1))
            first = got[at][1] + 1
            at += 1
        place = max(place, at - 1)  # the last one may reach into the next stretch
        if first <= last:
            gaps.append((first, last))
    return gaps


def _list_rows(numbers: Sequence[int]) -> list[Stretch]:
    """Ascending numbers as rows of neighbours."""
    breaks = [place for place, (left, right) in enumerate(pairwise(numbers), start=1) if right != left + 1]
    bounds = [0, *breaks, len(numbers)] if numbers else []
    return [(numbers[start], numbers[stop - 1]) for start, stop in pairwise(bounds)]


def _name_steps(gaps: list[Stretch]) -> str:
    num = sum(last - first + 1 for first, last in gaps)
    names = [str(first) if first == last else f"{first} to {last}" for first, last in gaps[:NUM_NAMED]]
    more = f" and {len(gaps) - NUM_NAMED} more stretches" if len(gaps) > NUM_NAMED else ""
    return f"{num} step{'s' if num > 1 else ''}: {', '.join(names)}{more}"
