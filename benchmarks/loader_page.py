"""The page of `loader.py`: measurements -> Markdown tables, JSON and a plot, and whether the goals
are met."""

from __future__ import annotations

import platform
import statistics
import time
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from mats_ds.core.storage.files import replace_file, write_json, write_text

ORIGINALS, COPIES = "H.264, GOP 250", "prepare.py transcode"
MODEL_FRACTION = 0.8  # of the loader's measured rate: what the model of the waiting test takes
GOAL_SAME_FILES, GOAL_COPIES, GOAL_WAITING = 1.8, 5.8, 0.05


@dataclass(frozen=True)
class Speed:
    """Of a loader: clips a second, and the CPU ms of a clip that the training process itself has to
    spend."""

    clips_per_second: float
    own_ms: float


@dataclass(frozen=True)
class Measured:
    """decoded, cropped: {set: {reader: CPU ms of each clip}}. speeds: {set: {loader: with each
    number of `workers`}}. waiting: of a training loop.
    num_bytes: of each set. missing: peers that are not installed.
    """

    decoded: dict[str, dict]
    cropped: dict[str, dict]
    workers: list[int]
    speeds: dict[str, dict[str, list[Speed]]]
    waiting: dict[str, float]
    num_bytes: dict[str, int]
    missing: list[str]


def medians_of(times: dict[str, dict]) -> dict[str, dict[str, float]]:
    return {name: {reader: statistics.median(row) for reader, row in by.items()} for name, by in times.items()}


def table_of(times: dict[str, dict]) -> list[str]:
    """Medians by set and reader; decord's time divided by ours: of the medians, of all clips
    together, median clip by clip."""
    readers = list(next(iter(times.values())))
    lines = [
        "| files | " + " | ".join(readers) + " | decord / mats_ds | all clips | clip by clip |",
        "|---" * (len(readers) + 4) + "|",
    ]
    for (name, row), by in zip(medians_of(times).items(), times.values(), strict=True):
        ratios = ["-"] * 3
        if "decord" in row:
            single = statistics.median(peer / ours for peer, ours in zip(by["decord"], by["mats_ds"], strict=True))
            together = sum(by["decord"]) / sum(by["mats_ds"])
            ratios = [f"{ratio:.2f}" for ratio in (row["decord"] / row["mats_ds"], together, single)]
        lines.append(f"| {name} | " + " | ".join([*(f"{row[reader]:.1f}" for reader in readers), *ratios]) + " |")
    return lines


def table_of_loaders(speeds: dict[str, dict[str, list[Speed]]], workers: list[int]) -> list[str]:
    """Speeds, how they grow from the fewest workers to the most, and what the training process
    spends on a clip with the most."""
    grows = f"{workers[-1]} : {workers[0]} workers"
    heads = ["files", "loader", *(f"{number} worker{'s' if number > 1 else ''}" for number in workers), grows]
    lines = ["| " + " | ".join([*heads, "CPU ms of a clip in the training process"]) + " |", "|---" * (len(heads) + 1) + "|"]
    for name, row in speeds.items():
        for loader, of in row.items():
            rates = [speed.clips_per_second for speed in of]
            cells = [name, loader, *(f"{rate:.1f}" for rate in rates), f"{rates[-1] / rates[0]:.2f} x", f"{of[-1].own_ms:.2f}"]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def judge(measured: Measured) -> list[str]:
    """The goals, and the figures of all clips together, as an epoch meets them."""
    decoded, cropped, waiting = measured.decoded, measured.cropped, measured.waiting
    lines = []
    if "decord" in next(iter(cropped.values())):
        for title, times in (("to crops", cropped), ("decoding alone", decoded)):
            for name, by in times.items():
                if name != COPIES:
                    ratio = sum(by["decord"]) / sum(by["mats_ds"])
                    lines.append(_verdict(f"{name}, same files, {title}", ratio, GOAL_SAME_FILES))
            ratio = sum(times[ORIGINALS]["decord"]) / sum(times[COPIES]["mats_ds"])
            lines.append(_verdict(f"decord on the originals (GOP 250), mats_ds on training copies, {title}", ratio, GOAL_COPIES))
    fraction = waiting["share of time spent waiting"]
    met = "met" if fraction < GOAL_WAITING else "missed"
    lines.append(
        f"- loop waits for data: {100 * fraction:.1f}% of the time with a model that takes {MODEL_FRACTION:.0%} of the "
        f"{waiting['loader clips/s']:.0f} clips/s that the loader delivers (goal: less than {GOAL_WAITING:.0%}): {met}"
    )
    return lines


def _verdict(what: str, ratio: float, goal: float) -> str:
    return f"- {what}: {ratio:.2f} x less CPU time than decord (goal: {goal} x): {'met' if ratio >= goal else 'missed'}"


def write_results(out: Path, measured: Measured, *, options: str) -> Path:
    """A Markdown page, the figures as JSON, and a plot. `options`: how the program was called, in
    words."""
    out.mkdir(parents=True, exist_ok=True)
    stem = f"loader-{time.strftime('%Y-%m-%d')}"
    decoded, cropped, speeds, num_bytes = measured.decoded, measured.cropped, measured.speeds, measured.num_bytes
    packages = ("av", "decord", "torchcodec", "torch", "torchvision")
    lines = [
        f"# Reading clips on a CPU, {time.strftime('%Y-%m-%d')}",
        "",
        f"`python benchmarks/loader.py` ({options}, medians over clips); {platform.machine()}, "
        f"Python {platform.python_version()}, "
        + ", ".join(f"{name} {_version(name)}" for name in packages)
        + ". Clips of 16 frames at stride 4, the same clips and crops for all readers. The page is written by the program.",
        "",
        "## Goals",
        "",
        *judge(measured),
        "",
        "## CPU milliseconds from the file to 224 x 224 crops (one thread; clips/s per core are 1000 divided by it)",
        "",
        *table_of(cropped),
        "",
        "## CPU milliseconds from the file to RGB frames of 340 x 256 (one thread)",
        "",
        *table_of(decoded),
        "",
        "Bytes of the sets, divided by those of the originals: "
        + ", ".join(f"{name} {count / num_bytes[ORIGINALS]:.2f}" for name, count in num_bytes.items())
        + ".",
        "",
        "## Clips per second from file to 224 x 224 crops, by number of worker processes (wall clock)",
        "",
        *table_of_loaders(speeds, measured.workers),
    ]
    if measured.missing:
        lines += ["", "Left out: " + "; ".join(measured.missing) + "."]
    lines += ["", f"![CPU time of a clip]({stem}.svg)", ""]
    page = out / f"{stem}.md"
    write_text(page, "\n".join(lines))
    figures = {
        "cpu_ms_to_crops": medians_of(cropped),
        "cpu_ms_to_frames": medians_of(decoded),
        "workers": measured.workers,
        "loaders": {
            name: {loader: [asdict(speed) for speed in of] for loader, of in row.items()} for name, row in speeds.items()
        },
        "waiting": measured.waiting,
        "bytes": num_bytes,
    }
    write_json(out / f"{stem}.json", figures)
    draw_plot(medians_of(cropped), out / f"{stem}.svg")
    return page


def draw_plot(medians: dict[str, dict[str, float]], path: Path) -> None:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    FigureCanvasSVG(figure)
    axis = figure.subplots()
    readers = list(next(iter(medians.values())))
    width = 0.8 / len(readers)
    for index, reader in enumerate(readers):
        heights = [row[reader] for row in medians.values()]
        axis.bar(
            [number + (index - (len(readers) - 1) / 2) * width for number in range(len(medians))], heights, width, label=reader
        )
    axis.set_xticks(range(len(medians)), list(medians))
    axis.set_ylabel("CPU ms from file to crops (less is better)")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    with replace_file(path) as aside:
        figure.savefig(aside, format="svg")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
