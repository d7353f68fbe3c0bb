"""Two runs side by side."""

import json

import pytest

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
    assert rows["model FLOP/s a rank"][:5] == ["360", "GFLOP/s", "720", "GFLOP/s", "2.000"]
    assert rows["forward MACs of a clip"][:4] == ["19.8", "GMAC", "19.8", "GMAC"]
    for line in ("- keep: 0.3", "+ keep: 0.15", "- torch 2.15", "+ torch 2.16"):
        assert f"  {line}\n" in text + "\n"
    assert "seed" not in text
    tree = json.loads(run_report(capsys, "--compare", a, b, "--json")[1])
    [step] = [row for row in tree["figures"] if row["name"] == "step, s"]
    assert (step["a"], step["b"], step["ratio"]) == (1.0, 0.5, 0.5) and "steps" in step["note"]
    assert not (a / "report.html").exists()


def test_a_comparison_as_a_page_says_what_does_not_compare_and_overwrites_nothing_foreign(tmp_path, capsys):
    a = write_fake_run(tmp_path / "a", recipe_name="<b>one</b>", num_steps=40)
    b = write_fake_run(tmp_path / "b", record=gpu_record, device_name="NVIDIA A100-SXM4-80GB", data_name="other.csv")
    (a / "recipe.yaml").write_text("keep: <0.3>\n")
    (b / "recipe.yaml").write_text("keep: 0.15\n")
    path = tmp_path / "pages" / "both.html"
    status, text, errors = run_report(capsys, "--compare", a, b, "--html", path)
    page = path.read_text()
    assert status == 0 and text.startswith("A: ") and f"wrote {path}" in errors
    for words in (
        "different hardware",
        "different data",
        "<del>- keep: &lt;0.3&gt;</del>",
        "<ins>+ keep: 0.15</ins>",
        "&lt;b&gt;one",
    ):
        assert words in page
    assert "<b>one" not in page
    assert "(fewer than 15 steps: may be chance)" in page, "what the text says of a ratio, the page says, too"
    assert page.count("<svg") == 2 and page.count('class="line faint"') == 4  # wide and narrow, A and B
    assert run_report(capsys, "--compare", a, b, "--html", path)[0] == 0  # its own page is renewed
    path.write_text("mine")
    status, _, errors = run_report(capsys, "--compare", a, b, "--html", path)
    assert (status, path.read_text()) == (2, "mine") and "was not written by this command" in errors
    with pytest.raises(SystemExit, match="2"):
        run_report(capsys, a, "--html", path)


def test_a_comparison_with_something_that_is_no_run_is_status_2(tmp_path, capsys):
    a = write_fake_run(tmp_path / "a")
    status, _, errors = run_report(capsys, "--compare", a, tmp_path / "nowhere")
    assert (status, errors.count("\n")) == (2, 1)
