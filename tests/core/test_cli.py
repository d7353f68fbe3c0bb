from __future__ import annotations

import argparse

import pytest

from mats_ds.core.cli import ArgumentParser


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
