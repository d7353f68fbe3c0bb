"""How a program takes options, and how it ends: an exit status and one line of text."""

from __future__ import annotations

import argparse
import socket

import pytest

from mats_ds.core.cli import ArgumentParser, run_script
from mats_ds.distributed.exits import AlreadyFinished, RanksLost, TrainingInterrupted, TrainingStopped


def fail_with(error):
    raise error


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ValueError("wrong key"), 2, "error: wrong key"),
        (OSError("no room"), 2, "error: no room"),
        (TrainingStopped("bad loss"), 1, "stopped: bad loss"),
        (TrainingInterrupted("step 3 is saved"), 75, "interrupted: step 3 is saved"),
        (AlreadyFinished("raise optim.epochs"), 0, "nothing to do: raise optim.epochs"),
        (RanksLost("rank 1 has died"), 1, "stopped: rank 0: rank 1 has died"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 bytes\nat x"), 1, "stopped: rank 0 is out of memory: "),
        (MemoryError(), 1, "stopped: rank 0 is out of memory: MemoryError"),
        (KeyboardInterrupt(), 130, "stopped"),
    ],
)
def test_what_ends_a_program_early_is_one_line_and_a_status(error, status, line, capsys):
    assert run_script(lambda: fail_with(error)) == status
    told = capsys.readouterr().err
    assert told.startswith(line) and told.count("\n") == 1


def test_a_fault_of_the_machine_comes_with_advice_where_the_program_can_go_on(capsys):
    assert run_script(lambda: fail_with(OSError("no room")), advice="go on with --resume auto") == 1
    assert capsys.readouterr().err == "stopped: rank 0: no room; go on with --resume auto\n"


@pytest.mark.parametrize(("status", "returned"), [(0, None), (0, 0), (1, 1)])
def test_the_status_that_the_work_returns_is_the_programs(status, returned, capsys):
    assert run_script(lambda: returned) == status
    assert capsys.readouterr().err == ""


def test_other_faults_keep_their_traceback(capsys):
    assert run_script(lambda: fail_with(KeyError("a bug"))) == 1
    told = capsys.readouterr().err
    assert told.startswith("Traceback") and "KeyError: 'a bug'" in told


def test_other_ranks_are_silent(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    assert run_script(lambda: fail_with(ValueError("wrong key"))) == 2
    assert capsys.readouterr().err == ""


def test_the_first_rank_of_another_host_tells_why_it_ends(monkeypatch, capsys):
    """Only its host may lack the videos; rank 0 then has nothing to tell."""
    monkeypatch.setenv("RANK", "8")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert run_script(lambda: fail_with(ValueError("no manifest"))) == 2
    assert capsys.readouterr().err == f"{socket.gethostname()}: error: no manifest\n"


def parse(*arguments: str) -> dict[str, object]:
    parser = ArgumentParser()
    parser.add_argument("--short_side", type=int)
    parser.add_argument_group("of a group").add_argument("--keep-partial", action="store_true")
    parser.add_argument("names", nargs="*")
    return vars(parser.parse_args(arguments))


@pytest.mark.parametrize("side", ["--short_side=7", "--short-side=7", "--short-s=7"])
@pytest.mark.parametrize("keep", ["--keep-partial", "--keep_partial", "--keep_p"])
def test_hyphens_and_underscores_of_an_option_are_one(side, keep):
    expected = {"short_side": 7, "keep_partial": True, "names": ["a-b=c_d"]}
    assert parse(side, keep, "a-b=c_d") == expected
    name, value = side.split("=")
    assert parse(name, value, keep, "a-b=c_d") == expected


def test_options_of_a_subcommand_too():
    parser = ArgumentParser()
    parser.add_subparsers(dest="command").add_parser("copy").add_argument("--dry_run", action="store_true")
    assert parser.parse_args(["copy", "--dry-run"]) == argparse.Namespace(command="copy", dry_run=True)


def test_an_exact_spelling_comes_first():
    parser = ArgumentParser()
    parser.add_argument("--keep_ratio")
    parser.add_argument("--keep-ratio-of")
    assert vars(parser.parse_args(["--keep-ratio-of", "1", "--keep_ratio", "2"])) == {"keep_ratio_of": "1", "keep_ratio": "2"}


def test_what_follows_two_hyphens_is_no_option():
    assert parse("--", "--short-side=7")["names"] == ["--short-side=7"]


def test_an_error_quotes_an_unknown_option_as_it_was_typed_in_one_clean_line(capsys):
    with pytest.raises(SystemExit, match="2"):
        parse("--shortest-side\x1b[2J=7")
    error = capsys.readouterr().err
    assert "--shortest-side" in error and "\x1b" not in error


def test_an_ambiguous_abbreviation_is_refused():
    parser = ArgumentParser()
    parser.add_argument("--keep_ratio")
    parser.add_argument("--keep_rows")
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(["--keep-r", "1"])
