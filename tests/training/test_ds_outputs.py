"""What a DeepSpeed JSON writes is said before, and never lies over a file of somebody else's."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from mats_ds.config.ds_config import read_ds_config
from mats_ds.training.ds_outputs import check_outputs, name_outputs

ROOT = Path(__file__).resolve().parents[2]
TINY = json.loads((ROOT / "ds_configs" / "zero2_tiny.json").read_text())


def read(folder, **sections):
    (folder / "ds.json").write_text(json.dumps(TINY | sections))
    return read_ds_config(folder / "ds.json")


def csv_into(folder):
    return {"csv_monitor": {"enabled": True, "output_path": str(folder.parent), "job_name": folder.name}}


def test_a_monitor_that_cannot_start_is_told_on_every_rank(tmp_path, monkeypatch):
    """DeepSpeed builds monitors on rank 0 alone: the others learnt of it by a broken connection."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="csv_monitor.*output_path.*Not a directory"):
        check_outputs(read(tmp_path, **csv_into(tmp_path / "file" / "logs")))
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match='"wandb" .* needs wandb, .* install .*wandb'):
        check_outputs(read(tmp_path, wandb={"enabled": True}))
    check_outputs(read(tmp_path, wandb={"enabled": False}, comet={"enabled": False}))


def test_a_folder_that_cannot_be_written_is_told_and_none_is_made(tmp_path, monkeypatch):
    config = read(tmp_path, **csv_into(tmp_path / "a" / "logs"))
    check_outputs(config)
    assert os.listdir(tmp_path) == ["ds.json"], "looking made a folder"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ValueError, match=f"{tmp_path}: Permission denied"):
        check_outputs(config)


@pytest.mark.parametrize("name", ["mats_loss.csv", "Train_Samples_lr.csv", "Train_Samples_elapsed_time_ms_step.csv"])
def test_csv_files_of_others_are_not_appended_to(tmp_path, name):
    folder = tmp_path / "logs"
    folder.mkdir()
    config = read(tmp_path, **csv_into(folder))
    (folder / "index.csv").write_text("sample,shard\n1,2\n")
    (folder / name).write_text("step,loss of mine\n1,2\n")
    with pytest.raises(ValueError, match=f"{name} does not begin with.*another job_name"):
        check_outputs(config)
    (folder / name).unlink()
    (folder / name).symlink_to(tmp_path / "ds.json")
    with pytest.raises(ValueError, match=f"{name} is a symbolic link to .*ds.json"):
        check_outputs(config)
    (folder / name).unlink()
    (folder / name).write_text(f"step,{name.removesuffix('.csv').partition('mats_')[2] or 'lr'}\r\n16,0.5\r\n")
    if "elapsed" not in name:
        check_outputs(config)


def profile(path, **more):
    return {"flops_profiler": {"enabled": True, "output_file": str(path), **more}}


def test_a_profile_goes_over_nothing_but_a_profile(tmp_path):
    mine = tmp_path / "thesis.txt"
    mine.write_text("three years of work")
    with pytest.raises(ValueError, match=r"output_file.*thesis.txt, which holds no profile.*another name"):
        check_outputs(read(tmp_path, **profile(mine)))
    (tmp_path / "link").symlink_to(mine)
    with pytest.raises(ValueError, match=r"output_file.*link is a symbolic link to .*thesis.txt"):
        check_outputs(read(tmp_path, **profile(tmp_path / "link")))
    with pytest.raises(ValueError, match=r"output_file.* is a folder"):
        check_outputs(read(tmp_path, **profile(tmp_path)))
    with pytest.raises(ValueError, match=r"output_file.*thesis.txt: Not a directory"):
        check_outputs(read(tmp_path, **profile(mine / "profile.txt")))
    check_outputs(read(tmp_path, **profile(tmp_path / "new" / "profile.txt")))
    check_outputs(read(tmp_path, flops_profiler={"enabled": False, "output_file": str(mine)}))
    check_outputs(read(tmp_path, flops_profiler={"enabled": True}))
    assert mine.read_text() == "three years of work" and not (tmp_path / "new").exists()


def test_the_way_back_from_a_link_is_the_systems(tmp_path):
    """`link/..` is above the folder that the link leads to: what is judged and said is what
    DeepSpeed opens."""
    (tmp_path / "theirs" / "deep").mkdir(parents=True)
    (tmp_path / "theirs" / "mats_loss.csv").write_text("precious\n")
    (tmp_path / "link").symlink_to(tmp_path / "theirs" / "deep")
    back = tmp_path / "link" / ".."
    with pytest.raises(ValueError, match=r"output_file.*theirs/mats_loss.csv, which holds no profile"):
        check_outputs(read(tmp_path, **profile(back / "mats_loss.csv")))
    config = read(tmp_path, csv_monitor={"enabled": True, "output_path": str(back), "job_name": ""})
    with pytest.raises(ValueError, match=r"theirs/mats_loss.csv does not begin with"):
        check_outputs(config)
    assert str(tmp_path / "theirs") in name_outputs(config)[0]


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b", "a" * 300])
def test_names_that_no_file_can_have_are_told_with_their_key(tmp_path, name):
    for sections in (profile(tmp_path / name), profile(tmp_path / name / "profile.txt"), csv_into(tmp_path / name)):
        with pytest.raises(ValueError, match="in the DeepSpeed JSON|the DeepSpeed JSON names"):
            check_outputs(read(tmp_path, **sections))


def test_what_deepspeeds_profiler_wrote_is_written_anew(tmp_path):
    """Against DeepSpeed itself: the mark by which its files are known is that of the version that
    is installed."""
    import torch
    from deepspeed.profiling.flops_profiler import FlopsProfiler

    model = torch.nn.Linear(3, 5)
    profiler = FlopsProfiler(model)
    profiler.start_profile()
    model(torch.zeros(2, 3))
    profiler.stop_profile()
    profiler.print_model_profile(output_file=str(tmp_path / "profile.txt"))
    profiler.end_profile()
    check_outputs(read(tmp_path, **profile(tmp_path / "profile.txt")))
    assert (tmp_path / "profile.txt").stat().st_size > 100


def test_where_it_writes_is_said_with_whole_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = read(
        tmp_path,
        csv_monitor={"enabled": True, "output_path": "../logs", "job_name": "run"},
        tensorboard={"enabled": True},
        wandb={"enabled": True, "project": "moving"},
        comet={"enabled": True, "project": "still"},
        **profile("profile.txt"),
    )
    lines = name_outputs(config)
    found = {line.split('"')[1]: line for line in lines}
    assert str(tmp_path.parent / "logs" / "run") in found["csv_monitor"]
    assert str(tmp_path / "DeepSpeedJobName") in found["tensorboard"]
    assert str(tmp_path / "profile.txt") in found["flops_profiler"]
    assert "sent to the project 'moving'" in found["wandb"] and "sent to the project 'still'" in found["comet"]
    assert len(lines) == 5 and name_outputs(TINY) == []
