from __future__ import annotations

import pytest

from mats_ds.core.format import (
    format_all,
    format_bytes,
    format_count,
    format_duration,
    format_figure,
    format_flops,
    format_part,
    format_seconds,
    format_views,
)


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1 << 10, "1.0 KiB"),
        (1.5 * 2**20, "1.5 MiB"),
        (61.25 * 2**30, "61.25 GiB"),
        (3 << 40, "3.00 TiB"),
        (-(2**30), "-1.00 GiB"),
    ],
)
def test_bytes_have_the_unit_that_fits(num_bytes, text):
    assert format_bytes(num_bytes) == text


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (0, "step", "0 steps"),
        (1, "shard", "1 shard"),
        (2, "class", "2 classes"),
        (1, "class", "1 class"),
        (3, "copy", "3 copies"),
        (2, "DALI pipeline", "2 DALI pipelines"),
        (2, "GPU", "2 GPUs"),
        (2, "key", "2 keys"),
        (200_000, "step", "200,000 steps"),
        (1_234_567, "annotated entry", "1,234,567 annotated entries"),
    ],
)
def test_a_count_has_the_noun_that_fits(number, noun, text):
    assert format_count(number, noun) == text


def test_all_of_one_is_the_only_one():
    assert [format_all(number, "step") for number in (1, 2, 12_000)] == ["its only step", "all 2 steps", "all 12,000 steps"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "under 0.1 s"), (0.04, "under 0.1 s"), (3.24, "3.2 s"), (12.4, "12 s"), (1250.0, "1,250 s")]
)
def test_a_short_time_is_not_none(seconds, text):
    assert format_seconds(seconds) == text


def test_views_are_clips_times_crops():
    assert [format_views(*counts) for counts in ((1, 1), (1, 3), (5, 1), (5, 3))] == [
        "1 x 1 view",
        "1 x 3 views",
        "5 x 1 views",
        "5 x 3 views",
    ]


@pytest.mark.parametrize(
    ("flops", "text"),
    [(4.2e6, "4.2 MFLOP"), (1.2e11, "120 GFLOP"), (3.25e12, "3.25 TFLOP"), (1.795e17, "179.5 PFLOP"), (1.795e20, "179.5 EFLOP")],
)
def test_flops_have_the_unit_that_fits(flops, text):
    assert format_flops(flops) == text


@pytest.mark.parametrize(("ratio", "text"), [(1, "all tokens"), (0.3, "30% of the tokens"), (0.004, "0.4% of the tokens")])
def test_a_part_is_a_percentage(ratio, text):
    assert format_part(ratio, "tokens") == text


def test_a_large_figure_has_no_exponent():
    assert [format_figure(value) for value in (179_512_340.0, 9999.6, 12.346, 0.012346)] == [
        "179,512,340",
        "10,000",
        "12.35",
        "0.01235",
    ]
    assert format_figure(1234.5, 3) == "1,234" and format_figure(float("inf")) == "inf"
    assert format_figure(8.458e303) == "8.458e+303"
    assert format_flops(1.2345e22) == "12,345 EFLOP"


def test_one_view_is_a_view():
    assert format_views(1, 1) == "1 x 1 view" and format_views(5, 1) == "5 x 1 views" and format_views(1, 3) == "1 x 3 views"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.4, "under 1 s"),
        (12, "12 s"),
        (119, "119 s"),
        (600, "10 min"),
        (12_000, "3 h 20 min"),
        (7200, "2 h"),
        (460_800, "5 days 8 h"),
        (1e9, "11,574 days"),
        (3e301, "over 10,000 years"),
        (float("inf"), "over 10,000 years"),
    ],
)
def test_durations_have_the_units_that_a_person_uses(seconds, text):
    assert format_duration(seconds) == text
