"""Checkpoints of our runs, as DeepSpeed writes their weights: the newest whole one is read, whatever lies beside it."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch

from mats_ds import MaskedAutoencoder, VideoClassifier, load_model, load_recipe
from mats_ds.config import dump_recipe
from mats_ds.interop.load import identify, read_weights, weights_of
from mats_ds.models.spec import dump_spec
from tests.interop.conftest import outputs, shake

RECIPE = load_recipe("tiny", ["clip.num_frames=4", "clip.height=32", "clip.width=48", "selection.frame_candidates=1.5"])
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
    (folder / "complete.json").write_text(json.dumps({"files": {WEIGHTS: stated}, "step": step}))
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
    assert (spec.size_name, spec.strategy, spec.num_candidate_frames) == ("tiny", "mats", RECIPE.candidate_grid().num_frames)
    assert torch.equal(load_model(tmp_path / "checkpoints" / "step-00000005")(frames, keys), old.eval()(frames, keys))


def test_a_torn_one_is_passed_over_and_said(tmp_path):
    write_step(tmp_path, 5, make_model(1))
    folder = write_step(tmp_path, 10, make_model(2))
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / WEIGHTS).write_bytes(content)
    weights = read_weights(tmp_path)
    assert "step 5 of" in weights.source
    assert weights.notes == (f"step-00000010 is passed over: {WEIGHTS} does not match its checksum",)
    (folder.parent / "step-00000005" / WEIGHTS).unlink()
    with pytest.raises(ValueError, match="no whole checkpoint\n.*checksum\n.*missing or torn"):
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


def test_zero_3_and_recipes_of_another_version_are_told(tmp_path):
    folder = write_step(tmp_path / "a", 5, make_model(1))
    stated = json.loads((folder / "complete.json").read_text())
    (folder / "complete.json").write_text(json.dumps(stated | {"files": {"zero_pp_rank_0_mp_rank_00_model_states.pt": {}}}))
    with pytest.raises(ValueError, match="ZeRO-3 keeps weights in parts"):
        read_weights(tmp_path / "a")
    write_step(tmp_path / "b", 5, make_model(1), recipe="model: {name: tiny, colour: red}")
    with pytest.raises(ValueError, match="of another version: model.colour"):
        read_weights(tmp_path / "b")
