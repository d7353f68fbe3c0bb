"""A manifest -> a folder of tar shards with its own manifest: parallel, resumable, the originals
untouched.

    OUT/shard-000000.tar         the files, in the manifest's order
    OUT/shard-000000.tar.index   where each lies in it, with its SHA-256
    OUT/manifest.csv             path,label,start,end; paths are `shard-000000.tar#file`
    OUT/manifest.csv.classes.txt the names of the classes, where they are known
    OUT/failed.csv               path,reason of every file that is in no shard, only if there is one
    OUT/packed.jsonl             one line a finished shard: what a later run need not do again

A shard is written again only if its files (names, sizes, times) differ from that line, or it is
gone or changed.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from mats_ds.core.format import format_bytes, format_count
from mats_ds.core.shards.table import index_path
from mats_ds.core.storage.files import refuse_wrong_kind
from mats_ds.core.storage.folder_lock import release_folder
from mats_ds.core.storage.output_folder import hold_output_folder
from mats_ds.data.classes import NAMES_SUFFIX
from mats_ds.data.manifest import COLUMNS, Manifest, show_seconds
from mats_ds.data.prepare.copying.copy_plan import check_space
from mats_ds.data.prepare.journal import open_journal, read_entries
from mats_ds.data.prepare.packing.pack_plan import COMMAND, JOURNAL, PackPlan, PlannedShard, check_out_folder, plan_shards
from mats_ds.data.prepare.packing.pack_shard import ShardOutcome, ShardTask, is_intact, pack_one
from mats_ds.data.prepare.publishing import Publisher
from mats_ds.data.prepare.worker_pool import Failure, run_tasks
from mats_ds.data.prepare.written_files import RECORD, WrittenFiles

MANIFEST, FAILED = "manifest.csv", "failed.csv"
REASON_HEADER = ("path", "reason")
TIMEOUT_SECONDS = 300.0


@dataclass(frozen=True)
class PackSummary:
    """Result of a run. num_reused: shards of an earlier run. failed: path -> reason."""

    num_files: int
    num_packed: int
    num_shards: int
    num_reused: int
    num_bytes: int
    failed: dict[str, str]
    manifest: Path

    def lines(self) -> Iterator[str]:
        """The lines of the summary."""
        reused = f" ({self.num_reused:,} from an earlier run)" if self.num_reused else ""
        shards = format_count(self.num_shards, "shard")
        files = format_count(self.num_files, "file")
        yield f"{self.num_packed:,} of {files} packed into {shards}{reused}, {format_bytes(self.num_bytes)}"
        for path, reason in self.failed.items():
            yield f"failed: {path}: {reason}"
        yield f"manifest: {self.manifest}"


def make_shards(
    manifest: Manifest,
    out: str | os.PathLike[str],
    *,
    shard_bytes: int,
    base: Path | None = None,
    scanned: Path | None = None,
    sources: Sequence[str | os.PathLike[str]] = (),
    class_names: Sequence[str] = (),
    num_workers: int = 1,
    timeout_seconds: float = TIMEOUT_SECONDS,
    on_done: Callable[[int, int, int], None] = lambda num_done, num_files, num_failed: None,
) -> PackSummary:
    """Pack every file of the manifest into shards in `out`.

    `scanned`: the folder that the manifest was read from, if it was one; `sources`: the files,
    which are never written. `class_names`: in the order of the labels, written beside the manifest.
    `on_done` is called after each shard, with numbers of files. Raises ValueError, with nothing
    written, when `out` or the disk's room is not fit for it, and where a file that this did not
    write would be lost.
    """
    out = Path(out)
    if num_workers < 1:
        raise ValueError(f"--workers is at least 1, got {num_workers}")
    check_out_folder(out, scanned=scanned)
    plan = plan_shards(manifest, out, shard_bytes=shard_bytes, base=base)
    tables = {out / MANIFEST: COLUMNS, out / FAILED: REASON_HEADER, out / f"{MANIFEST}{NAMES_SUFFIX}": ()}
    with _open_folder(out) as (journal, files):
        for path, header in tables.items():
            files.check_table(path, header, sources=sources)
        _remove_parts(out, files)
        outcomes = _find_finished(plan, journal.lines)
        num_reused = len(outcomes)
        waiting = [shard for shard in plan.shards if shard.target not in outcomes]
        replaceable = _claim_names(waiting, files)
        fix = "or give --out another disk"
        check_space(out, sum(shard.num_bytes for shard in waiting), what="shards", fix=fix)
        tasks = [
            ShardTask(shard, Publisher(f"{Path(shard.target).stem}.{files.token}", str(files.record), replaceable))
            for shard in waiting
        ]
        digests = {shard.target: shard.digest for shard in plan.shards}
        num_files = plan.num_files + len(plan.missing)
        num_failed = len(plan.missing)
        num_done = num_failed + sum(outcome.num_files for outcome in outcomes.values())
        on_done(num_done, num_files, num_failed)
        try:
            with closing(run_tasks(pack_one, tasks, num_workers=num_workers, timeout_seconds=timeout_seconds)) as results:
                for task, result in results:
                    target = task.shard.target
                    outcome = ShardOutcome(target, problem=result.reason) if isinstance(result, Failure) else result
                    outcomes[target] = outcome
                    if outcome.num_files and not outcome.failed:
                        journal.add(json.dumps({"digest": digests[target], **asdict(outcome), "target": Path(target).name}))
                    num_failed += len(task.shard.files) if outcome.problem else len(outcome.failed or ())
                    num_done += len(task.shard.files)
                    on_done(num_done, num_files, num_failed)
        finally:
            _remove_parts(out, files)  # of workers that were killed
        failed = _gather_failures(plan, outcomes)
        files.write_table(out / MANIFEST, COLUMNS, _rows(manifest, plan, failed), even_empty=True)
        files.write_table(out / FAILED, REASON_HEADER, [*failed.items()])
        if class_names:
            files.write(out / f"{MANIFEST}{NAMES_SUFFIX}", "".join(f"{name}\n" for name in class_names))
        _remove_stale(out, plan, failed, files)
    made = [outcome for outcome in outcomes.values() if outcome.num_files]
    return PackSummary(
        num_files=num_files,
        num_packed=sum(outcome.num_files for outcome in made),
        num_shards=len(made),
        num_reused=num_reused,
        num_bytes=sum(outcome.num_bytes for outcome in made),
        failed=failed,
        manifest=out / MANIFEST,
    )


@contextlib.contextmanager
def _open_folder(out: Path):
    """The journal and the record of `out`; nobody else writes into it meanwhile."""
    hold_output_folder(out, command=COMMAND, bookkeeping=(JOURNAL, RECORD))
    try:
        refuse_wrong_kind(out / RECORD)
        with open_journal(out / JOURNAL, command="run") as journal:
            yield journal, WrittenFiles(out)
    finally:
        release_folder(out)


def _find_finished(plan: PackPlan, lines: list[str]) -> dict[str, ShardOutcome]:
    """The shards of an earlier run that still hold."""
    finished: dict[str, ShardOutcome] = {}
    wanted = {Path(shard.target).name: shard for shard in plan.shards}
    digests = {name: shard.digest for name, shard in wanted.items()}
    for entry in read_entries(lines):
        with contextlib.suppress(ValueError, KeyError, TypeError):  # a line that no run wrote
            name = entry["target"]
            shard = wanted[name]
            finished.pop(shard.target, None)
            count, num_bytes, modified_ns = entry["num_files"], entry["num_bytes"], entry["modified_ns"]
            if entry["digest"] == digests[name] and count == len(shard.files) and is_intact(shard.target, num_bytes, modified_ns):
                finished[shard.target] = ShardOutcome(shard.target, count, num_bytes, modified_ns)
    return finished


def _claim_names(waiting: Sequence[PlannedShard], files: WrittenFiles) -> frozenset[str]:
    """The files there that may be replaced. Raises ValueError where somebody else's has a name that
    is needed."""
    names = [name for shard in waiting for name in (shard.target, index_path(shard.target)) if os.path.lexists(name)]
    ours = frozenset(name for name in names if files.own.holds(name))
    if foreign := [name for name in names if name not in ours]:
        raise ValueError(
            f"{', '.join(foreign[:3])} would be overwritten, and is not as this command wrote it: move it away, "
            "or give another --out"
        )
    return ours


def _remove_parts(out: Path, files: WrittenFiles) -> None:
    for path in out.glob(f".shard-*.{files.token}.*.part"):
        path.unlink(missing_ok=True)


def _gather_failures(plan: PackPlan, outcomes: dict[str, ShardOutcome]) -> dict[str, str]:
    failed = dict(plan.missing)
    for shard in plan.shards:
        outcome = outcomes[shard.target]
        failed |= dict.fromkeys((file.source for file in shard.files), outcome.problem) if outcome.problem else {}
        failed |= outcome.failed or {}
    return failed


def _rows(manifest: Manifest, plan: PackPlan, failed: dict[str, str]) -> list[tuple]:
    """The rows of the new manifest, in the order of the old one."""
    path_of = {file.source: f"{Path(shard.target).name}#{file.name}" for shard in plan.shards for file in shard.files}
    columns = zip(manifest.paths, manifest.label_S.tolist(), manifest.first_seconds_S, manifest.last_seconds_S, strict=True)
    return [
        (path_of[source], "" if label < 0 else label, show_seconds(start), show_seconds(end))
        for path, label, start, end in columns
        if (source := os.path.abspath(path)) in path_of and source not in failed
    ]


def _remove_stale(out: Path, plan: PackPlan, failed: dict[str, str], files: WrittenFiles) -> None:
    """Remove shards of an earlier plan that the manifest names no more, if they are as we wrote
    them."""
    kept = {shard.target for shard in plan.shards if any(file.source not in failed for file in shard.files)}
    for path in sorted(out.absolute().glob("shard-*.tar")):
        if str(path) not in kept and files.own.holds(path):
            path.unlink()
            if files.own.holds(index_path(path)):
                Path(index_path(path)).unlink()
