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

NUM_STEPS = 3


def add_deep_dive_options(parser: argparse.ArgumentParser) -> None:
    """The two options; each takes a number of steps, or none."""
    what = {
        "--trace": "write a trace of N steps (torch's profiler, for ui.perfetto.dev) into RUN/traces",
        "--memory_snapshot": "write every GPU allocation of N steps (for pytorch.org/memory_viz) into RUN/memory_snapshots",
    }
    for option, text in what.items():
        words = f"{text} (default N: {NUM_STEPS})"
        parser.add_argument(option, nargs="?", type=_whole_number, const=NUM_STEPS, metavar="N", help=words)


def make_deep_dives(options: argparse.Namespace, run_dir: Path, device: torch.device) -> list[Observer]:
    """The observers that the options ask for; none unless asked."""
    observers: list[Observer] = []
    if options.trace:
        observers.append(StepTrace(run_dir, device, num_steps=options.trace))
    if options.memory_snapshot:
        observers.append(MemorySnapshot(run_dir, device, num_steps=options.memory_snapshot))
    return observers


def _whole_number(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of steps of at least 1, got {text!r}: write =3, or the option last")
    return int(text)
