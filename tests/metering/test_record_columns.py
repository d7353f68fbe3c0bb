"""Columns say what the records say, whatever stands between the lines."""

import json
import math
import random

import numpy as np
import pytest

from mats_ds.metering.record_columns import join_columns, parse_lines
from mats_ds.metering.record_reader import read_records
from mats_ds.metering.step_record import StepRecord, dump_record
from tests.metering.test_step_record import make_record, write

NAMES = ("step", "loss", "num_clips", "peak_reserved_bytes", "joules", "grad_norm", "total_seconds")


def read_columns(run_dir, names=NAMES):
    reader = read_records(run_dir)
    parts = list(reader.by_rank[0].columns(names))
    return (join_columns(parts) if parts else None), reader


def as_number(value):
    return math.nan if value is None else float(value)


def assert_equal_to_records(run_dir):
    columns, reader = read_columns(run_dir)
    counts = (reader.num_superseded, reader.num_unreadable, reader.unreadable)
    records = list(reader)
    for name in NAMES:
        np.testing.assert_array_equal(columns[name], [as_number(getattr(record, name)) for record in records])
    assert columns.steps.tolist() == [record.step for record in records]
    assert columns.lost.tolist() == [record.loss is not None and not math.isfinite(record.loss) for record in records]
    assert (reader.num_superseded, reader.num_unreadable, reader.unreadable) == counts


def test_numbers_nulls_and_what_is_no_number(tmp_path):
    values = [0.5, None, math.nan, math.inf, -math.inf, 3]
    write(
        tmp_path, *(make_record(step, loss=loss, joules=None if step % 2 else 2.5) for step, loss in enumerate(values, start=1))
    )
    assert_equal_to_records(tmp_path)
    assert read_columns(tmp_path)[0].lost.tolist() == [False, False, True, True, True, False]


def test_bytes_of_any_machine_are_exact(tmp_path):
    write(tmp_path, make_record(1, peak_reserved_bytes=2**52 + 1))
    assert int(read_columns(tmp_path)[0]["peak_reserved_bytes"][0]) == 2**52 + 1


def test_records_of_the_first_schema_and_of_this_one_in_one_file(tmp_path):
    path = write(tmp_path, *(make_record(step) for step in range(1, 5)))
    new = ("peak_active_bytes", "peak_inactive_bytes", "clip_bytes", "activation_bytes", "joules", "mfu", "hfu")
    trees = [{key: value for key, value in json.loads(line).items() if key not in new} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(tree | {"schema": 1}) + "\n" for tree in trees))
    write(tmp_path, make_record(5, joules=7.0))
    assert_equal_to_records(tmp_path)
    assert read_columns(tmp_path)[0]["joules"].tolist()[-1] == 7.0


@pytest.mark.parametrize(
    "line",
    [
        b"", b"{", b"[]", b"nothing", b'{"schema":2,"step":7,"ep', b"\xff\xfe", dump_record(make_record(7)).encode() + b"{}",
        dump_record(make_record(7)).replace('"schema":2', '"schema":3').encode(),
        dump_record(make_record(7)).replace('"num_clips":3', '"num_clips":"3"').encode(),
        dump_record(make_record(7)).replace('"num_clips":3', '"num_clips":3.5').encode(),
        dump_record(make_record(7)).replace('"total_seconds":0.7', '"total_seconds":null').encode(),
        dump_record(make_record(7)).replace(f'"loss":{1 / 7}', '"loss":"small"').encode(),
    ],
)  # fmt: skip
def test_an_unreadable_line_costs_itself_and_is_named_alike(tmp_path, line):
    path = write(tmp_path, *(make_record(step) for step in range(1, 7)))
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([*lines[:3], line, *lines[3:]]) + b"\n")
    assert_equal_to_records(tmp_path)
    assert len(read_columns(tmp_path)[0]) == 6


def test_a_file_of_rubbish_has_no_columns(tmp_path):
    path = write(tmp_path, make_record(1))
    path.write_bytes(b"[\n]\n{}\n")
    columns, reader = read_columns(tmp_path)
    assert (columns, reader.num_unreadable) == (None, 3)


def test_two_lines_that_are_one_value_together_are_two_faults():
    assert list(parse_lines([b'{"schema":[1', b"2]}"], NAMES)) == [0, 1]


@pytest.mark.parametrize("seed", range(5))
def test_a_run_that_was_killed_and_resumed_at_random(tmp_path, seed):
    dice = random.Random(seed)
    first = 1
    for _ in range(4):
        path = write(
            tmp_path, *(make_record(step, loss=dice.random()) for step in range(first, first + dice.randrange(300, 900)))
        )
        path.write_bytes(path.read_bytes()[: -dice.choice((0, 0, 5, 60, 900)) or None])
        first = max(1, first + dice.randrange(0, 500))
    assert_equal_to_records(tmp_path)


def test_every_field_can_be_asked_for(tmp_path):
    record = make_record(3, peak_reserved_bytes=5, mfu=0.4)
    write(tmp_path, record)
    names = [name for name in StepRecord.__dataclass_fields__ if name != "schema"]
    columns, _ = read_columns(tmp_path, names)
    assert {name: columns[name][0] for name in ("epoch", "rank", "mfu", "num_tokens")} == {
        "epoch": 0.0, "rank": 0.0, "mfu": 0.4, "num_tokens": 156.0
    }  # fmt: skip
