"""The small files of a run folder beside the records: run.json (what the run is) and outcome.json (how it ended).

run.json holds the RunInfo of rank 0 for the newest part of the run and the list of all parts: a resumed run adds a part.
outcome.json appears when the run ends and goes away when it is resumed, so a run without it is going on or was killed. A rank
other than 0 that fails writes an outcome of its own, outcome-rank-00003.json: rank 0 may be killed before it can tell.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from mats_ds.core.files import write_json
from mats_ds.events import RunInfo
from mats_ds.metering.records import SCHEMA
from mats_ds.parsing import parse_json

RUN_FILE = "run.json"
OUTCOME_FILE = "outcome.json"
FINISHED = "finished"
PLAIN_TYPES = {"int": int, "float": (int, float), "str": str, "bool": bool}


@dataclass(frozen=True)
class RunPart:
    """One start or resume of the run: how many ranks it had, when and how it was started. `first_step` is that of its first
    record, RunInfo.first_step + 1: steps are counted from 1 in records."""

    first_step: int
    world_size: int
    started: str
    command: str


@dataclass(frozen=True)
class RunFile:
    """run.json: `info` of the newest part and all `parts`, oldest first."""

    info: RunInfo
    parts: tuple[RunPart, ...]

    def world_size_at(self, step: int) -> int:
        """Ranks that had to do `step`: those of the newest part that began at or before it."""
        for part in reversed(self.parts):
            if part.first_step <= step:
                return part.world_size
        return self.info.world_size


@dataclass(frozen=True)
class Outcome:
    """How a run ended on `rank`: "finished", or the reason why it stopped early. `last_step` is None where no step was done.
    Where memory ran out, `advice` says what to lower, and `snapshot` is the file with the allocator's state ("" without one).
    """

    outcome: str
    last_step: int | None
    unix_seconds: float
    rank: int = 0
    advice: str = ""
    snapshot: str = ""


def write_run(run_dir: str | Path, info: RunInfo) -> RunFile:
    """Write run.json; on a resume the parts before are kept. Removes the outcome of an earlier part."""
    path = Path(run_dir) / RUN_FILE
    try:
        parts = read_run(run_dir).parts
    except ValueError:  # none yet, or one that nobody could read anyway
        parts = ()
    part = RunPart(info.first_step + 1, info.world_size, info.started, info.command)
    run = RunFile(info, (*parts, part))
    write_atomically(path, {"schema": SCHEMA, **asdict(info), "parts": [asdict(each) for each in run.parts]})
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
    if not isinstance(parts, list):
        raise ValueError(f"{path}: parts is a list, got {parts!r}")
    return RunFile(info=build_from(RunInfo, tree, path), parts=tuple(build_from(RunPart, part, path) for part in parts))


def write_outcome(run_dir: str | Path, outcome: Outcome) -> None:
    """Write the outcome of a rank: outcome.json for rank 0."""
    name = f"outcome-rank-{outcome.rank:05d}.json" if outcome.rank else OUTCOME_FILE
    write_atomically(Path(run_dir) / name, {"schema": SCHEMA, **asdict(outcome)})


def read_outcome(run_dir: str | Path) -> Outcome | None:
    """How the run ended; of several ranks that failed, the first, which took the others down. None while it goes on, or where
    it was killed.

    Raises ValueError where a file cannot be read.
    """
    outcomes = [build_from(Outcome, read_object(path), path) for path in _outcome_files(run_dir)]
    failed = [outcome for outcome in outcomes if outcome.outcome != FINISHED]
    finished = [outcome for outcome in outcomes if outcome.rank == 0 and outcome.outcome == FINISHED]
    return finished[0] if finished else min(failed, key=lambda outcome: outcome.unix_seconds, default=None)


def _outcome_files(run_dir: str | Path) -> list[Path]:
    folder = Path(run_dir)
    return [path for path in (folder / OUTCOME_FILE, *sorted(folder.glob("outcome-rank-*.json"))) if path.exists()]


def write_atomically(path: Path, tree: dict[str, Any]) -> None:
    """A reader sees the old file or the new one, never half of one. The folder must be there."""
    write_json(path, tree, durable=True)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object of a file. Raises ValueError that says what is wrong with it."""
    try:
        tree = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path.parent} is not a run folder: it has no {path.name}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(tree).__name__}")
    return tree


def build_from(kind: type[Any], tree: Any, path: Path) -> Any:
    """A dataclass from the keys that it knows. Raises ValueError where one that it needs is missing or of another type."""
    if not isinstance(tree, dict):
        raise ValueError(f"{path} is not of this version: expected an object, got {tree!r}")
    known = {field.name: str(field.type) for field in fields(kind) if field.name in tree}
    wrong = [name for name, declared in known.items() if not _fits(tree[name], declared)]
    if wrong:
        raise ValueError(f"{path} is not of this version: {', '.join(wrong)} of another type")
    try:
        return kind(**{name: tree[name] for name in known})
    except TypeError as error:
        raise ValueError(f"{path} is not of this version: {error}") from None


def _fits(value: Any, declared: str) -> bool:
    """Whether a value is of a declared type, as far as that is a plain one."""
    kind, _, optional = declared.partition(" | ")
    return isinstance(value, PLAIN_TYPES.get(kind, object)) or (optional == "None" and value is None)
