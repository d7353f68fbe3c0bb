"""A plan beside what was measured."""

import json

from mats_ds.planning.plan_file import write_plan
from tests.reporting.fake_runs import GIB, make_plan, make_record, run_report, write_fake_run


def test_a_plan_is_set_against_what_was_measured(tmp_path, capsys):
    run_dir = write_fake_run(tmp_path / "run", record=lambda step, rank: make_record(step, rank, peak_reserved_bytes=9 * GIB))
    assert "planned" not in run_report(capsys, run_dir)[1]
    write_plan(run_dir, make_plan())
    words = " ".join(run_report(capsys, run_dir)[1].split())
    assert "peak memory of a GPU 10.56 GiB, measured 10.00 GiB (0.95 x)" in words
    assert "step 0.8 s, measured 1 s (1.25 x)" in words
    pairs = {pair["name"]: pair for pair in json.loads((run_dir / "report.json").read_text())["plan"]}
    assert pairs["weights"]["ratio"] == 1.0
    assert pairs["clips a second"] == {"name": "clips a second", "planned": 7.5, "measured": 6.0, "ratio": 0.8}
    assert "MFU" not in pairs  # not planned


def test_a_spoilt_plan_is_an_error_of_one_line(tmp_path, capsys):
    run_dir = write_fake_run(tmp_path / "run")
    (run_dir / "plan.json").write_text("{")
    status, _, errors = run_report(capsys, run_dir)
    assert (status, errors.count("\n")) == (2, 1)
    assert "plan.json is not valid JSON" in errors


def test_on_a_cpu_a_plan_is_still_shown(tmp_path, capsys):
    run_dir = write_fake_run(tmp_path / "run")
    write_plan(run_dir, make_plan())
    assert run_report(capsys, run_dir)[0] == 0
    pairs = {pair["name"]: pair for pair in json.loads((run_dir / "report.json").read_text())["plan"]}
    assert pairs["peak memory of a GPU"]["measured"] is None
    assert pairs["weights"]["measured"] == GIB  # exact, from the engine's tensors
