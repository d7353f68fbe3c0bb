"""Which rank the others wait for."""

import json
import random

import pytest

from tests.reporting.fake_runs import make_record, run_report, write_fake_run


@pytest.mark.parametrize(
    ("late_seconds", "words"),
    [(0.001, "well balanced"), (0.3, "rank 1 is the last in 100% of 40 steps (1 of 3 ranks: 33%")],
)
def test_the_rank_that_others_wait_for_is_named(tmp_path, capsys, late_seconds, words):
    def record(step, rank):
        late = late_seconds if rank == 1 else 0.0
        return make_record(step, rank, forward_seconds=0.25 + late, backward_seconds=0.6 - late)

    run_dir = write_fake_run(tmp_path / "run", num_steps=50, world_size=3, record=record)
    _, text, _ = run_report(capsys, run_dir)
    assert words in " ".join(text.split())
    balance = json.loads((run_dir / "report.json").read_text())["balance"]
    assert balance["lost_share"] == pytest.approx(late_seconds * 2 / 3)
    assert balance["worst_rank"] == 1 and balance["late_rank"] == (1 if late_seconds > 0.1 else None)
    assert balance["late_seconds"]["1"] == pytest.approx(late_seconds * 2 / 3)


def test_one_rank_has_nobody_to_wait_for(tmp_path, capsys):
    run_dir = write_fake_run(tmp_path / "run", world_size=1)
    assert "balance" not in run_report(capsys, run_dir)[1]
    assert json.loads((run_dir / "report.json").read_text())["balance"] is None


def jitter(step, rank, *, by, seed=3):
    """A record whose forward and data take a random time more."""
    late = min(0.7, random.Random(f"{seed} {step} {rank}").expovariate(1 / by))
    return make_record(step, rank, forward_seconds=0.1 + late, backward_seconds=0.75 - late, data_seconds=0.01, total_seconds=1.0)


def test_of_two_ranks_that_are_late_in_turn_none_is_blamed(tmp_path, capsys):
    """Two ranks on a busy CPU: each is last in about half of the steps, and a step is lost all the
    same."""
    run_dir = write_fake_run(tmp_path / "run", num_steps=110, record=lambda step, rank: jitter(step, rank, by=0.15))
    text = " ".join(run_report(capsys, run_dir)[1].split())
    balance = json.loads((run_dir / "report.json").read_text())["balance"]
    assert balance["lost_share"] > 0.05 and balance["late_rank"] is None and balance["num_steps"] == 100
    assert "no single rank is to blame: in 100 steps" in text and "50% by chance" in text and "t-test at 1%" in text
    assert "look at" not in text


def test_of_a_few_steps_nothing_is_said_about_a_rank(tmp_path, capsys):
    def record(step, rank):
        return make_record(step, rank, forward_seconds=0.25 + 0.3 * rank, backward_seconds=0.6 - 0.3 * rank)

    text = " ".join(run_report(capsys, write_fake_run(tmp_path / "run", num_steps=9, record=record))[1].split())
    assert "8 steps after the warm-up: too few to judge" in text and "look at" not in text


def test_a_rank_whose_clips_come_late_is_sent_to_its_disk_and_not_to_its_clocks(tmp_path, capsys):
    def record(step, rank):
        return make_record(step, rank, data_seconds=0.02 + 0.3 * (rank == 2))

    text = " ".join(run_report(capsys, write_fake_run(tmp_path / "run", num_steps=50, world_size=4, record=record))[1].split())
    assert "rank 2 is the last in 100% of 40 steps" in text and "look at its disk and its cores: 225 ms" in text
    assert "(rank 2 most," in text


def test_a_few_slow_reads_are_no_bottleneck(tmp_path, capsys):
    def record(step, rank):
        data_seconds = 4.0 if step in (30, 31) else 0.001
        return make_record(step, rank, data_seconds=data_seconds, total_seconds=0.9 + data_seconds)

    text = " ".join(run_report(capsys, write_fake_run(tmp_path / "run", num_steps=50, record=record))[1].split())
    assert "that is not above 5% by more than chance gives" in text and "num_workers" not in text


def test_the_advice_has_the_runs_own_manifest_and_numbers(tmp_path, capsys):
    def record(step, rank):
        return make_record(step, rank, data_seconds=0.5)

    run_dir = write_fake_run(tmp_path / "run", num_steps=50, record=record)
    (run_dir / "recipe.yaml").write_text("data: {manifest: lists/my clips.csv, root: /data, num_workers: 3, prefetch: 4}")
    text = " ".join(run_report(capsys, run_dir)[1].split())
    assert "prepare transcode 'lists/my clips.csv' --root /data --out copies`" in text
    assert "data.num_workers (now 3)" in text and "data.prefetch (now 4)" in text
    (run_dir / "recipe.yaml").write_text("data: [1, 2")
    assert "raise data.num_workers" in " ".join(run_report(capsys, run_dir)[1].split())
