"""The closed form against the real engine on every cell of the sweep: cells -> dry_run_sweep.json
-> deviations.

The file is made by `python profiling/plan.py --sweep --exact` (half an hour of a core) and read by
a test in milliseconds.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mats_ds.core.progress import TimeLeft
from mats_ds.core.storage.files import write_json
from mats_ds.core.storage.package_files import own_command
from mats_ds.planning.memory import plan_memory
from mats_ds.planning.sweep import SIZES, TASKS, Cell, work_of
from mats_ds.planning.workload import Workload

EXACT_FILE = Path(__file__).with_name("dry_run_sweep.json")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Judged:
    """One size, method and task at one micro-batch; peaks in bytes of a rank's tensors."""

    size: str
    method: str
    task: str
    micro_batch: int
    planned_bytes: int
    exact_bytes: int
    planned_saved_bytes: int
    exact_saved_bytes: int

    @property
    def deviation(self) -> float:
        """Planned over exact peak, less 1."""
        return self.planned_bytes / self.exact_bytes - 1


def measure_sweep(cells: list[Cell], base: Workload, ds_config: Mapping[str, Any], *, world_size: int) -> dict[str, Any]:
    """Run the engine at the micro-batch that was asked for and at the largest of each GPU; the tree
    of EXACT_FILE."""
    import deepspeed
    import torch

    from mats_ds.training.dry_run import measure_cached

    wanted = {(cell.task, cell.size, cell.method, micro) for cell in cells for micro in (cell.asked.micro_batch, cell.largest)}
    rows = []
    left = TimeLeft(len(wanted))
    for index, (task, size, method, micro) in enumerate(sorted(wanted)):
        if not micro:
            continue
        work = work_of(base, size=size, method=method, task=task)
        exact = measure_cached(work, ds_config, world_size=world_size, micro_batch=micro, accumulation=1)
        rows.append({"size": size, "method": method, "task": task, "micro_batch": micro, "bytes": asdict(exact)})
        done = index + 1, len(wanted), SIZES[size], method, task, micro, left.describe(index + 1, unit="cell")
        _log.info("%d of %d: ViT-%s %s %s, micro-batch %d; %s", *done)
    return {
        "torch": torch.__version__,
        "deepspeed": deepspeed.__version__,
        "world_size": world_size,
        "ds_config": ds_config,
        "recompute": base.recompute,
        "checkpoint_blocks": base.checkpoint_blocks,
        "cells": rows,
    }


def judge_sweep(tree: Mapping[str, Any], base: Workload) -> list[Judged]:
    """The planned memory beside every measured cell of a tree of `measure_sweep`."""
    judged = []
    for row in tree["cells"]:
        work = work_of(base, size=row["size"], method=row["method"], task=row["task"])
        plan = plan_memory(work, tree["ds_config"], world_size=tree["world_size"], micro_batch=row["micro_batch"])
        exact = row["bytes"]
        peak = max(exact[f"{part}_peak_bytes"] for part in ("forward", "backward", "optimizer"))
        where = {key: row[key] for key in ("size", "method", "task", "micro_batch")}
        judged.append(
            Judged(
                **where,
                planned_bytes=plan.peak_bytes,
                exact_bytes=peak,
                planned_saved_bytes=plan.activations.saved_bytes,
                exact_saved_bytes=exact["saved_bytes"],
            )
        )
    return judged


def format_judged(judged: list[Judged]) -> str:
    """A table of the largest deviation by size, method and task, in percent."""
    lines = [f"{'':12}{'MATS':>18}{'VideoMAE':>18}   largest deviation of the peak from the real engine on fake tensors"]
    for task in TASKS:
        for size in SIZES:
            texts = []
            for method in ("MATS", "VideoMAE"):
                deviations = [row.deviation for row in judged if (row.task, row.size, row.method) == (task, size, method)]
                texts.append(f"{100 * max(deviations, key=abs):+.2f}% of {len(deviations)}")
            lines.append(f"ViT-{SIZES[size]} {task[:8]:9}" + "".join(f"{text:>18}" for text in texts))
    return "\n".join(lines)


def write_exact_sweep(tree: Mapping[str, Any]) -> Path:
    """Write EXACT_FILE or, where that cannot be written (an installed package), a file of its name
    in the current folder."""
    path = EXACT_FILE if os.access(EXACT_FILE.parent, os.W_OK) else Path(EXACT_FILE.name)
    write_json(path, tree)
    return path


def read_exact_sweep(path: Path = EXACT_FILE) -> dict[str, Any]:
    """Raises ValueError where the file is missing."""
    if not path.is_file():
        raise ValueError(f"there is no {path}: make it with  {own_command('plan', '--sweep', '--exact')}")
    return json.loads(path.read_text(encoding="utf-8"))
