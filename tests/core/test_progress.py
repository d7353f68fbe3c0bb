"""The end of a job as every line of progress estimates it."""

from __future__ import annotations

import logging
import time

from mats_ds.core import progress
from mats_ds.core.progress import Ticker, TimeLeft, format_clock, show_progress


class Clock:
    def __init__(self):
        self.seconds = 1000.0

    def __call__(self):
        return self.seconds


def left_after(times, *, total, done=0):
    """The estimate after each unit, which ends at these seconds."""
    clock = Clock()
    left = TimeLeft(total, done=done, now=clock)
    told = []
    for number, seconds in enumerate(times, start=done + 1):
        clock.seconds = 1000.0 + seconds
        told.append(left.seconds(number))
    return told


def test_nothing_is_guessed_before_it_was_measured_and_the_first_unit_counts_for_nothing():
    # the first takes 50 s, all others 2 s
    assert left_after([50, 52, 54, 56, 58], total=10) == [None, None, None, 12.0, 10.0]


def test_of_long_units_one_is_enough():
    assert left_after([300, 400], total=4) == [None, 200.0]


def test_what_an_earlier_start_did_is_no_speed():
    assert left_after([5, 7, 9, 11], total=104, done=90) == [None, None, None, 20.0]


def test_the_end_is_the_end():
    assert left_after([1], total=1) == [0.0]
    assert TimeLeft(1).describe(1) == "done"


def test_words_are_honest_at_the_beginning_and_long_jobs_get_the_clock():
    clock = Clock()
    left = TimeLeft(1000, now=clock)
    assert "measured after a few steps" in left.describe(0)
    for number in range(1, 6):
        clock.seconds += 60
        left.seconds(number)
    text = left.describe(5)
    assert text.startswith("about 16 h 35 min left, until "), text
    assert left.describe(990) and "until" not in TimeLeft(2).describe(1)


def test_another_day_is_named():
    now = time.mktime((2026, 11, 28, 12, 0, 0, 0, 0, -1))
    assert format_clock(now + 3600, now_seconds=now) == "13:00"
    assert format_clock(now + 86_400 * 3, now_seconds=now) == "2026-12-01 12:00"
    assert format_clock(1e20, now_seconds=now)


def test_lines_come_with_the_time_left_where_there_is_no_terminal(monkeypatch, caplog):
    monkeypatch.setattr(progress, "LINE_SECONDS", -1.0)
    with caplog.at_level(logging.INFO, logger="mats_ds"):
        assert list(show_progress("abcdef", total=6, label="test", unit="batch")) == list("abcdef")
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "test: 1 of 6 batches; time left: measured after a few batches"
    assert lines[4].startswith("test: 5 of 6 batches; about ") and lines[5] == "test: 6 of 6 batches; done"


def test_without_a_label_nothing_is_said(monkeypatch, caplog):
    monkeypatch.setattr(progress, "LINE_SECONDS", -1.0)
    with caplog.at_level(logging.INFO, logger="mats_ds"):
        ticker = Ticker("", 3, unit="step")
        ticker(1)
    assert not caplog.records
