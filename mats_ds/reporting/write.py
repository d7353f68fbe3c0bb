"""Writer of report.json and report.html into a run folder that may be somebody else's: through no
link, over no foreign file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mats_ds.core.storage.files import open_regular, write_text
from mats_ds.reporting.page.markup import GENERATOR, KICKER

PAGE, TREE = "report.html", "report.json"
HEAD_BYTES = 2**16
_OUR_TREE = re.compile(rb'\{\s*"schema": \d+,\s*"passed": (true|false),\s*"headline": "')


def write_reports(run_dir: Path, tree: dict[str, Any], write_page: Callable[[Path], None]) -> str:
    """Write both files and return one line on what became of them: that a folder cannot be written
    is no error of a report."""

    def write_tree(path: Path) -> None:
        write_text(path, dump_tree(tree) + "\n")

    reasons: dict[str, str] = {}
    for name, write, is_ours in ((TREE, write_tree, is_our_tree), (PAGE, write_page, is_our_page)):
        try:
            _refuse_foreign(run_dir / name, is_ours)
            write(run_dir / name)
        except (OSError, ValueError) as error:
            reasons[name] = (error.strerror if isinstance(error, OSError) else None) or str(error)
    written = [name for name in (PAGE, TREE) if name not in reasons]
    lines = [f"wrote {run_dir / written[0]}" + "".join(f" and {name}" for name in written[1:])] if written else []
    for reason in dict.fromkeys(reasons.values()):
        names = " and ".join(name for name, why in reasons.items() if why == reason)
        lines.append(f"{names} could not be written: {reason}")
    return "; ".join(lines)


def dump_tree(tree: dict[str, Any]) -> str:
    """As the console and the file have it. Raises ValueError for a number that JSON has not."""
    return json.dumps(tree, indent=1, allow_nan=False)


def is_our_page(head: bytes) -> bool:
    """Whether a file begins as our pages do; those of version 0.1 have no generator."""
    return head.startswith(b"<!DOCTYPE html>") and (GENERATOR.encode() in head or KICKER.encode() in head)


def is_our_page_file(path: Path) -> bool:
    """As `is_our_page`, of a file."""
    with open_regular(path) as file:
        return is_our_page(file.read(HEAD_BYTES))


def is_our_tree(head: bytes) -> bool:
    """Whether a file begins as our report.json does."""
    return _OUR_TREE.match(head) is not None


def _refuse_foreign(path: Path, is_ours: Callable[[bytes], bool]) -> None:
    """Raises ValueError for a link, what is no regular file, and a file with content that no report
    of ours has."""
    try:
        with open_regular(path) as file:
            head = file.read(HEAD_BYTES)
    except FileNotFoundError:
        return
    if head and not is_ours(head):
        raise ValueError(f"{path} is there and was not written by this program: rename it, then report again")
