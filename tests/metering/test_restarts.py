"""The first look at a file: where it was begun again, without reading the records."""

import pytest

from mats_ds.metering import restarts
from mats_ds.metering.restarts import find_stretches
from mats_ds.metering.step_record import MAX_LINE_BYTES
from tests.metering.test_step_record import make_record, write


def find(tmp_path, text):
    path = tmp_path / "file.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    found = find_stretches(path)
    return found.starts, found.num_lines, found.last_step


def line(step, rest=',"epoch":0}\n'):
    return f'{{"schema":2,"step":{step}{rest}'


def test_ascending_steps_are_one_stretch_whatever_their_number_of_digits(tmp_path):
    steps = [1, 9, 10, 99_999, 1_234_567_890_123]
    assert find(tmp_path, "".join(map(line, steps))) == ([(0, 1)], 5, steps[-1])


def test_a_step_that_goes_back_or_repeats_begins_a_stretch(tmp_path):
    assert find(tmp_path, "".join(map(line, [1, 2, 3, 3, 4, 2]))) == ([(0, 1), (3, 3), (5, 2)], 6, 2)


@pytest.mark.parametrize("torn", ['{"schema":2,"step":15', "\n", "garbage\n", '{"schema":2,"step":,"epoch":0}\n', line("null")])
def test_torn_and_foreign_lines_are_lines_of_no_step(tmp_path, torn):
    text = line(149) + torn + ("" if torn.endswith("\n") else "\n") + line(150)
    assert find(tmp_path, text) == ([(0, 149)], 3, 150)


def test_keys_in_another_order_or_with_blanks_are_found_too(tmp_path):
    assert find(tmp_path, '{"epoch": 0, "step": 7, "schema": 2}\n' + line(8)) == ([(0, 7)], 2, 8)


def test_a_last_line_without_an_end_is_counted_and_not_believed(tmp_path):
    assert find(tmp_path, line(1) + line(12).rstrip("\n")) == ([(0, 1)], 2, 1)
    assert find(tmp_path, line(1) + '{"sch') == ([(0, 1)], 2, 1)


def test_an_empty_file(tmp_path):
    assert find(tmp_path, "") == ([], 0, None)


def test_a_run_that_was_resumed_begins_a_stretch(tmp_path):
    path = write(tmp_path, *(make_record(step) for step in (*range(1, 40), *range(20, 30))))
    assert find_stretches(path) == restarts.Stretches([(0, 1), (39, 20)], 49, 29)


def test_a_line_longer_than_any_record_is_one_line_of_no_step(tmp_path, monkeypatch):
    text = line(1) + line(5, rest="x" * MAX_LINE_BYTES + "}\n") + line(2)
    for size in (1, 100, 1 << 20):
        monkeypatch.setattr(restarts, "BLOCK_BYTES", size)
        assert find(tmp_path, text) == ([(0, 1)], 3, 2)
