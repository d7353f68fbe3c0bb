"""convert.py as its users run it: every direction, what it says, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mats_ds import MaskedAutoencoder, TokenGrid, VideoClassifier, load_model
from mats_ds.convert import DIFFERENT, main
from mats_ds.core.cli import FINISHED, USAGE_ERROR
from mats_ds.data.synthetic import write_synthetic_set
from mats_ds.models.model_spec import dump_spec
from mats_ds.models.weights.load import identify, weights_of
from mats_ds.models.weights.native import load_weights, save_weights
from mats_ds.models.weights.origin import Origin
from tests.models.weights.test_run import write_step

ROOT = Path(__file__).resolve().parents[1]
GRID = TokenGrid(4, 16, 16, (2, 8, 8))
NAMES = {"mats": "model.safetensors", "hf": "folder", "videomae": "model.pth"}


def make_model(kind, seed=1):
    torch.manual_seed(seed)
    sizes = dict(width=24, depth=2, heads=3)
    if kind == "classifier":
        return VideoClassifier(grid=GRID, **sizes, num_classes=3, keep_ratio=0.5, head_init_scale=1.0)
    return MaskedAutoencoder(
        grid=GRID, **sizes, decoder_width=12, decoder_depth=1, decoder_heads=2, keep_ratio=0.75, visible_ratio=0.25
    )


@pytest.fixture(params=["pretrain", "classifier"])
def source(request, tmp_path):
    return store(make_model(request.param), tmp_path / "source.safetensors")


@pytest.fixture
def classifier_file(tmp_path):
    return store(make_model("classifier"), tmp_path / "source.safetensors")


def store(model, path):
    weights = weights_of(model, "a test")
    return save_weights(path, weights.spec, dict(weights.state))


def test_written_files_can_be_read_by_whom_the_umask_lets(tmp_path, source):
    assert main([str(source), str(tmp_path / "copy.safetensors")]) == main([str(source), str(tmp_path / "hf")]) == FINISHED
    (tmp_path / "plain").write_bytes(b"")
    usual = (tmp_path / "plain").stat().st_mode
    assert {file.stat().st_mode for file in (tmp_path / "copy.safetensors", *(tmp_path / "hf").iterdir())} == {usual}


@pytest.mark.parametrize(
    ("option", "seed"),
    [((), 4), (("--weights_from", "last"), 3), (("--weights_from", "unaveraged"), 2), (("--weights-from", "best"), 4)],
)
def test_any_of_the_weights_of_a_run_can_be_written(tmp_path, option, seed, capsys):
    models = {seed: make_model("classifier", seed=seed) for seed in (2, 3, 4)}
    spec = json.dumps(dump_spec(weights_of(models[2], "").spec))
    clip = "clip: {stride: 3, sampling: uniform}\nevaluation: {clips: 10, crops: 3}\n"
    write_step(tmp_path / "run", 5, models[2], ema=models[3].state_dict(), model_spec=spec, recipe=clip)
    save_weights(
        tmp_path / "run" / "best.safetensors", weights_of(models[4], "").spec, models[4].state_dict(), origin=Origin(step=4)
    )
    assert main([str(tmp_path / "run"), str(tmp_path / "copy.safetensors"), *option]) == FINISHED
    written = load_weights(tmp_path / "copy.safetensors")
    assert all(torch.equal(tensor, models[seed].state_dict()[name]) for name, tensor in written.state.items())
    told = {2: "step 5 of one of our runs, weights without averaging", 3: "the average of its weights", 4: "best.safetensors"}
    assert told[seed] in capsys.readouterr().out and told[seed] in written.notes[0]
    if seed != 4:
        assert written.origin.views == {"clips": 10, "crops": 3} and written.origin.clip == {"stride": 3, "sampling": "uniform"}


@pytest.mark.parametrize("verify", [[], ["--verify"]])
def test_nan_weights_are_named(tmp_path, capsys, verify):
    model = make_model("classifier")
    with torch.no_grad():
        model.fc_norm.bias[3:5] = float("nan")
        model.class_head.weight[0, 7] = float("inf")
    path = store(model, tmp_path / "source.safetensors")
    for arguments in ([], [str(tmp_path / "copy.pth"), *verify]):
        assert main([str(path), *arguments]) == DIFFERENT
        said = capsys.readouterr().out
        assert "in 2 of" in said and "3 of their 96 values: class_head.weight (1 of 72), fc_norm.bias (2 of 24)" in said
    assert (tmp_path / "copy.pth").is_file()


@pytest.mark.parametrize("through", ["mats", "hf", "videomae"])
def test_every_direction_and_back_gives_the_same_file(tmp_path, source, through, capsys):
    there, back = tmp_path / "there" / NAMES[through], tmp_path / "back.safetensors"
    assert main([str(source), str(there), "--verify"]) == FINISHED
    assert identify(there) == through
    assert "verify: source and copy: largest difference 0," in capsys.readouterr().out
    assert main([str(there), str(back)]) == FINISHED
    before, after = load_model(source), load_model(back)
    assert weights_of(before, "").spec == weights_of(after, "").spec
    assert all(torch.equal(tensor, after.state_dict()[name]) for name, tensor in before.state_dict().items())


def test_verify_runs_transformers_own_model(tmp_path, source, capsys):
    pytest.importorskip("transformers")
    assert main([str(source), str(tmp_path / "hf"), "--verify"]) == FINISHED
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("verify: transformers on") and line.endswith("equal") for line in lines)


def test_verify_finds_a_wrong_weight(tmp_path, classifier_file, monkeypatch, capsys):
    monkeypatch.setattr("mats_ds.models.weights.native.save_weights", write_with_a_slip)
    assert main([str(classifier_file), str(tmp_path / "copy.safetensors"), "--verify"]) == DIFFERENT
    assert "DIFFERENT" in capsys.readouterr().out


def write_with_a_slip(path, spec, state, *, note):
    bias = state["encoder.blocks.0.attn.qkv.v_bias"].clone()
    bias[3] += 0.05
    return save_weights(path, spec, state | {"encoder.blocks.0.attn.qkv.v_bias": bias}, note=note)


def test_without_a_destination_the_file_is_described(source, capsys):
    assert main([str(source)]) == FINISHED
    text = capsys.readouterr().out
    assert "a weight file of mats_ds" in text
    assert "4 frames of 16 x 16, tubelets of 2 x 8 x 8, 8 tokens" in text
    assert "width 24, 2 blocks, 3 heads" in text


def test_a_classifier_is_made_of_pretraining(tmp_path, capsys):
    source = store(make_model("pretrain"), tmp_path / "source.safetensors")
    (tmp_path / "names.txt").write_text("run\njump\n")
    arguments = ["--num-classes", "2", "--class-names", str(tmp_path / "names.txt"), "--keep-ratio", "0.25"]
    assert main([str(source), str(tmp_path / "c.safetensors"), *arguments, "--verify"]) == FINISHED
    loaded, fresh, unused = capsys.readouterr().out.splitlines()[0].split("; ")
    assert (loaded, fresh) == ("28 tensors loaded", "fresh: fc_norm, class_head")
    assert set(unused.removeprefix("not used: ").split(", ")) == {"decoder", "encoder.norm", "head", "mask_token", "to_decoder"}
    made = load_model(tmp_path / "c.safetensors")
    assert (made.num_classes, made.class_names, made.keep_ratio) == (2, ("run", "jump"), 0.25)


def test_another_head_only_when_asked(tmp_path, classifier_file, capsys):
    copy = tmp_path / "copy.safetensors"
    assert main([str(classifier_file), str(copy), "--num-classes", "5"]) == USAGE_ERROR
    assert "the head has 3 classes, and one of 5 is asked for: replace it, with --new-head" in capsys.readouterr().err
    assert not copy.exists()
    assert main([str(classifier_file), str(copy), "--num-classes", "5", "--new-head"]) == FINISHED
    assert "fresh: class_head" in capsys.readouterr().out
    assert load_model(copy).num_classes == 5


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (["source.safetensors", "source.safetensors"], "is the source itself"),
        (["source.safetensors", "there.pth"], "there.pth exists: give another name, or --force"),
        (["nothing.pth", "new.safetensors"], "there is no file or folder nothing.pth"),
        (["source.safetensors", "new.pth", "--num-frames", "8"], "leave out --num_frames"),
        (["source.safetensors", "new.pth", "--new-head"], "--new-head belongs to --num-classes"),
        (["source.safetensors", "new.pth", "--class-names", "two.txt"], "2 class names for 3 classes"),
        (["source.safetensors", "new.pth", "--class-names", "none.txt"], "there is no file none.txt"),
    ],
)
def test_mistakes_are_refused_and_nothing_is_written(tmp_path, classifier_file, monkeypatch, capsys, arguments, reason):
    monkeypatch.chdir(tmp_path)
    Path("there.pth").write_bytes(b"precious")
    Path("two.txt").write_text("a\nb\n")
    assert main(arguments) == USAGE_ERROR
    assert reason in capsys.readouterr().err
    assert Path("there.pth").read_bytes() == b"precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source.safetensors", "there.pth", "two.txt"]


def test_force_overwrites(tmp_path, classifier_file):
    (tmp_path / "there.pth").write_bytes(b"old")
    assert main([str(classifier_file), str(tmp_path / "there.pth"), "--force"]) == FINISHED
    assert identify(tmp_path / "there.pth") == "videomae" and load_model(tmp_path / "there.pth").num_classes == 3


@pytest.mark.slow
@pytest.mark.parametrize("command", [["mats_ds/convert.py"], ["-m", "mats_ds.convert"]])
def test_it_runs_as_a_file_and_as_a_module(command):
    done = subprocess.run([sys.executable, *command, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "or describe a file" in " ".join(done.stdout.split()), done.stderr


def pretrain(arguments):
    from mats_ds.pretrain import main as train

    return train(arguments)


@pytest.mark.slow
def test_a_run_of_the_trainer_becomes_a_file(ranks, tmp_path, capsys):
    videos = write_synthetic_set(tmp_path / "set", num_videos=4, num_frames=12, height=48, width=80).parent
    ds_config = str(ROOT / "ds_configs" / "zero2_tiny.json")
    run = tmp_path / "run"
    small = ["clip.num_frames=4", "clip.height=32", "clip.width=48", "optim.steps=2", "optim.warmup_steps=1"]
    arguments = ["--recipe", "tiny", "--ds_config", ds_config, "--out", str(run), f"data.manifest={videos}", *small]
    assert ranks(pretrain, 2, arguments) == [0, 0]
    assert main([str(run), str(tmp_path / "w.safetensors"), "--verify"]) == FINISHED
    assert "largest difference 0," in capsys.readouterr().out
    model = load_model(tmp_path / "w.safetensors")
    assert (model.pruning.strategy, model.grid) == ("mats", TokenGrid(4, 32, 48, (2, 8, 8)))
    stored = torch.load(run / "checkpoints" / "step-00000002" / "mp_rank_00_model_states.pt", weights_only=True)["module"]
    assert all(torch.equal(tensor, stored[name]) for name, tensor in model.state_dict().items())


class TestDest:
    """Nothing is overwritten that this command did not write or was not told to, and never the
    source."""

    @pytest.fixture
    def folder(self, tmp_path, classifier_file):
        """A Hugging Face folder of ours, changed since: it is the source, and somebody's only
        copy."""
        assert main([str(classifier_file), str(tmp_path / "hf")]) == FINISHED
        return tmp_path / "hf"

    @pytest.mark.parametrize("name", ["model.safetensors", "config.json", "../hf/model.safetensors"])
    def test_a_part_of_the_source_is_not_written(self, folder, capsys, name):
        before = {path: path.read_bytes() for path in folder.iterdir()}
        assert main([str(folder), str(folder / name), "--to", "mats", "--force"]) == USAGE_ERROR
        assert "is a part of the source" in capsys.readouterr().err
        assert {path: path.read_bytes() for path in folder.iterdir()} == before

    def test_a_folder_that_the_source_lies_in_is_not_filled(self, tmp_path, classifier_file, capsys):
        inside = tmp_path / "new" / "model.safetensors"
        inside.parent.mkdir()
        classifier_file.rename(inside)
        before = inside.read_bytes()
        assert main([str(inside), str(inside.parent), "--force"]) == USAGE_ERROR
        assert "is the source itself" in capsys.readouterr().err and inside.read_bytes() == before

    @pytest.mark.parametrize("arguments", [(), ("--force",)])
    def test_a_foreign_folder_is_refused_before_the_weights_are_read(
        self, tmp_path, classifier_file, monkeypatch, capsys, arguments
    ):
        (tmp_path / "theirs").mkdir()
        (tmp_path / "theirs" / "model.safetensors").write_text("theirs")
        monkeypatch.setattr("mats_ds.convert.read_source", None)
        assert main([str(classifier_file), str(tmp_path / "theirs"), *arguments]) == USAGE_ERROR
        error = capsys.readouterr().err
        assert "holds model.safetensors" in error and "new or empty folder" in error
        assert [path.name for path in (tmp_path / "theirs").iterdir()] == ["model.safetensors"]

    def test_an_own_folder_is_replaced_when_forced(self, folder, classifier_file, capsys):
        assert main([str(classifier_file), str(folder)]) == USAGE_ERROR
        assert "exists: give another name, or --force" in capsys.readouterr().err
        assert main([str(classifier_file), str(folder), "--force", "--keep-ratio", "0.25"]) == FINISHED
        assert load_model(folder).keep_ratio == 0.25

    @pytest.mark.parametrize("name", ["a.safetensors", "a.pth", "hf"])
    @pytest.mark.parametrize("kind", ["link", "other"])
    def test_a_link_or_another_kind_is_refused_even_when_forced(self, tmp_path, classifier_file, capsys, name, kind):
        dest, precious = tmp_path / name, tmp_path / "precious"
        precious.write_text("precious")
        if kind == "link":
            dest.symlink_to(precious)
        elif name == "hf":
            dest.write_text("")
        else:
            dest.mkdir()
        assert main([str(classifier_file), str(dest), "--force"]) == USAGE_ERROR
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and precious.read_text() == "precious"

    def test_the_list_of_names_is_an_input(self, tmp_path, classifier_file, capsys):
        names = tmp_path / "names.pth"
        names.write_text("a\nb\nc\n")
        assert main([str(classifier_file), str(names), "--class-names", str(names), "--force"]) == USAGE_ERROR
        assert "is read" in capsys.readouterr().err and names.read_text() == "a\nb\nc\n"

    @pytest.mark.parametrize("name", ["a.safetensors", "a.pth", "hf"])
    def test_no_room_is_one_error_and_leaves_what_was_there(self, tmp_path, classifier_file, file_limit, capsys, name):
        assert main([str(classifier_file), str(tmp_path / name)]) == FINISHED
        before = sorted(path for path in tmp_path.rglob("*"))
        old = load_model(tmp_path / name)
        capsys.readouterr()
        with file_limit(8192):
            assert main([str(classifier_file), str(tmp_path / name), "--force", "--keep-ratio", "0.25"]) == USAGE_ERROR
        error = capsys.readouterr().err
        assert error.startswith("error: ") and "cannot be written" in error and error.count("\n") == 1, error
        assert sorted(path for path in tmp_path.rglob("*")) == before
        assert load_model(tmp_path / name).keep_ratio == old.keep_ratio == 0.5

    def test_what_cannot_be_written_is_refused_first(self, tmp_path, classifier_file, monkeypatch, capsys):
        (tmp_path / "file").touch()
        monkeypatch.setattr("mats_ds.convert.read_source", None)
        for name in ("file/a.pth", "file/hf"):
            assert main([str(classifier_file), str(tmp_path / name)]) == USAGE_ERROR
            assert "is no folder" in capsys.readouterr().err
