"""How a training script ends, and which folder it may go on in."""

from __future__ import annotations

import argparse
import socket

import pytest

from mats_ds.training.loop import TrainingStopped
from mats_ds.training.start import add_run_options, run_command


def fail_with(error):
    raise error


@pytest.mark.parametrize(
    ("work", "status", "words"),
    [
        (lambda: None, 0, ""),
        (lambda: fail_with(ValueError("wrong key")), 2, "error: wrong key\n"),
        (lambda: fail_with(TrainingStopped("bad loss")), 1, "stopped: bad loss\n"),
    ],
)
def test_faults_that_a_user_can_mend_are_one_line_and_a_status(work, status, words, capsys):
    assert run_command(work) == status
    assert capsys.readouterr().err == words


def test_other_faults_keep_their_traceback():
    with pytest.raises(KeyError):
        run_command(lambda: fail_with(KeyError("a bug")))


def test_other_ranks_are_silent(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    assert run_command(lambda: fail_with(ValueError("wrong key"))) == 2
    assert capsys.readouterr().err == ""


def test_the_first_rank_of_another_host_tells_why_it_ends(monkeypatch, capsys):
    """Only its host may lack the videos; rank 0 then has nothing to tell."""
    monkeypatch.setenv("RANK", "8")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert run_command(lambda: fail_with(ValueError("no manifest"))) == 2
    assert capsys.readouterr().err == f"{socket.gethostname()}: error: no manifest\n"


def test_a_recipe_must_be_named_where_there_is_no_default(capsys):
    parser = argparse.ArgumentParser()
    add_run_options(parser, default_recipe=None)
    with pytest.raises(SystemExit):
        parser.parse_args(["--ds_config", "x.json"])
    assert "--recipe" in capsys.readouterr().err
