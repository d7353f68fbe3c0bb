"""Deleted, moved, exchanged: told. A disk that does not answer for a moment: not."""

import errno
import os
import shutil

import pytest

from mats_ds.core.storage import folder_watch
from mats_ds.core.storage.folder_watch import FileWatch


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    (folder / "records").mkdir(parents=True)
    return folder


@pytest.fixture
def watch(run):
    path = run / "records" / "a.jsonl"
    with path.open("a") as file:
        yield FileWatch(path, file.fileno(), folder=run)


def test_all_is_well_as_long_as_the_name_leads_to_the_open_file(run, watch):
    assert watch.what_is_lost() is None
    run.rename(run.with_name("other disk"))
    run.symlink_to("other disk")
    assert watch.what_is_lost() is None


@pytest.mark.parametrize(
    ("hurt", "words"),
    [
        (lambda run: shutil.rmtree(run), "{run} is gone: it was deleted or moved away"),
        (lambda run: run.rename(run.with_name("moved")), "{run} is gone"),
        (lambda run: shutil.rmtree(run / "records"), "{run}/records/a.jsonl is gone"),
        (lambda run: (run.rename(run.with_name("moved")), run.write_text("")), "{run}/records/a.jsonl is gone"),
        (lambda run: (run.rename(run.with_name("old")), shutil.copytree(run.with_name("old"), run)), "{run} is another folder"),
    ],
    ids=["deleted", "moved", "partly deleted", "a file in its place", "a copy in its place"],
)
def test_what_is_not_there_any_more_is_told(run, watch, hurt, words):
    hurt(run)
    assert words.format(run=run) in watch.what_is_lost()


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EIO, errno.EACCES, errno.ETIMEDOUT, errno.ENOTCONN])
def test_a_disk_that_does_not_answer_is_no_deleted_folder(watch, monkeypatch, code):
    def fail(*arguments, **options):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(folder_watch.os, "stat", fail)
    assert watch.what_is_lost() is None


def test_a_filesystem_that_numbers_files_anew_loses_nothing(run, monkeypatch):
    numbers = iter(range(10_000, 20_000))
    true_stat = os.stat

    def renumber(path, **options):
        fields = list(true_stat(path, **options))
        return os.stat_result([fields[0], next(numbers), *fields[2:]])

    path = run / "records" / "a.jsonl"
    with path.open("a") as file:
        monkeypatch.setattr(folder_watch.os, "stat", renumber)
        watch = FileWatch(path, file.fileno(), folder=run)
        assert watch.what_is_lost() is None
        path.unlink()
        assert "is gone" in watch.what_is_lost()
