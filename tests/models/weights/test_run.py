"""Checkpoints of our runs, as DeepSpeed writes their weights: the newest whole one is read,
whatever lies beside it."""

from __future__ import annotations

import hashlib
import json
import re
import shutil

import pytest
import torch

from mats_ds import MaskedAutoencoder, VideoClassifier, load_model, load_recipe
from mats_ds.config.load import dump_recipe
from mats_ds.models.model_spec import dump_spec
from mats_ds.models.weights.load import describe_weights, identify, read_weights, weights_of
from mats_ds.models.weights.native import save_weights
from mats_ds.models.weights.origin import Origin
from tests.models.weights.conftest import outputs, shake

RECIPE = load_recipe("tiny", ["clip.num_frames=4", "clip.height=32", "clip.width=48", "selection.frame_candidates=1.5"])
TUNED = ["clip.stride=7", "clip.sampling=uniform", "data.manifest=train.csv", "data.root=/videos"]
RECIPE_OF_A_TUNING = (
    dump_recipe(load_recipe("tiny", ["clip.num_frames=4", "clip.height=32", "clip.width=48", *TUNED]))
    + "evaluation: {manifest: val.csv, clips: 10, crops: 3, training_clips: 1, training_crops: 1, every_epochs: 5.0}\n"
)
WEIGHTS = "mp_rank_00_model_states.pt"


def make_model(seed):
    torch.manual_seed(seed)
    return shake(MaskedAutoencoder.from_recipe(RECIPE))


def write_step(run, step, model, *, dtype=torch.float32, **client_state):
    """A checkpoint's folder with the content that matters, sealed like training seals it."""
    folder = run / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    module = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    torch.save(
        {"module": module, "optimizer": None, "recipe": dump_recipe(RECIPE), "step": step} | client_state, folder / WEIGHTS
    )
    content = (folder / WEIGHTS).read_bytes()
    stated = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    content = {"format_version": 1, "step": step, "world_size": 1, "files": {WEIGHTS: stated}}
    (folder / "complete.json").write_text(json.dumps(content))
    return folder


def frames_of(model):
    shape = (2, model.candidate_grid.num_frames, model.grid.height, model.grid.width, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


def test_run_checkpoints_folder_and_step_all_give_the_newest_weights(tmp_path):
    old, new = make_model(1), make_model(2)
    write_step(tmp_path, 5, old)
    folder = write_step(tmp_path, 10, new)
    frames, keys = frames_of(new), torch.tensor([1, 2])
    for path in (tmp_path, tmp_path / "checkpoints", folder):
        assert identify(path) == "run"
        assert torch.equal(load_model(path)(frames, keys), new.eval()(frames, keys))
    spec = read_weights(tmp_path).spec
    assert (spec.size_name, spec.pruning) == ("tiny", RECIPE.selection.pruning())
    assert spec.num_candidate_frames == RECIPE.candidate_grid().num_frames
    assert torch.equal(load_model(tmp_path / "checkpoints" / "step-00000005")(frames, keys), old.eval()(frames, keys))


def test_a_torn_one_is_skipped_and_noted(tmp_path):
    write_step(tmp_path, 5, make_model(1))
    folder = write_step(tmp_path, 10, make_model(2))
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / WEIGHTS).write_bytes(content)
    weights = read_weights(tmp_path)
    assert "step 5 of" in weights.source
    (note,) = weights.notes
    assert re.search(f"step-00000010 .*{WEIGHTS} .*checksum", note)
    (folder.parent / "step-00000005" / WEIGHTS).unlink()
    with pytest.raises(ValueError, match="checkpoint\n.*checksum\n.*is missing"):
        read_weights(tmp_path)


def test_bf16_weights_are_read_exactly(tmp_path):
    model = make_model(1)
    write_step(tmp_path, 5, model, dtype=torch.bfloat16)
    state = read_weights(tmp_path).state
    assert all(torch.equal(tensor, model.state_dict()[name].bfloat16().float()) for name, tensor in state.items())


def test_a_stored_description_wins_over_the_recipe(tmp_path, classifier):
    write_step(tmp_path, 5, classifier, model_spec=json.dumps(dump_spec(weights_of(classifier, "").spec)))
    loaded = load_model(tmp_path)
    assert isinstance(loaded, VideoClassifier) and loaded.class_names == classifier.class_names
    assert torch.equal(outputs(loaded), outputs(classifier))


def test_zero_3_and_recipes_of_another_version_are_refused(tmp_path):
    folder = write_step(tmp_path / "a", 5, make_model(1))
    content = json.loads((folder / "complete.json").read_text())
    [stated] = content["files"].values()
    content["files"] = {"zero_pp_rank_0_mp_rank_00_model_states.pt": stated}
    (folder / "complete.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="ZeRO-3 keeps weights in parts"):
        read_weights(tmp_path / "a")
    write_step(tmp_path / "b", 5, make_model(1), recipe="model: {name: tiny, colour: red}")
    with pytest.raises(ValueError, match="of another version: model.colour"):
        read_weights(tmp_path / "b")


class TestWhichWeightsOfARun:
    """Three sets of weights: those of the newest checkpoint (seed 2), their average (3), the best
    of the tests (4)."""

    @pytest.fixture
    def run(self, tmp_path):
        trained, average, best = make_model(2), make_model(3), make_model(4)
        write_step(tmp_path, 5, make_model(1), ema=make_model(1).state_dict())
        described = json.dumps(dump_spec(weights_of(trained, "").spec))
        write_step(tmp_path, 10, trained, ema=average.state_dict(), recipe=RECIPE_OF_A_TUNING, model_spec=described)
        origin = Origin(step=7, averaged=True, chosen_on="val.csv", views={"clips": 2, "crops": 3})
        spec = read_weights(tmp_path).spec
        save_weights(tmp_path / "best.safetensors", spec, best.state_dict(), note="a note", origin=origin)
        models = {"last": average, "average": average, "unaveraged": trained, "best": best}
        return tmp_path, {name: model.state_dict() for name, model in models.items()}

    @pytest.mark.parametrize("name", [None, "last", "average", "unaveraged", "best"])
    def test_every_name_gives_its_own_weights_and_source(self, run, name):
        folder, states = run
        weights = read_weights(folder, weights_from=name)
        name = name or "best"
        wanted = states[name]
        assert weights.state.keys() == wanted.keys()
        assert all(torch.equal(tensor, wanted[key]) for key, tensor in weights.state.items())
        assert weights.origin.step == (7 if name == "best" else 10)
        assert weights.origin.averaged == (name != "unaveraged")
        assert weights.origin.chosen_on == ("val.csv" if name == "best" else "")
        used, file = weights.used(), "best.safetensors" if name == "best" else "step-00000010/mp_rank_00_model_states.pt"
        assert used["file"].endswith(file) and (used["which"], used["step"]) == (name, weights.origin.step)
        assert used["averaged"] == weights.origin.averaged and used["chosen_on"] == weights.origin.chosen_on
        words = {
            "best": ["best.safetensors", "step 7", "average", "chosen", "val.csv"],
            "unaveraged": ["step 10", "without averag"],
        }
        assert all(word in weights.source for word in words.get(name, ["step 10", "average of its weights"])), weights.source

    def test_a_run_without_an_average_has_its_last_weights_and_no_others(self, tmp_path):
        model = make_model(2)
        write_step(tmp_path, 5, model)
        for name in ("last", "unaveraged"):
            weights = read_weights(tmp_path, weights_from=name)
            assert weights.origin.averaged is False
            assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in weights.state.items())
        with pytest.raises(ValueError, match=r"no average .*finetune\.ema_decay.* it has last and unaveraged"):
            read_weights(tmp_path, weights_from="average")
        with pytest.raises(ValueError, match=r"no best\.safetensors.*evaluation\.manifest.*weights_from last"):
            read_weights(tmp_path, weights_from="best")
        with pytest.raises(ValueError, match="last, average, unaveraged, best, got 'newest'"):
            read_weights(tmp_path, weights_from="newest")

    def test_best_is_of_the_run_and_not_of_one_checkpoint(self, run):
        folder, _ = run
        assert read_weights(folder / "checkpoints", weights_from="best").origin.step == 7
        with pytest.raises(ValueError, match="is one checkpoint"):
            read_weights(folder / "checkpoints" / "step-00000005", weights_from="best")
        assert read_weights(folder / "checkpoints" / "step-00000005", weights_from="average").origin.step == 5

    def test_a_single_file_has_nothing_to_choose_from(self, run):
        with pytest.raises(ValueError, match="one set of weights: leave out --weights_from last .finetune.weights_from"):
            read_weights(run[0] / "best.safetensors", weights_from="last")

    def test_a_run_with_only_the_best_weights_points_to_them(self, run):
        folder, states = run
        shutil.rmtree(folder / "checkpoints")
        assert identify(folder) == "run"
        with pytest.raises(ValueError, match=r"checkpoint; .*best\.safetensors is there: --weights_from best"):
            read_weights(folder, weights_from="last")
        assert read_weights(folder).which == "best" and not any(
            "weights_from last" in note for note in read_weights(folder).notes
        )
        state = read_weights(folder, weights_from="best").state
        assert all(torch.equal(tensor, states["best"][key]) for key, tensor in state.items())

    def test_best_weights_of_another_run_around_this_one_are_not_its_own(self, run):
        inner = run[0] / "inner"
        write_step(inner, 5, make_model(1))
        with pytest.raises(ValueError, match=r"no best\.safetensors"):
            read_weights(inner, weights_from="best")

    def test_best_weights_that_cannot_be_read_are_passed_over_with_a_note(self, run):
        folder, states = run
        (folder / "best.safetensors").write_bytes(b"torn")
        weights = read_weights(folder)
        assert weights.which == "last" and any("best.safetensors is skipped" in note for note in weights.notes)
        assert all(torch.equal(tensor, states["last"][key]) for key, tensor in weights.state.items())

    def test_who_names_a_checkpoint_gets_it(self, run):
        folder, _ = run
        for place, step in ((folder / "checkpoints", 10), (folder / "checkpoints" / "step-00000005", 5)):
            weights = read_weights(place)
            assert (weights.which, weights.origin.step) == ("last", step)

    def test_the_choice_is_said_with_the_other_one(self, run):
        weights = read_weights(run[0])
        (line, *notes) = describe_weights(run[0], weights)
        assert (
            all(fact in line for fact in (str(run[0]), "best", "step 7", "val.csv", "average"))
            and "weights_from last" in notes[-1]
        )

    def test_the_checkpoint_holds_how_the_training_took_its_clips(self, run):
        origin = read_weights(run[0], weights_from="last").origin
        assert origin.clip == {"stride": 7, "sampling": "uniform"} and origin.views == {"clips": 10, "crops": 3}
        assert (origin.trained_on, origin.trained_root) == ("train.csv", "/videos")

    def test_what_loads_a_model_logs_which_weights(self, run, caplog):
        with caplog.at_level("INFO", "mats_ds"):
            load_model(run[0], weights_from="unaveraged")
        assert "step 10 of" in caplog.text and "weights without averaging" in caplog.text


def test_a_copy_of_another_name_is_no_checkpoint_and_the_list_of_files_no_link(tmp_path):
    """step-best comes after every number in the order of names: it was taken for the newest."""
    old, new = write_step(tmp_path, 5, make_model(1)), write_step(tmp_path, 10, make_model(2))
    shutil.copytree(old, tmp_path / "checkpoints" / "step-best")
    assert read_weights(tmp_path).source.startswith("step 10 ")
    (new / "complete.json").rename(tmp_path / "elsewhere.json")
    (new / "complete.json").symlink_to(tmp_path / "elsewhere.json")
    weights = read_weights(tmp_path)
    assert weights.source.startswith("step 5 ") and "complete.json is a symbolic link" in weights.notes[0]
