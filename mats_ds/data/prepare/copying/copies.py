"""A manifest -> a folder of training copies, or segments, with its own manifest: parallel,
resumable, the originals untouched.

    OUT/manifest.csv   path,label,start,end of the copies, paths relative to OUT
    OUT/failed.csv     path,reason of every original that has no copy, only if there is one
    OUT/partial.csv    path,reason of every original that breaks off and was copied up to there,
                       only if there is one
    OUT/copies.jsonl   one line a finished file: what a later run need not do again
                       (copy_journal.py)

A file is done again only if it (file_identity.py) or the settings differ from that line, or a copy
is gone.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from mats_ds.core.format import format_bytes, format_count
from mats_ds.core.terminal import why_not_utf8
from mats_ds.data.manifest import COLUMNS, Manifest, show_seconds
from mats_ds.data.prepare.copying.copy_journal import open_copy_journal
from mats_ds.data.prepare.copying.copy_plan import (
    PlannedCopy,
    check_out_folder,
    check_space,
    estimate_bytes,
    plan_copies,
)
from mats_ds.data.prepare.copying.copy_settings import CopySettings
from mats_ds.data.prepare.copying.copy_task import CopyOutcome, CopyTask, copy_one
from mats_ds.data.prepare.copying.decode_speed import DecodeSpeed, measure_decode_speed
from mats_ds.data.prepare.copying.segment import check_seconds
from mats_ds.data.prepare.file_identity import identify
from mats_ds.data.prepare.worker_pool import Failure, run_tasks
from mats_ds.data.video.indexing import describe_read_error

logger = logging.getLogger(__name__)

MANIFEST, FAILED, PARTIAL = "manifest.csv", "failed.csv", "partial.csv"
REASON_HEADER = ("path", "reason")
FORMAT_VERSION = 3  # counted up when copies of an older program are no longer right
CUT_VERSION = 2  # of segments, whose packets are the original's
MIN_TIMEOUT_SECONDS = 1.0


@dataclass(frozen=True)
class CopySummary:
    """Result of a run. source_bytes, copied_bytes: of the files that have a copy. speed None: not
    measured."""

    num_files: int
    num_copied: int
    num_reused: int
    num_pieces: int
    failed: dict[str, str]
    partial: dict[str, str]
    source_bytes: int
    copied_bytes: int
    manifest: Path
    speed: DecodeSpeed | None

    def lines(self) -> Iterator[str]:
        """The lines of the summary."""
        reused = f" ({self.num_reused:,} from an earlier run)" if self.num_reused else ""
        pieces = f" as {format_count(self.num_pieces, 'segment')}" if self.num_pieces != self.num_copied else ""
        yield f"{self.num_copied:,} of {format_count(self.num_files, 'file')} copied{reused}{pieces}"
        if self.source_bytes:
            fraction = self.copied_bytes / self.source_bytes
            yield f"bytes: {format_bytes(self.source_bytes)} -> {format_bytes(self.copied_bytes)} ({fraction:.2f} x)"
        if self.speed:
            yield (
                f"expected speed-up of decoding on a CPU: {self.speed.ratio:.1f} x (median of "
                f"{format_count(self.speed.num_files, 'file')}, "
                f"a clip of 16 frames, stride 4: {self.speed.original_ms:.0f} -> {self.speed.copy_ms:.0f} CPU ms)"
            )
        for path, problem in self.partial.items():
            yield f"kept in part: {path}: {problem}"
        for path, reason in self.failed.items():
            yield f"failed: {path}: {reason}"
        yield f"manifest: {self.manifest}"


def make_copies(
    manifest: Manifest,
    out: str | os.PathLike[str],
    *,
    base: Path | None = None,
    scanned: Path | None = None,
    sources: Sequence[str | os.PathLike[str]] = (),
    settings: CopySettings | None = None,
    segment_seconds: float | None = None,
    reencode: bool = False,
    keep_partial: bool = False,
    num_workers: int = 1,
    timeout_seconds: float = 300.0,
    on_done: Callable[[int, int, int], None] = lambda num_done, num_files, num_failed: None,
) -> CopySummary:
    """Copy every file of the manifest into `out`, in the same folders as below `base`.

    `scanned`: the folder that the manifest was read from, if it was one; `sources`: the files,
    which are never written. With `segment_seconds` the files are cut instead, without re-encoding;
    `reencode` transcodes those that cannot be cut as they are. A file that breaks off is copied up
    to there if no row of the manifest goes beyond (a check of the videos writes such rows), or in
    any case with `keep_partial`. One whose frames do not come for `timeout_seconds` is given up.
    `on_done` is called after each file.
    Raises ValueError, with no copy written, when `out` or the disk's room is not fit for it, and
    where a file that this did not write would be lost.
    """
    out, settings = Path(out), settings or CopySettings()
    if num_workers < 1:
        raise ValueError(f"--workers is at least 1, got {num_workers}")
    if not timeout_seconds >= MIN_TIMEOUT_SECONDS:
        raise ValueError(f"--timeout is at least {MIN_TIMEOUT_SECONDS:g} s without a frame, got {timeout_seconds}")
    if segment_seconds is not None:
        check_seconds(segment_seconds)
    check_out_folder(out, scanned=scanned)
    planned = plan_copies(manifest, out, base=base)
    version = CUT_VERSION if segment_seconds is not None and not reencode else FORMAT_VERSION
    kind = {"version": version, **asdict(settings), "segment_seconds": segment_seconds, "reencode": reencode}
    needed_seconds = _needed_seconds(manifest)
    with open_copy_journal(out, kind) as journal:
        for name, header in ((MANIFEST, COLUMNS), (FAILED, REASON_HEADER), (PARTIAL, REASON_HEADER)):
            journal.check_table(out / name, header, sources=sources)
        journal.remove_leftovers(planned)
        outcomes = {
            copy.source: done
            for copy in planned
            if (done := journal.find(copy, keep_partial=keep_partial, needed_seconds=needed_seconds[copy.source])) is not None
        }
        if num_others := sum(map(journal.is_other_kind, planned)):
            named = format_count(num_others, "copy")
            logger.info("made again: %s in %s of other settings, or of an earlier version of this command", named, out)
        num_reused = sum(bool(outcome.pieces) for outcome in outcomes.values())
        identities = {}
        for copy in planned:
            if copy.source not in outcomes:
                try:
                    identities[copy.source] = identify(copy.source)
                except (OSError, ValueError) as error:
                    outcomes[copy.source] = CopyOutcome(copy.source, (), describe_read_error(error))
            if problem := why_not_utf8(copy.source):  # neither journal nor manifest could hold it
                outcomes[copy.source] = CopyOutcome(copy.source, (), problem)
        remaining = [copy for copy in planned if copy.source not in outcomes]
        publishers = journal.make_publishers(remaining, is_cut=segment_seconds is not None)
        check_space(out, _needed_bytes(remaining, settings, segment_seconds))
        tasks = [
            CopyTask(
                copy.source,
                copy.target,
                settings,
                segment_seconds,
                reencode,
                keep_partial,
                needed_seconds[copy.source],
                publishers[copy.source],
            )
            for copy in remaining
        ]
        num_failed = sum(not outcome.pieces for outcome in outcomes.values())
        on_done(len(outcomes), len(planned), num_failed)
        try:
            # Closed at once when we are interrupted: its workers must not wait for the garbage
            # collector.
            with closing(run_tasks(copy_one, tasks, num_workers=num_workers, timeout_seconds=timeout_seconds)) as results:
                for task, result in results:
                    if isinstance(result, Failure):
                        task.publisher.remove_parts(Path(task.target).parent)
                    outcome = CopyOutcome(task.source, problem=result.reason) if isinstance(result, Failure) else result
                    outcomes[task.source] = outcome
                    if outcome.pieces:
                        journal.add(outcome, identities[task.source], needed_seconds=needed_seconds[task.source])
                    num_failed += not outcome.pieces
                    on_done(len(outcomes), len(planned), num_failed)
        finally:
            journal.remove_leftovers(remaining)  # of workers that were killed
        problems = {copy.source: outcomes[copy.source].problem for copy in planned}
        failed = {source: problem for source, problem in problems.items() if not outcomes[source].pieces}
        partial = {source: problem for source, problem in problems.items() if problem and outcomes[source].pieces}
        rows, lost = _carry_rows(manifest, outcomes, out.absolute(), is_cut=segment_seconds is not None)
        journal.write_table(out / MANIFEST, COLUMNS, rows, even_empty=True)
        journal.write_table(out / FAILED, REASON_HEADER, [*failed.items(), *lost])
        journal.write_table(out / PARTIAL, REASON_HEADER, [*partial.items()])
    pieces = {source: outcome.pieces for source, outcome in outcomes.items() if outcome.pieces}
    pairs = [(source, made[0].path) for source, made in pieces.items()] if segment_seconds is None else []
    return CopySummary(
        num_files=len(planned),
        num_copied=len(pieces),
        num_reused=num_reused,
        num_pieces=sum(len(made) for made in pieces.values()),
        failed=failed | {path: reason for path, reason in lost if path not in failed},
        partial=partial,
        source_bytes=sum(copy.source_bytes for copy in planned if copy.source in pieces),
        copied_bytes=sum(piece.num_bytes for made in pieces.values() for piece in made),
        manifest=out / MANIFEST,
        speed=measure_decode_speed(pairs),
    )


def _needed_seconds(manifest: Manifest) -> dict[str, float]:
    """For every file the time beyond which no row of the manifest uses it, infinity where one uses
    it to its end."""
    needed: dict[str, float] = {}
    for path, last in zip(manifest.paths, manifest.last_seconds_S.tolist(), strict=True):
        source = os.path.abspath(path)
        needed[source] = max(needed.get(source, 0.0), math.inf if math.isnan(last) else last)
    return needed


def _needed_bytes(planned: Sequence[PlannedCopy], settings: CopySettings, segment_seconds: float | None) -> int:
    if segment_seconds is not None:
        return sum(copy.source_bytes for copy in planned)
    return estimate_bytes(planned, settings)


def _carry_rows(
    manifest: Manifest, outcomes: dict[str, CopyOutcome], out: Path, *, is_cut: bool
) -> tuple[list[tuple], list[tuple[str, str]]]:
    """The rows of the new manifest, on the clocks of the copies, and (path, reason) of rows that
    hold no frame of any."""
    rows, lost = [], []
    for path, label, start, end in zip(
        manifest.paths, manifest.label_S, manifest.first_seconds_S, manifest.last_seconds_S, strict=True
    ):
        pieces = outcomes[os.path.abspath(path)].pieces
        carried = []
        for piece in pieces:
            times = piece.time_range(start, end) if is_cut else piece.moved_range(start, end)
            if times is not None:
                carried.append((os.path.relpath(piece.path, out), "" if label < 0 else int(label), *map(show_seconds, times)))
        if pieces and not carried:
            lost.append((os.path.abspath(path), f"no frame between {show_seconds(start) or 0} s and {show_seconds(end)} s"))
        rows += carried
    return rows, lost
