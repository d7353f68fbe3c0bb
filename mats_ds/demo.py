"""Try everything in a minute: a tiny pre-training on all ranks, and its report.

    mats demo [VIDEO_DIR]

VIDEO_DIR: a folder of videos; without one, a small synthetic set is written into data/synthetic/.
Exit status: the report's, or that of a training that failed or was interrupted.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # run as a file, Python would look for modules in mats_ds/ itself
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from mats_ds.core.interrupts import begin_script

    begin_script()

import subprocess
from datetime import datetime

from mats_ds.core.cli import INTERRUPTED, USAGE_ERROR, ArgumentParser, leave, run_script
from mats_ds.core.interrupts import STOPPING
from mats_ds.core.storage.package_files import find_folder
from mats_ds.core.text import say, tell_error
from mats_ds.distributed.process_group import is_dry_run, show_words
from mats_ds.launch import launch


def main(arguments: list[str] | None = None) -> int:
    """Train, report, return the exit status."""
    parser = ArgumentParser(description="Pre-train a tiny MATS and end with the report.")
    parser.add_argument("video_dir", nargs="?", metavar="VIDEO_DIR", help="a folder of videos (default: a synthetic set)")
    return run_script(lambda: run_demo(parser.parse_args(arguments).video_dir))


def run_demo(folder: str | None) -> int:
    """Pre-train a tiny model below runs/ on a folder of videos, or on a synthetic set, and end with
    the report's status."""
    out = f"runs/demo-{datetime.now():%Y%m%d-%H%M%S}"
    script = ["--recipe", "tiny", "--ds_config", str(find_folder("ds_configs") / "zero2_tiny.json"), "--out", out]
    if folder is not None:
        if not Path(folder).exists():
            tell_error(f"demo: there is no folder {folder}")
            return USAGE_ERROR
        # fewer steps than on the synthetic set: with large pictures most of a step is decoding
        script += [f"data.manifest={Path(folder).resolve()}", "data.max_bad_fraction=0.5", "optim.steps=80"]
    say(f"==> pre-training a tiny MATS into {out}", stream=sys.stderr)
    if status := launch("pretrain", script):
        where = f"its folder is {out}" if Path(out).exists() else "no folder was made"
        if status == INTERRUPTED or status - 128 in STOPPING:
            say(f"demo: the training was interrupted (status {status}); {where}", stream=sys.stderr)
        else:
            tell_error(f"the training failed (status {status}); {where}")
        return status
    say("==> report", stream=sys.stderr)
    command = [sys.executable, str(Path(__file__).with_name("report.py")), out]
    if is_dry_run():
        print(show_words(command), flush=True)
        return 0
    return subprocess.run(command).returncode


if __name__ == "__main__":
    leave(main())
