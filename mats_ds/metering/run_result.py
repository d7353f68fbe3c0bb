"""The final accuracy of a fine-tuning: of its last weights, which no test selected, beside the best
of its tests.

The best of many tests on the same videos is too good: for UCF101 and HMDB51 the recipes'
`evaluation.manifest` is the test split. So it is written with the data that selected it, and is no
result.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mats_ds.core.format import format_count, format_views
from mats_ds.core.limits import MAX_FLOAT, MAX_NAME, show
from mats_ds.core.run_dir import read_object
from mats_ds.metering.proportion import Proportion

RESULT_FILE = "result.json"
MAX_LINES = 20  # ours has three
MAX_DEPTH = 10  # ours has three


@dataclass(frozen=True)
class RunResult:
    """`last` and `best`: tests of the run (lines of evaluation.jsonl), which had `num_tests` of
    them; `best_file` holds the weights of the best one. `num_trained_on`: how many of the test's
    videos were trained on as well.
    """

    last: Mapping[str, Any]
    best: Mapping[str, Any]
    num_tests: int
    num_trained_on: int
    best_file: str

    def describe(self) -> list[str]:
        """Lines for the console."""
        last, best = self.last, self.best
        views = format_views(last["clips"], last["crops"])
        where = f"{format_count(last['num_videos'], 'video')} of {last['measured_on']}, {views} each"
        lines = [
            f"result: top-1 {top1_of(last).describe()} on {where}: the last weights (step {last['step']:,}{_average(last)}), "
            "chosen on nothing"
        ]
        if self.num_trained_on:
            lines.append(f"  training has seen {self.num_trained_on:,} of these, too: this is no accuracy on unseen videos")
        lines.append(
            f"{self.best_file}: step {best['step']:,}{_average(best)}, chosen as the best of "
            f"{format_count(self.num_tests, 'test')} on "
            f"{best['measured_on'] or last['measured_on']}: its top-1 of {100 * best['top1']:.2f}% there is no result"
        )
        return lines

    def as_json(self) -> dict[str, Any]:
        last, best = self.last, self.best
        return {
            "weights": {"from": "last", "step": last["step"], "averaged": last["averaged"], "chosen_on": None},
            "top1": top1_of(last).as_json(),
            "top5": Proportion(round(last["top5"] * last["num_videos"]), last["num_videos"]).as_json(),
            "measured_on": last["measured_on"],
            "views": {"clips": last["clips"], "crops": last["crops"]},
            "videos": {"scored": last["num_videos"], "unreadable": last["num_unreadable"], "trained_on": self.num_trained_on},
            "best": {
                "file": self.best_file,
                "step": best["step"],
                "averaged": best["averaged"],
                "chosen_on": best["measured_on"],
                "tests": self.num_tests,
                "top1_where_chosen": best["top1"],
            },
            "words": self.describe(),
        }


def conclude(tests: Sequence[Mapping[str, Any]], *, num_trained_on: int, best_file: str) -> RunResult | None:
    """From all tests of a finished run, oldest first; None where there is none. After a resume with
    another manifest only the tests on the last one are compared.
    """
    if not tests:
        return None
    same = [test for test in tests if test["measured_on"] in (None, tests[-1]["measured_on"])]
    # of equal ones the first, as the file is written
    best = max(same, key=lambda test: test["top1"])
    return RunResult(tests[-1], best, len(same), num_trained_on, best_file)


def read_result(run_dir: str | Path) -> dict[str, Any] | None:
    """The content of a run folder's result.json; None where there is none. Raises ValueError for a
    file of another kind."""
    path = Path(run_dir) / RESULT_FILE
    if not os.path.lexists(path):
        return None
    tree = read_object(path)
    lines = tree.get("words")
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise ValueError(f"{path} is not of this version: words should be a list of lines, got {lines!r:.80}")
    if len(lines) > MAX_LINES or any(len(line) > MAX_NAME for line in lines):
        raise ValueError(f"{path} is not of this version: words should be at most {MAX_LINES} lines of {MAX_NAME:,} characters")
    _check_values(tree, path)
    return tree


def _check_values(tree: Any, path: Path, *, depth: int = 0) -> None:
    """Raises ValueError for numbers that are not finite and for too deep nesting, which report.json
    cannot hold."""
    if depth > MAX_DEPTH:
        raise ValueError(f"{path} is not of this version: it is nested more than {MAX_DEPTH} deep")
    if isinstance(tree, (dict, list)):
        for value in tree.values() if isinstance(tree, dict) else tree:
            _check_values(value, path, depth=depth + 1)
    elif isinstance(tree, (int, float)) and not -MAX_FLOAT <= tree <= MAX_FLOAT:
        raise ValueError(f"{path} is not of this version: it holds {show(tree)}")


def top1_of(test: Mapping[str, Any]) -> Proportion:
    return Proportion(round(test["top1"] * test["num_videos"]), test["num_videos"])


def _average(test: Mapping[str, Any]) -> str:
    return ", the average of the weights" if test["averaged"] else ""
