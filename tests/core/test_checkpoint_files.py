"""What complete.json says is believed within bounds, and only of regular files that it lists."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from mats_ds.core.checkpoint_files import (
    MAX_COMPLETE_BYTES,
    examine,
    find_damage,
    list_checkpoints,
    name_lookalikes,
    name_of_step,
    read_complete,
    step_of_name,
)
from tests.training.checkpoint_content import STATES, WEIGHTS, rewrite, write_checkpoint

SUM = "0" * 64


@pytest.fixture
def step(tmp_path):
    return write_checkpoint(tmp_path, 5)


def test_a_whole_one(step):
    verdict = examine(step)
    assert verdict.problem is None
    complete = verdict.complete
    assert (complete.step, complete.world_size, complete.zero_stage, complete.global_batch) == (5, 2, 2, 16)
    assert sorted(complete.files) == [WEIGHTS, STATES.format(0), STATES.format(1)]


def test_only_step_and_eight_digits_is_a_name():
    assert step_of_name("step-00000012") == 12 and name_of_step(12) == "step-00000012"
    others = [
        "step-best", "step-1", "step-000000012", "step-0000012", "step-00000012.log", "step-00000012 ", "step-00000012\n",
        "Step-00000012", "step-0000001a", "step--0000012", "step-+0000012", "step-٠٠٠٠٠٠١٢", ".step-00000012",
    ]  # fmt: skip
    assert [name for name in others if step_of_name(name) is not None] == []


def test_only_real_folders_count_and_are_ordered_by_number(tmp_path):
    for number in (10, 9, 100):
        folder = write_checkpoint(tmp_path, number)
        os.utime(folder, (number % 7 * 10**9, number % 7 * 10**9))
    (tmp_path / "step-00000200").symlink_to(tmp_path / "step-00000010")
    (tmp_path / "step-00000300").touch()
    os.mkfifo(tmp_path / "step-00000400")
    shutil.copytree(tmp_path / "step-00000010", tmp_path / "step-best")
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000100", "step-00000010", "step-00000009"]
    assert name_lookalikes(tmp_path) == ["step-00000200", "step-00000300", "step-00000400", "step-best"]
    assert list_checkpoints(tmp_path / "none") == list_checkpoints(tmp_path / "step-00000300") == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"files": {}}, "lists no file"),
        ({"files": []}, 'expected an object with "files"'),
        ({"step": -5}, '"step" should be 0 to 99999999, got -5'),
        ({"step": 10**9}, "got 1000000000"),
        ({"step": 10**400}, '"step" should be'),
        ({"step": 4}, "holds step 4: call it step-00000004"),
        ({"step": 5.0}, '"step" should be an integer, got 5.0'),
        ({"step": True}, "got True"),
        ({"step": None}, "got None"),
        ({"world_size": 0}, '"world_size" should be 1 to'),
        ({"world_size": 10**9}, "got 1000000000"),
        ({"world_size": True}, "got True"),
        ({"world_size": 3}, '"world_size" is 3 and "files" lists the optimizer states of 2 ranks'),
        ({"world_size": 1, "zero_stage": None}, "optimizer states of 2 ranks"),
        ({"zero_stage": 3}, "the weights of 1 rank, expected 2"),
        ({"zero_stage": 7}, '"zero_stage" should be 0 to 3, got 7'),
        ({"zero_stage": False}, "got False"),
        ({"global_batch": -16}, "got -16"),
        ({"global_batch": "16"}, "got '16'"),
        ({"format_version": 0}, '"format_version" should be 1 to'),
        ({"format_version": "1"}, "got '1'"),
        ({"format_version": 2}, "newer version (format 2, this one reads 1)"),
    ],
)
def test_numbers_have_bounds(step, changes, words):
    problem = find_damage(rewrite(step, **changes))
    assert words in problem and len(problem) < 300, problem


@pytest.mark.parametrize("left_out", [WEIGHTS, STATES.format(1)])
def test_a_list_without_a_file_that_would_be_loaded_is_none(step, left_out):
    files = json.loads((step / "complete.json").read_text())["files"]
    del files[left_out]
    words = "the weights of 0 ranks, expected 1" if left_out == WEIGHTS else "the optimizer states of 1 rank"
    assert words in find_damage(rewrite(step, files=files))
    assert words in find_damage(rewrite(step, zero_stage=None))  # of version 0.1


@pytest.mark.parametrize(
    "name",
    ["../a", "/etc/passwd", "a/../../b", "./a", "a//b", "a/", "", ".", "a\0b", "a\nb", "\x1b[31m", "\ud800", "complete.json"],
)
def test_a_list_names_files_of_the_folder_only_and_each_once(step, name):
    files = json.loads((step / "complete.json").read_text())["files"]
    problem = find_damage(rewrite(step, files=files | {name: {"bytes": 0, "sha256": SUM}}))
    assert "is no file of this folder" in problem and problem.isprintable()


@pytest.mark.parametrize(
    "stated",
    [None, [], {}, {"bytes": 1}, {"bytes": -1, "sha256": SUM}, {"bytes": True, "sha256": SUM}, {"bytes": 2**60, "sha256": SUM}]
    + [{"bytes": 1, "sha256": value} for value in (SUM[1:], SUM + "0", SUM.replace("0", "A"), 7, None, SUM + "\n")],
)
def test_sizes_and_sums_have_a_form(step, stated):
    files = json.loads((step / "complete.json").read_text())["files"]
    problem = find_damage(rewrite(step, files=files | {WEIGHTS: stated}))
    assert f"'{WEIGHTS}' should have " in problem and problem.isprintable()


def test_a_key_that_is_there_twice_is_refused(step):
    text = (step / "complete.json").read_text()
    (step / "complete.json").write_text(text.replace('"step": 5', '"step": 4, "step": 5'))
    assert "'step' is given more than once" in find_damage(step)


def test_a_complete_json_of_any_size_is_not_read(step):
    with (step / "complete.json").open("r+b") as stream:
        stream.truncate(1 << 40)  # a hole
    assert f"longer than {MAX_COMPLETE_BYTES:,} bytes" in find_damage(step)


@pytest.mark.parametrize("where", ["file", "folder", "complete"])
def test_a_link_is_not_followed_although_what_it_leads_to_has_the_right_sum(step, tmp_path, where):
    file = step / ("complete.json" if where == "complete" else WEIGHTS)
    if where == "folder":
        files = json.loads((step / "complete.json").read_text())["files"]
        (tmp_path / "sub").mkdir()
        (tmp_path / "sub" / "a").write_bytes(file.read_bytes())
        (step / "sub").symlink_to(tmp_path / "sub")
        rewrite(step, files=files | {"sub/a": files[WEIGHTS]})
    else:
        file.rename(tmp_path / "elsewhere")
        file.symlink_to(tmp_path / "elsewhere")
    assert "symbolic link" in find_damage(step)


def test_a_pipe_or_a_folder_is_no_file(step):
    (step / WEIGHTS).unlink()
    os.mkfifo(step / WEIGHTS)
    assert "a pipe" in find_damage(step)
    (step / WEIGHTS).unlink()
    (step / WEIGHTS).mkdir()
    assert "a folder" in find_damage(step)


def test_a_file_that_deepspeed_would_load_and_no_sum_vouches_for(step):
    (step / STATES.format(2)).write_bytes(b"more")
    assert find_damage(step) == f"it holds {STATES.format(2)}, which complete.json does not list"


def test_a_copy_of_another_name_holds_the_step_that_it_says(step, tmp_path):
    step.rename(tmp_path / "step-best")
    assert read_complete(tmp_path / "step-best").step == 5 and find_damage(tmp_path / "step-best") is None


def test_a_checkpoint_of_version_0_1_tells_neither_stage_nor_batch(step):
    complete = examine(rewrite(step, zero_stage=None, global_batch=None)).complete
    assert (complete.step, complete.zero_stage, complete.global_batch) == (5, None, None)
