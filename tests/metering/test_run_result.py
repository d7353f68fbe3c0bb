"""The result of a training: the last weights', whatever was better on the way."""

from __future__ import annotations

import pytest

from mats_ds.metering.run_result import RESULT_FILE, conclude, read_result


def line(step, top1, **changes):
    about = dict(measured_on="set/val.csv", clips=2, crops=3, averaged=False, num_unreadable=1)
    return dict(step=step, top1=top1, top5=1.0, num_videos=8, **about) | changes


def test_the_last_test_is_the_result_and_the_best_one_is_named_with_what_chose_it():
    result = conclude(
        [line(5, 0.5), line(10, 0.875), line(15, 0.875), line(20, 0.25)], num_trained_on=0, best_file="b.safetensors"
    )
    tree, (first, second) = result.as_json(), result.describe()
    assert tree["weights"] == {"from": "last", "step": 20, "averaged": False, "chosen_on": None}
    assert (tree["top1"]["hits"], tree["top1"]["total"], tree["top1"]["value"]) == (2, 8, 0.25)
    assert tree["videos"] == {"scored": 8, "unreadable": 1, "trained_on": 0}
    best = tree["best"]
    assert (best["step"], best["top1_where_chosen"], best["tests"], best["chosen_on"]) == (10, 0.875, 4, "set/val.csv")
    for words in ("top-1 25.00% (95% interval", "8 videos of set/val.csv", "2 x 3 views", "step 20"):
        assert words in first
    for words in ("b.safetensors", "step 10", "best of 4 tests on set/val.csv", "87.50%", "no result"):
        assert words in second


def test_what_was_trained_on_is_said():
    result = conclude([line(5, 0.5, averaged=True)], num_trained_on=3, best_file="b")
    assert "training has seen 3 of these" in result.describe()[1] and "average" in result.describe()[0]


def test_tests_of_version_0_1_do_not_say_what_they_were_measured_on():
    old = line(5, 0.75, measured_on=None, clips=None, crops=None, averaged=None)
    result = conclude([old, line(10, 0.5)], num_trained_on=0, best_file="b")
    assert "best of 2 tests on set/val.csv" in result.describe()[1]
    assert result.as_json()["best"]["averaged"] is None


def test_a_run_that_went_on_with_another_manifest_has_no_best_of_the_first():
    tests = [line(5, 1.0, measured_on="set/other.csv"), line(10, 0.5), line(15, 0.25)]
    best = conclude(tests, num_trained_on=0, best_file="b").as_json()["best"]
    assert (best["step"], best["tests"], best["chosen_on"]) == (10, 2, "set/val.csv")


def test_without_a_test_there_is_no_result(tmp_path):
    assert conclude([], num_trained_on=0, best_file="b") is None
    assert read_result(tmp_path) is None
    (tmp_path / RESULT_FILE).write_text('{"words": 3}')
    with pytest.raises(ValueError, match=r"result\.json is not of this version"):
        read_result(tmp_path)
