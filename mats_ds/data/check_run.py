"""Manifest -> CheckResult, a manifest of the readable files with what each really holds, and the list of the bad ones.

Every file is decoded once, however many rows name it. Outcomes are appended to a journal beside `out` as they come, so that a
check that was stopped goes on where it was, and a later one decodes only files that are new or changed (size or time of
modification). `out` and `quarantine` appear at once, when all files are done.
"""

from __future__ import annotations

import csv
import dataclasses
import fcntl
import io
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from mats_ds.data.check import FileFacts
from mats_ds.data.check_workers import Outcome, check_files, facts_from_json
from mats_ds.data.manifest import Manifest
from mats_ds.data.probe import describe_error
from mats_ds.data.terminal import why_not_utf8

JOURNAL_VERSION = 3  # counted up when facts of an older check can no longer be used
FACT_COLUMNS = tuple(
    field.name for field in dataclasses.fields(FileFacts) if field.name not in ("start_seconds", "end_seconds", "warnings")
)
COLUMNS = ("path", "label", "start", "end", *FACT_COLUMNS, "warnings")
BAD_COLUMNS = ("path", "label", "reason")
SAVE_SECONDS = 30.0
SAME_TIME_SECONDS = 1e-6  # as the loader compares
Identity = tuple[int, int]  # bytes, time of modification in nanoseconds


@dataclass(frozen=True)
class BadRow:
    """A row of the manifest that cannot be used, and why."""

    path: str
    label: int
    reason: str


@dataclass(frozen=True)
class CheckResult:
    """facts: of the readable files, by path. bad: rows in quarantine. num_decoded: files decoded now, the rest was known."""

    facts: dict[str, FileFacts]
    bad: list[BadRow]
    num_rows: int
    num_decoded: int
    wall_seconds: float


def check_manifest(
    manifest: Manifest,
    *,
    out: str | os.PathLike[str],
    quarantine: str | os.PathLike[str],
    num_workers: int,
    resume: bool = True,
    timeout_seconds: float = 300.0,
    root: str | os.PathLike[str] | None = None,
    on_done: Callable[[int, int, int], None] = lambda num_done, num_files, num_bad: None,
) -> CheckResult:
    """Check all files of a manifest in `num_workers` processes and write `out` and `quarantine`.

    A file is given up when no frame of it comes for `timeout_seconds`. Without `resume` everything is decoded again. Paths
    are written relative to `root` where given (and the file below it), else absolute. `on_done` is called after each file.
    Raises ValueError for unusable arguments, RuntimeError when no worker can start. When it is interrupted, the journal is
    whole and no process is left.
    """
    if num_workers < 1:
        raise ValueError(f"a check needs at least 1 worker, got {num_workers}")
    if not timeout_seconds > 0:
        raise ValueError(f"the time limit is a number of seconds above 0, got {timeout_seconds}")
    out, quarantine = Path(out), Path(quarantine)
    if out.resolve() == quarantine.resolve():
        raise ValueError(f"the manifest and the quarantine would both be written to {out}: give two names")
    for target in (out, quarantine):
        _make_room(target)
    began_seconds = time.monotonic()
    outcomes: dict[str, Outcome] = {}
    waiting: list[str] = []
    with _open_journal(journal_path(out), resume) as (journal, known):
        identities: dict[str, Identity] = {}
        for path in dict.fromkeys(manifest.paths):
            try:
                identities[path] = _identify(path)
            except (OSError, ValueError) as error:
                outcomes[path] = Outcome(path, None, describe_error(error))
                continue
            before = known.get(path)
            if before and before[0] == identities[path]:
                outcomes[path] = before[1]
            else:
                waiting.append(path)
        num_files = len(outcomes) + len(waiting)
        num_bad = sum(outcome.facts is None for outcome in outcomes.values())
        on_done(len(outcomes), num_files, num_bad)
        saved_seconds = time.monotonic()
        # Closed at once when we are interrupted: its workers must not wait for the garbage collector.
        with closing(check_files(waiting, num_workers=num_workers, timeout_seconds=timeout_seconds)) as arriving:
            for outcome in arriving:
                journal.write(_journal_line(outcome, identities[outcome.path]))
                journal.flush()
                if time.monotonic() - saved_seconds > SAVE_SECONDS:
                    os.fsync(journal.fileno())
                    saved_seconds = time.monotonic()
                outcomes[outcome.path] = outcome
                num_bad += outcome.facts is None
                on_done(len(outcomes), num_files, num_bad)
    rows, bad = _sort_rows(manifest, outcomes, None if root is None else Path(root))
    _write_csv(out, COLUMNS, rows)
    _write_csv(quarantine, BAD_COLUMNS, [(row.path, row.label, row.reason) for row in bad])
    facts = {path: outcomes[path].facts for path in dict.fromkeys(manifest.paths) if outcomes[path].facts is not None}
    return CheckResult(facts, bad, len(manifest), len(waiting), time.monotonic() - began_seconds)


def _make_room(target: Path) -> None:
    """See to it, before hours of decoding, that a file can be written there."""
    if target.is_dir():
        raise ValueError(f"{target} is a folder: give the name of a .csv file")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot make the folder of {target}: {describe_error(error)}") from None
    if not os.access(target.parent, os.W_OK):
        raise ValueError(f"{target} cannot be written: give a name in a folder of yours")


def journal_path(out: str | os.PathLike[str]) -> Path:
    """Where the outcomes are kept: `m.csv` -> `m.csv.journal`."""
    return Path(f"{os.fspath(out)}.journal")


def _identify(path: str) -> Identity:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


@contextmanager
def _open_journal(path: Path, resume: bool) -> Iterator[tuple[TextIO, dict[str, tuple[Identity, Outcome]]]]:
    """The journal, opened for appending, and what it knows already. Raises ValueError while another check writes it."""
    with open(path, "a+", encoding="utf-8") as journal:
        try:
            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another check is writing {path}: wait for it, or give another --out") from None
        except OSError:  # a file system without locks
            pass
        if not resume:
            journal.truncate(0)
        journal.seek(0)
        lines = journal.read().split("\n")
        if lines[-1]:  # the last line was torn
            journal.write("\n")
        yield journal, _read_journal(lines)


def _read_journal(lines: list[str]) -> dict[str, tuple[Identity, Outcome]]:
    """The last outcome of each file that can be used again; torn lines and those of older versions are passed over."""
    known: dict[str, tuple[Identity, Outcome]] = {}
    for line in lines:
        try:
            entry = json.loads(line)
            if entry["version"] != JOURNAL_VERSION:
                continue
            facts = None if entry["facts"] is None else facts_from_json(entry["facts"])
            outcome = Outcome(entry["path"], facts, entry["problem"], entry["again"])
            identity = (entry["bytes"], entry["mtime_ns"])
        except (ValueError, KeyError, TypeError):
            continue
        known.pop(outcome.path, None)
        if not outcome.again:
            known[outcome.path] = identity, outcome
    return known


def _journal_line(outcome: Outcome, identity: Identity) -> str:
    num_bytes, mtime_ns = identity
    entry = {"version": JOURNAL_VERSION, "bytes": num_bytes, "mtime_ns": mtime_ns} | dataclasses.asdict(outcome)
    return json.dumps(entry) + "\n"


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
            reason = _part_problem(facts, start, end)
        if facts is None or reason:
            bad.append(BadRow(written, int(label), reason))
            continue
        told = [_cell(getattr(facts, name)) for name in FACT_COLUMNS]
        rows.append((written, int(label), _seconds_cell(start), _seconds_cell(end), *told, "; ".join(facts.warnings)))
    return rows, bad


def _usable_part(facts: FileFacts, first: float, last: float) -> tuple[float, float]:
    """What the row asks for, less what does not decode; nan where there is no limit."""
    start, end = facts.start_seconds, facts.end_seconds
    return (
        first if start is None else start if math.isnan(first) else max(first, start),
        last if end is None else end if math.isnan(last) else min(last, end),
    )


def _part_problem(facts: FileFacts, start: float, end: float) -> str:
    begins = 0.0 if math.isnan(start) else start
    first_frame = facts.first_frame_seconds
    last_frame = first_frame + facts.duration_seconds - 1 / facts.fps
    if begins > last_frame + SAME_TIME_SECONDS or end <= first_frame + SAME_TIME_SECONDS or end <= begins:
        until = "the end" if math.isnan(end) else f"{end:g} s"
        is_early = end <= first_frame + SAME_TIME_SECONDS
        nearest = f"the first one is at {first_frame:.3f} s" if is_early else f"the last one is at {last_frame:.3f} s"
        return f"no frame decodes between {begins:g} s and {until}; {nearest}"
    return ""


def _written_path(path: str, root: Path | None) -> str:
    if root is not None:
        relative = os.path.relpath(path, root)
        if relative.split(os.sep)[0] != os.pardir:
            return relative
    return os.path.abspath(path)


def _name_problem(path: str) -> str:
    """Why a manifest cannot hold this path, if it cannot."""
    if path != path.strip() or "\r" in path:
        return "its name begins or ends with a space, or holds a line break: rename it"
    return why_not_utf8(path) or ""


def _cell(value: object) -> object:
    if isinstance(value, bool):
        return int(value)
    return f"{value:.6g}" if isinstance(value, float) else value


def _seconds_cell(seconds: float) -> str:
    return "" if math.isnan(seconds) else f"{seconds:.6f}".rstrip("0").rstrip(".")


def _write_csv(path: Path, columns: tuple[str, ...], rows: list[tuple]) -> None:
    """Written aside and renamed, so that nobody sees half a file."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with open(aside, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        file.write(text.getvalue())
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
