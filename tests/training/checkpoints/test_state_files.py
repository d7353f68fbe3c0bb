"""Going on from a checkpoint runs no code that is in its files, and writes nothing where their
names lead."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from mats_ds.training.checkpoints.checkpoint import find_checkpoint
from mats_ds.training.checkpoints.resume import ResumePoint, convert, find_resume_point, resume, warn_of_other_owners
from mats_ds.training.checkpoints.state_files import (
    FORCE,
    FORCE_NOT,
    check_state_files,
    describe_other_owners,
    name_user,
    without_code,
)

MODEL, MODEL_3 = "mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt"
OPTIMIZER, OPTIMIZER_BF16 = "zero_pp_rank_0_mp_rank_00_optim_states.pt", "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"
KINDS = (MODEL, MODEL_3, OPTIMIZER, OPTIMIZER_BF16)


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.system, (f"touch '{self.path}'",)


def module(*names):
    return {name: torch.zeros(2, 3) for name in names or ("encoder.norm.weight", "blocks.0.attn.qkv.q_bias")}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("old", [False, True], ids=["zip", "before torch 1.6"])
def test_code_in_a_file_of_any_kind_is_refused_and_not_run(tmp_path, name, old):
    evil = {"module": module(), "optimizer_state_dict": {"state": [Evil(tmp_path / "was_run")]}}
    torch.save(evil, tmp_path / name, _use_new_zipfile_serialization=not old)
    with pytest.raises(ValueError, match=rf"{name} holds more than a checkpoint.*would run code.*(posix|os)\.system"):
        check_state_files(tmp_path)
    assert os.listdir(tmp_path) == [name]


def test_deepspeeds_own_classes_numbers_and_tensors_are_read(tmp_path):
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    mappings = [{"encoder.norm.weight": fragment_address(numel=6, start=2)}]
    optimizer = {"loss_scaler": LossScaler(1), "zero_stage": ZeroStageEnum(2), "param_slice_mappings": mappings}
    torch.save({"optimizer_state_dict": optimizer, "ds_version": "0.19"}, tmp_path / OPTIMIZER)
    info = {"universal_checkpoint_version": 0.2}
    shapes = [{"encoder.norm.weight": torch.Size([2, 3])}]
    torch.save({"module": module(), "universal_checkpoint_info": info, "param_shapes": shapes}, tmp_path / MODEL)
    (tmp_path / "notes.txt").write_text("somebody's")
    check_state_files(tmp_path)


@pytest.mark.parametrize("name", ["../out", "/tmp/out", "a/b", "..", "", "a..b", 3, "a\nb", "a.b\n"])
@pytest.mark.parametrize("part", ["module", "param_shapes", "param_slice_mappings"])
def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path, name, part):
    """DeepSpeed's converter makes a folder of every name, and writes there."""
    contents = {
        "module": {"module": {name: torch.zeros(2)}},
        "param_shapes": {"param_shapes": [{name: torch.Size([2])}]},
        "param_slice_mappings": {"optimizer_state_dict": {"param_slice_mappings": [{name: 1}]}},
    }
    torch.save(contents[part], tmp_path / OPTIMIZER)
    with pytest.raises(ValueError, match="no name of a weight"):
        check_state_files(tmp_path)


def test_what_the_converter_would_obey_or_read_beside_is_refused(tmp_path):
    for extra in ({"universal_checkpoint_info": {"vocabulary_parameter_patterns": ["(a+)+$"]}}, {"ds_autoep_layers": [1]}):
        torch.save({"module": module(), **extra}, tmp_path / MODEL)
        with pytest.raises(ValueError, match="experts or divided layers"):
            check_state_files(tmp_path)
    torch.save({"module": module()}, tmp_path / MODEL)
    (tmp_path / "layer_00_expert_0_model_states.pt").write_bytes(b"")
    with pytest.raises(ValueError, match="layer_00_expert_0.*DeepSpeed would read it"):
        check_state_files(tmp_path)


def deflated(path):
    torch.save({"module": {"a": torch.zeros(1 << 22)}}, path)
    with zipfile.ZipFile(path) as stored:
        members = {name: stored.read(name) for name in stored.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def claiming(path):
    """One number stored, and 2^32 claimed."""
    torch.save({"module": {"a": torch.zeros(16)}}, path)
    with zipfile.ZipFile(path) as stored:
        members = {name: stored.read(name) for name in stored.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content.replace(b"K\x10tq", b"\x8a\x05\0\0\0\0\1tq") if name.endswith("pkl") else content)


def call_for_bytes(path):
    torch.save({"module": {"a": torch.zeros(1)}, "more": bytearray(5)}, path)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (deflated, r"unfold to 16,7\d\d,\d+"),
        (claiming, r"claims 17,179,869,184 bytes|cannot be read"),
        (call_for_bytes, r"cannot be read: it calls bytearray"),
    ],
)
def test_a_file_that_grows_when_it_is_read_is_refused(tmp_path, make, words):
    make(tmp_path / MODEL)
    assert (tmp_path / MODEL).stat().st_size < 100_000
    with pytest.raises(ValueError, match=words):
        check_state_files(tmp_path)


def test_torn_files_and_links_are_told(tmp_path):
    torch.save({"module": module()}, tmp_path / "whole")
    (tmp_path / MODEL).write_bytes((tmp_path / "whole").read_bytes()[:-200])
    with pytest.raises(ValueError, match=f"{MODEL} cannot be read"):
        check_state_files(tmp_path)
    (tmp_path / MODEL).unlink()
    (tmp_path / MODEL).symlink_to(tmp_path / "whole")
    with pytest.raises(ValueError, match="symbolic link"):
        check_state_files(tmp_path)


def test_torchs_switch_is_put_back(monkeypatch, tmp_path):
    monkeypatch.setenv(FORCE_NOT, "1")
    monkeypatch.delenv(FORCE, raising=False)
    torch.save(Evil(tmp_path / "was_run"), tmp_path / "a.pt")
    with without_code(), pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "a.pt", weights_only=False)
    assert os.environ[FORCE_NOT] == "1" and FORCE not in os.environ and not (tmp_path / "was_run").exists()


def poison(file: Path, marker: Path) -> None:
    """Put code into a file of a checkpoint, and its new sum into complete.json."""
    content = torch.load(file, weights_only=False)
    torch.save({**content, "more": Evil(marker)}, file)
    complete = json.loads((file.parent / "complete.json").read_text())
    sums = {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    complete["files"][file.name] = sums
    (file.parent / "complete.json").write_text(json.dumps(complete))


def try_all_ways(folder, marker):
    """What the check before, the converter and the engine itself say to a poisoned file of each
    kind."""
    import shutil

    from mats_ds import MaskedAutoencoder
    from mats_ds.config.batch_plan import plan_batch
    from mats_ds.config.ds_config import read_ds_config
    from mats_ds.distributed.ranks import start_distributed
    from mats_ds.training.checkpoints.saver import CheckpointSaver
    from mats_ds.training.engine import make_engine
    from tests.training.test_fit import CONFIGS, GRID

    ranks = start_distributed()
    config = read_ds_config(CONFIGS / "zero2_tiny.json")
    plan = plan_batch(config, recipe_batch=2, world_size=1)
    model = MaskedAutoencoder(grid=GRID, width=24, depth=1, heads=3, decoder_width=16, decoder_heads=2, decoder_depth=1)
    engine = make_engine(model, [{"params": list(model.parameters())}], config, plan)
    engine.backward(engine(torch.randint(0, 256, (2, 4, 16, 24, 3), dtype=torch.uint8), torch.tensor([1, 2])))
    engine.step()
    saver = CheckpointSaver(engine, folder / "sound", ranks, recipe="", global_batch=2, keep=1)
    saver.begin(1, {})
    saver.finish()
    sizes = dict(global_batch=2, zero_stage=2)
    steps = [resume(engine, find_resume_point(folder / "sound", ranks, **sizes), ranks).step]
    said = {}
    for name in (MODEL, OPTIMIZER):
        shutil.copytree(folder / "sound", folder / name)
        poison(folder / name / "step-00000001" / name, marker)
        found = find_checkpoint(folder / name)
        for way, call in {
            "check": lambda: find_resume_point(folder / name, ranks, **sizes),  # noqa: B023 (called at once)
            "converter": lambda: convert(found),  # noqa: B023
            "engine": lambda: resume(engine, ResumePoint(found), ranks),  # noqa: B023
        }.items():
            try:
                said[name, way] = f"went on: {call()}"
            except ValueError as error:
                said[name, way] = str(error)
    return steps, said


@pytest.mark.slow
def test_neither_the_check_nor_deepspeed_itself_runs_what_is_in_a_checkpoint(ranks, tmp_path):
    """DeepSpeed alone reads these files with weights_only=False: the check is not the only thing
    that stands in the way."""
    [(steps, said)] = ranks(try_all_ways, 1, tmp_path, tmp_path / "was_run")
    assert steps == [1] and not (tmp_path / "was_run").exists()
    for (name, way), words in said.items():
        assert "step-00000001" in words and "went on" not in words, (name, way, words)
        assert way != "check" or (name in words and "would run code" in words)


def test_a_run_of_another_user_is_named_before_anything_is_loaded(tmp_path, monkeypatch, caplog):
    step = tmp_path / "checkpoints" / "step-00000003"
    step.mkdir(parents=True)
    sums = {MODEL: {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}}
    (step / "complete.json").write_text(json.dumps({"format_version": 1, "step": 3, "world_size": 1, "files": sums}))
    (step / MODEL).write_bytes(b"")
    found = find_checkpoint(step.parent)
    with caplog.at_level(logging.WARNING):
        warn_of_other_owners(found)
    assert not caplog.records
    own = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: own + 54321)
    with caplog.at_level(logging.WARNING):
        warn_of_other_owners(found)
    [text] = [record.getMessage() for record in caplog.records]
    assert name_user(own) in text and f"uid {own + 54321}" in text and str(found.path) in text and "trust" in text
    monkeypatch.delattr(os, "getuid")
    assert describe_other_owners([tmp_path]) is None


def test_the_converter_writes_through_no_link(tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    (folder / "step-00000001").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (folder / ".universal").symlink_to(tmp_path / "elsewhere")
    from mats_ds.training.checkpoints.checkpoint import Checkpoint

    with pytest.raises(ValueError, match="could not be re-sharded"):
        convert(Checkpoint(folder, "step-00000001", 1, 2))
    assert os.listdir(tmp_path / "elsewhere") == []
