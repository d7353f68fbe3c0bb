"""What a PASS is limited to: a run on other hardware than the budget's proves nothing about it, and
every form of the report says so."""

import json
import re
import time

import pytest

from mats_ds.reporting.page.headline import show_date, show_started
from mats_ds.reporting.scope import find_scope
from tests.reporting.fake_runs import gpu_record, make_record, run_report, write_fake_run

A100 = "NVIDIA A100-SXM4-80GB"
A100_BYTES = 84_987_084_800


def scope_of(**changes):
    facts = dict(
        budget_name="8xa100-80g", gpus=8, memory_per_gpu_bytes=A100_BYTES, num_ranks=8, on_gpu=True, device_name=A100,
        device_memory_bytes=A100_BYTES,
    )  # fmt: skip
    return find_scope(**(facts | changes))


def test_on_the_hardware_of_the_budget_nothing_is_limited():
    assert scope_of() == scope_of(device_memory_bytes=None)
    assert (scope_of().qualifier, scope_of().caveats) == ("", ())


@pytest.mark.parametrize(
    ("changes", "qualifier"),
    [
        ({"on_gpu": False, "device_name": "CPU"}, "on a CPU"),
        ({"num_ranks": 2}, "on 2 of 8 GPUs"),
        ({"device_name": "NVIDIA H100 80GB HBM3"}, "on NVIDIA H100 80GB HBM3"),
        ({"device_name": "NVIDIA Foo 9000"}, "on NVIDIA Foo 9000"),
        ({"device_name": f"{A100} MIG 3g.40gb"}, f"on {A100} MIG 3g.40gb"),
        ({"device_name": "NVIDIA A100-SXM4-40GB", "device_memory_bytes": 42_000_000_000}, "on NVIDIA A100-SXM4-40GB"),
        ({"device_name": "NVIDIA Foo 9000", "num_ranks": 1}, "on NVIDIA Foo 9000, 1 of 8 GPUs"),
        ({"budget_name": "our node", "device_memory_bytes": 24_000_000_000}, f"on {A100}"),
        ({"budget_name": "our node"}, ""),  # of a GPU that is not named nothing is known but its size
    ],
)
def test_each_difference_limits_it(changes, qualifier):
    scope = scope_of(**changes)
    assert scope.qualifier == qualifier
    assert len(scope.caveats) == qualifier.count(",") + bool(qualifier)


@pytest.mark.parametrize(
    ("facts", "qualifier"),
    [
        ({}, "on a CPU"),
        (dict(record=gpu_record, device="cuda:0", device_name=A100), "on 2 of 8 GPUs"),
        (dict(record=gpu_record, device="cuda:0", device_name="NVIDIA H100 80GB HBM3", world_size=8), "on NVIDIA H100 80GB HBM3"),
        (dict(record=gpu_record, device="cuda:0", device_name=A100, world_size=8), ""),
    ],
)
def test_every_form_of_the_report_says_it(tmp_path, capsys, facts, qualifier):
    run_dir = write_fake_run(tmp_path / "run", **facts)
    status, text, _ = run_report(capsys, run_dir)
    tree, page = json.loads((run_dir / "report.json").read_text()), (run_dir / "report.html").read_text()
    first_line, title = text.splitlines()[0], re.search("<title>(.*)</title>", page)[1]
    assert (status, first_line[:5], tree["passed"], tree["state"]) == (0, "PASS:", True, "finished")
    assert title == f"PASS {qualifier}: run" if qualifier else "PASS: run"
    assert tree["is_about_the_budget"] is not bool(qualifier)
    assert len(tree["caveats"]) == bool(qualifier)
    assert all(caveat in " ".join(text.split()) and caveat in page for caveat in tree["caveats"])
    assert qualifier in first_line and qualifier in tree["headline"]
    assert ('<section class="verdict pass limited"' in page) is bool(qualifier)
    if qualifier == "on a CPU":
        assert "within the budget" not in first_line and "% of the" not in first_line


def test_a_run_that_goes_on_is_not_called_failed_on_the_page(tmp_path, capsys):
    def record(step, rank):
        return make_record(step, rank, unix_seconds=time.time())

    run_dir = write_fake_run(tmp_path / "run", outcome=None, record=record)
    assert run_report(capsys, run_dir)[0] == 1  # it is no pass either
    page = (run_dir / "report.html").read_text()
    assert "<title>NOT YET on a CPU: run</title>" in page
    assert json.loads((run_dir / "report.json").read_text())["state"] == "running"
    old = write_fake_run(tmp_path / "old", outcome=None)
    run_report(capsys, old)
    assert "<title>FAIL on a CPU: old</title>" in (old / "report.html").read_text()
    assert json.loads((old / "report.json").read_text())["state"] == "killed"


def test_dates_are_for_people(monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    try:
        assert show_started("2026-01-05 10:00:00") == "5 January 2026, 10:00"
        assert show_started("2026-01-05T10:00:00+0130") == "5 January 2026, 08:30 UTC"
        assert show_started("2026-13-05 10:00:00") == "2026-13-05 10:00:00"
        assert show_started("") == "at an unknown time"
        assert show_date(1e300) == "an unknown date"
    finally:
        monkeypatch.undo()
        time.tzset()
