"""A run whose folder is taken away, filled up or in use: it ends with a reason, and leaves no half
of a folder."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mats_ds.core.storage.folder_lock import hold_folder, release_folder
from mats_ds.data.synthetic import write_synthetic_set
from mats_ds.training.own_folder import WRITTEN_FILES

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["clip.num_frames=4", "clip.height=32", "clip.width=48", "optim.steps=6", "optim.warmup_steps=2", "run.log_steps=2"]
HURT_AT = 3


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    videos = write_synthetic_set(tmp_path_factory.mktemp("videos") / "set", num_videos=20, num_frames=24, height=48, width=80)
    return ["--recipe", "tiny", "--ds_config", str(ROOT / "ds_configs" / "zero2_tiny.json"), f"data.manifest={videos}", *SMALL]


def delete(folder):
    shutil.rmtree(folder)


def move(folder):
    folder.rename(folder.with_name("moved"))


def exchange(folder):
    move(folder)
    folder.mkdir()


def fill_up(folder):
    """The disk of this rank's records, from now on."""
    from mats_ds.core.storage import files

    def write(descriptor, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    files.os.write = write


def make_read_only(folder):
    """For this rank: root, whom nothing stops, becomes nobody."""
    os.setuid(65534) if os.geteuid() == 0 else folder.chmod(0o555)


def enter(folder):
    """Somebody else tries to come in, and leaves word of what he was told."""
    code = "import sys, pathlib; from mats_ds.core.storage.folder_lock import hold_folder\n"
    code += "hold_folder(pathlib.Path(sys.argv[1]), command='other')"
    other = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, cwd=ROOT)
    folder.with_name("told").write_text(other.stderr)


def pretrain(arguments, hurt=None, hurt_rank=0):
    """(exit status, what was said) of one rank; `hurt(folder)` happens on rank `hurt_rank` in step
    HURT_AT."""
    from mats_ds import pretrain as script
    from mats_ds.training import run as training_run

    true_fit, folder = training_run.fit, Path(arguments[arguments.index("--out") + 1])

    def fit(engine, batches, *, run, **rest):
        def watched():
            for number, batch in enumerate(batches):
                if run.rank == hurt_rank and number == (HURT_AT - 1) * run.accumulation:
                    hurt(folder)
                yield batch

        true_fit(engine, watched() if hurt else batches, run=run, **rest)

    training_run.fit = fit
    terminal = io.StringIO()
    with contextlib.redirect_stderr(terminal):
        status = script.main(arguments)
    return status, terminal.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize(("hurt", "words"), [(delete, "run is gone"), (move, "run is gone"), (exchange, "run/records/")])
def test_a_run_whose_folder_is_taken_away_stops_and_makes_no_half_of_one(ranks, arguments, tmp_path, hurt, words):
    folder = tmp_path / "run"
    told = ranks(pretrain, 2, ["--out", str(folder), *arguments, "run.checkpoint_steps=1"], hurt)
    assert [status for status, _ in told] == [1, 1], told
    line = next(line for line in told[0][1].splitlines() if line.startswith("stopped: "))
    assert words in line and f"noticed after step {HURT_AT};" in line and "--resume auto" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == {delete: [], move: ["moved"], exchange: ["moved", "run"]}[hurt]
    if hurt is exchange:
        assert list(folder.iterdir()) == []
    if hurt is move:
        told = ranks(pretrain, 2, ["--out", str(tmp_path / "moved"), *arguments, "--resume", "auto"])
        assert [status for status, _ in told] == [0, 0], told
        assert "steps: 2 to 6" in told[0][1] or "steps: 3 to 6" in told[0][1], "the last save may have been on its way"


@pytest.mark.slow
def test_a_full_disk_ends_all_ranks_whichever_it_is_full_for(ranks, arguments, tmp_path):
    told = ranks(pretrain, 2, ["--out", str(tmp_path / "run"), *arguments], fill_up, 1)
    assert [status for status, _ in told] == [1, 1], told
    assert "stopped: rank 1: [Errno 28] No space left on device; make room" in told[1][1]
    assert "stopped: rank 0: rank 1" in told[0][1] or "stopped: rank 0: another rank" in told[0][1]


@pytest.mark.slow
def test_a_folder_that_becomes_read_only_ends_the_run_at_the_next_save(ranks, arguments, tmp_path):
    """What was saved before stands; the folder is there, so it is not taken for deleted."""
    folder = tmp_path / "run"
    told = ranks(pretrain, 2, ["--out", str(folder), *arguments, "run.checkpoint_steps=1"], make_read_only)
    folder.chmod(0o755)
    assert [status for status, _ in told] == [1, 1], told
    line = next(line for line in told[0][1].splitlines() if line.startswith("stopped: "))
    assert "Permission denied" in line and "checkpoint" in line and "go on with --resume auto" in line
    told = ranks(pretrain, 2, ["--out", str(folder), *arguments, "--resume", "auto"])
    assert [status for status, _ in told] == [0, 0], told
    assert "steps: 2 to 6" in told[0][1] or "steps: 3 to 6" in told[0][1], "the save of step 2 was on its way or done"


@pytest.mark.slow
def test_a_run_beside_another_is_refused_and_its_folder_left_as_it_is(ranks, arguments, tmp_path):
    """Whatever the other one is: here this process."""
    folder = tmp_path / "run"
    assert [status for status, _ in ranks(pretrain, 1, ["--out", str(folder), *arguments, "run.max_steps=1"])] == [0]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    hold_folder(folder, command="mats_ds/finetune.py")
    try:
        [(status, said)] = ranks(pretrain, 1, ["--out", str(folder), *arguments, "--resume", "auto"])
    finally:
        release_folder(folder)
    assert status == 2 and f"error: {folder} is in use by mats_ds/finetune.py on host " in said
    assert f"process {os.getpid()}" in said
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert {
        path for path in before if path != folder and before[path] != after.get(path)
    } == set() and before.keys() == after.keys()


@pytest.mark.slow
def test_a_folder_is_held_for_the_whole_of_a_run(ranks, arguments, tmp_path):
    """Nothing in between opens the lock file again, which would give it up; and all that is left
    has a known name."""
    folder = tmp_path / "run"
    assert [status for status, _ in ranks(pretrain, 1, ["--out", str(folder), *arguments], enter)] == [0]
    assert "is in use by mats_ds/pretrain.py on host " in (tmp_path / "told").read_text()
    assert not (folder / ".lock").exists()
    assert {path.name for path in folder.iterdir() if path.is_file()} <= {*WRITTEN_FILES, ".made_by.json"}
