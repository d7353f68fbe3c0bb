"""The GPU benchmark's conductor: whatever a part does, the run ends in time with all that was
measured."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RUN = ROOT / "benchmarks" / "gpu" / "run.sh"
PARTS = {
    "good": "part.add_line('one', 'figure | 1', 'ok')\npart.lacks('torch', 'no_such_package')\nraise SystemExit(part.finish())",
    "dying": "part.add_line('before', 'kept')\nraise RuntimeError('out of luck')",
    "hanging": "part.add_line('so far', 'kept too')\nchild = subprocess.Popen(['sleep', '600'])\n"
    "open(part.path.parents[1] / 'child', 'w').write(str(child.pid))\ntime.sleep(600)",
    "silent": "os._exit(3)",
}


def run(*arguments, **environment):
    environment = {**os.environ, "MATS_PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": "", **environment}
    return subprocess.run(["bash", str(RUN), *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=400)


@pytest.fixture
def conductor(tmp_path):
    """A copy of the conductor with parts of a few lines."""
    here = tmp_path / "benchmarks" / "gpu"
    here.mkdir(parents=True)
    source = (ROOT / "benchmarks" / "gpu" / "run.py").read_text()
    start, end = source.index("PARTS = {"), source.index("LIMITS = ")
    parts = "PARTS = {name: (6, 6, 6) for name in ('good', 'dying', 'hanging', 'silent')}\n"
    (here / "run.py").write_text(source[:start] + parts + source[end:])
    (here / "part.py").write_text((ROOT / "benchmarks" / "gpu" / "part.py").read_text())
    for name, code in PARTS.items():
        head = f"import os, subprocess, sys, time\nfrom part import begin_part\npart = begin_part({name!r})\n"
        (here / f"{name}.py").write_text(head + code + "\n")
    return here / "run.py"


@pytest.mark.slow
def test_a_part_that_fails_hangs_or_dies_does_not_take_the_others_along(conductor, tmp_path):
    begin = time.monotonic()
    command = [sys.executable, conductor, "--out", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert time.monotonic() - begin < 90  # the part that hangs would take ten minutes
    assert done.returncode == 1, done.stderr
    parts = json.loads((tmp_path / "out" / "results.json").read_text())["parts"]
    assert {name: part["finished"] for name, part in parts.items()} == {
        "good": True, "dying": False, "hanging": False, "silent": False,
    }  # fmt: skip
    assert parts["dying"]["ended"] == "ended with status 1: RuntimeError: out of luck"
    assert "stopped after" in parts["hanging"]["ended"] and "status 3" in parts["silent"]["ended"]
    page = (tmp_path / "out" / "results.md").read_text()
    assert "| good | one | figure / 1 | ok |" in page and "| dying | before | kept |" in page
    assert "| hanging | so far | kept too |" in page and "left out: no_such_package." in page
    assert done.stdout.strip().splitlines()[-1].startswith("written: ") and page.strip() in done.stdout
    # of a child that waits to be collected: Z
    status = Path("/proc") / (tmp_path / "child").read_text() / "stat"
    assert not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"


def test_an_unknown_part_is_refused(tmp_path):
    done = run("--only", "nothing", "--out", tmp_path)
    assert done.returncode == 2 and "invalid choice: 'nothing'" in done.stderr


@pytest.mark.slow
def test_without_pydantic_the_model_can_be_measured(tmp_path):
    code = (
        "import sys\n"
        "sys.modules.update(pydantic=None, pydantic_core=None)\n"
        "import torch\n"
        "import benchmarks.gpu.card, benchmarks.gpu.step, mats_ds.models.feature_extractor, mats_ds.models.model_spec\n"
        "from mats_ds import MaskedAutoencoder, TokenGrid, step_flops\n"
        "from mats_ds.planning.memory import plan_memory\n"
        "from mats_ds.planning.workload import Workload\n"
        "from mats_ds.metering.peak_flops import measure_peak\n"
        "grid = TokenGrid(4, 16, 24, (2, 8, 8))\n"
        "model = MaskedAutoencoder.from_name('tiny', grid=grid, keep_ratio=0.9, visible_ratio=0.3)\n"
        "model(torch.zeros(2, 4, 16, 24, 3, dtype=torch.uint8), torch.arange(2)).backward()\n"
        "plan_memory(Workload(model_name='tiny', grid=grid, candidate_grid=grid), {}, world_size=1, micro_batch=2)\n"
        "step_flops('tiny', grid)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_quickest_part_measures_this_machine(tmp_path):
    done = run("--cpu", "--quick", "--only", "card", "--out", tmp_path / "out")
    result = json.loads((tmp_path / "out" / "card.json").read_text())
    assert done.returncode == 0 and result["finished"], done.stdout
    assert any(cell.get("matrix_flops_per_second", 0) > 0 for cell in result["cells"])


@pytest.mark.slow
def test_the_whole_rehearsal_ends_within_three_minutes(tmp_path):
    begin = time.monotonic()
    run("--cpu", "--quick", "--out", tmp_path / "out")
    assert time.monotonic() - begin < 185
    parts = json.loads((tmp_path / "out" / "results.json").read_text())["parts"]
    assert list(parts) == ["card", "training_tests", "step", "decode", "whole", "zero", "tests"]
    # A busy machine may not let a part come to its end; none may fail.
    assert not [part["ended"] for part in parts.values() if part["ended"] and "stopped after" not in part["ended"]]
    verdicts = [line["verdict"] for part in parts.values() for line in part["lines"]]
    assert "MISSED" not in verdicts and "needs a GPU" in verdicts


@pytest.mark.parametrize("files", [{"card.json": "theirs", "notes.txt": ""}, {"results.json": "[]"}, {"results.json": "theirs"}])
def test_a_foreign_folder_is_left_as_it_is(conductor, tmp_path, files):
    (tmp_path / "out").mkdir()
    for name, text in files.items():
        (tmp_path / "out" / name).write_text(text)
    done = subprocess.run([sys.executable, conductor, "--out", tmp_path / "out"], capture_output=True, text=True, timeout=100)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "new or empty folder" in done.stderr
    assert {path.name: path.read_text() for path in (tmp_path / "out").iterdir()} == files
