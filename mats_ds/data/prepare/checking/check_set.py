"""Manifest -> CheckResult, a manifest of the readable files with their measured properties, and the
list of the bad ones.

Every file is decoded once, however many rows name it. Outcomes are appended to a journal beside
`out` as they come, so that a check that was stopped goes on where it was, and a later one decodes
only files that are new or changed (size or time of modification). `out` and `quarantine` appear at
once, when all files are done.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from mats_ds.core.terminal import why_not_utf8
from mats_ds.data.manifest import Manifest, show_seconds
from mats_ds.data.prepare.checking.check_file import FileFacts, Outcome, check_one
from mats_ds.data.prepare.checking.check_journal import CheckJournal, journal_path, open_check_journal
from mats_ds.data.prepare.checking.check_tables import BAD_COLUMNS, CheckTables
from mats_ds.data.prepare.file_identity import FileIdentity, identify, is_same_file, with_sample
from mats_ds.data.prepare.worker_pool import Failure, run_tasks
from mats_ds.data.video.indexing import describe_read_error
from mats_ds.data.video.judgement import describe_empty_range

__all__ = ["BAD_COLUMNS", "COLUMNS", "BadRow", "CheckResult", "check_manifest", "journal_path"]

FACT_COLUMNS = tuple(
    field.name for field in dataclasses.fields(FileFacts) if field.name not in ("start_seconds", "end_seconds", "warnings")
)
COLUMNS = ("path", "label", "start", "end", *FACT_COLUMNS, "warnings")
SAME_TIME_SECONDS = 1e-6  # as the loader compares


@dataclass(frozen=True)
class BadRow:
    """A row of the manifest that cannot be used, and why."""

    path: str
    label: int
    reason: str


@dataclass(frozen=True)
class CheckResult:
    """facts: of the readable files, by path. bad: rows in quarantine. num_decoded: files decoded
    now, the rest was known.

    quarantine: the table of `bad`. kept: files that were in the way of the tables, by the names
    that they have now.
    """

    facts: dict[str, FileFacts]
    bad: list[BadRow]
    num_rows: int
    num_decoded: int
    wall_seconds: float
    quarantine: Path | None = None
    kept: tuple[Path, ...] = ()


def check_manifest(
    manifest: Manifest,
    *,
    out: str | os.PathLike[str],
    quarantine: str | os.PathLike[str] | None = None,
    num_workers: int,
    resume: bool = True,
    timeout_seconds: float = 300.0,
    root: str | os.PathLike[str] | None = None,
    sources: Sequence[str | os.PathLike[str]] = (),
    on_done: Callable[[int, int, int], None] = lambda num_done, num_files, num_bad: None,
) -> CheckResult:
    """Check all files of a manifest in `num_workers` processes and write `out` and `quarantine`.

    quarantine None: `quarantine.csv` beside `out`, or, where that is of something else,
    `OUT.quarantine.csv`. A file is given up when no frame of it comes for `timeout_seconds`.
    Without `resume` everything is decoded again. Paths are written relative to `root` where given
    (and the file below it), else absolute. sources: the files that the manifest was read from,
    which are never written, nor are its videos. `on_done` is called after each file.
    Raises ValueError for unusable arguments and where a file that this did not write would be lost,
    before anything is decoded; WorkersFailed when no worker can start. When it is interrupted, the
    journal is complete and no process is left.
    """
    if num_workers < 1:
        raise ValueError(f"--workers is at least 1, got {num_workers}")
    if not timeout_seconds > 0:
        raise ValueError(f"--timeout is a number of seconds above 0, got {timeout_seconds:g}")
    base = None if root is None else Path(root)
    tables = CheckTables(
        Path(out),
        None if quarantine is None else Path(quarantine),
        columns=COLUMNS,
        sources=sources,
        listed=manifest.paths,
        written_path=lambda path: _written_path(path, base),
    )
    tables.make_room()
    began_seconds = time.monotonic()
    with open_check_journal(journal_path(out)) as journal:
        tables.refuse_losses(journal)
        if not resume:
            journal.forget_outcomes()
        outcomes, waiting = _look_up(manifest.paths, journal)
        num_files = len(outcomes) + len(waiting)
        num_bad = sum(outcome.facts is None for outcome in outcomes.values())
        on_done(len(outcomes), num_files, num_bad)
        # Closed at once when we are interrupted: its workers must not wait for the garbage
        # collector.
        with closing(run_tasks(check_one, [*waiting], num_workers=num_workers, timeout_seconds=timeout_seconds)) as results:
            for path, result in results:
                outcome = Outcome(path, None, result.reason, again=True) if isinstance(result, Failure) else result
                journal.add(outcome, with_sample(outcome.path, waiting[outcome.path]))
                outcomes[outcome.path] = outcome
                num_bad += outcome.facts is None
                on_done(len(outcomes), num_files, num_bad)
        rows, bad = _sort_rows(manifest, outcomes, base)
        tables.write(journal, rows, [(row.path, row.label, row.reason) for row in bad])
    facts = {path: outcomes[path].facts for path in dict.fromkeys(manifest.paths) if outcomes[path].facts is not None}
    seconds = time.monotonic() - began_seconds
    return CheckResult(facts, bad, len(manifest), len(waiting), seconds, tables.written_quarantine, tuple(tables.kept))


def _look_up(paths: Sequence[str], journal: CheckJournal) -> tuple[dict[str, Outcome], dict[str, FileIdentity]]:
    """The outcomes that the journal has, and the identities of the files that must be decoded."""
    outcomes: dict[str, Outcome] = {}
    waiting: dict[str, FileIdentity] = {}
    for path in dict.fromkeys(paths):
        try:
            identity = identify(path)
        except (OSError, ValueError) as error:
            outcomes[path] = Outcome(path, None, describe_read_error(error))
            continue
        before = journal.known.get(path)
        if before and is_same_file(path, identity, before[0]):
            outcomes[path] = before[1]
        else:
            waiting[path] = identity
    return outcomes, waiting


def _sort_rows(manifest: Manifest, outcomes: dict[str, Outcome], root: Path | None) -> tuple[list[tuple], list[BadRow]]:
    """The rows of `out` and those in quarantine, in the manifest's order."""
    rows, bad = [], []
    columns = zip(manifest.paths, manifest.label_S, manifest.first_seconds_S, manifest.last_seconds_S, strict=True)
    for path, label, first, last in columns:
        outcome = outcomes[path]
        facts = outcome.facts
        written = _written_path(path, root)
        reason = outcome.problem or _name_problem(written)
        if facts is not None and not reason:
            start, end = _usable_part(facts, float(first), float(last))
            reason = "" if _holds_frames(facts, start, end) else _why_empty(facts, float(first), float(last))
        if facts is None or reason:
            bad.append(BadRow(written, int(label), reason))
            continue
        cells = [_cell(getattr(facts, name)) for name in FACT_COLUMNS]
        rows.append((written, int(label), show_seconds(start), show_seconds(end), *cells, "; ".join(facts.warnings)))
    return rows, bad


def _usable_part(facts: FileFacts, first: float, last: float) -> tuple[float, float]:
    """Start and end that the row asks for, less what does not decode; nan where there is no
    limit."""
    start, end = facts.start_seconds, facts.end_seconds
    return (
        first if start is None else start if math.isnan(first) else max(first, start),
        last if end is None else end if math.isnan(last) else min(last, end),
    )


def _holds_frames(facts: FileFacts, start: float, end: float) -> bool:
    """Whether a frame that can be used is shown between two moments; nan: no limit."""
    begins = 0.0 if math.isnan(start) else start
    is_late = begins > _last_frame_seconds(facts) + SAME_TIME_SECONDS
    return not (is_late or end <= facts.first_frame_seconds + SAME_TIME_SECONDS or end <= begins)


def _why_empty(facts: FileFacts, first: float, last: float) -> str:
    """The reason why no frame of the part that a row asks for can be used, as the loader has it."""
    if facts.damage:
        return facts.damage
    return describe_empty_range(
        begins=0.0 if math.isnan(first) else first,
        ends=None if math.isnan(last) else last,
        first=facts.first_frame_seconds,
        last=_last_frame_seconds(facts),
        is_before=last <= facts.first_frame_seconds + SAME_TIME_SECONDS,
    )


def _last_frame_seconds(facts: FileFacts) -> float:
    return facts.first_frame_seconds + facts.duration_seconds - 1 / facts.fps


def _written_path(path: str, root: Path | None) -> str:
    if root is not None:
        relative = os.path.relpath(path, root)
        if relative.split(os.sep)[0] != os.pardir:
            return relative
    return os.path.abspath(path)


def _name_problem(path: str) -> str:
    """The reason why a manifest cannot hold this path, empty if it can."""
    if path != path.strip() or "\r" in path:
        return "its name begins or ends with a space, or holds a line break: rename it"
    return why_not_utf8(path) or ""


def _cell(value: object) -> object:
    if isinstance(value, bool):
        return int(value)
    return f"{value:.6g}" if isinstance(value, float) else value
