"""A Hugging Face folder is written whole or is none, replaces only an older export, and keeps it
where there is no room."""

from __future__ import annotations

import itertools
import json
import os
from functools import partial

import pytest
import torch

from mats_ds.models.weights import export_folder
from mats_ds.models.weights.export_folder import EXPORTED, check_export_folder
from mats_ds.models.weights.hugging_face import write_hugging_face
from mats_ds.models.weights.load import identify, read_weights, weights_of


@pytest.fixture
def weights(autoencoder):
    return weights_of(autoencoder, "a test")


@pytest.fixture
def export(tmp_path, weights):
    write_hugging_face(tmp_path / "model", weights)
    return tmp_path / "model"


def bytes_in(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def changed(weights):
    return type(weights)(weights.spec, {name: tensor + 1 for name, tensor in weights.state.items()}, "changed")


def test_an_export_holds_its_three_files_and_may_be_replaced(export, weights):
    assert set(bytes_in(export)) == set(EXPORTED)
    (export / "README.md").write_text("a model card")
    write_hugging_face(export, changed(weights))
    assert torch.equal(read_weights(export).state["mask_token"], weights.state["mask_token"] + 1)
    assert (export / "README.md").read_text() == "a model card"


@pytest.mark.parametrize("fresh", [(), (".git", ".gitattributes", "README.md"), ("lost+found",)])
def test_an_empty_folder_and_a_new_repository_of_the_hub_are_taken(tmp_path, weights, fresh):
    for name in fresh:
        (tmp_path / name).mkdir()
    write_hugging_face(tmp_path, weights)
    assert identify(tmp_path) == "hf"


@pytest.mark.parametrize(
    "files",
    [
        {"config.json": '{"model_type": "videomae"}', "model.safetensors": "theirs"},
        {"config.json": "[]"},
        {"model.safetensors": "theirs"},
        {"pytorch_model.bin": "theirs"},
        {"preprocessor_config.json": "{}"},
        {"notes.txt": "theirs"},
    ],
)
def test_a_folder_of_something_else_is_left_as_it_is(tmp_path, weights, files):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    before = bytes_in(tmp_path)
    with pytest.raises(ValueError, match=f"holds {next(iter(files))}.*new or empty folder"):
        write_hugging_face(tmp_path, weights)
    assert bytes_in(tmp_path) == before


def test_what_transformers_has_saved_since_is_not_ours_any_more(export):
    """It keeps our key in config.json: the folder may hold weights that somebody has trained on."""
    config = json.loads((export / "config.json").read_text())
    (export / "config.json").write_text(json.dumps({**config, "transformers_version": "5.23.0"}))
    with pytest.raises(ValueError, match="holds config.json"):
        check_export_folder(export)


def test_an_export_of_version_0_1_is_known_by_its_config(export):
    from safetensors.torch import load_file, save_file

    save_file(load_file(export / "model.safetensors"), export / "model.safetensors", {"format": "pt"})
    check_export_folder(export)
    (export / "pytorch_model.bin").touch()
    with pytest.raises(ValueError, match="holds pytorch_model.bin"):
        check_export_folder(export)


def test_a_link_instead_of_a_file_is_not_followed(export, tmp_path, weights):
    (tmp_path / "precious").write_text("precious")
    (export / "preprocessor_config.json").unlink()
    (export / "preprocessor_config.json").symlink_to(tmp_path / "precious")
    with pytest.raises(ValueError, match="symbolic link"):
        write_hugging_face(export, weights)
    assert (tmp_path / "precious").read_text() == "precious"


@pytest.mark.parametrize("is_old", [False, True])
def test_without_room_the_older_export_stays_and_no_new_one_seems_to_be_there(tmp_path, weights, file_limit, is_old):
    folder = tmp_path / "model"
    if is_old:
        write_hugging_face(folder, weights)
    before = bytes_in(folder) if is_old else None
    with file_limit(8192), pytest.raises(OSError, match=r"model\.safetensors cannot be written"):
        write_hugging_face(folder, changed(weights))
    assert (bytes_in(folder) if is_old else folder.exists()) == (before or False)


def run_until(moment, work):
    """Do the work in a child that dies before its change number `moment` of what a name leads to;
    returns its exit status."""
    if os.fork():
        return os.waitstatus_to_exitcode(os.wait()[1])
    num_changes = itertools.count()

    def die_or(change, *arguments, **named):
        if next(num_changes) == moment:
            os._exit(9)
        return change(*arguments, **named)

    for name in ("replace", "unlink", "mkdir", "chmod"):
        setattr(os, name, partial(die_or, getattr(os, name)))
    work()
    os._exit(0)


@pytest.mark.parametrize("is_old", [False, True])
def test_a_kill_at_any_moment_leaves_one_complete_export_or_none_and_the_next_one_works(tmp_path, weights, is_old):
    new, seen, status = changed(weights), [], 9
    while status:
        folder = tmp_path / str(len(seen))
        if is_old:
            write_hugging_face(folder, weights)
        status = run_until(len(seen), partial(write_hugging_face, folder, new))
        seen.append("none")
        if folder.is_dir() and (folder / "config.json").exists():
            state = read_weights(folder).state
            is_new = {torch.equal(state[name], tensor) for name, tensor in new.state.items()}
            assert len(is_new) == 1
            seen[-1] = "new" if is_new == {True} else "old"
        write_hugging_face(folder, new)
        assert set(bytes_in(folder)) == set(EXPORTED)  # what the kill left is gone
    found = ["old", "none", "new"] if is_old else ["none", "new"]
    assert list(dict.fromkeys(seen)) == found and len(seen) > 5


def test_two_at_once_do_not_mix(export, weights, monkeypatch):
    monkeypatch.setattr(export_folder, "hold_folder", lambda folder, command: (_ for _ in ()).throw(ValueError("in use")))
    before = bytes_in(export)
    with pytest.raises(ValueError, match="in use"):
        write_hugging_face(export, changed(weights))
    assert bytes_in(export) == before
