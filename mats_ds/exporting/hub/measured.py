"""Results of a run, as its own files hold them -> lines of a model card, with their intervals.

Read are result.json of a fine-tuning, results.json of `evaluate` and probe.json of `probe`, in the
run folder, in folders directly in it, and where the user says. A result counts only if it is of the
exported weights: of the same step, averaged or not. Nothing is computed, and of paths and names of
files nothing is repeated.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mats_ds.core.format import format_count, format_views
from mats_ds.core.run_dir import read_object
from mats_ds.core.text import clean_line
from mats_ds.metering.proportion import Proportion
from mats_ds.metering.run_result import RESULT_FILE
from mats_ds.models.weights.origin import Origin

TEST_FILE, PROBE_FILE = "results.json", "probe.json"  # of evaluate and of probe
RESULT_FILES = (RESULT_FILE, TEST_FILE, PROBE_FILE)
MAX_FOLDERS = 1000


@dataclass(frozen=True)
class Measured:
    """`rows`: (what, fraction of the tokens kept, top-1 with its interval, how) of each result.
    `notes`: what was left out, and why; for the console, with paths."""

    rows: tuple[tuple[str, str, str, str], ...]
    notes: tuple[str, ...] = ()


def read_measured(folders: Sequence[Path], origin: Origin) -> Measured:
    """The results in these folders and in the folders directly in them."""
    rows: list[tuple[str, str, str, str]] = []
    notes = []
    for path in list_result_files(folders):
        try:
            found = read_rows(path, origin)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            notes.append(f"{path} is left out of the card: {error}")
            continue
        if found is None:
            notes.append(
                f"{path} is left out of the card: it is of other weights ({origin.describe() or 'of no known step'} here)"
            )
        else:
            rows += found
    return Measured(tuple(dict.fromkeys(rows)), tuple(notes))


def list_result_files(folders: Sequence[Path]) -> list[Path]:
    """Files of results in the folders, and one level below them; each once."""
    inside = []
    for folder in folders:
        inside.append(folder)
        with os.scandir(folder) as entries:
            below = sorted(entry.path for entry in entries if entry.is_dir(follow_symlinks=False))
        inside += map(Path, below[:MAX_FOLDERS])
    files = [folder / name for folder in inside for name in RESULT_FILES if (folder / name).is_file()]
    return list({path.resolve(): path for path in files}.values())


def read_rows(path: Path, origin: Origin) -> list[tuple[str, str, str, str]] | None:
    """The rows of one file; None where it is of other weights. Raises ValueError, KeyError or
    TypeError for what is no such file."""
    tree = read_object(path)
    if path.name == RESULT_FILE:
        weights = tree["weights"]
        if not is_same(weights, origin) or origin.chosen_on:
            return None
        views = f"{describe_views(tree['views'])}, at the end of the training"
        if tree["videos"]["trained_on"]:
            views += f"; {int(tree['videos']['trained_on']):,} of the videos were trained on as well"
        return [("accuracy", "as trained", describe_top1(tree["top1"]), views)]
    if not is_same(tree["origin"], origin) or bool(tree["origin"].get("chosen_on")) != bool(origin.chosen_on):
        return None
    views = describe_views(tree["views"])
    if path.name == TEST_FILE:
        if origin.chosen_on:
            views += "; weights chosen by tests during the training"
        return [("accuracy", f"{item['keep_ratio']:g}", describe_top1(item["top1"]), views) for item in tree["results"]]
    ratio = "as extracted" if tree["keep_ratio"] is None else f"{tree['keep_ratio']:g}"
    chance = f"chance {100 * float(tree['chance']['guessing']):.2f}%, {format_count(int(tree['num_classes']), 'class')}"
    return [(f"{name_probe(item)} probe", ratio, describe_top1(item["top1"]), f"{views}; {chance}") for item in tree["results"]]


def name_probe(item: Mapping[str, Any]) -> str:
    """Such as "linear", or "linear (fresh weights)" of the model before training."""
    name = clean_line(item["probe"], max_characters=40)
    return name if item["weights"] == "trained" else f"{name} (untrained weights)"


def is_same(found: Mapping[str, Any], origin: Origin) -> bool:
    """Whether a result is of the weights of this origin."""
    return origin.step is not None and found["step"] == origin.step and bool(found["averaged"]) == bool(origin.averaged)


def describe_top1(top1: Mapping[str, Any]) -> str:
    """Percent with the 95% interval, of the counts in the file."""
    hits, total = top1["hits"], top1["total"]
    if type(hits) is not int or type(total) is not int or not 0 <= hits <= total or total == 0:
        raise ValueError(f"{hits!r:.40} of {total!r:.40} is no proportion")
    return f"{Proportion(hits, total).describe()}, {hits:,} of {format_count(total, 'video')}"


def describe_views(views: Mapping[str, Any]) -> str:
    return f"{format_views(int(views['clips']), int(views['crops']))} of a video"
