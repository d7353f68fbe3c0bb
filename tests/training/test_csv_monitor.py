"""A resumed run goes on in the CSV files that DeepSpeed's monitor made for it, and touches no
other."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from mats_ds.training.csv_monitor import HEADERS, continue_csv, name_foreign_file


def go_on(folder, *, clips):
    monitor = SimpleNamespace(log_dir=str(folder), filenames=[])
    continue_csv(monitor, clips=clips)
    return monitor.filenames


def test_steps_that_are_done_again_go_and_a_row_that_was_not_finished(tmp_path):
    file = tmp_path / "mats_loss.csv"
    file.write_bytes(b"step,loss\r\n16,0.5\r\n32,0.4\r\n48,0.3\r\n3")
    assert go_on(tmp_path, clips=32) == ["mats_loss"]
    assert file.read_bytes() == b"step,loss\r\n16,0.5\r\n32,0.4\r\n"
    assert [path.name for path in tmp_path.iterdir()] == ["mats_loss.csv"]


def test_rows_of_earlier_runs_in_the_same_file_stay(tmp_path):
    """DeepSpeed appends to what it finds, and begins with its header."""
    file = tmp_path / "Train_Samples_lr.csv"
    earlier = b"step,lr\r\n160,1\r\n800,2\r\n"
    file.write_bytes(earlier + b"step,lr\r\n16,5\r\n32,6\r\n")
    go_on(tmp_path, clips=16)
    assert file.read_bytes() == earlier + b"step,lr\r\n16,5\r\n"


FOREIGN = {
    "index.csv": b"sample,shard,row\n7,1,0\n800,1,1\n",  # what extract leaves
    "quarantine.csv": b"",
    "other.csv": b"step,other\n800,1\n",
    # the name of an event, and another program's header
    "mats_loss.csv": b"step,loss,seconds\n800,1,2\n",
    "mats_grad_norm.csv": b"\xff\xfe800,1",
    "mats_mine.csv": b"step,mine\n800,1\n",  # of no event that is sent
}


@pytest.mark.parametrize("name", FOREIGN)
def test_files_of_others_stay_byte_for_byte(tmp_path, name):
    (tmp_path / name).write_bytes(FOREIGN[name])
    before = (tmp_path / name).stat()
    assert go_on(tmp_path, clips=16) == []
    after = (tmp_path / name).stat()
    assert (tmp_path / name).read_bytes() == FOREIGN[name] and (after.st_ino, after.st_mtime_ns) == (
        before.st_ino,
        before.st_mtime_ns,
    )


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "precious.csv").write_bytes(b"step,loss\r\n800,1\r\n")
    (tmp_path / "logs" / "mats_loss.csv").symlink_to(tmp_path / "precious.csv")
    assert go_on(tmp_path / "logs", clips=16) == []
    assert (tmp_path / "precious.csv").read_bytes() == b"step,loss\r\n800,1\r\n" and (
        tmp_path / "logs" / "mats_loss.csv"
    ).is_symlink()


def test_a_file_without_steps_to_do_again_is_left_alone(tmp_path):
    file = tmp_path / "mats_loss.csv"
    file.write_bytes(b"step,loss\r\n16,0.5\r\n")
    before = file.stat().st_ino
    assert go_on(tmp_path, clips=16) == ["mats_loss"] and file.stat().st_ino == before
    file.write_bytes(b"")
    assert go_on(tmp_path, clips=16) == [], "DeepSpeed has to write the header"


def test_deepspeeds_monitor_makes_these_names_and_headers(tmp_path, monkeypatch):
    import deepspeed.comm
    from deepspeed.monitor.config import CSVConfig
    from deepspeed.monitor.csv_monitor import csvMonitor

    from mats_ds.training.csv_monitor import DEEPSPEED_EVENTS, OUR_EVENTS

    monkeypatch.setattr(deepspeed.comm, "get_rank", lambda group=None: 0)
    monitor = csvMonitor(CSVConfig(enabled=True, output_path=str(tmp_path), job_name="run"))
    monitor.write_events([(name, 0.5, 16) for name in (*OUR_EVENTS, *DEEPSPEED_EVENTS)])
    made = {path.stem: path.read_text().splitlines()[0] for path in (tmp_path / "run").iterdir()}
    assert made == HEADERS


@pytest.mark.parametrize("content", [b"\n", b"\r\n800,1\r\n"])
def test_a_file_that_begins_with_an_empty_line_is_not_deepspeeds(tmp_path, content):
    (tmp_path / "mats_loss.csv").write_bytes(content)
    assert "mats_loss.csv does not begin with" in name_foreign_file(tmp_path)
    assert go_on(tmp_path, clips=16) == [] and (tmp_path / "mats_loss.csv").read_bytes() == content


def test_a_row_of_thousands_of_digits_goes_as_one_that_was_not_finished(tmp_path):
    (tmp_path / "mats_loss.csv").write_bytes(b"step,loss\r\n16,0.5\r\n" + b"9" * 5000 + b",1\r\n")
    assert go_on(tmp_path, clips=10**18) == ["mats_loss"]
    assert (tmp_path / "mats_loss.csv").read_bytes() == b"step,loss\r\n16,0.5\r\n"
