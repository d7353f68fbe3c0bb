"""The model card: only what was measured and recorded, no path of the user's, metadata that the Hub
reads."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import yaml

from mats_ds.core.events import RunInfo
from mats_ds.core.run_dir import write_run
from mats_ds.core.token_grid import TokenGrid
from mats_ds.exporting.hub.card import MARK
from mats_ds.exporting.hub.measured import read_measured
from mats_ds.exporting.hub.write import export_hub
from mats_ds.exporting.network import list_costs
from mats_ds.metering.proportion import Proportion
from mats_ds.models.classifier import VideoClassifier
from mats_ds.models.weights.load import weights_of
from mats_ds.models.weights.origin import Origin
from mats_ds.planning.flops import step_flops

GRID = TokenGrid(4, 32, 32, (2, 8, 8))
ORIGIN = Origin(step=7, averaged=False, chosen_on="", trained_on="/home/me/secret/train.csv", trained_root="/home/me/secret")
INFO = RunInfo(
    run_dir="/home/me/secret/run", rank=0, world_size=8, device="cuda", device_name="NVIDIA A100", recipe_name="my_recipe",
    model_name="tiny", num_parameters=1, precision="bf16", zero_stage=2, micro_batch=2, accumulation=3, global_batch=48,
    total_steps=1234, steps_per_epoch=10, first_step=0, learning_rate=1.5e-4, num_tokens=32, kept=9, visible=9, targets=0,
    forward_macs_per_clip=1, model_flops_per_clip=1, hardware_flops_per_clip=1, versions={"mats_ds": "0.1.0", "torch": "2.9"},
    data_name="train.csv", command="mats finetune data.root=/home/me/secret", started="2026-11-28T01:02:03+0000", task="finetune",
    optimizer="AdamW",
)  # fmt: skip


@pytest.fixture(scope="module")
def weights():
    model = VideoClassifier.from_name("tiny", grid=GRID, num_classes=3, class_names=("a|b", "<img>", "c"), keep_ratio=0.3)
    return replace(weights_of(model, "/home/me/secret/run"), origin=ORIGIN)


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "secret-run"
    folder.mkdir()
    write_run(folder, INFO)
    return folder


def write_result(folder, *, step=7, hits=30, total=40):
    tree = {
        "weights": {"from": "last", "step": step, "averaged": False, "chosen_on": None},
        "top1": Proportion(hits, total).as_json(),
        "top5": Proportion(total, total).as_json(),
        "measured_on": "/home/me/secret/val.csv",
        "views": {"clips": 2, "crops": 3},
        "videos": {"scored": total, "unreadable": 0, "trained_on": 0},
        "words": [],
    }
    (folder / "result.json").write_text(json.dumps(tree))


def write_test(folder, *, step=7, chosen_on=""):
    folder.mkdir(exist_ok=True)
    results = [{"keep_ratio": ratio, "top1": Proportion(hits, 50).as_json()} for ratio, hits in ((0.3, 20), (1.0, 25))]
    origin = {**ORIGIN.as_json(), "step": step, "chosen_on": chosen_on}
    tree = {"weights": "/home/me/secret/run", "origin": origin, "manifest": "val.csv", "views": {"clips": 5, "crops": 3}}
    (folder / "results.json").write_text(json.dumps({**tree, "videos": {}, "results": results}))


def write_probe(folder):
    folder.mkdir(exist_ok=True)
    results = [
        {"probe": "linear", "weights": name, "top1": Proportion(hits, 60).as_json(), "settings": "x"}
        for name, hits in (("trained", 33), ("fresh", 12))
    ]
    tree = {"origin": ORIGIN.as_json(), "views": {"clips": 1, "crops": 1}, "keep_ratio": None, "num_classes": 4}
    (folder / "probe.json").write_text(json.dumps({**tree, "chance": {"guessing": 0.25}, "results": results}))


def export(weights, run, dest, **options):
    notes = export_hub(dest, weights, source=run, keep_ratio=None, **options)
    return (dest / "README.md").read_text(), notes


def test_metadata_are_those_that_the_hub_reads(weights, run, tmp_path):
    text, notes = export(weights, run, tmp_path / "hub", license="apache-2.0")
    _, front, _ = text.split("---\n", 2)
    found = yaml.safe_load(front)
    assert found["license"] == "apache-2.0" and found["library_name"] == "transformers"
    assert found["pipeline_tag"] == "video-classification" and "custom_code" in found["tags"]
    assert not [note for note in notes if "license" in note] and text.startswith(f"---\n{MARK}\n")
    hub = pytest.importorskip("huggingface_hub")
    assert hub.ModelCard(text).data.license == "apache-2.0"


def test_without_a_licence_the_card_claims_none_and_a_note_says_so(weights, run, tmp_path):
    text, notes = export(weights, run, tmp_path / "hub")
    found = yaml.safe_load(text.split("---\n", 2)[1])
    assert found["license"] == "other" and found["license_name"] == "not-stated"
    assert any("--license" in note for note in notes)
    with pytest.raises(ValueError, match="--license is an identifier.*'My Licence'"):
        export(weights, run, tmp_path / "other", license="My Licence")


def test_nothing_of_the_user_s_paths_is_in_any_file(weights, run, tmp_path):
    write_result(run)
    write_test(run / "test")
    write_probe(run / "probe")
    export(weights, run, tmp_path / "hub", data="UCF101, split 1")
    for path in (tmp_path / "hub").iterdir():
        for word in (b"secret", b"/home", b"train.csv", b"val.csv", str(tmp_path).encode()):
            assert word not in path.read_bytes(), (path.name, word)


def test_training_is_told_as_the_run_recorded_it(weights, run, tmp_path):
    text, _ = export(weights, run, tmp_path / "hub", data="UCF101, split 1")
    for fact in ("UCF101, split 1", "my\\_recipe", "1,234 of 48 clips", "0.00015", "AdamW", "bf16", "8 ranks on NVIDIA A100"):
        assert fact in text
    assert "date: 2026-11-28\n" in text and "step 7" in text and "fine-tuning" in text


def test_costs_are_the_planner_s(weights, run, tmp_path):
    text, _ = export(weights, run, tmp_path / "hub")
    costs = list_costs(weights.spec)
    assert sorted(costs) == [0.3, 0.5, 0.6, 1.0]
    for ratio, giga in costs.items():
        assert giga == step_flops("tiny", GRID, ratio, task="finetune", num_classes=3).forward_macs / 1e9
        assert re.search(rf"\| {ratio:g}( \(this model\))? \| {giga:.3g} \|", text)
    assert "| 0.3 (this model) |" in text


def test_results_come_with_their_intervals_and_only_of_these_weights(weights, run, tmp_path):
    write_result(run)
    write_test(run / "test")
    write_test(run / "older", step=5)
    write_test(run / "chosen", chosen_on="val.csv")
    write_probe(tmp_path / "probe")
    (run / "broken").mkdir()
    (run / "broken" / "probe.json").write_text("{}")
    text, notes = export(weights, run, tmp_path / "hub", results=[tmp_path / "probe"])
    for hits, total in ((30, 40), (20, 50), (25, 50), (33, 60), (12, 60)):
        assert f"{Proportion(hits, total).describe()}, {hits} of {total} videos" in text
    assert text.count(" videos |") == 5 and "linear (untrained weights) probe" in text and "chance 25.00%, 4 classes" in text
    left_out = [note for note in notes if "left out" in note]
    assert sorted(word for word in ("older", "chosen", "broken") if any(f"/{word}/" in note for note in left_out)) == [
        "broken",
        "chosen",
        "older",
    ]


def test_without_results_the_card_says_that_nothing_was_measured(weights, run, tmp_path):
    text, _ = export(weights, run, tmp_path / "hub")
    assert "Nothing: no test or probe" in text and "%" not in text.partition("## Measured")[2].partition("## Training")[0]


def test_names_of_classes_cannot_break_the_page(weights, run, tmp_path):
    text, _ = export(weights, run, tmp_path / "hub")
    assert "a\\|b" in text and "<img" not in text.replace("\\<img", "")


def test_results_of_an_impossible_proportion_are_left_out(tmp_path):
    write_result(tmp_path)
    text = (tmp_path / "result.json").read_text()
    (tmp_path / "result.json").write_text(text.replace('"hits": 30', '"hits": 50'))
    found = read_measured([tmp_path], ORIGIN)
    assert found.rows == () and "50 of 40 is no proportion" in found.notes[0]


def test_a_card_of_the_user_s_stays(weights, run, tmp_path):
    dest = tmp_path / "hub"
    dest.mkdir()
    (dest / "README.md").write_text("---\nlicense: mit\n---\nmy words\n")
    with pytest.raises(ValueError, match="README.md was not written by this command.*move it away"):
        export(weights, run, dest)
    assert [path.name for path in dest.iterdir()] == ["README.md"]


def test_the_user_hears_what_the_card_leaves_open(tmp_path):
    from mats_ds.exporting.hub.write import export_hub
    from tests.exporting.models import make_classifier, weights

    source = weights(make_classifier())
    notes = export_hub(tmp_path / "open", source, source=tmp_path / "x", keep_ratio=None)
    assert sum("--data-name" in note or "--license" in note for note in notes) == 2
    notes = export_hub(tmp_path / "said", source, source=tmp_path / "x", keep_ratio=None, license="mit", data="Some set")
    assert not any("--data-name" in note or "--license" in note for note in notes)
