"""Which ranks lack which steps: the parts of a run and the steps that were recorded -> words."""

from __future__ import annotations

from report_ranks import RankFigures, Span

from mats_ds.metering.run_files import Outcome, RunFile

# Records of step k are written when step k+1 arrives, so a run killed right after saving a checkpoint and resumed from it
# can lack the records of the steps just before the resume. That is no fault of the run.
STEPS_LOST_BY_A_KILL = 2


def find_missing(run: RunFile, outcome: Outcome | None, span: Span, ranks: list[RankFigures]) -> tuple[str, ...]:
    """One sentence a rank that owes steps."""
    last_steps = [rank.last_step for rank in ranks if rank.last_step is not None]
    # While a run goes on its ranks are a step or two apart; once it has ended every rank owes the last step.
    last_step = min(last_steps) if outcome is None else max(span.last_step, outcome.last_step or 0)
    owed = _steps_owed(run, last_step)
    got = {rank.rank: rank.got for rank in ranks}
    missing = []
    for rank in sorted(owed):
        gaps = _subtract(owed[rank], got.get(rank, []))
        if not got.get(rank):
            missing.append(f"rank {rank} has no records")
        elif gaps:
            missing.append(f"rank {rank} lacks {_name_steps(gaps)}")
    return tuple(missing)


def _steps_owed(run: RunFile, last_step: int) -> dict[int, list[tuple[int, int]]]:
    """The stretches of steps of which each rank must have a record; a resumed run may have another number of ranks."""
    owed: dict[int, list[tuple[int, int]]] = {}
    for place, part in enumerate(run.parts):
        later = [other.first_step for other in run.parts[place + 1 :]]
        end_step = min([last_step, *(first - 1 - STEPS_LOST_BY_A_KILL for first in later)])
        if part.first_step <= end_step:
            for rank in range(part.world_size):
                owed.setdefault(rank, []).append((part.first_step, end_step))
    return owed


def _subtract(owed: list[tuple[int, int]], got: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Stretches of `owed` that `got` (ascending) does not cover."""
    gaps = []
    for first, last in owed:
        for got_first, got_last in got:
            if got_last < first or got_first > last:
                continue
            if got_first > first:
                gaps.append((first, got_first - 1))
            first = got_last + 1
        if first <= last:
            gaps.append((first, last))
    return gaps


def _name_steps(gaps: list[tuple[int, int]]) -> str:
    num = sum(last - first + 1 for first, last in gaps)
    names = [str(first) if first == last else f"{first} to {last}" for first, last in gaps[:5]]
    more = f" and {len(gaps) - 5} more stretches" if len(gaps) > 5 else ""
    return f"{num} step{'s' if num > 1 else ''}: {', '.join(names)}{more}"
