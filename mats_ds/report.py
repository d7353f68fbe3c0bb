"""Judge a run against a hardware budget and report it as text, report.json and report.html.

    python profiling/report.py [RUN_DIR] [--budget FILE_OR_NAME] [--json]
    python profiling/report.py --compare RUN_A RUN_B [--json] [--html FILE]

Without RUN_DIR: the newest run below runs/. Exit status: 0 the run is within the budget; 1 it is
over it, or did not finish, or lacks records, or diverged; 2 there is nothing to judge. A comparison
judges nothing: 0, or 2; with --html it is also written as a page.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # run as a file, Python would look for modules in mats_ds/ itself
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from mats_ds.core.interrupts import begin_script

    begin_script()

import argparse
import logging

from mats_ds.core.cli import ArgumentParser, leave, run_script
from mats_ds.core.storage.files import write_text
from mats_ds.core.storage.output_file import check_output_file, describe_fault
from mats_ds.core.storage.package_files import find_folder, own_command
from mats_ds.core.text import log_to_stderr, say
from mats_ds.reporting.budget import load_budget
from mats_ds.reporting.compare import compare_runs, format_comparison
from mats_ds.reporting.figures import Figures, read_figures
from mats_ds.reporting.page.comparison import build_comparison
from mats_ds.reporting.report_html import write_html
from mats_ds.reporting.report_json import to_json
from mats_ds.reporting.report_text import format_report
from mats_ds.reporting.write import dump_tree, is_our_page_file, write_reports

BUDGETS = find_folder("budgets")
DEFAULT_BUDGET = "8xa100-80g"
RUNS = Path("runs")
WITHIN, OVER = 0, 1


def main(arguments: list[str] | None = None) -> int:
    """Print the report, write its files, return the exit status."""
    return run_script(lambda: _run(_parse(arguments)))


def _run(options: argparse.Namespace) -> int:
    log_to_stderr(logging.WARNING)
    return _compare(*options.compare, as_json=options.json, page=options.html) if options.compare else _report(options)


def _report(options: argparse.Namespace) -> int:
    budget = load_budget(options.budget, folder=BUDGETS)
    run_dir = options.run_dir or find_newest_run(RUNS)
    figures = read_figures(run_dir)
    verdict = figures.judge(budget)
    tree = to_json(figures, budget, verdict)
    text = dump_tree(tree) if options.json else format_report(figures, verdict)
    print(text)
    where = write_reports(run_dir, tree, lambda path: write_html(path, figures, budget, verdict))
    say(f"report: {where}", stream=sys.stderr)
    return WITHIN if verdict.passed else OVER


def _compare(dir_a: Path, dir_b: Path, *, as_json: bool, page: Path | None) -> int:
    if page is not None:
        check_output_file(page, is_ours=is_our_page_file, force=None)
    a, b = (_read_named(folder) for folder in (dir_a, dir_b))
    print(dump_tree(compare_runs(a, b)) if as_json else format_comparison(a, b))
    if page is not None:
        try:
            page.parent.mkdir(parents=True, exist_ok=True)
            write_text(page, build_comparison(a, b), errors="backslashreplace")
        except OSError as error:
            raise ValueError(describe_fault(error, page)) from None
        say(f"comparison: wrote {page}", stream=sys.stderr)
    return WITHIN


def _read_named(folder: Path) -> Figures:
    """The figures of a run folder; an error names the folder."""
    try:
        return read_figures(folder)
    except (ValueError, OSError) as error:
        raise ValueError(str(error) if str(folder) in str(error) else f"{folder}: {error}") from None


def find_newest_run(folder: Path) -> Path:
    """The run folder below `folder`, at most three levels down, that was recorded to last.

    Raises ValueError where there is none.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}/ here: name a run folder, or start where the run was started")
    runs = [path.parent for depth in ("*", "*/*", "*/*/*") for path in folder.glob(f"{depth}/run.json")]
    if not runs:
        raise ValueError(f"{folder}/ holds no run: train first, or name a run folder")
    return max(runs, key=_last_change)


def _last_change(run_dir: Path) -> float:
    return max(path.lstat().st_mtime for path in (run_dir / "run.json", *(run_dir / "records").glob("rank-*.jsonl")))


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        description=(__doc__ or "").replace("python profiling/report.py", own_command("report")),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = ", ".join(sorted(path.stem for path in BUDGETS.glob("*.json")))
    parser.add_argument("run_dir", nargs="?", type=Path, metavar="RUN_DIR", help="folder of a run (default: newest below runs/)")
    parser.add_argument("--budget", default=DEFAULT_BUDGET, metavar="FILE_OR_NAME", help=f"a JSON file, or one of {names}")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("RUN_A", "RUN_B"), help="two runs side by side, with ratios")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the comparison as a page, too")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the text")
    options = parser.parse_args(arguments)
    if options.compare and options.run_dir:
        parser.error("--compare takes two run folders and nothing beside them")
    if options.html and not options.compare:
        parser.error("--html FILE is for --compare: a report of one run writes report.html into the run folder by itself")
    return options


if __name__ == "__main__":
    leave(main())
