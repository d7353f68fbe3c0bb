"""Step records: valid JSON lines, and a reader that bears torn lines, resumed runs and files of
other versions."""

import json
import math

import pytest

from mats_ds.core.run_dir import SCHEMA
from mats_ds.metering.record_reader import read_records
from mats_ds.metering.step_record import RecordWriter, StepRecord, dump_record, parse_record


def make_record(step=1, rank=0, **changes):
    fields = dict(
        schema=SCHEMA, step=step, epoch=0, rank=rank, unix_seconds=1e9 + step, loss=1 / step, learning_rate=1e-3, grad_norm=0.5,
        num_clips=3, num_substitutes=0, num_bad_clips=0, num_bad_clips_total=0, data_seconds=0.1, forward_seconds=0.2,
        backward_seconds=0.3, optimizer_seconds=0.05, total_seconds=0.7, clips_per_second=3 / 0.7, kept=47, visible=15,
        targets=32, num_tokens=156, model_flops=9, hardware_flops=12, rss_bytes=1000, peak_rss_bytes=2000,
    )  # fmt: skip
    return StepRecord(**(fields | changes))


def write(run_dir, *records, rank=0):
    writer = RecordWriter(run_dir, rank=rank)
    for record in records:
        writer.append(record)
    writer.close()
    return writer.path


def steps(run_dir):
    return [(record.rank, record.step) for record in read_records(run_dir)]


def test_a_record_survives_the_way_to_json_and_back():
    record = make_record(step=7, loss=0.1 + 0.2, grad_norm=None, peak_allocated_bytes=5, nvml_power_watts=281.5)
    back = parse_record(dump_record(record))
    assert (back.loss, back.grad_norm, back.peak_allocated_bytes, back.nvml_power_watts) == (0.1 + 0.2, None, 5, 281.5)
    assert back.clips_per_second == pytest.approx(record.clips_per_second, abs=1e-6)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_cannot_hold_are_strings(loss):
    line = dump_record(make_record(loss=loss))
    json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert repr(parse_record(line).loss) == repr(loss)


def test_each_rank_has_its_own_file_and_reads_back_in_order(tmp_path):
    write(tmp_path, make_record(1, rank=2), make_record(2, rank=2), rank=2)
    path = write(tmp_path, make_record(1), make_record(2))
    assert path == tmp_path / "records" / "rank-00000.jsonl"
    reader = read_records(tmp_path)
    assert reader.ranks == (0, 2)
    assert (reader.first_step, reader.last_step) == (1, 2)
    assert steps(tmp_path) == [(0, 1), (0, 2), (2, 1), (2, 2)]


def test_a_line_is_on_disk_as_soon_as_it_is_appended(tmp_path):
    writer = RecordWriter(tmp_path, rank=0)
    writer.append(make_record(1))
    assert steps(tmp_path) == [(0, 1)]
    writer.close()


@pytest.mark.parametrize("length", [1, 20, 200])
def test_a_torn_last_line_is_counted_and_the_rest_is_read(tmp_path, length):
    path = write(tmp_path, make_record(149), make_record(150))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1][:length])
    reader = read_records(tmp_path)
    assert [record.step for record in reader] == [149]
    assert reader.num_unreadable == 1
    assert reader.unreadable == ["rank-00000.jsonl line 2: torn: the writer was stopped in the middle of it"]


def test_a_resumed_run_begins_on_a_new_line_after_a_torn_one(tmp_path):
    path = write(tmp_path, make_record(1), make_record(2))
    path.write_bytes(path.read_bytes()[:-30])
    write(tmp_path, make_record(2, loss=42.0), make_record(3))
    reader = read_records(tmp_path)
    assert [(record.step, record.loss) for record in reader] == [(1, 1.0), (2, 42.0), (3, 1 / 3)]
    assert reader.num_unreadable == 1


def test_a_torn_step_number_does_not_count_as_a_step_back(tmp_path):
    path = write(tmp_path, make_record(149), make_record(150))
    text = path.read_text()
    path.write_text(text[: text.index('"step":150') + len('"step":15')])
    write(tmp_path, make_record(150), make_record(151))
    assert steps(tmp_path) == [(0, 149), (0, 150), (0, 151)]


def test_steps_of_a_resumed_run_supersede_the_older_ones_from_its_first_step_on(tmp_path):
    write(tmp_path, *(make_record(step, loss=1.0) for step in range(1, 8)))
    write(tmp_path, *(make_record(step, loss=2.0) for step in range(5, 7)))
    write(tmp_path, *(make_record(step, loss=3.0) for step in range(6, 10)))
    reader = read_records(tmp_path)
    assert (reader.first_step, reader.last_step) == (1, 9)
    assert [(record.step, record.loss) for record in reader] == [
        *((step, 1.0) for step in range(1, 5)), (5, 2.0), *((step, 3.0) for step in range(6, 10))
    ]  # fmt: skip
    assert reader.num_superseded == 4


def test_a_run_started_again_from_scratch_leaves_nothing_of_the_first(tmp_path):
    write(tmp_path, make_record(3, loss=1.0), make_record(4, loss=1.0))
    write(tmp_path, make_record(1, loss=2.0))
    assert [(record.step, record.loss) for record in read_records(tmp_path)] == [(1, 2.0)]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("[1, 2}", "Expecting"),
        (dump_record(make_record(2)) + "{}", "more than one JSON value"),
        ("\ufffd{}", "Expecting"),
        ('{"step": 3}', "missing or of the wrong type: schema, epoch"),
        (dump_record(make_record(2)).replace('"schema":2', '"schema":3'), "update mats_ds"),
        (dump_record(make_record(2)).replace('"num_clips":3', '"num_clips":"3"'), "wrong type: num_clips"),
        (dump_record(make_record(2)).replace('"loss":0.5', '"loss":"small"'), "could not convert"),
    ],
)
def test_unreadable_lines_are_named_with_their_reason(tmp_path, line, complaint):
    path = write(tmp_path, make_record(1))
    path.write_text(path.read_text() + line + "\n" + dump_record(make_record(4)) + "\n")
    reader = read_records(tmp_path)
    assert [record.step for record in reader] == [1, 4]
    assert reader.num_unreadable == 1
    assert reader.unreadable[0].startswith("rank-00000.jsonl line 2: ")
    assert complaint in reader.unreadable[0]


def test_keys_of_a_later_version_are_ignored():
    tree = json.loads(dump_record(make_record(2))) | {"new_figure": 1}
    assert parse_record(json.dumps(tree)) == parse_record(dump_record(make_record(2)))


def test_lines_appended_while_reading_wait_for_the_next_reader(tmp_path):
    write(tmp_path, make_record(1))
    reader = read_records(tmp_path)
    write(tmp_path, make_record(2))
    assert [record.step for record in reader] == [1]


def test_a_folder_without_records_has_no_ranks(tmp_path):
    assert read_records(tmp_path).ranks == ()
    assert read_records(tmp_path).first_step is None
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "rank-00000.jsonl").touch()
    reader = read_records(tmp_path)
    assert (reader.ranks, reader.first_step, list(reader), reader.num_unreadable) == ((0,), None, [], 0)


def test_the_figure_to_show_is_the_reserved_peak_on_a_gpu_and_the_process_on_a_cpu():
    on_cpu = make_record()
    assert (on_cpu.memory_bytes, on_cpu.memory_name, on_cpu.device_peak_bytes) == (1000, "host RSS", 2000)
    on_gpu = make_record(peak_allocated_bytes=40, peak_reserved_bytes=50, nvml_used_bytes=60)
    assert (on_gpu.memory_bytes, on_gpu.memory_name, on_gpu.device_peak_bytes) == (50, "GPU reserved peak", 60)
