"""Two runs side by side."""

import json

from tests.reporting.fake_runs import GIB, gpu_record, make_record, run_report, write_fake_run


def test_two_runs_are_compared_with_ratios_and_settings(tmp_path, capsys):
    a = write_fake_run(tmp_path / "a", record=gpu_record)
    b = write_fake_run(
        tmp_path / "b", kept=235, versions={"torch": "2.16"},
        record=lambda step, rank: make_record(step, rank, total_seconds=0.5, peak_reserved_bytes=10 * GIB),
    )  # fmt: skip
    (a / "recipe.yaml").write_text("keep: 0.3\nseed: 0\n")
    (b / "recipe.yaml").write_text("keep: 0.15\nseed: 0\n")
    status, text, _ = run_report(capsys, "--compare", a, b)
    rows = {line[:34].strip(): line[34:].split() for line in text.splitlines()}
    assert status == 0
    assert rows["clips a second"][:3] == ["6", "12", "2.000"] and "chance)" in rows["clips a second"]
    assert rows["step, s"][:3] == ["1", "0.5", "0.500"]
    assert rows["peak memory of the worst rank"] == ["22.00", "GiB", "11.00", "GiB", "0.500"]
    assert rows["tokens kept"] == ["470", "235", "0.500"]
    for line in ("- keep: 0.3", "+ keep: 0.15", "- torch 2.15", "+ torch 2.16"):
        assert f"  {line}\n" in text + "\n"
    assert "seed" not in text
    tree = json.loads(run_report(capsys, "--compare", a, b, "--json")[1])
    [step] = [row for row in tree["figures"] if row["name"] == "step, s"]
    assert (step["a"], step["b"], step["ratio"]) == (1.0, 0.5, 0.5) and "steps" in step["note"]
    assert not (a / "report.html").exists()


def test_a_comparison_with_something_that_is_no_run_is_status_2(tmp_path, capsys):
    a = write_fake_run(tmp_path / "a")
    status, _, errors = run_report(capsys, "--compare", a, tmp_path / "nowhere")
    assert (status, errors.count("\n")) == (2, 1)
