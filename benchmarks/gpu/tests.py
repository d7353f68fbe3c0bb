"""The tests marked gpu, in two parts: those of the training step first, the others last."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

from benchmarks.gpu.part import NEEDS_GPU, Part, begin_part  # noqa: E402

FIRST = "tests/gpu/test_training_gpu.py"


def main() -> int:
    part = begin_part("tests")
    if absent := part.lacks("pytest", "torch"):
        part.add_line("tests marked gpu", f"not run without {', '.join(absent)}")
        return part.finish()
    if part.name == "training_tests":
        run_tests(part, "tests of a training step", [FIRST])
    else:
        run_tests(part, "all other tests marked gpu", ["tests/gpu", f"--ignore={FIRST}"])
    return part.finish()


def run_tests(part: Part, what: str, files: list[str]) -> None:
    """One process of pytest; where the time is up, its figures are those of the tests that were
    done."""
    # Options of pytest plug-ins that may be missing must not stop it.
    flags = ["-o", "addopts=--import-mode=importlib", "-p", "no:cacheprovider", "-m", "gpu", "-q", "-rfE", "--maxfail=25"]
    flags += ["--tb=short", "--continue-on-collection-errors", "--durations=5"]
    with subprocess.Popen(
        [sys.executable, "-m", "pytest", *files, *flags], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as tests:
        text = []
        for line in tests.stdout:
            print(line, end="", flush=True)
            text.append(line)
            if done := re.match(r"^([.sFEx]+)\s*(\[|$)", line):
                part.add(outcomes=done[1])
    closing = next(
        (line for line in reversed(text) if re.search(r"passed|failed|skipped|deselected|error", line)), "printed nothing"
    ).strip()
    failed = [line.strip() for line in text if line.startswith(("FAILED", "ERROR"))]
    part.add(closing=closing, failed=failed)
    if not part.on_gpu:
        part.add_line(what, f"collected: {closing.strip('= ')}", NEEDS_GPU)
        return
    part.judge(what, closing.strip("= "), holds=tests.returncode == 0)
    for line in failed[:8]:
        part.add_line("failed", line[:160])


if __name__ == "__main__":
    raise SystemExit(main())
