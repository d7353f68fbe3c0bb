"""The small files of a run folder beside the records: run.json (what the run is) and outcome.json
(how it ended).

run.json holds the RunInfo of rank 0 for the newest part of the run and the list of all parts: a
resumed run adds a part. outcome.json appears when the run ends and goes away when it is resumed, so
a run without it is going on or was killed. A rank other than 0 that fails writes an outcome of its
own, outcome-rank-00003.json: rank 0 may be killed before it can write its own.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import Any

from mats_ds import __version__
from mats_ds.core.checkpoint_files import CHECKPOINTS, examine, is_checkpoint, list_checkpoints, step_of_name
from mats_ds.core.events import RunInfo
from mats_ds.core.limits import MAX_RANKS, find_fault, show
from mats_ds.core.storage.documents import parse_json
from mats_ds.core.storage.file_kind import not_a
from mats_ds.core.storage.files import read_bytes, write_json
from mats_ds.core.text import quote_word

RUN_FILE = "run.json"
OUTCOME_FILE = "outcome.json"
RECIPE_FILE, DS_CONFIG_FILE = "recipe.yaml", "ds_config.json"  # as the run uses them
FINISHED = "finished"
MAX_FILE_BYTES = 4 * 2**20  # a part of a run takes about 500
MAX_PARTS = 10_000
SHOWN_FAULTS = 5
# 2 added the fields after peak_rss_bytes, all of which may be missing; older records still read
SCHEMA = 2
PACKAGES = ("torch", "deepspeed", "timm", "av", "nvidia-dali-cuda130", "nvidia-dali-cuda120", "numpy", "pydantic", "nvidia-ml-py")
OUTCOME_OF_RANK = re.compile(r"outcome-rank-[0-9]{5}\.json")


@dataclass(frozen=True)
class RunPart:
    """One start or resume of the run: how many ranks it had, when and how it was started.
    `first_step` is that of its first record, RunInfo.first_step + 1: steps are counted from 1 in
    records."""

    first_step: int
    world_size: int
    started: str
    command: str


@dataclass(frozen=True)
class RunFile:
    """run.json: `info` of the newest part and all `parts`, oldest first."""

    info: RunInfo
    parts: tuple[RunPart, ...]


@dataclass(frozen=True)
class Outcome:
    """The end of a run on `rank`: "finished", or the reason why it stopped early. `last_step` is
    None where no step was done. Where memory ran out, `advice` says what to lower, and `snapshot`
    is the file with the allocator's state ("" without one).
    """

    outcome: str
    last_step: int | None
    unix_seconds: float
    rank: int = 0
    advice: str = ""
    snapshot: str = ""


def write_run(run_dir: str | Path, info: RunInfo) -> RunFile:
    """Write run.json; on a resume the parts before are kept. Removes the outcome of an earlier
    part."""
    path = Path(run_dir) / RUN_FILE
    try:
        parts = read_run(run_dir).parts
    except ValueError:  # none yet, or an unreadable one
        parts = ()
    part = RunPart(info.first_step + 1, info.world_size, info.started, info.command)
    run = RunFile(info, (*parts, part))
    write_json(path, {"schema": SCHEMA, **asdict(info), "parts": [asdict(part) for part in run.parts]}, durable=True)
    for path in _outcome_files(run_dir):
        path.unlink(missing_ok=True)
    return run


def read_run(run_dir: str | Path) -> RunFile:
    """run.json of a run folder. Keys that this version does not know are ignored.

    Raises ValueError where there is none or where it cannot be read.
    """
    path = Path(run_dir) / RUN_FILE
    tree = read_object(path)
    parts = tree.get("parts", [])
    if not isinstance(parts, list) or len(parts) > MAX_PARTS:
        got = f"{len(parts):,}" if isinstance(parts, list) else show(parts)
        raise ValueError(f"{path}: parts is a list of at most {MAX_PARTS:,}, got {got}")
    return RunFile(info=build_from(RunInfo, tree, path), parts=tuple(build_from(RunPart, part, path) for part in parts))


def write_outcome(run_dir: str | Path, outcome: Outcome) -> None:
    """Write the outcome of a rank: outcome.json for rank 0."""
    name = f"outcome-rank-{outcome.rank:05d}.json" if outcome.rank else OUTCOME_FILE
    write_json(Path(run_dir) / name, {"schema": SCHEMA, **asdict(outcome)}, durable=True)


def read_outcome(run_dir: str | Path) -> Outcome | None:
    """The end of the run; of several ranks that failed, the first, which took the others down. None
    while it goes on, or where it was killed.

    Raises ValueError where a file cannot be read.
    """
    outcomes = [build_from(Outcome, read_object(path), path) for path in _outcome_files(run_dir)]
    failed = [outcome for outcome in outcomes if outcome.outcome != FINISHED]
    finished = [outcome for outcome in outcomes if outcome.rank == 0 and outcome.outcome == FINISHED]
    return finished[0] if finished else min(failed, key=lambda outcome: outcome.unix_seconds, default=None)


def describe_standing(run_dir: str | Path) -> str:
    """What of a run was saved, and the options that go on with it: for whatever ends it early.

    Only sizes are checked: sums would take minutes of a run that has seconds to end. A resume
    checks the sums, and takes the checkpoint before a damaged one.
    """
    folder = Path(run_dir)
    resume = resume_options(folder)
    try:
        finished = [path for path in list_checkpoints(folder / CHECKPOINTS) if is_checkpoint(path)]
        newest = next((path for path in finished if examine(path, with_sums=False).problem is None), None)
    except OSError as error:  # the disk or its permissions may be what ended the run
        return f"what is saved cannot be seen now ({error.strerror or error}); once it can, go on with {resume}"
    if newest is not None:
        return f"step {step_of_name(newest.name):,} was written in full, go on with {resume}"
    if finished:
        return f"none of the checkpoints in {folder / CHECKPOINTS} is whole, begin again with another --out"
    return f"no step is saved, start again with {resume}, from the first step"


def resume_options(run_dir: str | Path) -> str:
    """The options that go on with this run, for a shell."""
    return f"--resume auto --out {quote_word(run_dir)}"


def _outcome_files(run_dir: str | Path) -> list[Path]:
    folder = Path(run_dir)
    of_ranks = (path for path in folder.glob("outcome-rank-*.json") if OUTCOME_OF_RANK.fullmatch(path.name))
    return [path for path in (folder / OUTCOME_FILE, *sorted(of_ranks)[:MAX_RANKS]) if path.exists() or path.is_symlink()]


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object of a file of a run folder, which may be another program's.

    Raises ValueError that names what is wrong with it: a link or a pipe, too long, no JSON, no
    object.
    """
    try:
        content = read_bytes(path, max_bytes=MAX_FILE_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{not_a('run folder', path.parent)}: it has no {path.name}{_name_run_in(path.parent)}") from None
    try:
        tree = parse_json(content.decode("utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(tree).__name__}")
    return tree


def _name_run_in(folder: Path) -> str:
    """ "; give a run in it, such as runs/k400", for the folder above some runs; else empty."""
    inside = sorted(path.parent for path in folder.glob(f"*/{RUN_FILE}")) if folder.is_dir() else []
    return f"; give a run in it, such as {quote_word(inside[-1])}" if inside else ""


def build_from(kind: type[Any], tree: Any, path: Path) -> Any:
    """A dataclass from those keys of a tree that it knows. Raises ValueError where one that it
    needs is missing, of another type, or a number that no run has.
    """
    if not isinstance(tree, dict):
        raise ValueError(f"{path} is not of this version: expected an object, got {show(tree)}")
    known = {field.name: str(field.type) for field in fields(kind) if field.name in tree}
    faults = [fault for name, declared in known.items() if (fault := find_fault(name, tree[name], declared))]
    if faults:
        raise ValueError(f"{path} is not of this version: {'; '.join(faults[:SHOWN_FAULTS])}")
    try:
        return kind(**{name: tree[name] for name in known})
    except TypeError as error:
        raise ValueError(f"{path} is not of this version: {error}") from None


def collect_versions() -> dict[str, str]:
    """Versions of everything that a result depends on, and the commit where there is one."""
    versions = {"mats_ds": __version__, "python": platform.python_version(), "platform": platform.platform()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    commit = _commit(Path(__file__).resolve().parents[2])
    if commit:
        versions["commit"] = commit
    return versions


def _commit(root: Path) -> str | None:
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}{' with uncommitted changes' if changed else ''}"


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", os.fspath(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
