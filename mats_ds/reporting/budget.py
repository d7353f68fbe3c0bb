"""A hardware budget, and whether a run was within it.

A budget file is JSON: name, gpus, memory_per_gpu_bytes, and optionally hours (of the entire run),
joules_per_clip and a note.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from mats_ds.core.format import format_bytes, format_count, format_figure
from mats_ds.core.limits import MAX_INTEGER, MAX_NAME, MAX_RANKS, show
from mats_ds.core.run_dir import FINISHED
from mats_ds.core.storage.documents import parse_strict_json
from mats_ds.core.storage.file_kind import describe_file, not_a
from mats_ds.core.storage.files import read_bytes
from mats_ds.core.text import did_you_mean
from mats_ds.reporting.scope import KILLED, RUNNING, STOPPED, find_scope

SILENCE_SECONDS, SILENT_STEPS = 600, 20  # a checkpoint or an evaluation may take that long
MAX_BUDGET_BYTES = 2**16
MAX_LIMIT = 1e15  # of hours and joules
SHOWN_CHARACTERS, SHOWN_MISTAKES = 500, 10


@dataclass(frozen=True)
class Budget:
    """The limits of a run. None: no limit."""

    name: str
    gpus: int
    memory_per_gpu_bytes: int
    hours: float | None = None
    joules_per_clip: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Measured:
    """Figures that a budget judges. `memory_bytes` is the peak of the rank that used most.
    `missing`: sentences on ranks or steps without a record. `outcome` None: the run has not ended,
    or was killed; `silent_seconds` is the age of its last record. `hours` are of the entire run,
    projected where it is not over. None elsewhere: not measured.
    """

    num_ranks: int
    num_steps: int
    memory_bytes: int
    memory_rank: int
    on_gpu: bool
    missing: tuple[str, ...]
    outcome: str | None
    last_loss_is_finite: bool = True
    hours: float | None = None
    joules_per_clip: float | None = None
    outcome_rank: int = 0
    last_step: int | None = None
    silent_seconds: float | None = None
    step_seconds: float | None = None
    device_name: str = ""
    device_memory_bytes: int | None = None

    @property
    def ran_out_of_memory(self) -> bool:
        return "outofmemory" in first_line(self.outcome or "").lower().replace(" ", "")

    @property
    def state(self) -> str:
        """ "finished", "running", "killed" (or it hangs), or "stopped" early."""
        if self.outcome is not None:
            return FINISHED if self.outcome == FINISHED else STOPPED
        patience = SILENCE_SECONDS + SILENT_STEPS * (self.step_seconds or 0)
        return KILLED if self.silent_seconds is not None and self.silent_seconds > patience else RUNNING


@dataclass(frozen=True)
class Check:
    """One question of the verdict. `passed` None: it could not be judged, for the reason in
    `text`."""

    name: str
    passed: bool | None
    text: str


@dataclass(frozen=True)
class Verdict:
    """Passed if no check failed. `headline` is one sentence with the result of every check, or of
    the failed ones. `qualifier` and `caveats`: how the run's hardware differs from the budget's
    (scope.py). `state`: whether the run has ended, and how."""

    passed: bool
    headline: str
    checks: tuple[Check, ...]
    qualifier: str = ""
    caveats: tuple[str, ...] = ()
    state: str = FINISHED

    @property
    def is_about_the_budget(self) -> bool:
        """Whether the run used the hardware that the budget describes."""
        return not self.caveats

    @property
    def is_waiting(self) -> bool:
        """Whether nothing is wrong but that the run still goes on."""
        return self.state == RUNNING and all(check.passed is not False or check.name == "outcome" for check in self.checks)

    @property
    def lines(self) -> tuple[str, ...]:
        marks = {True: "ok", False: "FAIL", None: "not judged"}
        checks = (f"{marks[check.passed]:10} {check.name}: {check.text}" for check in self.checks)
        return (*checks, *(f"{'but':10} {caveat}" for caveat in self.caveats))


def load_budget(source: str | Path, *, folder: str | Path | None = None) -> Budget:
    """The budget of a JSON file, or of a name (without .json) in `folder`.

    Raises ValueError with what is wrong and how to fix it.
    """
    path = _find(source, None if folder is None else Path(folder))
    if describe_file(path) not in (None, "a JSON file", "a text file", "an empty file"):
        raise ValueError(f"{not_a('budget', path)}: give a JSON file with name, gpus, memory_per_gpu_bytes, or a known name")
    content = read_bytes(path, max_bytes=MAX_BUDGET_BYTES, follows_links=True)
    try:
        tree = parse_strict_json(content.decode("utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: a budget is a JSON object with name, gpus, memory_per_gpu_bytes; got {type(tree).__name__}")
    tree.setdefault("name", path.stem)
    mistakes = _find_mistakes(tree)
    if mistakes:
        raise ValueError(f"{path}: " + "; ".join(mistakes))
    return Budget(**tree)


def judge(measured: Measured, budget: Budget) -> Verdict:
    """Compare a run with a budget. A run that has not finished, misses records, or diverged does
    not pass."""
    checks = [
        _judge_memory(measured, budget),
        _judge_ranks(measured, budget),
        _judge_records(measured),
        _judge_outcome(measured),
    ]
    if not measured.last_loss_is_finite:
        checks.append(Check("loss", False, "the last recorded loss is not a finite number: the run diverged"))
    if budget.hours is not None:
        checks.append(_judge_limit("hours of the whole run", measured.hours, budget.hours, "no step was timed"))
    if budget.joules_per_clip is not None:
        checks.append(_judge_limit("joules per clip", measured.joules_per_clip, budget.joules_per_clip, "no power was measured"))
    passed = all(check.passed is not False for check in checks)
    scope = find_scope(
        budget_name=budget.name,
        gpus=budget.gpus,
        memory_per_gpu_bytes=budget.memory_per_gpu_bytes,
        num_ranks=measured.num_ranks,
        on_gpu=measured.on_gpu,
        device_name=measured.device_name,
        device_memory_bytes=measured.device_memory_bytes,
    )
    if passed:
        start = f"the run is within the budget {budget.name}" + (f", but measured {scope.qualifier}" if scope.qualifier else "")
        if not measured.on_gpu:
            start = f"on a CPU, which says nothing about the GPUs of {budget.name}"
        headline = f"{start}: {'; '.join(check.text for check in checks)}"
    else:
        headline = "; ".join(f"{check.name}: {check.text}" for check in checks if check.passed is False)
        memory = checks[0]
        if memory.passed and measured.on_gpu and not measured.ran_out_of_memory:
            where = f" (measured {scope.qualifier})" if scope.qualifier else ""
            headline += f"; memory was within the budget {budget.name}{where}: {memory.text}"
    return Verdict(passed, headline, tuple(checks), scope.qualifier, scope.caveats, measured.state)


def _judge_memory(measured: Measured, budget: Budget) -> Check:
    fraction = measured.memory_bytes / budget.memory_per_gpu_bytes
    peak = f"the worst rank ({measured.memory_rank}) peaked at {format_bytes(measured.memory_bytes)}"
    limit = format_bytes(budget.memory_per_gpu_bytes)
    text = f"{peak}, {100 * fraction:.1f}% of the {limit} of a GPU"
    text += ", before the allocation that failed" if measured.ran_out_of_memory else ""
    if not measured.on_gpu:
        beyond = "" if fraction <= 1 else f", more than the {limit} that the budget allows a rank"
        text = f"{peak}{beyond}; this is host memory, the RSS of each rank's process with its libraries, as no GPU was used"
    return Check("memory", fraction <= 1, text)


def _judge_ranks(measured: Measured, budget: Budget) -> Check:
    ranks, gpus = format_count(measured.num_ranks, "rank"), format_count(budget.gpus, "GPU")
    text = f"{ranks} for {gpus}" if measured.on_gpu else f"{ranks} on a CPU, where the budget has {gpus}"
    return Check("ranks", measured.num_ranks <= budget.gpus, text)


def _judge_records(measured: Measured) -> Check:
    if measured.missing:
        return Check("records", False, "; ".join(measured.missing))
    whose = "on every rank" if measured.num_ranks > 1 else ""
    steps = f"all {measured.num_steps:,} steps" if measured.num_steps > 1 else "the only step"
    return Check("records", True, f"{steps} recorded {whose}".rstrip())


def _judge_outcome(measured: Measured) -> Check:
    if measured.outcome is None:
        return Check("outcome", False, _describe_silence(measured))
    if measured.outcome == FINISHED:
        return Check("outcome", True, "the run finished")
    rank = f" on rank {measured.outcome_rank}" if measured.outcome_rank else ""
    step = "" if measured.last_step is None else f" after step {measured.last_step:,}"
    return Check("outcome", False, f"the run stopped early{rank}{step}: {first_line(measured.outcome)}")


def first_line(outcome: str) -> str:
    """The first line of an outcome, which may be as long as an error text."""
    line = (outcome.strip().splitlines() or ["no reason was recorded"])[0]
    return line if len(line) <= SHOWN_CHARACTERS else f"{line[:SHOWN_CHARACTERS]} ... ({len(line):,} characters)"


def _describe_silence(measured: Measured) -> str:
    """A sentence on a run without an outcome: one without a record for long is not running any
    more."""
    silent_seconds = measured.silent_seconds
    if silent_seconds is None:
        return "the run has not ended: it is still going on, or was killed"
    age = f"{silent_seconds:.0f} s" if silent_seconds < 120 else f"{silent_seconds / 60:.0f} min"
    age = age if silent_seconds < 7200 else f"{silent_seconds / 3600:.1f} h"
    record = "its last record" + ("" if measured.last_step is None else f", of step {measured.last_step:,},") + f" is {age} old"
    if measured.state == KILLED:
        return f"the run did not end by itself: it was killed or hangs; {record}"
    return f"the run has not ended: it is still going on, or was killed; {record}"


def _judge_limit(name: str, figure: float | None, limit: float, why_not: str) -> Check:
    if figure is None:
        return Check(name, None, f"not judged against {limit:g}, as {why_not}")
    return Check(name, figure <= limit, f"{format_figure(figure)} {name} of {limit:g} allowed")


def _find(source: str | Path, folder: Path | None) -> Path:
    path = Path(source)
    if path.is_file():
        return path
    names = sorted(file.stem for file in folder.glob("*.json")) if folder is not None else []
    if str(source) in names:
        return folder / f"{source}.json"
    if path.exists():
        raise ValueError(f"{not_a('budget', path)}: give a JSON file or one of {', '.join(names)}")
    known = f" or one of {', '.join(names)}" if names else ""
    raise ValueError(f"no budget at {source}: give a JSON file{known}{did_you_mean(path.stem, names)}")


def _find_mistakes(tree: dict) -> list[str]:
    names = [field.name for field in fields(Budget)]
    mistakes = []
    for key in tree:
        if key not in names:
            hint = did_you_mean(key, names) or f"; keys: {', '.join(names)}"
            name = key if key.isprintable() and len(key) < SHOWN_CHARACTERS else show(key)
            mistakes.append(f"{name} is not a key of a budget{hint}")
    for key, greatest in (("gpus", MAX_RANKS), ("memory_per_gpu_bytes", MAX_INTEGER)):
        value = tree.get(key)
        if type(value) is not int or not 1 <= value <= greatest:
            got = f"got {show(value)}" if key in tree else "it is missing"
            most = f" and at most {greatest:,}" if type(value) is int and value > greatest else ""
            mistakes.append(f"{key} is an integer above 0{most}, {got}")
    for key in ("hours", "joules_per_clip"):
        value = tree.get(key)
        if value is not None and (type(value) not in (int, float) or not 0 < value <= MAX_LIMIT):
            mistakes.append(f"{key} is a number above 0 (at most {MAX_LIMIT:g}) or left out, got {show(value)}")
    for key in ("name", "note"):
        value = tree.get(key, "")
        if not isinstance(value, str) or len(value) > MAX_NAME:
            mistakes.append(f"{key} is a text of at most {MAX_NAME:,} characters, got {show(value)}")
    return mistakes[:SHOWN_MISTAKES]
