"""plan.json, the forecast beside a run's records: written before a run, read by its report.

One rank's memory by kind is named as in metering/device_memory.py, so that planned and measured
bytes stand side by side.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from mats_ds.core.limits import MAX_BYTES, show
from mats_ds.core.run_dir import build_from, read_object
from mats_ds.core.storage.files import write_json

PLAN_FILE = "plan.json"
MEASURED_FILE = "plan-measured.json"
PLAN_SCHEMA = 1


@dataclass(frozen=True)
class Plan:
    """A forecast for one rank of `world_size`. None: not forecast.

    `bytes_by_kind` add up to the peak of a GPU's used memory; `memory_error` is the fraction by
    which the planner was measured to be off. FLOPs are of one clip, forward and backward;
    `step_seconds` of one optimizer step of all ranks together; `hours` and `joules_per_clip` as in
    a budget. `saved_bytes`: what a micro-batch keeps for backward, a part of the peak.
    `assumptions` are sentences for a reader.
    """

    world_size: int
    micro_batch: int
    bytes_by_kind: dict[str, int]
    model_flops_per_clip: int
    hardware_flops_per_clip: int
    device_name: str = ""
    memory_error: float | None = None
    clips_per_second: float | None = None
    step_seconds: float | None = None
    mfu: float | None = None
    hours: float | None = None
    joules_per_clip: float | None = None
    saved_bytes: int | None = None
    assumptions: tuple[str, ...] = field(default=())

    @property
    def peak_bytes(self) -> int:
        return sum(self.bytes_by_kind.values())


def write_plan(run_dir: str | Path, plan: Plan) -> Path:
    """Write plan.json into a run folder; returns its path."""
    path = Path(run_dir) / PLAN_FILE
    write_json(path, {"schema": PLAN_SCHEMA, **asdict(plan)}, durable=True)
    return path


def read_plan(run_dir: str | Path) -> Plan | None:
    """The plan of a run folder, None where it has none. Keys that this version does not know are
    ignored.

    Raises ValueError where the file cannot be read.
    """
    path = Path(run_dir) / PLAN_FILE
    if not os.path.lexists(path):
        return None
    tree = read_object(path)
    schema = tree.get("schema", PLAN_SCHEMA)
    if not isinstance(schema, int) or schema > PLAN_SCHEMA:
        raise ValueError(f"{path} has schema {show(schema)}, but this version reads up to {PLAN_SCHEMA}: update mats_ds")
    kinds = tree.get("bytes_by_kind", {})
    if not isinstance(kinds, dict) or not all(type(size) is int for size in kinds.values()):
        raise ValueError(f"{path}: bytes_by_kind maps kinds of memory to integers, got {show(kinds)}")
    plan = build_from(Plan, tree, path)
    return replace(plan, assumptions=tuple(plan.assumptions))


def write_measured(run_dir: str | Path, *, saved_bytes: int) -> Path:
    """Write the bytes that rank 0's first forward pass kept for backward; returns the file's
    path."""
    path = Path(run_dir) / MEASURED_FILE
    write_json(path, {"schema": PLAN_SCHEMA, "saved_bytes": saved_bytes}, durable=True)
    return path


def read_measured_saved_bytes(run_dir: str | Path) -> int | None:
    """The bytes that `write_measured` wrote, None where nothing was measured. Raises ValueError for
    an unreadable file."""
    path = Path(run_dir) / MEASURED_FILE
    if not os.path.lexists(path):
        return None
    saved_bytes = read_object(path).get("saved_bytes")
    if type(saved_bytes) is not int or not 0 <= saved_bytes <= MAX_BYTES:
        raise ValueError(f"{path}: saved_bytes is an integer number of bytes, got {show(saved_bytes)}")
    return saved_bytes
