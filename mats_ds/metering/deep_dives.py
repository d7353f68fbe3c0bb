"""The options --trace and --memory_snapshot of every script that trains, and the observers that they ask for."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mats_ds.events import Observer
from mats_ds.metering.snapshots import MemorySnapshot
from mats_ds.metering.tracing import StepTrace

if TYPE_CHECKING:
    import torch


def add_deep_dive_options(parser: argparse.ArgumentParser) -> None:
    """Two switches and the number of steps for both."""
    parser.add_argument(
        "--trace", action="store_true", help="write a trace of some steps (torch's profiler, for ui.perfetto.dev) into RUN/traces"
    )
    parser.add_argument(
        "--memory_snapshot",
        action="store_true",
        help="write every GPU allocation of some steps (for pytorch.org/memory_viz) into RUN/memory_snapshots",
    )
    parser.add_argument("--trace_steps", type=_whole_number, default=3, metavar="N", help="how many steps (default: %(default)s)")


def make_deep_dives(options: argparse.Namespace, run_dir: Path, device: torch.device) -> list[Observer]:
    """The observers that the options ask for; none unless asked."""
    observers: list[Observer] = []
    if options.trace:
        observers.append(StepTrace(run_dir, device, num_steps=options.trace_steps))
    if options.memory_snapshot:
        observers.append(MemorySnapshot(run_dir, device, num_steps=options.trace_steps))
    return observers


def _whole_number(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of steps of at least 1, got {text!r}")
    return int(text)
