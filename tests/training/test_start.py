"""The options of a training script."""

from __future__ import annotations

import argparse

import pytest

from mats_ds.training.start import add_run_options


def test_a_recipe_must_be_named_where_there_is_no_default(capsys):
    parser = argparse.ArgumentParser()
    add_run_options(parser, default_recipe=None)
    with pytest.raises(SystemExit):
        parser.parse_args(["--ds_config", "x.json"])
    assert "--recipe" in capsys.readouterr().err
