"""The options of a program that trains."""

from __future__ import annotations

import argparse

import pytest

from mats_ds.training.options import add_run_options


def make_parser(default_recipe=None):
    parser = argparse.ArgumentParser()
    add_run_options(parser, default_recipe=default_recipe)
    return parser


def test_a_recipe_must_be_named_where_there_is_no_default(capsys):
    with pytest.raises(SystemExit):
        make_parser().parse_args(["--ds_config", "x.json"])
    assert "--recipe" in capsys.readouterr().err


def test_overrides_may_stand_before_and_after_options():
    options = make_parser().parse_intermixed_args(["a.b=1", "--recipe", "r", "c.d=2", "--ds_config", "x.json", "e.f=3"])
    assert options.overrides == ["a.b=1", "c.d=2", "e.f=3"]


@pytest.mark.parametrize("number", ["0", "-1", "some"])
def test_a_number_of_traced_steps_is_a_positive_whole_number(number, capsys):
    with pytest.raises(SystemExit):
        make_parser("default").parse_args(["--ds_config", "x.json", f"--trace_steps={number}"])
    assert f"expected a number of steps of at least 1, got '{number}'" in capsys.readouterr().err
