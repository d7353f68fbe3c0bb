"""Latency of exported classifiers on a CPU: what token selection saves when a model runs.

    python benchmarks/export_latency.py [--sizes small base] [--threads 1 2] [--rounds 7]
        [--out benchmarks/results]

The classifier of 400 classes on clips of 16 x 224 x 224, batch 1, float32, with 0.3, 0.5 and all of
the tokens kept: as PyTorch runs it (eager), as the torch.export program of `mats convert --to
export`, and as the ONNX file of `--to onnx` in onnxruntime. Selection is inside in all of them.
Weights are random and the clip is noise: shapes are fixed, so the arithmetic is that of any clip.
All take turns in every round, and after one round that is not counted, what is shown is the median
over the rounds and the median of the ratio to the dense model of the same kind in the same round.
With one thread the time is CPU time, which other programs on the machine do not add to; with more
it is the clock's.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from mats_ds.core.storage.files import write_text
from mats_ds.exporting.network import list_costs
from mats_ds.exporting.programs.network_program import INPUT, example_frames
from mats_ds.exporting.programs.write import export_program, make_program
from mats_ds.models.classifier import VideoClassifier
from mats_ds.models.weights.load import load_model, weights_of
from mats_ds.models.weights.model_weights import Weights

KEEP_RATIOS = (0.3, 0.5, 1.0)
NUM_CLASSES = 400
KINDS = {"eager": "PyTorch eager", "export": "torch.export", "onnx": "onnxruntime"}
PACKAGES = ("torch", "onnxruntime", "onnx", "onnxscript")


@dataclass
class Timing:
    """Seconds of one clip in every round, of one kind of program that keeps `keep_ratio` of the
    tokens. `difference`: of its logits from the eager model's, the largest."""

    kind: str
    keep_ratio: float
    gmacs: float
    difference: float
    seconds: list[float] = field(default_factory=list)


def measure(size: str, *, threads: int, rounds: int, folder: Path) -> list[Timing]:
    """All programs of a model size, in turn."""
    torch.manual_seed(0)
    model = VideoClassifier.from_name(size, num_classes=NUM_CLASSES, keep_ratio=KEEP_RATIOS[0]).eval()
    weights = weights_of(model, "random weights")
    frames = example_frames(make_program(weights, keep_ratio=None)[0], batch=1)
    programs: list[tuple[Timing, Callable[[], torch.Tensor]]] = []
    for ratio in KEEP_RATIOS:
        runners = make_runners(weights, frames, keep_ratio=ratio, threads=threads, folder=folder)
        expected = runners["eager"]()
        for kind, run in runners.items():
            difference = float((run() - expected).abs().max() / expected.abs().max())
            programs.append((Timing(kind, ratio, list_costs(weights.spec)[ratio], difference), run))
    clock = time.process_time if threads == 1 else time.perf_counter
    for number in range(rounds + 1):
        for timing, run in programs:
            start = clock()
            run()
            if number:  # the first warms up
                timing.seconds.append(clock() - start)
        print(f"ViT-{size}, {threads} thread(s): round {number} of {rounds}", file=sys.stderr, flush=True)
    return [timing for timing, _ in programs]


def make_runners(
    weights: Weights, frames: torch.Tensor, *, keep_ratio: float, threads: int, folder: Path
) -> dict[str, Callable[[], torch.Tensor]]:
    """One clip's logits, by kind of program."""
    import onnxruntime

    model = load_model(weights, keep_ratio=keep_ratio, visible_ratio=keep_ratio)
    for target, name in (("export", "x.pt2"), ("onnx", "x.onnx")):
        export_program(folder / name, weights, target=target, keep_ratio=keep_ratio, batch=1)
    program = torch.export.load(folder / "x.pt2").module()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(folder / "x.onnx", options, providers=["CPUExecutionProvider"])
    frames_of_numpy = frames.numpy()
    return {
        "eager": lambda: without_gradient(model, frames),
        "export": lambda: without_gradient(program, frames)[0],
        "onnx": lambda: torch.from_numpy(session.run(["logits"], {INPUT: frames_of_numpy})[0]),
    }


@torch.no_grad()
def without_gradient(program: Callable[[torch.Tensor], torch.Tensor], frames: torch.Tensor) -> torch.Tensor:
    return program(frames)


def ratio_to_dense(timing: Timing, timings: list[Timing]) -> float:
    """Median over the rounds of its time over that of all tokens, of the same kind in the same
    round."""
    dense = next(other for other in timings if other.kind == timing.kind and other.keep_ratio == 1)
    return statistics.median(mine / all_ for mine, all_ in zip(timing.seconds, dense.seconds, strict=True))


def table_of(timings: list[Timing]) -> list[str]:
    """A Markdown table, one line for each program."""
    lines = [
        "| program | tokens kept | GMACs | of all tokens | ms a clip, median | fastest to slowest | of all tokens |",
        "|---" * 7 + "|",
    ]
    dense_gmacs = next(timing.gmacs for timing in timings if timing.keep_ratio == 1)
    for timing in timings:
        ms = [1e3 * seconds for seconds in timing.seconds]
        lines.append(
            f"| {KINDS[timing.kind]} | {timing.keep_ratio:g} | {timing.gmacs:.3g} | {timing.gmacs / dense_gmacs:.2f} | "
            f"{statistics.median(ms):.0f} | {min(ms):.0f} to {max(ms):.0f} | {ratio_to_dense(timing, timings):.2f} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", nargs="+", default=["small"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="folder of the page and its numbers")
    options = parser.parse_args()
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    lines = [
        f"# Latency of exported classifiers, {time.strftime('%Y-%m-%d')}",
        "",
        f"`python benchmarks/export_latency.py --sizes {' '.join(options.sizes)} "
        f"--threads {' '.join(map(str, options.threads))} "
        f"--rounds {options.rounds}`; {platform.machine()}, CPU, float32, batch 1, 16 x 224 x 224, Python "
        f"{platform.python_version()}, {versions}. Programs take turns; the last column is the median over the rounds of "
        "the time over that of all tokens in the same kind of program. One thread: CPU time; more: the clock's. "
        "The page is written by the program.",
    ]
    found: dict[str, list[dict]] = {}
    for size in options.sizes:
        for threads in options.threads:
            torch.set_num_threads(threads)
            with tempfile.TemporaryDirectory() as folder:
                timings = measure(size, threads=threads, rounds=options.rounds, folder=Path(folder))
            found[f"{size}, {threads}"] = [asdict(timing) for timing in timings]
            worst = max(timing.difference for timing in timings)
            heading = f"## ViT-{size[0].upper()}, {threads} thread{'s' if threads > 1 else ''}"
            lines += ["", heading, "", *table_of(timings)]
            lines += ["", f"Logits differ from the eager model's by at most {worst:.1e} of the largest."]
            if options.out:  # after every table: a run that is cut short keeps what it has
                name = f"export-latency-{time.strftime('%Y-%m-%d')}"
                write_text(options.out / f"{name}.md", "\n".join(lines) + "\n")
                write_text(options.out / f"{name}.json", json.dumps(found, indent=1) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
