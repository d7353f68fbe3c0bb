"""A run begins in a folder that holds nothing and goes on in one of its own; any other is refused
as it is."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mats_ds.core.storage.folder_lock import hold_folder, release_all_folders
from mats_ds.training import run_folder
from mats_ds.training.own_folder import check_run_folder, find_newest_run
from mats_ds.training.run_folder import _choose, parse_out

RUN = {"recipe_name": "tiny", "total_steps": 7, "world_size": 2, "task": "pretrain"}


@pytest.fixture(autouse=True)
def nothing_is_held_afterwards():
    yield
    release_all_folders()


def write_run(folder, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(RUN | changes))
    return folder


def snapshot(folder):
    """All that a folder is: names, kinds, contents, times."""
    found = {}
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files, "."):
            path = os.path.join(parent, name)
            status = os.lstat(path)
            is_file = os.path.isfile(path) and not os.path.islink(path)
            content = Path(path).read_bytes() if is_file else None
            found[path] = (status.st_mode, status.st_ino, status.st_mtime_ns, content)
    return found


def write_tree(folder, tree):
    folder.mkdir()
    for name, text in tree.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


FOREIGN = {
    "another program's checkpoints": {"checkpoints/step-00000001/weights.bin": "x"},
    "a recipe and a JSON written by hand": {"recipe.yaml": "# mine\nname: a\n", "ds_config.json": "{ }"},
    "one file": {"notes.txt": "x"},
    "hidden files": {".git/config": "x"},
    "a run.json of another program": {"run.json": '{"id": 5}', "checkpoints/step-00000001/a": "x"},
    "a run.json that is a list": {"run.json": "[]"},
    "a run.json that is torn": {"run.json": '{"recipe_name": "ti'},
    "a run.json that is nested deep": {"run.json": "[" * 200_000},
    "a run.json that is not UTF-8": {"run.json": "\udc80"},
    "a run that lost its run.json": {".made_by.json": '{"made_by": "pretrain"}', "records/rank-00000.jsonl": "{}\n"},
    "what another command made": {".made_by.json": '{"made_by": "extract"}', "index.csv": "x"},
    "a run of the other script": {"run.json": json.dumps(RUN | {"task": "finetune"})},
    "a task that is not known": {"run.json": json.dumps(RUN | {"task": ["a"]})},
    "a lock of another program": {".lock": "pid 5"},
}


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("tree", FOREIGN.values(), ids=FOREIGN)
def test_a_folder_that_is_not_ours_is_refused_as_it_is(tmp_path, tree, resume):
    folder = tmp_path / "foreign"
    write_tree(folder, {name: text for name, text in tree.items() if text != "\udc80"})
    if tree.get("run.json") == "\udc80":
        (folder / "run.json").write_bytes(b"\x80")
    before = snapshot(folder)
    with pytest.raises(ValueError) as refusal:
        _choose(str(folder), "tiny", "pretrain", resume)
    assert str(folder) in str(refusal.value) and "\n" not in str(refusal.value) and len(str(refusal.value)) < 600
    assert snapshot(folder) == before


@pytest.mark.parametrize("task", ["pretrain", "finetune"])
def test_a_run_is_gone_on_with_by_its_own_script_and_never_begun_over(tmp_path, task):
    """A run.json of before there was fine-tuning names no task."""
    ours = RUN | {"task": task} if task == "finetune" else {key: value for key, value in RUN.items() if key != "task"}
    write_tree(tmp_path / "run", {"run.json": json.dumps(ours), "recipe.yaml": "name: tiny\n", "checkpoints/latest": "x"})
    with pytest.raises(ValueError, match="add --resume auto"):
        _choose(str(tmp_path / "run"), "tiny", task, False)
    assert _choose(str(tmp_path / "run"), "another name", task, True) == tmp_path / "run"


STARTED = {
    "nothing": {},
    "a lock and a claim": {".lock": "", ".claim": "host a, process 5, since 2026"},
    "a start that died before run.json": {
        ".made_by.json": '{"made_by": "pretrain"}',
        "recipe.yaml": "a: 1",
        "ds_config.json": "{}",
    },
    "files of file systems": {".DS_Store": "x", "lost+found/a": "x", ".nfs0000000000a1": "x", ".gitkeep": ""},
}


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("tree", STARTED.values(), ids=STARTED)
def test_a_folder_that_holds_nothing_of_anybodys_is_taken(tmp_path, tree, resume):
    write_tree(tmp_path / "run", tree)
    assert _choose(f"{tmp_path}/run/", "tiny", "pretrain", resume) == tmp_path / "run"
    release_all_folders()
    assert {str(path.relative_to(tmp_path / "run")) for path in (tmp_path / "run").rglob("*") if path.is_file()} == (
        tree.keys() - {".lock"}
    ), "nothing was begun"


def test_a_start_that_died_is_another_scripts_affair(tmp_path):
    write_tree(tmp_path / "run", {".made_by.json": '{"made_by": "pretrain"}', "recipe.yaml": "a: 1"})
    with pytest.raises(ValueError, match=r"no run of mats_ds/finetune\.py"):
        check_run_folder(tmp_path / "run", task="finetune", resume=False)


def test_the_file_that_this_program_prints_to_may_lie_in_its_folder(tmp_path):
    """`pretrain --out runs/a > runs/a/log`."""
    (tmp_path / "log").write_text("")
    before = os.dup(1)
    try:
        with (tmp_path / "log").open("w") as log:
            os.dup2(log.fileno(), 1)
        check_run_folder(tmp_path, task="pretrain", resume=False)
    finally:
        os.dup2(before, 1)
        os.close(before)
    with pytest.raises(ValueError, match="'log'"):
        check_run_folder(tmp_path, task="pretrain", resume=False)


def test_what_is_no_folder_is_refused_and_a_link_to_one_is_followed(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(ValueError, match="is a file"):
        _choose(str(tmp_path / "file"), "tiny", "pretrain", False)
    with pytest.raises(ValueError, match="a link to nowhere"):
        _choose(str(tmp_path / "dangling"), "tiny", "pretrain", False)
    assert sorted(os.listdir(tmp_path)) == ["dangling", "file"]
    (tmp_path / "other disk").mkdir()
    (tmp_path / "run").symlink_to("other disk")
    assert _choose(str(tmp_path / "run"), "tiny", "pretrain", False) == tmp_path / "run"
    assert sorted(os.listdir(tmp_path / "other disk")) == [".lock", ".made_by.json"]


@pytest.mark.parametrize(
    "name", ["recipe.yaml", "ds_config.json", "run.json", "bad_clips.csv", "records", "records/rank-00001.jsonl"]
)
def test_a_link_with_the_name_of_a_file_that_is_written_is_refused(tmp_path, name):
    folder = write_run(tmp_path / "run")
    (tmp_path / "private").write_text("mine")
    (folder / "run.json").rename(folder / "kept")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).symlink_to(tmp_path / "private")
    if name != "run.json":
        (folder / "kept").rename(folder / "run.json")
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match=f"{folder / name} is a .*link"):
        _choose(str(folder), "tiny", "pretrain", True)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("kind", ["a link to .*nowhere", "no folder"])
def test_checkpoints_on_a_disk_that_is_not_there_are_no_reason_to_begin_again(tmp_path, kind):
    folder = write_run(tmp_path / "run")
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    if "link" in kind:
        (folder / "checkpoints").symlink_to(tmp_path / "nowhere")
    else:
        (folder / "checkpoints").write_text("mine")
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match=f"{folder / 'checkpoints'} is {kind}"):
        _choose(str(folder), "tiny", "pretrain", True)
    assert snapshot(tmp_path) == before


def test_two_run_folders_with_one_folder_of_checkpoints_have_one_run(tmp_path):
    """`cp -a` of a run folder whose checkpoints are a link to a bigger disk."""
    (tmp_path / "big disk").mkdir()
    folder = write_run(tmp_path / "run")
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    (folder / "checkpoints").symlink_to(tmp_path / "big disk")
    shutil.copytree(folder, tmp_path / "copy", symlinks=True)
    assert _choose(str(folder), "tiny", "pretrain", True) == folder
    code = "import sys; from mats_ds.training.run_folder import _choose; _choose(sys.argv[1], 'tiny', 'pretrain', True)"
    command = [sys.executable, "-c", code, str(tmp_path / "copy")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).resolve().parents[2])
    assert done.returncode == 1 and "copy/checkpoints is in use by mats_ds/pretrain.py on host" in done.stderr
    release_all_folders()
    assert not (tmp_path / "copy" / ".lock").exists() and os.listdir(tmp_path / "big disk") == []


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "run.json")
    with pytest.raises(ValueError, match="a pipe"):
        check_run_folder(tmp_path, task="pretrain", resume=True)


def test_a_folder_in_use_is_refused_whatever_is_asked(tmp_path, monkeypatch):
    """Two resumes, or a new run beside one that has written nothing yet."""
    import multiprocessing

    fork = multiprocessing.get_context("fork")
    write_run(tmp_path / "run")
    for folder, resume in ((tmp_path / "run", True), (tmp_path / "new", False), (tmp_path / "new", True)):
        folder.mkdir(exist_ok=True)
        hold_folder(folder, command="mats_ds/finetune.py")
        answers = fork.Queue()
        other = fork.Process(target=answer, args=(folder, resume, answers))
        other.start()
        assert f"in use by mats_ds/finetune.py on host {os.uname().nodename}, process {os.getpid()}" in answers.get(timeout=60)
        other.join()


def answer(folder, resume, answers):
    try:
        answers.put(str(_choose(str(folder), "tiny", "pretrain", resume)))
    except ValueError as error:
        answers.put(str(error))


def test_a_home_folder_is_found_and_an_empty_name_is_none(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_out("~/run") == tmp_path / "run"
    assert parse_out("./~run").parts == ("~run",)
    for out in ("", " ", "~no-such-user/run"):
        with pytest.raises(ValueError):
            parse_out(out)


def test_the_newest_run_is_the_one_that_was_started_last_whatever_the_times_of_files_say(tmp_path, caplog):
    old = write_run(tmp_path / "tiny-20260101-000000", started="2026-01-01T00:00:00+0000")
    # 23:30 of the day before
    new = write_run(tmp_path / "tiny-20260102-000000", started="2026-01-02T01:30:00+0200")
    write_run(tmp_path / "tiny-mine", started="2026-01-01T23:29:59+0000")
    write_run(tmp_path / "tiny-large-20260109-000000", recipe_name="tiny-large", started="2026-01-09T00:00:00+0000")
    write_run(tmp_path / "tiny-20260109-000000", task="finetune", started="2026-01-09T00:00:00+0000")
    (tmp_path / "tiny-20260110-000000").mkdir()
    (tmp_path / "tiny-20260110-000000" / "run.json").write_text("[]")
    os.utime(old / "run.json", (2e9, 2e9))
    with caplog.at_level(logging.INFO):
        assert find_newest_run(tmp_path, recipe_name="tiny", task="pretrain") == new
    assert (
        f"{new}, the newest of 3 runs of tiny" in caplog.text and "tiny-20260110-000000/run.json is not of a run" in caplog.text
    )
    assert find_newest_run(tmp_path, recipe_name="tiny", task="finetune").name == "tiny-20260109-000000"
    with pytest.raises(ValueError, match="found no run of t"):
        find_newest_run(tmp_path, recipe_name="t[i]ny", task="pretrain")


def test_where_a_clock_was_wrong_the_newest_run_is_not_guessed(tmp_path):
    later = time.strftime("%Y-%m-%dT%H:%M:%S+0000", time.gmtime(time.time() + 86400))
    write_run(tmp_path / "tiny-1", started=later)
    assert find_newest_run(tmp_path, recipe_name="tiny", task="pretrain").name == "tiny-1", "there is no other"
    write_run(tmp_path / "tiny-2", started="2026-01-01T00:00:00+0000")
    with pytest.raises(ValueError, match="tiny-1 says that it was started in the future, .* name its folder with --out"):
        find_newest_run(tmp_path, recipe_name="tiny", task="pretrain")


def test_runs_of_the_same_second_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "RUNS", tmp_path / "runs")
    names = [run_folder.make_new_folder(run_folder.RUNS, "ssv2-20260101-000000").name for _ in range(3)]
    assert names == ["ssv2-20260101-000000", "ssv2-20260101-000000-2", "ssv2-20260101-000000-3"]
