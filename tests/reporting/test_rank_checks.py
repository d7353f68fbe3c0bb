"""Which rank the others wait for."""

import json

import pytest

from tests.reporting.fake_runs import make_record, run_report, write_fake_run


@pytest.mark.parametrize(("late_seconds", "words"), [(0.001, "well balanced"), (0.3, "rank 1 is the last in 100% of the steps")])
def test_the_rank_that_others_wait_for_is_named(tmp_path, capsys, late_seconds, words):
    def record(step, rank):
        late = late_seconds if rank == 1 else 0.0
        return make_record(step, rank, forward_seconds=0.25 + late, backward_seconds=0.6 - late)

    run_dir = write_fake_run(tmp_path / "run", world_size=3, record=record)
    _, text, _ = run_report(capsys, run_dir)
    assert words in " ".join(text.split())
    balance = json.loads((run_dir / "report.json").read_text())["balance"]
    assert balance["lost_share"] == pytest.approx(late_seconds * 2 / 3)
    assert balance["worst_rank"] == 1
    assert balance["late_seconds"]["1"] == pytest.approx(late_seconds * 2 / 3)


def test_one_rank_has_nobody_to_wait_for(tmp_path, capsys):
    run_dir = write_fake_run(tmp_path / "run", world_size=1)
    assert "balance" not in run_report(capsys, run_dir)[1]
    assert json.loads((run_dir / "report.json").read_text())["balance"] is None
