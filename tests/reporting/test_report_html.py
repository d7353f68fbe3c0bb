"""The page: self-contained, well-formed, and safe whatever the run's files say."""

import base64
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from mats_ds.core.run_dir import Outcome, write_outcome
from mats_ds.planning.plan_file import write_plan
from mats_ds.reporting.budget import Budget
from mats_ds.reporting.figures import read_figures
from mats_ds.reporting.page import charts
from mats_ds.reporting.page.learning import list_monitors
from mats_ds.reporting.ranks import Span
from mats_ds.reporting.report_html import build_page
from tests.reporting.fake_runs import GIB, make_plan, make_record, write_fake_run

BUDGET = Budget("8xcard", gpus=8, memory_per_gpu_bytes=24 * GIB)
PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")


def build(run_dir, budget=BUDGET):
    figures = read_figures(run_dir)
    return build_page(figures, budget, figures.judge(budget))


class _Checker(HTMLParser):
    VOID = {"meta", "img", "br"}

    def __init__(self):
        super().__init__()
        self.open, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check_tags(page):
    checker = _Checker()
    checker.feed(page)
    assert checker.open == []
    return checker.tags


@pytest.mark.parametrize("num_steps", [1, 2, 9, 500])
def test_every_tag_is_closed_and_every_plot_is_there(tmp_path, num_steps):
    tags = check_tags(build(write_fake_run(tmp_path / "cpu", num_steps=num_steps)))
    assert tags.count("svg") == 7  # the loss twice, for wide and narrow screens

    def record(step, rank):
        return make_record(step, rank, peak_reserved_bytes=9 * GIB)

    tags = check_tags(build(write_fake_run(tmp_path / "gpu", num_steps=num_steps, record=record)))
    assert tags.count("svg") == 9  # MFU and memory by kind


def test_it_needs_no_network_and_no_script(tmp_path):
    page = build(write_fake_run(tmp_path / "run"))
    assert not re.search(r"https?:|<script|<link|url\(|@import", page)
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page


def test_texts_from_files_cannot_become_markup(tmp_path):
    evil = "<script>alert('x')</script>\"&"
    run_dir = write_fake_run(
        tmp_path / "run", recipe_name=evil, model_name=evil, device_name=evil, command=evil, started=evil, data_name=evil,
        precision=evil, versions={evil: evil}, static_bytes={evil: 1}, outcome=f"{evil}\nmore",
    )  # fmt: skip
    (run_dir / "bad_clips.csv").write_text(f"rank,step,path,sample,reason\n0,1,<script>.mp4,1,{evil.replace(chr(34), '')}\n")
    page = build(run_dir, Budget(evil, 8, GIB))
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    check_tags(page)


def test_texts_from_files_hold_nothing_that_html_has_not_or_that_turns_the_direction(tmp_path):
    evil = "a\x00\x07\x1b[2J\x7f\x9b\u202egpj\u2066\u2028\ud800 é日本"
    run_dir = write_fake_run(
        tmp_path / "run", recipe_name=evil, device_name=evil, command=evil, data_name=evil, versions={evil: evil}
    )
    (run_dir / "bad_clips.csv").write_text("rank,step,path,sample,reason\n0,1,b\x1b\x07\u202e.mp4,1,\x0c\x85\n")
    page = build(run_dir)
    page.encode()
    assert all(character.isprintable() or character == "\n" for character in page)
    assert "é日本" in page and r"a\x00\x07\x1b[2J" in page
    check_tags(page)


def test_the_reconstruction_is_embedded_where_there_is_one(tmp_path):
    run_dir = write_fake_run(tmp_path / "run")
    assert "<img" not in build(run_dir)
    (run_dir / "reconstruction.png").write_bytes(PNG)
    page = build(run_dir)
    assert f"data:image/png;base64,{base64.b64encode(PNG).decode()}" in page


@pytest.mark.parametrize(("reserved", "drawn"), [(20, True), (30, True), (2, False)])
def test_the_budget_is_a_line_where_it_is_in_range_and_a_note_where_it_is_far_off(tmp_path, reserved, drawn):
    def record(step, rank):
        return make_record(step, rank, peak_reserved_bytes=reserved * GIB)

    page = build(write_fake_run(tmp_path / "run", record=record))
    assert ('<line class="limit"' in page) is drawn
    assert ("budget 24.00 GiB, above this scale" in page) is not drawn
    assert ("not to scale // budget 24.00 GiB" in page) is not drawn


def test_missing_values_cut_a_line_and_lonely_ones_are_dots():
    svg = charts.draw_lines([1, 2, 3, 4, 5], [charts.Series("a", [1, 2, None, 3, None])], title="t", label=str)
    assert svg.count("M") == 1
    assert svg.count("<circle") == 1
    nothing = charts.draw_lines([1], [charts.Series("a", [None])], title="t", label=str)
    assert nothing is None


def test_a_constant_or_a_negative_curve_can_be_drawn():
    for values in ([0, 0], [3, 3], [-2, -1], [1e-9, 2e-9]):
        svg = charts.draw_lines([1, 2], [charts.Series("a", values)], title="t", label=str, from_zero=False)
        assert "nan" not in svg


def test_plots_have_no_more_points_than_a_screen_can_show():
    span = Span(1, 10_000_000)
    assert span.num_buckets == 240
    assert span.buckets(np.array([1, 5_000_000, 10_000_000])).tolist() == [0, 119, 239]
    assert Span(5, 7).steps() == [5.0, 6.0, 7.0]


def test_planned_figures_stand_beside_the_measured_ones_where_there_is_a_plan(tmp_path):
    def record(step, rank):
        return make_record(step, rank, peak_reserved_bytes=9 * GIB)

    run_dir = write_fake_run(tmp_path / "run", record=record)
    assert "Planned and measured" not in build(run_dir)
    write_plan(run_dir, make_plan(assumptions=("<b>no</b> stalls",), memory_error=0.07))
    page = build(run_dir)
    check_tags(page)
    row = re.search(r"<tr[^>]*><td[^>]*>activations and temporaries</td>(.*?)</tr>", page)
    assert re.findall(r">([^<]*)</td>", row[1]) == ["6.00 GiB", "5.44 GiB", "0.91"]
    assert "within 7%; &lt;b&gt;no&lt;/b&gt; stalls" in page


def test_what_a_run_was_started_with_is_shown_folded(tmp_path):
    run_dir = write_fake_run(tmp_path / "run")
    assert "<details>" not in build(run_dir)
    (run_dir / "recipe.yaml").write_text("name: <tiny>\n")
    page = build(run_dir)
    check_tags(page)
    assert "<details><summary>Recipe, as resolved</summary><pre>name: &lt;tiny&gt;\n</pre></details>" in page


def test_out_of_memory_is_told_with_what_would_help(tmp_path):
    run_dir = write_fake_run(tmp_path / "run", outcome=None)
    write_outcome(run_dir, Outcome("OutOfMemoryError: no room", 9, 1.7e9, 1, "lower <the> micro-batch", "a.pickle"))
    page = build(run_dir)
    check_tags(page)
    assert "<b>What would help:</b> lower &lt;the&gt; micro-batch" in page
    assert "the run stopped early on rank 1 after step 9: OutOfMemoryError: no room" in page


@pytest.mark.parametrize(("top5", "drawn"), [(0.9, ["top-1", "top-5"]), (1.0, ["top-1"])])
def test_top_5_is_drawn_only_where_it_is_not_always_right(tmp_path, top5, drawn):
    run_dir = write_fake_run(tmp_path / "run", task="finetune")
    tests = [f'{{"step": {step}, "top1": 0.5, "top5": {top5}, "loss": 1}}\n' for step in (4, 8)]
    (run_dir / "evaluation.jsonl").write_text("".join(tests))
    assert [line.name for line in list_monitors(read_figures(run_dir))[0].series] == drawn
