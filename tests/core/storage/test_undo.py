"""A start that fails leaves a folder as it found it, and nothing of the user's is lost."""

from __future__ import annotations

import os

from mats_ds.core.storage.undo import list_names, remember

OURS = {"run.json", "records/rank.jsonl", "recipe.yaml"}


def start(folder):
    """What a start writes."""
    (folder / "records").mkdir(parents=True, exist_ok=True)
    for name in OURS:
        (folder / name).write_text("of the start")


def test_a_folder_that_was_not_there_goes_with_those_above_it(tmp_path):
    folder = tmp_path / "runs" / "deep" / "run"
    before = remember(folder, rewritten=OURS)
    start(folder)
    before.put_back(is_ours=OURS.__contains__)
    before.remove_made()
    assert os.listdir(tmp_path) == []


def test_a_folder_that_was_there_stays_with_all_that_was_in_it(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text("of the run before")
    before = remember(folder, rewritten=OURS)
    start(folder)
    before.put_back(is_ours=OURS.__contains__)
    before.remove_made()
    assert list_names(folder) == {"recipe.yaml"} and (folder / "recipe.yaml").read_text() == "of the run before"


def test_a_file_that_was_taken_away_comes_back(tmp_path):
    (tmp_path / "run.json").write_text("of the run before")
    before = remember(tmp_path, rewritten=OURS)
    (tmp_path / "run.json").unlink()
    before.put_back(is_ours=OURS.__contains__)
    assert (tmp_path / "run.json").read_text() == "of the run before"


def test_what_the_user_has_put_there_in_the_meantime_stays(tmp_path):
    folder = tmp_path / "run"
    before = remember(folder, rewritten=OURS)
    start(folder)
    (folder / "records" / "notes.txt").write_text("mine")
    (folder / "elsewhere").symlink_to(tmp_path)
    before.put_back(is_ours=OURS.__contains__)
    before.remove_made()
    assert list_names(folder) == {"records", "records/notes.txt", "elsewhere"}
