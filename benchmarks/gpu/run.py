"""Run the parts one after the other, in processes with time limits of their own, and collect their
results.

Always ends within the time: a part that hangs is killed with its children, and what it had written
counts. See README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# Seconds of each part: on a GPU, on a GPU with --quick, on a CPU. Their sums stay below the limits,
# whatever hangs; what a part leaves over, the next ones may use. In the order of their worth.
PARTS = {
    "card": (15, 15, 12),
    "training_tests": (70, 40, 12),
    "step": (120, 55, 25),
    "decode": (95, 45, 25),
    "whole": (115, 60, 42),
    "zero": (55, 35, 38),
    "tests": (58, 28, 15),
}
LIMITS = (530, 280, 172)
GRACE_SECONDS = 4  # of a part that was asked to end
PROGRAMS = {"training_tests": "tests"}  # of a part that is not named like its program


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    began_seconds, mode = time.monotonic(), 2 if options.cpu else 1 if options.quick else 0
    options.out.mkdir(parents=True, exist_ok=True)
    results, granted_seconds = {}, 0.0
    for name in options.only or PARTS:
        granted_seconds += PARTS[name][mode]
        until_seconds = min(granted_seconds, LIMITS[mode] - GRACE_SECONDS)
        results[name] = run_part(name, options, seconds=until_seconds - (time.monotonic() - began_seconds))
    tree = {"began": time.strftime("%Y-%m-%d %H:%M"), "python": platform.python_version(), "parts": results}
    tree["seconds"] = round(time.monotonic() - began_seconds, 1)
    (options.out / "results.json").write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
    flags = " ".join(["--quick"] * options.quick + ["--cpu"] * options.cpu)
    page = format_page(tree, f"bash benchmarks/gpu/run.sh {flags}".strip())
    (options.out / "results.md").write_text(page, encoding="utf-8")
    print("\n" + page)
    print(f"written: {options.out / 'results.md'} and results.json, {tree['seconds']:.0f} s")
    return 0 if all(result["finished"] for result in results.values()) else 1


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="run.sh", description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="a part of the sizes, under 5 minutes")
    parser.add_argument("--cpu", action="store_true", help="a rehearsal with tiny sizes on the CPU, under 3 minutes")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / f"gpu-{time.strftime('%Y%m%d-%H%M%S')}", metavar="DIR")
    parser.add_argument("--videos", default="", metavar="DIR", help="real clips, for the training run at the end")
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}")
    options = parser.parse_args(arguments)
    if options.out.is_dir() and any(options.out.iterdir()) and not is_ours(options.out):
        print(
            f"error: --out {options.out} holds files that this program did not write: choose a new or empty folder",
            file=sys.stderr,
        )
        raise SystemExit(2)
    return options


def is_ours(folder: Path) -> bool:
    """Whether an earlier run has put its results into a folder."""
    try:
        tree = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(tree, dict) and isinstance(tree.get("parts"), dict)


def run_part(name: str, options: argparse.Namespace, *, seconds: float) -> dict:
    """What the part has written when it ends, by itself or because its time is up."""
    path, log = options.out / f"{name}.json", options.out / f"{name}.log"
    path.unlink(missing_ok=True)
    if seconds <= 2:
        return {"finished": False, "lines": [], "ended": "no time was left for it"}
    command = [sys.executable, str(HERE / f"{PROGRAMS.get(name, name)}.py"), "--part", name, "--out", str(path)]
    command += ["--device", "cpu" if options.cpu else "cuda"]
    command += ["--seconds", f"{0.8 * seconds:.0f}"] + ["--quick"] * options.quick
    command += ["--videos", options.videos] if options.videos else []
    # A rehearsal measures nothing: threads that spin would only take the cores from each other.
    environment = {**os.environ, **({"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} if options.cpu else {})}
    print(f"== {name} (at most {seconds:.0f} s)", flush=True)
    began_seconds = time.monotonic()
    with open(log, "w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        try:
            status = process.wait(seconds)
            ended = "" if status == 0 else f"ended with status {status}: {last_words(log)}"
        except subprocess.TimeoutExpired:
            ended = f"stopped after {seconds:.0f} s"
        finally:
            stop_group(process)
    result = {"finished": False, "lines": []}
    if path.is_file():
        result = json.loads(path.read_text(encoding="utf-8"))
    result |= {"ended": ended, "seconds": round(time.monotonic() - began_seconds, 1)}
    for line in result["lines"]:
        print(f"   {line['what']}: {line['figure']}  {line['verdict']}".rstrip())
    if ended:
        print(f"   {ended} (see {log})", flush=True)
    return result


def stop_group(process: subprocess.Popen) -> None:
    """End the part and its children, politely at first."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        try:
            process.wait(GRACE_SECONDS / 2)
        except subprocess.TimeoutExpired:
            continue


def last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it printed nothing"


def format_page(tree: dict, command: str) -> str:
    """The table as Markdown, which is also what the terminal shows last."""
    lines = [f"# GPU benchmark, {tree['began']}", "", f"`{command}`, Python {tree['python']}, {tree['seconds']:.0f} s.", ""]
    lines += ["| part | what | figure | goal |", "|---|---|---|---|"]
    for name, result in tree["parts"].items():
        for line in result["lines"]:
            cells = (name, line["what"], line["figure"], line["verdict"])
            lines.append("| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in cells) + " |")
        if result.get("ended"):
            lines.append(f"| {name} | **{result['ended'].replace('|', '/')}** | | |")
    missing = sorted({package for result in tree["parts"].values() for package in result.get("missing", ())})
    lines += ["", f"Not installed, so left out: {', '.join(missing)}." if missing else "All packages were there.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
